"""Thinking in training rows: ``<think>`` blocks kept, stripped, or kept without being trained."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.errors import DataError
from tunesmith.grading.thinking import CLOSE, OPEN
from tunesmith.types import Example, Segment

MASKED = "masked_thinking"
"""In a segment's ``extra``: the blocks of its text are rendered, but not trained."""
DONE = {"keep": "kept and trained", "strip": "stripped", "mask": "kept, but not trained"}


def spans(text: str) -> list[tuple[int, int]]:
    """Return where the blocks of a text begin and end, marks included.

    A text may close a block that it does not open, since templates write ``<think>`` into the
    prompt; a block that is never closed reaches to the end.
    """
    found: list[tuple[int, int]] = []
    at = 0
    while True:
        begin, end = text.find(OPEN, at), text.find(CLOSE, at)
        if begin < 0 and (end < 0 or found):
            return found
        if end < 0:
            return [*found, (begin, len(text))]
        if begin < 0 or (end < begin and not found):
            begin = 0
        elif end < begin:
            at = end + len(CLOSE)
            continue
        at = end + len(CLOSE)
        found.append((begin, at))


def without(text: str) -> str:
    """Return a text without its blocks and the space behind each."""
    kept, at = [], 0
    for begin, end in spans(text):
        kept.append(text[at:begin])
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return "".join([*kept, text[at:]]).strip() if at else text


def is_thought(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[bool]:
    """Say of each token of an answer whether any of it lies in a block."""
    thought = [False] * len(ids)
    places = range(len(ids) + 1)

    def length(count: int) -> int:
        return len(decode(ids[:count]))

    for begin, end in spans(decode(ids)):
        first = bisect_right(places, begin, key=length) - 1
        last = bisect_left(places, end, key=length)
        thought[first:last] = [True] * (last - first)
    return thought


@dataclass(slots=True)
class ThinkingMode:
    """What is done with the thinking of answers, and how many have any."""

    mode: str
    """keep, strip or mask."""
    answers: int = 0
    thoughtful: int = 0
    """Answers with a block."""
    unclosed: int = 0
    """Those among them whose last block is never closed."""

    def __call__(self, example: Example) -> Example:
        """Return an example as the mode has it; ``DataError`` where only thinking is there."""
        changed = [self._segment(segment, example) for segment in example.segments]
        if all(new is old for new, old in zip(changed, example.segments, strict=True)):
            return example
        return replace(example, segments=tuple(changed))

    def _segment(self, segment: Segment, example: Example) -> Segment:
        if segment.role != "assistant":
            return segment
        self.answers += 1
        if OPEN not in segment.text and CLOSE not in segment.text:
            return segment
        self.thoughtful += 1
        self.unclosed += OPEN in segment.text.rpartition(CLOSE)[2]
        if self.mode == "keep":
            return segment
        rest = without(segment.text)
        if not rest.strip() and not segment.extra.get("tool_calls"):
            raise DataError(
                f"{example.origin}: an answer is nothing but thinking.",
                expected="an answer behind </think>",
                hint="--thinking keep, or take the row out",
            )
        if self.mode == "strip":
            return replace(segment, text=rest)
        return replace(segment, extra={**segment.extra, MASKED: True})

    def counts(self) -> dict[str, int]:
        """Return what the report shows; nothing where no answer thinks."""
        if not self.thoughtful:
            return {}
        found = {f"answers with thinking, {DONE[self.mode]} (held-out ones too)": self.thoughtful}
        return found | ({"of them unclosed": self.unclosed} if self.unclosed else {})

    def told(self) -> str:
        """Say it in a sentence; empty where no answer thinks."""
        if not self.thoughtful:
            return ""
        unclosed = f"; {self.unclosed:,} never close it" if self.unclosed else ""
        return (
            f"Thinking: {self.thoughtful:,} of {self.answers:,} answers have a {OPEN} block, "
            f"{DONE[self.mode]}{unclosed}."
        )
