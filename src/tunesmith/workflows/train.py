"""``tunesmith train``: rows, model, loop, checkpoints, and the proof at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.cache import RowCache, default_folder
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.errors import CheckpointError, Interrupted, UsageError
from tunesmith.rundir import RunDir
from tunesmith.workflows import console
from tunesmith.workflows.finish import Finished, baseline, finish
from tunesmith.workflows.method import check_method, make_trainable, settle_adapter
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.progress import Progress, check_held_out, wants_best
from tunesmith.workflows.resuming import checkpoint_to_resume
from tunesmith.workflows.rows import Data, gather, split_shares
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
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
    _train(resolved)
    return 0


def train(config: FineTuningConfig | None = None, **settings: Any) -> TrainResult:
    """Fine-tune a model; settings are those of ``tunesmith train``."""
    if config is not None:
        settings = {**config.model_dump(exclude_unset=True), **settings}
    return _train(resolve(FineTuningConfig, settings, origin="argument"))


def _train(resolved: Resolved[FineTuningConfig]) -> TrainResult:
    from tunesmith.tasks.registry import get_task

    config = resolved.options
    console.set_level(config.log_level)
    check_method(resolved)
    changed = [[name, value, source] for name, value, source in resolved.describe()]
    console.table("Settings that differ from the defaults", ["setting", "value", "from"], changed)
    data = gather(config, get_task(config.task))
    loaded, renderer = open_model(config, trainable=True)
    config = settle_adapter(config, resolved.sources, loaded)
    if config.max_length > loaded.max_positions:
        chosen = resolved.sources.get("max_length", "default")
        if chosen == "default" or chosen.startswith("task"):
            config = config.model_copy(update={"max_length": loaded.max_positions})
            console.say(f"Rows have at most {config.max_length} tokens, this model's positions.")
    if config.max_length > loaded.max_positions:
        raise UsageError(
            f"--max-length {config.max_length} is more than the {loaded.max_positions} positions "
            "of this model.",
            hint=f"--max-length {loaded.max_positions}",
        )
    rows = _prepare(data.train, renderer, config)
    held = _prepare(data.held_out, renderer, config) if data.held_out else Prepared()
    check_held_out(config, held.rows)
    _show_first(rows, renderer)
    with RunDir.create(
        config.output_dir,
        config.run_name or _run_name(config),
        resume=config.resume is not None,
        overwrite=config.overwrite,
    ) as run:
        console.say(f"Run: {run.path}")
        run.write_config(config.model_dump(mode="json"))
        return _Run(config, data, loaded, renderer, rows, held, run).go()


def _prepare(examples: Sequence[Any], renderer: Renderer, config: FineTuningConfig) -> Prepared:
    cache = None
    if config.cache:
        folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_folder()
        cache = RowCache(folder, int(config.cache_gb * 1e9))
    try:
        prepared = prepare(
            examples,
            renderer,
            config.max_length,
            answers_only=config.assistant_only_loss,
            allow_refused=config.allow_refused,
            cache=cache,
            workers=config.num_workers,
        )
    finally:
        for note in cache.notes if cache is not None else ():
            console.warn(note)
    for reason in prepared.refused:
        console.warn(f"left out: {reason}")
    if prepared.cut_turns:
        console.warn(f"{prepared.cut_turns} oldest turns were cut from long chats")
    return prepared


def _run_name(config: FineTuningConfig) -> str:
    if not config.dataset:
        return f"{config.task}_generated"
    name = Path(split_shares(config.dataset)[0][0]).name
    for suffix in (".gz", ".jsonl", ".json", ".csv", ".parquet", ".txt", ".md"):
        name = name.removesuffix(suffix)
    return f"{config.task}_{name}"


def _show_first(rows: Prepared, renderer: Renderer) -> None:
    from tunesmith.data.show import marked

    console.say(
        f"Rows: {len(rows.rows)} of {rows.examples} examples, {rows.tokens:,} tokens, "
        f"{rows.trained_tokens:,} of them trained ({rows.made()}). "
        "The first one, trained parts in ⟦ ⟧:"
    )
    console.say(marked(rows.rows[0], renderer, limit=600))


class _Run:
    """One training run: holds the parts together and owns the rhythm."""

    def __init__(
        self,
        config: FineTuningConfig,
        data: Data,
        loaded: LoadedModel,
        renderer: Renderer,
        rows: Prepared,
        held: Prepared,
        run: RunDir,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from tunesmith.train.batches import make_plan

        self.config, self.data, self.loaded, self.renderer = config, data, loaded, renderer
        self.rows, self.held, self.run = rows, held, run
        # It remembers the precision of an earlier run in this process, and refuses another one.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=loaded.device.type == "cpu", mixed_precision=config.mixed_precision
        )
        size = config.per_device_train_batch_size * config.gradient_accumulation_steps
        size *= self.accelerator.num_processes
        self.plan = make_plan(
            len(rows.rows), size, config.num_epochs, config.max_steps, config.seed
        )
        self.progress = Progress()
        self.losses: list[float] = []
        self.records: list[dict[str, Any]] = []

    def go(self) -> TrainResult:
        """Train to the end, or to a signal, and leave a finished run."""
        settings = self._settings()
        before = baseline(self.loaded, self.renderer, self.data, self.held, self.run, self.config)
        state = self._state(settings)
        began = time.monotonic()
        try:
            self._loop(state, settings)
        except Interrupted:
            self._checkpoint(state)
            console.say(f"Stopped after step {state.step}; a checkpoint was saved.")
            raise
        held_loss = self._last_held_out_loss(state.step) if self.held.rows else None
        self._checkpoint(state)
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
                    time.monotonic() - began,
                    self.plan.total_steps,
                    notes,
                ),
                before,
            )
        return TrainResult(
            self.run.path, self.run.final_model, state.step, self.losses[-1], held_loss
        )

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
        return [
            f"Stopped early, after step {state.step} of {self.plan.total_steps}: the last "
            f"{self.progress.since} held-out losses were not below {self.progress.best:.4f}, that "
            f"of step {self.progress.best_step}."
        ]

    def _settings(self) -> Settings:
        from tunesmith.train.batches import packed_capacity
        from tunesmith.train.loop import Settings
        from tunesmith.train.schedule import warmup_steps

        config = self.config
        warmup, cut = warmup_steps(config.warmup_steps, config.warmup_ratio, self.plan.total_steps)
        if cut:
            console.warn(
                f"{config.warmup_steps} warm-up steps are over a tenth of the "
                f"{self.plan.total_steps} planned; cut to {warmup}"
            )
        longest = max(self.rows.lengths())
        hidden = self.loaded.model.get_input_embeddings().weight.shape[1]
        return Settings(
            config.learning_rate or 2e-5,
            config.lr_scheduler_type,
            warmup,
            config.weight_decay,
            config.max_grad_norm,
            config.packing,
            packed_capacity(longest, hidden, self.loaded.device.type),
            config.per_device_train_batch_size,
            lora_plus_ratio=config.lora_plus_ratio,
            layer_lr_decay=config.layer_lr_decay,
            optim=config.optim,
            neftune_alpha=config.neftune_alpha,
        )

    def _state(self, settings: Settings) -> State:
        from tunesmith.train import checkpoint
        from tunesmith.train.loop import State, make_optimizer

        config = self.config
        console.say(f"Trained: {make_trainable(config, self.loaded)}.")
        model = self.accelerator.prepare_model(self.loaded.model)
        self.loaded.model = self.accelerator.unwrap_model(model)
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
        if self.progress.is_over(patience):
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
        from tunesmith.train.losses import row_losses

        sums = row_losses(self.loaded.model, self.held.rows, self.accelerator.device, 2048)
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
