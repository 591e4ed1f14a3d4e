"""What the README tells people to type does run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tunesmith.cli import VERBS, main

ROOT = Path(__file__).parent.parent
SHORT = {
    "train": ["--max-steps", "2"],
    "run": [
        "eval.limit=4",
        "rft.sample={prompt: cot, limit: 30, samples: 8, temperature: 0.7}",
        "rft.eval={split: dev, prompt: direct, limit: 4}",
        "sample.samples=4",
        "train.max_steps=2",
        "sft.max_rows=8",
    ],
    "generate": ["--max-new-tokens", "8"],
}
"""What keeps a command short; nothing else of it is changed."""


def commands(text: str) -> list[list[str]]:
    """Return the tunesmith commands of a page's code blocks, split into words."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("tunesmith ")]


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    rows = ({"instruction": f"Add 1 to {n}.", "output": f"{n + 1}"} for n in range(12))
    Path("my_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = commands((ROOT / "README.md").read_text())
    assert {words[0] for words in found} >= {"data", "train", "generate", "run"}
    for words in found:
        given = [word.replace("path/or/hub-name", "tunesmith/tiny") for word in words]
        assert main([*given, *SHORT.get(words[0], [])]) == 0, " ".join(words)


def test_readme_names_every_command() -> None:
    named = set(re.findall(r"\| `tunesmith ([\w -]+)`", (ROOT / "README.md").read_text()))
    assert named == set(VERBS)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_name_what_there_is(path: Path) -> None:
    from tunesmith.workflows.recipe import check_references
    from tunesmith.workflows.recipe_file import load_recipe

    check_references(load_recipe(path))


def test_the_demo_recipe_in_the_open_is_the_one_that_runs() -> None:
    from tunesmith.workflows.demo import RECIPE, TELLING

    assert (ROOT / "recipes" / "demo.yaml").read_text() == RECIPE.read_text()
    stages = [next(iter(stage.items())) for stage in yaml.safe_load(RECIPE.read_text())["stages"]]
    compared = {s["name"]: s["of"] for verb, s in stages if verb == "compare"}
    assert compared.keys() == TELLING.keys()
    for name, pairs in TELLING.items():
        order = compared[name]
        assert all(order.index(first) < order.index(second) for first, second in pairs)
