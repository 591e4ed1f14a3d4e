"""What the held-out losses of a run say: the best so far, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError


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
    if config.load_best_model_at_end:
        asked = "--load-best-model-at-end"
    elif config.early_stopping_patience is not None:
        asked = f"--early-stopping-patience {config.early_stopping_patience}"
    elif config.keep_best:
        asked = f"--keep-best {config.keep_best}"
    else:
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
