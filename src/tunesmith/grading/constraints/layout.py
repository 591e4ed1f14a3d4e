"""Constraints on the form of a text: lists, highlights, sections, titles, JSON, given options."""

from __future__ import annotations

import json
import re

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""What ``constrained_response`` may be answered with."""
_BULLET = re.compile(r"^[ \t]*[*-][ \t]+\S", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:[*-][ \t]*){3,}$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])[^*\n]*(?<=[^\s*])\1(?!\*)")
_TITLE = re.compile(r"<<[^\S\n]*[^<>\s](?:[^<>\n]|<(?!<)|>(?!>))*>>")
_FENCED = re.compile(r"```[ \t]*(?:json)?(.*)```", re.DOTALL | re.IGNORECASE)


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Say whether a text has so many bullet points (``* …`` or ``- …``), exactly."""
    return len(_BULLET.findall(_RULE.sub("", text))) == num_bullets


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """Say whether a text highlights at least so many parts of lines with ``*…*`` or ``**…**``."""
    return sum(1 for _ in _HIGHLIGHT.finditer(text)) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Say whether at least so many lines begin a section: the word, as written, and a number.

    Marks of Markdown may stand in front of it.
    """
    word = re.escape(section_spliter.strip())
    heads = re.findall(rf"^[ \t*_#>-]*{word}[ \t]*\d+", text, re.MULTILINE)
    return len(heads) >= num_sections


def title(text: str) -> bool:
    """Say whether a title in double angular brackets stands on some line."""
    return _TITLE.search(text) is not None


def constrained_response(text: str) -> bool:
    """Say whether a text gives one of the three answers of ``OPTIONS``, and no other."""
    return sum(option in text for option in OPTIONS) == 1


def json_format(text: str) -> bool:
    """Say whether the whole text is JSON, perhaps in a fence of Markdown."""
    bare = text.strip()
    fenced = _FENCED.fullmatch(bare)
    try:
        json.loads(fenced[1] if fenced else bare, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
