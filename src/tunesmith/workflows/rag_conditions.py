"""Which conditions the settings of ``tunesmith eval --task raft`` name."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions
from tunesmith.config.schema_rag import RagOptions
from tunesmith.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.data.raft.contexts import Condition

NEED_ORACLE = ("oracle", "mixed", "distractors")
"""Contexts that can only be made where the chunk that answers is known."""


def refuse_rag(options: EvalOptions) -> None:
    """Refuse documents for a task that shows none."""
    for name, field in RagOptions.model_fields.items():
        if getattr(options, name) != field.get_default(call_default_factory=True):
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing for the task {options.task!r}.",
                hint="leave it out, or --task raft",
            )


def check_rag(options: EvalOptions) -> None:
    """Refuse settings that would do nothing for questions about documents."""
    from tunesmith.data.raft.contexts import WITH_PASSAGES

    contexts = set(options.context)
    refused = (
        ("vote", True, "the task 'raft'; tunesmith compare pairs its conditions"),
        ("decomposer", True, "the task 'raft'"),
        ("against", True, "the task 'raft'; --context takes several"),
        ("equal_tokens", True, "the task 'raft'"),
        ("compare_with", True, "the task 'raft'; tunesmith compare pairs its conditions"),
        ("stop_when_clear", True, "the task 'raft'"),
        ("clear_width", True, "the task 'raft'"),
        ("contamination", True, "the task 'raft'"),
        ("passages", not contexts & set(WITH_PASSAGES), f"--context {' '.join(options.context)}"),
        ("oracle_position", "mixed" not in contexts, f"--context {' '.join(options.context)}"),
        ("abstain_phrases", contexts <= {"none"}, f"--context {' '.join(options.context)}"),
        ("documents", contexts <= {"none"}, f"--context {' '.join(options.context)}"),
    )
    for name, idle, why in refused:
        field = EvalOptions.model_fields[name]
        if idle and getattr(options, name) != field.get_default(call_default_factory=True):
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing for {why}.", hint="leave it out"
            )


def conditions_of(options: EvalOptions) -> list[Condition]:
    """Return the conditions in the order of the settings, each once.

    ``UsageError`` for a place that is none, or lies behind the last passage.
    """
    from tunesmith.data.raft.contexts import WITH_PASSAGES, Condition

    if not options.context or not options.passages or not options.oracle_position:
        raise UsageError("No context, number of passages or place of the oracle is named.")
    found: list[Condition] = []
    for context in options.context:
        if context not in WITH_PASSAGES:
            found.append(Condition(context))
            continue
        places = options.oracle_position if context == "mixed" else [""]
        found += [
            Condition(context, k, _place(place, k))
            for k, place in itertools.product(options.passages, places)
        ]
    return list(dict.fromkeys(found))


def _place(place: str, passages: int) -> str:
    from tunesmith.data.raft.contexts import PLACED

    if place in ("", *PLACED):
        # Alone in a mix of one the oracle has every place.
        return place if passages > 1 else ""
    if not place.isascii() or not place.isdigit() or not 1 <= int(place) <= passages:
        raise UsageError(
            f"--oracle-position {place} is no place among {passages} passages.",
            expected=f"{', '.join(PLACED)}, or a number from 1 to {passages}",
        )
    return str(int(place)) if passages > 1 else ""
