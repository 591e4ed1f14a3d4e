"""A user's rows as a task reads them, each beside the fields that it was read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.chats import RowFault
from tunesmith.data.columns import rename
from tunesmith.data.formats import Examples, Format
from tunesmith.data.readers import Fault, Row, scan
from tunesmith.errors import DataError
from tunesmith.types import Example

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OwnRow:
    """One row: its fields under the names that are looked for, and what is trained of it."""

    fields: Fields
    examples: tuple[Example, ...]


@dataclass(slots=True)
class Source:
    """Where rows lie and how they are read."""

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    split: str = "train"

    def rows(self) -> Iterator[Row | Fault]:
        """Yield every row under the names of ``columns``, and what is none."""
        for item in scan(self.name, split=self.split, encoding=self.encoding):
            if isinstance(item, Fault):
                yield item
                continue
            try:
                yield Row(dict(rename(item.fields, self.columns)), item.origin)
            except RowFault as wrong:
                yield Fault(item.origin, wrong.reason, wrong.expected)

    def layout(self) -> Examples:
        """Return the layout of the first row; ``DataError`` names the fields of an unknown one."""
        found = scan(self.name, split=self.split, encoding=self.encoding)
        return Examples(found, self.columns)


def by_layout(source: Source, layout: Format) -> Iterator[OwnRow | Fault]:
    """Yield the rows of a source as a layout reads them."""
    for item in source.rows():
        if isinstance(item, Fault):
            yield item
            continue
        try:
            drafts = layout.convert(item.fields)
        except RowFault as wrong:
            yield Fault(item.origin, wrong.reason, wrong.expected)
            continue
        made = tuple(Example(draft.segments, item.origin, draft.meta) for draft in drafts)
        yield OwnRow(item.fields, made)


def by_task(source: Source, task: Any) -> Iterator[OwnRow | Fault]:
    """Yield the rows of a source as a graded task reads them (a ``tasks.files.FileTask``)."""
    for item in source.rows():
        if isinstance(item, Fault):
            yield item
            continue
        try:
            problem = task.problem(item)
        except DataError as wrong:
            reason = wrong.found.removeprefix(f"{item.origin}: ").removesuffix(".")
            yield Fault(item.origin, reason, wrong.expected, wrong.hint)
            continue
        example = task.answer_example(problem)
        yield OwnRow(item.fields, (replace(example, origin=item.origin),))
