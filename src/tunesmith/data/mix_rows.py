"""The rows of a mix: read from a source, given a strategy, erased, audited, with their lineage."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.erasure import CAUTIOUS, Finding, Mode, audit, clean, erase, traces
from tunesmith.data.formats import to_examples
from tunesmith.data.mixture import rank
from tunesmith.data.readers import Fault, Row, scan
from tunesmith.data.strategies import Assignment, by_instruction, known
from tunesmith.errors import DataError
from tunesmith.types import Segment

NAMED = 5
"""Refused rows that a message names; all are counted."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One source: where its rows are and how they are read."""

    name: str
    dataset: str
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    category: str = ""
    category_field: str | None = None
    strategy: str = "auto"
    """auto, none, or the name of a strategy."""
    erase: bool = True
    gold: str | None = None
    clean: Sequence[str] = ("end_of_text",)
    only_assigned: bool = False
    """Leave out rows that were answered by another strategy than their category's."""
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to every row of a mix."""

    seed: int
    assignment: Assignment | None = None
    """None where the mix has no strategies."""
    mode: Mode | None = None
    """How instructions are erased; None leaves them."""
    messages: Sequence[str] = CAUTIOUS
    ngram: int = 6
    refuse: frozenset[str] = frozenset()
    """Kinds of findings whose rows are left out."""
    allow_refused: float = 0.0
    """Share of a source's rows that may be unreadable."""


@dataclass(frozen=True, slots=True)
class MixRow:
    """One row of a mix with its lineage."""

    turns: tuple[Segment, ...]
    origin: str
    fingerprint: str
    """Hash of the conversation as it came, before anything was cleaned or erased."""
    source: str
    category: str
    strategy: str
    instruction: str
    """The teacher's system message."""
    erasure: str
    """How the instruction was erased; "" where it was not."""
    gold: str | None = None
    cleaned: int = 0
    shots: tuple[str, ...] = ()
    """Origins of the solved examples before the question."""

    @property
    def prompt(self) -> str:
        """Return what the user says, which decides what rows belong together."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "user")

    def findings(self, ngram: int) -> list[Finding]:
        """Audit what the row shows."""
        erased = self.instruction if self.erasure else ""
        return audit(self.turns, self.origin, erased=erased, gold=self.gold, ngram=ngram)

    def fields(self, copy: int) -> dict[str, Any]:
        """Return the row as it is written; the types are the same in every row."""
        return {
            "messages": [
                {"role": turn.role, "content": turn.text, **dict(turn.extra)} for turn in self.turns
            ],
            "meta": {
                "source": self.source,
                "origin": self.origin,
                "fingerprint": self.fingerprint,
                "category": self.category,
                "strategy": self.strategy,
                "instruction": self.instruction,
                "erasure": self.erasure,
                "shots": " ".join(self.shots),
                "copy": copy,
            },
        }


class Pool:
    """The usable rows of one source: scanned once for their hashes, read again for what is taken.

    Only a number a row is held between the two, so that a source may be larger than the memory.
    """

    def __init__(self, spec: Spec, treatment: Treatment) -> None:
        self.spec, self.treatment = spec, treatment
        self.read = 0
        self.repeated = 0
        """Rows that the source holds already."""
        self.cleaned = 0
        """Turns that artefacts were taken out of."""
        self.unreadable: list[str] = []
        self.refused: Counter[str] = Counter()
        """Rows left out by kind of finding; a row with several counts under the first."""
        self.findings: list[Finding] = []
        """Those of the rows left out."""
        self._ranks: list[tuple[int, int]] = []
        self._scan()

    @property
    def available(self) -> int:
        """Return how many different usable rows there are."""
        return len(self._ranks)

    def _scan(self) -> None:
        seen: set[bytes] = set()
        for position, row in enumerate(self._rows()):
            self.read += 1
            if isinstance(row, str):
                self.unreadable.append(row)
                continue
            key = bytes.fromhex(row.fingerprint)
            if key in seen:
                self.repeated += 1
                continue
            seen.add(key)
            if self._other_strategy(row):
                self.refused["strategy"] += 1
                continue
            found = [f for f in row.findings(self.treatment.ngram) if self._refuses(f)]
            if found:
                self.refused[found[0].kind] += 1
                self.findings += found
                continue
            self.cleaned += row.cleaned
            place = rank(self.treatment.seed, self.spec.name, row.fingerprint)
            self._ranks.append((place, position))
        if not self.read:
            raise DataError(f"{self.spec.dataset} holds no rows.", expected="at least one row")
        self._ranks.sort()
        if len(self.unreadable) > self.treatment.allow_refused * self.read:
            shown = "\n".join(f"  {reason}" for reason in self.unreadable[:NAMED])
            more = len(self.unreadable) - NAMED
            raise DataError(
                f"{len(self.unreadable)} of {self.read} rows of {self.spec.name} cannot be used:\n"
                + shown
                + (f"\n  and {more} more" if more > 0 else ""),
                hint="mend them, name their columns or their encoding, or set allow_refused: 0.01",
            )

    def _refuses(self, finding: Finding) -> bool:
        return finding.kind in self.treatment.refuse

    def _other_strategy(self, row: MixRow) -> bool:
        """Say whether a row's teacher answered otherwise than its category is to be taught."""
        assignment = self.treatment.assignment
        if assignment is None or not self.spec.only_assigned or not row.strategy:
            return False
        return row.strategy != (assignment.of(row.source, row.category) or row.strategy)

    def take(self, count: int) -> list[MixRow]:
        """Return ``count`` rows in the order of their seeded ranks."""
        order = {position: place for place, (_, position) in enumerate(self._ranks[:count])}
        taken: list[MixRow | None] = [None] * len(order)
        for position, raw in enumerate(self._raw()):
            if position in order and isinstance(raw, Row):
                row = treated(raw, self.spec, self.treatment)
                expected = self._ranks[order[position]][0]
                if rank(self.treatment.seed, self.spec.name, row.fingerprint) != expected:
                    raise DataError(f"{row.origin}: the data changed while it was being mixed.")
                taken[order[position]] = row
        kept = [row for row in taken if row is not None]
        if len(kept) < len(order):
            raise DataError(f"{self.spec.dataset} lost rows while it was being mixed.")
        return kept

    def _raw(self) -> Iterator[Row | Fault]:
        return scan(self.spec.dataset, split=self.spec.split, encoding=self.spec.encoding)

    def _rows(self) -> Iterator[MixRow | str]:
        for raw in self._raw():
            try:
                if isinstance(raw, Fault):
                    raise raw.error()
                yield treated(raw, self.spec, self.treatment)
            except DataError as fault:
                if isinstance(raw, Fault) and raw.rest:
                    raise
                yield fault.found


def treated(raw: Row, spec: Spec, treatment: Treatment) -> MixRow:
    """Return a raw row as the mix shows it; ``DataError`` where it is no conversation."""
    _, examples = to_examples([raw], spec.columns)
    if len(examples) > 1:
        raise DataError(
            f"{raw.origin}: {len(examples)} examples in one row, where a mix takes one."
        )
    [example] = examples
    if example.segments[0].role is None:
        raise DataError(
            f"{raw.origin}: plain text, not a question with an answer.",
            hint="columns: {prompt: …, completion: …}",
        )
    fingerprint = _fingerprint(example.segments)
    turns, cleaned = clean(example.segments, spec.clean)
    if any(not turn.text.strip() and turn.role == "assistant" for turn in turns):
        raise DataError(f"{raw.origin}: the answer is empty once end marks are cut.")
    instruction = "\n".join(turn.text for turn in turns if turn.role == "system")
    category = _text_field(raw, spec.category_field) or spec.category
    strategy = _strategy(spec, treatment, category, instruction)
    if strategy and not instruction:
        instruction = known(strategy).instruction
        turns = (Segment("system", instruction), *turns)
    erasure = ""
    if treatment.mode and spec.erase and instruction:
        erasure = treatment.mode
        turns = erase(
            turns,
            instruction,
            treatment.mode,
            pool=treatment.messages,
            seed=treatment.seed,
            key=fingerprint,
            ngram=treatment.ngram,
        )
    return MixRow(
        turns,
        str(raw.origin),
        fingerprint,
        spec.name,
        category or spec.name,
        strategy,
        instruction,
        erasure,
        _text_field(raw, spec.gold),
        cleaned,
    )


def _strategy(spec: Spec, treatment: Treatment, category: str, instruction: str) -> str:
    """Return the name of a row's strategy, "" for none."""
    if spec.strategy != "auto":
        return "" if spec.strategy == "none" else spec.strategy
    if treatment.assignment is None:
        return by_instruction(instruction) or ""
    asked = by_instruction(instruction)
    return asked or treatment.assignment.of(spec.name, category) or ""


def _text_field(raw: Row, name: str | None) -> str | None:
    if name is None:
        return None
    value = raw.fields.get(name)
    if value is None or isinstance(value, dict | list | bool) or str(value) == "":
        kind = "missing or empty" if value is None or value == "" else type(value).__name__
        raise DataError(
            f"{raw.origin}: the field {name!r} is {kind}.",
            expected=f"text or a number; the fields are {', '.join(map(str, raw.fields))}",
        )
    return str(value)


def _fingerprint(turns: Sequence[Segment]) -> str:
    content = [[turn.role, turn.text] for turn in turns]
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def with_examples(
    row: MixRow, group: int, others: Sequence[tuple[MixRow, int]], count: int, seed: int, ngram: int
) -> MixRow:
    """Return a row with ``count`` solved examples of its source before the question.

    ``others`` are training rows of the same source with their groups: neither the row itself nor
    one of its near-duplicates is shown, nor one that would bring an erased instruction back.
    A row with more than one question, or without enough examples, stays as it is.
    """
    asked = [place for place, turn in enumerate(row.turns) if turn.role == "user"]
    if len(asked) != 1:
        return row
    chosen: list[MixRow] = []
    order = random.Random(f"examples/{seed}/{row.source}/{row.fingerprint}")
    for place in order.sample(range(len(others)), min(len(others), 20 * count)):
        other, its_group = others[place]
        single = sum(turn.role == "user" for turn in other.turns) == 1
        shown = _solved(other)
        leaks = row.erasure and traces(row.instruction, shown, ngram)
        if its_group != group and single and not leaks and other not in chosen:
            chosen.append(other)
        if len(chosen) == count:
            break
    if len(chosen) < count:
        return row
    question = row.turns[asked[0]]
    text = "\n\n".join([*(_solved(other) for other in chosen), question.text])
    turns = list(row.turns)
    turns[asked[0]] = replace(question, text=text)
    return replace(row, turns=tuple(turns), shots=tuple(other.origin for other in chosen))


def _solved(row: MixRow) -> str:
    return "\n".join(turn.text.strip() for turn in row.turns if turn.role in ("user", "assistant"))
