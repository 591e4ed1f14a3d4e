"""Where an exported model comes from: its files, its run, and prompts to compare it on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TunesmithError
from tunesmith.rundir import RunDir
from tunesmith.storage import hash_tree
from tunesmith.types import Segment

if TYPE_CHECKING:
    from tunesmith.models.load import ModelRef

PROMPTS = 8
"""Prompts that an export is compared on."""
TYPES = ("float32", "bfloat16", "float16")
BUILT_IN: tuple[tuple[Segment, ...], ...] = (
    (Segment("user", "How many metres are 12 kilometres?"),),
    (Segment("user", "Write a sentence about a cat, a mat and Zoë's 3.5 apples."),),
    (Segment("user", "What is 17 + 25? Think step by step."),),
    (Segment(None, "Once upon a time"),),
    (Segment(None, "The quick brown fox"),),
    (Segment(None, "def add(a, b):\n    return"),),
)
"""Asked where a run has left no held-out prompts."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is to be exported."""

    ref: ModelRef
    run: RunDir | None
    """The run that made it, if it lies in one."""
    bits: str | None
    """What its base was quantised to while it was trained: 4bit, 8bit, or None."""
    dtype: str
    """Type of the base's weights as they were saved."""
    hashes: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest says of it; names instead of paths of this machine."""
        return {
            "model": self.ref.name if self.ref.name == "tunesmith/tiny" else self._short(),
            "run": self.run.path.name if self.run else None,
            "quantised for training": self.bits,
            "hashes": self.hashes,
        }

    def base_name(self) -> str:
        """Return the name that a card gives the model's base."""
        from tunesmith.models.load import ModelRef

        return ModelRef(self.ref.path, None, "").name

    def _short(self) -> str:
        path = Path(self.ref.adapter or self.ref.path)
        return f"{path.parent.name}/{path.name}" if path.exists() else str(path)


def find_source(name: str) -> Source:
    """Find a model and the run that made it; nothing is loaded.

    Raises ``ModelError`` for a folder that is not what it seems, before any of it is hashed.
    """
    from tunesmith.models.load import check_folders, resolve_model

    ref = resolve_model(name)
    check_folders(ref)
    own, base = Path(ref.adapter or ref.path), Path(ref.path)
    run = RunDir(own.parent) if own.name in ("final_model", "best_model") else None
    if run is not None and not run.config.is_file():
        run = None
    config = run.read_config() if run else {}
    quantised = [b for b in ("4bit", "8bit") if config.get(f"load_in_{b}")]
    bits = quantised[0] if quantised and ref.adapter else None
    hashes = {"weights": hash_tree(base)} if base.is_dir() else {}
    if ref.adapter:
        hashes["adapter"] = hash_tree(ref.adapter)
    return Source(ref, run, bits, _stored_type(base), hashes)


def base_folder(name: str) -> Path | None:
    """Return the folder of a base by its name, where it lies on this machine."""
    from tunesmith.models.load import resolve_model

    try:
        found = Path(resolve_model(name).path)
    except TunesmithError:
        return None
    return found if found.is_dir() else None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a run, or an empty one where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stored_type(folder: Path) -> str:
    """Return the type that a model's config names, else float32."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = str(config.get("dtype") or config.get("torch_dtype"))
    except (OSError, ValueError, AttributeError):
        return "float32"
    return named if named in TYPES else "float32"


def prompts_of(run: RunDir | None) -> tuple[list[Sequence[Segment]], str]:
    """Return prompts to compare on, and where they come from: held-out rows, else built-in ones."""
    found = _held_out(run) if run is not None else []
    if found:
        return found, "held-out rows of the run"
    return list(BUILT_IN), "built-in ones"


def _held_out(run: RunDir) -> list[Sequence[Segment]]:
    """Return the prompts of the run's stored answers, else those of its samples."""
    from tunesmith.evaluate.records import load

    try:
        asked = load(run.eval / "tuned").problems.values()
        prompts: list[Sequence[Segment]] = [problem.prompt for problem in asked]
    except TunesmithError:
        prompts = []
    if not prompts and run.samples.is_file():
        lines = run.samples.read_text(encoding="utf-8").splitlines()
        texts = dict.fromkeys(str(json.loads(line)["prompt"]) for line in lines)
        prompts = [(Segment("user", text),) for text in texts]
    step = max(1, len(prompts) // PROMPTS)
    return prompts[::step][:PROMPTS]
