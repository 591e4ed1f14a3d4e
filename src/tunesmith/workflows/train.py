"""``tunesmith train``: rows, model, loop, checkpoints, and the proof at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import CheckpointError, Interrupted
from tunesmith.rundir import RunDir
from tunesmith.workflows import console, minutes
from tunesmith.workflows.decisions import Decisions
from tunesmith.workflows.finish import Finished, baseline, finish
from tunesmith.workflows.footprint import settle_checkpointing
from tunesmith.workflows.progress import Progress, wants_best
from tunesmith.workflows.rehearsal import rehearse_run
from tunesmith.workflows.resuming import checkpoint_to_resume
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

if TYPE_CHECKING:
    from tunesmith.train.loop import Settings, State, StepResult


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves."""

    run: Path
    final_model: Path
    steps: int
    loss: float
    held_out_loss: float | None
    """Nats a trained token, of the final model."""


def command(resolved: Resolved[FineTuningConfig]) -> int:
    """Handle ``tunesmith train``."""
    run_training(resolved)
    return 0


def train(config: FineTuningConfig | None = None, **settings: Any) -> TrainResult:
    """Fine-tune a model; settings are those of ``tunesmith train``."""
    if config is not None:
        settings = {**config.model_dump(exclude_unset=True), **settings}
    return run_training(resolve(FineTuningConfig, settings, origin="argument"))


def run_training(resolved: Resolved[FineTuningConfig]) -> TrainResult:
    """Carry out a run whose settings are resolved, each with its source."""
    began = minutes.clock()
    opened = open_training(resolved)
    config = opened.config
    with RunDir.create(
        config.output_dir,
        config.run_name or run_name(config),
        resume=config.resume is not None,
        overwrite=config.overwrite,
    ) as run:
        console.say(f"Run: {run.path}")
        run.write_config(config.model_dump(mode="json"))
        return _Run(opened, run, resolved.sources, began).go()


class _Run:
    """One training run: holds the parts together and owns the rhythm."""

    def __init__(
        self, opened: Opened, run: RunDir, sources: Mapping[str, str], began: float
    ) -> None:
        self.opened, self.accelerator = opened, make_accelerator(opened.config, opened.loaded)
        self.decisions = Decisions(run.decisions, replay=opened.config.resume is not None)
        opened.config = settle_checkpointing(opened, self.accelerator, self.decisions)
        self.config, self.data, self.loaded = opened.config, opened.data, opened.loaded
        self.renderer, self.rows, self.held = opened.renderer, opened.rows, opened.held
        self.run = run
        self.sources, self.began = sources, began
        self.limit = minutes.TimeLimit(self.decisions, began)
        self.plan = plan_steps(self.config, self.rows, self.accelerator.num_processes)
        self.progress = Progress()
        self.losses: list[float] = []
        self.records: list[dict[str, Any]] = []

    def go(self) -> TrainResult:
        """Train to the end, or to a signal, and leave a finished run."""
        from tunesmith.models.memory import peak_bytes

        settings = loop_settings(self.config, self.plan, self.rows, self.loaded)
        rehearse_run(self.opened, self.plan, settings, self.accelerator)
        asked = minutes.clock()
        before = baseline(self.loaded, self.renderer, self.data, self.held, self.run, self.config)
        if self.config.minutes is not None:
            settings = self._fit_into_minutes(minutes.clock() - asked)
        state = self._state(settings)
        first, began = state.step, time.monotonic()
        try:
            self._loop(state, settings)
        except Interrupted:
            self._checkpoint(state)
            console.say(f"Stopped after step {state.step}; a checkpoint was saved.")
            raise
        held_loss = self._last_held_out_loss(state.step) if self.held.rows else None
        self._checkpoint(state)
        seconds, peak = time.monotonic() - began, peak_bytes(self.accelerator.device)
        notes = self._early_stop(state)
        if self.accelerator.is_main_process:
            self._write_metrics()
            if state.step != self.progress.best_step and self._take_best():
                held_loss = self.progress.best
                notes.append(f"final_model is the best one, of step {self.progress.best_step}.")
            finish(
                Finished(
                    self.config,
                    self.data,
                    self.loaded,
                    self.renderer,
                    self.rows,
                    self.held,
                    self.run,
                    state.step,
                    held_loss,
                    self.progress.best,
                    seconds,
                    self.plan.total_steps,
                    notes,
                    peak,
                    state.step - first,
                ),
                before,
            )
        if self.config.minutes is not None:
            took = (minutes.clock() - self.began) / 60
            console.say(f"The run took {took:.1f} of {self.config.minutes:g} minutes.")
        return TrainResult(
            self.run.path, self.run.final_model, state.step, self.losses[-1], held_loss
        )

    def _fit_into_minutes(self, baseline_seconds: float) -> Settings:
        spent = (minutes.clock() - self.began, baseline_seconds)
        self.config = self.opened.config = minutes.fit_into_minutes(
            self.opened,
            self.accelerator,
            self.decisions,
            self.sources,
            self.run.path,
            spent,
            self.limit,
        )
        self.plan = plan_steps(self.config, self.rows, self.accelerator.num_processes)
        return loop_settings(self.config, self.plan, self.rows, self.loaded)

    def _take_best(self) -> bool:
        """Go back to the best weights if the run is to end with them; say whether it did."""
        from tunesmith.train import checkpoint

        if not wants_best(self.config) or self.progress.best is None:
            return False
        path = self.run.checkpoints / checkpoint.name(self.progress.best_step)
        try:
            checkpoint.restore_weights(path, self.loaded.model)
        except CheckpointError as failure:
            console.warn(f"{failure} final_model is the last one; best_model holds the best.")
            return False
        return True

    def _early_stop(self, state: State) -> list[str]:
        """Check a run that stopped early, and return what there is to say about it."""
        from tunesmith.train.loop import check_ledger

        if state.step >= self.plan.total_steps:
            return []
        check_ledger(state, self.plan, state.step)
        if self.limit.stopped_at is not None:
            return [self.limit.note(self.plan.total_steps)]
        return [
            f"Stopped early, after step {state.step} of {self.plan.total_steps}: the last "
            f"{self.progress.since} held-out losses were not below {self.progress.best:.4f}, that "
            f"of step {self.progress.best_step}."
        ]

    def _state(self, settings: Settings) -> State:
        from tunesmith.train import checkpoint
        from tunesmith.train.loop import State, make_optimizer

        config = self.config
        model = make_trainable(config, self.loaded, self.accelerator)
        state = State(model, make_optimizer(model, settings))
        if config.resume is not None:
            path = checkpoint_to_resume(self.run, config.resume)
            extra = checkpoint.restore(path, state)
            self.losses, self.records = extra["losses"], extra["records"]
            self.progress = Progress.from_json(extra)
            console.say(f"Resumed from {path.name}.")
        return state

    def _loop(self, state: State, settings: Settings) -> None:
        from tunesmith.train.loop import fit

        writer = self._tensorboard()
        total = self.plan.total_steps
        every = self.plan.steps_an_epoch
        patience = self.config.early_stopping_patience
        if self.progress.is_over(patience) or self.limit.is_over(state.step):
            return  # a run that is resumed after it has stopped early
        with stop_on_signals() as stop, console.bar("training", total) as bar:
            bar.advance(state.step)
            steps = fit(
                state,
                self.rows.rows,
                self.plan,
                settings,
                self.accelerator,
                should_stop=stop,
            )
            for done in steps:
                self.losses.append(done.loss)
                self._log(done, writer)
                bar.advance(
                    note=f"loss {done.loss:.3f}  lr {done.learning_rate:.1e}  "
                    f"{done.tokens / done.seconds:,.0f} tokens/s"
                )
                last = done.step == total
                strategy = self.config.eval_strategy
                period = every if strategy == "epoch" else self.config.eval_steps
                if self.held.rows and strategy != "no" and not last and done.step % period == 0:
                    self._held_out_loss(done.step, writer)
                saves = every if self.config.save_steps == "epoch" else self.config.save_steps
                best = wants_best(self.config) and self.progress.best_step == done.step
                if not last and (best or done.step % int(saves) == 0):
                    self._checkpoint(state)
                if self.progress.is_over(patience):
                    break
                if not last and self.limit.is_over(done.step, done.seconds):
                    break
        if writer is not None:
            writer.close()

    def _log(self, done: StepResult, writer: Any) -> None:
        if done.step % self.config.logging_steps and done.step != 1:
            return
        record = {
            "kind": "train",
            "step": done.step,
            "epoch": round(done.epoch, 4),
            "loss": done.loss,
            "lr": done.learning_rate,
            "grad_norm": done.grad_norm,
            "tokens_per_s": round(done.tokens / done.seconds, 1),
        }
        self._record(record, writer)

    def _record(self, record: dict[str, Any], writer: Any) -> None:
        self.records.append(record)
        if writer is not None:
            for key in ("loss", "lr", "grad_norm", "tokens_per_s"):
                if key in record:
                    writer.add_scalar(f"{record['kind']}/{key}", record[key], record["step"])

    def _held_out_loss(self, step: int, writer: Any = None) -> float:
        """Take the held-out loss; keep the model if it is the best so far."""
        from tunesmith.train.losses import HELD_OUT_CAPACITY, row_losses

        device = self.accelerator.device
        sums = row_losses(self.loaded.model, self.held.rows, device, HELD_OUT_CAPACITY)
        loss: float = sum(s for s, _ in sums) / sum(w for _, w in sums)
        self._record({"kind": "eval", "step": step, "loss": loss}, writer)
        console.say(f"  step {step}: held-out loss {loss:.4f}")
        if self.progress.note(step, loss) and self.accelerator.is_main_process:
            from tunesmith.workflows.finish import save_model

            save_model(self.loaded, self.renderer, self.run.best_model)
        return loss

    def _last_held_out_loss(self, step: int) -> float:
        """Return the held-out loss after the last step, taken already or taken now."""
        taken = [r["loss"] for r in self.records if (r["kind"], r["step"]) == ("eval", step)]
        return float(taken[-1]) if taken else self._held_out_loss(step)

    def _checkpoint(self, state: State) -> None:
        from tunesmith.train import checkpoint

        if not self.accelerator.is_main_process:
            return
        model = state.model
        state.model = self.loaded.model
        extra = {"losses": self.losses, "records": self.records, **self.progress.to_json()}
        checkpoint.save(self.run.checkpoints, state, extra)
        best = self.progress.best_step if wants_best(self.config) else None
        checkpoint.prune(self.run.checkpoints, self.config.save_total_limit, best)
        state.model = model
        self._write_metrics()

    def _write_metrics(self) -> None:
        from tunesmith.storage import write_text

        lines = (json.dumps(record) + "\n" for record in self.records)
        write_text(self.run.metrics, "".join(lines))

    def _tensorboard(self) -> Any:
        if self.config.report_to == "none" or not self.accelerator.is_main_process:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run.tensorboard))
