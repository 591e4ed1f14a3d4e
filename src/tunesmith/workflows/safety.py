"""What keeps a run from ending wrong without a word: policy, decisions, the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import ARGUMENT, FLAG, Resolved
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import (
    DivergedError,
    Interrupted,
    OutOfMemoryError,
    TunesmithError,
    UsageError,
)
from tunesmith.rundir import RunDir
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.models.load import LoadedModel
    from tunesmith.train.decisions import Decisions
    from tunesmith.train.loop import State, StepResult
    from tunesmith.train.policy import Policy
    from tunesmith.workflows.several import Team


def check_safety(resolved: Resolved[Any]) -> None:
    """Refuse a number of steps to skip where none is ever skipped."""
    typed = resolved.sources.get("max_nonfinite_steps") in (FLAG, ARGUMENT)
    if typed and resolved.options.nonfinite == "stop":
        raise UsageError(
            "--max-nonfinite-steps does nothing with --nonfinite stop, which skips no step.",
            hint="--nonfinite skip or rewind",
        )


def check_precision(config: FineTuningConfig, loaded: LoadedModel) -> None:
    """Refuse fp16 where it would do nothing, or where its gradients could not be scaled."""
    if config.mixed_precision != "fp16":
        return
    if loaded.device.type == "cpu":
        raise UsageError(
            "--mixed-precision fp16 needs a GPU: on a CPU nothing would be computed in it.",
            hint="--mixed-precision bf16, or no",
        )
    dtype = str(loaded.dtype).removeprefix("torch.")
    if dtype != "float32":
        raise UsageError(
            f"--mixed-precision fp16 scales gradients in float32, and the weights are in {dtype}.",
            hint="--dtype float32, or --mixed-precision no",
        )


def make_policy(config: FineTuningConfig) -> Policy:
    """Return what the loop does about numbers that are not finite."""
    from tunesmith.train.policy import Policy

    return Policy(config.nonfinite, config.max_nonfinite_steps)


def open_decisions(run: RunDir, otherwise: Mapping[str, Any] | None, *, main: bool) -> Decisions:
    """Return what this run has decided so far, ready to take down more.

    The file of the run comes first, because it knows what was decided after the checkpoint whose
    decisions are ``otherwise``.
    """
    from tunesmith.train.decisions import Decisions

    found = Decisions.read(run.decisions, otherwise)
    for step, why in found.skips.items():
        console.say(f"Decided before: step {step + 1} makes no update: {why}")
    if main:
        found.path = run.decisions
    found.tell = console.warn
    return found


def go_back(
    failure: DivergedError, config: FineTuningConfig, decisions: Decisions, run: RunDir
) -> Path:
    """Decide on a return to the newest good checkpoint, and return it.

    Raises the failure where the settings do not ask for it, or it was done too often.
    """
    from tunesmith.train import checkpoint

    if config.nonfinite != "rewind":
        raise failure
    limit = config.max_nonfinite_steps
    # Broken weights take two returns: one to find the step, one to pass over it.
    if len(decisions.skips) >= limit or decisions.rewinds >= 2 * limit:
        failure.found += (
            f" {len(decisions.skips)} steps were skipped and {decisions.rewinds} returns made "
            f"already; --max-nonfinite-steps is {limit}."
        )
        raise failure
    path, complaints = checkpoint.latest(run.checkpoints)
    for complaint in complaints:
        console.warn(complaint)
    if path is None:
        raise failure
    decisions.go_back(failure.weights_until)
    if failure.step is not None:
        decisions.skip(failure.step, failure.why)
    else:
        console.warn(failure.found)
    console.warn(f"going back to {path.name}")
    return path


@contextmanager
def last_step_kept(
    save: Callable[[], None], state: State, run: RunDir, team: Team
) -> Iterator[None]:
    """Let a run that is stopped, or ends for want of memory, leave its last whole step.

    Where memory ran out, of several processes the others are in the midst of a step, so there the
    newest checkpoint stands.
    """
    from tunesmith.models.memory import is_out_of_memory
    from tunesmith.train import checkpoint

    try:
        yield
    except Interrupted:
        save()
        console.say(f"Stopped after step {state.step}; a checkpoint was saved.")
        # Whoever leaves first ends the others, which may still be writing.
        team.meet()
        raise
    except OutOfMemoryError as failure:
        if failure.complete and state.step and not team.several:
            try:
                save()
            except (TunesmithError, OSError, MemoryError, RuntimeError) as second:
                if isinstance(second, RuntimeError) and not is_out_of_memory(second):
                    raise
                console.warn(f"step {state.step} could not be saved: {second}")
        path, _ = checkpoint.latest(run.checkpoints)
        if path is None:
            failure.found += " No checkpoint is left: --overwrite begins again."
        else:
            failure.found += f" {path.name} is left to go on from."
        raise


@contextmanager
def model_kept(run: RunDir) -> Iterator[None]:
    """Say where the trained model lies if memory runs out when it is measured at the end."""
    try:
        yield
    except OutOfMemoryError as failure:
        failure.found += f" All steps are done, and the model lies in {run.final_model}."
        failure.hint = (
            "the same command with --resume where more memory is free: only what is missing is "
            "measured"
        )
        raise


def skip_record(done: StepResult, rows: Any) -> dict[str, Any]:
    """Return the line of metrics of a step that made no update, with its rows named."""
    return {
        "kind": "skip",
        "step": done.step,
        "epoch": round(done.epoch, 4),
        "why": done.skipped,
        "rows": [str(rows[at].origin) for at in done.rows],
    }


def closing_notes(records: list[dict[str, Any]], decisions: Decisions, unit: str) -> list[str]:
    """Say at the end what the run has passed over or done in another way."""
    skipped = [record for record in records if record["kind"] == "skip"]
    notes = decisions.sentences(unit)
    if skipped:
        steps = ", ".join(str(record["step"]) for record in skipped[:8])
        rows = sum(len(record["rows"]) for record in skipped)
        notes.append(
            f"{len(skipped)} steps with {rows} rows made no update (steps {steps}"
            f"{', …' if len(skipped) > 8 else ''}); metrics.jsonl names the rows."
        )
    return notes


def warn_of_machine(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Say loudly that a run goes on on another machine; return it as a note for the end."""
    from tunesmith.train.machine import differences

    found = differences(then, now)
    if not found:
        return []
    note = (
        f"The run was resumed on another machine than its checkpoint's: {'; '.join(found)}. "
        "It is not bit-identical to a run that was never stopped."
    )
    console.warn(note)
    return [note]
