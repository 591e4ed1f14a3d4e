"""Where sentences begin and end, without a model or a download."""

from __future__ import annotations

import itertools
import re

Span = tuple[int, int]
"""Start and end in the text, the end excluded."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words("""
    mr mrs ms dr prof rev hon st sr jr gen col capt lt sgt maj adm gov sen rep pres messrs mme mlle
    vs etc eg ie cf al ca approx no nos vol vols fig figs eq ch sec pp p ed eds est dept univ
    inc ltd co corp bros jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat
    sun ave blvd rd mt ft lb lbs oz op cit viz resp art tab
    """)
_MAY_END = _words("etc inc ltd co corp jr sr al bros")
"""Abbreviations that often stand at a sentence's end; a capital after them decides."""
_STOP = re.compile(
    r"(?P<mark>[.!?…]{1,20}|[。！？])(?P<close>[\"'”’»)\]]{0,10}(?:\[\d{1,9}\]|:[\d,–-]{1,20}(?=\s))"
    r"{0,9})(?=\s|$|(?<=[。！？]))"
)
_BREAK = re.compile(r"\n[ \t]*\n\s*|\n(?=[ \t]*(?:#{1,6} |[-*•] |\d{1,3}[.)] |\|))|(?<=\|)\n")
"""A blank line, and what begins a heading, an item of a list or a row of a table."""
_HEADING = re.compile(r"^[ \t]*#{1,6} [^\n]*\n", re.MULTILINE)
_WORD_BEFORE = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)$")
_OPENS = re.compile(r"[\"'“‘«(\[]*(\w)")


_LOOK = 60
"""Letters after a mark that decide whether it ends a sentence."""


def sentence_spans(text: str) -> list[Span]:
    """Return the sentences of a text in order; between them lies nothing but white space.

    A sentence ends at . ! ? or … with the quotes and brackets that close after it, unless the
    dot belongs to an abbreviation, an initial or a number, or a small letter goes on. Headings,
    items of a list and blank lines end one too; a single line break does not.
    """
    edges = {0, len(text)}
    edges.update(match.end() for match in _BREAK.finditer(text))
    edges.update(match.end() for match in _HEADING.finditer(text))
    edges.update(match.end() for match in _STOP.finditer(text) if _ends(text, match))
    ordered = sorted(edges)
    spans = []
    for start, end in itertools.pairwise(ordered):
        piece = text[start:end]
        if piece.strip():
            left = len(piece) - len(piece.lstrip())
            spans.append((start + left, start + len(piece.rstrip())))
    return spans


def sentences(text: str) -> list[str]:
    """Return the sentences of a text as strings, exactly as they stand in it."""
    return [text[start:end] for start, end in sentence_spans(text)]


def _ends(text: str, match: re.Match[str]) -> bool:
    """Say whether a mark at ``match`` ends a sentence."""
    mark = match["mark"]
    if mark in "。！？":
        return True
    rest = text[match.end() : match.end() + _LOOK]
    opened = _OPENS.match(rest.lstrip())
    following = opened[1] if opened else ""
    if following.islower():
        return False
    if mark != "." or match["close"]:
        return True
    before = _WORD_BEFORE.search(text, max(0, match.start() - 40), match.start())
    if before is None:
        # «on 3. May»: a number at the start of a line counts a list, it does not end a sentence.
        return not re.search(
            r"(?:^|\n)[ \t]*\d{1,3}$", text[max(0, match.start() - 8) : match.start()]
        )
    word = before[1]
    if len(word) == 1 and word.isupper() and word != "I":
        return False
    if "." in word:
        # U.S., e.g., Ph.D.: ends only before a word that usually begins a sentence.
        return bool(re.match(r"\s+(The|In|A|An|It|He|She|They|This|But|However)\b", rest))
    if word.casefold() in _MAY_END:
        return following.isupper()
    return word.casefold() not in _ABBREVIATIONS or (word[0].islower() and word in _PLAIN_WORDS)


_PLAIN_WORDS = _words("no sun sat mar mon art ed est sec tab dec")
"""Words that are abbreviations only when written with a capital, or before a number."""
