"""How many rows each source gives to a mix, and which: pure functions of counts and hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.errors import DataError

WhenShort = Literal["fail", "upsample", "redistribute"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a mix wants of one source, and what the source has."""

    name: str
    share: float | None
    """Part of all rows; None everywhere means in proportion to ``available``."""
    available: int
    """Different usable rows."""
    when_short: WhenShort = "fail"
    max_repeat: int = 4


@dataclass(slots=True)
class Allotment:
    """What one source gives."""

    name: str
    target: int
    """Rows that its share asks for."""
    available: int
    unique: int
    """Different rows taken."""
    repeats: int
    """Further rows wanted as copies of these."""
    notes: list[str] = field(default_factory=list)
    """What happened to a short source, for people."""

    @property
    def planned(self) -> int:
        """Return all rows, copies included."""
        return self.unique + self.repeats


def plan(asks: Sequence[Ask], rows: int | None) -> dict[str, Allotment]:
    """Return each source's part of ``rows``; None takes the most that needs no repetition.

    A short source repeats its rows up to ``max_repeat`` times each, or leaves its missing rows to
    those that have more, or stops the mix. The order of ``asks`` decides no number.
    Raises ``DataError`` naming every source that is short and may not be.
    """
    shares = _shares(asks)
    total = largest_total(asks) if rows is None else rows
    targets = apportion(total, shares)
    short = [a for a in asks if a.when_short == "fail" and targets[a.name] > a.available]
    if short:
        most = largest_total(asks)
        said = "; ".join(f"{a.name} has {a.available} of {targets[a.name]}" for a in short)
        raise DataError(
            f"Too few rows for the shares of {total} rows: {said}.",
            expected="enough rows, or when_short: upsample or redistribute",
            hint=f"rows: {most}" if most else "leave out the source without rows",
        )
    allotted = {ask.name: _allot(ask, targets[ask.name]) for ask in asks}
    _redistribute(asks, shares, allotted, total)
    return allotted


def largest_total(asks: Sequence[Ask]) -> int:
    """Return the most rows for which every source has its share without repeating any."""
    shares = _shares(asks)
    total = min(
        (math.floor((ask.available + 1) / shares[ask.name]) for ask in asks if shares[ask.name]),
        default=0,
    )
    total = min(total, sum(ask.available for ask in asks))
    while total:
        targets = apportion(total, shares)
        if all(targets[ask.name] <= ask.available for ask in asks):
            break
        total -= 1
    return total


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split ``total`` by shares into whole numbers that add up to it (largest remainders)."""
    whole = math.fsum(shares.values())
    exact = {name: total * share / whole if whole else 0.0 for name, share in shares.items()}
    parts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: (parts[name] - exact[name], name))
    for name in order[: (total - sum(parts.values())) if whole else 0]:
        parts[name] += 1
    return parts


def _shares(asks: Sequence[Ask]) -> dict[str, float]:
    """Return each source's part of 1."""
    if all(ask.share is None for ask in asks):
        everything = sum(ask.available for ask in asks) or 1
        return {ask.name: ask.available / everything for ask in asks}
    return {ask.name: ask.share or 0.0 for ask in asks}


def _allot(ask: Ask, target: int) -> Allotment:
    unique = min(target, ask.available)
    missing = target - unique
    result = Allotment(ask.name, target, ask.available, unique, 0)
    if missing and ask.when_short == "upsample":
        result.repeats = min(missing, ask.available * (ask.max_repeat - 1))
        if result.repeats:
            times = (unique + result.repeats) / unique
            result.notes.append(f"up-sampled {times:.2f} times")
        missing -= result.repeats
        if missing:
            result.notes.append(f"cap of {ask.max_repeat} reached, {missing} rows to the others")
    elif missing:
        result.notes.append(f"ran out, {missing} rows to the others")
    return result


def _redistribute(
    asks: Sequence[Ask], shares: Mapping[str, float], allotted: dict[str, Allotment], total: int
) -> None:
    """Give the rows that are still missing to sources with different rows left, by share."""
    before = {name: one.unique for name, one in allotted.items()}
    while missing := total - sum(one.planned for one in allotted.values()):
        room = {
            a.name: a.available - allotted[a.name].unique
            for a in asks
            if a.available > allotted[a.name].unique
        }
        if not room:
            break
        parts = apportion(missing, {name: shares[name] for name in room})
        for name, part in parts.items():
            allotted[name].unique += min(part, room[name])
    for name, one in allotted.items():
        if one.unique > before[name]:
            one.notes.append(f"{one.unique - before[name]} more in place of short sources")


def rank(seed: int, source: str, fingerprint: str, purpose: str = "draw") -> int:
    """Return the place of a row in a shuffled order that is the same on every machine."""
    text = f"{purpose}\0{seed}\0{source}\0{fingerprint}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def copies(count: int, repeats: int, max_repeat: int) -> list[int]:
    """Return how often each of ``count`` rows is shown when ``repeats`` more are wanted.

    Copies go round: no row has two more than another, none is shown above ``max_repeat`` times.
    """
    if not count:
        return []
    given = min(repeats, count * (max_repeat - 1))
    rounds, rest = divmod(given, count)
    return [1 + rounds + (place < rest) for place in range(count)]
