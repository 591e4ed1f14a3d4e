"""The ledger of rows as files: every loss, and the rows to look at, named by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.rundir import RunDir
    from tunesmith.train.row_ledger import RowLedger, Verdict
    from tunesmith.types import Encoded

LISTED = 1000
"""Rows of a kind that are listed; all are counted, and every loss is in the ledger."""
SHOWN = 3
"""Rows of a kind that the terminal names."""


def write_ledger(run: RunDir, ledger: RowLedger) -> None:
    """Write ``row_losses.safetensors``: step, row (from 0), loss and costliest token, in order."""
    from safetensors.torch import save

    from tunesmith.storage import write_bytes

    write_bytes(run.row_losses, save(ledger.tensors()))


def judge_rows(run: RunDir, ledger: RowLedger, rows: Sequence[Encoded]) -> None:
    """Write ``rows.json`` and say what it holds: rows never learnt, forgotten, or suspect."""
    from tunesmith.storage import write_json
    from tunesmith.train.row_ledger import DEVIATIONS, LEARNT, LOST

    verdict = ledger.judge(len(rows))
    content = {
        "rows": verdict.rows,
        "passes": verdict.passes,
        "trained more than once": verdict.judged,
        "median loss": round(verdict.usual, 5),
        "limits": {"learnt": LEARNT, "lost": LOST, "deviations": DEVIATIONS},
    }
    for kind, members in _kinds(verdict):
        content[kind] = {
            "count": len(members),
            "rows": [_entry(at, verdict, rows) for at in members[:LISTED]],
        }
    write_json(run.rows, content)
    _say(run, verdict, rows)


def _kinds(verdict: Verdict) -> list[tuple[str, Sequence[int]]]:
    return [
        ("never learnt", verdict.never),
        ("forgotten", verdict.forgotten),
        ("suspect label", verdict.suspects),
    ]


def _entry(at: int, verdict: Verdict, rows: Sequence[Encoded]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "origin": str(rows[at].origin),
        "losses": [round(loss, 4) for loss in verdict.courses[at]],
    }
    if at in verdict.deviations:
        entry["deviations"] = verdict.deviations[at]
    return entry


def _say(run: RunDir, verdict: Verdict, rows: Sequence[Encoded]) -> None:
    parts = []
    places = ", ".join(str(rows[at].origin) for at in verdict.suspects[:SHOWN])
    more = ", …" if len(verdict.suspects) > SHOWN else ""
    if verdict.judged:
        parts.append(
            f"of {verdict.judged} rows trained more than once {len(verdict.never)} were never "
            f"learnt and {len(verdict.forgotten)} forgotten"
        )
        suspect = f"{len(verdict.suspects)} may have a wrong label"
        parts.append(f"{suspect}: {places}{more}" if places else suspect)
    else:
        parts.append("each was trained once, so there is no course of losses to judge them by")
    console.say(f"Rows: {'; '.join(parts)} (all in {run.rows.name}).")
