"""Rows from files, saved folders and hubs; every fault names the file and the line."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.types import Origin

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".md")
END_OF_TEXT = "<|endoftext|>"
"""A line of its own that separates documents of a text file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row and where it came from."""

    fields: dict[str, Any]
    origin: Origin


def read_rows(source: str, *, split: str = "train", max_rows: int | None = None) -> Iterator[Row]:
    """Yield the rows of a file, of a saved ``datasets`` folder or of a hub data set, in order.

    Formats: JSON Lines, JSON (a list, or an object with one list), CSV, Parquet, text and
    Markdown, each also as .gz. A text file is one document, or several separated by a line
    ``<|endoftext|>``. Raises ``DataError`` for the first fault.
    """
    rows = islice(_open(source, split), max_rows)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} holds no rows.", expected="at least one row")
    yield first
    yield from rows


def _open(source: str, split: str) -> Iterator[Row]:
    path = Path(source)
    if path.is_dir():
        return _saved(path, split)
    if not path.exists():
        if source.count("/") == 1 and not Path(source).suffix and not Path(source).parent.is_dir():
            return _hub(source, split)
        raise missing(path)
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{source} has no known format ({suffix or 'no suffix'}).",
            expected=", ".join(SUFFIXES) + ", each also .gz, or a saved datasets folder",
        )
    if suffix == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{source} is empty.", expected="at least one row")
    if suffix == ".jsonl":
        return _json_lines(text, source)
    if suffix == ".json":
        return _json(text, source)
    if suffix == ".csv":
        return _csv(text, source)
    return _documents(text, source)


def read_text(path: Path) -> str:
    """Return a text file, unpacked if it is a .gz; bytes that are not UTF-8 are a fault."""
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = raw[: failure.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: byte {raw[failure.start]:#04x} is not UTF-8.",
            hint=f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed-{path.name}",
        ) from None


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked if it is a .gz."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.name.endswith(".gz") else raw
    except (OSError, EOFError, zlib.error) as failure:
        raise DataError(f"{path} cannot be read: {failure}") from None


def _json_lines(text: str, source: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as failure:
            column = getattr(failure, "colno", "?")
            raise DataError(
                f"{source}:{number}: not valid JSON at column {column} "
                f"({getattr(failure, 'msg', failure)}): {_excerpt(line, column)}",
                expected="one JSON object a line",
            ) from None
        yield _object(fields, source, number)


def _json(text: str, source: str) -> Iterator[Row]:
    try:
        content = json.loads(text)
    except ValueError as failure:
        first = text.lstrip().split("\n", 1)[0]
        try:
            json.loads(first)
        except ValueError:
            line = getattr(failure, "lineno", "?")
            raise DataError(
                f"{source}:{line}: not valid JSON ({getattr(failure, 'msg', failure)}).",
                expected="a list of objects, or one JSON object a line",
            ) from None
        yield from _json_lines(text, source)  # JSON Lines under another name
        return
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else [content]
    if not isinstance(content, list):
        raise DataError(f"{source} holds {type(content).__name__}.", expected="a list of objects")
    for number, fields in enumerate(content, 1):
        yield _object(fields, source, number)


def _object(fields: Any, source: str, number: int) -> Row:
    if not isinstance(fields, dict):
        raise DataError(
            f"{source}:{number}: {type(fields).__name__}, not an object.",
            expected='an object such as {"prompt": "…", "completion": "…"}',
        )
    return Row(fields, Origin(source, number))


def _csv(text: str, source: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{source}:{reader.line_num}: {len(cells)} cells, but {len(header)} columns.",
                    hint="put cells that hold a comma or a line break into quotes",
                )
            yield Row(dict(zip(header, cells, strict=True)), Origin(source, reader.line_num))
    except csv.Error as failure:
        raise DataError(f"{source}:{reader.line_num}: {failure}.") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(1000):
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, Origin(str(path), number))
    except (pyarrow.ArrowException, OSError) as failure:
        raise DataError(f"{path} is no readable Parquet file: {failure}") from None


def _documents(text: str, source: str) -> Iterator[Row]:
    start, lines = 1, text.splitlines(keepends=True)
    held: list[str] = []
    for number, line in enumerate([*lines, END_OF_TEXT], 1):
        if line.strip() == END_OF_TEXT:
            document = "".join(held).strip("\n")
            if document.strip():
                yield Row({"text": document}, Origin(source, start))
            held, start = [], number + 1
        else:
            held.append(line)


def _saved(path: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as failure:  # datasets raises many kinds, all about this folder
        raise DataError(
            f"{path} is a folder, but no saved data set: {str(failure).splitlines()[0]}",
            expected="a folder written by save_to_disk, or a file in it",
        ) from None
    return _arrow(found, str(path), split)


def _hub(name: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as failure:  # no network, no such name, a gate: the hub says which
        raise DataError(
            f"There is no file {name!r}, and the hub data set {name!r} cannot be loaded: "
            f"{str(failure).splitlines()[0]}",
            hint="a path to a local file, or a machine with a network",
        ) from None
    return _arrow(found, name, split)


def _arrow(found: Any, source: str, split: str) -> Iterator[Row]:
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
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1)
    hint = f"{folder / close[0]}" if close else ""
    return DataError(f"There is no file {str(path)!r}.", expected="a file or folder", hint=hint)


def _excerpt(line: str, column: Any) -> str:
    at = column - 1 if isinstance(column, int) else 0
    return repr(line[max(0, at - 20) : at + 20])
