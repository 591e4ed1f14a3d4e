"""Showing what a model makes of the same questions with other documents in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison, Pair
    from tunesmith.evaluate.scores.base import Measured

COLUMNS = ["documents", "EM", "F1", "recall", "quotes", "abstain"]


def show_conditions(
    measured: Mapping[str, Mapping[str, Measured]], comparisons: Mapping[str, Comparison]
) -> None:
    """Print a row for each condition, and how each differs from the first."""
    rows = [
        [
            name,
            _with_interval(found["answer_em"]),
            _with_interval(found["answer_f1"]),
            _share(found["recall_at_k"]),
            _share(found["quote_validity"]),
            f"{_share(found['abstention_precision'])} / {_share(found['abstention_recall'])}",
        ]
        for name, found in measured.items()
    ]
    console.table("Answers from documents, in % (95% interval)", COLUMNS, rows)
    console.say(
        "recall: questions with a hit among the passages shown; quotes: those that stand in a "
        "shown document; abstain: precision / recall. – says that there was nothing to measure."
    )
    losses = [f"{n} {one['answer_loss'].value:.2f}" for n, one in measured.items()
              if one["answer_loss"].value is not None]  # fmt: skip
    if losses:
        console.say(f"Loss of the right answer, nats a byte: {'; '.join(losses)}.")
    if comparisons:
        _show_differences([*measured], comparisons)


def _show_differences(names: Sequence[str], comparisons: Mapping[str, Comparison]) -> None:
    """Print how each condition differs from the first, paired by question, in points."""
    pairs = [comparison.pairs for comparison in comparisons.values()]
    rows = [
        [name, *(cell for pair in both for cell in (_difference(pair), _p(pair)))]
        for name, *both in zip(names[1:], *pairs, strict=True)
    ]
    console.table(
        f"Against {names[0]}, in points (95% interval; p after Holm)",
        ["documents", "EM", "p", "F1", "p"],
        rows,
    )
    reach = max((pair.detectable or 1.0 for pair in pairs[0]), default=1.0)
    console.say(
        f"{pairs[0][0].n} questions reliably show differences in EM of {100 * reach:.0f} points "
        "or more."
    )


def _difference(pair: Pair) -> str:
    ends = pair.interval
    points = 100 * pair.difference
    shown = f"{points:+.0f}" if abs(points) >= 9.95 else f"{points:+.1f}"
    return f"{shown} ({100 * ends.low:+.0f}…{100 * ends.high:+.0f})"


def _p(pair: Pair) -> str:
    if pair.p_holm is None:
        return "–"
    return "<0.001" if pair.p_holm < 0.001 else f"{pair.p_holm:.3f}"


def _with_interval(one: Measured) -> str:
    if one.interval is None:
        return _share(one)
    return f"{_share(one)} ({100 * one.interval.low:.0f}–{100 * one.interval.high:.0f})"


def _share(one: Measured) -> str:
    """Return a share in percent, in at most four signs."""
    if one.value is None:
        return "–"
    return f"{100 * one.value:.0f}" if one.value >= 0.0995 else f"{100 * one.value:.1f}"
