"""Naming the rows and tokens of a loss spike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.train.loop import StepResult
    from tunesmith.types import Encoded


def spike_record(
    before: Sequence[float], done: StepResult, rows: Sequence[Encoded], renderer: Renderer
) -> dict[str, Any] | None:
    """Return the record of a step whose loss is a spike after those before it, None for others."""
    from tunesmith.train.spikes import find_spike, worst_rows

    spike = find_spike(before, done.loss)
    if spike is None:
        return None
    named = [
        {
            "origin": str(rows[one.row].origin),
            "loss": one.loss,
            "tokens": [
                {"text": _token(rows[one.row], number, renderer), "loss": nats}
                for number, nats in one.worst
            ],
        }
        for one in worst_rows(done.seen, spike.usual)
    ]
    return {
        "kind": "spike",
        "step": done.step,
        "loss": done.loss,
        "usual": spike.usual,
        "deviations": round(spike.deviations, 1),
        "rows": named,
        "text": f"Step {done.step}: loss {done.loss:.3f}, far above the {spike.usual:.3f} of the "
        f"steps before ({spike.deviations:.0f} deviations). {'; '.join(map(_sentence, named))}.",
    }


def _token(row: Encoded, number: int, renderer: Renderer) -> str:
    """Return the text of one of the row's trained tokens."""
    trained = [token for token, weight in zip(row.ids, row.weights, strict=True) if weight]
    return renderer.decode_raw([trained[number]])


def _sentence(row: dict[str, Any]) -> str:
    tokens = ", ".join(f"«{one['text']}» {one['loss']:.1f}" for one in row["tokens"])
    return f"{row['origin']}: loss {row['loss']:.2f}, worst tokens {tokens}"
