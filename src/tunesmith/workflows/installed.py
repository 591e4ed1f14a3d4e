"""What of the libraries that this package names is installed: its needs, and its extras."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE, PYTHON = "tunesmith", "Python"
USED_BY = {
    "quant": "train --load-in-4bit, --load-in-8bit and --optim adamw_8bit",
    "code": "eval --task code: whether code parses",
    "deepspeed": "train in several processes with DeepSpeed",
    "eval": "eval of replies: chrF",
    "gguf": "export --formats gguf",
    "onnx": "export --formats onnx",
    "serve": "serve and studio",
    "ifeval": "eval --task ifeval: rows that name a language",
    "lm-eval": "python -m tunesmith.evaluate.harness",
    "embeddings": "data raft --retriever embeddings",
    "vllm": "eval, sample and generate with --backend vllm",
}
"""Extra → the commands that need it."""


@dataclass(frozen=True, slots=True)
class Extra:
    """One group of optional libraries."""

    name: str
    used_by: str
    missing: tuple[str, ...]

    @property
    def install(self) -> str:
        """Return the line that installs it."""
        return f"pip install '{PACKAGE}[{self.name}]'"


@dataclass(frozen=True, slots=True)
class Library:
    """One library that is needed, or Python itself."""

    name: str
    version: str
    """The one that is installed; nothing where it is not."""
    wanted: str
    fits: bool

    @property
    def install(self) -> str:
        """Return the line that installs a version that fits."""
        return f"pip install '{self.name}{self.wanted}'"


def libraries() -> list[Library]:
    """Return Python and every library that is needed; nothing is imported.

    The list is empty where the package itself is not installed: its needs are then unknown.
    """
    import platform

    from packaging.specifiers import SpecifierSet

    try:
        wanted = metadata.metadata(PACKAGE)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return []
    own = platform.python_version()
    fits = SpecifierSet(wanted).contains(own, prereleases=True)
    found = {PYTHON: Library(PYTHON, own, wanted, fits)}
    for need in _needs():
        if need.marker is None and need.name not in found:
            version, wanted = _version(need), str(need.specifier)
            found[need.name] = Library(need.name, version, wanted, _fits(need))
    return list(found.values())


def extras() -> list[Extra]:
    """Return every group of optional libraries that commands need, and what it lacks here."""
    found = []
    for name, used_by in USED_BY.items():
        needs = [
            need
            for need in _needs()
            if need.marker is not None and need.marker.evaluate({"extra": name})
        ]
        missing = tuple(f"{need.name}{need.specifier}" for need in needs if not _fits(need))
        found.append(Extra(name, used_by, missing))
    return found


def _needs() -> list[Requirement]:
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        return []


def _version(need: Requirement) -> str:
    try:
        return metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return ""


def _fits(need: Requirement) -> bool:
    version = _version(need)
    return bool(version) and need.specifier.contains(version, prereleases=True)
