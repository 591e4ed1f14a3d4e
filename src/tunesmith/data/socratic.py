"""Lists of Socratic questions: how they are written and read, what makes one valid, their types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.words import content_words, numbers, words

ALIKE = 0.9
"""Share of words in common from which on two questions are the same."""
FEWEST, MOST = 1, 20
"""Questions of a valid list."""

_MARKED = re.compile(
    r"""\s*(?:[*_]{2})?                         # bold
    (?: (?:Q(?:uestion)?\s*)?[(\[]?(?P<number>\d{1,3})(?:[.):\]](?!\d)|\s*[-–](?=\s))
      | [-*•–](?=\s) )
    (?:[*_]{2})?\s*(?P<text>.*)""",
    re.IGNORECASE | re.VERBOSE,
)
_ENDS = re.compile(r"[?？؟][\s\"'”’»)\]*_]*$")
_GIVEN = re.compile(
    r"\b(?:the|your|my|its) (?:final )?answer (?:is|was|must be|would be)\b|=\s*\$?\d"
)
_ANSWER_WORDS = frozenset({"yes", "no", "true", "false", "maybe", "none"})


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one question of a list, or with the list as a whole."""

    position: int | None
    """From 0; None for the list."""
    kind: str
    """A name in ``FAULTS``."""
    reason: str


FAULTS: Mapping[str, bool] = {
    "count": True,
    "not a question": True,
    "repeated": True,
    "direct": True,
    "premature": True,
    "irrelevant": False,
}
"""Kinds of faults; True where one makes a list invalid, False where it is only worth a look.
Whether a question is irrelevant cannot be read off its words for sure."""

_TYPE_WORDS = {
    "alternative viewpoints": (
        r"\b(?:another|other|different|alternative)(?:ly)? "
        r"(?:ways?|views?|methods?|sides?|perspectives?|approach\w*|explanations?|strateg\w+)\b",
        r"\b(?:opponent|critic|somebody|someone|other)s? (?:say|argue|think|see|disagree)\w*\b",
        r"\b(?:perspectives?|viewpoints?|points? of view|counter-?arguments?|alternativ\w+)\b",
    ),
    "assumptions": (
        r"\b(?:assum|presum|presuppos)\w+|\bsuppos(?:e|ing|ition)\b|\bfor granted\b",
        r"\bwhat if\b|\balways true\b|\bmust (?:it|this|that) be\b",
    ),
    "implications": (
        r"\bimpl(?:y|ies|ications?)\b|\bconsequen\w+|\boutcomes?\b|\bimpacts?\b|\beffects? of\b",
        r"\bwhat (?:would|will|might|could) (?:happen|follow|change|result)\b|\baffects?\b",
        r"\b(?:lead|leads|leading) to\b|\bresults? in\b|\bif (?:so|that is so)\b|\bthen what\b",
    ),
    "reasons and evidence": (
        r"\bwhy\b|\bevidence\b|\breason(?:s|ing)?\b|\bbecause\b|\bjustif\w+|\bpro(?:of|ve)\b",
        r"\bhow (?:do|can|could|would|did) (?:you|we|i|one) (?:know|tell|show|check|verify)\b",
        r"\bcauses?\b|\bexplain\b|\bsupports?\b|\bbased on\b|\bexamples?\b",
    ),
    "clarification": (
        r"^\W*(?:what|which|who|whose|whom|where|when|how)\b",
        r"\bmean(?:s|t|ing)?\b|\bdefine\b|\bclarif\w+|\bin other words\b|\bdescribe\b",
    ),
}
TYPES: Mapping[str, re.Pattern[str]] = {
    name: re.compile("|".join(patterns), re.IGNORECASE) for name, patterns in _TYPE_WORDS.items()
}
"""Type of question → words that show it (English), looked for in this order."""
OTHER = "other"


def render_list(questions: Sequence[str]) -> str:
    """Return questions as a numbered list, one a line; line breaks inside one become spaces."""
    lines = [" ".join(question.split()) for question in questions]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(filter(None, lines), 1))


def parse_list(text: str) -> list[str]:
    """Return the questions of a list as a model or a person may have written it.

    Items begin with ``1.``, ``1)``, ``(1)``, ``-``, ``*``, ``•`` or ``Q1:``; blank lines, an
    introduction and text behind the list are left out, and so is a second list after other text
    that counts from the start again. An item goes on in the next line until it ends in a question
    mark or a line is blank. Without any mark each line that ends in a question mark is a question.
    """
    lines = [line.strip() for line in text.split("\n")]
    found: list[str] = []
    last, is_open, is_apart = 0, False, False
    for line in lines:
        match = _MARKED.fullmatch(line)
        if match is not None:
            number = int(match["number"] or 0)
            if is_apart and number and number <= last:
                break
            last = number or last
            found.append(_bare(match["text"]))
            is_open, is_apart = not _ENDS.search(found[-1]), False
        elif not line:
            is_open = False
        elif is_open:
            found[-1] = _bare(f"{found[-1]} {line}")
            is_open = not _ENDS.search(found[-1])
        else:
            is_apart = bool(found)
    found = [item for item in found if item]
    return found or [_bare(line) for line in lines if _ENDS.search(line)]


def is_question(text: str) -> bool:
    """Say whether a text ends in a question mark, whatever quotes or brackets follow it."""
    return bool(_ENDS.search(text))


def find_faults(
    questions: Sequence[str],
    instruction: str,
    *,
    gold: str | None = None,
    fewest: int = FEWEST,
    most: int = MOST,
) -> list[Fault]:
    """Return everything that is wrong with a list of questions about an instruction.

    ``gold`` is the answer that the questions must not give away, where it is known.
    """
    faults: list[Fault] = []
    if not fewest <= len(questions) <= most:
        faults.append(Fault(None, "count", f"{len(questions)} questions, not {fewest} to {most}"))
    topic = content_words(instruction)
    wanted = _last_question(instruction)
    sound: list[int] = []
    for at, question in enumerate(questions):
        if not is_question(question):
            faults.append(Fault(at, "not a question", "no question mark at the end"))
        same = next((n for n, other in enumerate(questions[:at]) if alike(question, other)), None)
        if same is not None:
            faults.append(Fault(at, "repeated", f"the same as question {same + 1}"))
        if is_question(question) and same is None:
            sound.append(at)
        given = _gives_away(question, instruction, gold)
        if given:
            faults.append(Fault(at, "direct", given))
        if topic and not topic & content_words(question):
            faults.append(Fault(at, "irrelevant", "shares no content word with the instruction"))
    for at in sound[:-1]:
        if wanted and alike(questions[at], wanted):
            faults.append(Fault(at, "premature", "asks for the result before the way to it"))
    return faults


def is_valid(faults: Sequence[Fault]) -> bool:
    """Say whether a list with these faults may be trained on."""
    return not any(FAULTS[fault.kind] for fault in faults)


def question_type(question: str) -> str:
    """Return the type that the words of a question show, or ``OTHER``; a rule of thumb."""
    return next((name for name, rule in TYPES.items() if rule.search(question)), OTHER)


def alike(first: str, second: str) -> bool:
    """Say whether two questions are the same but for small words or their order.

    One content word that differs (the second month, the third month) makes another question.
    """
    one, other = set(words(first)), set(words(second))
    if not one or not other:
        return " ".join(first.split()) == " ".join(second.split())
    if content_words(first) != content_words(second) or numbers(first) != numbers(second):
        return False
    return len(one & other) >= ALIKE * len(one | other)


def _gives_away(question: str, instruction: str, gold: str | None) -> str | None:
    said = _GIVEN.search(question.casefold())
    if said is not None:
        return f"says «{said[0]}»"
    if gold is None:
        return None
    value = numbers(gold)
    if len(value) == 1 and len(words(gold)) <= 2:
        if value[0] in numbers(question) and value[0] not in numbers(instruction):
            return f"names the answer {gold}"
        return None
    sought = words(gold)
    if not sought or set(sought) <= _ANSWER_WORDS:
        return None
    if _holds(words(question), sought) and not _holds(words(instruction), sought):
        return f"names the answer «{gold}»"
    return None


def _holds(text: Sequence[str], sought: Sequence[str]) -> bool:
    size = len(sought)
    return any(text[at : at + size] == sought for at in range(len(text) - size + 1))


def _last_question(instruction: str) -> str | None:
    """Return the last sentence of an instruction if it is a question."""
    sentences = re.split(r"(?<=[.!?？؟。])\s*", instruction.strip())
    return next((s for s in reversed(sentences) if s and is_question(s)), None)


def _bare(text: str) -> str:
    text = " ".join(text.split())
    for mark in ("**", "__"):
        # Bold around the whole item, its opening half perhaps taken off with the number.
        if text.endswith(mark) and text.count(mark) <= 2:
            text = text.removesuffix(mark).removeprefix(mark).strip()
    return text
