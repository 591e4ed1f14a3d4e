"""tunesmith: make a small language model reason better on your task, with the evidence.

The names below are imported on first use, so that ``import tunesmith`` stays cheap.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_LAZY = {
    "train": "tunesmith.workflows.train",
    "evaluate": "tunesmith.workflows.evaluate",
    "compare": "tunesmith.workflows.compare",
    "regrade": "tunesmith.workflows.regrade",
    "judge": "tunesmith.workflows.judge",
    "generate": "tunesmith.workflows.generate",
    "sample": "tunesmith.workflows.sample",
    "grpo": "tunesmith.workflows.grpo",
    "convert": "tunesmith.workflows.convert",
    "export": "tunesmith.workflows.export",
    "find_rate": "tunesmith.workflows.find_rate",
    "estimate": "tunesmith.workflows.estimate",
    "selftest": "tunesmith.workflows.selftest",
    "filter_rows": "tunesmith.workflows.filter",
    "convert_socratic": "tunesmith.workflows.socratic",
    "load": "tunesmith.models.load",
    "Dialogue": "tunesmith.generate.dialogue",
    "FineTuningConfig": "tunesmith.config.schema",
    "RAFTDataGenerator": "tunesmith.workflows.raft",
}

__all__ = ["__version__", *sorted(_LAZY)]

if TYPE_CHECKING:
    from tunesmith.config.schema import FineTuningConfig
    from tunesmith.generate.dialogue import Dialogue
    from tunesmith.models.load import load
    from tunesmith.workflows.compare import compare
    from tunesmith.workflows.convert import convert
    from tunesmith.workflows.estimate import estimate
    from tunesmith.workflows.evaluate import evaluate
    from tunesmith.workflows.export import export
    from tunesmith.workflows.filter import filter_rows
    from tunesmith.workflows.find_rate import find_rate
    from tunesmith.workflows.generate import generate
    from tunesmith.workflows.grpo import grpo
    from tunesmith.workflows.judge import judge
    from tunesmith.workflows.raft import RAFTDataGenerator
    from tunesmith.workflows.regrade import regrade
    from tunesmith.workflows.sample import sample
    from tunesmith.workflows.selftest import selftest
    from tunesmith.workflows.socratic import convert_socratic
    from tunesmith.workflows.train import train


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Front(ModuleType):
    """Keeps ``tunesmith.train`` the function, though a package of that name is imported too."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each imported subpackage to its parent under its name.
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
