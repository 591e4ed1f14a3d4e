"""Rows for retrieval-augmented fine-tuning (RAFT, arXiv 2403.10131).

A row shows a question with documents: the oracle, which answers it, among distractors, which do
not; or distractors alone, and then the answer says that they do not tell, or comes from memory.
Every choice follows from a hash of seed, chunk and question, so that a row does not depend on the
rows beside it and is the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.data.raft.chunks import Chunk
from tunesmith.data.raft.prompt import (
    ANSWER,
    BASED,
    BEGIN_QUOTE,
    END_QUOTE,
    NOT_TOLD,
    instruction,
)
from tunesmith.data.raft.questions import Question, evidence, occurrences, quotable
from tunesmith.data.raft.retrieval import Retriever, terms

SHINGLE = 5
"""Words in a row that two near-duplicates share many of."""
ALIKE = 0.6
"""Share of the shorter text's shingles that makes two texts near-duplicates."""
MINED = 50
"""How many neighbours of a question are looked at for distractors."""

Mode = Literal["oracle", "abstain", "memorise"]


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """How rows are made; the shares are of all rows."""

    num_distractors: int = 3
    distractor_probability: float = 0.5
    oracle_share: float = 0.8
    abstain_share: float = 1.0
    mined_share: float = 0.5
    answer_style: Literal["plain", "quoted"] = "plain"
    seed: int = 42


@dataclass(frozen=True, slots=True)
class RaftRow:
    """One training row with all that is known of it."""

    question: Question
    oracle: Chunk
    shown: tuple[Chunk, ...]
    position: int | None
    """The oracle's place in ``shown``, from 0; None where it is not shown."""
    mode: Mode
    mined: int
    """How many distractors were found by the retriever."""
    rank: int | None
    """The oracle's place among what the retriever finds for the question, from 0."""
    instruction: str
    output: str

    @property
    def distractors(self) -> tuple[Chunk, ...]:
        """Return what is shown besides the oracle."""
        return tuple(c for at, c in enumerate(self.shown) if at != self.position)


@dataclass(slots=True)
class Built:
    """The rows of one side of the split, and what could not be done as wanted."""

    rows: list[RaftRow] = field(default_factory=list)
    short: Counter[str] = field(default_factory=Counter)


def draw(seed: int, question: Question, what: str) -> float:
    """Return a number in [0, 1) that only the seed, the question, its chunk and ``what`` decide."""
    return _hash(seed, question, what) / 2**64


def _hash(seed: int, question: Question, what: str) -> int:
    whole = "\x1f".join((str(seed), question.chunk, question.text, what)).encode()
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big")


class Likeness:
    """Says which chunks nearly duplicate each other; remembers what it has looked at."""

    def __init__(self) -> None:
        self._seen: dict[str, frozenset[tuple[str, ...]]] = {}

    def alike(self, one: Chunk, other: Chunk) -> bool:
        """Say whether the shorter of two texts lies largely inside the other."""
        first, second = self._shingles(one), self._shingles(other)
        return len(first & second) >= ALIKE * min(len(first), len(second))

    def _shingles(self, chunk: Chunk) -> frozenset[tuple[str, ...]]:
        if chunk.id not in self._seen:
            words = terms(chunk.text)
            starts = range(max(1, len(words) - SHINGLE + 1))
            found = frozenset(tuple(words[at : at + SHINGLE]) for at in starts)
            self._seen[chunk.id] = found
        return self._seen[chunk.id]


def may_distract(candidate: Chunk, question: Question, oracle: Chunk, likeness: Likeness) -> bool:
    """Say whether a chunk may stand beside (or instead of) the oracle without answering too.

    An answer in other words than the document's cannot be searched for; then nothing from the
    same document (or group) is taken.
    """
    if candidate.id == oracle.id or likeness.alike(candidate, oracle):
        return False
    if question.span:
        return occurrences(candidate.text, question.answer) == 0
    return candidate.group != oracle.group


def build_rows(
    questions: Sequence[Question],
    chunks: Sequence[Chunk],
    settings: RaftSettings,
    make_retriever: Callable[[Sequence[str]], Retriever],
) -> Built:
    """Make a row of each question; distractors come from ``chunks``, mined and at random.

    The oracle is left out of ``1 - oracle_share`` of all rows, taken from those with distractors;
    one more distractor stands in its place, so that the number of documents tells nothing.
    """
    built = Built()
    if not questions:
        return built
    by_id = {chunk.id: chunk for chunk in chunks}
    retriever = make_retriever([chunk.text for chunk in chunks])
    likeness = Likeness()
    for question in questions:
        built.rows.append(
            _row(question, by_id[question.chunk], chunks, settings, retriever, likeness, built)
        )
    return built


def _row(
    question: Question,
    oracle: Chunk,
    chunks: Sequence[Chunk],
    settings: RaftSettings,
    retriever: Retriever,
    likeness: Likeness,
    built: Built,
) -> RaftRow:
    seed, share = settings.seed, settings.distractor_probability
    wanted = settings.num_distractors * (draw(seed, question, "distractors") < share)
    leave_out = wanted > 0 and draw(seed, question, "oracle") < (1 - settings.oracle_share) / share
    strict = draw(seed, question, "policy") < settings.abstain_share
    wanted += leave_out
    near = retriever.search(question.text, MINED)
    ranks = [at for at, number in enumerate(near) if chunks[number].id == oracle.id]
    picked, mined = pick(question, oracle, chunks, near, wanted, settings, likeness)
    if len(picked) < wanted:
        built.short[f"{len(picked)} distractors instead of {wanted}"] += 1
    if leave_out and not picked:
        built.short["the oracle kept, for want of any distractor"] += 1
        leave_out = False
    mode: Mode = "oracle" if not leave_out else "abstain" if strict else "memorise"
    position = None if leave_out else int(draw(seed, question, "place") * (len(picked) + 1))
    shown = list(picked)
    if position is not None:
        shown.insert(position, oracle)
    return RaftRow(
        question=question,
        oracle=oracle,
        shown=tuple(shown),
        position=position,
        mode=mode,
        mined=mined,
        rank=ranks[0] if ranks else None,
        instruction=instruction(
            question.text, [chunk.text for chunk in shown], settings.answer_style, strict=strict
        ),
        output=_output(question, oracle, position, mode, settings.answer_style),
    )


def pick(
    question: Question,
    oracle: Chunk,
    chunks: Sequence[Chunk],
    near: Sequence[int],
    wanted: int,
    settings: RaftSettings,
    likeness: Likeness,
) -> tuple[list[Chunk], int]:
    """Return up to ``wanted`` distractors in random order, and how many of them were mined.

    ``near`` holds the numbers of the chunks nearest to the question.
    """
    rng = random.Random(_hash(settings.seed, question, "draws"))
    mined, others = iter(near), _shuffled(len(chunks), rng)
    picked: list[Chunk] = []
    from_mined = 0
    for place in range(wanted):
        hard = draw(settings.seed, question, f"mined {place}") < settings.mined_share
        for source in (mined, others) if hard else (others,):
            found = next(
                (
                    chunks[at]
                    for at in source
                    if may_distract(chunks[at], question, oracle, likeness)
                    and not any(likeness.alike(chunks[at], chunk) for chunk in picked)
                ),
                None,
            )
            if found is not None:
                from_mined += source is mined
                picked.append(found)
                break
    order = list(_shuffled(len(picked), rng))
    return [picked[at] for at in order], from_mined


def _shuffled(size: int, rng: random.Random) -> Iterator[int]:
    """Yield 0 to size - 1 in random order, without making the whole list first."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        at = int(rng.random() * (last + 1))
        yield moved.get(at, at)
        moved[at] = moved.get(last, last)


def _output(question: Question, oracle: Chunk, position: int | None, mode: Mode, style: str) -> str:
    """Return what the model learns to say; a quote is only ever made of what is shown."""
    answer = question.answer
    if style == "plain":
        return {
            "oracle": f"{BASED}{answer}",
            "abstain": f"{BASED}{NOT_TOLD}",
            "memorise": f"The documents do not tell. From memory: {answer}",
        }[mode]
    if position is None:
        said = NOT_TOLD if mode == "abstain" else answer
        because = "None of the documents tells this."
        because += " From memory, I know the answer." if mode == "memorise" else ""
        return f"##Reason: {because}\n{ANSWER}{said}"
    quote = quoted_sentence(question, oracle)
    because = f"Document [{position + 1}] says {BEGIN_QUOTE}{quote}{END_QUOTE}"
    because += f" {question.reason}" if question.reason else ""
    return f"##Reason: {because}\n{ANSWER}{answer}"


def quoted_sentence(question: Question, oracle: Chunk) -> str:
    """Return the sentence of the oracle that holds the answer, or shares most words with it."""
    held = evidence(oracle, question.answer) if question.span else ""
    if held:
        return held
    wanted = set(terms(question.reason or f"{question.text} {question.answer}"))
    return max(quotable(oracle.text), key=lambda piece: len(wanted & set(terms(piece))))


def split_sides(
    chunks: Sequence[Chunk], questions: Sequence[Question], share: float, seed: int
) -> frozenset[str]:
    """Return the groups of documents to hold out: about ``share`` of those with questions.

    Groups that have a chunk in common are one. With a single group nothing is held out.
    """
    root: dict[str, str] = {chunk.group: chunk.group for chunk in chunks}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = name = root[root[name]]
        return name

    first: dict[str, str] = {}
    for chunk in chunks:
        same = first.setdefault(" ".join(chunk.text.split()), chunk.group)
        one, other = sorted((find(same), find(chunk.group)))
        root[other] = one
    groups = {chunk.id: chunk.group for chunk in chunks}
    asked = {find(groups[question.chunk]) for question in questions}

    def rank(name: str) -> int:
        whole = hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()
        return int.from_bytes(whole, "big")

    ranked = sorted(asked, key=lambda name: (rank(name), name))
    wanted = min(max(1, round(share * len(ranked))), len(ranked) - 1) if share else 0
    held = set(ranked[:wanted])
    if held:
        held |= {
            name for name in map(find, root) if name not in asked and rank(name) < share * 2**64
        }
    return frozenset(name for name in root if find(name) in held)


def as_fields(row: RaftRow) -> dict[str, Any]:
    """Return a row with the fields of requirement 002's layout, and what it was made of."""
    return {
        "instruction": row.instruction,
        "output": row.output,
        "oracle_context": row.oracle.text,
        "num_distractors": len(row.distractors),
        "has_distractors": bool(row.distractors),
        "question": row.question.text,
        "answer": row.question.answer,
        "document": row.oracle.document,
        "chunk": row.oracle.id,
        "mode": row.mode,
        "oracle_position": None if row.position is None else row.position + 1,
        "answer_in_document": row.question.span,
    }


def as_gorilla(row: RaftRow, number: int) -> dict[str, Any]:
    """Return a row in the layout of the RAFT authors' own tool (gorilla)."""
    documents = "".join(f"<DOCUMENT>{chunk.text}</DOCUMENT>\n" for chunk in row.shown)
    return {
        "id": f"seed_task_{number}",
        "type": "general",
        "question": row.question.text,
        "context": {
            "title": [[chunk.title for chunk in row.shown]],
            "sentences": [[chunk.text for chunk in row.shown]],
        },
        "oracle_context": row.oracle.text,
        "cot_answer": row.output,
        "answer": row.question.answer,
        "instruction": f"{documents}{row.question.text}",
    }
