"""A dialogue: what was said, what of it a model still sees, and one answer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.render import Renderer, without_oldest
from tunesmith.errors import UsageError
from tunesmith.generate.engine import Engine
from tunesmith.generate.requests import Completion, Request, Sampling, attempt_seed
from tunesmith.models.load import LoadedModel, load
from tunesmith.types import Segment, StopReason

REMEMBERED = 1 << 30
"""Bytes of keys and values that are kept from one turn to the next."""
KEPT = 0.75
"""Share of the context that stays when it is full, so that not every turn shifts it again."""
ENDED = (StopReason.STOP_TOKEN, StopReason.STOP_STRING)


@dataclass(slots=True)
class Voice:
    """Who answers: a model with its renderer; ``around`` is entered while it does."""

    engine: Engine
    renderer: Renderer
    positions: int
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        renderer: Renderer,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Voice:
        """Return the voice of a model that is loaded; it remembers what it has computed."""
        engine = Engine(loaded.model, renderer.decode, renderer.stop_ids, remember_bytes=REMEMBERED)
        return cls(engine, renderer, loaded.max_positions, around)

    def tokens(self, turns: Sequence[Segment]) -> int:
        """Return the tokens of a prompt made of these turns; 0 without any."""
        return len(self.renderer.prompt_ids(turns)) if turns else 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    text: str
    stop: StopReason
    tokens: int
    prompt_tokens: int
    left_out: int
    """Exchanges that were left out for this answer, and will be from now on."""


@dataclass(slots=True)
class Dialogue:
    """Questions and answers, oldest first; each answer computes only what is new.

    ``Dialogue.open("path/or/name").ask("…").text`` is all it takes.
    """

    voice: Voice
    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    seed: int = 0
    turns: list[Segment] = field(default_factory=list)
    """Everything said, the system message apart. An answer without its end has weight 0."""
    first: int = 0
    """The first of the turns that the model still sees."""
    _asked: int = field(default=0, init=False)
    _tries: int = field(default=0, init=False)
    _running: tuple[Engine, int] | None = field(default=None, init=False)

    @classmethod
    def open(
        cls,
        model: str = "tunesmith/tiny",
        *,
        system: str = "",
        seed: int = 0,
        dtype: str = "auto",
        device: str = "auto",
        chat_template: str = "auto",
        **sampling: Any,
    ) -> Dialogue:
        """Load a model to talk with; further settings are those of ``Sampling``."""
        loaded = load(model, dtype=dtype, device=device)
        renderer = Renderer(loaded.tokenizer, chat_template, loaded.eos_ids)
        return cls(Voice.of(loaded, renderer), Sampling(**sampling), system, seed)

    def ask(
        self,
        text: str,
        *,
        show: Callable[[str], None] | None = None,
        voice: Voice | None = None,
        keep: bool = True,
    ) -> Reply:
        """Answer a question; ``show`` gets the answer in pieces as it grows.

        Where the context is full the oldest exchanges are left out, never the system message.
        ``UsageError`` if the question alone is too long; then nothing has changed. Another voice
        may answer, and with ``keep`` false neither question nor answer becomes part of the
        dialogue.
        """
        return self._answer(text, 0, show, voice or self.voice, keep=keep)

    def stop(self) -> bool:
        """End the answer that is being made, which keeps what there is of it; false without one."""
        if self._running is None:
            return False
        engine, key = self._running
        engine.cancel(key)
        return True

    def retry(self, *, show: Callable[[str], None] | None = None) -> Reply:
        """Answer the last question again, with another seed."""
        before, first, tries = list(self.turns), self.first, self._tries + 1
        asked = self.undo()
        if asked is None:
            raise UsageError("There is no answer to make again.", expected="a question first")
        try:
            return self._answer(asked, tries, show, self.voice, keep=True)
        except BaseException:
            self.turns, self.first = before, first
            raise

    def undo(self) -> str | None:
        """Take the last question and its answer back; return the question, None without one."""
        asked = [at for at, turn in enumerate(self.turns) if turn.role == "user"]
        if not asked:
            return None
        text = self.turns[asked[-1]].text
        del self.turns[asked[-1] :]
        self.first = min(self.first, len(self.turns))
        return text

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.turns, self.first, self._tries = [], 0, 0

    def take(self, turns: Sequence[Segment]) -> None:
        """Go on from another dialogue: its system message, if any, and its whole exchanges."""
        self.reset()
        said = list(turns)
        if said and said[0].role == "system":
            self.system = said.pop(0).text
        while said and said[-1].role != "assistant":
            said.pop()
        self.turns = said

    def tokens(self) -> int:
        """Return how many tokens the next question comes behind."""
        return self.voice.tokens(self._seen())

    @property
    def room(self) -> int:
        """Return the longest prompt that leaves room for an answer, in tokens."""
        return self._limit(self.voice)

    def fits(self, text: str) -> bool:
        """Say whether a question, by itself, leaves room for an answer."""
        turns = [*self._head(), Segment("user", text)]
        return self.voice.tokens(turns) <= self._limit(self.voice)

    def _answer(
        self,
        text: str,
        tries: int,
        show: Callable[[str], None] | None,
        voice: Voice,
        *,
        keep: bool,
    ) -> Reply:
        turn = Segment("user", text)
        left_out = self._make_room(voice, turn)
        ids = voice.renderer.prompt_ids(self._seen(turn))
        self._asked += 1
        seed = attempt_seed(self.seed, text, tries)
        done = self._run(voice, Request(self._asked, ids, self.sampling, seed), show)
        if keep:
            self.turns += [turn, Segment("assistant", done.text, float(done.stop in ENDED))]
            self._tries = tries
        return Reply(done.text, done.stop, len(done.tokens), len(ids), left_out)

    def _head(self) -> list[Segment]:
        return [Segment("system", self.system)] if self.system else []

    def _seen(self, *more: Segment) -> list[Segment]:
        return [*self._head(), *self.turns[self.first :], *more]

    def _limit(self, voice: Voice) -> int:
        return voice.positions - min(self.sampling.max_new_tokens, voice.positions // 4)

    def _make_room(self, voice: Voice, turn: Segment) -> int:
        """Leave out the oldest exchanges if the question does not fit behind all of them."""
        limit, before = self._limit(voice), self.first
        target, dropped = limit, 0
        while (size := voice.tokens(self._seen(turn))) > target:
            seen = [*self.turns[self.first :], turn]
            rest = without_oldest(tuple(range(len(seen))), seen)
            if len(rest) == len(seen):
                break
            self.first += len(seen) - len(rest)
            dropped += 1
            target = int(KEPT * limit)
        if size >= voice.positions:
            self.first = before
            raise UsageError(
                f"This question is {size:,} tokens long; the model takes {voice.positions:,}.",
                expected="a question that leaves room for an answer",
            )
        return dropped

    def _run(
        self, voice: Voice, request: Request, show: Callable[[str], None] | None
    ) -> Completion:
        self._running = (voice.engine, request.key)
        told = None if show is None else (lambda _, piece: show(piece))
        try:
            with voice.around():
                [done] = voice.engine.run([request], show=told)
                return done
        finally:
            self._running = None
