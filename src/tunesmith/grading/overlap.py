"""How alike an answer and its reference are: SQuAD's words, letters of code, n-grams."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

from tunesmith.grading.paths import edit_distance

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_CODE_WORD = re.compile(r"[^\W\d]\w*|\d+(?:\.\d+)?|[^\w\s]")
LONGEST = 10_000
"""Characters that an edit distance looks at: its time grows with their product."""


def squad_normalised(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and doubled spaces.

    These are the four steps of SQuAD's evaluation script (Rajpurkar et al. 2016), in its order.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def squad_f1(answer: str, gold: str) -> float:
    """Return the F1 of the words that both have, SQuAD 2.0's: 1 where both have none."""
    ours, theirs = squad_normalised(answer).split(), squad_normalised(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def code_of(text: str) -> str:
    """Return the first fenced block of a text, or all of it, without space at ends of lines."""
    found = _FENCE.search(text)
    lines = (found[2] if found else text).strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def language_named(text: str) -> str:
    """Return what the first fenced block calls its language; empty where it does not say."""
    found = _FENCE.search(text)
    return (found[1].split() or [""])[0] if found else ""


def edit_similarity(first: str, second: str) -> float:
    """Return 1 - Levenshtein distance / length of the longer text, in [0, 1].

    CodeXGLUE's measure of completions (Lu et al. 2021). Only the first 10,000 characters count.
    """
    first, second = first[:LONGEST], second[:LONGEST]
    if first == second:
        return 1.0
    longest = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longest


def code_words(text: str) -> tuple[str, ...]:
    """Return the names, numbers and single signs of a piece of code, in any language."""
    return tuple(_CODE_WORD.findall(text))


def ngrams(words: Sequence[Hashable], size: int) -> Counter[tuple[Hashable, ...]]:
    """Count the runs of ``size`` words; none where there are fewer words."""
    return Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))


def ngram_f1(answer: Sequence[Hashable], gold: Sequence[Hashable], longest: int = 4) -> float:
    """Return the F1 of shared n-grams, the mean over n from 1 to ``longest``, in [0, 1].

    An n that neither side is long enough for is left out; two empty sequences are equal.
    """
    scores = []
    for size in range(1, longest + 1):
        ours, theirs = ngrams(answer, size), ngrams(gold, size)
        total = sum(ours.values()) + sum(theirs.values())
        if total:
            scores.append(2 * sum((ours & theirs).values()) / total)
    return sum(scores) / len(scores) if scores else float(len(answer) == len(gold))
