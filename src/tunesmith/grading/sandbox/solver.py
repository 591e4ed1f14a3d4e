"""The process that holds the program: it answers calls with plain data and knows no test."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from tunesmith.grading.sandbox import wire

NAME = "solution"


class Called:
    """Something that can be called, to be sent as a reference whatever it is."""

    def __init__(self, target: Any) -> None:
        self.target = target


def serve(source: str, requests: int, replies: int) -> None:
    """Run a program's text, then answer what is asked of its names until nobody asks.

    Every end of it is left to the caller: a program may raise anything, or never return.
    """
    module = ModuleType(NAME)
    sys.modules[NAME] = module
    held: list[Any] = []

    def refer(value: Any) -> dict[str, int]:
        held.append(value.target if isinstance(value, Called) else value)
        return {"r": len(held) - 1}

    def answer(message: dict[str, Any]) -> Any:
        kind, parts = message["op"], wire.decode(message["with"], held.__getitem__)
        if kind == "run":
            # Without its own future imports, which this file has.
            code = compile(source, f"{NAME}.py", "exec", dont_inherit=True)
            exec(code, module.__dict__)
            return None
        if kind == "names":
            found = [name for name in parts[0] if name in module.__dict__]
            return {name: module.__dict__[name] for name in found}
        if kind == "get":
            return getattr(parts[0], parts[1])
        if kind == "set":
            return setattr(parts[0], parts[1], parts[2])
        return parts[0](*parts[1], **parts[2])

    while True:
        try:
            message = wire.receive(requests)
        except wire.Broken:
            return
        try:
            value = answer(message)
            if message["op"] == "names":
                # What can be called is called here, never in the tester.
                value = {k: Called(v) if callable(v) else v for k, v in value.items()}
            reply = {"value": wire.encode(value, refer)}
        except BaseException as fault:
            # SystemExit too: whatever a program raises is its answer, and no end of ours.
            kinds = [kind.__name__ for kind in type(fault).__mro__]
            reply = {"error": kinds, "text": _said(fault)}
        try:
            wire.send(replies, reply)
        except wire.Broken as fault:
            wire.send(replies, {"error": ["Broken"], "text": str(fault)})


def _said(fault: BaseException) -> str:
    try:
        return str(fault)[:300]
    except BaseException:
        return ""
