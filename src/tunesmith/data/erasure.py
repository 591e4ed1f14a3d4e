"""Prompt erasure (Orca 2, arXiv 2311.11045), and the audit that proves it.

The teacher answered under a detailed instruction. The student sees a general message in its place,
so that it has to choose the way of answering by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.data.mixture import rank
from tunesmith.grading.answers import extract_tagged, last_number, parse_number
from tunesmith.types import Segment

Mode = Literal["replace", "drop", "rotate"]
CAUTIOUS = (
    "You are a careful assistant. Read what is asked, pick a way of working that suits it, and be "
    "open about anything you are unsure of.",
    "Answer with care. Weigh how much explanation the question deserves, check your result, and do "
    "not claim more than you know.",
    "Your task is to be right rather than quick. Choose for yourself how to go about each "
    "question, and admit it when something cannot be settled.",
    "Take every question seriously, whatever its kind. Decide how best to tackle it, and keep "
    "guesses apart from facts.",
    "You help people who rely on what you say. Approach each request in the manner that fits it, "
    "and point out doubts where you have them.",
    "Be thorough where a question is hard and brief where it is easy. If you do not know, say that "
    "you do not know.",
    "Respond thoughtfully and honestly. The method is up to you; the answer has to hold up when "
    "somebody checks it.",
    "Consider each request on its own merits before you reply. Prefer a modest true statement to a "
    "bold doubtful one.",
    "Give replies that a cautious expert would stand behind. Find the approach that the request "
    "calls for, without being told.",
    "Handle what you are asked with good judgement: settle on a suitable approach, follow it "
    "through, and mention what remains open.",
)
"""General messages that name no way of answering."""

_WORD = re.compile(r"\w+")
# \n before a small letter is left alone: LaTeX has \nu, \neq and \nabla, paths have C:\new.
_ESCAPE = re.compile(r"(?<!\\)\\n(?![a-z])|(?<!\\)\\r\\n")
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_END = re.compile(r"<\|endoftext\|>|<\|im_end\|>|<\|eot_id\|>")
_TRAILING_END = re.compile(r"(?:\s*<\|endoftext\|>)+\s*$")
_NUMBER = re.compile(r"[-+−]?[$€£]?[-+−]?\d[\d,]*(?:\.\d+)?%?")
_LETTER = re.compile(r"(?<![\w'])([A-J])(?![\w'])")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one row."""

    kind: str
    """instruction, escapes, calculator, end_of_text or gold."""
    origin: str
    """File and line."""
    detail: str


def words(text: str) -> list[str]:
    """Return the words of a text, case folded."""
    return _WORD.findall(text.casefold())


def traces(instruction: str, text: str, ngram: int) -> list[str]:
    """Return the runs of ``ngram`` words that a text shares with an instruction.

    Of an instruction with fewer words all its words are one run.
    """
    asked = words(instruction)
    size = min(ngram, len(asked))
    if not size:
        return []
    wanted = {tuple(asked[at : at + size]) for at in range(len(asked) - size + 1)}
    seen = words(text)
    places = range(len(seen) - size + 1)
    found = [seen[at : at + size] for at in places if tuple(seen[at : at + size]) in wanted]
    return [" ".join(run) for run in found]


def erase(
    turns: Sequence[Segment],
    instruction: str,
    mode: Mode,
    *,
    pool: Sequence[str] = CAUTIOUS,
    seed: int,
    key: str,
    ngram: int = 6,
) -> tuple[Segment, ...]:
    """Return a conversation without its system message, or with a general one in its place.

    ``rotate`` picks from the pool by a hash of seed and ``key`` (the row's fingerprint). A message
    that shares ``ngram`` words in a row with the instruction is passed over for the next one.
    """
    rest = tuple(turn for turn in turns if turn.role != "system")
    if mode == "drop":
        return rest
    start = rank(seed, "", key, "cautious message") % len(pool) if mode == "rotate" else 0
    order = [*pool[start:], *pool[:start]]
    clear = (message for message in order if not traces(instruction, message, ngram))
    return (Segment("system", next(clear, order[0])), *rest)


def audit(
    turns: Sequence[Segment],
    origin: str,
    *,
    erased: str = "",
    gold: str | None = None,
    ngram: int = 6,
) -> list[Finding]:
    """Return everything that is wrong with what a row shows; ``erased`` is what must be gone."""
    return list(_findings(turns, origin, erased, gold, ngram))


def _findings(
    turns: Sequence[Segment], origin: str, erased: str, gold: str | None, ngram: int
) -> Iterator[Finding]:
    for turn in turns:
        left = traces(erased, turn.text, ngram)
        if left:
            yield Finding("instruction", origin, f"{turn.role}: «{left[0]}» ({len(left)} in all)")
    patterns = (("escapes", _ESCAPE), ("calculator", _CALCULATOR), ("end_of_text", _END))
    for kind, pattern in patterns:
        hits = [(turn, match) for turn in turns for match in pattern.finditer(turn.text)]
        if hits:
            turn, match = hits[0]
            near = turn.text[max(0, match.start() - 20) : match.end() + 20]
            yield Finding(kind, origin, f"{turn.role}: {near!r} ({len(hits)} in all)")
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    if gold is not None and answers and not agrees(answers[-1], gold):
        yield Finding("gold", origin, f"gold {gold[-60:]!r}, answer ends {answers[-1][-60:]!r}")


def clean(turns: Sequence[Segment], cleaners: Sequence[str]) -> tuple[tuple[Segment, ...], int]:
    """Return a conversation with artefacts taken out, and how many of its turns changed."""
    cleaned = []
    changed = 0
    for turn in turns:
        text = turn.text
        if "end_of_text" in cleaners and turn.role == "assistant":
            text = _TRAILING_END.sub("", text)
        if "calculator_marks" in cleaners:
            text = _CALCULATOR.sub("", text)
        if "escaped_newlines" in cleaners:
            text = _ESCAPE.sub("\n", text)
        changed += text != turn.text
        cleaned.append(turn if text == turn.text else replace(turn, text=text))
    return tuple(cleaned), changed


def agrees(answer: str, gold: str) -> bool:
    """Say whether an answer ends in the gold one.

    A number is compared with the tagged or last number of the answer, a choice letter with the
    last letter that stands alone (or the one that the answer begins with), other text has to occur
    in the answer. Of a worked gold only what follows its last ``####`` counts.
    """
    target = gold.rpartition("####")[2].strip()
    said = extract_tagged(answer) or answer.rpartition("####")[2].strip()
    if _NUMBER.fullmatch(target.rstrip(".")):
        wanted = parse_number(target)
        return wanted is not None and wanted in (parse_number(said), last_number(said))
    if re.fullmatch(r"[A-Ja-j]", target):
        letters = _LETTER.findall(said)
        begins = re.match(r"\s*\(?([A-Ja-j])[).:\s]", said + " ")
        first = [begins.group(1).upper()] if begins else letters[-1:]
        return target.upper() in first
    return f" {' '.join(words(target))} " in f" {' '.join(words(answer))} "
