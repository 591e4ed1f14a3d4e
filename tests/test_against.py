"""``tunesmith eval --against``: what sub-questions bring, on the same questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from scripted import respondent
from tunesmith.cli import main
from tunesmith.errors import UsageError
from tunesmith.evaluate.records import load
from tunesmith.tasks.sub_questions import INSTRUCTION, REQUEST
from tunesmith.types import Problem, Segment, Verdict
from tunesmith.workflows import evaluate as workflow

LIST = "1. How many are there at first?\n2. How many are left?"


def write_questions() -> None:
    rows = ({"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(40))
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers(helps: bool) -> Any:
    """Return a respondent that solves every second question, and all with questions that help."""

    def answer(messages: Sequence[Segment]) -> str:
        if messages[0].text == REQUEST:
            return LIST
        number = int(messages[-1].text.split("What is ")[1].split(" +")[0])
        solves = number % 2 == 0 or (helps and messages[0].text == INSTRUCTION)
        told = "There are so many, and one more makes it. " if messages[0].role == "system" else ""
        return f"{told}#### {number + 1 if solves else 0}"

    return respondent(answer)[0]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_questions()


def usefulness(monkeypatch: pytest.MonkeyPatch, helps: bool, **given: Any) -> Any:
    monkeypatch.setattr(workflow, "open_respondent", lambda _: answers(helps))
    settings = {"task": "maths", "dataset": "q.jsonl", "prompt": "socratic", "name": "asked"}
    return tunesmith.evaluate(**{**settings, "against": ["direct"], **given})


@pytest.mark.parametrize("helps", [True, False])
def test_questions_that_help_and_questions_that_do_not(
    helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = usefulness(monkeypatch, helps)
    told = json.loads((result.folder / "against.json").read_text())
    assert told == result.metrics["against"]
    [pair] = told["compared"]["pairs"]
    assert (pair["first"], pair["second"], pair["n"]) == ("asked-direct", "asked", 40)
    assert pair["test"] == "exact McNemar test"
    if helps:
        assert (pair["difference"], pair["gained"], pair["lost"]) == (0.5, 20, 0)
        assert pair["interval"]["low"] > 0
        assert pair["p_holm"] < 0.001
    else:
        assert (pair["difference"], pair["gained"], pair["p_holm"]) == (0.0, 0, 1.0)
        assert pair["interval"]["low"] < 0 < pair["interval"]["high"]
    # The list of sub-questions counts with what is written.
    tokens = told["tokens a question"]
    assert tokens["socratic"] == len(LIST.split()) + 11
    assert tokens["direct"] == 2
    assert load(Path("runs/asked-direct")).header.prompt == "direct"


def test_the_other_style_may_have_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    result = usefulness(monkeypatch, True, equal_tokens=True)
    tokens = result.metrics["against"]["tokens a question"]
    times = round(tokens["socratic"] / tokens["direct"])
    assert tokens[f"direct, {times} times"] == 2 * times
    names = list(result.metrics["against"]["compared"]["summaries"])
    assert names == ["asked-direct", f"asked-direct-x{times}-majority", "asked"]
    assert load(Path(f"runs/asked-direct-x{times}")).header.samples == times


def test_the_sets_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    usefulness(monkeypatch, True)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.jsonl")}
    usefulness(monkeypatch, True)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*.jsonl")} == before
    assert len(before) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"against": ["socratic"]}, "--against socratic with --prompt socratic"),
        ({"prompt": "cot", "against": ["socratic"]}, "--against socratic with --prompt cot"),
        ({"against": ["plam"]}, "no prompt style"),
        ({"against": [], "equal_tokens": True}, "--equal-tokens does nothing"),
        ({"equal_tokens": True, "temperature": 0.5}, "--equal-tokens does not go"),
        ({"vote": ["majority"], "samples": 2, "temperature": 1.0}, "--vote does not go"),
        ({"task": "chat", "prompt": None}, "--against does nothing"),
    ],
)
def test_what_says_nothing_is_refused(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=said):
        usefulness(monkeypatch, True, **given)


def test_why_a_grader_failed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.tasks.qa import QaTask

    def judge(self: QaTask, problem: Problem, text: str) -> Verdict:
        if problem.meta["line"] < 3:
            raise RuntimeError("no dictionary")
        return Verdict(0.0, text, "different")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(QaTask, "judge", judge)
    rows = ({"question": f"{n}?", "answer": "n"} for n in range(4))
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "--task", "qa", "--model", "tunesmith/tiny", "--dataset", "q.jsonl"]
    assert main([*command, "--max-new-tokens", "2"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 2 of 4 attempts could not be graded: grader failed: RuntimeError: no d" in said
    assert "they are in no score" in said
    assert main([*command, "--max-new-tokens", "2", "--limit", "2", "--name", "x"]) == 0
