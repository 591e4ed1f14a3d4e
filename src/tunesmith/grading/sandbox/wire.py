"""Plain data between tester and solver as JSON: no code, no classes, bounded in size and depth."""

from __future__ import annotations

import collections
import decimal
import fractions
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LONGEST = 8 << 20
"""Bytes of one message."""
DEEPEST = 120
_SAFE_INT = 1 << 53


class Broken(Exception):
    """The other side has ended, or has sent something that is no message."""


def encode(value: Any, refer: Callable[[Any], Any], depth: int = 0) -> Any:
    """Return a value as JSON knows it; ``refer`` stands in for what is no plain data."""
    if value is None or isinstance(value, bool):
        return value
    if depth > DEEPEST:
        return refer(value)
    if isinstance(value, int):
        whole = int(value)
        return whole if -_SAFE_INT < whole < _SAFE_INT else {"i": hex(whole)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    for kind, mark in _MANY:
        if isinstance(value, kind):
            items = [encode(item, refer, depth + 1) for item in value]
            return items if mark == "l" else {mark: items}
    if isinstance(value, dict):
        pairs = [[encode(part, refer, depth + 1) for part in pair] for pair in value.items()]
        return {"d": pairs}
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "a": value.hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, decimal.Decimal | fractions.Fraction):
        return {"D" if isinstance(value, decimal.Decimal) else "F": str(value)}
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"y": value.__name__}
    if isinstance(value, range):
        return {"R": [value.start, value.stop, value.step]}
    if _is_lazy(value):
        return {"o": [encode(item, refer, depth + 1) for item in _some(value)]}
    return refer(value)


_MANY: tuple[tuple[type[Iterable[Any]], str], ...] = (
    (list, "l"),
    (tuple, "t"),
    (set, "s"),
    (frozenset, "f"),
    (collections.deque, "q"),
)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
}
_MOST = 100_000


def _is_lazy(value: Any) -> bool:
    """Say whether a value is a view of a dict, or an iterator of no class of the program's own."""
    if isinstance(value, _VIEWS):
        return True
    return isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")


def _some(lazy: Any) -> Iterator[Any]:
    """Yield what a lazy object gives; ``ValueError`` where it does not end."""
    for count, item in enumerate(lazy):
        if count == _MOST:
            raise ValueError(f"more than {_MOST} values of an iterator")
        yield item


def decode(made: Any, resolve: Callable[[Any], Any]) -> Any:
    """Return the value of what ``encode`` made: of built-in types, or what ``resolve`` returns."""
    if isinstance(made, list):
        return [decode(item, resolve) for item in made]
    if not isinstance(made, dict):
        return made
    if len(made) != 1:
        raise Broken("no value")
    [(mark, held)] = made.items()
    try:
        if mark == "r":
            return resolve(held)
        if mark == "y":
            return _TYPES[held]
        if mark == "i":
            return int(held, 16)
        if mark in "ba":
            return (bytes if mark == "b" else bytearray).fromhex(held)
        if mark in "DF":
            return decimal.Decimal(held) if mark == "D" else fractions.Fraction(held)
        if mark == "c":
            return complex(float(held[0]), float(held[1]))
        if mark == "d":
            return {decode(key, resolve): decode(item, resolve) for key, item in held}
        if mark == "R":
            return range(*(int(end) for end in held))
        items = (decode(item, resolve) for item in held)
        made_of: dict[str, Callable[[Iterable[Any]], Any]] = {
            "t": tuple,
            "s": set,
            "f": frozenset,
            "q": collections.deque,
            "o": lambda items: iter([*items]),
        }
        return made_of[mark](items)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as fault:
        raise Broken(f"no value: {type(fault).__name__}") from None


def send(descriptor: int, message: Any) -> None:
    """Write one message; ``Broken`` where it is too long or nobody reads."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > LONGEST:
        raise Broken(f"a value of more than {LONGEST >> 20} MiB")
    rest = memoryview(len(body).to_bytes(8, "big") + body)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        raise Broken("nobody reads") from None


def receive(descriptor: int) -> Any:
    """Read one message; ``Broken`` at the end or where it is none."""
    size = int.from_bytes(_exactly(descriptor, 8), "big")
    if size > LONGEST:
        raise Broken(f"a value of more than {LONGEST >> 20} MiB")
    try:
        return json.loads(_exactly(descriptor, size))
    except (ValueError, RecursionError):
        raise Broken("no message") from None


def _exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(descriptor, min(size - len(parts), 1 << 16))
        if not part:
            raise Broken("ended")
        parts += part
    return bytes(parts)
