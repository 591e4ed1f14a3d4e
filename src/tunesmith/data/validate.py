"""Judging a data set row by row: what is refused, what is odd, how long the rows are.

A refused row cannot be trained on. A warning names what can, but is seldom meant.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.duplicates import DuplicateFinder
from tunesmith.data.overlap import KINDS, OverlapIndex
from tunesmith.data.prepare import check_row
from tunesmith.data.readers import Fault
from tunesmith.data.render import Renderer
from tunesmith.errors import ContractError
from tunesmith.types import Example, Segment

KEPT = 1000
"""Faults whose places are kept; all are counted."""
SHOWN = 3
"""Places kept of each kind of warning."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MOJIBAKE = re.compile(r"Ã[\x80-\xbf©¨¶¼¤ª±]|â€[™œ\x9d“”˜]|Â[ °£]")


@dataclass(slots=True)
class Kind:
    """How often one thing was found, and where first."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.places) < SHOWN:
            self.places.append(place)


@dataclass(slots=True)
class Lengths:
    """A histogram by powers of two, with the sum and the longest."""

    unit: str
    buckets: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    total: int = 0
    longest: int = 0
    longest_at: str = ""
    over: int = 0
    """Rows longer than the limit, where there is one."""

    def add(self, length: int, place: str, limit: int | None = None) -> None:
        """Count a row of ``length``."""
        self.buckets[max(0, length - 1).bit_length()] += 1
        self.rows += 1
        self.total += length
        self.over += limit is not None and length > limit
        if length > self.longest:
            self.longest, self.longest_at = length, place

    def bars(self) -> Iterator[tuple[str, int]]:
        """Yield (range of lengths, rows) from the shortest to the longest."""
        for power in range(min(self.buckets, default=0), max(self.buckets, default=-1) + 1):
            low = 0 if power == 0 else (1 << (power - 1)) + 1
            high = 1 << power
            yield f"{low:,} to {high:,}" if low < high else f"{low:,}", self.buckets[power]


@dataclass(slots=True)
class Judgement:
    """What was found in one source."""

    source: str
    layout: str = ""
    unused: list[str] = field(default_factory=list)
    accepted: int = 0
    refused: int = 0
    faults: list[Fault] = field(default_factory=list)
    """The first ``KEPT`` of the refused rows."""
    reasons: dict[str, Kind] = field(default_factory=dict)
    warnings: dict[str, Kind] = field(default_factory=dict)
    corrections: Counter[str] = field(default_factory=Counter)
    cut_short: bool = False
    """Whether the source could not be read to its end."""
    lengths: Lengths = field(default_factory=lambda: Lengths("words"))
    tokens: Lengths | None = None
    """Where a model was given: lengths of its rows, before any turn is cut."""

    def refuse(self, fault: Fault) -> None:
        """Count a row that cannot be used."""
        self.refused += 1
        self.cut_short |= fault.rest
        if len(self.faults) < KEPT:
            self.faults.append(fault)
        self.reasons.setdefault(_pattern(fault.reason), Kind()).add(str(fault.origin))

    def warn(self, what: str, place: str) -> None:
        """Count a row that is odd."""
        self.warnings.setdefault(what, Kind()).add(place)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON knows it."""

        def kinds(found: dict[str, Kind]) -> dict[str, Any]:
            return {what: {"rows": k.count, "first": k.places} for what, k in found.items()}

        made: dict[str, Any] = {
            "source": self.source,
            "layout": self.layout,
            "unused_fields": self.unused,
            "accepted": self.accepted,
            "refused": self.refused,
            "read_to_the_end": not self.cut_short,
            "reasons": kinds(self.reasons),
            "warnings": kinds(self.warnings),
            "corrections": dict(self.corrections),
            "faults": [
                {"source": f.origin.source, "line": f.origin.line, "reason": f.reason}
                for f in self.faults
            ],
        }
        for name, found in (("lengths", self.lengths), ("tokens", self.tokens)):
            if found is not None:
                made[name] = {
                    "unit": found.unit,
                    "rows": dict(found.bars()),
                    "total": found.total,
                    "longest": found.longest,
                    "longest_at": found.longest_at,
                    "over_the_limit": found.over,
                }
        return made


def _pattern(reason: str) -> str:
    """Return a reason without what differs from row to row, so that equal ones are counted."""
    reason = re.sub(r" \('.*'\)$", "", reason)
    reason = re.sub(r"(?<=: )'.*'$|(?<=column )\d+|(?<=turn )\d+|(?<=item )\d+", "…", reason)
    return re.sub(r"^\d+ (tokens|cells)", r"… \1", reason)


class Checker:
    """Looks at examples one after the other; keeps hashes of them and nothing else."""

    def __init__(
        self,
        judgement: Judgement,
        renderer: Renderer | None = None,
        max_length: int = 1024,
        task: str = "instruct",
        near: DuplicateFinder | None = None,
        tests: OverlapIndex | None = None,
    ) -> None:
        self._judgement = judgement
        self._task = task
        self._near, self._tests = near, tests
        self._renderer = renderer
        self._max_length = max_length
        self._seen: set[bytes] = set()
        self._prompts: set[bytes] = set()
        if renderer is not None:
            judgement.tokens = Lengths("tokens")

    def check(self, example: Example) -> Fault | None:
        """Count one example; a ``Fault`` says why it cannot be trained on."""
        fault = self._contract(example)
        if fault is not None:
            self._judgement.refuse(fault)
            return fault
        self._judgement.accepted += 1
        self._look(example)
        return None

    def _contract(self, example: Example) -> Fault | None:
        """Render the row as training does and hold it to the token contract."""
        if self._renderer is None:
            return None
        try:
            rendered = self._renderer.encode(example, self._max_length)
            if rendered.refused:
                return Fault(example.origin, rendered.refused)
            for row in rendered.rows:
                check_row(row, example, self._renderer)
        except ContractError as broken:
            return Fault(example.origin, broken.found.removeprefix(f"{example.origin}: "))
        assert self._judgement.tokens is not None
        size = max(len(row.ids) for row in rendered.rows)
        self._judgement.tokens.add(size, str(example.origin))
        if rendered.cut_turns:
            self._judgement.warn("too long: its oldest turns are cut", str(example.origin))
        return None

    def _look(self, example: Example) -> None:
        texts = [segment.text for segment in example.segments]
        whole = "\n".join(texts)
        self._judgement.lengths.add(len(whole.split()), str(example.origin))
        task = task_warnings(example.segments, self._task)
        for what in (*text_warnings(whole), *turn_warnings(example.segments), *task):
            self._judgement.warn(what, str(example.origin))
        key = _key(example)
        if key in self._seen:
            self._judgement.warn("an exact duplicate of an earlier row", str(example.origin))
        else:
            self._look_for_likes(example)
        self._seen.add(key)
        for overlap in self._tests.match(example) if self._tests else ():
            what = f"holds a test question {KINDS[overlap.kind]}"
            self._judgement.warn(what, f"{example.origin} = {overlap.place}")

    def _look_for_likes(self, example: Example) -> None:
        prompt = _prompt(example)
        if prompt is not None:
            asked = _hash(prompt)
            if asked in self._prompts:
                what = "the same prompt as an earlier row, another answer"
                self._judgement.warn(what, str(example.origin))
            self._prompts.add(asked)
        if self._near is not None and (found := self._near.check(example)) is not None:
            self._judgement.warn("nearly an earlier row", f"{example.origin} = {found.kept}")

    def is_repeated(self, example: Example) -> bool:
        """Say whether an equal row was checked before."""
        return _key(example) in self._seen


def _key(example: Example) -> bytes:
    """Return what makes two rows one: roles, texts and tool calls, but for spaces and case."""
    return _hash(
        "\n".join(f"{s.role}: {s.text} {s.extra.get('tool_calls', '')}" for s in example.segments)
    )


def _hash(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).casefold().encode(), digest_size=8).digest()


def _prompt(example: Example) -> str | None:
    if example.segments[0].role is None:
        return None
    if len(example.segments) > 3:
        return None  # a conversation's first words may well be the same
    return "\n".join(s.text for s in example.segments if s.role != "assistant")


def text_warnings(text: str) -> Iterator[str]:
    """Yield what is odd about the characters of a text."""
    if _CONTROL.search(text):
        yield "control characters"
    if not text.isascii():
        if "\ufffd" in text:
            yield "replacement characters (�): the text was decoded wrongly once"
        if _MOJIBAKE.search(text):
            yield "letters like Ã© or â€™: UTF-8 that was read as Windows-1252"
    if "<|endoftext|>" in text:
        yield "<|endoftext|> written out"
    if "\\n" in text and not re.search(r"[A-Za-z]:\\n|[\"'].*\\n.*[\"']", text):
        yield "\\n written out instead of a line break"


def turn_warnings(segments: Sequence[Segment]) -> Iterator[str]:
    """Yield what is odd about the order of a conversation's turns."""
    roles = [segment.role for segment in segments]
    if roles[0] is None:
        return
    if "system" in roles[1:]:
        yield "a system message that is not the first"
    for before, after in itertools.pairwise(roles):
        if before == after and before in ("user", "assistant"):
            yield f"two turns of the {before} in a row"
            break
    if next((role for role in roles if role != "system"), None) == "assistant":
        yield "the assistant speaks first"
    if roles[-1] != "assistant":
        yield f"the last turn is the {roles[-1]}'s and is not trained"


def task_warnings(segments: Sequence[Segment], task: str) -> Iterator[str]:
    """Yield what does not suit the kind of work."""
    plain = segments[0].role is None
    if plain and task not in ("domain", "code", "custom"):
        yield f"plain text, while task {task} trains on answers (--task domain takes text)"
    if not plain and task == "domain":
        yield "a conversation, while task domain trains on plain text"
    if task == "chat" and sum(segment.role == "user" for segment in segments) == 1:
        yield "one exchange only, while task chat is made for conversations"


def corrected(example: Example, counts: Counter[str]) -> Example:
    """Return an example without control characters and turns behind the last answer."""
    segments = list(example.segments)
    while segments[0].role is not None and segments[-1].role != "assistant":
        segments.pop()
        counts["turns behind the last answer cut"] += 1
    for at, segment in enumerate(segments):
        text, number = _CONTROL.subn("", segment.text)
        if number:
            counts["control characters removed"] += number
            segments[at] = replace(segment, text=text)
    return replace(example, segments=tuple(segments))
