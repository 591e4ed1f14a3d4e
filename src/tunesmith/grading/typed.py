"""Text as a keyboard has it: digits, signs, spaces and LaTeX of an answer in one spelling each."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "−": "-", "－": "-", "﹣": "-", "‐": "-", "‑": "-",
    "⁄": "/", "∕": "/", "＋": "+", "％": "%", "﹪": "%", "٪": "%",
    "．": ".", "，": ",", "＄": "$", "＝": "=", "：": ":", "（": "(", "）": ")",
    "\u00a0": " ", "\u2007": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ",
    "“": '"', "”": '"', "‘": "'", "’": "'",
    "\u200b": "", "\ufeff": "",
}  # fmt: skip
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_FRACTION_SIGN = re.compile(rf"(\d)?([{''.join(_FRACTIONS)}])")
_DASH = re.compile(r"(?<![\w)])[–—](?=\$?\d)")
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]{1,60})\}\s*\{([^{}]{1,60})\}"), r"(\1)/(\2)"),
    (re.compile(r"\((\d+)\)/\((\d+)\)"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]{0,200})\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "*"),
    (re.compile(r"\\div\b"), "/"),
    (re.compile(r"\\(?:left|right)(?=[()])"), ""),
    (re.compile(r"\\[,!; ]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
)
_BOXED = "\\boxed{"
LONGEST_BOX = 1000
"""Characters of a box that are looked through for its end."""


def typed(text: str) -> str:
    """Return a text with plain digits, minus signs, fractions and spaces; letters stay."""
    if not text.isascii():
        text = _FRACTION_SIGN.sub(_fraction, text)
        text = "".join(_SIGNS[sign] if sign in _SIGNS else _digit(sign) for sign in text)
        text = _DASH.sub("-", text)
    if "\\" in text or "{,}" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    return text


def boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed{…}`` holds, inner braces included; None without one."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOXED)
    for at in range(begin, min(len(text), begin + LONGEST_BOX)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[begin:at].strip()
    return None


def _digit(sign: str) -> str:
    if sign.isascii():
        return sign
    if "\uff01" <= sign <= "\uff5e":
        return chr(ord(sign) - 0xFEE0)
    value = unicodedata.decimal(sign, None)
    return sign if value is None else str(value)


def _fraction(match: re.Match[str]) -> str:
    whole, sign = match.groups()
    return f"{whole} {_FRACTIONS[sign]}" if whole else _FRACTIONS[sign]
