"""Write the small sets of each task in src/tunesmith/assets/tasks: all text is made here, seeded.

A set has a file of training rows and one of held-out rows, none of which is a training row. They
are small enough for the built-in model to learn in a minute, and each row can be answered from
what stands in it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from teacher_sets import write

TARGET = Path(__file__).parent.parent / "src" / "tunesmith" / "assets" / "tasks"
TRAINED, HELD_OUT = 240, 60
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
PLACES = ("bakery", "harbour", "library", "market", "mill", "museum", "school", "station")
HOURS = ("at eight", "at nine", "at ten", "at noon", "after lunch")
FRUIT = ("apples", "cherries", "figs", "lemons", "pears", "plums")
BOXES = ("baskets", "boxes", "crates", "sacks")
CHEESES = ("Alder", "Birk", "Dunmoor", "Felden", "Grau", "Holm")


def dialogue(rng: random.Random) -> dict[str, Any]:
    """Return a talk with a guide who knows three places: where one lies and when it opens."""
    places = rng.sample(PLACES, 4)
    hours = rng.sample(HOURS, 3)
    beside = dict(pairwise(places))
    opens = dict(zip(places[:3], hours, strict=True))
    told = " ".join(
        f"The {place} is beside the {beside[place]} and opens {opens[place]}."
        for place in places[:3]
    )
    first, second = rng.sample(places[:3], 2)
    turns = [
        ("system", f"You are the guide of the village. {told}"),
        ("user", f"Good morning. Where is the {first}?"),
        ("assistant", f"Good morning. The {first} is beside the {beside[first]}."),
        ("user", f"Thank you. And when does the {second} open?"),
        ("assistant", f"The {second} opens {opens[second]}."),
    ]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def errand(rng: random.Random) -> dict[str, Any]:
    """Return an instruction on one sentence: who, what or where, or the sentence turned round."""
    person, other = rng.sample(NAMES, 2)
    fruit, place, number = rng.choice(FRUIT), rng.choice(PLACES), rng.randint(2, 40)
    text = f"{person} carried {number} {fruit} to the {place} for {other}."
    asked, answer = rng.choice(
        [
            ("Name the person who carried something.", person),
            ("Name the person it was for.", other),
            ("Name the place.", f"the {place}"),
            ("Say what was carried.", f"{number} {fruit}"),
            ("Put the place first.", f"To the {place} {person} carried {number} {fruit}."),
        ]
    )
    return {"instruction": asked, "input": text, "output": answer}


def function(rng: random.Random) -> dict[str, Any]:
    """Return a Python function to complete: its comment and head, and its body."""
    low, high = rng.randint(2, 9), rng.randint(10, 99)
    name, comment, argument, body = rng.choice(
        [
            ("scale", f"Multiply by {low} and add {high}.", "x", [f"return x * {low} + {high}"]),
            ("shrink", f"Take {low} away and halve.", "x", [f"return (x - {low}) / 2"]),
            ("limit", f"Return at most {high}.", "x", [f"return min(x, {high})"]),
            ("sign", f"Say whether x is above {high}.", "x", [f"return x > {high}"]),
            (
                "total",
                f"Add the values that {low} divides.",
                "values",
                [f"return sum(v for v in values if v % {low} == 0)"],
            ),
            (
                "count",
                f"Count the values above {high}.",
                "values",
                ["found = 0", "for v in values:", f"    found += v > {high}", "return found"],
            ),
        ]
    )
    head = f"# {comment}\ndef {name}_{low}{high}({argument}):\n"
    return {"prompt": head, "completion": "".join(f"    {line}\n" for line in body)}


def dairy(rng: random.Random) -> dict[str, Any]:
    """Return a page of a cheese dairy's log, in the words of the trade."""
    cheese, maker = rng.choice(CHEESES), rng.choice(NAMES)
    litres, warmth = 10 * rng.randint(8, 60), rng.randint(30, 39)
    minutes, days = 5 * rng.randint(5, 12), rng.randint(20, 180)
    cut, salted = rng.choice(("hazelnut", "pea", "walnut")), rng.choice(("brine", "dry salt"))
    washed = rng.choice(("washed", "brushed", "turned"))
    text = (
        f"{maker} warmed {litres} litres of milk to {warmth} degrees and added the rennet. "
        f"After {minutes} minutes the curd was firm and was cut to the size of a {cut}. "
        f"The whey was drained, the curd pressed and the wheel of {cheese} laid in {salted}. "
        f"In the cellar the rind is {washed} every second day, and the cheese ripens {days} days."
    )
    return {"text": text}


def question(rng: random.Random) -> dict[str, Any]:
    """Return a problem of one multiplication with the questions that lead to its answer."""
    person, other = rng.sample(NAMES, 2)
    boxes, fruit = rng.choice(BOXES), rng.choice(FRUIT)
    many, each, given = rng.randint(2, 9), rng.randint(3, 12), rng.randint(1, 5)
    asked = f"{person} fills {many} {boxes} with {each} {fruit} each"
    questions = [
        f"How many {boxes} does {person} fill?",
        f"How many {fruit} are in each of the {boxes}?",
        f"How do you find how many {fruit} are in all the {boxes}?",
    ]
    if rng.random() < 0.5:
        asked += f" and gives {given} {fruit} to {other}. How many {fruit} are left?"
        questions.append(f"How many {fruit} does {other} get?")
    else:
        asked += f". How many {fruit} are there?"
    return {"instruction": asked, "output": questions}


SETS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "dialogues": dialogue,
    "errands": errand,
    "functions": function,
    "dairy": dairy,
    "questions": question,
}


def _different(make: Callable[[random.Random], dict[str, Any]], name: str) -> Iterator[str]:
    seen = set()
    for number in count():
        line = json.dumps(make(random.Random(f"tasks/{name}/{number}")), ensure_ascii=False)
        if line not in seen:
            seen.add(line)
            yield line


def made() -> dict[str, str]:
    """Return the text of each file."""
    texts = {}
    for name, make in SETS.items():
        lines = _different(make, name)
        for file, rows in ((f"{name}.jsonl", TRAINED), (f"{name}-test.jsonl", HELD_OUT)):
            texts[file] = "".join(f"{next(lines)}\n" for _ in range(rows))
    return texts


if __name__ == "__main__":
    sys.exit(write(TARGET, made()))
