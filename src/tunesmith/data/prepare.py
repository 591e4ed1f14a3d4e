"""From examples to tokenised rows: rendering under the token contract, and the held-out split."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

from tunesmith.data.blocks import Block, BlockBuilder, TokenRows, from_bytes
from tunesmith.data.cache import RowCache, block_key, settings_key
from tunesmith.data.parallel import choose_workers, encode_in_processes
from tunesmith.data.render import Renderer
from tunesmith.data.spool import pick
from tunesmith.data.thinking import MASKED, without
from tunesmith.errors import ContractError
from tunesmith.types import Encoded, Example

PARTS = 20
"""Pieces that the held-out end of a single document is measured in, at most."""
NAMED = 5
"""Refused rows that a message names; all are counted."""
TOGETHER = 250
"""Examples whose texts are tokenised in one go."""
BLOCK_CHARACTERS = 1_000_000
"""Text of a block: what is stored, and lost at worst by a kill, at once."""
BLOCKS = 256
"""About so many blocks at most: longer texts make larger blocks, since each is an open file."""


@dataclass(slots=True)
class Prepared:
    """Tokenised rows and what became of the examples."""

    rows: Sequence[Encoded] = field(default_factory=list)
    documents: Sequence[int] = field(default_factory=list)
    """For each row the number of the example it came from."""
    refused: list[str] = field(default_factory=list)
    cut_turns: int = 0
    examples: int = 0
    cached: int = 0
    """Examples whose rows came from the cache."""
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Return all tokens."""
        if isinstance(self.rows, TokenRows):
            return self.rows.tokens
        return sum(len(row.ids) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """Return the tokens whose loss counts."""
        if isinstance(self.rows, TokenRows):
            return self.rows.trained_tokens
        return sum(1 for row in self.rows for weight in row.weights if weight)

    def made(self) -> str:
        """Say where the rows came from and how fast."""
        if self.cached == self.examples:
            return "from the cache"
        rate = self.tokens / max(self.seconds, 1e-9)
        part = f", {self.cached} examples from the cache" if self.cached else ""
        return f"tokenised in {self.seconds:.1f} s, {_short(rate)} tokens/s{part}"

    def lengths(self) -> Sequence[int]:
        """Return the rows' lengths in tokens."""
        if isinstance(self.rows, TokenRows):
            return self.rows.lengths()
        return [len(row.ids) for row in self.rows]

    def counts(self) -> dict[str, int]:
        """Return what the report shows."""
        return {
            "examples": self.examples,
            "rows": len(self.rows),
            "refused": len(self.refused),
            "turns cut from long chats": self.cut_turns,
            "tokens": self.tokens,
            "trained tokens": self.trained_tokens,
        }


def prepare(
    examples: Sequence[Example],
    renderer: Renderer,
    max_length: int,
    *,
    answers_only: bool = True,
    allow_refused: float = 0.0,
    cache: RowCache | None = None,
    workers: int | None = None,
) -> Prepared:
    """Render every example and hold each row to the token contract.

    Neither ``cache`` nor ``workers`` (processes; as many as cores for many rows if None) changes
    a token. Raises ``ContractError`` when a row breaks the contract, or when more than
    ``allow_refused`` of the examples cannot be rendered (too long, or lost by the template).
    """
    began = time.perf_counter()
    parts = _parts(examples)
    identity = renderer.identity if cache is not None else None
    keys: list[str] = []
    blocks: list[Block | None] = [None] * len(parts)
    if cache is not None and identity is not None:
        settings = settings_key(identity, max_length, answers_only)
        keys = [block_key(settings, part) for part in parts]
        blocks = [cache.load(key) for key in keys]
    lacking = [number for number, block in enumerate(blocks) if block is None]
    missing = [parts[number] for number in lacking]
    characters = sum(_size(example) for part in missing for example in part)
    workers = min(choose_workers(workers, characters), len(missing))
    made = _encode(missing, renderer, max_length, answers_only, workers)
    for number, (content, block) in zip(lacking, made, strict=True):
        if cache is not None and keys:
            cache.store(keys[number], content or block.to_bytes())
            block = cache.load(keys[number]) or block
        blocks[number] = block
    if cache is not None:
        cache.prune()
    whole = [block for block in blocks if block is not None]
    prepared = _joined(whole, examples)
    prepared.cached = len(examples) - sum(map(len, missing))
    prepared.seconds = time.perf_counter() - began
    if len(prepared.refused) > allow_refused * len(examples):
        shown = "\n".join(f"  {reason}" for reason in prepared.refused[:NAMED])
        more = len(prepared.refused) - NAMED
        raise ContractError(
            f"{len(prepared.refused)} of {len(examples)} rows cannot be trained on:\n{shown}"
            + (f"\n  and {more} more" if more > 0 else ""),
            hint="a larger --max-length, or --allow-refused 0.05 to go on without them",
        )
    if not prepared.rows:
        raise ContractError("No row is left to train on.")
    return prepared


def _short(number: float) -> str:
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number / 1e3:.0f}k"


def _size(example: Example) -> int:
    return sum(len(segment.text) for segment in example.segments)


def _parts(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """Cut examples into blocks of about equal text; the cuts follow from the texts alone."""
    sizes = [_size(example) for example in examples]
    wanted = max(BLOCK_CHARACTERS, sum(sizes) // BLOCKS)
    parts, start, total = [], 0, 0
    for number, size in enumerate(sizes, 1):
        total += size
        if total >= wanted or number == len(sizes):
            parts.append(examples[start:number])
            start, total = number, 0
    return parts


def _encode(
    parts: Sequence[Sequence[Example]],
    renderer: Renderer,
    max_length: int,
    answers_only: bool,
    workers: int,
) -> Iterator[tuple[bytes, Block]]:
    """Yield the block of each part, and its bytes if they had to be made."""
    if workers < 2:
        for part in parts:
            yield b"", encode_block(part, renderer, max_length, answers_only=answers_only)
        return
    done = encode_in_processes(
        parts, renderer, max_length, answers_only=answers_only, workers=workers
    )
    for content in done:
        yield content, from_bytes(content)


def _joined(blocks: Sequence[Block], examples: Sequence[Example]) -> Prepared:
    rows = TokenRows(blocks, lambda number: examples[number].origin)
    prepared = Prepared(rows, rows.documents(), examples=len(examples))
    first = 0
    for block in blocks:
        prepared.cut_turns += block.cut_turns
        prepared.refused += [f"{examples[first + n].origin}: {why}" for n, why in block.refused]
        first += block.examples
    return prepared


def encode_block(
    examples: Sequence[Example], renderer: Renderer, max_length: int, *, answers_only: bool
) -> Block:
    """Tokenise examples into one block; raises ``ContractError`` for the first that breaks it."""
    builder = BlockBuilder()
    with _no_collection():
        for start in range(0, len(examples), TOGETHER):
            several = examples[start : start + TOGETHER]
            encoded = renderer.encode_all(several, max_length, answers_only=answers_only)
            rows = [
                row for one in encoded if not isinstance(one, ContractError) for row in one.rows
            ]
            texts = iter(renderer.decode_all([_trained(row) for row in rows]))
            for number, (example, one) in enumerate(zip(several, encoded, strict=True), start):
                if isinstance(one, ContractError):
                    raise one
                if one.refused:
                    builder.refuse(number, one.refused)
                    continue
                builder.cut_turns += one.cut_turns
                for row in one.rows:
                    text = next(texts)
                    if answers_only:
                        check_row(row, example, renderer, text)
                    builder.add(row, number)
    return builder.build(len(examples))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector of cycles from looking through a million new tuples, again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _trained(row: Encoded) -> list[int]:
    return list(compress(row.ids, row.weights))


def check_row(row: Encoded, example: Example, renderer: Renderer, text: str | None = None) -> None:
    """Hold one row to the token contract; raises ``ContractError`` naming its place.

    ``text`` is what the trained tokens spell, where that is known.
    """
    trained = _trained(row)
    if not trained:
        raise ContractError(f"{row.origin}: no token of the row is trained.")
    if example.segments[0].role is None:
        return
    if trained[-1] not in renderer.stop_ids:
        raise ContractError(
            f"{row.origin}: the last trained token does not end the turn, so it is never learnt."
        )
    bos = renderer.bos_id
    if bos is not None and (row.ids[0] != bos or row.ids[1:2] == (bos,)):
        raise ContractError(f"{row.origin}: the row does not begin with exactly one BOS token.")
    answers = [
        without(s.text) if s.extra.get(MASKED) else s.text
        for s in example.segments
        if s.role == "assistant" and s.weight
    ]
    if text is not None and any(answer in text for answer in answers):
        return
    text = renderer.decode(trained)
    if any(_squeezed(answer) in _squeezed(text) for answer in answers):
        return
    raise ContractError(
        f"{row.origin}: the trained tokens do not spell an answer of the row: {text[:80]!r}."
    )


def split_holdout(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Split into (training, held-out); examples with the same prompt stay on one side.

    The side follows from a hash of seed and prompt, so another file order changes nothing. At
    least one example is held out if there are two with different prompts.
    """
    held = on_held_side((prompt_key(example) for example in examples), share, seed)
    inside = pick(examples, (at for at, out in enumerate(held) if not out))
    outside = pick(examples, (at for at, out in enumerate(held) if out))
    return inside, outside


def on_held_side(keys: Iterable[str], share: float, seed: int) -> bytes:
    """Return 1 for each key that is held out, else 0, as ``split_holdout`` decides it."""
    ranks = array("Q", (_rank(key, seed) for key in keys))
    keyed = sorted(set(ranks))
    wanted = min(max(1, round(share * len(keyed))), len(keyed) - 1) if share else 0
    last = keyed[wanted - 1] if wanted > 0 else -1
    return bytes(rank <= last for rank in ranks)


def split_document(document: Example, share: float) -> tuple[list[Example], list[Example]]:
    """Split one plain text into (its beginning, parts of its end), cut between paragraphs.

    The end is the held-out share; it comes in up to ``PARTS`` pieces of whole paragraphs, so that
    an interval has several items to draw from. Lines serve where there are no paragraphs; a text
    of one line stays whole.
    """
    text = document.segments[0].text
    breaks = [m.end() for m in re.finditer(r"\n[ \t]*\n\s*", text)] or [
        m.end() for m in re.finditer(r"\n", text)
    ]
    breaks = [at for at in breaks if at < len(text)]
    if not breaks or not share:
        return [document], []
    wanted = len(text) * (1 - share)
    begin = min(breaks, key=lambda at: abs(at - wanted))
    cuts, step = [begin], (len(text) - begin) / PARTS
    for at in breaks:
        if at - cuts[-1] >= step:
            cuts.append(at)
    ends = [*cuts[1:], len(text)]
    parts = [_piece(document, start, end) for start, end in zip(cuts, ends, strict=True)]
    return [_piece(document, 0, begin)], parts


def _piece(document: Example, start: int, end: int) -> Example:
    [segment] = document.segments
    line = (document.origin.line or 1) + segment.text.count("\n", 0, start)
    piece = replace(segment, text=segment.text[start:end])
    return replace(document, segments=(piece,), origin=replace(document.origin, line=line))


def prompt_key(example: Example) -> str:
    """Return what makes two examples one item: their context, spaces and case folded."""
    asked = [segment.text for segment in example.segments if segment.role != "assistant"]
    return _squeezed(" ".join(asked)).casefold()


def _rank(key: str, seed: int) -> int:
    return int(hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()[:16], 16)


def _squeezed(text: str) -> str:
    return " ".join(text.split())
