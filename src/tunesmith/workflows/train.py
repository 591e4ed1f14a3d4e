"""``tunesmith train``: rows, model, loop, checkpoints, and the proof at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import CheckpointError, DivergedError
from tunesmith.rundir import RunDir
from tunesmith.workflows import compiling, console, minutes, safety, zero
from tunesmith.workflows.conditions import conditions
from tunesmith.workflows.finish import Finished, baseline, finish
from tunesmith.workflows.footprint import settle_checkpointing
from tunesmith.workflows.forgetting import check_forgetting
from tunesmith.workflows.live_report import LiveReport
from tunesmith.workflows.measured_plan import MeasuredPlan
from tunesmith.workflows.metrics import Metrics
from tunesmith.workflows.new_tokens import check_resumed, store
from tunesmith.workflows.progress import (
    Progress,
    best_steps,
    looks_after,
    saves_after,
    wants_best,
)
from tunesmith.workflows.rehearsal import begin_smaller, rehearse_run
from tunesmith.workflows.resuming import check_resume, checkpoint_to_resume, give_up_later
from tunesmith.workflows.row_watch import judge_rows, write_ledger
from tunesmith.workflows.samples import Samples, check_samples
from tunesmith.workflows.setup import (
    Opened,
    loop_settings,
    make_accelerator,
    make_trainable,
    open_training,
    plan_steps,
    run_name,
)
from tunesmith.workflows.several import Team, together
from tunesmith.workflows.signals import StopFlag, stop_on_signals
from tunesmith.workflows.trackers import chosen_trackers
from tunesmith.workflows.trunk import kept_trunk

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tunesmith.train.loop import Settings, State
    from tunesmith.train.trunk_cache import TrunkCache


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
    chosen_trackers(resolved.options.report_to)
    with together(resolved) as team:
        with team.first():
            compiling.check_compiler(resolved.options)
            opened = open_training(resolved)
        check_samples(opened.config, resolved.sources, opened.held)
        check_forgetting(opened.config)
        config = opened.config

        def create() -> RunDir:
            return RunDir.create(
                config.output_dir,
                config.run_name or run_name(config),
                resume=config.resume is not None,
                overwrite=config.overwrite,
            )

        with team.run_folder(create) as run:
            console.say(f"Run: {run.path}")
            if team.main:
                if config.resume is None:
                    run.write_config(config.model_dump(mode="json"))
                store(run, opened.loaded.new_tokens)
            training = _Run(opened, run, team, resolved.sources, began)
            with training.metrics, training.live:
                return training.go()


class _Run:
    """One training run: holds the parts together and owns the rhythm."""

    def __init__(
        self, opened: Opened, run: RunDir, team: Team, sources: Mapping[str, str], began: float
    ) -> None:
        from tunesmith.train.machine import fingerprint

        self.opened, self.accelerator = opened, make_accelerator(opened.config, opened.loaded)
        measured = MeasuredPlan(run.plan, replay=opened.config.resume is not None)
        opened.config = settle_checkpointing(opened, self.accelerator, measured)
        self.limit, self.sources = minutes.TimeLimit(measured, began), sources
        self.config, self.data, self.loaded = opened.config, opened.data, opened.loaded
        self.renderer, self.rows, self.held = opened.renderer, opened.rows, opened.held
        self.vocabulary, self.run, self.team = opened.vocabulary, run, team
        self.plan = plan_steps(self.config, self.rows, self.accelerator.num_processes)
        self.progress = Progress()
        self.metrics = Metrics(self.config, run, self.rows.rows, self.renderer, self.accelerator)
        self.samples = Samples(self.config, self.data, self.held, self.loaded, self.renderer, run)
        self.live = LiveReport(run, self.plan.total_steps, self.metrics, self.samples)
        self.notes: list[str] = []
        self.from_name = ""
        """The checkpoint that a resumed run goes on from."""
        self.machine = fingerprint(self.accelerator, self.loaded.dtype)
        self.compiled = compiling.compiled_by(self.config, self.accelerator.device)
        self.trunk_kept: bool | None = None
        """Whether the trunk's output is kept; None until that is decided, once in a run."""

    def go(self) -> TrainResult:
        """Train to the end, or to a signal, and leave a finished run."""
        from tunesmith.models.memory import peak_bytes

        timed = self.config.minutes is not None
        settings = loop_settings(self.config, self.plan, self.rows, self.loaded, quiet=timed)
        wanted = self.config.resume
        if wanted is not None:  # known to be there before anything takes time
            self.from_name = self.team.told(lambda: checkpoint_to_resume(self.run, wanted).name)
        smaller = rehearse_run(self.opened, self.plan, settings, self.accelerator)
        asked = minutes.clock()
        parts = (self.loaded, self.renderer, self.data, self.held, self.run, self.config)
        before = self.team.only_main(
            lambda: baseline(*parts, self.vocabulary), "measuring the base model"
        )
        if timed:
            settings = self._fit_into_minutes(minutes.clock() - asked)
        state = self._state(settings)
        begin_smaller(state, smaller, settings)
        first, began = state.step, time.monotonic()
        with self._stoppable(state):
            with (
                stop_on_signals(launched=self.team.several) as stop,
                compiling.failures_explained(self.config, stop, lambda: state.step),
            ):
                self._train(state, settings, stop)
            held_loss = self._last_held_out_loss(state.step) if self.held.rows else None
        self._checkpoint(state)
        seconds, peak = time.monotonic() - began, peak_bytes(self.accelerator.device)
        notes = self.notes + self._early_stop(state)
        if self.vocabulary is not None:
            notes.append(self.vocabulary.sentence)
        unit = "tokens" if settings.packing else "rows"
        notes += safety.closing_notes(self.metrics.records, state.decisions, unit)
        if state.step != self.progress.best_step and self._take_best():
            held_loss = self.progress.best
            notes.append(f"final_model is the best one, of step {self.progress.best_step}.")
        self.team.whole(self.model, self.loaded)
        done = Finished(
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
            self.vocabulary,
        )

        def end() -> None:
            judge_rows(self.run, self.metrics.ledger, self.rows.rows)
            with safety.model_kept(self.run):
                finish(done, before or [])

        self.team.only_main(end, "measuring the tuned model")
        self.limit.say_used(self.config.minutes)
        return TrainResult(
            self.run.path,
            self.run.final_model,
            state.step,
            self.metrics.losses[-1] if self.metrics.losses else float("nan"),
            held_loss,
        )

    def _stoppable(self, state: State) -> AbstractContextManager[None]:
        """Return what sees to it that a run that is stopped leaves all that it can."""

        def save() -> None:
            self._checkpoint(state)

        if self.team.way == "zero":
            return zero.nothing_kept(state, self.team, save)
        return safety.last_step_kept(save, state, self.run, self.team)

    def _fit_into_minutes(self, baseline_seconds: float) -> Settings:
        self.config = self.opened.config = minutes.fit_into_minutes(
            self.opened, self.accelerator, self.sources, self.run.path, baseline_seconds, self.limit
        )
        self.plan = plan_steps(self.config, self.rows, 1, quiet=True)
        self.live.total, self.metrics.config = self.plan.total_steps, self.config
        return loop_settings(self.config, self.plan, self.rows, self.loaded)

    def _take_best(self) -> bool:
        """Go back to the best weights if the run is to end with them; say whether it did."""
        from tunesmith.train import checkpoint

        if not wants_best(self.config) or self.progress.best is None:
            return False
        path = self.run.checkpoints / checkpoint.name(self.progress.best_step)
        try:
            checkpoint.restore_weights(path, self.model, self.team.wire)
        except CheckpointError as failure:
            console.warn(f"{failure} final_model is the last one; best_model holds the best.")
            return False
        return True

    def _early_stop(self, state: State) -> list[str]:
        """Check a run that stopped early, and return what there is to say about it."""
        if state.step >= self.plan.total_steps:
            return []
        state.ledger.check(self.plan, state.step)
        if self.limit.stopped_at is not None:
            return [self.limit.note(self.plan.total_steps)]
        return [self.progress.stop_note(state.step, self.plan.total_steps)]

    def _state(self, settings: Settings) -> State:
        from tunesmith.train.loop import State, make_optimizer

        config = self.config
        self.conditions = conditions(config, self.rows.rows, self.loaded.model)
        model = make_trainable(config, self.loaded, self.accelerator, self.team.way)
        compiling.compile_layers(config, model)
        optimizer: Any = make_optimizer(model, settings)
        if self.team.way == "zero":
            optimizer = zero.share_out(optimizer, config.max_grad_norm, self.accelerator)
        state = State(model, optimizer)
        state.scaler = getattr(self.accelerator, "scaler", None)
        self.model = model
        decided = None
        if config.resume is not None:
            path = self.run.checkpoints / self.from_name
            changes = check_resume(path, self.plan, self.team, self.conditions)
            extra = self._restore(path, state)
            decided = extra.get("decisions")
            console.say(f"Resumed from {path.name}.")
            changes += safety.warn_of_machine(extra.get("machine"), self.machine)
            changes += compiling.warn_of_other(extra.get("compiled", "off"), self.compiled)
            self.notes = list(dict.fromkeys([*extra.get("notes", []), *changes]))
            if self.team.main:
                give_up_later(path)
        main = self.accelerator.is_main_process
        if main:
            self.run.write_config(config.model_dump(mode="json"))
        state.decisions = safety.open_decisions(self.run, decided, main=main)
        if config.nonfinite == "rewind" and config.resume is None:
            self._checkpoint(state)  # there must be one to go back to
        return state

    def _restore(self, path: Path, state: State) -> dict[str, Any]:
        from tunesmith.train import checkpoint

        extra = checkpoint.restore(path, state, self.team.wire)
        check_resumed(extra.get("new_tokens"), self.loaded.new_tokens)
        self.metrics.restore(extra, checkpoint.row_ledger(path))
        self.samples.restore(extra)
        self.progress = Progress.from_json(extra)
        self.trunk_kept = extra.get("trunk_kept", False)
        return extra

    def _train(self, state: State, settings: Settings, stop: StopFlag) -> None:
        """Train to the end, going back to a checkpoint where that is the policy."""
        while True:
            try:
                return self._loop(state, settings, stop)
            except DivergedError as failure:
                path = safety.go_back(failure, self.config, state.decisions, self.run)
            self._restore(path, state)

    def _loop(self, state: State, settings: Settings, stop: StopFlag) -> None:
        from tunesmith.train.loop import fit
        from tunesmith.train.policy import check_finite

        total = self.plan.total_steps
        epoch = self.plan.steps_an_epoch
        patience = self.config.early_stopping_patience
        over = self.progress.is_over(patience) or self.limit.is_over(state.step)
        if over or state.step == total:
            return  # a run that is resumed after its last step, or after it has stopped early
        self.metrics.begin(state.step)
        if not state.step:
            self.team.only_main(lambda: self.samples.take(0), "sampling")
        # The store holds whole rows, so none of them is computed together with another.
        by_row = replace(settings, shared_prefix="off")
        with (
            self._trunk(state, by_row) as trunk,
            console.bar("training", total, state.step) as bar,
        ):
            self.trunk_kept = trunk is not None
            steps = fit(
                state,
                self.rows.rows,
                self.plan,
                settings if trunk is None else by_row,
                self.accelerator,
                should_stop=stop,
                policy=safety.make_policy(self.config),
                trunk=trunk,
            )
            for done in steps:
                if done.skipped:
                    self.metrics.skip(done, safety.skip_record(done, self.rows.rows))
                    bar.advance()
                else:
                    self.metrics.step(done)
                    bar.advance(note=self.metrics.progress(done))
                last = done.step == total
                due = not last and looks_after(self.config, done.step, epoch)
                if due and self.held.rows:
                    check_finite(state)
                    self._held_out_loss(done.step)
                best = wants_best(self.config) and self.progress.best_step == done.step
                best = best or done.step in best_steps(self.metrics.records, self.config.keep_best)
                if not last and (best or saves_after(self.config, done.step, epoch)):
                    self._checkpoint(state)
                self.live.step()
                if self.progress.is_over(patience):
                    break
                if not last and self.limit.is_over(done.step, done.seconds):
                    break

    def _trunk(self, state: State, settings: Settings) -> AbstractContextManager[TrunkCache | None]:
        parts = (self.config, self.run.trunk, state.model, self.rows.rows, self.plan, settings)
        return kept_trunk(*parts, self.accelerator, self.trunk_kept)

    def _held_out_loss(self, step: int) -> float:
        """Take the held-out loss; keep the model if it is the best so far."""
        from tunesmith.train.losses import HELD_OUT_CAPACITY
        from tunesmith.train.processes import row_scores

        size, attention = HELD_OUT_CAPACITY, self.loaded.attention
        found = row_scores(self.model, self.held.rows, self.accelerator, size, attention, step)
        loss: float = sum(one.loss for one in found) / sum(one.weight for one in found)
        right = sum(one.right for one in found) / sum(one.tokens for one in found)
        self.metrics.held_out(step, loss, right)
        self.team.whole(self.model, self.loaded)
        self.team.only_main(lambda: self._show(step), "sampling")
        if self.progress.note(step, loss):
            from tunesmith.workflows.finish import save_model

            self.team.whole(self.model, self.loaded)
            self.team.only_main(
                lambda: save_model(self.loaded, self.renderer, self.run.best_model), "saving"
            )
        return loss

    def _last_held_out_loss(self, step: int) -> float:
        """Return the held-out loss after the last step, taken already or taken now."""
        taken = self.metrics.held_out_at(step)
        return self._held_out_loss(step) if taken is None else taken

    def _checkpoint(self, state: State) -> None:
        from tunesmith.train import checkpoint
        from tunesmith.train.policy import check_finite

        team, folder, new = self.team, self.run.checkpoints, self.loaded.new_tokens
        extra = {
            **self.metrics.to_json(),
            **self.samples.to_json(),
            **self.progress.to_json(),
            "decisions": state.decisions.to_json(),
            "machine": self.machine,
            "conditions": self.conditions,
            "notes": self.notes,
            "compiled": self.compiled,
            "trunk_kept": self.trunk_kept,
            "new_tokens": None if new is None else new.to_json(),
            "processes": team.count,
        }
        rows = self.metrics.ledger.tensors()
        if team.way == "zero":
            team.check_copies(state.model)
            check_finite(state)
        elif team.way == "shards":
            checkpoint.save(folder, state, extra, rows, team.wire)
        else:
            team.check_copies(state.model)
            check_finite(state)  # in every process, so that all go back or none does
            team.only_main(lambda: checkpoint.save(folder, state, extra, rows), "saving")
        if team.main:
            best = self.progress.best_step if wants_best(self.config) else None
            besides = best_steps(self.metrics.records, self.config.keep_best)
            checkpoint.prune(folder, self.config.save_total_limit, best, besides)
            write_ledger(self.run, self.metrics.ledger)
            self.metrics.write()
            self.samples.write()
            self.live.begin()

    def _show(self, step: int) -> None:
        """Let the model answer, and bring the page up to date; for the main process."""
        self.samples.take(step)
        self.live.begin()
