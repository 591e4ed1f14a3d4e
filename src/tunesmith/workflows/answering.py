"""Answers of ``tunesmith generate``: shown as they grow, or stored so that a stop loses none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tunesmith.errors import CheckpointError, Interrupted, ModelError
from tunesmith.storage import JsonlLog
from tunesmith.types import StopReason
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent
from tunesmith.workflows.signals import stop_on_signals
from tunesmith.workflows.terminal import Answers

if TYPE_CHECKING:
    from tunesmith.generate.backends import Question
    from tunesmith.generate.requests import Completion

KIND = "tunesmith.answers"
Key = tuple[int, int]
"""Number of the prompt, and of the answer to it."""


class AnswerLog:
    """A file beside the output that holds the answers so far; it goes once the rows are written."""

    def __init__(self, output: str, asked: str, *, sync_every: int, overwrite: bool) -> None:
        """Open or begin it; ``asked`` is a hash of what decides the answers.

        ``CheckpointError`` where it was begun for other answers, unless ``overwrite`` drops those.
        """
        self.path = Path(f"{output.rstrip('/')}.answers.jsonl")
        self.done: dict[Key, Completion] = {}
        head = {"kind": KIND, "asked": asked}
        if self.path.is_file() and self._head() not in (head, None):
            if not overwrite:
                raise CheckpointError(
                    f"{str(self.path)!r} holds answers to something else, or made otherwise.",
                    expected="the prompts and settings that it was begun with",
                    hint="another --output, or --overwrite to start over",
                )
            self.path.unlink()
        self._log = JsonlLog(self.path, sync_every=sync_every)
        if not self._log.records:
            self._log.append(head)
        for record in list(JsonlLog.read(self.path))[1:]:
            completion = _completion(record)
            self.done[completion.key] = completion

    def _head(self) -> Mapping[str, Any] | None:
        return next(JsonlLog.read(self.path), None)

    def append(self, answer: Completion) -> None:
        """Store an answer."""
        self._log.append(
            {
                "key": answer.key,
                "text": answer.text,
                "stop": answer.stop.value,
                "tokens": answer.tokens,
                "logprobs": answer.logprobs,
            }
        )
        self.done[answer.key] = answer

    def remove(self) -> None:
        """Take the file away: all that it holds stands in the rows."""
        self._log.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()


def _completion(record: Mapping[str, Any]) -> Completion:
    from tunesmith.generate.requests import Completion

    number, index = record["key"]
    return Completion(
        (number, index),
        tuple(record["tokens"]),
        record["text"],
        StopReason(record["stop"]),
        tuple(record["logprobs"]),
    )


def answer_all(
    respondent: Respondent,
    questions: Sequence[Question],
    log: AnswerLog | None,
    what: str = "answering",
) -> dict[Any, Completion]:
    """Return the answer to each question by its key; what is in ``log`` is not asked again.

    With a log a signal ends it as ``Interrupted`` between two answers.
    """
    done: dict[Any, Completion] = dict(log.done) if log else {}
    if done:
        console.say(f"{len(done):,} of {len(questions):,} answers are stored already.")
    left = [question for question in questions if question.key not in done]
    with (
        stop_on_signals() if log else nullcontext() as stop,
        console.bar(what, len(questions), len(done)) as bar,
    ):
        try:
            for answer in respondent.backend.answers(left, should_stop=stop):
                if log is not None:
                    log.append(answer)
                done[answer.key] = answer
                bar.advance()
        except ModelError as failure:
            respondent.tell()
            if log is None and len(questions) > 1:
                failure.hint = "--output FILE keeps what is answered, and goes on with the rest"
            raise
    if stop is not None and stop():
        respondent.tell()
        raise Interrupted(
            f"Stopped by a signal; {len(done):,} of {len(questions):,} answers are stored.",
            hint="the same command goes on from there",
        )
    return done


def answer_live(respondent: Respondent, question: Question, out: Answers) -> Completion:
    """Write an answer as it grows, and return it."""
    shown = ""

    def show(_: object, piece: str) -> None:
        nonlocal shown
        shown += piece
        out.piece(piece)

    try:
        [done] = respondent.backend.answers([question], show=show)
    except BaseException:
        out.break_off()
        raise
    if done.text.startswith(shown):
        out.piece(done.text[len(shown) :])
        out.end()
        return done
    out.end()
    console.say("The answer broke off and was given anew:")
    out.whole(done.text)
    return done
