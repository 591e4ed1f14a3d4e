"""Scores without the questions that stand in training rows, with the place of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.cli import main

QUIET = ["--log-level", "info", "--max-new-tokens", "4"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    questions = [
        {"question": f"How many legs do {n} cats and {n + 7} birds have together?", "answer": "9"}
        for n in range(20, 30)
    ]
    write("test.jsonl", questions)
    asked = questions[3]["question"]
    write("train.jsonl", [{"prompt": "Hello?", "completion": "Yes."}, {"prompt": asked, "completion": "50"}])  # fmt: skip  # noqa: E501
    write("clean.jsonl", [{"prompt": "Hello?", "completion": "Yes."}])
    write("maths.jsonl", questions[:2])


def write(path: str, rows: list[dict[str, str]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(name: str, *more: str) -> int:
    return main(["eval", "--task", "qa", "--dataset", "test.jsonl", "--name", name, *QUIET, *more])


def found(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/contamination.json").read_text())


def test_the_score_is_given_with_and_without_what_overlaps(capsys):
    assert ask("a", "--contamination", "train.jsonl") == 0
    said = capsys.readouterr()
    stored = found("a")
    (pair,) = stored["overlaps"]
    assert (pair["place"], pair["row"]) == ("test.jsonl:4", "train.jsonl:2")
    assert pair["kind"] == "exact"
    assert (stored["all"]["n"], stored["clean"]["n"]) == (10, 9)
    assert json.loads(said.out)["contamination"]["overlaps"] == [pair]
    assert "Clean subset, 9 of 10 questions: " in said.err
    assert "test.jsonl:4 in train.jsonl:2" in said.err.replace("\n", " ")


def test_rows_of_the_task_itself_and_of_a_run_are_read():
    assert ask("a", "--contamination", "maths.jsonl", "clean.jsonl") == 0
    assert [one["row"] for one in found("a")["overlaps"]] == ["maths.jsonl:1", "maths.jsonl:2"]
    Path("run").mkdir()
    Path("run/config.yaml").write_text("task: qa\ndataset: [train.jsonl]\n")
    assert ask("a", "--contamination", "run") == 0
    assert [one["row"] for one in found("a")["overlaps"]] == ["train.jsonl:2"]
    Path("run/config.yaml").write_text("task: qa\n")
    assert ask("a", "--contamination", "run") == 2
    Path("run/config.yaml").write_text("task: units\nmax_rows: 3\n")
    assert ask("a", "--contamination", "run") == 0
    assert found("a")["overlaps"] == []


def test_compare_gives_both(capsys):
    assert ask("a", "--contamination", "train.jsonl") == 0
    assert ask("b", "--contamination", "clean.jsonl") == 0
    capsys.readouterr()
    assert main(["compare", "runs/a", "runs/b", "--output", "c.json", "--report", "c.html"]) == 0
    assert "On the clean subset: " in Path("c.html").read_text()
    said = capsys.readouterr().out
    assert "a: Clean subset, 9 of 10 questions" in said
    assert "b: Clean subset" not in said
    assert "On the clean subset: " in said
    stored = json.loads(Path("c.json").read_text())
    assert (stored["pairs"][0]["n"], stored["clean"]["pairs"][0]["n"]) == (10, 9)


def test_where_nothing_clean_is_left_that_is_said(capsys):
    assert ask("a", "--contamination", "test.jsonl") == 0
    assert ask("b") == 0
    assert found("a")["clean"] is None
    capsys.readouterr()
    assert main(["compare", "runs/a", "runs/b"]) == 0
    said = capsys.readouterr().out
    assert "a: Clean subset, 0 of 10 questions: no score" in said
    assert "On the clean" not in said


def test_a_broken_file_is_named():
    assert ask("a", "--contamination", "train.jsonl") == 0
    assert ask("b") == 0
    Path("runs/a/contamination.json").write_text("{}")
    assert main(["compare", "runs/a", "runs/b"]) == 3


def test_training_scores_both_models_without_its_rows(capsys):
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    write("many.jsonl", rows)
    command = ["train", "--task", "qa", "--dataset", "many.jsonl", "--eval-dataset", "test2.jsonl"]
    other = [{"question": f"Say {n} {n + 1} {n + 2}", "answer": f"{n}"} for n in range(3)]
    near = {"question": rows[0]["question"] + " Think.", "answer": "9"}
    write("test2.jsonl", [*other, near])
    more = ["--max-steps", "1", "--eval-questions", "4", "--report-to", "none", "--run-name", "r"]
    assert main([*command, *more]) == 0
    for name in ("base", "tuned"):
        stored = json.loads(Path(f"runs/r/eval/{name}/contamination.json").read_text())
        assert (stored["questions"], stored["clean"]["n"]) == (4, 3)
        (pair,) = stored["overlaps"]
        assert (pair["row"], pair["place"]) == ("many.jsonl:1", "test2.jsonl:4")
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    assert any(line.startswith("tuned: Clean subset, 3 of 4") for line in manifest["contamination"])
    assert "On the clean subset: " in capsys.readouterr().err
    assert "clean" in json.loads(Path("runs/r/eval/comparison.json").read_text())
