"""The patterns by which a statement becomes a question, each with an example."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tunesmith.data.raft.lexicon import (
    HUMAN_VERBS,
    LOOSE,
    NOT_NAMES,
    PERSONAL,
    PLACED,
    STRANDED,
    THINGS,
    TYPES,
)
from tunesmith.data.raft.statements import (
    BE,
    CAP,
    DATE,
    MONTHS,
    NAME,
    NUMBER,
    TAIL,
    VAGUE,
    YEAR,
    Known,
    as_beginning,
    parse,
    plain_words,
    subject_of,
    subjects,
    trimmed,
    turned,
    verb_form,
)
from tunesmith.data.raft.verbs import PARTICIPLES


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer, both from ``sentence``."""

    question: str
    answer: str
    sentence: str
    kind: str


_WHEN = rf"(?:{DATE}|{MONTHS} {YEAR}|{YEAR}|the {YEAR}s|the \d{{1,2}}(?:st|nd|rd|th) century)"

_FRONTED = re.compile(rf"^(?:In|On) (?:(?:early|late) )?(?P<when>{_WHEN}),? (?P<main>.+)$")

_CLAUSE = "(?:since|after|before|when|while|who|which|where|whose|because|until|although)"


def _when(when: str) -> str:
    if re.fullmatch(YEAR, when):
        return "In what year"
    if when.startswith("the "):
        return "In what decade" if when.endswith("s") else "In what century"
    return "On what date" if re.fullmatch(DATE, when) else "In what month and year"


def _dates(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was founded in 1823» → «In what year was X founded?»; also «In 1823, X …»."""
    if found := _FRONTED.match(sentence):
        parts = parse(as_beginning(found["main"]), known) or parse(found["main"], known)
        if parts and not re.search(YEAR, found["main"]):
            rest = trimmed(parts[3])
            yield Asked(
                f"{_when(found['when'])} {turned(parts, rest)}?", found["when"], sentence, "date"
            )
        return
    parts = parse(sentence, known)
    if parts is None:
        return
    found = re.match(
        rf"^(?P<before>[^,;:]*?) ?\b(?:in|on) (?P<when>{_WHEN})\b"
        r"(?!,? (?:and |or |to )?[12]\d|[–-])",
        parts[3],
    )
    # In a clause of its own a date belongs to that clause: «… since Laver won it in 1969».
    if not found or re.search(rf"{YEAR}|\b{_CLAUSE}\b", found["before"]):
        return
    before = found["before"].strip()
    if not before and not parts[2]:
        return
    # «It replaced a market built in 1808», «the winner was Mimoun in 1956»: no date of the verb.
    last = before.rpartition(" ")[2]
    if (parts[2] and last in PARTICIPLES) or (parts[0] in BE and re.fullmatch(NAME, before)):
        return
    question = f"{_when(found['when'])} {turned(parts, before)}?"
    yield Asked(question, found["when"], sentence, "date")


def _places(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was born in Y» → «Where was X born?»; only for verbs that have a place."""
    parts = parse(sentence, known)
    if parts is None:
        return
    verb = parts[2]
    found = re.match(
        rf"^(?P<verb>{'' if verb else '[a-z]+ '})(?P<prep>in|at|on|near) (?P<where>(?:the )?{NAME}"
        rf"(?:, {NAME})?)(?=[.,](?:\s|$)| (?:in|on|as|from|by|since|and|until|with|for)\b)",
        parts[3],
    )
    if not found or re.match(rf"{MONTHS}\b|\d", found["where"]):
        return
    if (verb or found["verb"].strip()) not in PLACED:
        return
    yield Asked(f"Where {turned(parts, found['verb'].strip())}?", found["where"], sentence, "place")


_AMOUNT = (
    r"(?:(?:about|approximately|over|nearly|around|more than|less than|fewer than|at least) )?"
    + NUMBER
)
"""A number with what limits it: «more than 70,000» is not 70,000."""


def _quantities(sentence: str, known: Known) -> Iterator[Asked]:
    """«X won 25 races in Y» → «How many races did X win in Y?»."""
    if found := re.match(
        rf"^There (?P<be>are|were) (?P<n>{_AMOUNT}) "
        r"(?P<what>[^,.;]{3,70}?) (?P<where>(?:in|at|on) [^,;]*?[A-Z][^,;]*)\.$",
        sentence,
    ):
        question = f"How many {found['what']} {found['be']} there {found['where']}?"
        yield Asked(question, found["n"], sentence, "quantity")
        return
    if found := re.match(
        r"^(?P<n>(?:(?:About|Approximately|Over|Nearly|Around|Some|More than|Less than|At least) )?"
        r"[\d.]+ ?(?:%|percent)) of "
        r"(?P<what>[^,;:]*?[A-Z][^,;:]*?)\.$",
        sentence,
    ):
        yield Asked(f"What percentage of {found['what']}?", found["n"], sentence, "quantity")
        return
    parts = parse(sentence, known)
    if parts is None:
        return
    if parts[0] in BE:
        if found := re.match(
            rf"^(?P<n>{_AMOUNT}) (?P<what>[a-z-]+s "
            r"(?:long|tall|high|wide|deep|old|thick|north|south|east|west)(?: of "
            r"[^,;.]*)?)(?=[.,])",
            parts[3],
        ):
            yield Asked(
                f"How many {found['what']} {turned(parts, '')}?", found["n"], sentence, "quantity"
            )
        return
    found = re.match(
        rf"^(?P<particle>(?:up |out |over |down |of )?)(?:just |only |a total of )?"
        rf"(?P<n>{_AMOUNT}) "
        r"(?P<what>[a-z][a-z-]*s|[a-z'-]+ [a-z][a-z-]*s|people|men|women)\b"
        r"(?P<more>(?: (?:a|per) (?:year|day|week|month))?(?: (?:in|at|for|from|during|"
        r"against|to|on) "
        r"[^,;:.]*?)?)(?=[.,](?:\s|$)| (?:and|which|that|while|when) )",
        parts[3],
    )
    if found:
        rest = f"{found['particle']}{found['more'].strip()}".strip()
        question = f"How many {found['what']} {turned(parts, rest)}?"
        yield Asked(question, found["n"], sentence, "quantity")
        return
    found = re.match(
        r"^an? (?P<what>(?:total |estimated )?(?:population|area|elevation|length|height|"
        r"capacity|speed|mass|"
        rf"budget|value|density|depth|width|diameter)) of (?P<n>(?:about |around "
        rf")?{NUMBER}[^,.;()]*?)"
        r"(?=[.,](?:\s|$)| (?:in|and|at|with|as|from|by)\b)",
        parts[3],
    )
    if found:
        yield Asked(f"What {found['what']} {turned(parts, '')}?", found["n"], sentence, "quantity")


_KIND = re.compile(
    r"^(?P<what>(?:an?|one of the|the) .+?)(?= (?:(?:(?:by|in|to|for|of|on) )?which|who|that|"
    r"whose|where|when|in (?=[12]\d{3})|"
    r"from (?=[12]\d{3})|before|after|and (?:is|was|has)|led by|made up|used to|"
    r"located|based (?:in|on)|situated|created by|designed by|developed by|consisting)\b|"
    r"[,.;:](?:\s|$)|$)"
)


def _definitions(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is a kind of Y» → «What is X?»; «X was a poet» → «Who was X?»."""
    then = r"(?P<be>is|was|are|were) (?P<rest>.+)$"
    subject, found = next(subjects(sentence, known, then), ("", None))
    if found is None and (
        found := re.match(rf"^(?P<subject>An? (?:[a-z-]+ ){{0,2}}[a-z-]+) {then}", sentence)
    ):
        subject = found["subject"][0].lower() + found["subject"][1:]
    if found is None and (
        found := re.match(rf"^(?P<subject>[A-Z][a-z]+(?: [a-z]+){{0,3}}) {then}", sentence)
    ):
        subject = found["subject"][0].lower() + found["subject"][1:]
        if found["subject"].split()[0].casefold() in NOT_NAMES:
            return
        # A single word must be written small elsewhere, or it may be a name.
        small = re.search(rf"(?<=[a-z,] ){re.escape(subject)}\b", known.text)
        if found["be"] != "is" or not (" " in subject or small) or not plain_words(subject):
            return
    if found is None:
        return
    kind = _KIND.match(found["rest"])
    if not kind or not 3 <= len(kind["what"].split()) <= 12:
        return
    what = kind["what"]
    # What a role is, the next pattern asks the other way round.
    if re.match(r"the (?!process|study|practice|act|science|art|branch|method|system)", what):
        return
    if re.match(r"one of|an? (?:major|result|part|lot|number|large|concern|reason)\b", what):
        return
    head = re.split(r" (?:of|for|in|from|to|at|by|with|and|on)\b", what, maxsplit=1)[0].split()[-1]
    is_person = head.casefold() in PERSONAL or re.search(r"[a-z](?:nist|rist|crat|ogist)$", head)
    who = "Who" if is_person else "What"
    yield Asked(f"{who} {found['be']} {subject}?", what, sentence, "definition")


_ROLE = re.compile(
    rf"^(?P<subject>{NAME}) (?P<be>is|was) (?P<role>the (?:[a-z-]+ ){{0,3}}[a-z-]+ "
    rf"(?:of|in|to|for) [^,;:.]*?{CAP}[^,;:.]*?)(?=[,;:.](?:\s|$)| (?:and|which|who|that|"
    rf"until|when|from)\b)"
)

_FIRST = re.compile(
    rf"^(?P<subject>{NAME}) (?P<be>became|is|was) (?P<role>the (?:first|last|only|largest|"
    rf"oldest|second|"
    r"third|youngest|highest|longest|most) [^,;:.]{10,90}?)(?=[,;:.](?:\s|$)| (?:and|which|"
    r"until|when)\b)"
)


def _roles(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is the capital of Y» → «What is the capital of Y?»."""
    found = _ROLE.match(sentence) or _FIRST.match(sentence)
    if not found or not subject_of(found["subject"], known):
        return
    head = re.split(r" (?:ever|of|in|to|for)\b", found["role"], maxsplit=1)[0].split()[-1]
    full = len(found["subject"].split()) > 1
    who = "Who" if full and head in PERSONAL else "What"
    question = f"{who} {found['be']} {found['role']}?"
    yield Asked(question, found["subject"], sentence, "role")


def _names(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is also known as Y» → «What is X also known as?»."""
    then = (
        r"(?P<be>is|was|are|were) (?P<how>(?:also |often |sometimes |originally |"
        r"formerly |commonly )?(?:known as|called|named after|named|nicknamed|referred to as)) "
        rf"(?P<name>(?:the |an? )?(?:{NAME}|[a-z]+(?: [a-z]+)?))(?=[.,](?:\s|$)| (?:in|by|"
        rf"and|or|because|"
        r"after|for)\b)"
    )
    subject, found = next(subjects(sentence, known, then), ("", None))
    if found is None:
        return
    lead = "Who or what" if "named after" in found["how"] else "What"
    question = f"{lead} {found['be']} {subject} {found['how']}?"
    yield Asked(question, found["name"], sentence, "name")


def _by_whom(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was designed by Y» → «By whom was X designed?»."""
    then = (
        r"(?P<be>is|was|were|are) (?P<how>(?:[a-z]+ly )?(?P<verb>[a-z]+)) by "
        rf"(?P<who>{NAME})(?=[.,](?:\s|$)| (?:in|on|and|as|from|to|for|after|during|at|who)\b)"
    )
    subject, found = next(subjects(sentence, known, then), ("", None))
    if found is None or found["verb"] not in PARTICIPLES:
        return
    # Several are named, and one of them is no whole answer.
    if not re.search(r"^ and [A-Z]|^, (?:[A-Z]|and )", sentence.partition(found["who"])[2]):
        question = f"By whom {found['be']} {subject} {found['how']}?"
        yield Asked(question, found["who"], sentence, "by whom")


def _listed(rest: str, what: str) -> bool:
    """Say whether ``what`` is only the first of several that ``rest`` lists."""
    after = rest.partition(what)[2]
    return bool(re.match(r", [^.;:]*\b(?:and|or) |, \w+(?: \w+)?, ", after))


def _objects(sentence: str, known: Known) -> Iterator[Asked]:
    """«X discovered radium in 1898» → «What did X discover?»."""
    parts = parse(sentence, known)
    if parts is None or parts[0] not in ("did", "does") or parts[2] not in THINGS:
        return
    thing = re.match(rf"^(?P<what>[\w'’ -]{{3,70}}?){TAIL}", parts[3])
    if not thing or not 1 <= len(thing["what"].split()) <= 9 or _listed(parts[3], thing["what"]):
        return
    if re.search(r" with [A-Z]|'[\w ]+'", thing["what"]):
        return
    if parts[2] == "defeat" and not re.fullmatch(rf"(?:the )?{NAME}", thing["what"]):
        return
    if re.search(r"\b(?:that|which|to|when|as|by|because|if)\b", thing["what"]):
        return
    if re.match(rf"(?:(?:about|over|only|at least|more than) )?(?:{NUMBER}|\d+)\b", thing["what"]):
        return
    if VAGUE.search(thing["what"]) or re.search(r"^(?:in|on|at|for|with|from|of)\b", thing["what"]):
        return
    after = parts[3][len(thing["what"]) :]
    more = re.match(r"(?: (?:in|at|on|for|from|against|during) [^,;:.]+)?(?=[,;:.](?:\s|$))", after)
    said = more[0].strip() if more and len(more[0].split()) <= 8 else ""
    # «What did she win?» could be asked of many lines, «… win in 1903?» of one.
    if parts[2] in LOOSE and not said:
        return
    lead = "Whom" if parts[2] == "defeat" else "What"
    yield Asked(f"{lead} {turned(parts, said)}?", thing["what"], sentence, "object")


def _stranded(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is composed of Y» → «What is X composed of?»."""
    parts = parse(sentence, known)
    if parts is None:
        return
    before = parts[2] or r"(?P<word>(?:(?:[a-z]+ly|also|often|now|then) )?[a-z]+)"
    rest = parts[3] if parts[2] == "" else f"{parts[2]} {parts[3]}"
    found = re.match(rf"^{before} (?P<prep>up of|[a-z]+) (?P<what>[\w'’, -]{{3,80}}?){TAIL}", rest)
    if not found:
        return
    verb = parts[2] or found["word"]
    if f"{verb.split()[-1]}:{found['prep'].replace(' ', '+')}" not in STRANDED:
        return
    what = found["what"]
    if _listed(parts[3], what) or (found["prep"] == "by" and re.fullmatch(NAME, what)):
        return
    if VAGUE.search(what) or not 1 <= len(what.split()) <= 9 or what.startswith("both "):
        return
    said = "" if parts[2] else verb
    question = f"What {turned(parts, said)} {found['prep']}?"
    yield Asked(question, what, sentence, "relation")


def _purposes(sentence: str, known: Known) -> Iterator[Asked]:
    """«X is used to do Y» → «What is X used to do?»."""
    parts = parse(sentence, known)
    if parts is None:
        return
    found = re.match(rf"^(?P<how>(?:[a-z]+ )?used) to (?P<what>[\w'’ -]{{5,80}}?){TAIL}", parts[3])
    if found and parts[0] in BE and not VAGUE.search(found["what"]):
        yield Asked(
            f"What {turned(parts, found['how'])} to do?", found["what"], sentence, "purpose"
        )


def _reasons(sentence: str, known: Known) -> Iterator[Asked]:
    """«X was closed because of Y» → «Why was X closed?»."""
    parts = parse(sentence, known)
    if parts is None:
        return
    found = re.match(
        r"^(?P<before>[^,;:]{4,90}?),? (?P<why>(?:because|due to|owing to) "
        r"[^;:]{8,90}?)(?=[.;]|, )",
        parts[3],
    )
    if found and not re.search(r"\b(?:but|not|that|which)\b", found["before"]):
        why = re.sub(r"^(?:because of|because|due to|owing to) ", "", found["why"])
        if not re.match(r"(?:it|he|she|they)\b", why):
            yield Asked(f"Why {turned(parts, found['before'])}?", why, sentence, "reason")


def _typed(sentence: str, known: Known) -> Iterator[Asked]:
    """«The Laing Art Gallery has a painting of …» → «Which gallery has a painting of …?»."""
    found = re.match(
        rf"^(?:The )?(?P<subject>{NAME}) (?P<rest>(?P<verb>[a-z]+) [^,;:]*?)(?=[,;:.](?:\s|$))",
        sentence,
    )
    if not found or len(found["subject"].split()) < 2 or not subject_of(found["subject"], known):
        return
    head = found["subject"].split()[-1].casefold()
    if head not in TYPES or (verb_form(found["verb"]) is None and found["verb"] not in BE):
        return
    rest = re.sub(r" (?:and|but|while|which|who) [a-z]+ .*$", "", found["rest"])
    if not re.search(r"[A-Z\d]", rest) or len(rest.split()) < 4:
        return
    if re.search(r" (?:is|was|are|were|has|had) ", rest[len(found["verb"]) :]):
        return
    yield Asked(f"Which {head} {rest}?", found["subject"], sentence, "name")


_DID = re.compile(
    rf"^(?P<subject>{NAME}) (?P<verb>[a-z]+) (?P<rest>[^,;:]*?{CAP}[^,;:]*?)(?=[,;:.]"
    r"| (?:and|which|who|that|while|when|because|after|before|but)\b)"
)


def _doers(sentence: str, known: Known) -> Iterator[Asked]:
    """«X invented Y» → «Who invented Y?»; only for what people alone do, and a full name."""
    found = _DID.match(sentence)
    if not found or len(found["subject"].split()) < 2 or not subject_of(found["subject"], known):
        return
    verb = verb_form(found["verb"])
    if verb is None or verb[1] not in HUMAN_VERBS:
        return
    rest = found["rest"].removesuffix(".")
    yield Asked(f"Who {found['verb']} {rest}?", found["subject"], sentence, "doer")


PATTERNS: tuple[Callable[[str, Known], Iterator[Asked]], ...] = (
    _dates,
    _places,
    _quantities,
    _names,
    _roles,
    _by_whom,
    _definitions,
    _typed,
    _stranded,
    _purposes,
    _objects,
    _reasons,
    _doers,
)
"""In the order in which their questions are offered."""
