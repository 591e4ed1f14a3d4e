"""The slow way to tokenise, text by text: what the fast way must agree with, id for id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.data.chats import TOOLS
from tunesmith.data.render import Rendered, Renderer
from tunesmith.data.templates import _forms, _lost_call
from tunesmith.errors import ContractError
from tunesmith.types import Encoded, Example, Segment

Turns = list[tuple[int, Segment]]


class SlowRenderer:
    """Renders every prefix anew through ``apply_chat_template`` and calls for every piece."""

    def __init__(self, tokenizer: Any, renderer: Renderer) -> None:
        self.tokenizer, self.template = tokenizer, renderer.template
        self.stop_id, self.bos_id = renderer.stop_id, renderer.bos_id

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, messages: Sequence[Segment], prompt: bool) -> str:
        turns = [
            {"role": s.role, "content": s.text, **{k: v for k, v in s.extra.items() if k != TOOLS}}
            for s in messages
        ]
        tools = messages[0].extra.get(TOOLS) if messages else None
        try:
            return self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as failure:
            raise ContractError(f"The chat template refuses the conversation: {failure}") from None

    def encode(self, example: Example, limit: int, *, answers_only: bool = True) -> Rendered:
        segments = example.segments
        if all(s.role is None for s in segments):
            return Rendered(tuple(self.windows(example, limit)))
        trained = [i for i, s in enumerate(segments) if s.role == "assistant" and s.weight]
        if not trained:
            return Rendered((), refused="no assistant turn is trained")
        missing = self.missing(segments)
        if missing:
            return Rendered((), refused=missing)
        if self.keeps(segments):
            return self.fit(example, trained, trained[-1] + 1, limit, answers_only)
        rows = [self.fit(example, [i], i + 1, limit, answers_only) for i in trained]
        refused = next((row.refused for row in rows if row.refused), None)
        encoded = tuple(row for rendered in rows for row in rendered.rows)
        return Rendered(encoded, sum(r.cut_turns for r in rows), None if encoded else refused)

    def missing(self, messages: Sequence[Segment]) -> str | None:
        try:
            whole = self.text(messages, False)
            for number, segment in enumerate(messages, 1):
                answer = segment.role == "assistant"
                text = self.text(messages[:number], False) if answer else whole
                if not any(form in text for form in _forms(segment)):
                    return f"the template loses turn {number} ({segment.role})"
                lost = _lost_call(segment, text)
                if lost:
                    return f"the template loses the tool call in turn {number} ({lost})"
        except ContractError as refusal:
            return refusal.found
        return None

    def keeps(self, messages: Sequence[Segment]) -> bool:
        whole = self.text(messages, False)
        for at, segment in enumerate(messages):
            if segment.role == "assistant":
                before, after = self.text(messages[:at], True), self.text(messages[: at + 1], False)
                if not (after.startswith(before) and whole.startswith(after)):
                    return False
        return True

    def fit(self, example: Example, trained: list[int], end: int, limit: int, only: bool):
        turns, cut = list(enumerate(example.segments[:end])), 0
        while True:
            row = self.row(example, turns, trained, only)
            if len(row.ids) <= limit:
                return Rendered((row,), cut)
            shorter = without_oldest(turns)
            if len(shorter) == len(turns):
                why = f"{len(row.ids)} tokens, more than the {limit} allowed, in one exchange"
                return Rendered((), cut, why)
            cut += len(turns) - len(shorter)
            turns = shorter

    def row(self, example: Example, turns: Turns, trained: list[int], only: bool) -> Encoded:
        by_number, ids, weights = dict(turns), [], []
        for piece, turn in self.tokenise(self.pieces(turns, prompt=False)):
            weight = by_number[turn].weight if turn in trained else 0.0
            ids += piece
            weights += [weight if only else 1.0] * len(piece)
        last = max((i for i, w in enumerate(weights) if w), default=len(ids) - 1) + 1
        weights[0] = 0.0
        return Encoded(tuple(ids[:last]), tuple(weights[:last]), example.origin)

    def pieces(self, turns: Turns, *, prompt: bool) -> list[tuple[str, int | None]]:
        segments = [segment for _, segment in turns]
        answers = [at for at, segment in enumerate(segments) if segment.role == "assistant"]
        if not self.keeps(segments):
            answers = [] if prompt else answers[-1:]
        pieces: list[tuple[str, int | None]] = []
        text = ""
        for at in answers:
            before, after = self.text(segments[:at], True), self.text(segments[: at + 1], False)
            end = self.answer_end(after, len(before), segments[at].text.strip())
            pieces.append((before[len(text) :], None))
            pieces.append((after[len(before) : end], turns[at][0]))
            pieces.append((after[end:], None))
            text = after
        if prompt:
            pieces.append((self.text(segments, True)[len(text) :], None))
        return [piece for piece in pieces if piece[0] or piece[1] is not None]

    def answer_end(self, text: str, start: int, content: str) -> int:
        at = text.find(content, start)
        if at < 0:
            raise ContractError("The template changes the text of an assistant turn.")
        stop = str(self.tokenizer.decode([self.stop_id]))
        end = text.find(stop, at + len(content))
        return at + len(content) if end < 0 else end + len(stop)

    def tokenise(self, pieces: list[tuple[str, int | None]]) -> list[tuple[list[int], int | None]]:
        done: list[tuple[list[int], int | None]] = []
        for text, turn in pieces:
            ids = self.behind(text) if done else self.with_bos(self.ids(text))
            if turn is not None and ids[-1:] != [self.stop_id]:
                ids = [*ids, self.stop_id]
            done.append((ids, turn))
        return done

    def behind(self, text: str) -> list[int]:
        if not len(self.ids("\n\n")) < 2 * len(self.ids("\n")) > 2:
            return self.ids(text)
        anchor, joined = self.ids("\n"), self.ids("\n" + text)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else self.ids(text)

    def with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if self.bos_id is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if bos is not None and ids[:2] == [bos, bos] and self.tokenizer.eos_token_id != bos:
            raise ContractError("The chat template and the tokenizer both add a BOS token.")
        return ids

    def prompt_ids(self, messages: Sequence[Segment]) -> tuple[int, ...]:
        pieces = self.pieces(list(enumerate(messages)), prompt=True)
        return tuple(i for ids, _ in self.tokenise(pieces) for i in ids)

    def windows(self, example: Example, limit: int) -> list[Encoded]:
        ids: list[int] = []
        weights: list[float] = []
        for segment in example.segments:
            piece = self.ids(segment.text)
            ids, weights = ids + piece, weights + [segment.weight] * len(piece)
        ids, weights = [*ids, self.tokenizer.eos_token_id], [*weights, 1.0]
        if self.bos_id is not None:
            ids, weights = [self.bos_id, *ids], [0.0, *weights]
        rows = []
        for start in range(0, max(1, len(ids) - 1), limit - 1):
            window, weight = ids[start : start + limit], weights[start : start + limit]
            weight[0] = 0.0
            rows.append(Encoded(tuple(window), tuple(weight), example.origin))
        return rows


def without_oldest(turns: Turns) -> Turns:
    head = [turn for turn in turns if turn[1].role == "system"][:1]
    rest = [turn for turn in turns if turn not in head]
    for position in range(1, len(rest)):
        if rest[position][1].role == "user":
            return head + rest[position:]
    return turns
