"""``--minutes``: a run planned into a given time by measuring, and ended in time if need be."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.presets import LORA_RATE
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import ModelError, UsageError
from tunesmith.rundir import PROBE
from tunesmith.workflows import console
from tunesmith.workflows.measured_plan import MeasuredPlan
from tunesmith.workflows.progress import check_looks, wants_looks
from tunesmith.workflows.setup import Opened, loop_settings, plan_steps
from tunesmith.workflows.trial import as_trained

if TYPE_CHECKING:
    from tunesmith.train.batches import Plan
    from tunesmith.train.budget import Costs, Method, Rhythm

clock: Callable[[], float] = time.monotonic
"""Seconds; a test may put another clock here."""
SPARE = 0.08
"""Share of the time that no plan uses: machines slow down, tuned models answer at length."""
LAST_S = 2.0
"""Seconds for comparison, report and page."""
PROBED = 0.05
"""Share of the time that probes may take; beyond it fewer steps are probed."""
Measured = tuple["Method", "Costs"]


class TimeLimit:
    """The end of a run's time; without ``--minutes``, and in a resumed run, there is none."""

    def __init__(self, measured: MeasuredPlan, began: float) -> None:
        self.measured, self._began = measured, began
        self._until: float | None = None
        self._end = 0.0

    def spent(self) -> float:
        """Return the seconds since the start."""
        return clock() - self._began

    def set(self, minutes: float, end: float) -> None:
        """Let the time run out ``end`` seconds before the minutes are over."""
        self._until, self._end = self._began + 60 * minutes, end

    @property
    def stopped_at(self) -> int | None:
        """Return the step after which the time was over, if it was."""
        step = self.measured.get("stopped_at")
        return None if step is None else int(step)

    def is_over(self, step: int, a_step: float = 0.0) -> bool:
        """Say whether to stop after this step, and store that; ``a_step`` is what one more takes.

        A stored stop holds in a resumed run, which ends where the stopped one did.
        """
        if self.stopped_at is not None:
            return step >= self.stopped_at
        if self._until is None or not step or clock() + a_step + self._end <= self._until:
            return False
        self.measured.store("stopped_at", step)
        return True

    def say_used(self, minutes: float | None) -> None:
        """Say at the end how much of the time was used, if it was limited."""
        if minutes is not None:
            console.say(f"The run took {self.spent() / 60:.1f} of {minutes:g} minutes.")

    def note(self, total: int) -> str:
        """Say that the run was stopped."""
        return (
            f"Stopped by --minutes after step {self.stopped_at} of {total}: the machine was slower "
            "than when the run was planned. The learning rate had not come down to its end."
        )


def fit_into_minutes(
    opened: Opened,
    accelerator: Any,
    sources: Mapping[str, str],
    folder: Path,
    baseline: float,
    limit: TimeLimit,
) -> FineTuningConfig:
    """Return the settings with the steps, and perhaps the method, that end in time, and say why.

    ``baseline`` are the seconds of the untrained model's evaluation. What a trunk cache saves from
    the second epoch on is not counted: such a run ends sooner.
    A stored plan is taken as it is. Raises ``UsageError`` if not even one step fits.
    """
    config = opened.config
    if config.minutes is None:
        return config
    spent = (limit.spent(), baseline)
    replayed = limit.measured.get("minutes")
    chosen = limit.measured.take(
        "minutes", lambda: _decide(opened, accelerator, sources, folder, spent)
    )
    console.say(chosen["said"] if replayed is None else f"As planned at first: {chosen['said']}")
    if replayed is None:
        limit.set(config.minutes, chosen["end"])
    config = config.model_copy(update={**chosen["changes"], "max_steps": chosen["steps"]})
    if wants_looks(config):
        plan = plan_steps(config, opened.rows, 1, quiet=True)
        check_looks(config, {}, plan.total_steps, plan.steps_an_epoch)  # the steps are not typed
    return config


def _decide(
    opened: Opened,
    accelerator: Any,
    sources: Mapping[str, str],
    folder: Path,
    spent: tuple[float, float],
) -> dict[str, Any]:
    from tunesmith.models.adapters import blocks
    from tunesmith.train import budget

    config, began = opened.config, clock()
    minutes = config.minutes or 0.0
    plan = plan_steps(config, opened.rows, 1, quiet=True)
    wanted, rhythm = plan.total_steps, _rhythm(config, plan)
    method, costs = measure(opened, accelerator, "the method asked for", {}, folder, spent[1])
    methods = [method]

    def left() -> float:
        return (1 - SPARE) * 60 * minutes - spent[0] - (clock() - began)

    fits = budget.most_steps(left(), method.a_step, costs, rhythm)
    if not budget.is_enough(fits, wanted, plan.steps_an_epoch):
        fixed = opened.loaded.ref.adapter is not None or opened.loaded.new_tokens is not None
        layers = len(blocks(opened.loaded.model))
        for name, changes in [] if fixed else _cheaper(config, sources, layers):
            try:
                found, _ = measure(opened, accelerator, name, changes, folder, spent[1])
            except ModelError as failure:
                console.say(f"{name} is not tried: {failure.found}")
                continue
            methods.append(found)
            fits = budget.most_steps(left(), found.a_step, costs, rhythm)
            if budget.is_enough(fits, wanted, plan.steps_an_epoch):
                break
    taken, steps = budget.choose(methods, left(), costs, rhythm, wanted)
    if steps < 1:
        least = spent[0] + budget.seconds_of(1, method.a_step, costs, rhythm) + clock() - began
        raise UsageError(
            f"--minutes {minutes:g} is too short for this run: {spent[0]:.0f} s are over, a step "
            f"takes {method.a_step:.1f} s and what follows the last one {costs.end:.0f} s.",
            hint=f"--minutes {least / 60 / (1 - SPARE):.1g} or more, or fewer --eval-questions",
        )
    takes = spent[0] + clock() - began + budget.seconds_of(steps, taken.a_step, costs, rhythm)
    return {
        "minutes": minutes,
        "steps": steps,
        "changes": dict(taken.changes),
        "end": costs.end,
        "planned_seconds": takes,
        "measured": {one.name: one.a_step for one in methods},
        "costs": {"held_out": costs.held_out, "checkpoint": costs.checkpoint},
        "said": _sentence(methods, taken, steps, plan, minutes, takes, costs),
    }


def _sentence(
    methods: list[Method],
    taken: Method,
    steps: int,
    plan: Plan,
    minutes: float,
    takes: float,
    costs: Costs,
) -> str:
    epochs = steps / plan.steps_an_epoch
    text = (
        f"--minutes {minutes:g}: {steps} steps ({epochs:.2g} epochs) by {taken.name}, at "
        f"{taken.a_step:.3g} s each; {costs.end:.0f} s are kept for the end. Planned: "
        f"{takes / 60:.1f} minutes in all."
    )
    if steps == plan.total_steps:
        text += f" That is all of the {epochs:.2g} epochs of these settings; none are added."
    elif taken is not methods[0]:
        asked = methods[0]
        text += f" The method asked for takes {asked.a_step:.3g} s a step, too slow for one epoch."
    elif len(methods) > 1:
        tried = ", ".join(f"{one.name} ({one.a_step:.3g} s)" for one in methods[1:])
        text += f" Not a whole epoch; {tried} would not bring clearly more steps."
    return text


def measure(
    opened: Opened,
    accelerator: Any,
    name: str,
    changes: dict[str, Any],
    folder: Path,
    baseline: float,
) -> Measured:
    """Time some steps, a held-out loss, a checkpoint and a saved model, and leave no trace.

    ``baseline`` are the seconds of the untrained model's evaluation, which the end repeats.
    """
    from tunesmith.train import checkpoint, estimate
    from tunesmith.train.budget import Costs, Method
    from tunesmith.train.loop import State, make_optimizer
    from tunesmith.train.losses import lengths
    from tunesmith.workflows.finish import save_model

    # What is cut of the warm-up is said of the plan that is taken.
    config = opened.config.model_copy(update=changes)
    plan = plan_steps(config, opened.rows, 1, quiet=True)
    settings = loop_settings(config, plan, opened.rows, opened.loaded, quiet=True)
    rows, written = opened.rows.rows, folder / PROBE
    saved: list[float] = []

    def save(state: State) -> None:
        saved.append(_seconds(lambda: checkpoint.save(written, state, {})))

    with as_trained(config, opened.loaded) as model:
        state = State(model, make_optimizer(model, settings))
        state.scaler = getattr(accelerator, "scaler", None)  # so that its scale is put back, too
        tokens = estimate.step_tokens(lengths(rows), plan)
        [first] = estimate.probe(state, rows, plan, settings, accelerator, [_longest(tokens)])
        quick = 5 * first.seconds < PROBED * 60 * (config.minutes or 0.0)
        steps = estimate.chosen_steps(tokens, 3 if quick else 1)[1:]
        probes = estimate.probe(state, rows, plan, settings, accelerator, steps, after=save)
        a_step = estimate.duration([first, *probes], tokens, plan.total_steps).a_step
        model_s = _seconds(lambda: save_model(opened.loaded, opened.renderer, written / "model"))
        held = estimate.held_out_seconds(model, opened.held.rows, accelerator, settings.attention)
    shutil.rmtree(written, ignore_errors=True)
    end = baseline + held + saved[0] + model_s + LAST_S
    return Method(name, changes, a_step), Costs(held + model_s, saved[0], end)


def _cheaper(
    config: FineTuningConfig, sources: Mapping[str, str], layers: int
) -> list[tuple[str, dict[str, Any]]]:
    """Return cheaper methods, the least different first; what a person has set is not changed.

    But of ``layers`` no more are computed again than the backward pass reaches above frozen ones.
    """
    from tunesmith.models.adapters import frozen_blocks

    own = ("lora", "freeze_ratio", "learning_rate")
    if any(not sources.get(name, "task").startswith("task") for name in own):
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    if not config.lora:
        rate = (config.learning_rate or 2e-5) * LORA_RATE
        found.append(("LoRA", {"lora": True, "learning_rate": rate}))
    again = config.gradient_checkpointing
    for ratio in (0.5, 0.75):
        frozen = frozen_blocks(layers, ratio)
        if not frozen:
            continue
        name = f"{ratio:.0%} of the bottom layers frozen"
        changes: dict[str, Any] = {"freeze_ratio": ratio}
        if isinstance(again, int) and again > layers - frozen:
            name += f" and the {layers - frozen} others computed again"
            changes["gradient_checkpointing"] = layers - frozen
        found.append((name, changes))
    return found


def _rhythm(config: FineTuningConfig, plan: Plan) -> Rhythm:
    from tunesmith.train.budget import Rhythm

    epoch = plan.steps_an_epoch
    looks = {"no": None, "epoch": epoch, "steps": config.eval_steps}[config.eval_strategy]
    return Rhythm(looks, epoch if config.save_steps == "epoch" else int(config.save_steps))


def _longest(tokens: list[int]) -> int:
    return max(range(len(tokens)), key=tokens.__getitem__)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
