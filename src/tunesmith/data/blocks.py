"""Tokenised rows in compact arrays: in memory or mapped from a file, made into rows when asked.

A file of a block: ``MAGIC``, the SHA-256 of all that follows, the length of a JSON header, the
header, then the arrays, each at a multiple of 8 bytes; numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tunesmith.types import Encoded, Origin

if TYPE_CHECKING:
    import numpy

MAGIC = b"TSROWS01"
_HEAD = len(MAGIC) + 32 + 8
_ARRAYS = ("offsets", "documents", "ids", "codes")


class DamagedBlockError(Exception):
    """A file that is not the one that was written; caught by the cache."""


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of some consecutive examples."""

    examples: int
    offsets: numpy.ndarray
    """int64 [rows + 1]: where each row begins in ``ids``."""
    documents: numpy.ndarray
    """int64 [rows]: number of the row's example, from 0 in this block."""
    ids: numpy.ndarray
    """int32 [tokens]."""
    codes: numpy.ndarray
    """uint8, or wider, [tokens]: place of the token's loss weight in ``weights``."""
    weights: tuple[float, ...]
    refused: tuple[tuple[int, str], ...]
    """Examples without a row: number in this block and reason."""
    cut_turns: int
    trained: int
    """Tokens whose weight is not 0."""

    def __len__(self) -> int:
        return len(self.documents)

    def row(self, at: int, origin: Origin) -> Encoded:
        """Make one row."""
        start, end = int(self.offsets[at]), int(self.offsets[at + 1])
        codes = self.codes[start:end].tolist()
        weights = tuple(map(self.weights.__getitem__, codes))
        return Encoded(tuple(self.ids[start:end].tolist()), weights, origin)

    def to_bytes(self) -> bytes:
        """Return the content of a file of this block."""
        header = {
            "examples": self.examples,
            "weights": self.weights,
            "refused": self.refused,
            "cut_turns": self.cut_turns,
            "trained": self.trained,
            "arrays": {n: [getattr(self, n).dtype.str, len(getattr(self, n))] for n in _ARRAYS},
        }
        text = _padded(json.dumps(header).encode(), b" ")
        parts = [struct.pack("<q", len(text)), text]
        parts += [_padded(getattr(self, name).tobytes(), b"\0") for name in _ARRAYS]
        rest = b"".join(parts)
        return MAGIC + hashlib.sha256(rest).digest() + rest


class BlockBuilder:
    """Collects rows into a block."""

    def __init__(self) -> None:
        self._codes: dict[float, int] = {}
        self._ids, self._offsets = array("i"), array("q", [0])
        self._documents, self._weights = array("q"), array("H")
        self._refused: list[tuple[int, str]] = []
        self._trained = 0
        self.cut_turns = 0

    def add(self, row: Encoded, document: int) -> None:
        """Add a row of an example."""
        codes = self._codes
        for weight in set(row.weights).difference(codes):
            codes[weight] = len(codes)
        self._weights.extend(map(codes.__getitem__, row.weights))
        self._ids.extend(row.ids)
        self._offsets.append(len(self._ids))
        self._documents.append(document)
        self._trained += len(row.weights) - row.weights.count(0.0)

    def refuse(self, document: int, reason: str) -> None:
        """Note an example that gives no row."""
        self._refused.append((document, reason))

    def build(self, examples: int) -> Block:
        """Return the block."""
        import numpy

        codes = numpy.frombuffer(self._weights, "<u2") if self._weights else numpy.zeros(0, "<u2")
        if len(self._codes) <= 256:
            codes = codes.astype("u1")
        return Block(
            examples,
            numpy.array(self._offsets, "<i8"),
            numpy.array(self._documents, "<i8"),
            numpy.array(self._ids, "<i4"),
            codes,
            tuple(self._codes),
            tuple(self._refused),
            self.cut_turns,
            self._trained,
        )


def from_bytes(content: bytes) -> Block:
    """Return the block that ``to_bytes`` made the content of; ``DamagedBlockError`` else."""
    import numpy

    return _parse(numpy.frombuffer(content, "u1"))


def open_block(path: Path) -> Block:
    """Map a file of a block; every byte is checked first, ``DamagedBlockError`` if one differs."""
    import numpy

    try:
        return _parse(numpy.memmap(path, "u1", "r"))
    except ValueError as empty:  # numpy cannot map an empty file
        raise DamagedBlockError(str(empty)) from None


def _parse(content: Any) -> Block:
    if content[: len(MAGIC)].tobytes() != MAGIC or len(content) < _HEAD:
        raise DamagedBlockError("it does not begin as such a file does")
    if hashlib.sha256(content[_HEAD - 8 :]).digest() != content[len(MAGIC) : _HEAD - 8].tobytes():
        raise DamagedBlockError("its checksum differs")
    (size,) = struct.unpack("<q", content[_HEAD - 8 : _HEAD].tobytes())
    header = json.loads(content[_HEAD : _HEAD + size].tobytes())
    at, arrays = _HEAD + size, {}
    for name in _ARRAYS:
        kind, length = header["arrays"][name]
        size = length * int(kind[2:])
        arrays[name] = content[at : at + size].view(kind)
        at += -(-size // 8) * 8
    return Block(
        header["examples"],
        weights=tuple(header["weights"]),
        refused=tuple((number, reason) for number, reason in header["refused"]),
        cut_turns=header["cut_turns"],
        trained=header["trained"],
        **arrays,
    )


def _padded(content: bytes, fill: bytes) -> bytes:
    return content + fill * (-len(content) % 8)


class TokenRows(Sequence[Encoded]):
    """All rows of a data set as a sequence; a row is made when it is asked for."""

    def __init__(self, blocks: Sequence[Block], origin: Callable[[int], Origin]) -> None:
        """``origin`` gives the origin of an example by its number."""
        self._blocks, self._origin = list(blocks), origin
        self._starts, self._first = [0], [0]
        for block in blocks:
            self._starts.append(self._starts[-1] + len(block))
            self._first.append(self._first[-1] + block.examples)
        self.tokens = sum(len(block.ids) for block in blocks)
        self.trained_tokens = sum(block.trained for block in blocks)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        if not 0 <= at < len(self):
            raise IndexError(at)
        number = bisect_right(self._starts, at) - 1
        block, within = self._blocks[number], at - self._starts[number]
        document = self._first[number] + int(block.documents[within])
        return block.row(within, self._origin(document))

    def lengths(self) -> array[int]:
        """Return the rows' lengths in tokens, without making a row."""
        import numpy

        found = array("q")
        for block in self._blocks:
            found.frombytes(numpy.diff(block.offsets).astype("=i8").tobytes())
        return found

    def documents(self) -> array[int]:
        """Return for each row the number of its example."""
        found = array("q")
        for first, block in zip(self._first, self._blocks, strict=False):
            found.frombytes((block.documents + first).astype("=i8").tobytes())
        return found
