"""What a mix says of itself: targets against what was realised, refusals, the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.config.schema_mix import MixRecipe
    from tunesmith.data.erasure import Finding
    from tunesmith.data.mix_rows import MixRow, Pool
    from tunesmith.workflows.mix import StageRows
    from tunesmith.workflows.mix_strategies import Chosen

SHOWN = 20
"""Findings that the JSON repeats; the audit's own file holds all."""
KINDS = {
    "instruction": "traces of the erased instruction",
    "escapes": "literal \\n escapes",
    "calculator": "<<…>> calculator marks",
    "end_of_text": "end-of-text marks",
    "gold": "answers that disagree with the gold",
    "strategy": "another strategy than the assigned one",
}


def summary_of(
    recipe: MixRecipe,
    made: Sequence[StageRows],
    pools: Mapping[str, Pool],
    chosen: Chosen | None,
    outputs: Mapping[str, Path],
    refused: Sequence[Finding],
    left: Sequence[Finding],
) -> dict[str, Any]:
    """Return what the JSON beside the output holds."""
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "stages": [_stage(one, outputs[one.stage.name]) for one in made],
        "sources": {name: _pool(pool) for name, pool in sorted(pools.items())},
        "erasure": recipe.erasure.model_dump() if recipe.erasure else None,
        "strategies": {
            "rows": _strategies([pair for one in made for pair in one.train]),
            "measured": chosen.to_json() if chosen else None,
        },
        "audit": {
            "counts": {
                "refused": dict(sorted(Counter(f.kind for f in refused).items())),
                "left": dict(sorted(Counter(f.kind for f in left).items())),
            },
            "erased rows": sum(bool(row.erasure) for one in made for row in one.distinct()),
            "examples": [
                {"kind": f.kind, "origin": f.origin, "detail": f.detail, "refused": gone}
                for gone, found in ((True, refused), (False, left))
                for f in found[:SHOWN]
            ],
        },
    }


def _stage(one: StageRows, output: Path) -> dict[str, Any]:
    train, validation = _by_source(one.train), _by_source(one.validation)
    copies = _by_source([pair for pair in one.train if pair[1]])
    total = len(one.train) + len(one.validation)
    wanted = sum(a.target for a in one.allotted.values())
    sources = {}
    for name, allotted in one.allotted.items():
        rows = train[name] + validation[name]
        sources[name] = {
            "target_rows": allotted.target,
            "target_share": allotted.target / wanted if wanted else 0.0,
            "available": allotted.available,
            "rows": rows,
            "share": rows / total if total else 0.0,
            "train": train[name],
            "validation": validation[name],
            "copies": copies[name],
            "notes": allotted.notes,
        }
    return {
        "name": one.stage.name,
        "output": output.name,
        "target_rows": wanted,
        "rows": total,
        "train": len(one.train),
        "validation": len(one.validation),
        "with_examples": sum(bool(row.shots) for row, _ in [*one.train, *one.validation]),
        "sources": sources,
    }


def _by_source(rows: Sequence[tuple[MixRow, int]]) -> Counter[str]:
    return Counter(row.source for row, _ in rows)


def _strategies(rows: Sequence[tuple[MixRow, int]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row, _ in rows:
        counts.setdefault(row.category, Counter())[row.strategy or "none"] += 1
    return {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())}


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "dataset": pool.spec.dataset,
        "read": pool.read,
        "usable": pool.available,
        "repeated": pool.repeated,
        "refused": dict(sorted(pool.refused.items())),
        "unreadable": len(pool.unreadable),
        "unreadable_rows": pool.unreadable[:SHOWN],
        "turns_cleaned": pool.cleaned,
    }


def say_stage(one: StageRows, output: Path, name: str) -> None:
    """Print target against realised, source by source, and what became of short ones."""
    found = _stage(one, output)
    rows = [
        [
            source,
            f"{figures['available']:,}",
            f"{figures['target_rows']:,} ({figures['target_share']:.1%})",
            f"{figures['rows']:,} ({figures['share']:.1%})",
            f"{figures['validation']:,}",
        ]
        for source, figures in found["sources"].items()
    ]
    has = sum(figures["available"] for figures in found["sources"].values())
    totals = (has, found["target_rows"], found["rows"], found["validation"])
    rows.append(["all", *(f"{number:,}" for number in totals)])
    title = f"{name} {one.stage.name}".strip()
    console.table(title, ["source", "has", "wanted", "realised", "held out"], rows)
    for source, figures in found["sources"].items():
        if figures["notes"]:
            console.say(f"{source}: {'; '.join(figures['notes'])}.")
    if found["rows"] < found["target_rows"]:
        missing = found["target_rows"] - found["rows"]
        console.warn(f"{title}: {missing:,} rows fewer than wanted")
    console.say(f"{output}: {found['train']:,} training rows, {found['validation']:,} held out.")


def say_whole(summary: Mapping[str, Any], counts: Path, findings: Path) -> None:
    """Print what was left out, how rows are taught, and what the audit found."""
    for name, pool in summary["sources"].items():
        lost = [f"{n} rows with {KINDS[kind]}" for kind, n in pool["refused"].items()]
        lost += [f"{pool['repeated']} repeated rows"] * bool(pool["repeated"])
        lost += [f"{pool['unreadable']} unreadable rows"] * bool(pool["unreadable"])
        if lost:
            console.say(f"{name}: left out {', '.join(lost)} of {pool['read']:,}.")
    taught: Counter[str] = Counter()
    for used in summary["strategies"]["rows"].values():
        taught.update(used)
    if set(taught) != {"none"}:
        console.say("Strategies: " + ", ".join(f"{n} {c:,}" for n, c in sorted(taught.items())))
    audit = summary["audit"]
    if audit["erased rows"]:
        traces = audit["counts"]["left"].get("instruction", 0)
        gone = "no trace of them is left" if not traces else f"traces are left in {traces} rows"
        console.say(f"Erased instructions in {audit['erased rows']:,} different rows: {gone}.")
    for kind, count in audit["counts"]["left"].items():
        first = next(
            f"{f['origin']} {f['detail']}"
            for f in audit["examples"]
            if f["kind"] == kind and not f["refused"]
        )
        console.warn(f"{count:,} rows with {KINDS[kind]}, such as {first}")
    console.say(f"Counts: {counts}. Every finding: {findings}.")
