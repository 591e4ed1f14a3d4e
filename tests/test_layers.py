"""The house: imports go down only, heavy libraries stay where they belong, names mean something."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "tunesmith"
LAYERS = (
    ("cli", "__main__"),
    ("workflows",),
    ("evaluate", "report"),
    ("train", "generate"),
    ("models",),
    ("tasks", "data"),
    ("grading", "config", "rundir"),
    ("storage",),
    ("types", "errors", "__init__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate"}
HEAVY_HOMES = {"train", "generate", "models"}
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(tree: ast.AST, *, top_only: bool) -> set[str]:
    """Return imported module names; ``if TYPE_CHECKING`` blocks count for layers only."""
    found: set[str] = set()
    nodes = tree.body if top_only and isinstance(tree, ast.Module) else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = room(path)
    assert own in LEVEL, f"{own} has no layer"
    if own == "__init__":
        return  # the lazy front names what lies above it without importing it
    for name in imports(tree, top_only=False):
        parts = name.split(".")
        if parts[0] != "tunesmith" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        other = parts[1]
        assert other == own or LEVEL[other] >= LEVEL[own], f"{path.name} imports {name}"
        assert {own, other} != {"train", "generate"}, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_at_home_only(path: Path) -> None:
    if room(path) in HEAVY_HOMES:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {name.split(".")[0] for name in imports(tree, top_only=True)}
    assert not top & HEAVY, f"{path.name} imports {top & HEAVY} at module level"


def test_no_dumping_grounds() -> None:
    assert not [path for path in FILES if path.stem in EMPTY_NAMES]


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
