"""Row layouts: which one a data set has, and how its rows become examples.

A new layout is one row of ``FORMATS`` and the function that reads it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from tunesmith.data.chats import RowFault, conversation, text_of
from tunesmith.data.columns import rename
from tunesmith.data.readers import Fault, Row
from tunesmith.errors import DataError
from tunesmith.types import Example, Meta, Segment

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """What a layout makes of a row: an example that does not know its origin yet."""

    segments: tuple[Segment, ...]
    meta: Meta = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of rows: the fields it needs, those it may use, and what it makes of them."""

    name: str
    needs: tuple[str, ...]
    convert: Callable[[Fields], Sequence[Draft]]
    may_use: tuple[str, ...] = ()

    def unused(self, fields: Fields) -> list[str]:
        """Return the fields of a row that this layout does not look at."""
        return [name for name in fields if name not in (*self.needs, *self.may_use)]


_SYSTEM = ("system", "system_prompt")


def _system(fields: Fields) -> tuple[Segment, ...]:
    for name in _SYSTEM:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return (Segment("system", text_of(value, f"the field {name!r}")),)
    return ()


def _get(fields: Fields, name: str) -> str:
    return text_of(fields.get(name), f"the field {name!r}")


def _messages(turns: str, role_key: str, text_key: str) -> Callable[[Fields], Sequence[Draft]]:
    def convert(fields: Fields) -> Sequence[Draft]:
        segments = conversation(fields.get(turns), turns, role_key, text_key, fields.get("tools"))
        if segments[0].role != "system":
            segments = (*_system(fields), *segments)
        return [Draft(_with_an_answer(segments))]

    return convert


def _with_an_answer(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if not any(segment.role == "assistant" for segment in segments):
        raise RowFault("there is no turn of the assistant", "at least one answer")
    if not any(segment.weight for segment in segments):
        raise RowFault("no turn of the assistant is to be trained", "one without weight 0")
    return segments


def _pair(prompt: str, answer: str) -> Format:
    def convert(fields: Fields) -> Sequence[Draft]:
        asked, answered = fields.get(prompt), fields.get(answer)
        if isinstance(asked, list) and isinstance(answered, list):
            # A conversation in two halves: only the second is trained.
            context = _context(conversation(asked, prompt, tools=fields.get("tools")))
            rest = conversation(answered, answer, tools=fields.get("tools"))
            return [Draft(_with_an_answer((*context, *rest)))]
        pair = (
            Segment("user", _get(fields, prompt)),
            Segment("assistant", _get(fields, answer), 1.0),
        )
        return [Draft((*_system(fields), *pair))]

    return Format(f"{prompt}/{answer}", (prompt, answer), convert, (*_SYSTEM, "tools"))


def _context(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    return tuple(Segment(s.role, s.text, 0.0, s.extra) for s in segments)


def _instruction(fields: Fields) -> Sequence[Draft]:
    asked, more = _get(fields, "instruction"), fields.get("input")
    if more is not None:
        more = text_of(more, "the field 'input'", may_be_empty=True)
    prompt = f"{asked}\n\n{more}" if more and more.strip() else asked
    turns: list[Segment] = []
    for number, past in enumerate(fields.get("history") or [], 1):
        if not isinstance(past, list | tuple) or len(past) != 2:
            raise RowFault(f"entry {number} of 'history' is no pair", "[question, answer]")
        turns.append(Segment("user", text_of(past[0], f"question {number} of 'history'")))
        turns.append(Segment("assistant", text_of(past[1], f"answer {number} of 'history'"), 1.0))
    answer = Segment("assistant", _output(fields), 1.0)
    return [Draft((*_system(fields), *turns, Segment("user", prompt), answer))]


def _output(fields: Fields) -> str:
    output = fields.get("output")
    if not isinstance(output, list):
        return _get(fields, "output")
    # A list of questions (Socratic data) is trained as a numbered list.
    if not output:
        raise RowFault("the field 'output' is an empty list", "texts")
    items = [text_of(item, f"item {n} of 'output'") for n, item in enumerate(output, 1)]
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def _instances(fields: Fields) -> Sequence[Draft]:
    listed = fields.get("instances")
    objects = isinstance(listed, list) and all(isinstance(one, Mapping) for one in listed)
    if not objects or not listed:
        what = "an empty list" if listed == [] else "no list of objects"
        raise RowFault(f"the field 'instances' is {what}", "input and output each")
    whole = {name: value for name, value in fields.items() if name != "instances"}
    return [draft for one in listed for draft in _instruction({**whole, **one})]


def _preference(fields: Fields) -> Sequence[Draft]:
    chosen, rejected = fields.get("chosen"), fields.get("rejected")
    meta = {"rejected": rejected}
    tools = fields.get("tools")
    if "prompt" in fields:
        asked = fields["prompt"]
        context = (
            _context(conversation(asked, "prompt", tools=tools))
            if isinstance(asked, list)
            else (*_system(fields), Segment("user", _get(fields, "prompt")))
        )
        if isinstance(chosen, list):
            answer = conversation(chosen, "chosen", tools=tools)
            # Some sets repeat the prompt in front of both answers.
            if [s.text for s in answer[: len(context)]] == [s.text for s in context]:
                answer = answer[len(context) :]
        else:
            answer = (Segment("assistant", _get(fields, "chosen"), 1.0),)
        return [Draft(_with_an_answer((*context, *answer)), meta)]
    turns = conversation(chosen, "chosen", tools=tools)
    other = conversation(rejected, "rejected", tools=tools)
    same = next(
        (n for n, (a, b) in enumerate(zip(turns, other, strict=False)) if a.text != b.text),
        min(len(turns), len(other)),
    )
    return [Draft(_with_an_answer((*_context(turns[:same]), *turns[same:])), meta)]


def _preferred(fields: Fields) -> Sequence[Draft]:
    asked = fields.get("input")
    if not isinstance(asked, Mapping):
        raise RowFault("the field 'input' is no object", "an object with messages")
    context = _context(conversation(asked.get("messages"), "messages", tools=asked.get("tools")))
    answer = conversation(fields.get("preferred_output"), "preferred_output")
    meta = {"rejected": fields.get("non_preferred_output")}
    return [Draft(_with_an_answer((*context, *answer)), meta)]


def _plain(name: str) -> Format:
    def convert(fields: Fields) -> Sequence[Draft]:
        return [Draft((Segment(None, _get(fields, name), 1.0),))]

    return Format(name, (name,), convert)


_RAFT = ("instruction", "output", "oracle_context")
_RAFT_NOTES = (
    "num_distractors",
    "has_distractors",
    "question",
    "answer",
    "document",
    "chunk",
    "mode",
    "oracle_position",
    "answer_in_document",
)
"""What ``tunesmith data raft`` writes beside what is trained."""
FORMATS = (
    Format(
        "messages", ("messages",), _messages("messages", "role", "content"), ("tools", *_SYSTEM)
    ),
    Format(
        "ShareGPT conversations",
        ("conversations",),
        _messages("conversations", "from", "value"),
        ("tools", *_SYSTEM),
    ),
    Format("preference pairs", ("chosen", "rejected"), _preference, ("prompt", "tools", *_SYSTEM)),
    Format("preferred output", ("input", "preferred_output", "non_preferred_output"), _preferred),
    Format("RAFT", _RAFT, _instruction, (*_RAFT_NOTES, *_SYSTEM)),
    Format("instructions with instances", ("instruction", "instances"), _instances),
    Format(
        "instruction/input/output",
        ("instruction", "output"),
        _instruction,
        ("input", "history", *_SYSTEM),
    ),
    _pair("prompt", "completion"),
    _pair("prompt", "response"),
    _pair("prompt", "canonical_solution"),
    _pair("question", "answer"),
    _pair("question", "response"),
    _pair("instruction", "response"),
    _pair("query", "response"),
    _pair("problem", "solution"),
    _pair("input", "output"),
    _pair("input", "target"),
    _pair("text", "code"),
    _plain("text"),
    _plain("code"),
    _plain("content"),
)
"""In the order in which they are looked for."""

_FOREIGN = (
    (("paragraphs",), "tunesmith data raft --documents FILE makes rows of passages with questions"),
    (("QUESTION", "CONTEXTS"), "tunesmith data raft --documents FILE makes rows of it"),
    (("turns",), "these are questions without answers; nothing can be trained on them"),
)
"""Fields of layouts that are no training rows, and what to do with them."""


def detect(row: Row) -> Format:
    """Return the first format whose fields a row has."""
    for layout in FORMATS:
        if all(name in row.fields for name in layout.needs):
            return layout
    found = ", ".join(map(str, row.fields)) or "none"
    foreign = [hint for names, hint in _FOREIGN if all(name in row.fields for name in names)]
    raise DataError(
        f"{row.origin}: no known layout; the fields are {found}.",
        expected="; ".join(layout.name for layout in FORMATS),
        hint=foreign[0] if foreign else _columns_hint(row.fields),
    )


def _columns_hint(fields: Fields) -> str:
    """Name the first two fields with text, which are question and answer more often than not."""
    texts = [name for name, value in fields.items() if isinstance(value, str) and value.strip()]
    asked, answered = texts[:2] if len(texts) > 1 else ("YOUR_QUESTION", "YOUR_ANSWER")
    return f"--columns prompt={asked},completion={answered}"


_LOOK_AHEAD = 100_000


class Examples:
    """The examples of a source, one by one, all read by the layout of its first row.

    ``layout`` and ``unused`` (fields that are not looked at) are known before the first example.
    Raises ``DataError`` if no row has a known layout.
    """

    def __init__(
        self, found: Iterable[Row | Fault], columns: Mapping[str, str] | None = None
    ) -> None:
        self._columns = columns or {}
        self._rest = iter(found)
        self._head: list[Row | Fault] = []
        self.layout: Format | None = None
        self.unused: list[str] = []
        for item in self._rest:
            self._head.append(item)
            if isinstance(item, Row):
                first = self._renamed(item)
                if isinstance(first, Row):
                    self.layout = self._detected(first)
                    self.unused = self.layout.unused(first.fields)
                    break

    def _detected(self, row: Row) -> Format:
        try:
            return detect(row)
        except DataError:
            # A file that breaks off is the deeper trouble: say that first.
            for item in islice(self._rest, _LOOK_AHEAD):
                if isinstance(item, Fault) and item.rest:
                    raise item.error() from None
            self._check_names()
            raise

    def _check_names(self) -> None:
        """Name a column that no layout reads; ``DataError`` where there is one."""
        known = sorted({name for one in FORMATS for name in (*one.needs, *one.may_use)})
        for wanted, own in self._columns.items():
            if wanted not in known:
                close = difflib.get_close_matches(wanted, known, 1)
                raise DataError(
                    f"--columns names {wanted!r}, which no layout reads.",
                    expected="names of a layout, such as prompt and completion",
                    hint=f"--columns {close[0]}={own}" if close else "",
                ) from None

    def __iter__(self) -> Iterator[Example | Fault]:
        for item in chain(self._head, self._rest):
            row = self._renamed(item) if isinstance(item, Row) else item
            if isinstance(row, Fault) or self.layout is None:
                assert isinstance(row, Fault)
                yield row
                continue
            try:
                drafts = self.layout.convert(row.fields)
            except RowFault as wrong:
                yield Fault(row.origin, wrong.reason, wrong.expected)
                continue
            for draft in drafts:
                yield Example(draft.segments, row.origin, draft.meta)

    def _renamed(self, row: Row) -> Row | Fault:
        try:
            return Row(dict(rename(row.fields, self._columns)), row.origin)
        except RowFault as wrong:
            return Fault(row.origin, wrong.reason, wrong.expected)


def to_examples(
    rows: Iterable[Row | Fault], columns: Mapping[str, str] | None = None
) -> tuple[Format, list[Example]]:
    """Convert rows by the layout of the first one; raises ``DataError`` for the first fault."""
    found = Examples(rows, columns)
    examples: list[Example] = []
    for item in found:
        if isinstance(item, Fault):
            raise item.error()
        examples.append(item)
    assert found.layout is not None
    return found.layout, examples
