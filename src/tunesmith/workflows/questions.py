"""Which questions a command asks, as its settings say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions, SampleOptions
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.tasks.base import GradedTask


def task_of(options: EvalOptions | SampleOptions) -> GradedTask:
    """Return the task, set up to read and check questions; ``UsageError`` for what it ignores."""
    from tunesmith.tasks.base import QuestionSettings
    from tunesmith.tasks.registry import get_graded_task

    phrases = options.abstain_phrases if isinstance(options, EvalOptions) else []
    settings = QuestionSettings(
        options.columns, options.checker, options.examples, options.unsafe_exec, tuple(phrases)
    )
    return get_graded_task(options.task, settings)


def examples_hash(options: EvalOptions | SampleOptions) -> str:
    """Return a hash of the worked examples of ``--examples``; nothing without any."""
    if not options.examples:
        return ""
    try:
        return hashlib.sha256(Path(options.examples).read_bytes()).hexdigest()
    except OSError as failure:
        raise DataError(
            f"The worked examples {options.examples!r} cannot be read: {failure}.",
            expected="a text file of blocks «Q: …», «A: …»",
        ) from None
