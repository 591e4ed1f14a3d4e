"""Prompts from files: a line of text each, or rows with a question or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data import bytes_in
from tunesmith.data.chats import RowFault, conversation, text_of
from tunesmith.data.columns import renamed
from tunesmith.data.readers import Fault, read_rows
from tunesmith.errors import DataError, UsageError
from tunesmith.types import Origin, Segment

ASKED = ("prompt", "question", "instruction", "query", "problem")
"""Fields that hold what is asked, in the order in which they are looked for."""
CONVERSATIONS = {"messages": ("role", "content"), "conversations": ("from", "value")}
SYSTEM = ("system", "system_prompt")
FIELDS = (*CONVERSATIONS, *ASKED, "input", *SYSTEM)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: turns that end with the user's."""

    turns: tuple[Segment, ...]
    origin: Origin | None = None

    @property
    def text(self) -> str:
        """Return the last turn, which is the question."""
        return self.turns[-1].text

    @property
    def place(self) -> str:
        """Return how a message names it."""
        return "The prompt" if self.origin is None else str(self.origin)


def typed(text: str, what: str = "the prompt") -> Prompt:
    """Return a prompt that a person typed; ``UsageError`` where it is no text."""
    try:
        return Prompt((Segment("user", text_of(text, what)),))
    except RowFault as wrong:
        raise UsageError(f"{wrong.reason[0].upper()}{wrong.reason[1:]}.") from None


def read_prompts(
    source: str, columns: Mapping[str, str] | None = None, encoding: str | None = None
) -> list[Prompt]:
    """Read every prompt of a file; ``DataError`` names the file and line of the first fault."""
    path = Path(source)
    if path.is_file() and path.name.lower().removesuffix(".gz").endswith(".txt"):
        found = list(_lines(path, encoding))
        if not found:
            raise DataError(f"{source} holds no prompts.", expected="a prompt a line")
        return found
    prompts = []
    for row in (renamed(row, columns or {}) for row in read_rows(source, encoding=encoding)):
        try:
            prompts.append(Prompt(_turns(row.fields), row.origin))
        except RowFault as wrong:
            raise Fault(row.origin, wrong.reason, wrong.expected).error() from None
    return prompts


def _lines(path: Path, encoding: str | None) -> Iterator[Prompt]:
    for number, line in bytes_in.lines(path, encoding):
        origin = Origin(str(path), number)
        if isinstance(line, bytes_in.Undecodable):
            raise Fault(origin, str(line), hint=bytes_in.recode_hint(path)).error()
        if line.strip():
            yield Prompt((Segment("user", line.strip()),), origin)


def _turns(fields: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Return the turns up to the last question; an answer behind it is what a model is to give."""
    for name, (role, content) in CONVERSATIONS.items():
        if name in fields:
            said = conversation(fields[name], name, role, content, fields.get("tools"))
            return _with_system(fields, _up_to_question(said))
    name = next((name for name in ASKED if fields.get(name) is not None), "")
    if not name:
        known = ", ".join(map(str, fields)) or "none"
        raise RowFault(
            f"no field holds a prompt; the fields are {known}",
            f"one of {', '.join((*ASKED, *CONVERSATIONS))}, or --columns prompt=YOUR_FIELD",
        )
    if isinstance(fields[name], list):
        said = conversation(fields[name], name, tools=fields.get("tools"))
        return _with_system(fields, _up_to_question(said))
    text = text_of(fields[name], f"the field {name!r}")
    more = fields.get("input") if name == "instruction" else None
    if isinstance(more, str) and more.strip():
        text = f"{text}\n\n{more}"
    return _with_system(fields, (Segment("user", text),))


def _up_to_question(said: tuple[Segment, ...]) -> tuple[Segment, ...]:
    last = max((at for at, turn in enumerate(said) if turn.role == "user"), default=None)
    if last is None:
        raise RowFault("there is no turn of the user", "a question")
    return tuple(Segment(s.role, s.text, 0.0, s.extra) for s in said[: last + 1])


def _with_system(fields: Mapping[str, Any], turns: tuple[Segment, ...]) -> tuple[Segment, ...]:
    for name in SYSTEM:
        value = fields.get(name)
        if isinstance(value, str) and value.strip() and turns[0].role != "system":
            return (Segment("system", text_of(value, f"the field {name!r}")), *turns)
    return turns
