"""The text that the built-in base model is pretrained on; every word of it is generated here.

Four kinds of documents: facts about units in prose, arithmetic drills, everyday prose and dialogue
from small grammars, and chats about conversions. Within one chat all answers keep one style
(worked, terse or chatty), so a model learns to go on in the style that its context shows: that is
why worked examples in a prompt help it. Pairs of (number, factor) come from the pretraining
buckets only; each document reports the pairs that it holds, and a test sweeps them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from tunesmith.tasks import units_questions as uq
from tunesmith.tasks.units_table import CONVERSIONS, Conversion, plural, singular

STYLES = ("chatty", "terse", "worked")
COLD, LONG = (75, 20, 5), (20, 15, 65)
"""Shares in per cent of the styles in chats of one question, and in longer ones."""
SYSTEM = {"terse": "Answer briefly.", "worked": "Work step by step."}
"""What announces a style. Without it, and without answers in that style before, most chats are
chatty: asked cold, the model tends to chat."""

NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Lena",
    "Max",
    "Nora",
    "Oskar",
    "Paula",
    "Tom",
]
PLACES = [
    "market",
    "park",
    "school",
    "library",
    "station",
    "garden",
    "kitchen",
    "harbour",
    "museum",
    "bakery",
]
THINGS = [
    "apple",
    "book",
    "letter",
    "lamp",
    "basket",
    "map",
    "coin",
    "ticket",
    "jar",
    "blanket",
    "key",
    "drum",
]
ADJECTIVES = [
    "old",
    "small",
    "heavy",
    "bright",
    "broken",
    "clean",
    "quiet",
    "warm",
    "strange",
    "red",
    "blue",
]
VERBS = [
    "found",
    "carried",
    "lost",
    "painted",
    "sold",
    "washed",
    "borrowed",
    "hid",
    "opened",
    "repaired",
]
WEATHER = [
    "It rained all day. ",
    " The sun was out. ",
    " A cold wind blew. ",
    " Snow lay on the roofs. ",
]
FEELINGS = ["happy", "tired", "proud", "hungry", "curious", "worried", "calm", "surprised"]

FACTORS = {conversion.factor for conversion in CONVERSIONS}


@dataclass
class Document:
    """Plain text, or turns of a chat as (role, text)."""

    text: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[tuple[Decimal, Fraction]] = field(default_factory=list)


def documents(seed: int) -> Iterator[Document]:
    """Yield documents without end, the same ones for the same seed."""
    rng = random.Random(seed)
    makers = (_chat, _drills, _facts, _prose, _small_talk)
    while True:
        yield rng.choices(makers, (56, 28, 5, 6, 5))[0](rng)


def _chat(rng: random.Random) -> Document:
    questions = rng.choice((1, 1, 1, 2, 3, 4, 5, 6))
    document = Document()
    if questions == 1 and rng.random() < 0.8:
        style = rng.choices(STYLES, COLD)[0]
    else:
        style = rng.choices(STYLES, LONG)[0]
        if style in SYSTEM and rng.random() < 0.85:
            document.turns.append(("system", SYSTEM[style]))
    for _ in range(questions):
        number, conversion = uq.draw(rng, "pretrain")
        document.pairs.append((number, conversion.factor))
        document.turns.append(("user", uq.question(number, conversion, rng.choice(uq.WORDINGS))))
        document.turns.append(("assistant", _answer(rng, style, number, conversion)))
    return document


def _answer(rng: random.Random, style: str, number: Decimal, conversion: Conversion) -> str:
    if style == "worked":
        return uq.worked(number, conversion)
    if style == "terse":
        return uq.terse(number, conversion)
    about = uq.rounded(uq.gold(number, conversion), 2)
    target, source = plural(conversion.target), plural(conversion.source)
    return rng.choice(
        (
            f"That comes to roughly {about} {target}.",
            f"Good question! {uq.plain(number)} {source} is about {about} {target}.",
            f"It is around {about} {target}, but you may want to check it.",
            f"You need to know how {source} and {target} relate. I would say about {about}.",
            f"{_name(rng)} would say {about} {target}, give or take.",
        )
    )


def _drills(rng: random.Random) -> Document:
    lines: list[str] = []
    document = Document()
    for _ in range(rng.randint(3, 8)):
        kind = rng.random()
        far = rng.random() < 0.15
        number = uq.draw_far_number(rng) if far else uq.draw_number(rng)
        if kind < 0.45:
            digit = Decimal(rng.randint(1, 9)).scaleb(rng.randint(-4, 3))
            lines += _checked(document, number, digit)
        elif kind < 0.75:
            small = uq.draw_number(rng).scaleb(rng.randint(-3, 2))
            large = Decimal(rng.randint(2, 9999)).scaleb(rng.randint(-2, 2))
            lines.append(f"{uq.plain(large)} + {uq.plain(small)} = {uq.plain(large + small)}")
        else:
            factor = Decimal(rng.randint(11, 9999)).scaleb(rng.randint(-4, 0))
            lines += _checked(document, number, factor)
    document.text = "\n".join(lines)
    return document


def _checked(document: Document, number: Decimal, factor: Decimal) -> list[str]:
    """Return the multiplication unless it is a held-out conversion in another dress."""
    exact = Fraction(factor)
    shown = next((f for f in FACTORS if f == exact or _shown(f) == factor), None)
    if shown is not None:
        two_digits = len(number.normalize().as_tuple().digits) <= 2
        if not two_digits or uq.split_of(number, shown) != "pretrain":
            return []
        document.pairs.append((number, shown))
    return uq.product_lines(number, factor)[0]


def _shown(factor: Fraction) -> Decimal:
    return uq.shown_factor(Conversion("", "", "", f"{factor.numerator}/{factor.denominator}"))


def _facts(rng: random.Random) -> Document:
    sentences = []
    for conversion in rng.sample(CONVERSIONS, 4):
        factor, source = uq.plain(uq.shown_factor(conversion)), singular(conversion.source)
        target = plural(conversion.target)
        article = "An" if source[0] in "aeio" else "A"
        sentences.append(
            rng.choice(
                (
                    uq.fact(conversion),
                    f"{article} {source} is {factor} {target}.",
                    f"To turn {plural(conversion.source)} into {target}, multiply by {factor}.",
                    f"Both {source} and {singular(conversion.target)} measure {conversion.family}.",
                )
            )
        )
    return Document(text=" ".join(sentences))


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES)


def _prose(rng: random.Random) -> Document:
    who, place = _name(rng), rng.choice(PLACES)
    sentences = [f"{who} went to the {place}. {rng.choice(WEATHER).strip()}"]
    for _ in range(rng.randint(2, 5)):
        thing = f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"
        sentences.append(
            rng.choice(
                (
                    f"{who} {rng.choice(VERBS)} the {thing}.",
                    f"There was a {thing} near the {rng.choice(PLACES)}.",
                    f"{_name(rng)} had {rng.randint(2, 20)} of them and felt {rng.choice(FEELINGS)}.",
                    f"Then {who} was {rng.choice(FEELINGS)} and went back to the {place}.",
                )
            )
        )
    return Document(text=" ".join(sentences))


def _small_talk(rng: random.Random) -> Document:
    document = Document()
    for _ in range(rng.randint(1, 3)):
        who, thing, place = _name(rng), rng.choice(THINGS), rng.choice(PLACES)
        asked, answered = rng.choice(
            (
                (f"Where is the {thing}?", f"{who} left the {thing} in the {place}."),
                (f"How is {who} today?", f"{who} is {rng.choice(FEELINGS)}, thank you."),
                (f"What did {who} do?", f"{who} {rng.choice(VERBS)} the {thing} at the {place}."),
                ("Hello!", "Hello! How can I help you?"),
                (f"Who has the {thing}?", f"I think {who} has it."),
            )
        )
        document.turns += [("user", asked), ("assistant", answered)]
    return document
