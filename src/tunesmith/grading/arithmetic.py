"""A safe evaluator for the arithmetic that models write; nothing is ever passed to ``eval``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

MAX_LENGTH = 300
"""Characters of one expression; longer ones are refused."""
MAX_DEPTH = 30
MAX_DIGITS = 40
MAX_BITS = 4096
"""Size of a numerator or denominator on the way; there is no power operator, so it stays small."""

_TOKEN = re.compile(r"\s*(?:(\d[\d,]*(?:\.\d+)?|\.\d+)|([-+*/()×÷·−]))")
_NUMBER = r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_TERM = rf"[( \t]*[-−]?[( \t]*\$?{_NUMBER}%?[) \t]*"
_SIDE = rf"{_TERM}(?:[-+*/×÷·−]{_TERM})*"
_CHAIN = re.compile(rf"(?<![\w.])(?<!\d,){_SIDE}(?:={_SIDE})+")
_SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})


class ArithmeticRefused(ValueError):
    """The text is not an expression of this grammar, or is too large to evaluate."""


@dataclass(frozen=True, slots=True)
class Equation:
    """One ``left = right`` found in a text."""

    left: str
    right: str
    holds: bool | None
    """None when a side cannot be evaluated (a division by zero, a number too long)."""
    start: int
    """Offset of the left side in the text."""


def evaluate(expression: str) -> Fraction:
    """Return the exact value of ``+ - * / ( )`` over decimals, commas between thousands allowed.

    Raises ``ArithmeticRefused`` for anything else, in time and memory bounded by ``MAX_LENGTH``.
    """
    if len(expression) > MAX_LENGTH:
        raise ArithmeticRefused(f"longer than {MAX_LENGTH} characters")
    tokens = _tokens(expression)
    value, end = _sum(tokens, 0, 0)
    if end != len(tokens):
        raise ArithmeticRefused(f"unexpected {tokens[end]!r}")
    return value


def numbers_of(expression: str) -> list[Fraction]:
    """Return the numbers that an expression is written with, in order; signs are operators.

    Raises ``ArithmeticRefused`` for what ``evaluate`` does not know the signs of.
    """
    return [Fraction(token) for token in _tokens(expression) if token not in set("+-*/()")]


def equations(text: str) -> list[Equation]:
    """Return every equation of a text in order; ``a = b = c`` gives two.

    A statement without an operator on either side, such as «1 hour = 60 minutes», is a fact and
    no equation. A right side with decimals may be rounded at the precision it shows (half a unit
    in its last place); a whole number must be exact.
    """
    found = []
    for match in _CHAIN.finditer(text):
        sides = match.group().split("=")
        offset = match.start()
        for left, right in pairwise(sides):
            if _has_operator(left) or _has_operator(right):
                found.append(Equation(left.strip(), right.strip(), _holds(left, right), offset))
            offset += len(left) + 1
    return found


def normalise(side: str) -> str:
    """Return one side in a form in which spacing, signs and separators make no difference."""
    return re.sub(r"[\s,$]", "", side.translate(_SAME))


def _has_operator(side: str) -> bool:
    return re.search(r"[\d)%]\s*[-+*/×÷·−]", side) is not None


def _holds(left: str, right: str) -> bool | None:
    try:
        difference = abs(evaluate(_plain(left)) - evaluate(_plain(right)))
    except ArithmeticRefused:
        return None
    decimals = re.fullmatch(r"[-−\s$]*[\d,]*\.(\d+)\s*", right)
    tolerance = Fraction(1, 2 * 10 ** len(decimals.group(1))) if decimals else Fraction(0)
    return difference <= tolerance


def _plain(side: str) -> str:
    percent = re.sub(rf"({_NUMBER})%", r"(\1/100)", side)
    return percent.replace("$", "")


def _tokens(expression: str) -> list[str]:
    tokens, at = [], 0
    text = expression.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ArithmeticRefused(f"unexpected {text[at : at + 10]!r}")
        number, symbol = match.groups()
        if number is not None and len(number) > MAX_DIGITS:
            raise ArithmeticRefused(f"a number of more than {MAX_DIGITS} digits")
        tokens.append(number.replace(",", "") if number is not None else symbol.translate(_SAME))
        at = match.end()
    if not tokens:
        raise ArithmeticRefused("nothing to evaluate")
    return tokens


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, depth)
        value = value + right if tokens[at] == "+" else value - right
        at = after
    return _bounded(value), at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _atom(tokens, at + 1, depth)
        if tokens[at] == "/" and right == 0:
            raise ArithmeticRefused("division by zero")
        value = value * right if tokens[at] == "*" else value / right
        at = after
    return _bounded(value), at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    if depth > MAX_DEPTH:
        raise ArithmeticRefused(f"nested deeper than {MAX_DEPTH}")
    if at >= len(tokens):
        raise ArithmeticRefused("ends too early")
    token = tokens[at]
    if token in "+-":
        value, after = _atom(tokens, at + 1, depth + 1)
        return (value if token == "+" else -value), after
    if token == "(":
        value, after = _sum(tokens, at + 1, depth + 1)
        if after >= len(tokens) or tokens[after] != ")":
            raise ArithmeticRefused("a bracket is not closed")
        return value, after + 1
    if token in "*/)":
        raise ArithmeticRefused(f"unexpected {token!r}")
    return Fraction(token), at + 1


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise ArithmeticRefused("a value that is too large")
    return value
