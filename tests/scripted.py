"""A respondent that answers by a function of the prompt: what a workflow makes of known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunesmith.generate.requests import Completion
from tunesmith.types import Segment, StopReason
from tunesmith.workflows.asking import Respondent

Script = Callable[[Sequence[Segment]], str]


class Scripted:
    """A backend whose answers a function gives; words stand for tokens."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.asked: list[Sequence[Segment]] = []

    def answers(
        self, questions: Any, *, should_stop: Any = None, show: Any = None
    ) -> Iterator[Any]:
        for question in questions:
            if should_stop and should_stop():
                return
            self.asked.append(question.messages)
            text = self._script(question.messages)
            tokens = tuple(range(len(text.split())))
            yield Completion(question.key, tokens, text, StopReason.STOP_TOKEN)


def respondent(script: Script) -> tuple[Respondent, Scripted]:
    """Return a respondent of that script, and its backend, which knows what it was asked."""
    backend = Scripted(script)
    return Respondent(backend, "scripted", lambda: (("scripted",), {})), backend
