"""Examples that lie on the disk and come into memory one by one, for sets that do not fit there.

A ``Spool`` is a ``Sequence`` like a list of them; ``pick`` makes a part of one without copying.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import overload

from tunesmith.storage import storage_errors
from tunesmith.types import Example, Origin, Segment


class Spool(Sequence[Example]):
    """Examples in a nameless temporary file, gone with the process; eight bytes of memory each."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="tunesmith-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])

    def append(self, example: Example) -> None:
        """Put an example behind the others."""
        content = _to_bytes(example)
        with storage_errors(Path(tempfile.gettempdir()), size=len(content)):
            self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | Sequence[Example]:
        if isinstance(at, slice):
            return Part(self, range(len(self))[at])
        number = range(len(self))[at]
        self._file.flush()
        start, end = self._ends[number], self._ends[number + 1]
        return _from_bytes(os.pread(self._file.fileno(), end - start, start))


class Part(Sequence[Example]):
    """Some examples of another sequence, by their numbers there."""

    def __init__(self, whole: Sequence[Example], numbers: Sequence[int]) -> None:
        self._whole, self._numbers = whole, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | Sequence[Example]:
        if isinstance(at, slice):
            return Part(self._whole, self._numbers[at])
        return self._whole[self._numbers[at]]


def pick(examples: Sequence[Example], numbers: Iterable[int]) -> Sequence[Example]:
    """Return some examples in the order of ``numbers``: a list of a list, a part of a spool."""
    if isinstance(examples, list):
        return [examples[number] for number in numbers]
    return Part(examples, array("q", numbers))


def joined(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    """Return several sequences as one; spools go into a new spool."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, list) for part in parts):
        return list(chain.from_iterable(parts))
    whole = Spool()
    for example in chain.from_iterable(parts):
        whole.append(example)
    return whole


def _to_bytes(example: Example) -> bytes:
    origin = example.origin
    content = (
        [[s.role, s.text, s.weight, dict(s.extra)] for s in example.segments],
        [origin.source, origin.line, origin.item],
        dict(example.meta),
    )
    return json.dumps(content).encode()


def _from_bytes(content: bytes) -> Example:
    segments, origin, meta = json.loads(content)
    return Example(tuple(Segment(*segment) for segment in segments), Origin(*origin), meta)
