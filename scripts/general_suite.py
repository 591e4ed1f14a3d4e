"""Write the general suite in src/tunesmith/assets/general.jsonl: all text is made here, seeded.

Passages of many kinds, whose likelihood is taken, and short questions with options that need no
knowledge of a field: copying, counting, sums, comparing, going on with a series, opposites. It is
there to see what a fine-tuned model has lost besides its task; it ranks no models.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "src" / "tunesmith" / "assets" / "general.jsonl"
SEED = 20260101
EACH = 10
"""Questions of a kind."""
PASSAGES = (
    "A tide is the slow rise and fall of the sea along a coast. It is caused by the pull of the "
    "moon and, to a lesser degree, of the sun. In most places the water is high twice a day; where "
    "the shape of a bay holds the wave back, there may be a single high water, or none worth "
    "speaking of.",
    "The bakery on the corner opens at six. By the time the first bus stops outside, the window is "
    "already fogged over, and a queue of people in work clothes reaches as far as the post box. "
    "Nobody talks much. They point, pay, and carry their rolls away in paper bags.",
    "To make a simple vegetable soup, chop two carrots, a leek and a potato. Fry them gently in a "
    "little oil for five minutes, add a litre of water and a pinch of salt, and let everything "
    "simmer until the carrots are soft. Blend half of it if you like it thicker.",
    "Dear Mrs Hall, thank you for your letter of 3 May. I am sorry that the chairs arrived with a "
    "scratched leg. A new one will be sent to you this week at no cost, and you need not return "
    "the old one. Please let me know if anything else is missing. Yours sincerely, T. Ward",
    "“Did you lock the door?” she asked. “I thought you did.” They looked at each other, then at "
    "the taxi driver, who sighed and turned the engine off. “Five minutes,” he said. “And I want "
    "to be at the station before the rain starts.”",
    "The council voted on Tuesday to close the old bridge to cars until the spring. Engineers had "
    "found rust in two of the main supports. Cyclists and people on foot may still cross. Repairs "
    "are expected to cost about four million and to take seven months.",
    "A prime number is a whole number greater than one that no other number but one divides. There "
    "is no largest prime. Suppose there were: multiply all primes together and add one. The result "
    "leaves the remainder one when divided by any of them, so it has a prime factor that was not "
    "among them.",
    "Bees find their way by the sun. Even when it is hidden, they can see how its light is "
    "polarised in a patch of blue sky. A bee that has found food tells the others in the hive "
    "where it is by a dance: its angle gives the direction, and its length the distance.",
    "Before you change a light bulb, switch the lamp off and wait until the old bulb is cold. Turn "
    "it to the left, away from you, and take it out. Check the highest power that is printed on "
    "the lamp. Put the new bulb in, turn it to the right until it stops, and switch the lamp on.",
    "The old kingdom had no written law. Disputes were settled once a year under a lime tree, by "
    "twelve people chosen by lot. Whoever lost could appeal only once, and had to bring a sheep. "
    "Historians still argue over whether the custom made the country more just or merely slower.",
    'def average(values):\n    """Return the mean of a list of numbers."""\n    if not values:\n'
    '        raise ValueError("no values")\n    total = 0.0\n    for value in values:\n'
    "        total += value\n    return total / len(values)\n",
    '{"name": "garden shed", "price": 420.0, "in_stock": true, "sizes": ["small", "large"], '
    '"delivery": {"days": 5, "cost": 30.0}, "reviews": [{"stars": 4, "text": "easy to build"}, '
    '{"stars": 2, "text": "the roof leaks"}]}',
    "SELECT customer.name, COUNT(*) AS orders FROM customer JOIN purchase ON purchase.customer_id "
    "= customer.id WHERE purchase.day >= '2024-01-01' GROUP BY customer.name HAVING COUNT(*) > 3 "
    "ORDER BY orders DESC;",
    "Der Zug nach Hamburg hatte zwanzig Minuten Verspätung. Auf dem Bahnsteig standen die Leute in "
    "kleinen Gruppen und sahen auf ihre Uhren. Ein Kind zählte laut die Wagen eines Güterzugs, der "
    "langsam vorbeifuhr, und verlor bei einunddreißig den Faden.",
    "Le marché a lieu tous les samedis matin sur la place de l'église. On y trouve des légumes de "
    "saison, du fromage de chèvre et, en automne, des champignons. Vers midi, les marchands "
    "baissent leurs prix et les derniers clients se dépêchent.",
    "La biblioteca del barrio abre de lunes a viernes por la tarde. Los martes hay un grupo de "
    "lectura para personas mayores, y los jueves se cuentan cuentos a los niños. Para llevarse "
    "libros a casa hace falta un carné, que es gratuito.",
)
WORDS = (
    "lantern", "meadow", "copper", "whistle", "harbour", "pebble", "thunder", "blanket", "orchard",
    "ribbon", "saddle", "turnip", "velvet", "walnut", "candle", "bridge", "falcon", "garden",
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("early", "late"), ("full", "empty"), ("near", "far"), ("wet", "dry"),
    ("loud", "quiet"), ("heavy", "light"), ("open", "closed"), ("rough", "smooth"), ("thick", "thin"),
)  # fmt: skip
SIZES = ("ant", "mouse", "cat", "sheep", "horse", "elephant", "whale")

Made = tuple[str, str, list[str]]
"""Question, right option, wrong ones."""


def copying(draw: random.Random, _: int) -> Made:
    word = draw.choice(WORDS)
    swapped = []
    while len(swapped) < 3:
        at = draw.randrange(len(word) - 1)
        other = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if other != word and other not in swapped:
            swapped.append(other)
    return f"Write this word again, exactly as it stands: {word}", word, swapped


def counting(draw: random.Random, _: int) -> Made:
    words = draw.sample(WORDS, draw.randint(2, 6))
    right = len(words)
    wrong = draw.sample([n for n in range(1, 9) if n != right], 3)
    return f"How many words are in this list: {', '.join(words)}?", str(right), [*map(str, wrong)]


def sums(draw: random.Random, _: int) -> Made:
    a, b = draw.randint(2, 49), draw.randint(2, 49)
    wrong = draw.sample([n for n in range(a + b - 10, a + b + 11) if n > 0 and n != a + b], 3)
    return f"What is {a} + {b}?", str(a + b), [*map(str, wrong)]


def comparing(draw: random.Random, at: int) -> Made:
    if at % 2:
        several = draw.sample(range(len(SIZES)), 4)
        best = SIZES[max(several)]
        names = [SIZES[n] for n in several]
        listed = ", ".join(f"a {n}" if n[0] not in "ae" else f"an {n}" for n in names)
        return f"Which is the largest: {listed}?", best, [n for n in names if n != best]
    numbers = draw.sample(range(10, 1000), 4)
    rest = [str(n) for n in numbers if n != max(numbers)]
    return f"Which is the largest: {', '.join(map(str, numbers))}?", str(max(numbers)), rest


def going_on(draw: random.Random, _: int) -> Made:
    start, step = draw.randint(1, 20), draw.randint(2, 9)
    series = [start + step * n for n in range(5)]
    wrong = draw.sample([n for n in range(series[4] - 6, series[4] + 7) if n != series[4]], 3)
    listed = ", ".join(map(str, series[:4]))
    return f"Which number comes next: {listed}, …?", str(series[4]), [*map(str, wrong)]


def opposites(draw: random.Random, at: int) -> Made:
    word, right = OPPOSITES[at % len(OPPOSITES)]
    others = [two for pair in OPPOSITES for two in pair if two not in (word, right)]
    return f"What is the opposite of {word}?", right, draw.sample(others, 3)


KINDS: dict[str, Callable[[random.Random, int], Made]] = {
    "copying": copying,
    "counting": counting,
    "sums": sums,
    "comparing": comparing,
    "series": going_on,
    "opposites": opposites,
}


def rows() -> list[dict[str, Any]]:
    """Return the suite, the same every time."""
    found: list[dict[str, Any]] = [{"text": passage} for passage in PASSAGES]
    for kind, make in KINDS.items():
        draw = random.Random(f"{SEED}/{kind}")
        asked: set[str] = set()
        while len(asked) < EACH:
            question, right, wrong = make(draw, len(asked))
            if question in asked:
                continue
            asked.add(question)
            choices = [right, *wrong]
            draw.shuffle(choices)
            answer = choices.index(right)
            found.append(
                {"question": question, "choices": choices, "answer": "ABCD"[answer], "kind": kind}
            )
    return found


def main() -> int:
    """Write the file, or with ``--check`` say whether it is as it would be written."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    if "--check" in sys.argv:
        return int(TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
