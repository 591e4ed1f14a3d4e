"""The training examples of a run as the model sees them, read again from where they came from."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import DataError, UsageError
from tunesmith.workflows.opening import open_renderer

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.studio.run_pages import SeenRow, SeenRows
    from tunesmith.studio.runs import RunFacts
    from tunesmith.types import Example
    from tunesmith.workflows.rows import Data


class RowReader:
    """Keeps the rows of the run that was looked at last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[object, tuple[Data, Renderer, int]] | None = None

    def seen(self, run: RunFacts, settings: Mapping[str, Any], first: int, count: int) -> SeenRows:
        """Return so many training examples from one on."""
        from tunesmith.studio.run_pages import SeenRows

        try:
            config = FineTuningConfig(**settings)
        except (ValidationError, TypeError):
            raise UsageError(
                f"The settings of {run.name} are not those of a training run.",
                expected="the config.yaml that tunesmith train has written",
            ) from None
        with self._lock:  # one reader at a time: a tokenizer belongs to one thread
            data, renderer, limit = self._open(run, config)
            rows: list[SeenRow] = []
            for at in range(first, min(first + count, len(data.train))):
                rows += _seen(data.train[at], renderer, limit, config.assistant_only_loss)
            source = ", ".join(config.dataset) or f"the task {config.task} itself"
            return SeenRows(rows, len(data.train), source)

    def _open(self, run: RunFacts, config: FineTuningConfig) -> tuple[Data, Renderer, int]:
        from tunesmith.tasks.registry import get_task
        from tunesmith.workflows.rows import gather

        key = (run.path, config, *(_changed(one) for one in config.dataset))
        if self._last is None or self._last[0] != key:
            self._last = None
            grown = config.new_tokens and (run.path / "final_model").is_dir()
            model = str(run.path / "final_model") if grown else config.model
            renderer, limit = open_renderer(config, model, None)
            data = gather(config, get_task(config.task))
            if not data.train:
                raise DataError(f"{run.name} has no training examples.")
            self._last = (key, (data, renderer, min(limit, config.max_length)))
        return self._last[1]


def _seen(
    example: Example, renderer: Renderer, limit: int, answers_only: bool
) -> Iterator[SeenRow]:
    from tunesmith.data.show import spans, summary
    from tunesmith.errors import ContractError
    from tunesmith.studio.run_pages import SeenRow

    try:
        rendered = renderer.encode(example, limit, answers_only=answers_only)
    except ContractError as breach:
        yield SeenRow(str(example.origin), refused=str(breach))
        return
    if rendered.refused:
        yield SeenRow(str(example.origin), refused=str(rendered.refused))
    for row in rendered.rows:
        yield SeenRow(summary(row), spans(row, renderer))


def _changed(source: str) -> float:
    try:
        return Path(source).stat().st_mtime
    except (OSError, ValueError):
        return 0.0
