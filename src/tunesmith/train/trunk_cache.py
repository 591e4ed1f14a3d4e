"""The output of the frozen layers, kept on the disk from the first epoch for the later ones.

A matrix product's last bits depend on which rows lie in it together. So the stored value of a row
is defined as that of the micro-batch in which the plan first meets it, of the size decided for that
step: one for which memory ran out is run in smaller parts. An entry that is missing or does not
have its checksum is made again by running that very micro-batch, so a run that was killed ends with
the same bits whether or not the file survived.

The file: ``MAGIC`` and the SHA-256 of what the values follow from, padded to ``_HEAD`` bytes; then
for each row the first ``_SUM`` bytes of the SHA-256 of its place, its ids, the size of its
micro-batch and its value; then the values, row after row. Nothing is flushed: what does not verify
is made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.models.trunk import (
    Trunk,
    caught,
    find_trunk,
    in_evaluation,
    replaced,
    shares_layers,
    trained_below,
)
from tunesmith.storage import storage_errors
from tunesmith.train.batches import Plan
from tunesmith.train.decisions import Decisions
from tunesmith.train.loop import Settings, micro_batches
from tunesmith.train.losses import lengths, packed_rows, token_losses
from tunesmith.train.shrink import sized
from tunesmith.types import Encoded

MAGIC = b"TSTRNK02"
_HEAD, _SUM = 4096, 16


class NoTrunkError(Exception):
    """Why the trunk's output cannot be kept; the message ends a sentence («…, because»)."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one row showed about a trunk."""

    trunk: Trunk
    width: int
    dtype: torch.dtype
    digest: str
    """SHA-256 of the trunk's output for that row, which follows from all of its weights."""


def look(
    model: Any, rows: Sequence[Encoded], plan: Plan, settings: Settings, accelerator: Any
) -> Look:
    """Run the plan's first row through the model, as a whole and with its trunk replaced.

    Raises ``NoTrunkError`` where no layer is frozen, where something that is trained changes the
    trunk's output, and where the layers above take more from below than that output.
    """
    trunk = find_trunk(accelerator.unwrap_model(model))
    if not trunk.layers:
        raise NoTrunkError("something is trained in every layer")
    if shares_layers(trunk.model):
        raise NoTrunkError("later layers of this model use keys and values of earlier ones")
    row = rows[plan.step_rows(0)[0]]

    def losses() -> torch.Tensor:
        return _forward(model, [row], settings, accelerator)

    with caught(trunk, whole=True) as found:
        whole = losses().detach()
    if not found or found[0].dim() != 3:
        raise NoTrunkError("this model does not hand one state a token from layer to layer")
    below = trained_below(trunk, found[0])
    if below is not None:
        raise NoTrunkError(f"{below} is trained and changes what the frozen layers hand on")
    output = found[0].detach()
    with torch.no_grad(), in_evaluation(trunk.model):
        try:
            with replaced(trunk, output):
                above = losses()
        # Whatever a model's own code trips over when its lower layers have computed nothing.
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise NoTrunkError(
                f"this model's upper layers do not run alone ({type(error).__name__}: {error})"
            ) from error
    if not torch.allclose(above, whole, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise NoTrunkError("the upper layers of this model use more than the layer below hands on")
    digest = hashlib.sha256(_bytes(output[0].cpu())).hexdigest()
    return Look(trunk, output.shape[-1], output.dtype, digest)


def size_in_bytes(found: Look, sizes: Sequence[int]) -> int:
    """Return the size of the file for rows of these lengths."""
    return _start(len(sizes)) + int(sum(sizes) * found.width * found.dtype.itemsize)


class TrunkCache:
    """The stored outputs of one run's trunk; ``stored`` puts them in the place of the trunk.

    The file is reserved in full when it is opened, where the system can, so that a disk without
    room for it is found before the first step and not in the middle of an epoch.
    """

    def __init__(
        self,
        path: Path,
        model: Any,
        rows: Sequence[Encoded],
        plan: Plan,
        settings: Settings,
        accelerator: Any,
        found: Look,
    ) -> None:
        self.path = path
        self.computed = 0
        """Rows that ran through the trunk."""
        self._model, self._rows, self._plan = model, rows, plan
        self._settings, self._accelerator, self._found = settings, accelerator, found
        self._sizes = lengths(rows)
        self._starts = array("q", [_start(len(rows))])
        for size in self._sizes:
            self._starts.append(self._starts[-1] + size * found.width * found.dtype.itemsize)
        self._places: array[int] | None = None
        self._open()

    @contextmanager
    def stored(self, members: Sequence[int], decisions: Decisions) -> Iterator[None]:
        """Let the model take the trunk's output for these rows from the store.

        ``decisions`` tell the size of the micro-batch in which a row is first met.
        """
        parts = [self._read(at, decisions) for at in members]
        missing = [at for at, part in zip(members, parts, strict=True) if part is None]
        made = self._make(missing, decisions)
        whole = [
            made[at] if part is None else part for at, part in zip(members, parts, strict=True)
        ]
        if self._settings.packing:
            states = torch.cat(whole)[None]
        else:
            states = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
        with replaced(self._found.trunk, states.to(self._accelerator.device)):
            yield

    def close(self) -> None:
        """Close the file; what it holds serves a resume."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        with storage_errors(self.path, "removed"):
            self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        size = self._starts[-1]
        key = MAGIC + hashlib.sha256(self._key().encode()).digest()
        with storage_errors(self.path, size=size):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            self._file = os.fdopen(handle, "r+b", buffering=0)
            try:
                if self._file.read(len(key)) != key or os.fstat(handle).st_size != size:
                    self._file.truncate(0)
                    _reserve(handle, size)
                    self._write(0, key)
            except BaseException:
                self.remove()
                raise

    def _key(self) -> str:
        """Return all that the values follow from besides the rows: another file is not used."""
        plan, settings, found = self._plan, self._settings, self._found
        return json.dumps(
            {
                "output": found.digest,
                "width": found.width,
                "dtype": str(found.dtype),
                "layers": len(found.trunk.layers),
                "plan": [plan.rows, plan.rows_a_step, plan.seed],
                "batches": [settings.packing, settings.capacity, settings.rows_a_micro_batch],
                "attention": settings.attention,
                "precision": str(self._accelerator.mixed_precision),
                "torch": torch.__version__,
            }
        )

    def _make(self, missing: Sequence[int], decisions: Decisions) -> dict[int, torch.Tensor]:
        """Run the micro-batches in which the plan first meets these rows, and store their rows."""
        made: dict[int, torch.Tensor] = {}
        for at in missing:
            if at in made:
                continue
            members = self._first_batch(at, decisions)
            batch = [self._rows[member] for member in members]
            with torch.no_grad(), caught(self._found.trunk) as outputs:
                _forward(self._model, batch, self._settings, self._accelerator)
            output = outputs[0].cpu()
            if self._settings.packing:
                parts = output[0].split([self._sizes[member] for member in members])
            else:
                pairs = zip(output, members, strict=True)
                parts = tuple(part[: self._sizes[member]] for part, member in pairs)
            for member, part in zip(members, parts, strict=True):
                made[member] = part
                self._store(member, part, decisions)
            self.computed += len(members)
        return made

    def _first_step(self, row: int) -> int:
        """Return the step in which the plan first meets a row."""
        if self._places is None:
            self._places = array("q", bytes(8 * self._plan.rows))
            for step in range(self._plan.steps_an_epoch):
                for at in self._plan.step_rows(step):
                    self._places[at] = step
        return self._places[row]

    def _first_batch(self, row: int, decisions: Decisions) -> list[int]:
        """Return the rows of the micro-batch in which the plan first meets a row."""
        step = self._first_step(row)
        picked = self._plan.step_rows(step)
        made = {at: self._rows[at] for at in picked}
        settings = sized(self._settings, decisions.size(step))
        batches = micro_batches(picked, made, self._sizes, settings)
        members = ([at for bundle in found for at in bundle.rows] for found in batches)
        return next(batch for batch in members if row in batch)

    def _read(self, row: int, decisions: Decisions) -> torch.Tensor | None:
        """Return a row's value [tokens, width], or None if the file does not hold it."""
        found = self._found
        value = torch.empty(self._sizes[row], found.width, dtype=found.dtype)
        with storage_errors(self.path, "read"):
            self._file.seek(_HEAD + row * _SUM)
            wanted = self._file.read(_SUM)
            if not wanted or not any(wanted):
                return None
            self._file.seek(self._starts[row])
            rest = _bytes(value)
            while rest:
                got = self._file.readinto(rest)
                if not got:
                    return None
                rest = rest[got:]
        return value if self._sum(row, value, decisions) == wanted else None

    def _store(self, row: int, value: torch.Tensor, decisions: Decisions) -> None:
        value = value.contiguous()
        with storage_errors(self.path, size=value.nbytes):
            self._write(self._starts[row], _bytes(value))
            self._write(_HEAD + row * _SUM, self._sum(row, value, decisions))

    def _write(self, place: int, content: bytes | memoryview) -> None:
        self._file.seek(place)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def _sum(self, row: int, value: torch.Tensor, decisions: Decisions) -> bytes:
        size = decisions.size(self._first_step(row))
        digest = hashlib.sha256(f"{row}:{size}:".encode())
        digest.update(array("q", self._rows[row].ids))
        digest.update(_bytes(value))
        return digest.digest()[:_SUM]


def _forward(
    model: Any, batch: Sequence[Encoded], settings: Settings, accelerator: Any
) -> torch.Tensor:
    """Run rows forward as a step does; return the losses of their trained tokens."""
    with (
        packed_rows(model, batch, settings.attention)
        if settings.packing
        else contextlib.nullcontext(),
        accelerator.autocast(),
    ):
        return token_losses(model, batch, accelerator.device, packing=settings.packing)[0]


def _bytes(value: torch.Tensor) -> memoryview:
    """Return a view of the bytes of a contiguous tensor on the CPU; NumPy knows no bfloat16."""
    return memoryview(value.view(torch.uint8).numpy()).cast("B")


def _start(rows: int) -> int:
    """Return where the values begin: behind the head and the checksums, at a whole page."""
    return -(-(_HEAD + rows * _SUM) // 4096) * 4096


def _reserve(handle: int, size: int) -> None:
    """Take the room on the disk at once, where the system can, else only set the size."""
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as failure:
            if failure.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without it
                raise
