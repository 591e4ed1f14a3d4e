"""The house: imports go down only, heavy libraries stay where they belong, names mean something."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "tunesmith"
LAYERS = (
    ("cli", "__main__"),
    ("workflows",),
    ("evaluate", "report", "export", "serve", "studio"),
    ("train", "generate"),
    ("models",),
    ("tasks", "data"),
    ("grading", "config", "rundir"),
    ("storage",),
    ("types", "errors", "__init__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate"}
HEAVY_TOO = {
    "datasketch",
    "numpy",
    "pint",
    "pyarrow",
    "safetensors",
    "scipy",
    "tensorboard",
    "tokenizers",
}
"""Slow to import as well: they stay out of what every command loads."""
HEAVY_HOMES = {"train", "generate", "models", "export", "serve"}
LIGHT_ROOMS = {"cli", "workflows", "tasks", "data", "grading", "config", "rundir", "storage"}
"""Importing all of these loads nothing heavy, not even through other modules."""
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST, *, top_only: bool) -> set[str]:
    """Return imported module names; ``top_only`` those that importing the module runs."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (top_only and later):
            found |= imports(node, top_only=top_only)
    return found


def wrong_imports(own: str, source: str) -> set[str]:
    """Return the imports of a module in the room ``own`` that go up, or across the top."""
    wrong = set()
    for name in imports(ast.parse(source), top_only=False):
        parts = name.split(".")
        if parts[0] != "tunesmith" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        other = parts[1]
        if (other != own and LEVEL[other] < LEVEL[own]) or {own, other} == {"train", "generate"}:
            wrong.add(name)
    return wrong


def heavy_imports(own: str, source: str) -> set[str]:
    """Return the heavy libraries that importing a module in the room ``own`` would load."""
    if own in HEAVY_HOMES:
        return set()
    top = {name.split(".")[0] for name in imports(ast.parse(source), top_only=True)}
    return top & (HEAVY | HEAVY_TOO)


def dumping_grounds(paths: Iterable[Path]) -> list[Path]:
    """Return files and folders whose name says nothing."""
    return [p for p in paths if EMPTY_NAMES & {part.lower() for part in p.with_suffix("").parts}]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = room(path)
    assert own in LEVEL, f"{own} has no layer"
    if own == "__init__":
        return  # the lazy front names what lies above it without importing it
    assert not wrong_imports(own, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_at_home_only(path: Path) -> None:
    assert not heavy_imports(room(path), path.read_text(encoding="utf-8"))


def test_no_dumping_grounds() -> None:
    assert not dumping_grounds(path.relative_to(PACKAGE) for path in FILES)


@pytest.mark.parametrize(
    ("own", "source", "caught"),
    [
        ("data", "from tunesmith.train.loop import fit", True),
        ("data", "def f():\n    from tunesmith.workflows import train", True),
        ("types", "import tunesmith.config.load", True),
        ("train", "from tunesmith.generate import engine", True),
        ("generate", "from tunesmith.train import loop", True),
        ("models", "from tunesmith.train import loop", True),
        ("evaluate", "from tunesmith import cli", True),
        ("workflows", "if TYPE_CHECKING:\n    from tunesmith import cli", True),
        ("train", "from tunesmith.models import load", False),
        ("errors", "import tunesmith.types", False),
    ],
)
def test_the_rule_of_layers_catches_what_it_forbids(own: str, source: str, caught: bool) -> None:
    assert bool(wrong_imports(own, source)) is caught


@pytest.mark.parametrize(
    ("own", "source", "caught"),
    [
        ("workflows", "import torch.nn", True),
        ("workflows", "try:\n    from torch import nn\nexcept ImportError:\n    pass", True),
        ("data", "class A:\n    import numpy as np", True),
        ("data", "def f():\n    import numpy", False),
        ("data", "if TYPE_CHECKING:\n    import numpy", False),
        ("models", "import torch", False),
    ],
)
def test_the_rule_of_heavy_libraries_catches_what_it_forbids(
    own: str, source: str, caught: bool
) -> None:
    assert bool(heavy_imports(own, source)) is caught


def test_the_rule_of_names_catches_files_and_folders() -> None:
    paths = [Path("data/Helpers.py"), Path("misc/x.py"), Path("data/commonplace.py")]
    assert dumping_grounds(paths) == paths[:2]


def test_light_rooms_load_nothing_heavy_even_indirectly() -> None:
    modules = [
        ".".join(("tunesmith", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in FILES
        if room(path) in LIGHT_ROOMS
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (HEAVY | HEAVY_TOO) == set()


def test_help_imports_nothing_heavy() -> None:
    names = sorted(HEAVY | {"numpy", "pydantic"})
    code = (
        "import sys; from tunesmith.cli import main; code = main(['--help']); "
        f"heavy = set(sys.modules) & set({names!r}); "
        "print('heavy:', heavy, file=sys.stderr); sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, tunesmith; dir(tunesmith); "
        f"print(sorted(m for m in sys.modules if m in {sorted(HEAVY)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_lazy_names_exist() -> None:
    import tunesmith

    for name in tunesmith.__all__:
        assert getattr(tunesmith, name) is not None


def test_every_workflow_with_settings_is_a_lazy_name() -> None:
    """What a verb does is there for Python under the package's own name."""
    import tunesmith
    from tunesmith.cli import VERBS

    missing = []
    for module in {verb.module for verb in VERBS.values()}:
        workflow = importlib.import_module(f"tunesmith.workflows.{module}")
        for name, found in inspect.getmembers(workflow, inspect.isfunction):
            own = found.__module__ == workflow.__name__ and not name.startswith("_")
            if own and "settings" in inspect.signature(found).parameters:
                assert getattr(tunesmith, name, found) is found
                missing += [name] * (name not in tunesmith.__all__)
    assert missing == []
