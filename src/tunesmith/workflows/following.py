"""Showing how far answers follow their constraints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.evaluate.following import Both, Following, Share

COLUMNS = ["", "n", "strict (95% interval)", "loose (95% interval)"]


def show_following(figures: Following) -> None:
    """Print both levels and each kind of constraint, without its family, for want of room."""
    rows = [
        _row("whole prompts", figures.prompts),
        _row("single constraints", figures.instructions),
        *(_row(f"  {kind.rpartition(':')[2]}", both) for kind, both in figures.kinds.items()),
    ]
    console.table("Constraints followed", COLUMNS, rows)


def _row(name: str, both: Both) -> list[str]:
    return [name, f"{both.strict.of:,}", _cell(both.strict), _cell(both.loose)]


def _cell(share: Share) -> str:
    ends = share.interval
    return f"{100 * share.value:.1f}% ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
