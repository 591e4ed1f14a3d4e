"""Reading what a model answered from documents: the short answer, abstention, quotes, citations."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tunesmith.data.raft.prompt import ANSWER, BASED, BEGIN_QUOTE, END_QUOTE, NOT_TOLD

LABELS = ("yes", "no", "maybe")
"""Answers that judge instead of naming something, as PubMedQA has them."""
LOOKED_AT = 200
"""Characters of an answer in which it may say that it is not told."""
_MARKS = (ANSWER.strip(), BASED.strip(), "From memory:")
_LABEL = re.compile(rf"\b({'|'.join(LABELS)})\b", re.IGNORECASE)
_NOT_TOLD = re.compile(
    r"\bnot (?:been )?(?:given|told|stated|mentioned|specified|provided|contained|answered)\b"
    r"|\b(?:do|does|did)(?: not|n['’]t) (?:tell|say|state|mention|specify|provide|contain|answer"
    r"|give|include)\b"
    r"|\b(?:can ?not|can['’]t|could not) be (?:answered|determined|found|inferred)\b"
    r"|\bnone of the (?:documents|passages|texts)\b"
    r"|\b(?:unanswerable|unknown|no answer|(?:no|not enough|insufficient) information)\b"
    r"|\bI (?:do not|don['’]t) know\b",
    re.IGNORECASE,
)
_QUOTE = re.compile(rf"{re.escape(BEGIN_QUOTE)}(.*?)({re.escape(END_QUOTE)}|\Z)", re.DOTALL)
_NUMBERED = re.compile(r"\bdocument \[?(\d{1,4})\]?", re.IGNORECASE)


def short_answer(text: str, golds: Sequence[str] = ()) -> str:
    """Return the answer behind the last mark of either style, or the whole text without one.

    Where all right answers are labels (yes, no, maybe), the label that it begins with, or the only
    one that it names, is the answer.
    """
    behind = behind_mark(text)
    if behind != text:
        text = behind.strip().partition("\n")[0]
    said = " ".join(text.split())
    if golds and all(is_label(gold) for gold in golds):
        found = [match.lower() for match in _LABEL.findall(said)]
        first = _LABEL.match(said.lstrip(" \"'*([«"))
        if first or len(set(found)) == 1:
            return str(found[0])
    return said


def behind_mark(text: str) -> str:
    """Return what stands behind the last mark of either style, or the text without one."""
    places = [(text.rfind(mark), mark) for mark in _MARKS if mark in text]
    # <ANSWER>: stands behind a reason, which may hold anything.
    marked = [at for at in places if at[1] == ANSWER.strip()] or places
    if not marked:
        return text
    at, mark = max(marked)
    return text[at + len(mark) :]


def is_label(answer: str) -> bool:
    """Say whether an answer is yes, no or maybe."""
    return answer.casefold().strip(" .") in LABELS


def abstains(text: str, phrases: Sequence[str] = ()) -> bool:
    """Say whether a text answers that it is not told, in the trained words or in usual others.

    Those are English; ``phrases`` are further ones, of any language, whose case and white space do
    not matter. Only the beginning of the short answer is looked at: a long answer may well mention
    what a document does not say.
    """
    said = short_answer(text)
    if said.casefold().rstrip(".") == NOT_TOLD.rstrip("."):
        return True
    said = said[:LOOKED_AT]
    return bool(_NOT_TOLD.search(said)) or any(_alike(one) in _alike(said) for one in phrases)


def _alike(text: str) -> str:
    return unicodedata.normalize("NFC", folded(text).casefold())


def quotes(text: str) -> list[str | None]:
    """Return what stands between the marks of quotes; None for one that is never closed."""
    return [folded(words) if end else None for words, end in _QUOTE.findall(text)]


def stands_in(quote: str | None, text: str) -> bool:
    """Say whether a quote stands in a text letter for letter, but for white space."""
    return bool(quote) and str(quote) in folded(text)


def cited(text: str, documents: Sequence[str]) -> int | None:
    """Return the number, from 1, of the document that an answer refers to first; None for none.

    It refers to the one that it names («Document [2]»), or else to the one that its first quote
    stands in.
    """
    named = _NUMBERED.search(text)
    if named and 1 <= int(named[1]) <= len(documents):
        return int(named[1])
    for quote in quotes(text):
        found = [n for n, one in enumerate(documents, 1) if stands_in(quote, one)]
        if found:
            return found[0]
    return None


def folded(text: str) -> str:
    """Return a text with single spaces."""
    return " ".join(text.split())
