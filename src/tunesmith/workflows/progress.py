"""What the held-out losses of a run say: the best so far, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tunesmith.config.load import ARGUMENT, FLAG
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows import console


@dataclass(slots=True)
class Progress:
    """The held-out losses so far, as far as decisions need them; kept in every checkpoint."""

    best: float | None = None
    """The lowest one, in nats per trained token."""
    best_step: int = 0
    since: int = 0
    """How many were taken since the best one."""

    def note(self, step: int, loss: float) -> bool:
        """Take a held-out loss into account; return whether it is the best so far."""
        if loss == loss and (self.best is None or loss < self.best):
            self.best, self.best_step, self.since = loss, step, 0
            return True
        self.since += 1
        return False

    def is_over(self, patience: int | None) -> bool:
        """Say whether that many losses in a row brought nothing better."""
        return patience is not None and self.since >= patience

    def stop_note(self, step: int, total: int) -> str:
        """Say why a run stopped early, for want of a better loss."""
        return (
            f"Stopped early, after step {step} of {total}: the last {self.since} held-out losses "
            f"were not below {self.best:.4f}, that of step {self.best_step}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """Return what a checkpoint has kept; older ones know the best loss alone."""
        return cls(**{field.name: kept[field.name] for field in fields(cls) if field.name in kept})


def wants_best(config: FineTuningConfig) -> bool:
    """Say whether the run ends with its best model instead of its last."""
    return config.load_best_model_at_end or config.early_stopping_patience is not None


def looks_after(config: FineTuningConfig, step: int, an_epoch: int) -> bool:
    """Say whether a held-out loss is due after a step."""
    every = an_epoch if config.eval_strategy == "epoch" else config.eval_steps
    return config.eval_strategy != "no" and step % every == 0


def saves_after(config: FineTuningConfig, step: int, an_epoch: int) -> bool:
    """Say whether a checkpoint is due after a step."""
    every = an_epoch if config.save_steps == "epoch" else int(config.save_steps)
    return step % every == 0


def best_steps(records: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Return the steps of the lowest held-out losses in a run's records, the best first."""
    taken = [(r["loss"], r["step"]) for r in records if r["kind"] == "eval"]
    return [step for _, step in sorted(one for one in taken if one[0] == one[0])[:count]]


def check_held_out(config: FineTuningConfig, held_out: Sequence[Any]) -> None:
    """Refuse to look for the best model where nothing is measured on the way."""
    asked = next(iter(_asked(config).values()), None)
    if asked is None:
        return
    if config.eval_strategy == "no":
        raise UsageError(
            f"{asked} goes by the held-out loss, and --eval-strategy no takes none on the way.",
            hint="--eval-strategy steps or epoch",
        )
    if not held_out:
        raise UsageError(
            f"{asked} goes by the held-out loss, and this run holds no rows out.",
            hint="--validation-split 0.1, or --eval-dataset",
        )


def check_looks(
    config: FineTuningConfig, sources: Mapping[str, str], total: int, an_epoch: int
) -> None:
    """Refuse to look for the best of ``total`` steps where only the last one is measured.

    What was typed is refused with ``UsageError``; what a file or preset says is said to do nothing.
    """
    asked = _asked(config)
    if not asked or any(looks_after(config, step, an_epoch) for step in range(1, total)):
        return
    typed = [text for name, text in asked.items() if sources.get(name) in (FLAG, ARGUMENT)]
    steps = "the one step" if total == 1 else f"the last of the {total} steps"
    found = (
        f"{' and '.join(typed or asked.values())} does nothing: no held-out loss is taken before "
        f"{steps}"
    )
    strategy = "--eval-strategy steps " if config.eval_strategy == "epoch" else ""
    hint = f"{strategy}--eval-steps {max(1, total // 5)}" if total > 1 else "leave it out"
    if not typed:
        console.warn(f"{found} ({hint})")
        return
    every = f"each epoch has {an_epoch}" if strategy else f"--eval-steps is {config.eval_steps}"
    raise UsageError(f"{found}; {every}.", hint=hint)


def wants_looks(config: FineTuningConfig) -> bool:
    """Say whether some setting goes by the best held-out loss."""
    return bool(_asked(config))


def _asked(config: FineTuningConfig) -> dict[str, str]:
    """Return the settings that go by the best held-out loss, as they are typed."""
    found = {}
    if config.load_best_model_at_end:
        found["load_best_model_at_end"] = "--load-best-model-at-end"
    if config.early_stopping_patience is not None:
        patience = f"--early-stopping-patience {config.early_stopping_patience}"
        found["early_stopping_patience"] = patience
    if config.keep_best:
        found["keep_best"] = f"--keep-best {config.keep_best}"
    return found
