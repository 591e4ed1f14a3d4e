"""JSON, value by value: JSON Lines, lists, objects that hold rows, and values behind each other.

A list of any size is read element by element. Duplicate keys and NaN are faults: what one parser
reads from them another does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.data.bytes_in import CHUNK, LONGEST

_SPACE = " \t\n\r"


class BadValue(Exception):
    """Text that is no JSON; ``line`` is where in the file."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True, slots=True)
class Element:
    """One value of a JSON text: the line it begins on, and its number in a list (from 1)."""

    value: Any
    line: int
    number: int | None = None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def parse_line(text: str) -> Any:
    """Return the value of one line; raises ``ValueError`` with what is wrong and where."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as failure:
        column = failure.colno
        raise ValueError(
            f"not valid JSON at column {column} ({failure.msg}): {_excerpt(text, column - 1)}"
        ) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _excerpt(text: str, at: int) -> str:
    return repr(text[max(0, at - 20) : at + 20])


class JsonText:
    """A JSON text that arrives in pieces; ``elements`` yields its rows."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def elements(self) -> Iterator[Element]:
        """Yield the rows of the text; raises ``BadValue`` where it can be read no further.

        A list gives its elements; an object with one list of objects gives that list's; an object
        of objects gives its values with their keys as ``id``; several values behind each other
        (JSON Lines under another name) are rows each; any other object is a row.
        """
        first = self._peek()
        if first == "[":
            yield from self._list()
            self._end()
            return
        line = self._line
        try:
            value = self._value()
        except BadValue:
            if first != "{" or len(self._text) - self._at < LONGEST:
                raise
            yield from self._members()
            return
        if self._peek():
            yield Element(value, line)
            while self._peek():
                line = self._line
                yield Element(self._value(), line)
            return
        yield from _rows(value, line)

    def _list(self) -> Iterator[Element]:
        self._at += 1
        number = 0
        while True:
            if self._peek() == "]" and not number:
                break
            line, number = self._line, number + 1
            yield Element(self._value(), line, number)
            mark = self._peek()
            if mark == "]":
                break
            if mark != ",":
                raise BadValue(f"not valid JSON (expected , or ] behind item {number})", self._line)
            self._at += 1
        self._at += 1

    def _members(self) -> Iterator[Element]:
        """Read an object too large to hold, key by key, for the one list of rows in it."""
        self._at += 1
        found = False
        while True:
            self._peek()
            self._value()
            if self._peek() != ":":
                raise BadValue("not valid JSON (expected : behind a key)", self._line)
            self._at += 1
            if self._peek() == "[":
                if found:
                    raise BadValue("a second list in a large object", self._line)
                found = True
                yield from self._list()
            else:
                self._value()
            mark = self._peek()
            self._at += 1
            if mark == "}":
                self._end()
                return
            if mark != ",":
                raise BadValue("not valid JSON (expected , or } in an object)", self._line)

    def _end(self) -> None:
        if self._peek():
            raise BadValue("more text behind the end of the JSON value", self._line)

    def _peek(self) -> str:
        """Return the next character that is no white space, or '' at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in _SPACE:
                    return character
                self._line += character == "\n"
                self._at += 1
            if not self._more(CHUNK):
                return ""

    def _value(self) -> Any:
        """Read one value; text is fetched until it is whole or cannot become so."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number at the end of what is there may go on in the next piece.
                if end < len(self._text) or self._ended or self._text[end - 1] in '}]"':
                    break
                failure: Exception | None = None
            except json.JSONDecodeError as wrong:
                failure = wrong
            except (ValueError, RecursionError) as wrong:
                reason = "nested too deeply" if isinstance(wrong, RecursionError) else str(wrong)
                raise BadValue(reason, self._line) from None
            held = len(self._text) - self._at
            if held < LONGEST and self._more(max(CHUNK, held)):
                continue
            if failure is None:
                break
            assert isinstance(failure, json.JSONDecodeError)
            line = self._line + self._text.count("\n", self._at, failure.pos)
            raise BadValue(
                f"not valid JSON ({failure.msg}): {_excerpt(self._text, failure.pos)}", line
            )
        self._line += self._text.count("\n", self._at, end)
        self._at = end
        return value

    def _more(self, wanted: int) -> bool:
        """Fetch at least ``wanted`` characters, dropping what was read; False at the end."""
        if self._ended:
            return False
        held, size = [self._text[self._at :]], 0
        while size < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            held.append(piece)
            size += len(piece)
        self._text, self._at = "".join(held), 0
        return size > 0


def _rows(value: Any, line: int) -> Iterator[Element]:
    """Yield the rows that a single value holds."""
    if not isinstance(value, dict):
        yield Element(value, line)
        return
    lists = [
        held
        for held in value.values()
        if isinstance(held, list) and held and all(isinstance(item, dict) for item in held)
    ]
    if len(lists) == 1 and not _is_row(value):
        for number, item in enumerate(lists[0], 1):
            yield Element(item, line, number)
    elif len(value) > 1 and all(isinstance(held, dict) for held in value.values()):
        for number, (key, held) in enumerate(value.items(), 1):
            yield Element({"id": key, **held}, line, number)
    else:
        yield Element(value, line)


def _is_row(value: dict[str, Any]) -> bool:
    """Say whether an object with a list of objects is one conversation, and no list of rows."""
    return any(name in value for name in ("messages", "conversations", "chosen"))
