"""Questions, splits and worked answers of the ``units`` task: pure functions of their arguments."""

from __future__ import annotations

import hashlib
import random
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from tunesmith.tasks.units_table import CONVERSIONS, Conversion, plural, singular

BUCKETS = {"test": range(15), "dev": range(15, 22), "train": range(22, 50)}
"""Hash buckets of a hundred; what is left is for pretraining a base model."""
SPLITS = ("train", "dev", "test", "ood")

WORDINGS = (
    "How many {targets} are there in {n} {sources}?",
    "Convert {n} {sources} to {targets}.",
    "What is {n} {sources} in {targets}?",
    "Express {n} {sources} in {targets}.",
)
UNSEEN_WORDINGS = (
    "I have {n} {sources}. Give me that in {targets}, please.",
    "{n} {sources} equals how many {targets}?",
)
"""Only the out-of-distribution split asks like this."""

_PRECISE = Context(prec=40, rounding=ROUND_HALF_EVEN)


def split_of(number: Decimal, factor: Fraction) -> str:
    """Return the one split that a (number, factor) pair may occur in.

    Units do not enter: 3 hours in minutes and 3 minutes in seconds are the same multiplication.
    """
    key = f"{number.normalize():f}|{factor.numerator}/{factor.denominator}"
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 100
    for name, buckets in BUCKETS.items():
        if bucket in buckets:
            return name
    return "pretrain"


def draw_number(rng: random.Random) -> Decimal:
    """Return a number of two significant digits: 2 to 99, or 1.1 to 9.9."""
    if rng.random() < 0.6:
        return Decimal(rng.randint(2, 99))
    return Decimal(rng.choice([n for n in range(11, 100) if n % 10])).scaleb(-1)


def draw_far_number(rng: random.Random) -> Decimal:
    """Return a number of three significant digits, larger or finer than any in training."""
    digits = rng.choice([n for n in range(101, 1000) if n % 10])
    return Decimal(digits).scaleb(-rng.choice((0, 1, 2)))


def draw(rng: random.Random, split: str) -> tuple[Decimal, Conversion]:
    """Return a pair that lies in ``split`` (``ood`` takes its own numbers)."""
    while True:
        conversion = rng.choice(CONVERSIONS)
        number = draw_far_number(rng) if split == "ood" else draw_number(rng)
        if gold(number, conversion) < Decimal("0.01"):
            continue  # the grading rule rounds to three decimals, which leaves nothing to grade
        if split == "ood" or split_of(number, conversion.factor) == split:
            return number, conversion


def gold(number: Decimal, conversion: Conversion) -> Decimal:
    """Return the exact answer, to 12 significant digits where it does not end."""
    exact = Fraction(number) * conversion.factor
    value = _PRECISE.divide(Decimal(exact.numerator), Decimal(exact.denominator))
    return Context(prec=12).plus(value)


def plain(value: Decimal) -> str:
    """Return a decimal without exponent or trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rounded(value: Decimal, digits: int = 4) -> str:
    """Return a value to so many significant digits, whole parts never shortened."""
    whole = len(str(abs(int(value)))) if abs(value) >= 1 else 0
    return plain(Context(prec=max(digits, whole)).plus(value))


def shown_factor(conversion: Conversion) -> Decimal:
    """Return the factor to 4 significant digits: within 0.05% of the exact one."""
    exact = conversion.factor
    value = _PRECISE.divide(Decimal(exact.numerator), Decimal(exact.denominator))
    return Decimal(rounded(value))


def question(number: Decimal, conversion: Conversion, wording: str) -> str:
    """Return the question as a person asks it."""
    names = {"sources": plural(conversion.source), "targets": plural(conversion.target)}
    return wording.format(n=plain(number), **names)


def fact(conversion: Conversion) -> str:
    """Return the sentence that a worked answer begins with."""
    factor = shown_factor(conversion)
    name = singular(conversion.target) if factor == 1 else plural(conversion.target)
    return f"1 {singular(conversion.source)} = {plain(factor)} {name}."


def product_lines(number: Decimal, factor: Decimal) -> tuple[list[str], Decimal]:
    """Return a multiplication as lines of one digit each with running sums, and the product.

    47 × 1.609 becomes 47 * 1 = 47, 47 * 0.6 = 28.2, 47 + 28.2 = 75.2, 47 * 0.009 = 0.423,
    75.2 + 0.423 = 75.623: steps that a very small model can learn.
    """
    sign, digits, exponent = factor.as_tuple()
    if sign or not isinstance(exponent, int):
        raise ValueError(f"{factor} is no positive number")
    lines: list[str] = []
    total: Decimal | None = None
    for position, digit in enumerate(digits):
        if digit == 0:
            continue
        part = Decimal(digit).scaleb(exponent + len(digits) - 1 - position)
        product = number * part
        lines.append(f"{plain(number)} * {plain(part)} = {plain(product)}")
        if total is not None:
            lines.append(f"{plain(total)} + {plain(product)} = {plain(total + product)}")
        total = product if total is None else total + product
    if total is None:
        raise ValueError("a factor of zero")
    return lines, total


def worked(number: Decimal, conversion: Conversion) -> str:
    """Return the worked answer: the fact, the multiplication line by line, the tagged result."""
    lines, total = product_lines(number, shown_factor(conversion))
    return "\n".join([fact(conversion), *lines, f"<answer>{plain(total)}</answer>"])


def terse(number: Decimal, conversion: Conversion) -> str:
    """Return the answer alone, to 4 significant digits."""
    return f"<answer>{rounded(gold(number, conversion))}</answer>"
