"""Bytes of a file, unpacked and decoded piece by piece, so that memory does not grow with it.

A byte order mark decides the encoding, else it is UTF-8 unless the caller names another one. A
line or a value longer than ``LONGEST`` bytes is a fault, not a reason to fill the memory.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tunesmith.errors import DataError, UsageError

LONGEST = 64 << 20
"""Bytes of one line, and characters of one JSON value, that are read at most."""
CHUNK = 1 << 20
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BROKEN = (OSError, EOFError, zlib.error)
"""What a damaged or vanishing file raises while it is read."""


class Undecodable(Exception):
    """Bytes that are no text in the encoding; ``line`` is where they stand."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, unpacking .gz; raises ``DataError`` if that cannot be done at all."""
    try:
        if path.name.lower().endswith(".gz"):
            return gzip.open(path)  # type: ignore[return-value]
        return path.open("rb")
    except OSError as failure:
        raise DataError(f"{path} cannot be read: {failure.strerror or failure}.") from None


def encoding_of(file: IO[bytes], wanted: str | None) -> tuple[str, int]:
    """Return a file's encoding and the length of its byte order mark, from its first bytes."""
    head = file.read(4)
    file.seek(0)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark) if name == "utf-8" else 0
    if wanted is None:
        return "utf-8", 0
    try:
        return codecs.lookup(wanted).name, 0
    except LookupError:
        raise UsageError(
            f"There is no encoding {wanted!r}.",
            expected="utf-8, utf-16, windows-1252, latin-1, shift_jis or another known name",
            hint="--encoding windows-1252",
        ) from None


def lines(
    path: Path, encoding: str | None = None, *, ends: bool = False
) -> Iterator[tuple[int, str | Undecodable]]:
    """Yield (number, line) of a text file, with line ends or without; a bad line is a fault.

    In UTF-8 one bad line spoils only itself. Raises one of ``BROKEN`` where the file breaks off.
    """
    with open_bytes(path) as file:
        name, mark = encoding_of(file, encoding)
        if name != "utf-8":
            yield from _other_lines(file, name, ends)
            return
        file.seek(mark)
        number = 0
        while raw := file.readline(LONGEST + 1):
            number += 1
            if len(raw) > LONGEST and not raw.endswith(b"\n"):
                _skip_line(file)
                yield number, Undecodable(number, f"longer than {LONGEST >> 20} MiB")
                continue
            try:
                yield number, (raw if ends else raw.rstrip(b"\r\n")).decode("utf-8")
            except UnicodeDecodeError as failure:
                yield number, Undecodable(number, f"byte {raw[failure.start]:#04x} is not UTF-8")


def _skip_line(file: IO[bytes]) -> None:
    while (raw := file.readline(CHUNK)) and not raw.endswith(b"\n"):
        pass


def _other_lines(file: IO[bytes], name: str, ends: bool) -> Iterator[tuple[int, str | Undecodable]]:
    with io.TextIOWrapper(file, encoding=name, newline="\n") as text:
        number = 0
        while True:
            try:
                line = text.readline(LONGEST + 1)
            except UnicodeError as failure:
                # Where the next line begins cannot be told any more, so this ends the file.
                yield number + 1, Undecodable(number + 1, f"is not {name}: {failure}")
                return
            if not line:
                return
            number += 1
            if len(line) > LONGEST and not line.endswith("\n"):
                yield number, Undecodable(number, f"longer than {LONGEST >> 20} MiB")
                return
            yield number, line if ends else line.rstrip("\r\n")


def chunks(path: Path, encoding: str | None = None) -> Iterator[str]:
    """Yield a file's text in pieces of about a mebibyte; raises ``Undecodable`` or ``BROKEN``."""
    with open_bytes(path) as file:
        name, mark = encoding_of(file, encoding)
        file.seek(mark)
        decoder = codecs.getincrementaldecoder(name)("strict")
        line = 1
        while True:
            raw = file.read(CHUNK)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as failure:
                at = line + failure.object[: failure.start].count(b"\n")
                byte = failure.object[failure.start]
                raise Undecodable(at, f"byte {byte:#04x} is not {name.upper()}") from None
            if text:
                yield text
            if not raw:
                return
            line += text.count("\n")


def recode_hint(path: Path) -> str:
    """Say how to read a file whose encoding is another one."""
    return f"--encoding windows-1252, if {path.name} comes from a spreadsheet on Windows"


def whole_bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked if it is a .gz; raises ``DataError``."""
    try:
        with open_bytes(path) as file:
            return file.read()
    except BROKEN as failure:
        raise DataError(f"{path} cannot be read: {failure}") from None


def whole_text(path: Path, encoding: str | None = None) -> str:
    """Return a text file; bytes that are none in its encoding are a ``DataError``."""
    try:
        return "".join(chunks(path, encoding))
    except Undecodable as wrong:
        raise DataError(f"{path}:{wrong.line}: {wrong}.", hint=recode_hint(path)) from None
    except BROKEN as failure:
        raise DataError(f"{path} cannot be read: {failure}") from None
