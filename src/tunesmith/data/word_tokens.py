"""Many texts to tokens at once: words that came before are looked up instead of computed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

REMEMBERED = 200_000
"""Words kept; with more, all are forgotten and learnt anew."""
LONGEST = 64
"""Characters of a word worth keeping."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUT = re.compile(r"(?<=[^\s\u180e])(?= [^\s\u180e])|(?<=[^\s\u180e]\n)(?=[^\s\u180e])")
"""Before a lone space, behind a lone line break; U+180E was white space in older Unicode."""
_ODD = ("  ", "\n ", " \n", "\n\n\n", "\0", "\1", *"\t\r\v\f\x1c\x1d\x1e\x1f")
"""Without these, every space of an ASCII text is a lone one, and line breaks come by one or two."""
_STEM = re.compile(r"( ?[A-Za-z]+)([!\"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~]+\n?|\n)")
"""A word with punctuation behind it, which every one of ``PATTERNS`` cuts off: no apostrophe."""
PATTERNS = {
    GPT2,
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
}
"""Ways to cut a text (GPT-2, Qwen 2, Llama 3) that always cut before a space and behind a line
break that stand alone between two characters, and look at nothing on their left: so words with
their space, and lines, stand by themselves."""


class TextTokens:
    """Tokenises texts for one tokenizer; the ids are the ones of a call for each text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.by_word = cuts_at_spaces(tokenizer)
        """Whether words are looked up; otherwise each text is computed whole."""
        self._known: dict[str, list[int]] = {}
        self._stems: dict[str, list[int]] = {}
        """Words without punctuation, and punctuation: fewer by far, and asked for less often."""
        if self.by_word:
            added = tokenizer.added_tokens_decoder.values()
            self._whole = re.compile("|".join(re.escape(t.content) for t in added) or "(?!)")

    def all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of every text, no special tokens added."""
        if not self.by_word:
            return self._called(texts)
        parts = [_words(text) for text in texts]
        known = self._known
        if len(known) > REMEMBERED:
            known.clear()
        fresh = list(set(chain.from_iterable(parts)).difference(known))
        known.update(zip(fresh, self._learnt(fresh), strict=True))
        look_up = known.__getitem__
        found = [list(chain.from_iterable(map(look_up, words))) for words in parts]
        for word in fresh:
            if len(word) > LONGEST:
                del known[word]
        return found

    def _learnt(self, words: list[str]) -> list[list[int]]:
        """Return the ids of words met for the first time, by their stems where they have one."""
        stems = self._stems
        if len(stems) > REMEMBERED:
            stems.clear()
        parts = []
        for word in words:
            cut = None if self._whole.search(word) else _STEM.fullmatch(word)
            parts.append(cut.groups() if cut else (word,))
        fresh = list(set(chain.from_iterable(parts)).difference(stems))
        made = dict(zip(fresh, self._computed(fresh), strict=True))
        stems.update((word, ids) for word, ids in made.items() if len(word) <= LONGEST)
        return [[i for p in pair for i in (stems[p] if p in stems else made[p])] for pair in parts]

    def _computed(self, texts: Sequence[str]) -> list[list[int]]:
        """Do what a call does, without what a call spends on each text."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self._tokenizer.split_special_tokens
        return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _called(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        called = self._tokenizer(list(texts), add_special_tokens=False)
        return [list(ids) for ids in called["input_ids"]]


def _words(text: str) -> list[str]:
    """Cut a text before its lone spaces and behind its lone line breaks."""
    if text.isascii() and text[-1:] != " " and not any(odd in text for odd in _ODD):
        if "\n\n" not in text:
            return text.replace(" ", "\0 ").replace("\n", "\n\0").split("\0")
        marked = text.replace("\n\n", "\1").replace(" ", "\0 ").replace("\n", "\n\0")
        return marked.replace("\1", "\n\n").split("\0")
    return _CUT.split(text)


def cuts_at_spaces(tokenizer: Any) -> bool:
    """Say whether a tokenizer provably treats each word behind a lone space by itself.

    Known by its parts: byte-level BPE, cut by one of ``PATTERNS``, no normaliser but NFC (which
    never composes anything with a space), and no added token that holds or swallows white space.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return False
    if backend.model.continuing_subword_prefix or backend.model.end_of_word_suffix:
        return False
    if backend.normalizer is not None and _state(backend.normalizer) != {"type": "NFC"}:
        return False
    for token in tokenizer.added_tokens_decoder.values():
        if token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content):
            return False
    return backend.pre_tokenizer is not None and _cutter(_state(backend.pre_tokenizer))


def _cutter(state: dict[str, Any]) -> bool:
    parts = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    *before, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    cut = last.get("use_regex", True)
    for part in before:
        if part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            if part["pattern"].get("Regex") not in PATTERNS:
                return False
            cut = True
        elif part["type"] != "Digits":
            return False
    return bool(cut)


def _state(component: Any) -> dict[str, Any]:
    """Return a component's settings, as they stand in tokenizer.json."""
    state: dict[str, Any] = json.loads(component.__getstate__())
    return state


class Spelling(dict[int, bytes]):
    """The bytes of each token of a byte-level vocabulary, learnt when first asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        super().__init__(
            (number, b"" if token.special else token.content.encode())
            for number, token in tokenizer.added_tokens_decoder.items()
        )

    def __missing__(self, number: int) -> bytes:
        token = self._tokenizer.convert_ids_to_tokens(number)
        # A token with another character is spelled as it stands, as the decoder does.
        known = token is not None and all(c in _BYTES for c in token)
        spelled = bytes(_BYTES[c] for c in token) if known else (token or "").encode()
        self[number] = spelled
        return spelled

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return b"".join(map(self.__getitem__, ids)).decode(errors="replace")


def byte_spelling(tokenizer: Any) -> Spelling | None:
    """Return the spelling of a tokenizer whose decoder joins bytes and does nothing else."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    if _state(backend.decoder)["type"] != "ByteLevel":
        return None
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    return Spelling(tokenizer)


def _byte_letters() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_letters()
