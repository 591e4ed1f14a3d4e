"""The only code that turns messages into tokens: prompts and training rows come from here both."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from tunesmith.data.templates import Chat, Template, choose_template
from tunesmith.data.thinking import MASKED, is_thought
from tunesmith.data.word_tokens import Spelling, TextTokens, byte_spelling
from tunesmith.errors import ContractError, UsageError
from tunesmith.types import Encoded, Example, Segment


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    all_special_ids: list[int]
    special_tokens_map: dict[str, Any]
    split_special_tokens: bool

    def __call__(self, text: Any, **settings: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **settings: Any) -> Any: ...
    def decode(self, token_ids: Any, **settings: Any) -> Any: ...
    def batch_decode(self, sequences: Any, **settings: Any) -> Any: ...


Piece = tuple[str, int | None]
"""A text, and the number of the assistant turn that it is (None for context)."""
T = TypeVar("T")
Asking = Generator[list[str], list[list[int]], T]
"""A computation that hands out texts and is sent their ids, so that many can ask together."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rows of one example, or why there are none."""

    rows: tuple[Encoded, ...]
    cut_turns: int = 0
    """Oldest turns left out so that the row fits."""
    refused: str | None = None


class Renderer:
    """Renders conversations and plain text for one tokenizer and one template."""

    def __init__(
        self, tokenizer: Tokenizer, template: str = "auto", stop_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._extra_stops = tuple(stop_ids)
        self.template, self.form = choose_template(tokenizer.chat_template, template)
        self._template = Template(tokenizer, self.template)
        self._texts = TextTokens(tokenizer)
        self._spelling: Spelling | None = byte_spelling(tokenizer)
        if tokenizer.eos_token_id is None:
            raise ContractError(
                "The tokenizer has no end-of-text token, so no answer could be ended.",
                expected="an eos_token in tokenizer_config.json",
            )
        self._wants_bos = _adds_bos(tokenizer)
        self._puts_a_space = len(self._ids("\n\n")) < 2 * len(self._ids("\n")) > 2
        self.stop_id = self._terminator()
        self._stop = str(tokenizer.decode([self.stop_id]))
        known = dict.fromkeys((self.stop_id, tokenizer.eos_token_id, *stop_ids))
        self.stop_ids = tuple(known)

    @property
    def bos_id(self) -> int | None:
        """Return the token that every row begins with, if the model wants one."""
        return self._tokenizer.bos_token_id if self._wants_bos else None

    @property
    def fingerprint(self) -> str:
        """Return a hash of the template and of what the tokenizer makes of a probe text."""
        probe = self._ids("Aa1 é\n\t{}<|x|> 12.5")
        return hashlib.sha256(repr((self.template, probe, self.stop_ids)).encode()).hexdigest()

    @property
    def identity(self) -> str | None:
        """Return a hash of all that decides tokens; None where the tokenizer cannot be written.

        A template that asks for the date is another one tomorrow.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        dated = str(datetime.date.today()) if "strftime_now" in self.template else ""
        parts = (
            self.template,
            dated,
            self.stop_ids,
            self.bos_id,
            type(self._tokenizer).__name__,
            sorted(self._tokenizer.special_tokens_map.items(), key=str),
            self._tokenizer.split_special_tokens,
            [(name, version(name)) for name in ("transformers", "tokenizers", "jinja2")],
            backend.to_str(),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __reduce__(self) -> Any:
        return _opened_again, (self._tokenizer, self.template, self._extra_stops)

    def prompt_ids(self, messages: Sequence[Segment]) -> tuple[int, ...]:
        """Return the tokens that a generation starts from; plain text is gone on with as it is."""
        if messages and all(message.role is None for message in messages):
            return tuple(self._with_bos(self._ids("".join(m.text for m in messages))))
        chat = Chat(self._template, messages)
        pieces = self._pieces(chat, tuple(range(len(messages))), prompt=True)
        [done] = self._answer([self._tokenise(pieces)])
        if isinstance(done, ContractError):
            raise done
        return tuple(i for ids, _ in done for i in ids)

    def prompt_text(self, messages: Sequence[Segment], *, goes_on: bool = False) -> str:
        """Return the text that the template makes of a conversation, to be answered next.

        With ``goes_on`` its last turn is not ended, so that a generation goes on with it.
        """
        chat = Chat(self._template, messages)
        turns = tuple(range(len(messages)))
        if not goes_on:
            return chat.text(turns, prompt=True)
        text, said = chat.text(turns, prompt=False), messages[-1].text
        at = text.rfind(said.strip())
        if at < 0:
            raise ContractError("The template changes the text of the turn to go on with.")
        own = text.rfind(said)
        return text[: at + len(said.strip())] if own < 0 else text[: own + len(said)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_raw(self, ids: Sequence[int]) -> str:
        """Return the text of tokens with the special ones shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def decode_all(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return what ``decode`` says of each."""
        if self._spelling is not None:
            return [self._spelling.text(ids) for ids in rows]
        decoded = self._tokenizer.batch_decode(
            [list(ids) for ids in rows], skip_special_tokens=True
        )
        return list(decoded)

    def encode(self, example: Example, max_length: int, *, answers_only: bool = True) -> Rendered:
        """Turn an example into training rows of at most ``max_length`` tokens.

        A conversation gives one row, or one for each trained turn where its template rewrites
        earlier turns; if it is too long its oldest turns are left out, never the answer. Plain
        text gives consecutive windows that overlap by one token, so that each token but the
        document's first is trained exactly once.
        """
        [done] = self.encode_all([example], max_length, answers_only=answers_only)
        if isinstance(done, ContractError):
            raise done
        return done

    def encode_all(
        self, examples: Sequence[Example], max_length: int, *, answers_only: bool = True
    ) -> list[Rendered | ContractError]:
        """Return what ``encode`` says of each example, or what it raises; texts go in batches."""
        return self._answer([self._encode(e, max_length, answers_only) for e in examples])

    def _answer(self, waiting: Sequence[Asking[T]]) -> list[T | ContractError]:
        """Run computations side by side, tokenising in one go what they ask for at a time."""
        done: dict[int, T | ContractError] = {}
        asked: dict[int, list[str]] = {}

        def go_on(number: int, ids: list[list[int]] | None) -> None:
            try:
                one = waiting[number]
                asked[number] = next(one) if ids is None else one.send(ids)
            except StopIteration as stop:
                done[number] = stop.value
            except ContractError as failure:
                done[number] = failure

        for number in range(len(waiting)):
            go_on(number, None)
        while asked:
            texts = dict.fromkeys(text for several in asked.values() for text in several)
            known = dict(zip(texts, self._texts.all(list(texts)), strict=True))
            turn, asked = asked, {}
            for number, several in turn.items():
                go_on(number, [known[text] for text in several])
        return [done[number] for number in range(len(waiting))]

    def _encode(self, example: Example, max_length: int, answers_only: bool) -> Asking[Rendered]:
        if all(segment.role is None for segment in example.segments):
            rows = yield from self._windows(example, max_length)
            return Rendered(tuple(rows))
        if any(segment.role is None for segment in example.segments):
            raise ContractError(f"{example.origin}: plain text and chat turns in one row.")
        trained = [i for i, s in enumerate(example.segments) if s.role == "assistant" and s.weight]
        if not trained:
            return Rendered((), refused="no assistant turn is trained")
        chat = Chat(self._template, example.segments)
        every = tuple(range(len(example.segments)))
        missing = chat.missing(every)
        if missing:
            return Rendered((), refused=missing)
        fitting = (chat, example, max_length, answers_only)
        if chat.keeps_earlier_turns(every):
            return (yield from self._fit(trained, trained[-1] + 1, *fitting))
        rendered = []
        for turn in trained:
            rendered.append((yield from self._fit([turn], turn + 1, *fitting)))
        refused = next((one.refused for one in rendered if one.refused), None)
        encoded = tuple(row for one in rendered for row in one.rows)
        return Rendered(encoded, sum(r.cut_turns for r in rendered), None if encoded else refused)

    def _fit(
        self,
        trained: list[int],
        end: int,
        chat: Chat,
        example: Example,
        limit: int,
        answers_only: bool,
    ) -> Asking[Rendered]:
        """Render turns up to ``end``, leaving out the oldest exchanges until the row fits."""
        turns = tuple(range(end))
        cut = 0
        while True:
            row = yield from self._row(chat, example, turns, set(trained), answers_only)
            if len(row.ids) <= limit:
                return Rendered((row,), cut)
            shorter = without_oldest(turns, example.segments)
            if len(shorter) == len(turns):
                reason = f"{len(row.ids)} tokens, more than the {limit} allowed, in one exchange"
                return Rendered((), cut, reason)
            cut += len(turns) - len(shorter)
            turns = shorter

    def _row(
        self,
        chat: Chat,
        example: Example,
        turns: tuple[int, ...],
        trained: set[int],
        answers_only: bool,
    ) -> Asking[Encoded]:
        ids: list[int] = []
        weights: list[float] = []
        last = 0
        done = yield from self._tokenise(self._pieces(chat, turns, prompt=False))
        for piece, turn in done:
            weight = 1.0
            if answers_only:
                weight = (
                    example.segments[turn].weight if turn in trained and turn is not None else 0.0
                )
            ids += piece
            weights += [weight] * len(piece)
            if weight and turn is not None and example.segments[turn].extra.get(MASKED):
                thought = is_thought(piece, self.decode_raw)
                weights[-len(piece) :] = [0.0 if one else weight for one in thought]
            if weight:
                last = len(ids)
        last = last or len(ids)
        weights[0] = 0.0
        return Encoded(tuple(ids[:last]), tuple(weights[:last]), example.origin)

    def _pieces(self, chat: Chat, turns: tuple[int, ...], *, prompt: bool) -> list[Piece]:
        """Return a conversation's text in pieces: context, and each answer with its terminator.

        Prompt and training row are cut at the same places, so the one's tokens begin the other.
        Where the template rewrites earlier turns, all before the last answer is one piece.
        """
        answers = [at for at, turn in enumerate(turns) if chat.segments[turn].role == "assistant"]
        if not chat.keeps_earlier_turns(turns):
            answers = [] if prompt else answers[-1:]
        pieces: list[Piece] = []
        text = ""
        for at in answers:
            before = chat.text(turns[:at], prompt=True)
            after = chat.text(turns[: at + 1], prompt=False)
            end = self._answer_end(after, len(before), chat.segments[turns[at]])
            pieces.append((before[len(text) :], None))
            pieces.append((after[len(before) : end], turns[at]))
            pieces.append((after[end:], None))
            text = after
        if prompt:
            pieces.append((chat.text(turns, prompt=True)[len(text) :], None))
        return [piece for piece in pieces if piece[0] or piece[1] is not None]

    def _answer_end(self, text: str, start: int, segment: Segment) -> int:
        """Return where an answer ends in a render, its terminator included if there is one."""
        content = segment.text.strip()
        at = text.find(content, start)
        if at < 0:
            raise ContractError(
                "The template changes the text of an assistant turn.",
                expected="every trained answer in the render, word for word",
            )
        end = text.find(self._stop, at + len(content))
        return at + len(content) if end < 0 else end + len(self._stop)

    def _tokenise(self, pieces: list[Piece]) -> Asking[list[tuple[list[int], int | None]]]:
        """Tokenise piece by piece; an answer without a terminator gets one.

        A piece is tokenised by itself, as a model that generates sees it. A tokenizer that puts a
        space in front of every text (Llama 2) is given an anchor, which is taken off again.
        """
        texts = [text for text, _ in pieces]
        if self._puts_a_space:
            anchor = self._ids("\n")
            anchored = yield [*texts[:1], *("\n" + text for text in texts[1:])]
            alone = yield texts
            encoded = [
                ids[len(anchor) :] if place and ids[: len(anchor)] == anchor else own
                for place, (ids, own) in enumerate(zip(anchored, alone, strict=True))
            ]
        else:
            encoded = yield texts
        done: list[tuple[list[int], int | None]] = []
        for ids, (_, turn) in zip(encoded, pieces, strict=True):
            if not done:
                ids = self._with_bos(ids)
            if turn is not None and ids[-1:] != [self.stop_id]:
                ids = [*ids, self.stop_id]
            done.append((ids, turn))
        return done

    def _windows(self, example: Example, limit: int) -> Asking[list[Encoded]]:
        """Split plain text, ended by eos, into windows that share one token with the next."""
        if limit < 2:
            raise UsageError("max-length must be at least 2 for plain text.")
        ids: list[int] = []
        weights: list[float] = []
        encoded = yield [segment.text for segment in example.segments]
        for segment, piece in zip(example.segments, encoded, strict=True):
            ids += piece
            weights += [segment.weight] * len(piece)
        eos = self._tokenizer.eos_token_id
        assert eos is not None
        ids, weights = [*ids, eos], [*weights, 1.0]
        if self._wants_bos and self._tokenizer.bos_token_id is not None:
            ids, weights = [self._tokenizer.bos_token_id, *ids], [0.0, *weights]
        weights[0] = 0.0
        rows = []
        for start in range(0, max(1, len(ids) - 1), limit - 1):
            window, weight = ids[start : start + limit], weights[start : start + limit]
            weight[0] = 0.0
            rows.append(Encoded(tuple(window), tuple(weight), example.origin))
        return rows

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_token_id
        if self._wants_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if bos is not None and ids[:2] == [bos, bos] and self._tokenizer.eos_token_id != bos:
            raise ContractError("The chat template and the tokenizer both add a BOS token.")
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _terminator(self) -> int:
        """Return the token that ends an assistant turn: the special one behind its content."""
        eos = self._tokenizer.eos_token_id
        assert eos is not None
        probe = (Segment("user", "question"), Segment("assistant", "zyx"))
        text = Chat(self._template, probe).text((0, 1), prompt=False)
        behind = self._ids(text[text.rfind("zyx") + 3 :])
        special = set(self._tokenizer.all_special_ids)
        return next((token for token in behind if token in special), eos)


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Say whether the tokenizer begins a text with BOS by itself."""
    ids = list(tokenizer("a")["input_ids"])
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _opened_again(tokenizer: Tokenizer, template: str, stop_ids: tuple[int, ...]) -> Renderer:
    """Make a renderer of what another process sent: its tokenizer is a copy, free to change."""
    tokenizer.chat_template = template
    return Renderer(tokenizer, stop_ids=stop_ids)


def without_oldest(turns: tuple[int, ...], segments: Sequence[Segment]) -> tuple[int, ...]:
    """Leave out the oldest exchange (up to the next user turn), keeping any system message."""
    head = tuple(turn for turn in turns if segments[turn].role == "system")[:1]
    rest = tuple(turn for turn in turns if turn not in head)
    for position in range(1, len(rest)):
        if segments[rest[position]].role == "user":
            return head + rest[position:]
    return turns
