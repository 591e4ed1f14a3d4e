"""Rows from files, saved folders and hubs; every fault names the file and the line.

``scan`` yields each row or what is wrong with it, so that a whole file can be judged; ``read_rows``
stops at the first fault. Files are read piece by piece: memory does not grow with them.
"""

from __future__ import annotations

import csv
import difflib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data import bytes_in
from tunesmith.data.json_in import BadValue, JsonText, parse_line
from tunesmith.errors import DataError
from tunesmith.storage import storage_errors
from tunesmith.types import Origin

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md")
END_OF_TEXT = "<|endoftext|>"
"""A line of its own that separates documents of a text file."""
_SAMPLED = ("question", "gold", "response")
"""An array [question, answer, reasoning] as a row: the reasoning is what is trained."""
_DELIMITERS = ",;\t|"
_BLANK = " \t\r\n"
"""White space of JSON: a line of anything else, such as U+2028, is no blank line."""


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row and where it came from."""

    fields: dict[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a source that is no row."""

    origin: Origin
    reason: str
    expected: str = ""
    hint: str = ""
    rest: bool = False
    """Whether nothing behind it can be read."""

    def error(self, hint: str = "") -> DataError:
        """Return it as the error that ends a command; ``hint`` where it has none of its own."""
        found = f"{self.origin}: {self.reason}."
        return DataError(found, expected=self.expected, hint=self.hint or hint)


def read_rows(
    source: str,
    *,
    split: str = "train",
    max_rows: int | None = None,
    encoding: str | None = None,
) -> Iterator[Row]:
    """Yield the rows of a source in order; raises ``DataError`` for the first fault, or for none.

    A source is a file (JSON Lines, JSON, CSV, Parquet, Arrow, text, Markdown; each also as .gz), a
    folder that ``save_to_disk`` wrote, or a hub name. A text file is one document, or several
    separated by a line ``<|endoftext|>``.
    """
    number = 0
    for found in islice(scan(source, split=split, encoding=encoding), max_rows):
        if isinstance(found, Fault):
            raise found.error()
        number += 1
        yield found
    if not number:
        raise DataError(f"{source} holds no rows.", expected="at least one row")


def scan(
    source: str, *, split: str = "train", encoding: str | None = None
) -> Iterator[Row | Fault]:
    """Yield every row of a source, and a ``Fault`` for each that cannot be read.

    Raises ``DataError`` only for a source that cannot be opened at all.
    """
    path = Path(source)
    with storage_errors(path, "read"):
        there = path.exists()
    if path.is_dir():
        return _saved(path, split)
    if not there:
        from tunesmith.data.named_sets import find, open_named

        if (named := find(source)) is not None:
            return open_named(named, split)
        if source.count("/") == 1 and not _is_file_name(path) and not path.parent.is_dir():
            return _hub(source, split)
        raise missing(path)
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{source} has no known format ({suffix or 'no suffix'}).",
            expected=", ".join(SUFFIXES) + ", each also .gz, or a saved datasets folder",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{source} is empty.", expected="at least one row")
    if suffix == ".parquet":
        return _parquet(path)
    if suffix == ".arrow":
        return _arrow_file(path)
    reader = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv}
    return _whole(path, reader.get(suffix, _documents)(path, encoding))


def _is_file_name(path: Path) -> bool:
    """Say whether a name ends as data files do; ``org/data-v1.5`` does not."""
    return path.suffix.lower() in (*SUFFIXES, ".gz")


def _whole(path: Path, found: Iterator[Row | Fault]) -> Iterator[Row | Fault]:
    """Turn what breaks off in the middle of a file into a last fault."""
    line = 0
    try:
        for item in found:
            line = item.origin.line or line
            yield item
    except bytes_in.Undecodable as wrong:
        hint = bytes_in.recode_hint(path)
        yield Fault(Origin(str(path), wrong.line), str(wrong), hint=hint, rest=True)
    except bytes_in.BROKEN as failure:
        reason = f"cannot be read any further ({str(failure) or type(failure).__name__})"
        yield Fault(Origin(str(path), line + 1), reason, "a whole copy of the file", rest=True)


def _json_lines(path: Path, encoding: str | None) -> Iterator[Row | Fault]:
    for number, line in bytes_in.lines(path, encoding):
        origin = Origin(str(path), number)
        if isinstance(line, bytes_in.Undecodable):
            yield Fault(origin, str(line), hint=bytes_in.recode_hint(path))
        elif line.strip(_BLANK):
            try:
                yield _object(parse_line(line), origin)
            except ValueError as wrong:
                yield Fault(origin, str(wrong), "one JSON object a line")


def _json(path: Path, encoding: str | None) -> Iterator[Row | Fault]:
    text = JsonText(bytes_in.chunks(path, encoding))
    try:
        for found in text.elements():
            item = None if found.number is None else f"item {found.number}"
            yield _object(found.value, Origin(str(path), found.line, item))
    except BadValue as wrong:
        wanted = "a list of objects, or one JSON object a line (then name the file .jsonl)"
        yield Fault(Origin(str(path), wrong.line), wrong.reason, wanted, rest=True)


def _object(fields: Any, origin: Origin) -> Row | Fault:
    if _is_sampled(fields):
        fields = dict(zip(_SAMPLED, fields, strict=True))
    if not isinstance(fields, dict):
        return Fault(
            origin,
            f"{type(fields).__name__}, not an object",
            'an object such as {"prompt": "…", "completion": "…"}',
        )
    return Row(fields, origin)


def _is_sampled(found: Any) -> bool:
    """Say whether this is what ``tunesmith sample --output F.json`` writes for a path."""
    if not isinstance(found, list) or len(found) != len(_SAMPLED):
        return False
    question, answer, reasoning = found
    texts = isinstance(question, str) and isinstance(reasoning, str)
    return texts and isinstance(answer, str | int | float)


def _csv(path: Path, encoding: str | None) -> Iterator[Row | Fault]:
    csv.field_size_limit(min(bytes_in.LONGEST, sys.maxsize))

    def lines() -> Iterator[str]:
        for _, line in bytes_in.lines(path, encoding, ends=True):
            if isinstance(line, bytes_in.Undecodable):
                raise line  # a cell may go on over lines, so what follows cannot be trusted
            yield line

    numbered = lines()
    first = next(numbered, "")
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(_before(first, numbered), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        origin = Origin(str(path), reader.line_num + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as wrong:
            # Behind an open quote nothing can be trusted.
            wanted = "quotes that close; a quote inside a cell is written twice"
            yield Fault(origin, str(wrong), wanted, rest=True)
            return
        if header is None:
            header = [name.strip() for name in cells]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                reason = f"the column {twice[0]!r} stands twice in the header"
                yield Fault(origin, reason, "one name for each column", rest=True)
                return
        elif len(cells) == len(header):
            if any(cell.strip() for cell in cells):
                yield Row(dict(zip(header, cells, strict=True)), origin)
        elif any(cell.strip() for cell in cells):
            reason = f"{len(cells)} cells, but {len(header)} columns"
            yield Fault(origin, reason, "cells with a separator or line break in them in quotes")


def _before(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _parquet(path: Path) -> Iterator[Row | Fault]:
    import pyarrow.parquet

    return _batches(path, "Parquet", lambda: pyarrow.parquet.ParquetFile(path).iter_batches(1000))


def _arrow_file(path: Path) -> Iterator[Row | Fault]:
    import pyarrow

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(path)) as file:
            try:
                yield from pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(file)
                yield from (table.get_batch(at) for at in range(table.num_record_batches))

    return _batches(path, "Arrow", batches)


def _batches(path: Path, kind: str, batches: Callable[[], Iterator[Any]]) -> Iterator[Row | Fault]:
    """Yield the rows of a columnar file; where it is damaged the rest is one fault."""
    import pyarrow

    number = 0
    try:
        for batch in batches():
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, Origin(str(path), number))
    except (pyarrow.ArrowException, OSError, ValueError) as failure:
        said = str(failure).split("\n")[0]
        reason = f"is no readable {kind} file ({said})"
        yield Fault(Origin(str(path), number + 1), reason, "a whole copy of the file", rest=True)


def _documents(path: Path, encoding: str | None) -> Iterator[Row | Fault]:
    start, number = 1, 0
    held: list[str] = []
    for number, line in bytes_in.lines(path, encoding):
        if isinstance(line, bytes_in.Undecodable):
            yield Fault(Origin(str(path), number), str(line), hint=bytes_in.recode_hint(path))
        elif line.strip() == END_OF_TEXT:
            yield from _document(held, path, start)
            held, start = [], number + 1
        else:
            held.append(line)
    yield from _document(held, path, start)


def _document(lines: list[str], path: Path, start: int) -> Iterator[Row]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield Row({"text": text}, Origin(str(path), start))


def _saved(path: Path, split: str) -> Iterator[Row | Fault]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as failure:  # datasets raises many kinds, all about this folder
        raise DataError(
            f"{path} is a folder, but no saved data set: {str(failure).splitlines()[0]}",
            expected="a folder written by save_to_disk, or a file in it",
        ) from None
    return _arrow(found, str(path), split)


def _hub(source: str, split: str) -> Iterator[Row | Fault]:
    from tunesmith.data.hub import load_split

    name, _, config = source.partition("@")
    return _arrow(load_split(name, config or None, split, called=source), source, split)


def _arrow(found: Any, source: str, split: str) -> Iterator[Row | Fault]:
    if hasattr(found, "keys"):
        if split not in found:
            raise DataError(
                f"{source} has no split {split!r}.",
                expected=", ".join(found),
                hint=f"--dataset-train-split {next(iter(found))}",
            )
        found = found[split]
    for number, fields in enumerate(found, 1):
        yield Row(dict(fields), Origin(f"{source}[{split}]", number))


def missing(path: Path) -> DataError:
    """Return the error for a file that is not there; it names the nearest one beside it."""
    folder = path.parent
    # By their stems: every .jsonl resembles every other one.
    names = (
        {p.name.split(".")[0]: p.name for p in folder.iterdir() if p.exists()}
        if folder.is_dir()
        else {}
    )
    close = difflib.get_close_matches(path.name.split(".")[0], names, 1)
    hint = f"{folder / names[close[0]]}" if close else ""
    return DataError(f"There is no file {str(path)!r}.", expected="a file or folder", hint=hint)
