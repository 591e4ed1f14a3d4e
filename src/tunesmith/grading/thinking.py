"""Thinking aloud: what stands between ``<think>`` and ``</think>``, and what stands behind it."""

from __future__ import annotations

from dataclasses import dataclass

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True, slots=True)
class Parts:
    """A text cut behind its last ``</think>``."""

    thinking: str
    """The text up to and with the last ``</think>``; all of it where a block is unclosed."""
    answer: str | None
    """The rest, without the space in front; None where a block is unclosed."""


def split_thinking(text: str) -> Parts:
    """Cut a text into thinking and answer.

    A template may have written ``<think>`` into the prompt already, so a text may close a block
    that it does not open.
    """
    before, mark, rest = text.rpartition(CLOSE)
    if OPEN in rest:
        return Parts(text, None)
    return Parts(before + mark, rest.lstrip() if mark else rest)
