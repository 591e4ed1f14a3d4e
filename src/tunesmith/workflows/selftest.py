"""``tunesmith selftest``: the promises of exactness, tried on the user's own model and machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_before import SelfTestOptions
from tunesmith.errors import TrainingError, UsageError
from tunesmith.storage import storage_errors
from tunesmith.types import Finding
from tunesmith.workflows import console
from tunesmith.workflows.footprint import settle_checkpointing
from tunesmith.workflows.setup import (
    Opened,
    loop_settings,
    make_accelerator,
    make_trainable,
    open_training,
    plan_steps,
)
from tunesmith.workflows.whole_run import name_unused

if TYPE_CHECKING:
    from tunesmith.train.invariants import Subject
    from tunesmith.types import Encoded

ANSWER_TOKENS = 24
"""Of the greedy answers that are compared."""
PROMPTS = 4


def command(resolved: Resolved[SelfTestOptions]) -> int:
    """Handle ``tunesmith selftest``; the exit code says whether everything holds."""
    findings = _test(resolved)
    broken = [one for one in findings if not one.holds]
    if broken:
        raise TrainingError(
            f"{len(broken)} of {len(findings)} checks do not hold on this machine: "
            f"{', '.join(one.name for one in broken)}.",
            hint="the same command with --dtype float32 or --attention segments shows whether it "
            "is the precision or a kernel",
        )
    return 0


def selftest(**settings: Any) -> list[Finding]:
    """Check what must come out alike; settings are those of ``tunesmith selftest``."""
    return _test(resolve(SelfTestOptions, settings, origin="argument"))


def _test(resolved: Resolved[SelfTestOptions]) -> list[Finding]:
    options = resolved.options
    opened = open_training(resolved)
    name_unused(options, resolved.sources, timed=False)
    subject = _subject(opened, options)
    findings: list[Finding] = []
    seconds: list[float] = []
    checks = _checks(opened, subject)
    folder = Path(options.output_dir)
    with storage_errors(folder), console.bar("checking", len(checks)) as bar:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".selftest-", dir=folder) as scratch:
            for number, check in enumerate(checks):
                began = time.monotonic()
                place = Path(scratch) / str(number)
                place.mkdir()
                found = check(place)
                findings.append(found)
                seconds.append(time.monotonic() - began)
                bar.advance(note=found.name)
    _show(findings, seconds)
    return findings


def _subject(opened: Opened, options: SelfTestOptions) -> Subject:
    """Make the model trainable as the settings say, and pick the rows."""
    from tunesmith.train.invariants import Subject, rounding_of

    rows = _pick(opened.rows.rows, options.test_rows, options.test_tokens)
    if len(rows) < 2:
        raise UsageError("The self-test needs at least two rows.", hint="a larger --dataset")
    console.say(
        f"Checked on {len(rows)} of these rows, {sum(len(row.ids) for row in rows):,} tokens."
    )
    accelerator = make_accelerator(options, opened.loaded)
    opened.config = settle_checkpointing(opened, accelerator)
    plan = plan_steps(opened.config, opened.rows, 1, quiet=True)
    settings = loop_settings(opened.config, plan, opened.rows, opened.loaded, quiet=True)
    # The short runs have no time for a warm-up, at whose first steps nothing would be learnt.
    settings = replace(settings, new_rows=None, warmup=0, schedule="constant")
    model = make_trainable(opened.config, opened.loaded, accelerator)
    rounding = rounding_of(opened.loaded.dtype, options.mixed_precision)
    positions = opened.loaded.max_positions
    return Subject(model, rows, settings, accelerator, rounding, positions, options.seed)


def _pick(rows: Sequence[Encoded], count: int, tokens: int) -> list[Encoded]:
    """Return rows of evenly spread lengths from the shortest on, at most so many tokens if can be.

    The longer half of the rows is given up first, then more.
    """
    ordered = sorted(rows, key=lambda row: len(row.ids))
    end = len(ordered)
    while True:
        wanted = min(count, end)
        at = [number * (end - 1) // max(1, wanted - 1) for number in range(wanted)]
        picked = [ordered[place] for place in at]
        if end <= count or sum(len(row.ids) for row in picked) <= tokens:
            return picked
        end = max(count, end * 3 // 4)


def _checks(opened: Opened, subject: Subject) -> list[Callable[[Path], Finding]]:
    """Return the checks in their order; the last one may leave an adapter on the model."""
    from tunesmith.generate.invariants import batched
    from tunesmith.models.adapters import add_lora
    from tunesmith.train import invariants

    renderer, quantised = opened.renderer, opened.loaded.quantised is not None

    def generated(_: Path) -> Finding:
        prompts = [_prompt(row) for row in subject.rows]
        return batched(
            subject.model,
            list(dict.fromkeys(prompts))[:PROMPTS],
            renderer.decode,
            renderer.stop_ids,
            tokens=ANSWER_TOKENS,
            rounding=subject.rounding,
        )

    def merged(_: Path) -> Finding:
        model = subject.model
        if quantised:
            name, why = "merged = adapter", "the base is quantised, so merging rounds it anew"
            return Finding(name, "logits", None, subject.rounding, f"not made: {why}")
        if not hasattr(model, "merge_adapter"):
            model = add_lora(model, rank=8, alpha=16)
        return invariants.merged(model, subject.rows, subject.rounding)

    return [
        lambda _: invariants.packed(subject),
        lambda _: invariants.accumulated(subject),
        lambda _: invariants.shared(subject),
        lambda folder: invariants.resumed(subject, folder),
        lambda folder: invariants.kept_trunk(subject, folder),
        generated,
        merged,
    ]


def _prompt(row: Encoded) -> tuple[int, ...]:
    """Return what of a row stands before its first trained token; half of it if nothing does."""
    first = next((at for at, weight in enumerate(row.weights) if weight), 0)
    return row.ids[: first if first > 1 else max(1, len(row.ids) // 2)]


def _show(findings: Sequence[Finding], seconds: Sequence[float]) -> None:
    lines = [
        [
            one.name,
            one.compared,
            "-" if one.difference is None else f"{one.difference:.1e}",
            f"{one.limit:.0e}" if one.limit else "0",
            f"{took:.1f}",
            "not made" if one.difference is None else "holds" if one.holds else "DIFFERS",
        ]
        for one, took in zip(findings, seconds, strict=True)
    ]
    columns = ["check", "of", "difference", "limit", "seconds", "verdict"]
    console.table("Self-test: relative differences", columns, lines)
    for one in findings:
        if one.note:
            console.say(f"{one.name}: {one.note}.")
