"""What a run notes of its steps: the records, the ledger of rows, and where they are shown."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from tunesmith.workflows import console
from tunesmith.workflows.spikes import spike_record
from tunesmith.workflows.trackers import Trackers, chosen_trackers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tunesmith.config.schema import FineTuningConfig
    from tunesmith.data.render import Renderer
    from tunesmith.rundir import RunDir
    from tunesmith.train.loop import StepResult
    from tunesmith.types import Encoded

EVERY_S = 1.0
"""Seconds between two writings of the records between checkpoints."""
SHARE = 0.005
"""Most of the run's time that they may take."""
MEASURED = ("tokens_per_s", "peak_bytes", "gpu_percent")
"""Fields of a record that say how the machine did; all others are the same in every repetition."""


class Metrics:
    """The numbers of a run, kept in its checkpoints, so that a resumed run has all of them."""

    def __init__(
        self,
        config: FineTuningConfig,
        run: RunDir,
        rows: Sequence[Encoded],
        renderer: Renderer,
        accelerator: Any,
    ) -> None:
        from tunesmith.train.row_ledger import RowLedger

        self.config, self._run, self._rows, self._renderer = config, run, rows, renderer
        self._device, self._main = accelerator.device, accelerator.is_main_process
        self._trackers: Trackers | None = None
        self.losses: list[float] = []
        """Of every step, in nats a trained token."""
        self.records: list[dict[str, Any]] = []
        """The lines of ``metrics.jsonl``."""
        self.ledger = RowLedger()
        self._next = 0.0
        self.done = 0
        """Steps behind the run, those that made no update included."""

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the ledger."""
        return {"losses": self.losses, "records": self.records}

    def restore(self, extra: Mapping[str, Any], rows: Mapping[str, torch.Tensor] | None) -> None:
        """Go on from what a checkpoint has kept."""
        from tunesmith.train.row_ledger import RowLedger

        self.losses, self.records = extra["losses"], extra["records"]
        if rows is None:
            console.warn(
                "the checkpoint keeps no losses of rows, so their ledger begins at this step"
            )
        else:
            self.ledger = RowLedger.from_tensors(rows)

    def begin(self, step: int) -> None:
        """Open the trackers of a run that begins, or goes on, after this step."""
        self.done = step
        if self._main and self._trackers is None:  # a run that went back goes on in the same ones
            names = chosen_trackers(self.config.report_to)
            self._trackers = Trackers(names, self._run, self.config.model_dump(), first=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._trackers is not None:
            self._trackers.finish()

    def step(self, done: StepResult) -> None:
        """Note a finished step."""
        self.done = done.step
        spike = spike_record(self.losses, done, self._rows, self._renderer)
        self.losses.append(done.loss)
        self.ledger.add(done.step, done.seen)
        if spike is not None:
            self.records.append(spike)
            if self._main:
                console.warn(spike["text"])
        console.debug(f"  step {done.step}: {self.progress(done)}, lr {done.learning_rate:.3g}")
        if done.step % self.config.logging_steps == 0 or done.step == 1:
            self._record(self._numbers(done))
            self._follow()

    def skip(self, done: StepResult, record: dict[str, Any]) -> None:
        """Note a step that made no update."""
        self.done = done.step
        self.records.append(record)

    def held_out(self, step: int, loss: float, accuracy: float) -> None:
        """Note an evaluation on the held-out rows."""
        self._record({"kind": "eval", "step": step, "loss": loss, "accuracy": round(accuracy, 5)})
        console.say(f"  step {step}: held-out loss {loss:.4f}, {accuracy:.1%} of tokens right")

    def held_out_at(self, step: int) -> float | None:
        """Return the held-out loss taken after a step, or None."""
        taken = [r["loss"] for r in self.records if (r["kind"], r["step"]) == ("eval", step)]
        return float(taken[-1]) if taken else None

    def progress(self, done: StepResult) -> str:
        """Return what stands beside the progress bar, short enough for 80 columns."""
        from tunesmith.models.memory import peak_bytes

        pace, memory = done.tokens / done.seconds, peak_bytes(self._device) / 1e9
        return (
            f"loss {_short(done.loss, 3)}, {done.accuracy:.0%} right, "
            f"{f'{_short(pace / 1e3)}k' if pace >= 1e3 else f'{pace:.0f}'} tokens/s, "
            f"{_short(memory)} GB"
        )

    def _follow(self) -> None:
        """Write the records for whoever watches the run, as often as that costs next to nothing."""
        began = time.monotonic()
        if self._main and began >= self._next:
            self.write()
            self._next = began + max(EVERY_S, (time.monotonic() - began) / SHARE)

    def write(self) -> None:
        """Write the records down."""
        from tunesmith.storage import write_text

        lines = (json.dumps(record) + "\n" for record in self.records)
        write_text(self._run.metrics, "".join(lines))

    def _numbers(self, done: StepResult) -> dict[str, Any]:
        from tunesmith.models.memory import gpu_percent, peak_bytes

        busy = gpu_percent(self._device)
        return {
            "kind": "train",
            "step": done.step,
            "epoch": round(done.epoch, 4),
            "loss": done.loss,
            "accuracy": round(done.accuracy, 5),
            "lr": done.learning_rate,
            "grad_norm": done.grad_norm,
            "tokens_per_s": round(done.tokens / done.seconds, 1),
            "peak_bytes": peak_bytes(self._device),
            **({} if busy is None else {"gpu_percent": busy}),
        }

    def _record(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._trackers is not None:
            shown = {
                f"{record['kind']}/{key}": value
                for key, value in record.items()
                if key not in ("kind", "step") and isinstance(value, int | float)
            }
            self._trackers.log(shown, record["step"])


def _short(number: float, digits: int = 1) -> str:
    """Return a number with so many decimals, fewer where it is large: 0.512, 12.35, 139."""
    return f"{number:.{max(0, digits - (abs(number) >= 10) - (abs(number) >= 100))}f}"
