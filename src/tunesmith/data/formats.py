"""Row layouts: which one a data set has, and how its rows become examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.readers import Row
from tunesmith.errors import DataError
from tunesmith.types import Example, Segment

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of rows: the fields it needs and the segments it makes of them."""

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Row], tuple[Segment, ...]]


def _string(row: Row, field: str, *, may_be_empty: bool = False) -> str:
    value = row.fields.get(field)
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}"
        raise DataError(f"{row.origin}: the field {field!r} is {kind}.", expected="text")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{row.origin}: the field {field!r} is empty.", expected="text")
    return value


def _pair(prompt: str, answer: str) -> Callable[[Row], tuple[Segment, ...]]:
    def convert(row: Row) -> tuple[Segment, ...]:
        asked, answered = _string(row, prompt), _string(row, answer)
        return Segment("user", asked), Segment("assistant", answered, 1.0)

    return convert


def _turns(field: str, role_key: str, text_key: str) -> Callable[[Row], tuple[Segment, ...]]:
    def convert(row: Row) -> tuple[Segment, ...]:
        turns = row.fields.get(field)
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{row.origin}: {field!r} is no list of turns.")
        segments = []
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, Mapping):
                raise DataError(f"{row.origin}: turn {number} is {type(turn).__name__}.")
            role, text = ROLES.get(str(turn.get(role_key))), turn.get(text_key)
            if role is None:
                raise DataError(
                    f"{row.origin}: turn {number} has the role {turn.get(role_key)!r}.",
                    expected=", ".join(dict.fromkeys(ROLES.values())),
                )
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{row.origin}: turn {number} ({role}) has no text.")
            segments.append(Segment(role, text, float(role == "assistant")))
        if not any(segment.weight for segment in segments):
            raise DataError(f"{row.origin}: no turn of the assistant.")
        return tuple(segments)

    return convert


def _instruction(row: Row) -> tuple[Segment, ...]:
    asked, more = _string(row, "instruction"), row.fields.get("input")
    if more is not None and not isinstance(more, str):
        raise DataError(f"{row.origin}: the field 'input' is {type(more).__name__}.")
    output = row.fields.get("output")
    if isinstance(output, list):
        # A list of questions (Socratic data) is trained as a numbered list.
        if not output or not all(isinstance(item, str) and item.strip() for item in output):
            raise DataError(f"{row.origin}: 'output' is a list with something else than text.")
        answer = "\n".join(f"{number}. {item}" for number, item in enumerate(output, 1))
    else:
        answer = _string(row, "output")
    prompt = f"{asked}\n\n{more}" if more and more.strip() else asked
    system = row.fields.get("system")
    head = (Segment("system", system),) if isinstance(system, str) and system.strip() else ()
    return (*head, Segment("user", prompt), Segment("assistant", answer, 1.0))


def _plain(field: str) -> Callable[[Row], tuple[Segment, ...]]:
    def convert(row: Row) -> tuple[Segment, ...]:
        return (Segment(None, _string(row, field), 1.0),)

    return convert


FORMATS = (
    Format("messages", ("messages",), _turns("messages", "role", "content")),
    Format("ShareGPT conversations", ("conversations",), _turns("conversations", "from", "value")),
    Format("instruction/input/output", ("instruction", "output"), _instruction),
    Format("prompt/completion", ("prompt", "completion"), _pair("prompt", "completion")),
    Format("prompt/response", ("prompt", "response"), _pair("prompt", "response")),
    Format("question/answer", ("question", "answer"), _pair("question", "answer")),
    Format("text", ("text",), _plain("text")),
    Format("code", ("code",), _plain("code")),
)
"""In the order in which they are looked for."""


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row whose fields have the names that formats look for (``--columns``)."""
    if not columns:
        return row
    fields = dict(row.fields)
    for wanted, own in columns.items():
        if own not in fields:
            raise DataError(
                f"{row.origin}: there is no field {own!r}.",
                expected=f"one of {', '.join(map(str, row.fields))}",
            )
        fields[wanted] = fields.pop(own)
    return Row(fields, row.origin)


def detect(row: Row) -> Format:
    """Return the first format whose fields a row has."""
    for layout in FORMATS:
        if all(field in row.fields for field in layout.needs):
            return layout
    found = ", ".join(map(str, row.fields)) or "none"
    raise DataError(
        f"{row.origin}: no known layout; the fields are {found}.",
        expected="; ".join(layout.name for layout in FORMATS),
        hint="--columns prompt=YOUR_QUESTION_FIELD,completion=YOUR_ANSWER_FIELD",
    )


def to_examples(
    rows: Sequence[Row], columns: Mapping[str, str] | None = None
) -> tuple[Format, list[Example]]:
    """Convert rows, all by the layout of the first one."""
    renamed = [rename(row, columns or {}) for row in rows]
    layout = detect(renamed[0])
    return layout, [Example(layout.convert(row), row.origin) for row in renamed]
