"""Conversations: lists of turns in the spellings of the field, turned into segments.

Besides roles and texts a turn may carry ``tool_calls``, ``reasoning_content`` (folded into the
text as a ``<think>`` block, the form that templates know), and on an assistant's turn ``weight``
or ``train``: how much its loss counts. Tools of a row stand in the ``extra`` of each of its
segments under ``TOOLS``, since every render needs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.types import Segment

TOOLS = "tools"
ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""What sources call the four roles."""
_CARRIED = ("name", "tool_call_id")


class RowFault(Exception):
    """What is wrong with a row: the field (and turn), and the reason."""

    def __init__(self, reason: str, expected: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.expected = expected


def text_of(value: Any, what: str, *, may_be_empty: bool = False) -> str:
    """Return a value that has to be text; raises ``RowFault`` naming ``what`` it is of."""
    if not isinstance(value, str):
        kind = "missing" if value is None else type(value).__name__
        inside = "text, or --columns with a path into it, such as prompt=question.text"
        raise RowFault(f"{what} is {kind}", inside if isinstance(value, Mapping) else "text")
    if not value.strip() and not may_be_empty:
        raise RowFault(f"{what} is empty", "text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as failure:
            broken = value[failure.start]
            raise RowFault(f"{what} holds a lone surrogate {broken!a}", "text") from None
    return value


def conversation(
    turns: Any, field: str, role_key: str = "role", text_key: str = "content", tools: Any = None
) -> tuple[Segment, ...]:
    """Return a list of turns as segments; answers count unless their turn says otherwise."""
    if not isinstance(turns, list) or not turns:
        raise RowFault(f"{field!r} is no list of turns", "a list with at least one turn")
    segments = [_turn(turn, n, role_key, text_key) for n, turn in enumerate(turns, 1)]
    listed = _tools(tools)
    if listed:
        segments = [
            Segment(s.role, s.text, s.weight, {**dict(s.extra), TOOLS: listed}) for s in segments
        ]
    return tuple(segments)


def _turn(turn: Any, number: int, role_key: str, text_key: str) -> Segment:
    if not isinstance(turn, Mapping):
        raise RowFault(f"turn {number} is {type(turn).__name__}", "an object with role and text")
    said = turn.get(role_key)
    role = ROLES.get(str(said).strip().lower())
    if role is None:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        raise RowFault(f"turn {number} has the role {said!r}", known)
    what = f"the text of turn {number} ({role})"
    text = _content(turn.get(text_key), what)
    calls = _calls(turn.get("tool_calls"), number)
    if str(said).lower() == "function_call" and not calls:
        calls = _written_calls(text)
        text = "" if calls else text
    text = text_of(text, what, may_be_empty=bool(calls))
    extra: dict[str, Any] = {key: turn[key] for key in _CARRIED if turn.get(key) is not None}
    if calls:
        extra["tool_calls"] = calls
    thought = turn.get("reasoning_content") or turn.get("thinking")
    if thought and role == "assistant":
        text = f"<think>\n{text_of(thought, f'the reasoning of turn {number}')}\n</think>\n\n{text}"
    return Segment(role, text, _weight(turn, role, number), extra)


def _content(value: Any, what: str) -> Any:
    """Return a turn's text; a list of parts is joined if all of them are text."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part, Mapping):
            raise RowFault(f"{what} holds a part of type {kind!r}", "parts of type text only")
        parts.append(text_of(part.get("text"), what, may_be_empty=True))
    return "".join(parts)


def _weight(turn: Mapping[str, Any], role: str, number: int) -> float:
    given = [key for key in ("weight", "train", "loss") if turn.get(key) is not None]
    if not given:
        return float(role == "assistant")
    value = turn[given[0]]
    if isinstance(value, bool) or (isinstance(value, int | float) and 0 <= value <= 1):
        if value and role != "assistant":
            raise RowFault(
                f"turn {number} ({role}) has {given[0]} {value!r}", "only answers are trained"
            )
        return float(value)
    raise RowFault(f"turn {number}: {given[0]} is {value!r}", "a number from 0 to 1, or a boolean")


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as an object, the form that templates take."""
    if value is None or value == []:
        return []
    if not isinstance(value, list):
        raise RowFault(f"tool_calls of turn {number} is {type(value).__name__}", "a list")
    calls = []
    for call in value:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowFault(f"a tool call of turn {number} names no function", "function.name")
        made: dict[str, Any] = {
            "type": "function",
            "function": {
                "name": function["name"],
                "arguments": _arguments(function.get("arguments")),
            },
        }
        if isinstance(call, Mapping) and call.get("id") is not None:
            made["id"] = call["id"]
        calls.append(made)
    return calls


def _arguments(value: Any) -> Any:
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            return value
        return parsed if isinstance(parsed, dict) else value
    return value


def _written_calls(text: str) -> list[dict[str, Any]]:
    """Read a ShareGPT ``function_call`` turn, whose text is the call as JSON."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return []
    listed = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in listed):
        return []
    return _calls(listed, 0)


def _tools(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = json.loads(value)
        except ValueError:
            raise RowFault("'tools' is text, but no JSON", "a list of tools") from None
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowFault("'tools' is no list of tools", "a list of objects")
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
        for tool in value
    ]
