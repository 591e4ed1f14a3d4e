"""``tunesmith find-lr``: sweep the rate over a run's own first steps, and suggest one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_before import FindRateOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console
from tunesmith.workflows.footprint import settle_checkpointing
from tunesmith.workflows.setup import (
    Opened,
    loop_settings,
    make_accelerator,
    make_trainable,
    open_training,
    plan_steps,
    run_name,
)
from tunesmith.workflows.signals import stop_on_signals
from tunesmith.workflows.whole_run import name_unused

if TYPE_CHECKING:
    from tunesmith.train.find_rate import Reading, Sweep


@dataclass(frozen=True, slots=True)
class RateResult:
    """What a sweep leaves."""

    folder: Path
    """Holds ``rate.json`` and ``rate.html``."""
    suggestion: float | None
    """None is inconclusive."""
    reason: str


def command(resolved: Resolved[FindRateOptions]) -> int:
    """Handle ``tunesmith find-lr``; the rate goes to stdout, nothing if there is none to give."""
    found = _find(resolved)
    if found.suggestion is not None:
        print(f"{found.suggestion:.2g}")
    return 0


def find_rate(**settings: Any) -> RateResult:
    """Sweep the learning rate; settings are those of ``tunesmith find-lr``."""
    return _find(resolve(FindRateOptions, settings, origin="argument"))


def _find(resolved: Resolved[FindRateOptions]) -> RateResult:
    options = resolved.options
    if options.lr_end <= options.lr_start:
        raise UsageError(
            f"--lr-end {options.lr_end:g} is not above --lr-start {options.lr_start:g}.",
            hint=f"--lr-end {1000 * options.lr_start:g}",
        )
    opened = open_training(resolved)
    name_unused(options, resolved.sources, timed=False)
    found, main = _sweep(opened, options)
    from tunesmith.train.find_rate import read

    reading = read(found)
    folder = Path(options.output_dir) / f"{options.run_name or run_name(options)}_rate"
    _show(found, reading, options)
    if main:
        _write(folder, found, reading, opened, options)
        console.say(f"Curve: {folder / 'rate.html'}")
    return RateResult(folder, reading.suggestion, reading.reason)


def _sweep(opened: Opened, options: FindRateOptions) -> tuple[Sweep, bool]:
    """Sweep; return what was found and whether this process is the one that writes it down."""
    from tunesmith.train.find_rate import rates, sweep
    from tunesmith.train.loop import State, make_optimizer

    accelerator = make_accelerator(options, opened.loaded)
    opened.config = settle_checkpointing(opened, accelerator)
    plan = plan_steps(opened.config, opened.rows, accelerator.num_processes)
    settings = loop_settings(opened.config, plan, opened.rows, opened.loaded)
    settings = replace(settings, new_rows=None)  # the rate is that of the whole model
    model = make_trainable(opened.config, opened.loaded, accelerator)
    state = State(model, make_optimizer(model, settings))
    if options.lr_steps > plan.steps_an_epoch:
        console.warn(
            f"an epoch has only {plan.steps_an_epoch} steps, so rows are seen "
            f"{options.lr_steps / plan.steps_an_epoch:.1f} times: part of the fall is repetition"
        )
    swept = rates(options.lr_start, options.lr_end, options.lr_steps)
    with stop_on_signals() as stop, console.bar("sweeping", len(swept)) as bar:
        try:
            found = sweep(
                state,
                opened.rows.rows,
                plan,
                settings,
                accelerator,
                swept,
                should_stop=stop,
                seen=lambda rate, loss: bar.advance(note=f"lr {rate:.1e}  loss {loss:.3f}"),
            )
        except Interrupted:
            raise Interrupted("Stopped by a signal; nothing was written.") from None
    return found, bool(accelerator.is_main_process)


def _show(found: Sweep, reading: Reading, options: FindRateOptions) -> None:
    from tunesmith.report.text_plot import text_plot

    marks = [(rate, name) for rate, name in _marks(found, reading) if rate]
    if found.losses:
        # A loss that ran away would press the rest of the curve flat.
        most = 1.2 * max(found.smoothed[0], min(found.smoothed))
        console.say("Smoothed loss over the learning rate:")
        console.say(text_plot(found.rates, [min(s, most) for s in found.smoothed], marks))
        names = {"s": "s steepest fall", "m": "m lowest loss"}
        names["c"] = "c a tenth of the rate at divergence"
        console.say("  ".join(names[name] for _, name in marks))
    if reading.suggestion is None:
        console.say(f"Inconclusive: {reading.reason}.")
        return
    planned = options.learning_rate
    beside = f" The rate of these settings is {planned:.2g}." if planned else ""
    console.say(f"Suggested: --learning-rate {reading.suggestion:.2g} ({reading.reason}).{beside}")
    console.say(
        f"The loss fell by {reading.drop:.3f} nats a token, {reading.clarity:.0f} standard errors."
    )
    console.say(
        "The rule: half the rate at which the loss is lowest, and at most a tenth of the rate at "
        "which it diverged."
    )


def _marks(found: Sweep, reading: Reading) -> list[tuple[float, str]]:
    inside = found.rates[-1] if found.rates else 0.0
    given = ((reading.steepest, "s"), (reading.lowest, "m"), (reading.cap, "c"))
    return [(rate, name) for rate, name in given if rate is not None and rate <= inside]


def _write(
    folder: Path, found: Sweep, reading: Reading, opened: Opened, options: FindRateOptions
) -> None:
    from tunesmith.report.charts import Chart, Series
    from tunesmith.report.page import Command, ReportData, write

    folder.mkdir(parents=True, exist_ok=True)
    content = {"model": opened.loaded.ref.described, **asdict(reading), **asdict(found)}
    content |= {"smoothed": found.smoothed, "settings": options.model_dump(mode="json")}
    write_json(folder / "rate.json", content)
    series = [
        Series(name, [(math.log10(x), y) for x, y in zip(found.rates, ys, strict=True)])
        for name, ys in (("smoothed loss", found.smoothed), ("loss of a step", found.level))
    ]
    rate = reading.suggestion
    said = "Inconclusive" if rate is None else f"Suggested learning rate: {rate:.2g}"
    again = [] if rate is None else [Command("Train with it", f"--learning-rate {rate:.2g}")]
    write(
        folder / "rate.html",
        ReportData(
            "Learning rate",
            opened.loaded.ref.described,
            headline=[f"{said}: {reading.reason}."],
            charts=[Chart("loss (nats per token)", series, "log10 of the learning rate")],
            commands=again,
        ),
    )
