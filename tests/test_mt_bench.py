"""Questions of several turns, in MT-bench's layout: asked with the model's own answers, judged."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fake_openai import FakeServer
from tunesmith.cli import main
from tunesmith.errors import CheckpointError, DataError, ModelError, UsageError
from tunesmith.evaluate.records import load
from tunesmith.tasks.mt_bench import MtBenchTask
from tunesmith.workflows.judge import FIGURES

TASK = MtBenchTask()
ROWS = [
    {"question_id": 1, "category": "writing", "turns": ["Write.", "Rewrite it."]},
    {"question_id": 2, "category": "math", "turns": ["1 + 1?", "And + 1?"]},
    {"question_id": 3, "category": "math", "turns": ["2 * 2?"], "reference": ["5"]},
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("mt/question.jsonl", ROWS)
    right = [(2, ["2", "3"]), (3, ["4"])]
    rights = [{"question_id": number, "choices": [{"turns": turns}]} for number, turns in right]
    write("mt/reference_answer/a.jsonl", rights)


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def answering() -> FakeServer:
    """Return a server that answers each question by its own words."""
    return FakeServer(
        lambda _q, _n: "json", text=lambda q: f"<think>hm</think>Re {q.split('#')[0]}"
    )


def ask(server: FakeServer, *more: str) -> int:
    common = ["--task", "mt_bench", "--dataset", "mt", "--address", server.address]
    return main(["eval", *common, "--model", "m", "--name", "one", *more])


def test_the_own_answers_stand_in_the_context() -> None:
    with answering() as server:
        assert ask(server) == 0
        bodies = [one.body["messages"] for one in server.asked]
    assert len(bodies) == 5
    second = next(body for body in bodies if body[-1]["content"] == "Rewrite it.")
    assert [turn["role"] for turn in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == "Re Write."  # without the thinking
    found = load("runs/one")
    assert (found.missing, len(found.attempts)) == (0, 5)
    stored = found.problems["mt_bench-2-2"]
    assert (stored.reference, stored.meta["category"], stored.meta["turn"]) == ("3", "math", 2)
    assert stored.prompt[1].text == "Re 1 + 1?"


def test_a_stopped_run_goes_on_with_the_same_answers() -> None:
    with answering() as server:
        behave = server._behave
        server._behave = lambda q, n: "denied" if len(server.completed) >= 4 else behave(q, n)
        assert ask(server, "--connections", "1") == ModelError.exit_code
        server._behave = behave
        assert ask(server) == 0
        assert len(server.completed) == len(set(server.completed)) == 5
        second = [one.body["messages"] for one in server.asked if "And" in one.question]
        assert all(body[1]["content"] == "Re 1 + 1?" for body in second)
        write("mt/question.jsonl", [{**ROWS[0], "turns": ["Else.", "Rewrite it."]}, *ROWS[1:]])
        assert ask(server) == CheckpointError.exit_code


def test_turns_are_judged_by_category_and_turn(capsys: pytest.CaptureFixture[str]) -> None:
    with answering() as server:
        assert ask(server) == 0

    def text(question: str) -> str:
        shown = re.sub(r"part-\w+", "", question)
        assert ("reference answer" in shown) == ("+" in shown or "*" in shown)
        return "So.\nRating: [[4]]" if "Write." in shown else "So.\nRating: [[9]]"

    with FakeServer(lambda _q, _n: "json", text=text) as server:
        words = ["judge", "runs/one", "--address", server.address, "--model", "referee"]
        assert main(words) == 0
        later = [o.body["messages"][1]["content"] for o in server.asked if "Rewrite" in o.question]
    assert "Re Write." in later[0]
    found = json.loads(Path("runs/judge-one-referee", FIGURES).read_text())
    means = {name: one["mean"] for name, one in found["groups"].items()}
    assert means["category writing"] == 4
    assert means["category math"] == 9
    assert means["turn 1"] == pytest.approx(22 / 3)
    assert found["rating"]["mean"] == pytest.approx(22 / 3)  # a question counts once
    assert "category writing" in capsys.readouterr().err


def test_a_limit_draws_whole_questions() -> None:
    some = TASK.problems("test", limit=2, seed=1, source="mt")
    assert len({one.meta["question"] for one in some}) == 2
    assert [one.id for one in TASK.problems("test", source="mt")][:2] == [
        "mt_bench-1-1",
        "mt_bench-1-2",
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 4, "turns": []},
        {"question_id": 4, "turns": "Write."},
        {"question_id": 4, "turns": ["a", 1]},
        {"turns": ["a"]},
        {"question_id": 1, "turns": ["a"]},
        {"question_id": 4, "turns": ["a", "b"], "reference": ["x"]},
    ],
)
def test_rows_that_are_no_questions_are_named(row: dict[str, Any]) -> None:
    Path("mt/reference_answer/a.jsonl").unlink()
    Path("mt/reference_answer").rmdir()
    write("mt/question.jsonl", [*ROWS, row])
    with pytest.raises(DataError, match=r"question\.jsonl:4"):
        TASK.problems("test", source="mt")


def test_references_have_to_be_plain() -> None:
    write("mt/reference_answer/b.jsonl", [])
    with pytest.raises(DataError, match=r"several files.*a\.jsonl, b\.jsonl"):
        TASK.problems("test", source="mt")
    Path("mt/reference_answer/b.jsonl").unlink()
    write("mt/reference_answer/a.jsonl", [{"question_id": 2, "choices": []}])
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        TASK.problems("test", source="mt")


@pytest.mark.parametrize(
    "idle",
    [
        "--samples 2",
        "--compare-with runs/other",
        "--stop-when-clear",
        "--clear-width 0.1",
        "--contamination rows.jsonl",
        "--split dev",
        "--question-seed 3",
    ],
)
def test_what_does_nothing_is_refused(idle: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering() as server:
        assert ask(server, *idle.split()) == 2
        assert not server.asked
    assert f"{idle.split()[0]} does nothing" in capsys.readouterr().err


def test_there_are_no_questions_of_its_own() -> None:
    with pytest.raises(UsageError, match="no questions of its own"):
        TASK.problems("test")


def test_the_public_questions_are_read(shared: Path) -> None:
    problems = TASK.problems("test", source=str(shared / "data" / "mt_bench"))
    first = [one for one in problems if one.meta["turn"] == 1]
    assert (len(problems), len(first)) == (160, 80)
    assert set(Counter(one.meta["category"] for one in first).values()) == {10}
    referred = Counter(one.meta["category"] for one in first if one.reference)
    assert referred == {"reasoning": 10, "math": 10, "coding": 10}
