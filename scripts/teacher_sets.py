"""Write the small teacher sets in src/tunesmith/assets/teacher: all text is made here, seeded.

Each row has the system message that a teacher would have been given, a question and an answer in
the way that the message asks for, the gold answer, and the kind of task. Conversions come from the
training buckets of the units task, so that its test questions stay unseen, and stand there twice:
answered directly and worked step by step.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from tunesmith.data.strategies import STRATEGIES
from tunesmith.tasks import units_questions as uq

TARGET = Path(__file__).parent.parent / "src" / "tunesmith" / "assets" / "teacher"
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
PLACES = ("harbour", "library", "market", "mill", "museum", "orchard", "school", "station")
THINGS = (
    "a basket",
    "a blue coat",
    "a brass key",
    "a drum",
    "a lamp",
    "a letter",
    "a map",
    "a rope",
)
TIMES = ("at dawn", "after lunch", "at noon", "before supper", "late at night")
KINDS = {
    "animal": ("badger", "heron", "otter", "rabbit", "sparrow", "trout"),
    "plant": ("birch", "clover", "daisy", "fern", "nettle", "poppy"),
    "tool": ("chisel", "hammer", "ladle", "needle", "saw", "shovel"),
    "vehicle": ("barge", "bicycle", "lorry", "sledge", "tram", "wagon"),
}
OPPOSITES = {
    "early": "late", "empty": "full", "heavy": "light", "high": "low", "narrow": "wide",
    "old": "new", "quiet": "loud", "rough": "smooth", "short": "long", "slow": "fast",
    "warm": "cool", "wet": "dry",
}  # fmt: skip


def row(strategy: str, kind: str, question: str, answer: str, gold: str) -> dict[str, Any]:
    turns = [
        {"role": "system", "content": STRATEGIES[strategy].instruction},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": turns, "kind": kind, "gold": gold}


def conversions(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        number, conversion = uq.draw(rng, "train")
        asked = uq.question(number, conversion, rng.choice(uq.WORDINGS))
        gold = uq.rounded(uq.gold(number, conversion))
        yield row("direct", "units", asked, uq.terse(number, conversion), gold)
        worked = uq.worked(number, conversion)
        _, total = uq.product_lines(Decimal(number), uq.shown_factor(conversion))
        yield row("step-by-step", "units", asked, worked, uq.plain(total))


def passages(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        people, places = rng.sample(NAMES, 3), rng.sample(PLACES, 3)
        things, times = rng.sample(THINGS, 3), rng.sample(TIMES, 3)
        said = [
            f"{person} carried {thing} to the {place} {time}."
            for person, thing, place, time in zip(people, things, places, times, strict=True)
        ]
        at = rng.randrange(3)
        questions = {
            f"Who went to the {places[at]}?": people[at],
            f"What did {people[at]} carry?": things[at],
            f"Where did {people[at]} go?": f"to the {places[at]}",
        }
        asked = rng.choice(sorted(questions))
        answer = f"The text says: «{said[at]}» So the answer is: {questions[asked]}."
        yield row(
            "extract-then-generate",
            "reading",
            f"{' '.join(said)}\n\n{asked}",
            answer,
            questions[asked],
        )


def choices(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        odd, kind = rng.sample(sorted(KINDS), 2)
        words = [*rng.sample(KINDS[kind], 3), rng.choice(KINDS[odd])]
        stranger = words[3]
        rng.shuffle(words)
        letters = dict(zip("ABCD", words, strict=True))
        gold = next(letter for letter, word in letters.items() if word == stranger)
        listed = "\n".join(f"{letter}) {word}" for letter, word in letters.items())
        rest = [word for word in words if word != stranger]
        answer = (
            f"The {rest[0]}, the {rest[1]} and the {rest[2]} are each a kind of {kind}. "
            f"The {stranger} is a kind of {odd}, so it does not belong. The answer is {gold}"
        )
        yield row(
            "explain-then-answer",
            "odd one out",
            f"Which of these does not belong?\n{listed}",
            answer,
            gold,
        )


def words(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    pairs = [*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())]
    for _ in range(count):
        word, opposite = rng.choice(pairs)
        person, thing = rng.choice(NAMES), rng.choice(THINGS).partition(" ")[2].split()[-1]
        sentence = f"{person} says that the {thing} is {word}."
        asked, gold = rng.choice(
            [
                (f"{sentence} What is the opposite of the last word?", opposite),
                (f"{sentence} How many letters has the last word?", str(len(word))),
                (f"{sentence} Who says so?", person),
            ]
        )
        yield row("direct", "words", asked, gold, gold)


SETS = {
    "conversions": (conversions, 300),
    "passages": (passages, 150),
    "choices": (choices, 150),
    "words": (words, 150),
}


def made() -> dict[str, str]:
    """Return the text of each file."""
    texts = {}
    for name, (make, count) in SETS.items():
        rows = make(random.Random(f"teacher/{name}"), count)
        lines = dict.fromkeys(json.dumps(entry, ensure_ascii=False) for entry in rows)
        texts[f"{name}.jsonl"] = "".join(f"{line}\n" for line in lines)
    return texts


def write(target: Path, texts: dict[str, str]) -> int:
    """Write the files of a folder, and say how many rows each has; return an exit code."""
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}: {text.count(chr(10))} rows")
    return 0


if __name__ == "__main__":
    sys.exit(write(TARGET, made()))
