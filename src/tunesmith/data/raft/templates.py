"""Short-answer questions from a text's own sentences, by patterns of English; no model.

Each pattern turns one clear statement into a question whose answer is words of that statement.
What is not clearly of a pattern is left: fewer questions, but questions that a person would ask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tunesmith.data.raft.patterns import PATTERNS, Asked
from tunesmith.data.raft.sentences import sentences
from tunesmith.data.raft.statements import (
    CAP,
    VAGUE,
    Known,
    clauses,
    with_name,
    without_brackets,
)
from tunesmith.data.raft.verbs import PAST, THIRD

LONGEST = 400
"""Letters of a statement that patterns look at; it also bounds how long they may search."""

MOST_WORDS = 24
"""A longer question is a sign of a statement that was not understood."""

_OPEN_ENDED = ("relation", "name")
"""Kinds whose questions may end in a preposition: «What is it composed of?»."""

_PREPOSITION = re.compile(r"\b(?:of|in|to|by|with|for|as|from|at|on)$")

_TORN = re.compile(
    r"(?:-\w+|\b(?:existing|prior|such|various|several|two|three|four|five|first|last))$|"
    r"^\w+ing$|^(?:is|are|was|were|to|been) |and \w+ly\b"
)
"""An answer that ends too early, or goes on with another clause."""


def ask(text: str) -> Iterator[Asked]:
    """Yield the questions of a text, sentence by sentence.

    Names are recognised by their capitals: a single capitalised word at the start of a sentence
    counts as a name only if the text writes it so elsewhere, within a sentence.
    """
    names = frozenset(re.findall(rf"(?<=[a-z,;] )({CAP})", text))
    known = Known(names, text)
    person = ""
    for sentence in sentences(text):
        person, named = with_name(without_brackets(sentence), person, known)
        if not _plain(sentence):
            continue
        for clause in clauses(named):
            for pattern in PATTERNS:
                for asked in pattern(clause, known):
                    whole = replace(asked, sentence=sentence)
                    if _sound(whole):
                        yield whole


def _plain(sentence: str) -> bool:
    """Say whether a sentence is one whole statement that patterns may look at."""
    words = sentence.split()
    return (
        5 <= len(words) <= 45
        and len(sentence) <= LONGEST
        and sentence[0].isupper()
        and sentence.endswith(".")
        and "\n" not in sentence
        and not re.search(r"[a-z]\.[A-Z]", sentence)
    )


def _sound(asked: Asked) -> bool:
    """Say whether a question and its answer may stand as they are."""
    question, answer = asked.question, asked.answer
    body = question[: -len("?")]
    return (
        len(question.split()) <= MOST_WORDS
        and 0 < len(answer.split()) <= 12
        and answer in asked.sentence
        and not VAGUE.search(body)
        and not re.search(r"[()/;“”\"«»\[\]{}|<>=…]|\.\.", question + answer)
        and answer.casefold() not in question.casefold()
        and not re.search(r" that\b|\b(?:and|or|the|a|than|be|named|called|\w)$", body)
        and not re.search(r"\b(?:say|report|state|claim|argue|believe|suggest|estimate)\b", body)
        and not _TORN.search(answer)
        and not any(word in PAST or word in THIRD for word in re.findall(r"\band (\w+)", answer))
        and (asked.kind in _OPEN_ENDED or not _PREPOSITION.search(body))
        and not re.search(r"^(?:and|or|of|which|that)\b|\b(?:and|or|of|the|a|to)$", answer)
    )
