"""Metrics of code: whether it parses, and how like the row's it is, as text and as signs."""

from __future__ import annotations

from tunesmith.evaluate.scores.base import Metric, Replies, Reply, Values
from tunesmith.grading import overlap, syntax
from tunesmith.grading.overlap import code_of, code_words, language_named, ngram_f1


def syntax_validity(replies: Replies) -> Values:
    """1 where the code parses without a fault (tree-sitter), else 0; other languages are out.

    A fenced block says its language, or the reference's does; else it is Python where the
    reference is. What goes on with a text is parsed with that text in front.
    """
    return [_parses(reply) for reply in replies]


def _parses(reply: Reply) -> float | None:
    named = language_named(reply.text) or language_named(reply.reference)
    if not named and syntax.check(_whole(reply, reply.reference), "python").valid:
        named = "python"
    found = syntax.language(named)
    return None if found is None else float(syntax.check(_whole(reply, reply.text), found).valid)


def _whole(reply: Reply, text: str) -> str:
    role, opening = reply.prompt[-1]
    goes_on = role is None and not language_named(text)
    return opening + text if goes_on else code_of(text)


def code_exact(replies: Replies) -> Values:
    """1 where the code is the reference's, space at ends of lines aside, else 0.

    Of a reply with a fenced block only the first block counts.
    """
    return [float(code_of(reply.text) == code_of(reply.reference)) for reply in replies]


def edit_similarity(replies: Replies) -> Values:
    """1 - Levenshtein distance / length of the longer code, in characters (Lu et al. 2021)."""
    return [
        overlap.edit_similarity(code_of(reply.text), code_of(reply.reference)) for reply in replies
    ]


def pattern_consistency(replies: Replies) -> Values:
    """F1 of the n-grams of names, numbers and signs shared with the reference, mean of n 1 to 4.

    The n-gram part of CodeBLEU (Ren et al. 2020) as an F1, so that length pays on neither side.
    """
    return [
        ngram_f1(code_words(code_of(reply.text)), code_words(code_of(reply.reference)))
        for reply in replies
    ]


SYNTAX = (
    Metric("syntax_validity", "parses", "higher", 0, 1, each=syntax_validity),
)  # fmt: skip
ACCURACY = (
    Metric("code_exact", "exact", "higher", 0, 1, each=code_exact, paired=True),
    Metric("edit_similarity", "edit similarity", "higher", 0, 1, edit_similarity, paired=True),
)
PATTERN = (
    Metric("pattern_consistency", "shared n-grams", "higher", 0, 1, pattern_consistency,
           paired=True),
)  # fmt: skip
