"""Constraints on pieces that a text has to contain: placeholders, a postscript."""

from __future__ import annotations

import re

_PLACEHOLDER = re.compile(r"\[[^\S\n]*[^\[\]\s][^\[\]\n]*\]")


def number_placeholders(text: str, num_placeholders: int) -> bool:
    """Say whether at least so many ``[placeholders]`` in square brackets stand in a text."""
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """Say whether a postscript begins with the marker somewhere, and says something.

    Case and spaces between the marker's letters do not count, nor does its last full stop; marks
    of Markdown may stand around it. A ``P.P.S.`` is no ``P.S.``.
    """
    letters = [re.escape(part) for part in postscript_marker.strip().rstrip(".").split(".")]
    marker = r"\.\s?".join(letters)
    between = r"(?:[^\w\n]|_)*"
    pattern = rf"(?<![^\W_])(?<!\bp\.)(?<!\bp\.\s){marker}(?![^\W_]){between}\n?{between}[^\W_]"
    return re.search(pattern, text, re.IGNORECASE) is not None
