"""One dialogue in the terminal: who answers, from which documents, and what is shown of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.config.schema_generate import ChatOptions
from tunesmith.types import StopReason
from tunesmith.workflows import console
from tunesmith.workflows.documents import Shelf, Shown, tell_citations, tell_passages
from tunesmith.workflows.terminal import Answers
from tunesmith.workflows.voices import open_base

if TYPE_CHECKING:
    from tunesmith.generate.dialogue import Dialogue, Reply, Voice
    from tunesmith.models.load import LoadedModel

Who = Literal["tuned", "base", "both"]


@dataclass(slots=True)
class Session:
    """A dialogue with what the terminal needs besides it."""

    options: ChatOptions
    loaded: LoadedModel
    dialogue: Dialogue
    shelf: Shelf | None
    out: Answers = field(default_factory=Answers)
    who: Who = "tuned"
    saved: set[Path] = field(default_factory=set)
    """Files that this session has written, and may write again."""
    _tuned: Voice | None = None
    _base: Voice | None = None
    _shown: Shown | None = None
    """The passages of the last question."""

    def ask(self, text: str) -> None:
        """Answer a question and show the answer, and what it rests on."""
        from tunesmith.data.prompts import typed

        asked = typed(text, "the question").text
        shown = None
        if self.shelf is not None:
            shown = self.shelf.show(asked, self.dialogue.fits)
            tell_passages(shown)
            asked = shown.text
        if self.who == "both":
            reply = self._both(asked)
        else:
            reply = self.dialogue.ask(asked, show=self.out.piece)
            self.out.end()
        self._shown = shown
        self._tell(reply)

    def retry(self) -> None:
        """Answer the last question again."""
        reply = self.dialogue.retry(show=self.out.piece)
        self.out.end()
        self._tell(reply)

    def forget_passages(self) -> None:
        """Forget what the last question was shown: it is not the last one any more."""
        self._shown = None

    def switch(self, who: Who) -> None:
        """Let the tuned model, its base, or both answer; the base is loaded when first needed."""
        if self._tuned is None:
            self._tuned = self.dialogue.voice
        if who != "tuned" and self._base is None:
            from tunesmith.generate.dialogue import Voice

            base = open_base(self.options, self.loaded, self._tuned.renderer)
            self._base = Voice.of(base.loaded, base.renderer, base.around)
        self.dialogue.voice = self._base if who == "base" and self._base else self._tuned
        self.who = who

    def _both(self, asked: str) -> Reply:
        """Let the base answer aside, then the tuned model, whose answer goes into the dialogue."""
        assert self._base is not None
        first = self.dialogue.ask(asked, voice=self._base, keep=False)
        reply = self.dialogue.ask(asked)
        reply = replace(reply, left_out=first.left_out + reply.left_out)
        self.out.beside((("base", first.text), ("tuned", reply.text)))
        return reply

    def _tell(self, reply: Reply) -> None:
        if reply.left_out:
            what = "exchange is" if reply.left_out == 1 else f"{reply.left_out} exchanges are"
            console.say(
                f"The context ({self.dialogue.voice.positions:,} tokens) was full: the oldest "
                f"{what} left out from here on."
            )
        if reply.stop is StopReason.CANCELLED:
            console.say("(stopped)")
        elif reply.stop is StopReason.LENGTH:
            console.say(f"(cut off at {reply.tokens:,} tokens; --max-new-tokens sets the limit)")
        elif not reply.text.strip():
            console.say("(an empty answer)")
        if self._shown is not None and reply.stop is not StopReason.CANCELLED:
            tell_citations(self._shown, self._shown.citations(reply.text))
