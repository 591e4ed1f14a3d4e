"""Counting words and cutting texts into sentences, by rules that need no download."""

from __future__ import annotations

import re

import regex

_WORD = regex.compile(r"\w+")  # which has the vowel signs of Indian scripts, unlike that of re
_CLOSING = "\"'”’»)\\]*_`"
_OPENING = "\"'“‘«([*_`"
_END = re.compile(
    rf"(?<![.!?…])(?P<mark>[.!?…]++)(?P<close>[{_CLOSING}]*+(?:\[\d+\])*+)(?=\s|\Z)|[。！？｡．؟۔।॥]+[」』”’））\"'*_]*"
)
_BLOCK = re.compile(r"\n[ \t]*\n\s*|\n(?=[ \t]*(?:[*+-][ \t]+|\d{1,3}[.)][ \t]+|#{1,6}[ \t]))")
"""Where a new block begins: behind an empty line, and at a mark of a list or a heading."""
_LIST_NUMBER = re.compile(rf"[\s{_OPENING}#>-]*(?:\d{{1,3}}|[A-Za-z]|[ivxIVX]{{2,5}})\.")
_NEAR = 100
"""Characters looked at on either side of a full stop."""
_INITIAL = re.compile(r"[A-Z]")
_LETTERS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_INSIDE = _words(
    "approx cf dr e.g eq eqs esp fig figs i.e messrs mlle mme mr mrs ms pp prof viz vol vols vs "
    "bzw z.b d.h u.a sra srta"
)
"""Abbreviations that something always follows, so that no sentence ends with them."""
_TITLES = _words("adm brig capt cmdr col comdr gen gov hon lt maj mt pres rep rev sen sgt supt")
"""The same for titles, which are words of another kind in small letters."""
_EITHER = _words(
    "a.d a.k.a a.m ave b.c b.sc blvd bros co corp d.c dec dept e.t.c etc feb hrs inc jan jr lbs "
    "ltd m.a m.d m.sc apr aug sept oct nov tues thurs p.m p.s p.p.s ph.d plc sq sr st u.k u.n "
    "u.s u.s.a"
)
"""Abbreviations that a sentence may end with."""
_NO_NAMES = _words("a.m e.t.c etc p.m")
"""Those of them that stand before no name, so that any capital behind them begins a sentence."""
_BEFORE_NUMBER = _words("art ch nr no p sec")
_STARTERS = _words(
    "a after all also although an and another as at because before but by despite each even every "
    "finally first for from he her here his how however i if in it its later many meanwhile "
    "moreover most my next nobody not now of on once one our perhaps she since so some soon still "
    "that the their then there therefore these they this those though thus to today too we what "
    "when where which while who why with yes yet you your"
)
"""Words that begin a sentence when they have a capital behind an abbreviation."""


def count_words(text: str) -> int:
    """Return how many runs of letters, digits and underscores a text has.

    A hyphen and an apostrophe divide, as they do in published figures: ``don't`` counts two.
    """
    return len(_WORD.findall(text))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text in order, without space around them.

    One ends at a full stop, a question or an exclamation mark (with the quotes and brackets behind
    it), at an empty line, and where an item of a list or a heading begins. Full stops of decimals,
    abbreviations, initials, addresses and the numbers of lists end none, and neither do an ellipsis
    or the end of a quotation before a small letter. What has no letter or digit is no sentence.
    """
    found = []
    for block in _BLOCK.split(text):
        begin = 0
        for end in _END.finditer(block):
            if end.start() >= begin and _ends(block, begin, end):
                found.append(block[begin : end.end()].strip())
                begin = end.end()
        found.append(block[begin:].strip())
    return [sentence for sentence in found if _WORD.search(sentence)]


def _ends(block: str, begin: int, end: re.Match[str]) -> bool:
    mark, closed = end["mark"], end["close"]
    rest = block[end.end() : end.end() + _NEAR].lstrip().lstrip(_OPENING)
    if mark is None or not rest:  # a sign that is nothing but an end, or the end of the block
        return True
    if (closed or mark in ("…", "...") or "..." in mark) and rest[0].islower():
        return False
    return mark != "." or not _abbreviated(
        block[max(begin, end.start() - _NEAR) : end.start()], rest
    )


def _abbreviated(before: str, rest: str) -> bool:
    """Say whether the full stop behind ``before`` belongs to its last word."""
    if _LIST_NUMBER.fullmatch(f"{before}."):
        return True
    word = (before.split() or [""])[-1].lstrip(_OPENING)
    if not word or before[-1].isspace():
        return False
    plain = word.lower()
    if plain in _INSIDE or (plain in _TITLES and word[0].isupper()):
        return True
    if plain in _BEFORE_NUMBER and rest[0].isdigit():
        return True
    if plain in _NO_NAMES:
        return not rest[0].isupper()
    if plain not in _EITHER and not _LETTERS.fullmatch(word) and not _INITIAL.fullmatch(word):
        return False
    first = _WORD.match(rest)
    starts = first is not None and first[0][0].isupper() and first[0].lower() in _STARTERS
    return word != "I" and not starts
