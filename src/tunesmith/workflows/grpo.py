"""``tunesmith grpo``: reinforcement learning from a task's own verifier (GRPO)."""

from __future__ import annotations

import copy
import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import ARGUMENT, FLAG, Resolved, resolve
from tunesmith.config.presets import LORA_RATE
from tunesmith.config.schema import FineTuningConfig
from tunesmith.config.schema_grpo import GrpoOptions
from tunesmith.errors import UsageError
from tunesmith.rundir import RunDir
from tunesmith.storage import hash_json, write_text
from tunesmith.workflows import console, safety
from tunesmith.workflows.attention import choose_attention
from tunesmith.workflows.conditions import base_hash
from tunesmith.workflows.grpo_finish import Learnt, ask, finish
from tunesmith.workflows.method import settle_adapter
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.resuming import check_resume, checkpoint_to_resume, give_up_later
from tunesmith.workflows.rollouts import Drawn, Rollouts, questions, style
from tunesmith.workflows.setup import make_accelerator, make_trainable
from tunesmith.workflows.several import Team
from tunesmith.workflows.signals import StopFlag, stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.train.loop import Settings, State
    from tunesmith.train.policy_step import Policy, PolicyResult, Reference

RATE = 1e-5
"""Of full fine-tuning, where none is given."""
DECIDING = (
    "dtype", "prompt", "questions_per_step", "samples", "temperature", "max_new_tokens", "reward",
    "scale_rewards", "clip_low", "clip_high", "kl", "inner_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "lora",
    "lora_rank", "lora_alpha", "lora_target_modules", "seed",
)  # fmt: skip
"""Settings that a checkpoint keeps, because they decide its steps."""


@dataclass(frozen=True, slots=True)
class GrpoResult:
    """What a run leaves."""

    run: Path
    final_model: Path
    steps: int
    reward: float | None
    """Mean reward of the last step's answers."""
    before: float | None
    """Share of held-out questions that the model got right before training."""
    after: float | None


def command(resolved: Resolved[GrpoOptions]) -> int:
    """Handle ``tunesmith grpo``."""
    run_grpo(resolved)
    return 0


def grpo(options: GrpoOptions | None = None, **settings: Any) -> GrpoResult:
    """Learn from verified answers; settings are those of ``tunesmith grpo``."""
    if options is not None:
        settings = {**options.model_dump(exclude_unset=True), **settings}
    return run_grpo(resolve(GrpoOptions, settings, origin="argument"))


def run_grpo(resolved: Resolved[GrpoOptions]) -> GrpoResult:
    """Carry out a run whose settings are resolved, each with its source."""
    options = resolved.options
    console.set_level(options.log_level)
    check_settings(resolved)
    learning = _Run(resolved)
    with RunDir.create(
        options.output_dir,
        options.run_name or f"{options.task}_grpo",
        resume=options.resume is not None,
        overwrite=options.overwrite,
    ) as run:
        console.say(f"Run: {run.path}")
        return learning.go(run)


def check_settings(resolved: Resolved[GrpoOptions]) -> None:
    """Refuse what was typed and would do nothing."""
    options = resolved.options
    typed = {name for name, source in resolved.sources.items() if source in (FLAG, ARGUMENT)}
    idle = [
        f"--{name.replace('_', '-')} does nothing without --lora."
        for name in ("lora_rank", "lora_alpha", "lora_target_modules")
        if name in typed and not options.lora
    ]
    idle += [
        f"--{name.replace('_', '-')} does nothing with --inner-steps 1: then the policy is the one "
        "that wrote the answers, and every ratio is 1."
        for name in ("clip_low", "clip_high")
        if name in typed and options.inner_steps == 1
    ]
    if idle:
        raise UsageError("\n".join(idle))


class _Run:
    """One run: holds the parts together and owns the rhythm."""

    def __init__(self, resolved: Resolved[GrpoOptions]) -> None:
        from tunesmith.tasks.registry import get_graded_task
        from tunesmith.train.batches import make_plan
        from tunesmith.train.machine import fingerprint

        self.options = options = resolved.options
        self.task = get_graded_task(options.task)
        self.style = style(options, self.task)
        if ready := self.task.ready():
            console.say(ready)
        self.problems, self.held = questions(options, self.task)
        count, size = len(self.problems), options.questions_per_step
        if size > count:
            raise UsageError(
                f"--questions-per-step {size} is more than the {count} questions there are.",
                hint=f"--questions-per-step {count}",
            )
        self.loaded, self.renderer = open_model(options, trainable=True)
        self.config = settle_adapter(_as_training(options), resolved.sources, self.loaded)
        self.accelerator = make_accelerator(self.config, self.loaded)
        self.machine = fingerprint(self.accelerator, self.loaded.dtype)
        self.plan = make_plan(count, size, 1, options.max_steps, options.seed)
        parts = (options, self.task, self.problems, self.plan, self.loaded, self.renderer)
        self.rollouts = Rollouts(*parts)
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def go(self, run: RunDir) -> GrpoResult:
        """Train to the end, or to a signal, and leave a finished run."""
        from tunesmith.models.memory import peak_bytes

        self.run = run
        options, total = self.options, self.plan.total_steps
        wanted = options.resume
        path = None if wanted is None else checkpoint_to_resume(run, wanted)
        run.write_config(options.model_dump(mode="json"))
        parts = (self.loaded, self.renderer, self.task, self.held, options, run)
        ask(*parts, "base")
        self.conditions = self._conditions()
        settings, policy = self._settings(), self._policy()
        model = make_trainable(self.config, self.loaded, self.accelerator)
        reference = self._reference()
        state = self._state(model, settings, path)
        console.say(
            f"{total} steps of {options.questions_per_step} questions, {options.samples} answers "
            f"each, from {len(self.problems)} questions in the {self.style} style."
        )
        if state.step < total:
            # Answers of a model that now learns more would be refused as another one's.
            shutil.rmtree(run.eval / "tuned", ignore_errors=True)
        first, began = state.step, time.monotonic()
        with (
            safety.last_step_kept(lambda: self._checkpoint(state), state, run, Team()),
            stop_on_signals() as stop,
        ):
            self._train(state, settings, policy, reference, stop)
        self._checkpoint(state)
        state.ledger.check(self.plan, total)
        seconds, peak = time.monotonic() - began, peak_bytes(self.accelerator.device)
        learnt = Learnt(
            options,
            self.task,
            self.loaded,
            self.renderer,
            self.held,
            run,
            self.records,
            seconds,
            state.step - first,
            peak,
            [*self.notes, *state.decisions.sentences("tokens")],
        )
        with safety.model_kept(run):
            before, after = finish(learnt)
        reward = self.records[-1]["reward"] if self.records else None
        return GrpoResult(run.path, run.final_model, state.step, reward, before, after)

    def _train(
        self,
        state: State,
        settings: Settings,
        policy: Policy,
        reference: Reference | None,
        stop: StopFlag,
    ) -> None:
        from tunesmith.train.policy import check_finite
        from tunesmith.train.policy_step import policy_step
        from tunesmith.train.schedule import factor

        total = self.plan.total_steps
        with console.bar("learning", total, state.step) as bar:
            while state.step < total:
                began = time.perf_counter()
                made = self.rollouts.draw(state.step, stop)
                kind = self.options.lr_scheduler_type
                share = factor(kind, state.step, total, settings.warmup)
                rate = settings.learning_rate * share
                done = policy_step(
                    state,
                    made.rollout,
                    policy,
                    settings,
                    self.accelerator,
                    rate=rate,
                    reference=reference,
                    should_stop=stop,
                )
                state.ledger.add(made.questions)
                # The next answers come from these weights, so broken ones are found at once.
                check_finite(state, exact=True)
                self._note(state.step, made, done, rate, time.perf_counter() - began)
                bar.advance(note=_progress(self.records[-1]))
                if state.step < total and state.step % self.options.save_steps == 0:
                    self._checkpoint(state)

    def _note(
        self, step: int, made: Drawn, done: PolicyResult, rate: float, seconds: float
    ) -> None:
        if made.ungraded:
            console.warn(f"step {step}: the grader failed on {made.ungraded} answers")
        self.records.append(
            {
                "kind": "train",
                "step": step,
                "epoch": round(step / self.plan.steps_an_epoch, 4),
                **made.to_json(),
                "loss": done.loss,
                "kl": done.kl,
                "clipped": done.clipped,
                "entropy": done.entropy,
                "grad_norm": done.grad_norm,
                "updates": done.updates,
                "lr": rate,
                "tokens_per_s": round(made.rollout.tokens / seconds, 1),
            }
        )
        console.debug(f"  step {step}: {_progress(self.records[-1])}")

    def _state(self, model: Any, settings: Settings, path: Path | None) -> State:
        from tunesmith.train import checkpoint
        from tunesmith.train.loop import State, make_optimizer

        state = State(model, make_optimizer(model, settings))
        decided: Mapping[str, Any] | None = None
        if path is not None:
            changes = check_resume(path, self.plan, Team(), self.conditions)
            extra = checkpoint.restore(path, state)
            self.records, decided = extra["records"], extra["decisions"]
            console.say(f"Resumed from {path.name}.")
            changes += safety.warn_of_machine(extra.get("machine"), self.machine)
            self.notes = list(dict.fromkeys([*extra["notes"], *changes]))
            give_up_later(path)
        state.decisions = safety.open_decisions(self.run, decided, main=True)
        return state

    def _checkpoint(self, state: State) -> None:
        from tunesmith.train import checkpoint

        extra = {
            "records": self.records,
            "decisions": state.decisions.to_json(),
            "machine": self.machine,
            "conditions": self.conditions,
            "notes": self.notes,
            "processes": 1,
        }
        checkpoint.save(self.run.checkpoints, state, extra)
        checkpoint.prune(self.run.checkpoints, self.options.save_total_limit)
        lines = (json.dumps(record) + "\n" for record in self.records)
        write_text(self.run.metrics, "".join(lines))

    def _conditions(self) -> dict[str, Any]:
        asked = [[p.id, p.reference, [s.text for s in p.prompt]] for p in self.problems]
        whole = self.options.model_dump(mode="json")
        return {
            "settings": {name: whole[name] for name in DECIDING},
            "rows": hash_json([asked, self.renderer.fingerprint]),
            "base": base_hash(self.loaded.model),
        }

    def _reference(self) -> Reference | None:
        """Return the model before training: the base below a new adapter, else a copy."""
        from tunesmith.train.policy_step import without_adapter

        if not self.options.kl:
            return None
        model = self.loaded.model
        if self.config.lora and not self.loaded.ref.adapter:
            return lambda: without_adapter(model)
        frozen = copy.deepcopy(model).requires_grad_(False).eval()
        return lambda: nullcontext(frozen)

    def _policy(self) -> Policy:
        from tunesmith.train.policy_gradient import Objective
        from tunesmith.train.policy_step import Policy

        options = self.options
        return Policy(
            Objective(options.clip_low, options.clip_high, options.kl),
            self.renderer.stop_ids,
            options.temperature,
            options.inner_steps,
        )

    def _settings(self) -> Settings:
        from tunesmith.train.loop import Settings
        from tunesmith.train.schedule import warmup_steps

        options = self.options
        warmup, cut = warmup_steps(options.warmup_steps, 0.0, options.max_steps)
        if cut:
            console.warn(
                f"{options.warmup_steps} warm-up steps are over a tenth of the "
                f"{options.max_steps} planned; cut to {warmup}"
            )
        return Settings(
            options.learning_rate or RATE * (LORA_RATE if self.config.lora else 1),
            options.lr_scheduler_type,
            warmup,
            options.weight_decay,
            options.max_grad_norm,
            optim=options.optim,
            attention=choose_attention(self.config, self.loaded),
        )


def _as_training(options: GrpoOptions) -> FineTuningConfig:
    """Return the settings that training has too, for what is made alike there."""
    names = (GrpoOptions.model_fields.keys() & FineTuningConfig.model_fields) - {"dataset"}
    return FineTuningConfig(**{name: getattr(options, name) for name in names})


def _progress(record: Mapping[str, Any]) -> str:
    reward = "none" if record["reward"] is None else f"{record['reward']:.2f}"
    return f"reward {reward}, {record['no_signal']:.0%} of questions say nothing"
