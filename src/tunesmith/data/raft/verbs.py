"""Forms of frequent English verbs, for questions that need «did … found» instead of «founded»."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IRREGULAR = """
become became become|begin began begun|beat beat beaten|bring brought brought|build built built
buy bought bought|catch caught caught|choose chose chosen|come came come|draw drew drawn
fall fell fallen|fight fought fought|find found found|fly flew flown|get got got|give gave given
go went gone|grow grew grown|have had had|hold held held|keep kept kept|lead led led|leave left left
lose lost lost|make made made|meet met met|pay paid paid|rise rose risen|run ran run|say said said
see saw seen|sell sold sold|send sent sent|speak spoke spoken|spend spent spent|stand stood stood
take took taken|teach taught taught|win won won|write wrote written|drive drove driven
overtake overtook overtaken|undergo underwent undergone|withdraw withdrew withdrawn
feel felt felt|flee fled fled
lay laid laid|lie lay lain|seek sought sought|show showed shown|sink sank sunk|sit sat sat
oversee oversaw overseen|undertake undertook undertaken|wear wore worn|breed bred bred|feed fed fed
sing sang sung|swim swam swum|throw threw thrown|tell told told|think thought thought
understand understood understood|know knew known|hear heard heard|mean meant meant|deal dealt dealt
"""
_REGULAR = """
abandon abolish accept achieve acquire add adopt advocate announce appear appoint argue arrive
attack attend attract award base believe belong borrow carry cause change claim close collapse
collect comprise conclude conduct conquer consider consist construct contain continue contribute
convert cover create cross declare dedicate defeat defend deliver demand depict describe design
destroy determine develop die discover divide donate earn employ enable encourage end enter
establish estimate examine expand explain explore export express face feature finish follow force
form found gain generate graduate help host identify import improve include increase influence
inherit inspire install intercept introduce invade invent invite issue join justify kill last
launch live locate manage marry mention move name negotiate obtain occupy occur offer open oppose
order organize organise own paint participate pass perform persuade play possess predict prepare
present preserve prevent produce promote propose protect prove provide publish purchase pursue
reach rebuild receive recognise recognize recommend record recover reduce refuse register reject
relate release rely remain remove rename repeal replace report represent require resemble resign
result return reveal retire revive ruin rule score seize separate serve settle share sign
specialise specialize spread stage start state stay stop study suffer suggest supply support
suppress surrender survive support tackle trade train transfer transform translate travel use
utilize visit vote want work erect originate ravage coin experience theorize chart promulgate
govern absorb affect allow apply approve assist assume attach attempt award ban block boast bomb
breed broadcast burn call campaign capture challenge characterize combine command commission
complete compose concern confirm connect contact control cost cross criticize cultivate cut date
decide decline define demonstrate deny depend derive deploy detect differ direct disappear
display drop earn elect eliminate emerge emigrate emphasize enforce enhance evolve exceed exist
expel experience extend fail favor feed fight fire flee focus force fund grant guard hand handle
happen hire ignore illustrate impose incorporate indicate inhabit initiate insist intend interact
invest involve isolate jump lack land last launch lay lie limit link look lower maintain mark
match measure merge migrate model modify monitor mount nominate note observe offer operate
outline oversee peak permit persecute pioneer place plan point practice prefer prohibit prompt
publicize push question quote rank rate react recall record reform regard regulate reinforce
reject reopen repeat reproduce request resign resolve respond restore restrict rise rival sail
search secure seek select set shape shift show sign sink sit specify spend sponsor spread stand
store stress strip struggle submit succeed sue surpass surround switch target tend test threaten
tie top total touch track trace treat turn undertake unite urge vary view violate warn wear
welcome widen witness worship yield
"""
_DOUBLED = {
    **{
        base: base + base[-1]
        for base in ("stop", "transfer", "ban", "drop", "plan", "strip", "top")
    },
    **{base: base + base[-1] for base in ("permit", "submit", "refer", "control")},
}
_ALIKE = _words(
    "rebuild spread broadcast cut cost set burst breed feed fight flee lay lie oversee rise seek "
    "show sink sit spend stand undertake wear"
)
"""Irregular ones, whose past a rule would get wrong."""


def _past(base: str) -> str:
    if base in _DOUBLED:
        return _DOUBLED[base] + "ed"
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + "ed"


def _third(base: str) -> str:
    if base == "have":
        return "has"
    if base.endswith(("s", "sh", "ch", "x", "z", "o")):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


PAST: dict[str, str] = {}
"""Simple past to base form."""
THIRD: dict[str, str] = {}
"""Third person singular of the present to base form."""
BASES: set[str] = set()
"""Base forms, which are also the present of a plural."""
PARTICIPLES: set[str] = {"known", "born", "located", "situated"}
"""Past participles, for passives."""
for _forms in _IRREGULAR.replace("\n", "|").split("|"):
    if _forms.strip():
        _base, _simple, _participle = _forms.split()
        PAST[_simple] = THIRD[_third(_base)] = _base
        PARTICIPLES.add(_participle)
for _base in _REGULAR.split():
    if _base not in _ALIKE:
        PAST.setdefault(_past(_base), _base)
        THIRD.setdefault(_third(_base), _base)
        PARTICIPLES.add(_past(_base))
BASES.update(PAST.values(), THIRD.values())
