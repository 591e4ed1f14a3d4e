"""Rows to files: JSON Lines, Parquet, or a folder that ``datasets.load_from_disk`` opens.

Every writer is atomic: a reader sees the old file or all of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.storage import whole_file, whole_folder
from tunesmith.types import Example

SUFFIXES = (".jsonl", ".parquet")
_BATCH = 1000


def example_fields(example: Example) -> dict[str, Any]:
    """Return an example as a row: ``messages``, or ``text`` for plain text.

    An assistant turn whose loss does not count carries ``weight`` 0, as readers understand it.
    """
    if example.segments[0].role is None:
        return {"text": "".join(segment.text for segment in example.segments)}
    messages: list[dict[str, Any]] = []
    for segment in example.segments:
        message: dict[str, Any] = {"role": segment.role, "content": segment.text}
        if segment.role == "assistant" and segment.weight != 1:
            message["weight"] = segment.weight
        messages.append({**message, **dict(segment.extra)})
    return {"messages": messages}


def write_rows(target: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows in the format of the target's suffix and return how many there were.

    ``.jsonl`` keeps each row's own fields; ``.parquet`` and a folder (no suffix) need the same
    types in every row. The bytes of JSON Lines are the same on every machine.
    """
    path = Path(target)
    if path.suffix == ".jsonl":
        return _json_lines(path, rows)
    if path.suffix == ".parquet":
        return _parquet(path, rows)
    if path.suffix:
        raise UsageError(
            f"{str(path)!r} has no format that rows can be written in.",
            expected=f"{', '.join(SUFFIXES)}, or a name without a suffix for a datasets folder",
        )
    return _saved(path, {"train": rows})["train"]


def write_splits(target: str | Path, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write several splits: into one datasets folder, or into ``name-split.suffix`` files."""
    path = Path(target)
    if not path.suffix:
        _saved(path, splits)
        return
    for split, rows in splits.items():
        write_rows(split_path(path, split), rows)


def split_path(path: Path, split: str) -> Path:
    """Return the file that a split goes into: the target itself for train."""
    return path if split == "train" else path.with_name(f"{path.stem}-{split}{path.suffix}")


def json_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line of JSON; a lone surrogate becomes its escape."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace") + b"\n"


def _json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    number = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json_line(row))
            number += 1
    return number


def _parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    number, writer = 0, None
    with whole_file(path) as file:
        for batch in _batches(rows):
            schema = None if writer is None else writer.schema
            table = pyarrow.Table.from_pylist([dict(row) for row in batch], schema=schema)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            number += len(batch)
        if writer is not None:
            writer.close()
    return number


def _saved(path: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, int]:
    import datasets

    made = {
        name: datasets.Dataset.from_list([dict(r) for r in rows]) for name, rows in splits.items()
    }
    found = made["train"] if list(made) == ["train"] else datasets.DatasetDict(made)
    with whole_folder(path) as partial, _without_bars():
        found.save_to_disk(str(partial))
    return {name: len(rows) for name, rows in made.items()}


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the bars of another library off the terminal."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    held: list[Mapping[str, Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == _BATCH:
            yield held
            held = []
    if held:
        yield held
