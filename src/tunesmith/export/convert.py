"""A base model that exists only as a pickle, made into safetensors by a confined process.

The result is trusted no more than any foreign folder: its headers, names, shapes and numbers are
checked here, and it is loaded by the one way in before it is put in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tunesmith.errors import ModelError, UsageError
from tunesmith.grading.sandbox.run import Mode, users
from tunesmith.models.claims import read_weights
from tunesmith.models.folder import check_folder, read_json
from tunesmith.models.load import load
from tunesmith.storage import hash_file, write_json

INDEX = "pytorch_model.bin.index.json"
RECORD = "conversion.json"
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""Beginnings of the names of pickles that a trainer leaves beside a model."""
BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "README.md", "LICENSE", "LICENSE.txt", "NOTICE",
)  # fmt: skip
PACE = 20 << 20
"""Bytes a second that a slow machine converts."""
_BOOT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tunesmith.export import unpickle
unpickle.main(json.loads(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion has made."""

    record: dict[str, Any]
    """The files, where each comes from, and their hashes."""
    shared: dict[str, str]
    """Names whose weights are those of another one, and not written again."""
    unused: tuple[str, ...]
    """Weights that the architecture has no place for."""


def pickles_of(folder: Path) -> list[Path]:
    """Return the pickles that a folder's weights lie in; ``UsageError`` where that is not clear."""
    if list(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder} holds its weights as safetensors already.", hint=f"--model {folder}"
        )
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX)["weight_map"]
        found = [folder / name for name in sorted({str(name) for name in named.values()})]
        if missing := [path.name for path in found if not path.is_file()]:
            raise ModelError(f"{folder / INDEX} names {missing[0]}, which is not there.")
        return found
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    found = [path for kind in ("bin", "pt", "pth") for path in sorted(folder.glob(f"*.{kind}"))]
    found = [path for path in found if not path.name.startswith(NO_WEIGHTS)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UsageError(
            f"{folder} holds no pytorch_model.bin; other pickles: {names}.",
            expected="pytorch_model.bin, pytorch_model.bin.index.json with its parts, or one file",
        )
    return found


def convert_folder(source: Path, target: Path, mode: Mode) -> Converted:
    """Fill the empty folder ``target`` from the pickles of ``source``; ``mode`` confines.

    Raises ``ModelError`` for whatever is refused, with the name of its file.
    """
    check_folder(source)
    pickles = pickles_of(source)
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for copies in (False, True):
        files, shared = _convert_all(pickles, target, mode, copies=copies)
        _check_numbers(target)
        try:
            # The shortest type that holds them, since the numbers are looked at elsewhere.
            unused = load(str(target), device="cpu").unused
            break
        except ModelError:
            # What some architectures tie, others want twice.
            if copies or not shared:
                raise
    record = {"kind": "tunesmith.conversion", "files": files, "shared": shared}
    write_json(target / RECORD, record)
    return Converted(record, shared if not copies else {}, unused)


def _convert_all(
    pickles: list[Path], target: Path, mode: Mode, *, copies: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Convert each pickle, write the index of several, and return their record and shared names."""
    for old in target.glob("*.safetensors"):
        old.unlink()
    files: list[dict[str, Any]] = []
    shared: dict[str, str] = {}
    places: dict[str, str] = {}
    index = read_json(pickles[0].parent / INDEX).get("weight_map", {})
    for number, path in enumerate(pickles, 1):
        several = f"model-{number:05}-of-{len(pickles):05}.safetensors"
        name = several if len(pickles) > 1 else "model.safetensors"
        said = convert_file(path, target / name, mode, copies=copies)
        for one in (*said["names"], *said["shared"]):
            if index and index.get(one) != path.name:
                raise ModelError(f"{path} holds {one[:80]!r}, of which its index does not say so.")
        places |= dict.fromkeys(said["names"], name)
        shared |= said["shared"]
        files.append({
            "path": name, "sha256": hash_file(target / name),
            "from": path.name, "sha256 of the pickle": hash_file(path),
        })  # fmt: skip
    if lost := [one for one in index if one not in places and one not in shared]:
        raise ModelError(f"The parts of {pickles[0].parent} lack {lost[0][:80]!r} of their index.")
    if len(pickles) > 1:
        total = sum((target / file["path"]).stat().st_size for file in files)
        content = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(target / "model.safetensors.index.json", content)
    return files, shared


def convert_file(source: Path, target: Path, mode: Mode, *, copies: bool) -> dict[str, Any]:
    """Convert one pickle in a confined process; return its names and those that share weights."""
    size = source.stat().st_size
    seconds = 60 + size // PACE
    reads, writes = os.pipe()
    with source.open("rb") as opened, target.open("xb") as made, contextlib.ExitStack() as stack:
        stack.callback(os.close, reads)
        own = users()
        orders = {
            "source": opened.fileno(), "target": made.fileno(), "answer": writes, "mode": mode,
            "uid": own[1] if own else None, "seconds": seconds, "copies": copies,
        }  # fmt: skip
        root = str(Path(__file__).parent.parent.parent)
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, root, json.dumps(orders)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=one,
            pass_fds=(opened.fileno(), made.fileno(), writes),
            start_new_session=True,
        )
        os.close(writes)
        try:
            _, errors = process.communicate(timeout=2 * seconds)
        except subprocess.TimeoutExpired:
            raise ModelError(f"{source} was refused: it takes over {2 * seconds} s.") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with open(reads, "rb", closefd=False) as answer:
            said = answer.read(64 << 20)
    return _answer(said, source, process.returncode, errors)


def _answer(said: bytes, source: Path, code: int, errors: bytes) -> dict[str, Any]:
    """Return what the process answered; a fault, or none at all, is a refusal."""
    try:
        found = json.loads(said)
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines()
        why = f"the process that reads it ended with {code}" + (f": {lines[-1]}" if lines else "")
        if code in (128 + signal.SIGXCPU, 128 + signal.SIGKILL):
            why = "it takes too long"
        raise ModelError(f"{source} was refused: {why[:300]}.") from None
    if "fault" in found:
        raise ModelError(
            f"{source} was refused: {str(found['fault'])[:300]}.",
            expected="a state_dict: names and tensors, nothing else",
        )
    return {"shared": dict(found["shared"]), "names": list(found["names"])}


def _check_numbers(folder: Path) -> None:
    """Refuse weights that are no numbers; headers first."""
    read_weights(folder)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                value = tensors.get_tensor(name)
                if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
                    raise ModelError(f"{name} of the pickle holds numbers that are not finite.")


def described(shared: Mapping[str, str]) -> str:
    """Say which weights are written once for several names."""
    pairs = [f"{name} is {first}" for name, first in list(shared.items())[:3]]
    return "; ".join(pairs)
