"""Final answers in words: where a text marks one, and when two of them are the same."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from tunesmith.grading.answers import extract_tagged
from tunesmith.grading.typed import boxed, typed

LETTERS = string.ascii_uppercase
LAST_LINE = "the last line"
_ANSWER_IS = re.compile(r"\banswer(?:\s+is|\s*:|\s*=)\s*:?[ \t]*([^\n]*)", re.IGNORECASE)
_A_LINE = re.compile(r"^[ \t]*A:[ \t]*([^\n]*)", re.MULTILINE)
_AROUND = " \t\r\n.,;:!?\"'`*_#«»<>"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_REASON = re.compile(
    r"[,;.]?\s+(?:because|since|as|not|rather|instead|while|whereas)\b|[.;!?]\s|\n", re.IGNORECASE
)
_IN_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_AT_START = re.compile(r"^\W*([A-Za-z])\s*[).:\]](?!\w)")
_WITH_MARK = re.compile(r"(?<![\w'.])([A-Z])(?=\s*[).:,;\]*]|\s*$|\s+(?:or|and)\b)")
_NAMED = re.compile(r"\b(?:option|choice|letter|answer)\s+([A-Z])(?![\w'])")
_ALONE = re.compile(r"(?<![\w'.])([B-HJ-Z])(?![\w'])")


def marked(text: str) -> tuple[str, str] | None:
    r"""Return the final answer that a text marks and how; None where it marks none.

    Looked for in this order: ``<answer>``, ``\boxed{}``, behind ``####``, after «the answer is»,
    after ``A:``; the last of its kind counts.
    """
    box = boxed(text)
    behind = text.rpartition("####")[2] if "####" in text else None
    places = (
        (extract_tagged(text), "in <answer>"),
        (None if box is None else typed(box), "in \\boxed"),
        (None if behind is None else behind.strip().partition("\n")[0], "after ####"),
        (_last(_ANSWER_IS, text), "after «the answer is»"),
        (_last(_A_LINE, text), "after A:"),
    )
    for found, place in places:
        if found and bare(found):
            return typed(found).strip(), place
    return None


def final_words(text: str) -> tuple[str, str] | None:
    """Return the marked answer or else the last line with something in it; None for no words."""
    found = marked(text)
    if found is not None:
        return found
    lines = [line for line in text.splitlines() if bare(line)]
    return (typed(lines[-1]).strip(), LAST_LINE) if lines else None


def bare(text: str) -> str:
    """Return a text in one case and spacing, without marks around it."""
    return " ".join(typed(text).split()).strip(_AROUND).casefold()


def overlap_f1(answer: str, gold: str) -> float:
    """Return the F1 of words in common, articles and punctuation left out (SQuAD's rule)."""
    ours, theirs = _tokens(answer), _tokens(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def chosen(text: str, options: Sequence[str]) -> tuple[str | None, str]:
    """Return the letter of the option that a text chooses, and why it was read so.

    A letter counts however it is written («(B)», «B.», «the answer is b»), and so does an option's
    whole text. A text that names two options chooses none.
    """
    found = marked(text)
    place = found[1] if found else "in the text"
    segment = found[0] if found else typed(text).strip()
    by_text: dict[str, str] = {}
    for option, letter in zip(options, LETTERS, strict=False):
        by_text.setdefault(bare(option), letter)
    whole = bare(segment).strip("()[]")
    if len(whole) == 1 and whole.upper() in LETTERS[: len(options)] and whole not in by_text:
        return whole.upper(), place
    if bare(segment) in by_text:
        return by_text[bare(segment)], f"{place}, by its text"
    if found:
        segment = _REASON.split(segment, maxsplit=1)[0]
    letters = _letters(segment, len(options))
    if len(letters) > 1:
        return None, f"names {' and '.join(sorted(letters))}"
    if letters:
        [letter] = letters
        rest = bare(re.sub(rf"^\W*{letter}\b\W*", "", segment, flags=re.IGNORECASE))
        if rest in by_text and rest != bare(options[LETTERS.index(letter)]):
            return None, f"names {letter} with the text of {by_text[rest]}"
        return letter, place
    if not found:
        segment = segment.splitlines()[-1] if segment else ""
    named = _named_options(segment, by_text)
    if len(named) == 1:
        return named.pop(), f"{place}, by its text"
    return None, "names several options" if named else "names no option"


def _letters(segment: str, count: int) -> set[str]:
    known = LETTERS[:count]
    found = {
        letter.upper()
        for pattern in (_IN_BRACKETS, _AT_START, _WITH_MARK, _NAMED, _ALONE)
        for letter in pattern.findall(segment)
    }
    return {letter for letter in found if letter in known}


def _named_options(segment: str, by_text: dict[str, str]) -> set[str]:
    """Return the options whose whole text stands in a segment; longer ones cover shorter ones."""
    rest, named = bare(segment)[:2000], set()
    for text in sorted(by_text, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(text)}(?!\w)"
        if text and re.search(pattern, rest):
            named.add(by_text[text])
            rest = re.sub(pattern, " ", rest)
    return named


def _tokens(text: str) -> list[str]:
    plain = "".join(" " if sign in string.punctuation else sign for sign in bare(text))
    return _ARTICLES.sub(" ", plain).split()


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return str(found[-1]) if found else None
