"""``tunesmith estimate``: memory and time of a run before it is started."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_before import EstimateOptions
from tunesmith.errors import UsageError
from tunesmith.rundir import RunDir
from tunesmith.storage import write_json
from tunesmith.workflows import console
from tunesmith.workflows.footprint import settle_checkpointing, training_memory
from tunesmith.workflows.setup import (
    Opened,
    loop_settings,
    make_accelerator,
    make_trainable,
    open_training,
    plan_steps,
    run_name,
)
from tunesmith.workflows.whole_run import name_unused

if TYPE_CHECKING:
    from tunesmith.train.batches import Plan
    from tunesmith.train.estimate import Duration, Memory, Probe
    from tunesmith.train.loop import State

APART = (
    "The time is that of the steps, their held-out losses and what is saved on the way, without "
    "loading and the questions before and after."
)

UNCACHED = "The trunk cache, which makes epochs after the first faster, is not counted in."


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run is expected to take."""

    memory: Memory
    start_bytes: int
    """Held by the process, or allocated on the GPU, before the first step, the model included."""
    peak_bytes: int
    """Of the whole process on a CPU, of the allocated memory on a GPU."""
    steps: int
    tokens: int
    """Prompt and completion tokens of all steps."""
    trained_tokens: int
    """Of one epoch."""
    duration: Duration | None
    """None without probes."""
    held_out_seconds: float
    saving_seconds: float
    """Of all checkpoints, and of the best model after every held-out loss on the way."""
    checkpoint_bytes: int
    """Of the checkpoints that are kept."""
    probes: tuple[Probe, ...]

    @property
    def seconds(self) -> float | None:
        """Return the seconds of steps, held-out losses and what is saved."""
        if self.duration is None:
            return None
        return self.duration.seconds + self.held_out_seconds + self.saving_seconds


def command(resolved: Resolved[EstimateOptions]) -> int:
    """Handle ``tunesmith estimate``."""
    _estimate(resolved)
    return 0


def estimate(**settings: Any) -> Estimate:
    """Estimate a run; settings are those of ``tunesmith estimate``."""
    return _estimate(resolve(EstimateOptions, settings, origin="argument"))


def _estimate(resolved: Resolved[EstimateOptions]) -> Estimate:
    options = resolved.options
    # Read first: a mistyped folder should not wait for the probes.
    measured = _measured(options.compare) if options.compare else None
    opened = open_training(resolved)
    name_unused(options, resolved.sources, timed=True)
    found = _look(opened, options)
    _show(found)
    if found.duration is not None and options.freeze_ratio and options.trunk_cache != "off":
        console.say(UNCACHED)
    stored: dict[str, Any] = {**asdict(found), "memory_peak": found.memory.peak}
    stored["seconds"] = found.seconds
    if measured is not None:
        stored["compared"] = _compare(found, measured)
    folder = Path(options.output_dir) / f"{options.run_name or run_name(options)}_estimate"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "estimate.json", stored)
    console.say(f"Estimate: {folder / 'estimate.json'}")
    return found


def _look(opened: Opened, options: EstimateOptions) -> Estimate:
    from tunesmith.models.memory import resident_bytes
    from tunesmith.train import estimate as arithmetic
    from tunesmith.train.loop import State, make_optimizer
    from tunesmith.train.losses import lengths

    accelerator = make_accelerator(options, opened.loaded)
    opened.config = settle_checkpointing(opened, accelerator)
    plan = plan_steps(opened.config, opened.rows, accelerator.num_processes)
    settings = loop_settings(opened.config, plan, opened.rows, opened.loaded)
    model = make_trainable(opened.config, opened.loaded, accelerator)
    rows, sizes = opened.rows.rows, lengths(opened.rows.rows)
    tokens = arithmetic.step_tokens(sizes, plan)
    memory = training_memory(opened, plan, settings, accelerator)
    state = State(model, make_optimizer(model, settings))
    # A run takes this loss before its first step too, and what it leaves in the allocator counts.
    a_pass = arithmetic.held_out_seconds(
        opened.loaded.model, opened.held.rows, accelerator, settings.attention
    )
    cuda = accelerator.device.type == "cuda"
    start = memory.parameters if cuda else resident_bytes()
    probes: list[Probe] = []
    duration, held, saving = None, 0.0, 0.0
    if options.probe_steps:
        steps = arithmetic.chosen_steps(tokens, options.probe_steps)
        written: list[float] = []
        probes = arithmetic.probe(
            state, rows, plan, settings, accelerator, steps, lambda s: written.append(_save(s))
        )
        duration = arithmetic.duration(probes, tokens, plan.total_steps)
        passes = _held_out_passes(options, plan)
        held = a_pass * passes
        saving = written[0] * _saves(options, plan)
        if opened.held.rows:
            saving += passes * _save_model(opened)
    # What the probe saw holds more than tensors: the allocator's own, and libraries woken up.
    grown = max([memory.peak - memory.parameters, *(probe.grown for probe in probes)])
    return Estimate(
        memory,
        start,
        start + grown,
        plan.total_steps,
        round(sum(tokens) / len(tokens) * plan.total_steps),
        opened.rows.trained_tokens,
        duration,
        held,
        saving,
        (memory.gradients + memory.optimizer) * _kept(options, plan),
        tuple(probes),
    )


def _held_out_passes(options: EstimateOptions, plan: Plan) -> int:
    """Return how often the held-out loss is taken from the first step to the last."""
    if options.eval_strategy == "no":
        return 1
    every = plan.steps_an_epoch if options.eval_strategy == "epoch" else options.eval_steps
    return (plan.total_steps - 1) // every + 1


def _saves(options: EstimateOptions, plan: Plan) -> int:
    """Return how many checkpoints are written, the last one included."""
    every = plan.steps_an_epoch if options.save_steps == "epoch" else int(options.save_steps)
    return (plan.total_steps - 1) // every + 1


def _kept(options: EstimateOptions, plan: Plan) -> int:
    """Return how many checkpoints lie on the disk at most."""
    best = min(options.keep_best, _held_out_passes(options, plan))
    return best + min(options.save_total_limit, _saves(options, plan))


def _save(state: State) -> float:
    """Write a checkpoint for a look; return the seconds."""
    from tunesmith.train import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        checkpoint.save(Path(folder), state, {})
        return time.perf_counter() - began


def _save_model(opened: Opened) -> float:
    """Write the model for a look; return the seconds."""
    from tunesmith.workflows.finish import save_model

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        save_model(opened.loaded, opened.renderer, Path(folder) / "model")
        return time.perf_counter() - began


def _show(found: Estimate) -> None:
    memory = found.memory
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "activations": memory.activations,
        "vocabulary head and loss": memory.head,
        "together, at most at once": memory.peak,
        "held before the first step": found.start_bytes,
        "expected peak": found.peak_bytes,
        "checkpoints on the disk": found.checkpoint_bytes,
    }
    console.table("Memory", ["part", "MB"], [[name, _mb(n)] for name, n in parts.items()])
    rows = [["steps", f"{found.steps:,}"], ["tokens", f"{found.tokens:,}"]]
    if found.duration is not None and found.seconds is not None:
        spent, held = found.duration, found.held_out_seconds
        held += found.saving_seconds
        rows += [
            ["seconds a step", f"{spent.a_step:.3g}"],
            ["tokens a second", f"{spent.tokens_per_s:,.0f}"],
            ["seconds of held-out losses", f"{found.held_out_seconds:.3g}"],
            ["seconds of checkpoints and best models", f"{found.saving_seconds:.3g}"],
            ["seconds in all", f"{found.seconds:.3g}"],
            ["  by the fastest and slowest probe", f"{spent.low + held:.3g} to "
             f"{spent.high + held:.3g}"],
        ]  # fmt: skip
    console.table("Time", ["", ""], rows)
    console.say(APART)


def _measured(folder: str) -> Mapping[str, Any]:
    measured = RunDir(folder).read_manifest().get("measured")
    if not isinstance(measured, dict) or not {"peak_bytes", "seconds"} <= set(measured):
        raise UsageError(
            f"The manifest of {folder!r} says nothing of what the run took.",
            expected="a run that this version of tunesmith has finished",
        )
    return measured


def _compare(found: Estimate, measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Show predicted against measured and return both, with the error as a share."""
    pairs: dict[str, tuple[float, float]] = {
        "peak_bytes": (found.peak_bytes, measured["peak_bytes"]),
    }
    if found.seconds is not None:
        pairs["seconds"] = (found.seconds, measured["seconds"])
    compared = {
        name: {"predicted": one, "measured": other, "error": one / other - 1}
        for name, (one, other) in pairs.items()
        if other
    }
    rows = []
    for name, numbers in compared.items():
        size = 1e6 if name == "peak_bytes" else 1.0
        shown = [f"{numbers[key] / size:,.4g}" for key in ("predicted", "measured")]
        unit = "peak memory, MB" if name == "peak_bytes" else "seconds"
        rows.append([unit, *shown, f"{numbers['error']:+.1%}"])
    console.table("Against the run", ["", "predicted", "measured", "error"], rows)
    if measured.get("steps") != found.steps:
        console.warn(f"the run took {measured.get('steps')} steps, not the {found.steps} planned")
    return compared


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"
