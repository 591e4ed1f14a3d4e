"""Which kind of work a user's rows are for, judged by their fields and first answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.own_rows import Source
    from tunesmith.types import Example

LOOKED_AT = 200
"""First rows that the choice rests on."""
SHORT = 40
"""Letters of an answer that can be compared as a whole."""
MOST = 0.9
_CODE = re.compile(r"```|^\s*(?:def|class|import|from|return|function|const|let|#include)\b", re.M)
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A task, and why."""

    task: str
    why: str


def choose(source: Source) -> Choice:
    """Return the task that suits a source; ``DataError`` where no layout fits its rows."""
    from tunesmith.data.readers import Row

    looked = islice((item for item in source.rows() if isinstance(item, Row)), LOOKED_AT)
    rows = [row.fields for row in looked]
    if rows and (found := _by_fields(rows)):
        return found
    from tunesmith.data.own_rows import OwnRow
    from tunesmith.workflows.own_rows import OwnRows

    readable = (item for item in OwnRows(source, "custom") if isinstance(item, OwnRow))
    examples = [item.examples[0] for item in islice(readable, LOOKED_AT)]
    return _by_turns(examples, rows)


def _by_fields(rows: Sequence[Fields]) -> Choice | None:
    """Return the task whose questions rows are, told by fields that no other rows have."""
    first = rows[0]
    for task, fits, why in _QUESTIONS:
        if fits(first):
            return Choice(task, why)
    from tunesmith.tasks.choice import ChoiceTask

    if ChoiceTask.reads(first):
        return Choice("choice", "each row has a question with options")
    if isinstance(first.get("output"), list) and "instruction" in first:
        return Choice("socratic", "each output is a list of questions")
    if not {"question", "answer"} <= first.keys():
        return None
    answers = [str(row.get("answer", "")) for row in rows]
    if _share(answers, lambda text: "####" in text) >= MOST:
        return Choice("maths", "the answers end in «#### number»")
    if _share(answers, lambda text: 0 < len(text.strip()) <= SHORT) >= MOST:
        return Choice("qa", f"the answers are short (at most {SHORT} letters), so they are graded")
    return None


_QUESTIONS: tuple[tuple[str, Callable[[Fields], bool], str], ...] = (
    (
        "humaneval",
        lambda row: {"prompt", "entry_point", "test", "canonical_solution"} <= row.keys(),
        "each row has a function to write and a test of it",
    ),
    (
        "mbpp",
        lambda row: {"test_list", "code"} <= row.keys() and bool({"text", "prompt"} & row.keys()),
        "each row has a program to write and a list of tests",
    ),
    (
        "raft",
        lambda row: {"question", "instruction", "output", "oracle_context"} <= row.keys(),
        "each row has a question and documents to answer it from",
    ),
    (
        "maths",
        lambda row: {"Body", "Question", "Equation", "Answer"} <= row.keys(),
        "the rows are laid out as SVAMP's word problems",
    ),
    (
        "bbh",
        lambda row: {"input", "target"} <= row.keys(),
        "each row has an input and the one right target",
    ),
)


def _by_turns(examples: Sequence[Example], rows: Sequence[Fields]) -> Choice:
    """Return the task that suits conversations, answers or plain text."""
    if not examples:
        return Choice("custom", "no row could be read")
    if examples[0].segments[0].role is None:
        if "code" in rows[0] or _share([e.segments[0].text for e in examples], _is_code) >= MOST:
            return Choice("code", "the rows are plain source code")
        return Choice("domain", "the rows are plain text")
    answers = [e.segments[-1].text for e in examples]
    if _share(answers, _is_code) >= MOST:
        return Choice("code", f"{_share(answers, _is_code):.0%} of the answers hold code")
    several = sum(sum(s.role == "user" for s in e.segments) > 1 for e in examples)
    if 2 * several >= len(examples):
        return Choice("chat", f"{several} of the first {len(examples)} rows have several turns")
    return Choice("instruct", "each row has one prompt with its answer")


def _is_code(text: str) -> bool:
    return bool(_CODE.search(text))


def _share(texts: Sequence[str], has: Callable[[str], bool]) -> float:
    return sum(map(has, texts)) / len(texts) if texts else 0.0
