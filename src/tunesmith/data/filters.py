"""Quality filters: each says which rows it takes out and why, in no particular language.

A rule looks at one example and returns the reason to remove it, or None. Rules about answers look
at the trained text: the assistant's turns, or a plain text as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.data.words import normalised, words
from tunesmith.errors import UsageError
from tunesmith.types import Example, Origin

Rule = Callable[[Example], str | None]

REPEATED_LINES = 0.5
"""Share of an answer's longer lines that may be repetitions of another one."""
MANY_LINES = 5
"""From this many longer lines on their repetitions are counted."""
LONG_LINE = 10
"""Characters from which a line counts; shorter ones, such as a bracket, may come again."""
RUN = 4
"""Words of a run whose repetitions are counted."""
REPEATED_RUNS = 0.5
"""Share of an answer's runs that may be repetitions of an earlier one."""
MANY_WORDS = 30
"""From this many words on repeated runs are counted."""
LETTERS = 0.25
"""Share of an answer's visible characters that have to be letters or digits; low enough for
formulas, and for scripts that write vowels as marks."""
MANY_SIGNS = 12
"""Shorter answers, such as a formula, may be signs only."""
EXCERPT = 40

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_WORD = re.compile(r"[\W_]")
_URL_ONLY = re.compile(r"\s*(?:<?(?:https?://|www\.)\S+\s*)+", re.IGNORECASE)
_INVISIBLE = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]+")
_HIGH = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""What the second and later bytes of UTF-8 become when read as Windows-1252 or Latin-1."""
_SURE = re.compile(r"[ÂÃ][\x80-\xa0¡-¬®-¿]|â€[\x80-\xbf™œ“”˜¦¢]|ï»¿|ï¿½|ðŸ")
_MAYBE = re.compile(
    rf"(?:[Â-ß][{_HIGH}]|[à-ï][{_HIGH}]{{2}}|[ð-ô][{_HIGH}]{{3}}){{3}}",
)
"""One such sequence may be a capital before a closing quote; three in a row are no text."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A row that was taken out."""

    origin: Origin
    rule: str
    reason: str


@dataclass(slots=True)
class Filtered:
    """What is left of a set of examples, and why the rest is not."""

    kept: list[Example] = field(default_factory=list)
    removed: list[Removal] = field(default_factory=list)

    def summary(self) -> dict[str, int]:
        """Return how many rows each rule removed, the strictest first."""
        return dict(Counter(removal.rule for removal in self.removed).most_common())


def apply_rules(examples: Iterable[Example], rules: Mapping[str, Rule]) -> Filtered:
    """Keep the examples that no rule objects to; the first rule that does is named."""
    result = Filtered()
    for example in examples:
        removal = first_removal(example, rules)
        if removal is None:
            result.kept.append(example)
        else:
            result.removed.append(removal)
    return result


def first_removal(example: Example, rules: Mapping[str, Rule]) -> Removal | None:
    """Return what the first rule that objects to an example says."""
    for name, rule in rules.items():
        reason = rule(example)
        if reason is not None:
            return Removal(example.origin, name, reason)
    return None


def quality_rules(names: Sequence[str]) -> dict[str, Rule]:
    """Return the rules of these names, in the order of ``RULES``."""
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise UsageError(
            f"There is no rule {unknown[0]!r}.", expected=f"some of {', '.join(RULES)}"
        )
    return {name: rule for name, rule in RULES.items() if name in names}


def length_rule(
    unit: str,
    count: Callable[[str], int],
    least: int | None,
    most: int | None,
    *,
    answers_only: bool = False,
) -> Rule:
    """Return a rule that removes rows shorter than ``least`` or longer than ``most`` units."""
    if least is not None and most is not None and least > most:
        raise UsageError(f"No text has at least {least} and at most {most} {unit}.")

    def rule(example: Example) -> str | None:
        text = _answer(example) if answers_only else _whole(example)
        number = count(text)
        if least is not None and number < least:
            return f"{number} {unit}, fewer than {least}"
        if most is not None and number > most:
            return f"{number} {unit}, more than {most}"
        return None

    return rule


def count_words(text: str) -> int:
    """Return the number of words; in a script without spaces each sign is one."""
    return len(words(text))


def control_characters(example: Example) -> str | None:
    """Terminal codes, null bytes, lone surrogates: leftovers of a broken export."""
    found = _CONTROL.search(_whole(example))
    return None if found is None else f"the character U+{ord(found[0]):04X}"


def replacement_characters(example: Example) -> str | None:
    """U+FFFD: letters that were lost when the text was decoded."""
    number = _whole(example).count("\ufffd")
    return f"{number} characters lost in decoding (U+FFFD)" if number else None


def mojibake(example: Example) -> str | None:
    """UTF-8 that was read as another encoding, such as «Ã©» for «é»."""
    text = _whole(example)
    if text.isascii():
        return None
    found = _SURE.search(text) or _MAYBE.search(text)
    return f"«{found[0]}» looks like letters in the wrong encoding" if found else None


def repetition(example: Example) -> str | None:
    """An answer that says the same lines, or the same words in a row, again and again."""
    text = _answer(example)
    lines = [line.strip() for line in text.split("\n") if len(line.strip()) >= LONG_LINE]
    again = len(lines) - len(set(lines))
    if len(lines) >= MANY_LINES and again > REPEATED_LINES * len(lines):
        return f"{again} of {len(lines)} lines are repeated"
    found = words(text)
    runs = [found[at : at + RUN] for at in range(len(found) - RUN + 1)]
    again = len(runs) - len(set(runs))
    if len(found) >= MANY_WORDS and again > REPEATED_RUNS * len(runs):
        return f"{again / len(runs):.0%} of the answer's words repeat what it said before"
    return None


def few_letters(example: Example) -> str | None:
    """An answer of little but punctuation and symbols."""
    seen = _INVISIBLE.sub("", _answer(example))
    signs = _NOT_WORD.findall(seen)
    if len(seen) < MANY_SIGNS or len(signs) <= (1 - LETTERS) * len(seen):
        return None
    return f"{len(signs)} of {len(seen)} characters are signs"


def empty_answer(example: Example) -> str | None:
    """Nothing to learn: no answer, or one of spaces and invisible characters."""
    calls = any(segment.weight and segment.extra for segment in example.segments)
    return None if calls or _INVISIBLE.sub("", _answer(example)) else "the answer is empty"


def answer_is_prompt(example: Example) -> str | None:
    """An answer that only says the question again."""
    asked = ""
    for segment in example.segments:
        if segment.role == "user":
            asked = normalised(segment.text)
        elif segment.weight and asked and normalised(segment.text) == asked:
            return "the answer is the prompt again"
    return None


def url_only(example: Example) -> str | None:
    """An answer of nothing but links."""
    return "the answer is only a link" if _URL_ONLY.fullmatch(_answer(example)) else None


RULES: Mapping[str, Rule] = {
    "empty-answer": empty_answer,
    "answer-is-prompt": answer_is_prompt,
    "url-only": url_only,
    "control-characters": control_characters,
    "replacement-characters": replacement_characters,
    "mojibake": mojibake,
    "few-letters": few_letters,
    "repetition": repetition,
}
"""In the order in which they are asked."""


def _whole(example: Example) -> str:
    return "\n".join(segment.text for segment in example.segments)


def _answer(example: Example) -> str:
    return "\n".join(segment.text for segment in example.segments if segment.weight)
