"""A tokenizer as GGUF knows it: pieces, their kinds, merges, and how text is cut before them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: dict[tuple[Any, ...], str] = {
    (("bytes", True),): "gpt-2",
    (("digits", True), ("bytes", True)): "smollm",
    (("split", _LETTERS + r"|\p{N}{1,3}" + _REST), ("bytes", False)): "llama-bpe",
    (("split", _LETTERS + r"|\p{N}" + _REST), ("bytes", False)): "qwen2",
}
"""How a byte-level tokenizer cuts text before it merges, and llama.cpp's name for it."""
SPACE = "▁"


@dataclass(frozen=True, slots=True)
class Words:
    """What the header of a GGUF file says of a tokenizer."""

    model: str
    """gpt2 for byte-level BPE, llama for pieces with ▁ for a space."""
    pre: str
    pieces: list[str]
    kinds: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_first: bool = False
    """Whether a space is put in front of a text."""


def words_of(tokenizer: Any, rows: int) -> Words:
    """Read a fast tokenizer; ``rows`` are those of the embeddings, unused ones are filled up.

    Raises ``ModelError`` that names what llama.cpp has no word for.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("GGUF needs a fast tokenizer (tokenizer.json).")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise ModelError(
            f"A tokenizer of type {model.get('type')} is not written as GGUF.", expected="BPE"
        )
    vocabulary = {**model["vocab"], **{t["content"]: t["id"] for t in content["added_tokens"]}}
    if len(vocabulary) > rows or max(vocabulary.values()) >= rows:
        raise ModelError(f"The tokenizer has {len(vocabulary)} tokens, the model {rows} rows.")
    pieces = [f"[PAD{number}]" for number in range(rows)]
    kinds = [UNUSED] * rows
    for piece, number in vocabulary.items():
        pieces[number], kinds[number] = piece, NORMAL
    for token in content["added_tokens"]:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    if model.get("byte_fallback"):
        return _sentence_pieces(content, pieces, kinds, pairs)
    cut = _cut(content)
    # Byte-level pieces have no plain spaces, so that a space can part the two of a merge.
    return Words("gpt2", cut, pieces, kinds, [f"{one} {other}" for one, other in pairs])


def _cut(content: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a byte-level tokenizer cuts text."""
    normalizer = content.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise ModelError(f"GGUF has no normalizer {normalizer.get('type')}.")
    steps = []
    added = {token["content"] for token in content["added_tokens"]}
    for step in _steps(content.get("pre_tokenizer")):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            steps.append(("bytes", bool(step.get("use_regex", True))))
        elif kind == "Digits":
            steps.append(("digits", bool(step.get("individual_digits"))))
        elif kind == "Split" and not step.get("invert"):
            pattern = step["pattern"].get("Regex", "")
            # «</?word>» splits off what added tokens of that name have taken before.
            name = pattern.removeprefix("</?").removesuffix(">")
            if pattern == f"</?{name}>" and {f"<{name}>", f"</{name}>"} <= added:
                continue
            steps.append(("split", pattern))
        else:
            steps.append((str(kind), True))
    found = CUTS.get(tuple(steps))
    whole = bool(content["model"].get("ignore_merges"))
    if found is None or whole != (found == "llama-bpe"):
        said = ", ".join(f"{kind} {value}" for kind, value in steps) or "nothing"
        raise ModelError(
            f"llama.cpp has no name for how this tokenizer cuts text ({said}), and any other way "
            "would give other tokens.",
            expected=f"a tokenizer that cuts as {', '.join(CUTS.values())}",
        )
    return found


def _steps(pre: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre is None:
        return []
    return list(pre["pretokenizers"]) if pre.get("type") == "Sequence" else [pre]


def _sentence_pieces(
    content: dict[str, Any], pieces: list[str], kinds: list[int], pairs: list[tuple[str, ...]]
) -> Words:
    """Return pieces with ▁ for a space; a piece's score is the place of its first merge."""
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    prefix = [s for s in steps if s.get("type") == "Prepend" and s.get("prepend") == SPACE]
    spaces = [s for s in steps if s.get("type") == "Replace" and s.get("content") == SPACE]
    cuts = _steps(content.get("pre_tokenizer"))
    meta = [s for s in cuts if s.get("type") == "Metaspace" and not s.get("split", True)]
    if len(prefix) + len(spaces) != len(steps) or meta != cuts or not (spaces or meta):
        raise ModelError(
            "llama.cpp has no name for how this tokenizer makes pieces of spaces.",
            expected="▁ for each space, with or without one in front",
        )
    first = bool(prefix) or any(s.get("prepend_scheme", "always") != "never" for s in meta)
    number = {piece: at for at, piece in enumerate(pieces)}
    scores = [0.0] * len(pieces)
    for rank, pair in reversed(list(enumerate(pairs))):
        scores[number["".join(pair)]] = -float(rank)
    unknown = content["model"].get("unk_token")
    for at, piece in enumerate(pieces):
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            kinds[at] = BYTE
        elif piece == unknown:
            kinds[at] = UNKNOWN
    return Words("llama", "default", pieces, kinds, scores=scores, space_first=first)
