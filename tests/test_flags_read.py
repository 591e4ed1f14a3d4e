"""Every setting is read by the workflow of its command: no flag does nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tunesmith.cli import VERBS
from tunesmith.config import schema

WORKFLOWS = Path(schema.__file__).parent.parent / "workflows"


def reached(module: str) -> set[str]:
    """Return the workflow modules that one imports, itself included, however indirectly."""
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        path = WORKFLOWS / f"{name}.py"
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                queue += [n.split(".")[2] for n in whole if n.startswith("tunesmith.workflows.")]
    return seen


OBJECTS = {"options", "config"}
"""What workflows call an object of settings, as a name or as an attribute."""


def read(source: str) -> set[str]:
    """Return the attributes that a text reads from objects of settings."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        owner = node.value
        name = getattr(owner, "id", None) or getattr(owner, "attr", None)
        if name in OBJECTS:
            found.add(node.attr)
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_read(verb: str) -> None:
    texts = [
        (WORKFLOWS / f"{name}.py").read_text(encoding="utf-8")
        for name in reached(VERBS[verb].module)
    ]
    used = set().union(*(read(text) for text in texts))
    fields = VERBS[verb].settings().model_fields
    assert sorted(set(fields) - used) == [], f"settings of {verb} that nothing reads"


def test_the_check_sees_reads_and_only_reads() -> None:
    source = "def f(config):\n    config.a = other.b\n    return self.config.c + config.d\n"
    assert read(source) == {"c", "d"}


def test_the_check_follows_imports() -> None:
    assert {"train", "rows", "finish"} <= reached("train")
    assert "train" not in reached("evaluate")
