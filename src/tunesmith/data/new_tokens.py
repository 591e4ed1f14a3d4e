"""New tokens for a domain: the merges of a BPE tokenizer, gone on with on the training texts.

A merge behind all those that a tokenizer has leaves its segmentation as it was and then joins two
neighbours. So each new token saves as many tokens as its pair has places, and picking the most
frequent pair again and again is picking by tokens saved. Pairs lie inside one word as the
tokenizer's own pre-tokeniser cuts it; where it cuts none, a word ends before a space. What the chat
template writes itself is never joined.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.data.render import Renderer
from tunesmith.data.templates import Chat, Template
from tunesmith.data.word_tokens import byte_spelling
from tunesmith.errors import ContractError, UsageError
from tunesmith.types import Segment

RARE = 5
"""A pair seen less often is not worth a row of the embeddings: it could not be learnt."""
TOGETHER = 256
"""Texts that are tokenised in one go."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MARK = "zyx"
"""Stands for the content of a turn while the template's own text is looked for."""

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens that a tokenizer is given, in the order of their ids."""

    first: int
    """Id of the first; the others follow."""
    merges: tuple[tuple[str, str], ...]
    """The two tokens, old or new, that each one joins."""
    pieces: tuple[tuple[int, ...], ...]
    """The old tokens that each one replaces."""
    places: int
    """Places in the training texts where two tokens became one."""

    def __len__(self) -> int:
        return len(self.merges)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON knows it."""
        return {
            "first": self.first,
            "merges": [list(pair) for pair in self.merges],
            "pieces": [list(ids) for ids in self.pieces],
            "places": self.places,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> NewTokens:
        """Return what ``to_json`` has written."""
        return cls(
            int(content["first"]),
            tuple((str(a), str(b)) for a, b in content["merges"]),
            tuple(tuple(map(int, ids)) for ids in content["pieces"]),
            int(content["places"]),
        )


def mine(renderer: Renderer, tokenizer: Any, texts: Iterable[str], count: int) -> NewTokens:
    """Find the ``count`` merges that save most tokens of these texts, fewer if the rest is rare.

    Equal pairs go by their ids, so the result follows from texts and tokenizer alone. Raises
    ``UsageError`` for a tokenizer that is not BPE.
    """
    check_kind(tokenizer)
    known = tokenizer.get_vocab()
    names = {number: token for token, number in known.items()}
    apart = _apart(tokenizer, names)
    words: Counter[tuple[int, ...]] = Counter()
    for batch in _batches(texts):
        words.update(_words(tokenizer, batch, names, apart))
    fixed = _words(tokenizer, template_texts(renderer, tokenizer), names, apart)
    banned = {pair for word in fixed for pair in pairwise(word)}
    first = max(names) + 1
    counts = _Pairs(words)
    merges: list[tuple[str, str]] = []
    pieces: dict[int, tuple[int, ...]] = {}
    places = 0
    while len(merges) < count and (found := counts.pop()) is not None:
        pair, number = found
        joined = names[pair[0]] + names[pair[1]]
        if pair in banned or joined in known:
            continue
        fresh = first + len(merges)
        merges.append((names[pair[0]], names[pair[1]]))
        pieces[fresh] = tuple(i for half in pair for i in pieces.get(half, (half,)))
        names[fresh] = joined
        known[joined] = fresh
        places += number
        counts.join(pair, fresh)
    return NewTokens(first, tuple(merges), tuple(pieces.values()), places)


class _Pairs:
    """Counts of neighbouring tokens over words, kept as pairs are joined."""

    def __init__(self, words: Counter[tuple[int, ...]]) -> None:
        self._words = [list(word) for word in words]
        self._times = list(words.values())
        self._counts: Counter[Pair] = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number in range(len(self._words)):
            self._add(number, 1)
        self._heap = [(-times, pair) for pair, times in self._counts.items()]
        heapq.heapify(self._heap)

    def pop(self) -> tuple[Pair, int] | None:
        """Return the most frequent pair that was not returned before; None if all are rare."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            now = self._counts[pair]
            if -negative != now:
                if now >= RARE:
                    heapq.heappush(self._heap, (-now, pair))
                continue
            return (pair, now) if now >= RARE else None
        return None

    def join(self, pair: Pair, fresh: int) -> None:
        """Put one token in the place of a pair, everywhere."""
        changed: set[Pair] = set()
        for number in sorted(self._where[pair]):
            changed |= self._add(number, -1)
            self._words[number] = _joined(self._words[number], pair, fresh)
            changed |= self._add(number, 1)
        for other in changed:
            # What has become less frequent is found out when it is taken from the heap.
            if fresh in other and self._counts[other] >= RARE:
                heapq.heappush(self._heap, (-self._counts[other], other))

    def _add(self, number: int, sign: int) -> set[Pair]:
        """Count a word's pairs, or take them away; return them."""
        found = _places(self._words[number])
        for pair, times in found.items():
            self._counts[pair] += sign * times * self._times[number]
            if sign > 0:
                self._where[pair].add(number)
            else:
                self._where[pair].discard(number)
        return set(found)


def _places(word: Sequence[int]) -> Counter[Pair]:
    """Count the places where each pair could be joined: three equal tokens have one, not two."""
    found: Counter[Pair] = Counter()
    last: dict[Pair, int] = {}
    for at, pair in enumerate(pairwise(word)):
        if pair[0] == pair[1] and last.get(pair) == at - 1:
            continue
        last[pair] = at
        found[pair] += 1
    return found


def _joined(word: Sequence[int], pair: Pair, fresh: int) -> list[int]:
    out: list[int] = []
    at = 0
    while at < len(word):
        if tuple(word[at : at + 2]) == pair:
            out.append(fresh)
            at += 2
        else:
            out.append(word[at])
            at += 1
    return out


def check_kind(tokenizer: Any) -> None:
    """Raise ``UsageError`` for a tokenizer whose merges cannot be gone on with."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model: Any = getattr(backend, "model", None)
    kind = type(model).__name__
    if kind != "BPE" or model.continuing_subword_prefix or model.end_of_word_suffix:
        found = kind if kind != "BPE" else "BPE with marks inside words"
        raise UsageError(
            f"--new-tokens goes on with the merges of a BPE tokenizer; this one is {found}.",
            expected="a model with byte-level or SentencePiece BPE, as most have",
            hint="leave --new-tokens out",
        )


def _apart(tokenizer: Any, names: dict[int, str]) -> frozenset[int]:
    """Return the tokens that are never joined: added ones, unknown, and single bytes as text."""
    added = set(tokenizer.added_tokens_decoder)
    odd = {number for number, token in names.items() if _BYTE.fullmatch(token)}
    unknown = {tokenizer.unk_token_id} if tokenizer.unk_token_id is not None else set()
    return frozenset(added | odd | unknown)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch


def _words(
    tokenizer: Any, texts: Sequence[str], names: dict[int, str], apart: frozenset[int]
) -> Counter[tuple[int, ...]]:
    """Count the words of texts, each as its tokens; words of one token have nothing to join."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    found: Counter[tuple[int, ...]] = Counter()
    for encoded in backend.encode_batch(list(texts), add_special_tokens=False):
        word: list[int] = []
        before: Any = None
        for number, place in zip(encoded.ids, encoded.word_ids, strict=True):
            # Only tokenizers that cut no words have a space or a line break in the middle.
            new = place != before or names[number].startswith(("▁", "\n"))
            if new or number in apart or (word and names[word[-1]].endswith("\n")):
                if len(word) > 1:
                    found[tuple(word)] += 1
                word = []
            before = place
            if number not in apart:
                word.append(number)
        if len(word) > 1:
            found[tuple(word)] += 1
    return found


def template_texts(renderer: Renderer, tokenizer: Any) -> list[str]:
    """Return what the chat template itself writes around contents."""
    template = Template(tokenizer, renderer.template)
    found: dict[str, None] = {}
    for first in (("system", "user"), ("user",)):
        roles = (*first, "assistant", "user", "assistant", "user")
        chat = Chat(template, tuple(Segment(role, _MARK) for role in roles))
        for end in range(len(first), len(roles) + 1):
            for prompt in (False, True):
                try:
                    text = chat.text(tuple(range(end)), prompt=prompt)
                except ContractError:
                    continue  # a template that takes no system turn, or no such order
                found.update(dict.fromkeys(part for part in text.split(_MARK) if part))
    return list(found)


def extended(tokenizer: Any, new: NewTokens) -> Any:
    """Return a copy of a tokenizer with the new tokens, as it will be loaded from a folder.

    Raises ``ContractError`` if any token that it had before has changed.
    """
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content["model"]
        # Added tokens count on from the size of the vocabulary, unless they are part of it.
        for token in content["added_tokens"]:
            model["vocab"].setdefault(token["content"], token["id"])
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = merges + [list(pair) for pair in new.merges]
        model["vocab"] |= {a + b: new.first + at for at, (a, b) in enumerate(new.merges)}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        longer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    longer.name_or_path = tokenizer.name_or_path
    _check_the_old(tokenizer, longer, new)
    return longer


def _check_the_old(tokenizer: Any, longer: Any, new: NewTokens) -> None:
    before, after = tokenizer.get_vocab(), longer.get_vocab()
    fresh = {a + b: new.first + at for at, (a, b) in enumerate(new.merges)}
    taken = max(before.values()) >= new.first or any(token in before for token in fresh)
    if before | fresh != after or taken:
        raise ContractError(
            f"The longer tokenizer has other tokens than it should: {len(after)}, not the "
            f"{len(before)} of the base and {len(fresh)} new ones behind them."
        )
    if tokenizer.special_tokens_map != longer.special_tokens_map or [
        (n, str(t)) for n, t in sorted(tokenizer.added_tokens_decoder.items())
    ] != [(n, str(t)) for n, t in sorted(longer.added_tokens_decoder.items())]:
        raise ContractError("The longer tokenizer has other special tokens than before.")


def check_template(old: Renderer, new: Renderer, before: Any, after: Any) -> None:
    """Raise ``ContractError`` if the template's own text has other tokens than before."""
    if (old.template, old.stop_ids, old.bos_id) != (new.template, new.stop_ids, new.bos_id):
        raise ContractError("The longer tokenizer ends or begins a turn with another token.")
    for text in template_texts(old, before):
        if (
            before(text, add_special_tokens=False)["input_ids"]
            != (after(text, add_special_tokens=False)["input_ids"])
        ):
            raise ContractError(f"The new tokens change the template's own text {text[:60]!r}.")


def token_bytes(tokenizer: Any) -> Callable[[int], bytes]:
    """Return a function that spells a token in bytes; special tokens spell nothing."""
    spelling = byte_spelling(tokenizer)
    if spelling is not None:
        return spelling.__getitem__
    special = set(tokenizer.all_special_ids)

    def spelled(number: int) -> bytes:
        token = str(tokenizer.convert_ids_to_tokens(number))
        byte = _BYTE.fullmatch(token)
        if number in special:
            return b""
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()

    return spelled


def tokens_and_bytes(tokenizer: Any, texts: Sequence[str]) -> tuple[int, int]:
    """Return how many tokens texts have, and how many bytes."""
    tokens = 0
    for batch in _batches(texts):
        tokens += sum(map(len, tokenizer(batch, add_special_tokens=False)["input_ids"]))
    return tokens, sum(len(text.encode()) for text in texts)
