"""A user's rows: how a task reads them, and their split into training and held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema_start import SplitOptions
from tunesmith.errors import DataError
from tunesmith.storage import write_json
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.data.own_rows import OwnRow, Source
    from tunesmith.data.readers import Fault
    from tunesmith.tasks.files import FileTask

REJECTS = "rows-rejects.jsonl"


class OwnRows:
    """The rows of a source as one task reads them; they may be gone through several times.

    A graded task reads the rows that are its questions, any other row is read by its layout.
    """

    def __init__(self, source: Source, task: str) -> None:
        self._source = source
        self._task = question_task(source, task)
        self.unused: list[str] = []
        if self._task is not None:
            self.read_as = self._task.problems_called
            return
        found = source.layout()
        self._layout = found.layout
        self.unused = found.unused
        self.read_as = found.layout.name if found.layout else ""

    def __iter__(self) -> Iterator[OwnRow | Fault]:
        from tunesmith.data.own_rows import by_layout, by_task
        from tunesmith.data.readers import Fault

        if self._task is not None:
            return by_task(self._source, self._task)
        if self._layout is None:  # nothing can be read, and each row says why
            return (item for item in self._source.rows() if isinstance(item, Fault))
        return by_layout(self._source, self._layout)


def question_task(source: Source, name: str) -> FileTask | None:
    """Return the task of this name where it makes questions of the first row of a source."""
    from tunesmith.data.readers import Row
    from tunesmith.tasks.files import FileTask
    from tunesmith.tasks.registry import get_task

    task = get_task(name)
    if not isinstance(task, FileTask):
        return None
    first = next((item for item in source.rows() if isinstance(item, Row)), None)
    return task if first is not None and task.reads(first.fields) else None


def split(options: SplitOptions, folder: Path) -> Path:
    """Write rows.jsonl, rows-validation.jsonl and what was refused; return the first."""
    from tunesmith.data.own_rows import Source
    from tunesmith.data.readers import Fault
    from tunesmith.data.writers import split_path, write_rows, write_splits

    source = Source(options.dataset, options.columns, options.encoding, options.split)
    rows = OwnRows(source, options.task)
    faults = [item for item in rows if isinstance(item, Fault)]
    sides = _sides(rows, options)
    kept = len(sides) + len(faults)
    if len(faults) > options.allow_refused * kept:
        first = faults[0]
        raise DataError(
            f"{len(faults):,} of {kept:,} rows cannot be used, the first: {first.origin}: "
            f"{first.reason}.",
            expected=first.expected,
            hint=first.hint or f"allow_refused: {math.ceil(1000 * len(faults) / kept) / 1000:g}",
        )
    target = folder / "rows.jsonl"
    if sides.count(1):
        parts = {"train": _side(rows, sides, 0), "validation": _side(rows, sides, 1)}
        made = [sides.count(0), sides.count(1)]
    else:
        begin, ends = _document(rows, options)
        parts = {"train": iter([begin]), "validation": iter(ends)}
        made = [1, len(ends)]
    write_splits(target, parts)
    counts = {"train": made[0], "held out": made[1], "refused": len(faults)}
    if faults:
        write_rows(folder / REJECTS, (_reject(fault) for fault in faults))
        console.warn(f"{len(faults):,} rows are refused: {folder / REJECTS}")
    console.say(
        f"{options.dataset}: {made[0]:,} rows to train on, {made[1]:,} held out "
        f"({split_path(target, 'validation')}), read as {rows.read_as}."
    )
    write_json(folder / "manifest.json", {"counts": {"rows": counts}})
    return target


def _sides(rows: OwnRows, options: SplitOptions) -> bytes:
    """Return 1 for each readable row that is held out; equal prompts are on one side."""
    from tunesmith.data.own_rows import OwnRow
    from tunesmith.data.prepare import on_held_side, prompt_key

    keys = (prompt_key(item.examples[0]) for item in rows if isinstance(item, OwnRow))
    found = on_held_side(keys, options.validation, options.seed)
    if not found:
        raise DataError(f"{options.dataset} holds no usable row.", expected="at least two rows")
    return found


def _side(rows: OwnRows, sides: bytes, wanted: int) -> Iterator[Mapping[str, Any]]:
    from tunesmith.data.own_rows import OwnRow

    readable = (item for item in rows if isinstance(item, OwnRow))
    for item, side in zip(readable, sides, strict=True):
        if side == wanted:
            yield {name: _as_json(value) for name, value in item.fields.items()}


def _document(rows: OwnRows, options: SplitOptions) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return a single text without its end, and the parts of its end."""
    from tunesmith.data.own_rows import OwnRow
    from tunesmith.data.prepare import split_document

    examples = [e for item in rows if isinstance(item, OwnRow) for e in item.examples]
    if len(examples) == 1 and examples[0].segments[0].role is None:
        [begin], ends = split_document(examples[0], options.validation)
        if ends:
            return {"text": begin.segments[0].text}, [{"text": e.segments[0].text} for e in ends]
    raise DataError(
        f"{options.dataset}: nothing can be held out, since its {len(examples):,} rows have one "
        "and the same prompt."
        if len(examples) > 1
        else f"{options.dataset}: nothing can be held out of a single row.",
        expected="rows with at least two different prompts, or a text of several lines",
    )


def _reject(fault: Fault) -> dict[str, Any]:
    return {"source": fault.origin.source, "line": fault.origin.line, "reason": fault.reason}


def _as_json(value: Any) -> Any:
    """Return a value that JSON knows; dates and the like become text, NaN becomes nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _as_json(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inside) for inside in value]
    return str(value)
