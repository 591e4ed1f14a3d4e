"""Simple English statements: their subject, their verb and the rest, by patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.data.raft.lexicon import NOT_NAMES
from tunesmith.data.raft.verbs import BASES, PAST, THIRD

MOST_SUBJECT = 10
"""Words of a subject, at most."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the whole text tells of its words."""

    names: frozenset[str]
    """Words with a capital within sentences."""
    text: str


Statement = tuple[str, str, str, str]
"""Auxiliary, subject, verb (if it is none of the auxiliary), and the rest."""

CAP = r"(?:(?:[A-Z]\.){2,}|[A-ZÀ-ÖØ-ÞŁŚŻŹĆ][\w’&-]*(?:'(?!s\b)\w+)?|[A-Z]\.)"

_LINK = r"(?: (?:of|of the|the|and|de|van|von|der|al|for|du|la|ibn) (?=[A-ZÀ-ÖØ-ÞŁŚŻŹĆ])| )"

NAME = rf"{CAP}(?:{_LINK}{CAP})*"

_SUBJECTS = (
    rf"{NAME}",
    rf"The (?:[a-z-]+ ){{0,2}}{NAME}(?: [a-z]+)?",
    rf"(?:The )?{NAME}'s?(?: [a-z-]+){{1,3}}",
    rf"The (?:[a-z-]+ ){{1,7}}?(?:of|in|for) (?:the )?{NAME}",
    rf"{NAME} [a-z]+",
    r"(?:[A-Z][a-z-]+ )?(?:[a-z-]+ ){1,3}" + NAME,
    r"The [a-z-]+(?: [a-z-]+){1,4}",
    r"[A-Z][a-z]+(?: [a-z]+){0,2}",
)
"""Shapes of a subject that says by itself what is spoken of, in words."""

MONTHS = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)

YEAR = r"(?:1[0-9]{3}|20[0-9]{2})"

DATE = rf"(?:{MONTHS} \d{{1,2}}, {YEAR}|\d{{1,2}} {MONTHS} {YEAR})"

NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?(?: (?:million|billion|trillion))?|two|three|four|"
    r"five|six|"
    r"seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|hundreds|thousands)"
)

_AUX = (
    r"(?P<aux>is|was|are|were|(?:has|had|have)(?= (?:been|become|won|made|taken|[a-z]+ed)\b)|"
    r"can)"
)

_CUT = re.compile(
    r"(?:,(?=\s)| [–—-] |;|:\s| (?:which|who|whose|whom|that|when|where|while|because|although|"
    r"though|but|whereas|until|after|before|as well as|so that|"
    r"and (?=(?:was|is|were|had|has|then|later|in)\b))\b).*$",
    re.DOTALL,
)

VAGUE = re.compile(
    r"\b(?:he|she|it|they|him|her|hers|his|its|their|theirs|them|this|these|those|we|our|us|i|my|"
    r"you|your|former|latter|such|himself|herself|itself|themselves|here|said|one|ones|another|"
    r"same|other|others)\b",
    re.IGNORECASE,
)

_NO_PART = re.compile(
    r"[a-z]+ly|also|therefore|that|there|which|who|when|then|still|never|often|"
    r"is|was|are|were|has|had|have|can|will|would"
)
"""Words that a subject does not hold; where one stands, the verb is another."""

BE = {"is", "was", "are", "were"}

_OPENING = re.compile(
    r"^(?:However|Meanwhile|Today|Then|Thus|Therefore|Moreover|Furthermore|Additionally|Also|Later|"
    r"Finally|Eventually|Currently|Historically|In addition|In fact|For example|For instance|"
    r"In particular|In general|As a result|By contrast|In contrast|Similarly|Nevertheless|Instead|"
    r"Traditionally|Generally|Typically|Recently|Originally|Initially|Subsequently), "
)

_JOINED = re.compile(r"(?:, (?:and|while|but|whereas)|;(?: and| but)?) (?=(?:the )?[A-Z])")

_APPOSITION = re.compile(rf"^(?P<name>{NAME}), (?P<what>an? [^,;]{{5,70}}), (?P<rest>[a-z]+ .+)$")

_SETTING = re.compile(
    r"^(?:In|At|By|During|After|Before|Through|Under|Throughout|According to|Since|From) "
    r"(?![^,]*\b[12]\d{3}\b)[^,]{3,60}, (?P<main>(?:the )?[A-Z].*)$"
)

TAIL = (
    rf"(?=[.,;:](?:\s|$)| (?:in (?:the )?(?:[12]\d{{3}}|{MONTHS}|{NAME})|on {MONTHS}|at the|"
    rf"during|until|"
    r"which|that|who|when|while|because|after|before|but|and (?:[a-z]+ed|was|is|were|has|had)\b|"
    r"in the [a-z]+|to [a-z]+|(?:originally )?(?:built|created|designed|led|developed|made|used)|"
    r"by [a-z]+ing|as a|so|if|where|although|for (?:the|a)\b))"
)


def clauses(sentence: str) -> Iterator[str]:
    """Yield a sentence, and its parts that are statements with a name of their own in front."""
    opened = _OPENING.match(sentence)
    main = sentence[opened.end() :] if opened else sentence
    first, *others = _JOINED.split(main)
    for clause in (first, *others):
        if placed := _SETTING.match(clause):
            clause = f"{placed['main']}"
        begun = clause[0].upper() + clause[1:]
        begun = begun if begun.endswith(".") else begun + "."
        if apposed := _APPOSITION.match(begun):
            if not re.match(r"(?:and|or|as)\b", apposed["rest"]):
                tense = "was" if verb_form(apposed["rest"].split()[0]) or " was " in begun else "is"
                yield f"{apposed['name']} {tense} {apposed['what']}."
                yield f"{apposed['name']} {apposed['rest']}"
        else:
            yield begun


def without_brackets(sentence: str) -> str:
    """Return a sentence without what stands in brackets."""
    bare = re.sub(r"\[[^\[\]]*\]", "", re.sub(r" ?\([^()]*\)", "", sentence))
    return (
        re.sub(r"^([^,]+), (is|was|are|were|has)\b", r"\1 \2", bare) if bare != sentence else bare
    )


def parse(text: str, known: Known) -> Statement | None:
    """Split a statement so that a question can be made of it."""
    for subject, found in subjects(text, known, rf"{_AUX} (?P<rest>.+)$"):
        return found["aux"], subject, "", found["rest"]
    for subject, found in subjects(text, known, r"(?P<verb>[a-z]+) (?P<rest>.+)$"):
        verb = verb_form(found["verb"])
        if re.match(r"(?:and|or|by)\b", found["rest"]):
            continue
        if verb and verb[0] == "do" and not re.search(r"[^s]s$", subject.split(" of ")[0]):
            continue
        # «The tower built in 1903 was …»: a participle, not the verb of the sentence.
        if (
            verb
            and not VAGUE.search(subject)
            and not re.search(
                r"^[^,]* (?:is|was|are|were|has|had|have|can|will|would)\b", found["rest"]
            )
        ):
            return verb[0], subject, verb[1], found["rest"]
    return None


def subjects(text: str, known: Known, then: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield (subject, match) for each beginning that is a subject with ``then`` after it."""
    words = text.split(" ")
    for size in range(1, min(MOST_SUBJECT, len(words) - 1) + 1):
        head = " ".join(words[:size])
        found = re.match(then, text[len(head) + 1 :])
        if not found or not any(re.fullmatch(shape, head) for shape in _SUBJECTS):
            continue
        if subject := subject_of(head, known):
            yield subject, found


def subject_of(found: str, known: Known) -> str:
    """Return a subject as it stands within a sentence, or nothing if it names nothing."""
    words = found.split()
    first = words[0].removesuffix("'s").removesuffix("'")
    if not plain_words(" ".join(words[1:])):
        return ""
    if words[-1] in ("and", "or"):
        return ""
    if words[0] == "The":
        # «The plant», «the uppercase version»: of which, the text around it says.
        if len(words) < 4 and found[4:].islower():
            return ""
        return "the " + " ".join(words[1:]) if len(words) > 1 else ""
    if first.casefold() in NOT_NAMES:
        return ""
    if sum(word[0].isupper() for word in words) > 1 or first in known.names:
        return found
    # A thing, such as «Oxygen» or «Prime numbers», that the text also writes small.
    if len(words) > 2 and re.fullmatch(rf"(?:[A-Z]?[a-z-]+ )+{NAME}", found):
        return re.sub(r"^(?:[A-Z]?[a-z-]+ )+(?=[A-Z])", "", found)
    lowered = found[0].lower() + found[1:]
    return lowered if re.search(rf"(?<=[a-z,] ){re.escape(lowered)}\b", known.text) else ""


def plain_words(text: str) -> bool:
    """Say whether no verb or adverb stands among the words of a subject."""
    return not any(_NO_PART.fullmatch(w) or w in PAST or w == "states" for w in text.split())


def verb_form(word: str) -> tuple[str, str] | None:
    """Return (did or does, base form) of a verb form, if it is a known one."""
    if word in PAST:
        return "did", PAST[word]
    if word in THIRD:
        return "does", THIRD[word]
    if word in BASES:
        return "do", word
    return None


def turned(parts: Statement, rest: str) -> str:
    """Return the inverted statement, with ``rest`` in the place of its own: «was X built»."""
    auxiliary, subject, verb, _ = parts
    return " ".join(word for word in (auxiliary, subject, verb, rest) if word)


def trimmed(text: str) -> str:
    """Return a predicate up to where another clause begins."""
    return _CUT.sub("", text).strip().rstrip(".").strip()


_HE = re.compile(r"^(?:(?P<he>He|She)|(?P<his>His|Her)) (?=[a-z])")
_LEADING = re.compile(rf"^(?P<name>{NAME}) (?:(?:is|was|has|had) |(?P<verb>[a-z]+) )")


def with_name(sentence: str, person: str, known: Known) -> tuple[str, str]:
    """Return the person spoken of, and the sentence with the name for a He or She in front.

    «He» is the subject of the sentence before, and only if that began with a name.
    """
    if found := _HE.match(sentence):
        if not person:
            return "", sentence
        return person, (person if found["he"] else f"{person}'s") + sentence[found.end() - 1 :]
    found = _LEADING.match(sentence)
    if found and (not found["verb"] or verb_form(found["verb"])):
        return subject_of(found["name"], known), sentence
    return "", sentence


def as_beginning(text: str) -> str:
    """Return a clause as if it began a sentence: «the Senate …» becomes «The Senate …»."""
    return "The " + text[4:] if text.startswith("the ") else text
