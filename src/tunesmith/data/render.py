"""The only code that turns messages into tokens: prompts and training rows come from here both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.chats import TOOLS
from tunesmith.errors import ContractError, UsageError
from tunesmith.types import Encoded, Example, Segment

PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Assistant:\\n' + m['content'] + eos_token + '\\n' }}"
    "{% else %}{{ m['role'] | capitalize + ':\\n' + m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
INSTRUCTION = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
FORMS = {"plain": PLAIN, "instruction": INSTRUCTION}
"""Templates for models that bring none; they use nothing but the tokens that a model has."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    all_special_ids: list[int]

    def __call__(self, text: Any, **settings: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **settings: Any) -> Any: ...
    def decode(self, token_ids: Any, **settings: Any) -> Any: ...


Piece = tuple[str, int | None]
"""A text, and the number of the assistant turn that it is (None for context)."""


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
        self.template, self.form = choose_template(tokenizer, template)
        if tokenizer.eos_token_id is None:
            raise ContractError(
                "The tokenizer has no end-of-text token, so no answer could be ended.",
                expected="an eos_token in tokenizer_config.json",
            )
        self._wants_bos = _adds_bos(tokenizer)
        self._puts_a_space = len(self._ids("\n\n")) < 2 * len(self._ids("\n")) > 2
        self.stop_id = self._terminator()
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

    def prompt_ids(self, messages: Sequence[Segment]) -> tuple[int, ...]:
        """Return the tokens that a generation starts from."""
        turns = list(enumerate(messages))
        return tuple(i for ids, _ in self._tokenise(self._pieces(turns, prompt=True)) for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_raw(self, ids: Sequence[int]) -> str:
        """Return the text of tokens with the special ones shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode(self, example: Example, max_length: int, *, answers_only: bool = True) -> Rendered:
        """Turn an example into training rows of at most ``max_length`` tokens.

        A conversation gives one row, or one for each trained turn where its template rewrites
        earlier turns; if it is too long its oldest turns are left out, never the answer. Plain
        text gives consecutive windows that overlap by one token, so that each token but the
        document's first is trained exactly once.
        """
        if all(segment.role is None for segment in example.segments):
            return Rendered(tuple(self._windows(example, max_length)))
        if any(segment.role is None for segment in example.segments):
            raise ContractError(f"{example.origin}: plain text and chat turns in one row.")
        trained = [i for i, s in enumerate(example.segments) if s.role == "assistant" and s.weight]
        if not trained:
            return Rendered((), refused="no assistant turn is trained")
        missing = self._missing(example.segments)
        if missing:
            return Rendered((), refused=missing)
        if self._keeps_earlier_turns(example.segments):
            return self._fit(example, trained, trained[-1] + 1, max_length, answers_only)
        rows = [self._fit(example, [i], i + 1, max_length, answers_only) for i in trained]
        refused = next((row.refused for row in rows if row.refused), None)
        encoded = tuple(row for rendered in rows for row in rendered.rows)
        return Rendered(encoded, sum(r.cut_turns for r in rows), None if encoded else refused)

    def _fit(
        self, example: Example, trained: list[int], end: int, limit: int, answers_only: bool
    ) -> Rendered:
        """Render turns up to ``end``, leaving out the oldest exchanges until the row fits."""
        turns = list(enumerate(example.segments[:end]))
        cut = 0
        while True:
            wanted = {i for i in trained if any(i == at for at, _ in turns)}
            row = self._row(example, turns, wanted, answers_only)
            if len(row.ids) <= limit:
                return Rendered((row,), cut)
            shorter = _without_oldest(turns)
            if len(shorter) == len(turns):
                reason = f"{len(row.ids)} tokens, more than the {limit} allowed, in one exchange"
                return Rendered((), cut, reason)
            cut += len(turns) - len(shorter)
            turns = shorter

    def _row(
        self,
        example: Example,
        turns: list[tuple[int, Segment]],
        trained: set[int],
        answers_only: bool,
    ) -> Encoded:
        by_number = dict(turns)
        ids: list[int] = []
        weights: list[float] = []
        for piece, turn in self._tokenise(self._pieces(turns, prompt=False)):
            weight = by_number[turn].weight if turn is not None and turn in trained else 0.0
            ids += piece
            weights += [weight if answers_only else 1.0] * len(piece)
        last = max((i for i, w in enumerate(weights) if w), default=len(ids) - 1) + 1
        weights[0] = 0.0
        return Encoded(tuple(ids[:last]), tuple(weights[:last]), example.origin)

    def _pieces(self, turns: list[tuple[int, Segment]], *, prompt: bool) -> list[Piece]:
        """Return a conversation's text in pieces: context, and each answer with its terminator.

        Prompt and training row are cut at the same places, so the one's tokens begin the other.
        Where the template rewrites earlier turns, all before the last answer is one piece.
        """
        segments = [segment for _, segment in turns]
        answers = [at for at, segment in enumerate(segments) if segment.role == "assistant"]
        if not self._keeps_earlier_turns(segments):
            answers = [] if prompt else answers[-1:]
        pieces: list[Piece] = []
        text = ""
        for at in answers:
            before = self._text(segments[:at], True)
            after = self._text(segments[: at + 1], False)
            end = self._answer_end(after, len(before), segments[at])
            pieces.append((before[len(text) :], None))
            pieces.append((after[len(before) : end], turns[at][0]))
            pieces.append((after[end:], None))
            text = after
        if prompt:
            pieces.append((self._text(segments, True)[len(text) :], None))
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
        stop = str(self._tokenizer.decode([self.stop_id]))
        end = text.find(stop, at + len(content))
        return at + len(content) if end < 0 else end + len(stop)

    def _tokenise(self, pieces: list[Piece]) -> list[tuple[list[int], int | None]]:
        """Tokenise piece by piece; an answer without a terminator gets one."""
        done: list[tuple[list[int], int | None]] = []
        for text, turn in pieces:
            ids = self._with_bos(self._ids(text)) if not done else self._continue(text)
            if turn is not None and ids[-1:] != [self.stop_id]:
                ids = [*ids, self.stop_id]
            done.append((ids, turn))
        return done

    def _windows(self, example: Example, limit: int) -> list[Encoded]:
        """Split plain text, ended by eos, into windows that share one token with the next."""
        if limit < 2:
            raise UsageError("max-length must be at least 2 for plain text.")
        ids: list[int] = []
        weights: list[float] = []
        for segment in example.segments:
            piece = self._ids(segment.text)
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

    def _continue(self, text: str) -> list[int]:
        """Return the tokens of a text that stands behind another one.

        A piece is tokenised by itself, as a model that generates sees it. A tokenizer that puts a
        space in front of every text (Llama 2) is given an anchor, which is taken off again.
        """
        anchor = self._ids("\n")
        if not self._puts_a_space:
            return self._ids(text)
        joined = self._ids("\n" + text)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else self._ids(text)

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_token_id
        if self._wants_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if bos is not None and ids[:2] == [bos, bos] and self._tokenizer.eos_token_id != bos:
            raise ContractError("The chat template and the tokenizer both add a BOS token.")
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, messages: Sequence[Segment], add_generation_prompt: bool) -> str:
        turns = [
            {"role": s.role, "content": s.text, **{k: v for k, v in s.extra.items() if k != TOOLS}}
            for s in messages
        ]
        tools = messages[0].extra.get(TOOLS) if messages else None
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    tools=tools,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except Exception as failure:  # whatever a foreign template raises
            raise ContractError(
                f"The chat template refuses the conversation: {failure}",
                hint="--chat-template instruction, or change the roles",
            ) from None

    def _missing(self, messages: Sequence[Segment]) -> str | None:
        """Say which message the template loses, or why it refuses them.

        An answer must be there when its turn is the last one: later on a template may shorten it.
        """
        try:
            whole = self._text(messages, False)
            for number, segment in enumerate(messages, 1):
                answer = segment.role == "assistant"
                text = self._text(messages[:number], False) if answer else whole
                if not any(form in text for form in _forms(segment)):
                    return f"the template loses turn {number} ({segment.role})"
                lost = _lost_call(segment, text)
                if lost:
                    return f"the template loses the tool call in turn {number} ({lost})"
        except ContractError as refusal:
            return refusal.found
        return None

    def _keeps_earlier_turns(self, messages: Sequence[Segment]) -> bool:
        """Say whether every prefix of the conversation renders to a prefix of its text."""
        whole = self._text(messages, False)
        for position, segment in enumerate(messages):
            if segment.role != "assistant":
                continue
            before = self._text(messages[:position], True)
            after = self._text(messages[: position + 1], False)
            if not (after.startswith(before) and whole.startswith(after)):
                return False
        return True

    def _terminator(self) -> int:
        """Return the token that ends an assistant turn: the special one behind its content."""
        eos = self._tokenizer.eos_token_id
        assert eos is not None
        probe = (Segment("user", "question"), Segment("assistant", "zyx"))
        text = self._text(probe, False)
        behind = self._ids(text[text.rfind("zyx") + 3 :])
        special = set(self._tokenizer.all_special_ids)
        return next((token for token in behind if token in special), eos)


def choose_template(tokenizer: Tokenizer, wanted: str) -> tuple[str, str]:
    """Return a template's text and name: the model's own, a built-in form, or a file's."""
    own = tokenizer.chat_template
    if wanted == "auto":
        return (own, "the model's own") if own else (PLAIN, "plain")
    if wanted in FORMS:
        return FORMS[wanted], wanted
    if "{{" in wanted or "{%" in wanted:
        return wanted, "given"
    path = Path(wanted)
    if path.is_file():
        return path.read_text(encoding="utf-8"), path.name
    raise UsageError(
        f"There is no chat template {wanted!r}.",
        expected="auto, plain, instruction, a file with a Jinja template, or the template itself",
        hint="--chat-template auto",
    )


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Say whether the tokenizer begins a text with BOS by itself."""
    ids = list(tokenizer("a")["input_ids"])
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _forms(segment: Segment) -> tuple[str, ...]:
    """Return the forms in which a render may show a turn's text: tool results also as JSON."""
    text = segment.text.strip()
    if segment.role != "tool":
        return (text,)
    written = (json.dumps(segment.text, ensure_ascii=ascii_) for ascii_ in (False, True))
    return (text, *(form.strip('"') for form in written))


def _lost_call(segment: Segment, text: str) -> str | None:
    """Name a part of a turn's tool calls that a render does not hold."""
    for call in segment.extra.get("tool_calls", ()):
        function = call["function"]
        for part in (function["name"], *_leaves(function["arguments"])):
            written = json.dumps(part, ensure_ascii=False)
            forms = (str(part), written.strip('"'), json.dumps(part).strip('"'))
            if not any(form in text for form in forms):
                return repr(part)
    return None


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the names and the plain values of a nested argument."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _without_oldest(turns: list[tuple[int, Segment]]) -> list[tuple[int, Segment]]:
    """Leave out the oldest exchange (up to the next user turn), keeping any system message."""
    head = [turn for turn in turns if turn[1].role == "system"][:1]
    rest = [turn for turn in turns if turn not in head]
    for position in range(1, len(rest)):
        if rest[position][1].role == "user" and rest[position:]:
            return head + rest[position:]
    return turns
