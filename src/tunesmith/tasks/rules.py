"""Rules by which a user's answers are checked: ``exact``, ``number:1%``, ``f1>=0.5`` and more."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tunesmith.grading.answers import parse_number
from tunesmith.grading.marked import bare, chosen, final_words, overlap_f1
from tunesmith.grading.typed import typed
from tunesmith.tasks.maths import final_answer, gold_number
from tunesmith.types import Verdict

RULES = "exact, number, number:0.01, number:1%, contains, regex, choice, f1>=0.5"
REGEX_SECONDS = 1.0
"""What one search of a pattern may take; then nobody knows, and the answer is ungraded."""
REGEX_TEXT = 20_000
"""Characters of an answer that a pattern is looked for in."""
REGEX_PATTERN = 1000
_RULE = re.compile(
    r"(?P<kind>exact|contains|regex|choice)"
    r"|(?P<number>number)(?::(?P<off>\d*\.?\d+)(?P<share>%)?)?"
    r"|f1\s*>=\s*(?P<f1>[01]?\.?\d+)"
)
_LETTER_LINE = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])[).:])[ \t]+(\S.*)$", re.MULTILINE)
_hopeless: dict[str, int] = {}
PATIENCE = 3
"""Searches of a pattern that may run out of time before it is searched for no more."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to check an answer against a gold one."""

    kind: str
    tolerance: Fraction = Fraction(0)
    relative: bool = False
    """Whether the tolerance is a share of the gold number."""
    least: float = 1.0
    """The F1 from which an answer is right."""


def parse_rule(text: str) -> Rule:
    """Read a rule; raises ``ValueError`` for one that is none."""
    match = _RULE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"there is no checker {text[:60]!r}")
    if match["f1"] is not None:
        least = float(match["f1"])
        if not 0 < least <= 1:
            raise ValueError(f"an F1 of {least:g} is not in (0, 1]")
        return Rule("f1", least=least)
    if match["number"]:
        share = match["share"] is not None
        return Rule("number", Fraction(match["off"] or 0) / (100 if share else 1), share)
    return Rule(match["kind"])


def check_gold(rule: Rule, gold: str, question: str) -> None:
    """Raise ``ValueError`` for a gold answer that the rule can do nothing with."""
    if rule.kind == "number" and gold_number(gold) is None:
        raise ValueError(f"the answer {gold[:60]!r} is no number, as the checker asks")
    if rule.kind == "regex":
        _compiled(gold)
    if rule.kind == "choice":
        options = options_of(question)
        if chosen(gold, options)[0] is None:
            raise ValueError(f"the answer {gold[:60]!r} is none of the {len(options)} options")


def judge(rule: Rule, golds: list[str], question: str, text: str) -> Verdict:
    """Grade an answer; of several gold ones the best counts."""
    found = final_words(text)
    if found is None:
        return Verdict(0.0, None, "no answer")
    check = _CHECKS[rule.kind]
    verdicts = [check(rule, gold, question, text, found[0]) for gold in golds]
    return max(verdicts, key=lambda verdict: -1 if verdict.score is None else verdict.score)


def options_of(question: str) -> list[str]:
    """Return the options that a question lists; 26 nameless ones where it lists none."""
    listed = [text for _, _, text in _LETTER_LINE.findall(question)]
    return listed if len(listed) > 1 else [f"\0{number}" for number in range(26)]


def _exact(rule: Rule, gold: str, question: str, text: str, found: str) -> Verdict:
    del rule, question
    right = bare(gold) in (bare(found), bare(text))
    return Verdict(float(right), found, "equal" if right else "different")


def _contains(rule: Rule, gold: str, question: str, text: str, found: str) -> Verdict:
    del rule, question
    pattern = rf"(?<!\w){re.escape(bare(gold))}(?!\w)"
    right = bool(re.search(pattern, " ".join(typed(text).split()).casefold()))
    return Verdict(float(right), found, "contained" if right else "not contained")


def _number(rule: Rule, gold: str, question: str, text: str, found: str) -> Verdict:
    del question, found
    written, place = final_answer(text)
    value = None if written is None else parse_number(gold_number(written) or "")
    wanted = Fraction(gold_number(gold) or 0)
    if written is None or value is None:
        return Verdict(0.0, None, "no number")
    off = rule.tolerance * (abs(wanted) if rule.relative else 1)
    right = abs(value - wanted) <= off
    return Verdict(float(right), written, f"{'within' if right else 'outside'} {place}")


def _choice(rule: Rule, gold: str, question: str, text: str, found: str) -> Verdict:
    del rule, found
    options = options_of(question)
    letter, reason = chosen(text, options)
    return Verdict(float(letter is not None and letter == chosen(gold, options)[0]), letter, reason)


def _f1(rule: Rule, gold: str, question: str, text: str, found: str) -> Verdict:
    del question, text
    score = overlap_f1(found, gold)
    return Verdict(float(score >= rule.least), found, f"F1 {score:.2f}")


def _regex(rule: Rule, gold: str, question: str, text: str, found: str) -> Verdict:
    del rule, question
    if _hopeless.get(gold, 0) >= PATIENCE:
        return Verdict(None, None, "the pattern takes too long")
    try:
        right = bool(_compiled(gold).search(text[:REGEX_TEXT], timeout=REGEX_SECONDS))
    except TimeoutError:
        _hopeless[gold] = _hopeless.get(gold, 0) + 1
        return Verdict(None, None, "the pattern takes too long")
    return Verdict(float(right), found, "matches" if right else "does not match")


def _compiled(pattern: str) -> Any:
    """Compile a pattern with a library whose searches can be given a time."""
    import regex

    if len(pattern) > REGEX_PATTERN:
        raise ValueError(f"a pattern of more than {REGEX_PATTERN} characters")
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as failure:
        raise ValueError(f"the pattern {pattern[:60]!r} is none: {failure}") from None


_CHECKS: dict[str, Callable[[Rule, str, str, str, str], Verdict]] = {
    "exact": _exact,
    "contains": _contains,
    "number": _number,
    "choice": _choice,
    "f1": _f1,
    "regex": _regex,
}
