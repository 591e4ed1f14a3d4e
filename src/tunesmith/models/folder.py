"""What a foreign model folder may not do to the one who loads it, checked before it is loaded.

Links, sizes, names of files, keys that would run code, and what a configuration claims against what
the weights hold (``claims``); at last what it brings to be run (``trial``).
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.claims import Weights, check_config, read_weights
from tunesmith.models.trial import try_out
from tunesmith.storage import hash_file

MIB = 1 << 20
MOST_FILES = 10_000
LIMITS = {
    "config.json": 4 * MIB,
    "generation_config.json": 4 * MIB,
    "adapter_config.json": 4 * MIB,
    "special_tokens_map.json": 16 * MIB,
    "added_tokens.json": 16 * MIB,
    "tokenizer_config.json": 16 * MIB,
    "chat_template.jinja": MIB,
    "chat_template.json": MIB,
    "model.safetensors.index.json": 64 * MIB,
    "pytorch_model.bin.index.json": 64 * MIB,
    "tokenizer.json": 128 * MIB,
    "tokenizer.model": 128 * MIB,
    "vocab.json": 128 * MIB,
    "merges.txt": 128 * MIB,
}
"""Bytes of the files that are read whole."""
A_WORD = 1024
"""Bytes of a tokenizer for each word of its model; the largest known ones have 140."""
MOST_TOKENS = 20_000
"""Tokens that a tokenizer's configuration may add to those of its vocabulary."""
CODE = {
    "megatron_config": "imports a module by its name",
    "layer_replication": "makes more layers than the model has",
}
"""Keys of an adapter's configuration that are never followed."""


def check_folder(folder: Path) -> None:
    """Refuse a folder of a model, an adapter or a tokenizer that is not what it seems.

    Raises ``ModelError`` with the file and the reason. Weights are looked at by their headers.
    """
    _check_files(folder)
    _check_indexes(folder)
    config = read_json(folder / "config.json")
    adapter = read_json(folder / "adapter_config.json")
    words = read_json(folder / "tokenizer_config.json")
    generation = read_json(folder / "generation_config.json")
    for name, found in (
        ("config.json", config),
        ("adapter_config.json", adapter),
        ("generation_config.json", generation),
    ):
        _check_finite(found, folder / name)
    _check_stops(generation, folder / "generation_config.json")
    _check_words(words, folder / "tokenizer_config.json")
    weights = read_weights(folder)
    if config:
        check_config(config, weights, folder / "config.json")
    if adapter:
        _check_adapter(adapter, weights, folder)
    tokenizer = folder / "tokenizer.json"
    there = tokenizer.is_file()
    size = tokenizer.stat().st_size if there else 0
    held = config.get("vocab_size")
    most = 4 * MIB + A_WORD * held if isinstance(held, int) else size
    if size > most:
        raise ModelError(
            f"{tokenizer} has {size:,} bytes for {held:,} words.",
            expected=f"at most {most:,} bytes",
        )
    try_out(
        str(folder),
        templates=[*dict.fromkeys(_templates(folder, words))],
        patterns=_patterns(adapter),
        tokenizer=str(tokenizer.resolve()) if there else None,
        digest=hash_file(tokenizer) if there else "",
        size=size,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file of a model folder holds; an empty one where there is none."""
    if not path.exists():
        return {}
    try:
        size, most = path.stat().st_size, LIMITS.get(path.name, 64 * MIB)
        if size > most or not path.is_file():
            raise ModelError(f"{path} has {size:,} bytes.", expected=f"at most {most:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ModelError(f"{path} cannot be read: it is nested too deeply.") from None
    except (OSError, ValueError) as failure:
        raise ModelError(f"{path} cannot be read: {failure}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object.")
    return found


def _check_files(folder: Path) -> None:
    """Refuse links that lead out, what is no file, and files that are too large to be read.

    What an export holds is given to others: a link would hand out any file of this machine. The
    hub's cache keeps the files of a model as links into its own folder.
    """
    inside = folder.resolve()
    if inside.parent.name == "snapshots":
        inside = inside.parent.parent
    for number, path in enumerate(_entries(folder)):
        if number >= MOST_FILES:
            raise ModelError(f"{folder} holds over {MOST_FILES:,} files; a model has a few.")
        try:
            real = path.resolve(strict=True)
            kind = real.stat()
        except (OSError, RuntimeError):
            raise ModelError(f"{path} is a link that leads nowhere.") from None
        if not real.is_relative_to(inside):
            raise ModelError(
                f"{path} leads out of its folder.",
                expected="files of the model itself",
                hint="copy the file that it leads to into the folder",
            )
        known = path.name in LIMITS or path.name.endswith((".safetensors", ".jinja"))
        if known and not stat.S_ISREG(kind.st_mode):
            raise ModelError(f"{path} is no file.", expected="a file of a model")
        most = LIMITS.get(path.name, MIB if path.name.endswith(".jinja") else None)
        if most is not None and kind.st_size > most:
            raise ModelError(
                f"{path} has {kind.st_size:,} bytes.", expected=f"at most {most:,} bytes"
            )


def _entries(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield path
        if path.name == "additional_chat_templates" and path.is_dir() and not path.is_symlink():
            yield from path.iterdir()


def _check_indexes(folder: Path) -> None:
    for index in sorted(folder.glob("*.index.json")):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelError(f"{index} has no weight_map.", expected="a file for each weight")
        for name in sorted({str(name) for name in shards.values()}):
            if Path(name).name != name or "\\" in name or "\0" in name:
                raise ModelError(f"{index.name} names {name!r}, which lies outside of its folder.")
            if index.name.startswith("model.safetensors") and not (folder / name).is_file():
                raise ModelError(
                    f"{index.name} names {name}, which is not there.",
                    hint=f"download {name} into {folder}",
                )


def _check_finite(found: Any, path: Path) -> None:
    waiting: list[Any] = [found]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise ModelError(f"{path} holds a number that is not finite.")
        if isinstance(one, int) and abs(one) > 10**15:
            raise ModelError(f"{path} holds a number of {len(str(one))} digits.")
        if isinstance(one, dict | list):
            waiting += one.values() if isinstance(one, dict) else one


def _check_stops(generation: dict[str, Any], path: Path) -> None:
    ends = generation.get("eos_token_id")
    several = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in several):
        raise ModelError(f"{path}: eos_token_id is {str(ends)[:60]!r}.", expected="numbers")


def _check_words(words: dict[str, Any], path: Path) -> None:
    for key, value in words.items():
        if key.endswith("_file") and isinstance(value, str) and Path(value).name != value:
            raise ModelError(f"{path}: {key} is {value!r}, which lies outside of its folder.")
    added = words.get("added_tokens_decoder") or {}
    if len(added) > MOST_TOKENS:
        raise ModelError(f"{path} adds {len(added):,} tokens.", expected=f"at most {MOST_TOKENS:,}")


def _check_adapter(adapter: dict[str, Any], weights: Weights, folder: Path) -> None:
    path = folder / "adapter_config.json"
    pickled = folder / "adapter_model.bin"
    if not (folder / "adapter_model.safetensors").is_file():
        only = f", only {pickled.name}, a pickle" if pickled.exists() else ""
        raise ModelError(
            f"{folder} holds no adapter_model.safetensors{only}.",
            expected="an adapter in safetensors",
            hint="save it again with save_pretrained, which writes safetensors",
        )
    for key, does in CODE.items():
        if adapter.get(key) is not None:
            raise ModelError(f"{path}: {key} {does}, which is never done.")
    library = (adapter.get("auto_mapping") or {}).get("parent_library")
    if library is not None and str(library).split(".")[0] != "transformers":
        raise ModelError(f"{path} wants to import {str(library)!r}, which is never done.")
    ranks = adapter.get("rank_pattern") or {}
    for rank in (adapter.get("r", 1), *(ranks.values() if isinstance(ranks, dict) else ())):
        if not isinstance(rank, int) or not 0 < rank <= weights.widest:
            raise ModelError(
                f"{path} claims a rank of {rank!s:.20}.",
                expected=f"at most {weights.widest:,}, the largest side of its weights",
            )


def _patterns(adapter: dict[str, Any]) -> list[str]:
    """Return what PEFT takes for regular expressions."""
    found = [adapter.get("target_modules"), adapter.get("exclude_modules")]
    layers = adapter.get("layers_pattern")
    found += layers if isinstance(layers, list) else [layers]
    for key in ("rank_pattern", "alpha_pattern"):
        named = adapter.get(key)
        found += named if isinstance(named, dict) else []
    return [one for one in found if isinstance(one, str)]


def _templates(folder: Path, words: dict[str, Any]) -> Iterator[str]:
    for path in (folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")):
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")
    found = [
        words.get("chat_template"),
        read_json(folder / "chat_template.json").get("chat_template"),
    ]
    for given in found:
        for one in given if isinstance(given, list) else [given]:
            text = one.get("template") if isinstance(one, dict) else one
            if isinstance(text, str):
                yield text
