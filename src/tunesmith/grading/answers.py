"""Finding the answer in what a model wrote, and reading it as a number."""

from __future__ import annotations

import re
from fractions import Fraction

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FRACTION = re.compile(r"([-+−]?\d[\d,]*)\s*/\s*(\d[\d,]*)")
_DECIMAL = re.compile(r"[-+−]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
MAX_EXPONENT = 60
"""Larger powers of ten are refused: no quantity needs them and 1e999999999 costs memory."""


def extract_tagged(text: str) -> str | None:
    """Return what the last complete ``<answer>…</answer>`` holds, stripped; None without one."""
    found: list[str] = _TAGGED.findall(text)
    return found[-1].strip() if found else None


def parse_number(text: str) -> Fraction | None:
    """Read a number that begins ``text``: commas, a unit behind it, 1.5e3, 3/4, a leading $.

    Returns None when there is none, and for NaN, infinities and absurd exponents.
    """
    stripped = text.strip().lstrip("$€£").strip()
    fraction = _FRACTION.match(stripped)
    if fraction:
        bottom = int(fraction.group(2).replace(",", ""))
        top = int(_ascii(fraction.group(1)))
        return Fraction(top, bottom) if bottom else None
    return _read(_DECIMAL.match(stripped))


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text, for tasks that allow an answer without a marker."""
    last = None
    for match in _DECIMAL.finditer(text):
        last = match
    return _read(last)


def _read(match: re.Match[str] | None) -> Fraction | None:
    if match is None:
        return None
    number = _ascii(match.group()).rstrip(".")
    mantissa, _, exponent = number.lower().partition("e")
    if len(mantissa) > 100 or (exponent and abs(int(exponent)) > MAX_EXPONENT):
        return None
    try:
        return Fraction(number)
    except ValueError:
        return None


def _ascii(number: str) -> str:
    return number.replace(",", "").replace("−", "-")
