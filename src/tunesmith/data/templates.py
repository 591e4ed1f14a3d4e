"""Short-answer questions from a text's own sentences, by patterns of English; no model.

Each pattern turns one clear statement into a question whose answer is words of that statement.
What is not clearly of a pattern is left: fewer questions, but questions that a person would ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tunesmith.data.sentences import sentences
from tunesmith.data.verbs import BASES, PARTICIPLES, PAST, THIRD

MOST_WORDS = 24
"""A longer question is a sign of a statement that was not understood."""


MOST_SUBJECT = 10
"""Words of a subject, at most."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer, both from ``sentence``."""

    question: str
    answer: str
    sentence: str
    kind: str


@dataclass(frozen=True, slots=True)
class Known:
    """What the whole text tells of its words."""

    names: frozenset[str]
    """Words with a capital within sentences."""
    text: str


_CAP = r"(?:(?:[A-Z]\.){2,}|[A-ZÀ-ÖØ-ÞŁŚŻŹĆ][\w’&-]*(?:'(?!s\b)\w+)?|[A-Z]\.)"
_LINK = r"(?: (?:of|of the|the|and|de|van|von|der|al|for|du|la|ibn) (?=[A-ZÀ-ÖØ-ÞŁŚŻŹĆ])| )"
_NAME = rf"{_CAP}(?:{_LINK}{_CAP})*"
_SUBJECTS = (
    rf"{_NAME}",
    rf"The (?:[a-z-]+ ){{0,2}}{_NAME}(?: [a-z]+)?",
    rf"(?:The )?{_NAME}'s?(?: [a-z-]+){{1,3}}",
    rf"The (?:[a-z-]+ ){{1,7}}?(?:of|in|for) (?:the )?{_NAME}",
    rf"{_NAME} [a-z]+",
    rf"(?:[A-Z][a-z-]+ )?(?:[a-z-]+ ){{1,3}}" + _NAME,
    r"The [a-z-]+(?: [a-z-]+){1,4}",
    r"[A-Z][a-z]+(?: [a-z]+){0,2}",
)
"""Shapes of a subject that says by itself what is spoken of, in words."""
_MONTHS = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
_YEAR = r"(?:1[0-9]{3}|20[0-9]{2})"
_DATE = rf"(?:{_MONTHS} \d{{1,2}}, {_YEAR}|\d{{1,2}} {_MONTHS} {_YEAR})"
_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?(?: (?:million|billion|trillion))?|two|three|four|five|six|"
    r"seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|hundreds|thousands)"
)
_AUX = (
    r"(?P<aux>is|was|are|were|(?:has|had|have)(?= (?:been|become|won|made|taken|[a-z]+ed)\b)|"
    r"can)"
)
_CUT = re.compile(
    r"(?:,| [–—-]|;|:| (?:which|who|whose|whom|that|when|where|while|because|although|though|but|"
    r"whereas|until|after|before|as well as|so that|and (?=(?:was|is|were|had|has|then|later|in)\b)))\b.*$|"
    r",.*$|;.*$|:.*$| [–—-] .*$",
    re.DOTALL,
)
_NOT_NAMES = frozenset(
    """
    the a an this that these those it he she they we i you his her its their our my your there here
    in on at by for from with to of as if when while after before since during under over through
    although though because however moreover furthermore thus therefore also then later today now
    both each every some many most several few all any no one two three other others another such
    what who which where why how but and or so yet not only even just according despite unlike like
    among between within without until upon about above below behind beyond near next first second
    third finally instead additionally similarly meanwhile nowadays currently recently originally
    initially subsequently prior following based given using once perhaps nearby eventually early
    late further still again often sometimes generally usually typically finally overall together
    little much more less half part none neither either nor with new modern old local national
    january february march april june july august september october november december
    """.split()
)
_VAGUE = re.compile(
    r"\b(?:he|she|it|they|him|her|hers|his|its|their|theirs|them|this|these|those|we|our|us|i|my|"
    r"you|your|former|latter|such|himself|herself|itself|themselves|here|said|one|ones|another|"
    r"same|other|others)\b",
    re.IGNORECASE,
)
_HAZY = re.compile(
    r"^[A-Z][a-z]+(?: (?:what|many|much) [a-z]+| [a-z]+)? (?:is|was|are|were|did|does|do|has|had|have|can) "
    r"the [a-z-]+(?: [a-z]+)?$"
)
"""«By whom is the network operated»: which network, the question does not say."""
_PERSONAL = frozenset(
    """
    politician player engineer inventor physicist scientist mathematician writer author poet painter
    king queen emperor ruler general leader bishop monk priest philosopher historian architect
    composer singer actor actress musician economist lawyer judge president minister governor founder
    chemist astronomer biologist professor teacher student artist sculptor explorer soldier
    commander officer nobleman duke prince princess theologian missionary reformer activist
    journalist critic scholar dancer director producer coach quarterback linebacker manager analyst
    programmer developer member doctor physician nurse surgeon merchant banker khan pope man woman boy girl
    son daughter brother sister wife husband cornerback safety receiver pilot mechanic linguist
    """.split()
)
_HUMAN_VERBS = frozenset(
    "marry die study graduate teach write paint believe argue invent discover retire resign".split()
)
Statement = tuple[str, str, str, str]
"""Auxiliary, subject, verb (if it is none of the auxiliary), and the rest."""
_NO_PART = re.compile(r"[a-z]+ly|also|therefore|that|there|which|who|when|then|still|never|often")
"""Words that a subject does not hold; where one stands, the verb is another."""
_BE = {"is", "was", "are", "were"}


def ask(text: str) -> Iterator[Asked]:
    """Yield the questions of a text, sentence by sentence.

    Names are recognised by their capitals: a single capitalised word at the start of a sentence
    counts as a name only if the text writes it so elsewhere, within a sentence.
    """
    names = frozenset(re.findall(rf"(?<=[a-z,;] )({_CAP})", text))
    known = Known(names, text)
    for sentence in sentences(text):
        if not _plain(sentence):
            continue
        for clause in _clauses(_clean(sentence)):
            for pattern in PATTERNS:
                for asked in pattern(clause, known):
                    whole = replace(asked, sentence=sentence)
                    if _sound(whole):
                        yield whole


def _plain(sentence: str) -> bool:
    """Say whether a sentence is one whole statement that patterns may look at."""
    words = sentence.split()
    return (
        5 <= len(words) <= 45
        and sentence[0].isupper()
        and sentence.endswith(".")
        and "\n" not in sentence
    )


def _sound(asked: Asked) -> bool:
    """Say whether a question and its answer may stand as they are."""
    question, answer = asked.question, asked.answer
    body = question[: -len("?")]
    return (
        len(question.split()) <= MOST_WORDS
        and 0 < len(answer.split()) <= 12
        and answer in asked.sentence
        and not _VAGUE.search(body)
        and not re.search(r"[()/;“”\"«»\[\]{}|<>=…]|\.\.", question + answer)
        and not _HAZY.search(body)
        and answer.casefold() not in question.casefold()
        and not re.search(r"\b(?:and|or|of|the|a|in|to|by|with|for|as|from|than|at|on)$", body)
        and not re.search(r"^(?:and|or|of|which|that)\b|\b(?:and|or|of|the|a|to)$", answer)
    )


def _subject(found: str, known: Known) -> str:
    """Return a subject as it stands within a sentence, or nothing if it names nothing."""
    words = found.split()
    first = words[0].removesuffix("'s").removesuffix("'")
    if any(_NO_PART.fullmatch(word) or word in PAST for word in words[1:]):
        return ""
    if words[0] == "The":
        return "the " + " ".join(words[1:]) if len(words) > 1 else ""
    if first.casefold() in _NOT_NAMES:
        return ""
    if sum(word[0].isupper() for word in words) > 1 or first in known.names:
        return found
    # A thing, such as «Oxygen» or «Prime numbers», that the text also writes small.
    if len(words) > 2 and re.fullmatch(rf"(?:[A-Z]?[a-z-]+ )+{_NAME}", found):
        return re.sub(r"^(?:[A-Z]?[a-z-]+ )+(?=[A-Z])", "", found)
    lowered = found[0].lower() + found[1:]
    return lowered if re.search(rf"(?<=[a-z,] ){re.escape(lowered)}\b", known.text) else ""


def _heads(text: str, known: Known, then: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield (subject, match) for each beginning that is a subject with ``then`` after it."""
    words = text.split(" ")
    for size in range(1, min(MOST_SUBJECT, len(words) - 1) + 1):
        head = " ".join(words[:size])
        found = re.match(then, text[len(head) + 1 :])
        if found and any(re.fullmatch(shape, head) for shape in _SUBJECTS):
            if subject := _subject(head, known):
                yield subject, found


def _trimmed(text: str) -> str:
    """Return a predicate up to where another clause begins."""
    return _CUT.sub("", text).strip().rstrip(".").strip()


_OPENING = re.compile(
    r"^(?:However|Meanwhile|Today|Then|Thus|Therefore|Moreover|Furthermore|Additionally|Also|Later|"
    r"Finally|Eventually|Currently|Historically|In addition|In fact|For example|For instance|"
    r"In particular|In general|As a result|By contrast|In contrast|Similarly|Nevertheless|Instead|"
    r"Traditionally|Generally|Typically|Recently|Originally|Initially|Subsequently), "
)
_JOINED = re.compile(r"(?:, (?:and|while|but|whereas)|;(?: and| but)?) (?=(?:the )?[A-Z])")
_APPOSITION = re.compile(
    rf"^(?P<name>{_NAME}), (?P<what>an? [^,;]{{5,70}}), (?P<rest>[a-z]+ .+)$"
)


_SETTING = re.compile(
    r"^(?:In|At|By|During|After|Before|Through|Under|Throughout|According to|Since|From) "
    r"(?![^,]*\b[12]\d{3}\b)[^,]{3,60}, (?P<main>(?:the )?[A-Z].*)$"
)


def _clauses(sentence: str) -> Iterator[str]:
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
                tense = "was" if _verb(apposed["rest"].split()[0]) or " was " in begun else "is"
                yield f"{apposed['name']} {tense} {apposed['what']}."
                yield f"{apposed['name']} {apposed['rest']}"
        else:
            yield begun


def _clean(sentence: str) -> str:
    """Return a sentence without what stands in brackets."""
    bare = re.sub(r"\[[^\[\]]*\]", "", re.sub(r" ?\([^()]*\)", "", sentence))
    return re.sub(r"^([^,]+), (is|was|are|were|has)\b", r"\1 \2", bare) if bare != sentence else bare


def _verb(word: str) -> tuple[str, str] | None:
    """Return (did or does, base form) of a verb form, if it is a known one."""
    if word in PAST:
        return "did", PAST[word]
    if word in THIRD:
        return "does", THIRD[word]
    if word in BASES:
        return "do", word
    return None


_WHEN = rf"(?:{_DATE}|{_MONTHS} {_YEAR}|{_YEAR}|the {_YEAR}s|the \d{{1,2}}(?:st|nd|rd|th) century)"
_FRONTED = re.compile(rf"^(?:In|On) (?:(?:early|late) )?(?P<when>{_WHEN}),? (?P<main>.+)$")


def _when(when: str) -> str:
    if re.fullmatch(_YEAR, when):
        return "In what year"
    if when.startswith("the "):
        return "In what decade" if when.endswith("s") else "In what century"
    return "On what date" if re.fullmatch(_DATE, when) else "In what month and year"


def _statement(text: str, known: Known) -> Statement | None:
    """Split a statement so that a question can be made of it."""
    for subject, found in _heads(text, known, rf"{_AUX} (?P<rest>.+)$"):
        return found["aux"], subject, "", found["rest"]
    for subject, found in _heads(text, known, r"(?P<verb>[a-z]+) (?P<rest>.+)$"):
        verb = _verb(found["verb"])
        if re.match(r"(?:and|or|of|by)\b", found["rest"]):
            continue
        if verb and verb[0] == "do" and not re.search(r"[^s]s$", subject.split(" of ")[0]):
            continue
        # «The tower built in 1903 was …»: a participle, not the verb of the sentence.
        if verb and not _VAGUE.search(subject) and not re.search(
            r"^[^,]* (?:is|was|are|were|has|had|have|can|will|would)\b", found["rest"]
        ):
            return verb[0], subject, verb[1], found["rest"]
    return None


def _turned(parts: Statement, rest: str) -> str:
    auxiliary, subject, verb, _ = parts
    return " ".join(word for word in (auxiliary, subject, verb, rest) if word)


def _dates(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was founded in 1823» → «In what year was X founded?»; also «In 1823, X …»."""
    if found := _FRONTED.match(sentence):
        parts = _statement(_lowered(found["main"]), known) or _statement(found["main"], known)
        if parts and not re.search(_YEAR, found["main"]):
            rest = _trimmed(parts[3])
            yield Asked(f"{_when(found['when'])} {_turned(parts, rest)}?", found["when"], sentence, "date")
        return
    parts = _statement(sentence, known)
    if parts is None:
        return
    found = re.match(
        rf"^(?P<before>[^,;:]*?) ?\b(?:in|on) (?P<when>{_WHEN})\b(?! (?:and|or|to) [12]|[–-])",
        parts[3],
    )
    if not found or re.search(_YEAR, found["before"]):
        return
    if not found["before"] and not parts[2]:
        return
    question = f"{_when(found['when'])} {_turned(parts, found['before'].strip())}?"
    yield Asked(question, found["when"], sentence, "date")


def _lowered(text: str) -> str:
    """Return a clause as if it began a sentence: «the Senate …» becomes «The Senate …»."""
    return "The " + text[4:] if text.startswith("the ") else text


_PLACED = frozenset(
    """
    located situated born held built founded buried established opened based headquartered signed
    published fought educated raised crowned executed imprisoned arrested killed live work die study
    settle graduate
    """.split()
)


def _places(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was born in Y» → «Where was X born?»; only for verbs that have a place."""
    parts = _statement(sentence, known)
    if parts is None:
        return
    verb = parts[2]
    found = re.match(
        rf"^(?P<verb>{'' if verb else '[a-z]+ '})(?P<prep>in|at|on|near) (?P<where>(?:the )?{_NAME}"
        rf"(?:, {_NAME})?)(?=[.,](?:\s|$)| (?:in|on|as|from|by|since|and|until|with|for)\b)",
        parts[3],
    )
    if not found or re.match(rf"{_MONTHS}\b|\d", found["where"]):
        return
    if (verb or found["verb"].strip()) not in _PLACED:
        return
    yield Asked(f"Where {_turned(parts, found['verb'].strip())}?", found["where"], sentence, "place")


def _quantities(sentence: str, known: Known) -> Iterator[Asked]:
    """«X won 25 races in Y» → «How many races did X win in Y?»."""
    if found := re.match(
        rf"^There (?P<be>are|were) (?:about |approximately |over |nearly |around )?(?P<n>{_NUMBER}) "
        r"(?P<what>[^,.;]{3,70}?) (?P<where>(?:in|at|on) [^,;]*?[A-Z][^,;]*)\.$",
        sentence,
    ):
        question = f"How many {found['what']} {found['be']} there {found['where']}?"
        yield Asked(question, found["n"], sentence, "quantity")
        return
    if found := re.match(
        r"^(?:About |Approximately |Over |Nearly |Around |Some )?(?P<n>[\d.]+ ?(?:%|percent)) of "
        r"(?P<what>[^,;:]*?[A-Z][^,;:]*?)\.$",
        sentence,
    ):
        yield Asked(f"What percentage of {found['what']}?", found["n"], sentence, "quantity")
        return
    parts = _statement(sentence, known)
    if parts is None:
        return
    if parts[0] in _BE:
        if found := re.match(
            rf"^(?:about |approximately |over |nearly |around )?(?P<n>{_NUMBER}) (?P<what>[a-z-]+s "
            r"(?:long|tall|high|wide|deep|old|thick|north|south|east|west)(?: of [^,;.]*)?)(?=[.,])",
            parts[3],
        ):
            yield Asked(
                f"How many {found['what']} {_turned(parts, '')}?", found["n"], sentence, "quantity"
            )
        return
    found = re.match(
        rf"^(?P<particle>(?:up |out |over |down |of )?)(?:just |about |only |over |nearly |around |"
        rf"approximately |more than |at least |a total of )?(?P<n>{_NUMBER}) "
        r"(?P<what>[a-z][a-z-]*s|[a-z-]+ [a-z][a-z-]*s|people|men|women)\b"
        r"(?P<more>(?: (?:a|per) (?:year|day|week|month))?(?: (?:in|at|for|from|during|against|to|on) "
        r"[^,;:.]*?)?)(?=[.,](?:\s|$)| (?:and|which|that|while|when) )",
        parts[3],
    )
    if found:
        rest = f"{found['particle']}{found['more'].strip()}".strip()
        question = f"How many {found['what']} {_turned(parts, rest)}?"
        yield Asked(question, found["n"], sentence, "quantity")
        return
    found = re.match(
        r"^an? (?P<what>(?:total |estimated )?(?:population|area|length|height|capacity|speed|mass|"
        rf"budget|value|density|depth|width|diameter)) of (?P<n>(?:about |around )?{_NUMBER}[^,.;()]*?)"
        r"(?=[.,](?:\s|$)| (?:in|and|at|with|as|from|by)\b)",
        parts[3],
    )
    if found:
        yield Asked(f"What {found['what']} {_turned(parts, '')}?", found["n"], sentence, "quantity")


_KIND = re.compile(
    r"^(?P<what>(?:an?|one of the|the) .+?)(?= (?:which|who|that|whose|where|when|in (?=[12]\d{3})|"
    r"from (?=[12]\d{3})|before|after|and (?:is|was|has)|led by|made up|used to|"
    r"located|based (?:in|on)|situated|created by|designed by|developed by|consisting)\b|[,.;:](?:\s|$)|$)"
)


def _definitions(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is a kind of Y» → «What is X?»; «X was a poet» → «Who was X?»."""
    then = r"(?P<be>is|was|are|were) (?P<rest>.+)$"
    subject, found = next(_heads(sentence, known, then), ("", None))
    if found is None and (
        found := re.match(rf"^(?P<subject>An? (?:[a-z-]+ ){{0,2}}[a-z-]+) {then}", sentence)
    ):
        subject = found["subject"][0].lower() + found["subject"][1:]
    if found is None and (
        found := re.match(rf"^(?P<subject>[A-Z][a-z]+(?: [a-z]+){{0,3}}) {then}", sentence)
    ):
        subject = found["subject"][0].lower() + found["subject"][1:]
        if found["subject"].split()[0].casefold() in _NOT_NAMES:
            return
    if found is None:
        return
    kind = _KIND.match(found["rest"])
    if not kind or not 3 <= len(kind["what"].split()) <= 12:
        return
    what = kind["what"]
    # What a role is, the next pattern asks the other way round.
    if what.startswith("the ") or re.match(r"an? (?:major|result|part|lot|number|large)\b", what):
        return
    head = re.split(r" (?:of|for|in|from|to|at|by|with|and|on)\b", what, maxsplit=1)[0].split()[-1]
    who = "Who" if head.casefold() in _PERSONAL else "What"
    yield Asked(f"{who} {found['be']} {subject}?", what, sentence, "definition")


_ROLE = re.compile(
    rf"^(?P<subject>{_NAME}) (?P<be>is|was) (?P<role>the (?:[a-z-]+ ){{0,3}}[a-z-]+ "
    rf"(?:of|in|to|for) [^,;:.]*?{_CAP}[^,;:.]*?)(?=[,;:.](?:\s|$)| (?:and|which|who|that|until|when|from)\b)"
)


_FIRST = re.compile(
    rf"^(?P<subject>{_NAME}) (?P<be>became|is|was) (?P<role>the (?:first|last|only|largest|oldest|second|"
    r"third|youngest|highest|longest|most) [^,;:.]{10,90}?)(?=[,;:.](?:\s|$)| (?:and|which|until|when)\b)"
)


def _roles(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is the capital of Y» → «What is the capital of Y?»."""
    found = _ROLE.match(sentence) or _FIRST.match(sentence)
    if not found or not _subject(found["subject"], known):
        return
    heads = re.split(r" (?:of|in|to|for)\b", found["role"], maxsplit=1)[0].split()
    full = len(found["subject"].split()) > 1
    who = "Who" if full and _PERSONAL.intersection(heads) else "What"
    question = f"{who} {found['be']} {found['role']}?"
    yield Asked(question, found["subject"], sentence, "role")


def _names(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is also known as Y» → «What is X also known as?»."""
    then = (
        r"(?P<be>is|was|are|were) (?P<how>(?:also |often |sometimes |originally |"
        r"formerly |commonly )?(?:known as|called|named after|named|nicknamed|referred to as)) "
        rf"(?P<name>(?:the |an? )?(?:{_NAME}|[a-z]+(?: [a-z]+)?))(?=[.,](?:\s|$)| (?:in|by|and|or|because|"
        r"after|for)\b)"
    )
    subject, found = next(_heads(sentence, known, then), ("", None))
    if found is None:
        return
    lead = "Who or what" if "named after" in found["how"] else "What"
    question = f"{lead} {found['be']} {subject} {found['how']}?"
    yield Asked(question, found["name"], sentence, "name")


def _agents(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was designed by Y» → «By whom was X designed?»."""
    then = (
        r"(?P<be>is|was|were|are) (?P<how>(?:[a-z]+ly )?(?P<verb>[a-z]+)) by "
        rf"(?P<who>{_NAME})(?=[.,](?:\s|$)| (?:in|on|and|as|from|to|for|after|during|at|who)\b)"
    )
    subject, found = next(_heads(sentence, known, then), ("", None))
    if found is None or found["verb"] not in PARTICIPLES:
        return
    # Several are named, and one of them is no whole answer.
    if not re.search(r"^ and [A-Z]|^, (?:[A-Z]|and )", sentence.partition(found["who"])[2]):
        question = f"By whom {found['be']} {subject} {found['how']}?"
        yield Asked(question, found["who"], sentence, "agent")


_THINGS = frozenset(
    """
    invent discover found win receive write publish establish introduce create produce study require
    export own design teach include comprise contain propose join capture defeat paint represent
    cause use influence replace need absorb mean describe regulate acquire purchase lack involve
    support recognize hire publish form kill destroy build export import lose host face
    measure demand abolish ban adopt announce offer oppose favor provide sign
    """.split()
)
_TAIL = (
    rf"(?=[.,;:](?:\s|$)| (?:in (?:the )?(?:[12]\d{{3}}|{_MONTHS}|{_NAME})|on {_MONTHS}|at the|during|until|"
    r"which|that|who|when|while|because|after|before|but|and (?:[a-z]+ed|was|is|were|has|had)\b|"
    r"in the [a-z]+|to [a-z]+|(?:originally )?(?:built|created|designed|led|developed|made|used)|"
    r"by [a-z]+ing|as a|so|if|where|although|for (?:the|a)\b))"
)


def _objects(sentence: str, known: Known) -> Iterator[Asked]:
    """«X discovered radium in 1898» → «What did X discover?»."""
    parts = _statement(sentence, known)
    if parts is None or parts[0] not in ("did", "does") or parts[2] not in _THINGS:
        return
    thing = re.match(rf"^(?P<what>[\w'’ -]{{3,70}}?){_TAIL}", parts[3])
    if not thing or not 1 <= len(thing["what"].split()) <= 9:
        return
    if re.search(r"\b(?:that|which|to|when|as|by|because|if)\b", thing["what"]):
        return
    if re.match(rf"(?:(?:about|over|only|at least|more than) )?(?:{_NUMBER}|\d+)\b", thing["what"]):
        return
    if _VAGUE.search(thing["what"]) or re.search(r"^(?:in|on|at|for|with|from|of)\b", thing["what"]):
        return
    lead = "Whom" if parts[2] == "defeat" else "What"
    yield Asked(f"{lead} {_turned(parts, '')}?", thing["what"], sentence, "object")


_STRANDED = frozenset(
    """
    consist:of depend:on lead:to result:in refer:to belong:to derive:from rely:on focus:on range:from
    composed:of made:of made:from divided:into known:for renowned:for famous:for derived:from
    associated:with based:on used:for used:as surrounded:by caused:by characterized:by covered:by
    connected:to replaced:by separated:from responsible:for named:after made:up+of influenced:by
    translated:into converted:into merged:with bordered:by related:to adjacent:to similar:to
    """.split()
)


def _stranded(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is composed of Y» → «What is X composed of?»."""
    parts = _statement(sentence, known)
    if parts is None:
        return
    before = parts[2] or r"(?P<word>(?:(?:[a-z]+ly|also|often|now|then) )?[a-z]+)"
    rest = parts[3] if parts[2] == "" else f"{parts[2]} {parts[3]}"
    found = re.match(rf"^{before} (?P<prep>up of|[a-z]+) (?P<what>[\w'’, -]{{3,80}}?){_TAIL}", rest)
    if not found:
        return
    verb = parts[2] or found["word"]
    if f"{verb.split()[-1]}:{found['prep'].replace(' ', '+')}" not in _STRANDED:
        return
    what = found["what"]
    if _VAGUE.search(what) or not 1 <= len(what.split()) <= 9 or what.startswith("both "):
        return
    said = "" if parts[2] else verb
    question = f"What {_turned(parts, said)} {found['prep']}?"
    yield Asked(question, what, sentence, "relation")


def _purposes(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is used to do Y» → «What is X used to do?»."""
    parts = _statement(sentence, known)
    if parts is None:
        return
    found = re.match(rf"^(?P<how>(?:[a-z]+ )?used) to (?P<what>[\w'’ -]{{5,80}}?){_TAIL}", parts[3])
    if found and parts[0] in _BE and not _VAGUE.search(found["what"]):
        yield Asked(
            f"What {_turned(parts, found['how'])} to do?", found["what"], sentence, "purpose"
        )


def _reasons(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was closed because of Y» → «Why was X closed?»."""
    parts = _statement(sentence, known)
    if parts is None:
        return
    found = re.match(
        r"^(?P<before>[^,;:]{4,90}?),? (?P<why>(?:because|due to|owing to) [^;:]{8,90}?)(?=[.;]|, )",
        parts[3],
    )
    if found and not re.search(r"\b(?:but|not|that|which)\b", found["before"]):
        why = re.sub(r"^(?:because of|because|due to|owing to) ", "", found["why"])
        if not re.match(r"(?:it|he|she|they)\b", why):
            yield Asked(f"Why {_turned(parts, found['before'])}?", why, sentence, "reason")


_TYPES = frozenset(
    """
    theatre theater university museum river party company institute church council committee act
    treaty agreement war battle bridge park school college library society union army gallery
    street building palace stadium festival hospital airport station network channel magazine
    newspaper dynasty empire kingdom province region lake mountain island ocean sea desert
    championship tournament bank court canal castle cathedral center centre commission conference
    """.split()
)


def _typed(sentence: str, known: Known) -> Iterator[Asked]:
    """«The Laing Art Gallery has a painting of …» → «Which gallery has a painting of …?»."""
    found = re.match(
        rf"^(?:The )?(?P<subject>{_NAME}) (?P<rest>(?P<verb>[a-z]+) [^,;:]*?)(?=[,;:.](?:\s|$))",
        sentence,
    )
    if not found or len(found["subject"].split()) < 2:
        return
    head = found["subject"].split()[-1].casefold()
    if head not in _TYPES or (_verb(found["verb"]) is None and found["verb"] not in _BE):
        return
    rest = re.sub(r" (?:and|but|while|which|who) [a-z]+ .*$", "", found["rest"])
    if not re.search(r"[A-Z\d]", rest) or len(rest.split()) < 4:
        return
    if re.search(r" (?:is|was|are|were|has|had) ", rest[len(found["verb"]) :]):
        return
    yield Asked(f"Which {head} {rest}?", found["subject"], sentence, "name")


_DID = re.compile(
    rf"^(?P<subject>{_NAME}) (?P<verb>[a-z]+) (?P<rest>[^,;:]*?{_CAP}[^,;:]*?)(?=[,;:.]"
    r"| (?:and|which|who|that|while|when|because|after|before|but)\b)"
)


def _doers(sentence: str, known: Known) -> Iterator[Asked]:
    """«X invented Y» → «Who invented Y?»; only for what people alone do, and a full name."""
    found = _DID.match(sentence)
    if not found or len(found["subject"].split()) < 2 or not _subject(found["subject"], known):
        return
    verb = _verb(found["verb"])
    if verb is None or verb[1] not in _HUMAN_VERBS:
        return
    rest = found["rest"].removesuffix(".")
    yield Asked(f"Who {found['verb']} {rest}?", found["subject"], sentence, "doer")


PATTERNS: tuple[Callable[[str, Known], Iterator[Asked]], ...] = (
    _dates,
    _places,
    _quantities,
    _names,
    _roles,
    _agents,
    _definitions,
    _typed,
    _stranded,
    _purposes,
    _objects,
    _reasons,
    _doers,
)
"""In the order in which their questions are offered."""
