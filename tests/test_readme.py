"""What the README and the guides tell people to type does run, and names what there is."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.cli import VERBS, main
from tunesmith.config import flags
from tunesmith.config.load import canonical, resolve
from tunesmith.config.presets import SWITCHES

ROOT = Path(__file__).parent.parent
SHORT = {
    "train": ["--max-steps", "2"],
    "run": [
        "eval.limit=4",
        "eval.max_new_tokens=40",
        "rft.sample={prompt: cot, limit: 16, samples: 4, temperature: 0.7}",
        "rft.train.max_steps=2",
        "rft.eval={split: dev, prompt: direct, limit: 4, max_new_tokens: 40}",
        "sample.samples=4",
        "train.max_steps=2",
        "sft.max_rows=8",
    ],
    "generate": ["--max-new-tokens", "8"],
    "chat": ["--max-new-tokens", "8"],
    "eval": ["--max-new-tokens", "8"],
    "find-lr": ["--lr-steps", "16"],
}
"""What keeps a command short; nothing else of it is changed."""
OWN_RUN = {"first_run.md": ["eval.limit=4", "train.max_steps=2"]}
"""The same for «run» of a page's own recipe."""
STANDS_FOR = {"path/or/hub-name": "tunesmith/tiny", "MODEL": "tunesmith/tiny",
              "runs/demo/rft": "tunesmith/tiny"}  # fmt: skip
"""What a page leaves to the reader, and what is taken here."""
DECLARED = {
    "tunesmith demo": "test_readme.py::test_commands_run",
    "tunesmith export": "test_export.py::test_every_form_of_an_adapter",
    "tunesmith eval --task chat --dataset heldout.jsonl": "test_reply_runs.py::",
    "tunesmith eval --task chat --model MODEL": "test_reply_runs.py::",
    "tunesmith eval --task domain --model RUN": "test_reply_runs.py::",
    "tunesmith eval --task mt_bench": "test_mt_bench.py::",
    "tunesmith eval --task raft": "test_rag_runs.py::",
    "tunesmith eval --task units --model SOLVER": "test_sub_questions.py::",
    "tunesmith eval … --compare-with": "test_conditions.py::",
    "tunesmith eval … --contamination": "test_clean_scores.py::",
    "tunesmith data raft my_documents": "test_raft.py::",
    "tunesmith judge": "test_judge.py::test_two_sets_are_judged_in_both_orders",
    "tunesmith serve": "test_serve.py::test_each_name_answers_as_generate_does",
    "tunesmith convert": "test_convert.py::test_a_converted_model_is_the_same",
    "tunesmith data validate requests.jsonl": "test_serve.py::test_the_log_of_requests_is_read",
    "tunesmith data show requests.jsonl": "test_serve.py::test_the_log_of_requests_is_read",
    "tunesmith train --task chat --dataset requests.jsonl": "test_serve.py::test_the_log_of",
    "tunesmith studio": "test_studio.py::test_every_route_wants_the_key_or_a_cookie",
    "tunesmith regrade": "test_regrade.py::",
    "tunesmith compare runs/chat-direct": "test_reply_runs.py::",
    "tunesmith compare runs/raft-plain": "test_rag_runs.py::",
    "tunesmith compare runs/base runs/tuned ": "test_compare.py::",
    "tunesmith compare A-1": "test_compare.py::",
}
"""Beginnings of commands that want a server, a judge, or what hours of training leave: the test
that runs their like. Their flags are checked here all the same."""
FOREIGN = {
    "--config_file", "--num_processes", "--zero_stage", "--model_args", "--tasks", "--output_path",
    "--include_path", "--apply_chat_template", "--batch_size", "--output_json", "--ckpt_path",
    "--model", "--help", "--no-x", "--setting",
}  # fmt: skip
"""Flags of other programs that the pages name."""
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
RUN = {page for page in PAGES if page != "docs/reference.md"}

NIGHTLY = {"docs/concepts.md", "docs/lora_details.md", "docs/troubleshooting.md"}
"""Pages whose commands only the nightly set runs; their flags are checked with all others."""


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[str]:
    """Return the tunesmith commands of a page, each on one line."""
    found = [line for b in blocks(text) for line in b.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split("  #")[0].split()) if "  #" in line else line
            for line in found if line.startswith("tunesmith ")]  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """Return the tunesmith commands of a page's code blocks, split into words."""
    return [shlex.split(line)[1:] for line in lines(text)]


def declared(line: str) -> str | None:
    """Return the test that runs the like of a command, None for one that is run here."""
    return next((test for begin, test in DECLARED.items() if f"{line} ".startswith(begin)), None)


def filled(words: list[str]) -> list[str]:
    for named, taken in STANDS_FOR.items():
        words = [re.sub(rf"(?<!\w){re.escape(named)}(?!\w)", taken, word) for word in words]
    return words


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name, numbers in (("my_rows", range(12)), ("heldout", range(20, 26))):
        rows = ({"instruction": f"Add 1 to {n}.", "output": f"{n + 1}"} for n in numbers)
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = "".join(f"Was ist {n} + 1?,{n + 1}\n" for n in range(12))
    Path("fragen.csv").write_text(f"Frage,Antwort\n{cells}")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in NIGHTLY else p for p in sorted(RUN)]
)
def test_commands_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n"))
    monkeypatch.setenv("COLUMNS", "80")
    for line in lines((ROOT / page).read_text()):
        words = filled(shlex.split(line)[1:])
        if declared(line) is not None:
            continue
        if words[0] == "run" and "recipe.yaml" in words[1:]:
            words += OWN_RUN[Path(page).name]
        else:
            words += SHORT.get(words[0], [])
        assert main(words) == 0, line


@pytest.mark.parametrize("page", sorted(RUN))
def test_settings_of_commands_are_there(page: str) -> None:
    for line in lines((ROOT / page).read_text()):
        if (test := declared(line)) is not None:
            file, _, name = test.partition("::")
            assert name in (ROOT / "tests" / file).read_text(), test
        words = [word for word in shlex.split(line)[1:] if word != "…"]
        size = 2 if " ".join(words[:2]) in VERBS else 1
        verb = VERBS[" ".join(words[:size])]
        parsed = flags.parse(verb.settings(), words[size:], verb.positional)
        resolve(verb.settings(), parsed.given, parsed.configs, faults=parsed.faults)


def test_no_declaration_is_idle() -> None:
    every = [line for page in RUN for line in lines((ROOT / page).read_text())]
    idle = [one for one in DECLARED if not any(f"{line} ".startswith(one) for line in every)]
    assert idle == []


def known_flags() -> set[str]:
    """Return the names of all settings of all commands."""
    names = {name for verb in VERBS.values() for name in verb.settings().model_fields}
    return names | set(SWITCHES) | {f"no_{name}" for name in names} | {"json", "config", "version"}


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    # Theirs stand on the left of the tables of this page.
    if page == "docs/migrating.md":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*[a-z0-9]", text))
    wrong = {flag for flag in named if canonical(flag[2:]) not in known_flags()}
    assert wrong - FOREIGN == set()


def test_what_other_trainers_have_is_named_as_it_is_here() -> None:
    rows = re.findall(r"^\|(.*)\|(.*)\|$", (ROOT / "docs/migrating.md").read_text(), re.MULTILINE)
    ours = [right for left, right in rows if "`" in left]
    assert len(ours) > 70
    for right in ours:
        for line in re.findall(r"`(tunesmith [^`]+)`", right):
            words = shlex.split(line)[1:]
            size = 2 if " ".join(words[:2]) in VERBS else 1
            verb = VERBS[" ".join(words[:size])]
            parsed = flags.parse(verb.settings(), words[size:], verb.positional)
            assert parsed.faults == [], line
        assert re.findall(r"`(--[\w-]+|tunesmith [^`]+)`", right), right


def test_python_of_the_notebook_page_runs(
    tmp_path: Path, files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: dict[str, Any] = {}
    for block in blocks((ROOT / "docs/notebooks.md").read_text(), "python"):
        exec(compile(block, "notebooks.md", "exec"), scope)
    assert scope["run"].steps == 4
    assert scope["needs"].steps == 4
    assert scope["base"].summary.n == 8


@pytest.mark.parametrize("page", PAGES)
def test_recipes_of_a_page_are_recipes(page: str, tmp_path: Path) -> None:
    from tunesmith.workflows.recipe import check_references
    from tunesmith.workflows.recipe_file import load_recipe

    for block in blocks((ROOT / page).read_text(), "yaml"):
        if "stages:" in block:
            (tmp_path / "recipe.yaml").write_text(block)
            check_references(load_recipe(tmp_path / "recipe.yaml"))


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
