"""Stored attempts graded again: new verdicts beside the old ones, and what changed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tunesmith
from tunesmith.cli import main
from tunesmith.errors import CheckpointError
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.records import (
    JUDGED_BY,
    STOP_RULE,
    VERIFIER,
    AttemptLog,
    Header,
    ResultSet,
    load,
    save,
)
from tunesmith.evaluate.regraded import changes, count_changes, grader_version, regraded
from tunesmith.report.collect import collect
from tunesmith.storage import write_json
from tunesmith.tasks.registry import get_graded_task
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict

RIGHT, WRONG = Verdict(1.0, "4", "equal"), Verdict(0.0, None, "no answer")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def attempts_of(texts: dict[str, tuple[str, Verdict | None]], planned: int = 0) -> ResultSet:
    attempts = tuple(
        Attempt(key, 0, 0, text, (1, 2), StopReason.STOP_TOKEN, verdict)
        for key, (text, verdict) in texts.items()
    )
    meta = {"rule": "exact", "golds": ["4"], "solution": "4"}
    problems = {key: Problem(key, "qa", (Segment("user", "2 + 2?"),), "4", meta) for key in texts}
    header = Header("old", "qa", "test", "direct", "m", 0, planned=planned, details={"a": 1})
    return ResultSet(header, attempts, problems)


TEXTS = {
    "q1": ("4", RIGHT),
    "q2": ("4", WRONG),
    "q3": ("five", RIGHT),
    "q4": ("4", None),
    "q5": ("five", WRONG),
}


def test_regrade_writes_a_new_set_and_says_what_changed(capsys):
    save("runs/old", attempts_of(TEXTS), {"chance": 0.25})
    before = Path("runs/old/attempts.jsonl").read_bytes()
    assert main(["regrade", "runs/old"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["changed"] == {
        "wrong to right": 1,
        "right to wrong": 1,
        "ungraded to right": 1,
    }
    assert "q3, attempt 0: right to wrong; …five: «equal», now «" in said.err
    assert "Verdicts that changed, of 5: " in said.err
    assert Path("runs/old/attempts.jsonl").read_bytes() == before
    new = load("runs/old-regraded")
    assert [a.verdict.score for a in new.attempts] == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert new.name == "old-regraded"
    assert new.header.details["grader"] == grader_version("qa")
    assert new.header.details["graded before by"] == "not recorded"
    assert json.loads(Path("runs/old-regraded/scores.json").read_text())["chance"] == 0.25


def test_nothing_is_written_over_unless_told():
    save("runs/old", attempts_of(TEXTS))
    Path("runs/old/page.html").write_text("kept")
    before = Path("runs/old/attempts.jsonl").read_bytes()
    assert main(["regrade", "runs/old", "--output", "runs/old"]) == 2
    assert main(["regrade", "runs/old/attempts.jsonl"]) == 0
    assert main(["regrade", "runs/old"]) == 2
    assert main(["regrade", "runs/old", "--overwrite"]) == 0
    Path("other").mkdir()
    assert main(["regrade", "runs/old", "--output", "other", "--overwrite"]) == 2
    assert Path("runs/old/attempts.jsonl").read_bytes() == before
    assert main(["regrade", "runs/old", "--output", "runs/old", "--overwrite"]) == 0
    assert load("runs/old").name == "old"
    assert load("runs/old").attempts[1].verdict.score == 1.0
    assert Path("runs/old/page.html").read_text() == "kept"


def test_an_unfinished_set_stays_unfinished():
    save("runs/old", attempts_of(TEXTS, planned=7))
    assert tunesmith.regrade(results="runs/old").results.missing == 2
    assert load("runs/old-regraded").missing == 2


def test_what_eval_has_graded_says_by_which_grader_and_grades_the_same_again(capsys):
    short = ["--max-new-tokens", "4", "--log-level", "warning"]
    assert main(["eval", "--limit", "6", "--name", "a", *short]) == 0
    assert load("runs/a").header.details["grader"] == grader_version("units")
    capsys.readouterr()
    assert main(["regrade", "runs/a"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == {}


def test_a_grader_that_fails_leaves_an_attempt_ungraded():
    def grader(problem: Problem, text: str) -> Verdict:
        if problem.id == "q1":
            raise RuntimeError("no")
        return RIGHT

    old = attempts_of(TEXTS)
    new = replace(old, attempts=tuple(regraded(old, grader, 2)))
    assert count_changes(changes(old, new)) == {
        "wrong to right": 2,
        "right to ungraded": 1,
        "ungraded to right": 1,
    }


def test_regrading_loads_no_torch():
    save("runs/old", attempts_of(TEXTS))
    code = (
        "import sys; from tunesmith.cli import main; code = main(['regrade', 'runs/old']); "
        "sys.exit(code or ('torch' in sys.modules) * 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_follows_from_old_verdicts_is_done_again_or_left_out(capsys):
    save("runs/old", attempts_of(TEXTS))
    save("runs/old/majority", attempts_of(TEXTS))
    Path("runs/old/comparison.json").write_text("{}")
    stored = {"overlaps": [{"problem": "q1"}], "clean": None, "all": None, "training": ["t.jsonl"]}
    write_json("runs/old/contamination.json", stored)
    assert main(["regrade", "runs/old"]) == 0
    new = json.loads(Path("runs/old-regraded/contamination.json").read_text())
    assert (new["all"]["correct"], new["clean"]["correct"], new["clean"]["n"]) == (3, 2, 4)
    assert new["training"] == ["t.jsonl"]
    assert main(["regrade", "runs/old", "--output", "runs/old", "--overwrite"]) == 0
    assert "made of the old verdicts, so left out: majority" in capsys.readouterr().err
    assert not Path("runs/old/majority").exists()
    assert not Path("runs/old/comparison.json").exists()
    assert json.loads(Path("runs/old/contamination.json").read_text()) == new


def test_a_set_that_is_being_written_is_not_replaced(capsys):
    made = attempts_of(TEXTS, planned=6)
    save("runs/old", made)
    save("runs/old-regraded", made)
    for log, output in (("runs/old", "runs/old"), ("runs/old-regraded", "runs/old-regraded")):
        before = Path(log, "attempts.jsonl").read_bytes()
        with AttemptLog(f"{log}/attempts.jsonl", made.header) as writing:
            assert main(["regrade", "runs/old", "--output", output, "--overwrite"]) != 0
            assert "being written by another process" in capsys.readouterr().err
            assert Path(log, "attempts.jsonl").read_bytes() == before
            writing.append(made.problems["q1"], replace(made.attempts[0], index=1))
        assert len(load(log).attempts) == 6
        assert main(["regrade", "runs/old", "--output", output, "--overwrite"]) == 0


def test_a_stopped_set_keeps_how_many_were_asked_and_no_old_verdict(capsys):
    made = attempts_of(TEXTS, planned=9)
    header = replace(made.header, details={STOP_RULE: {"against": "base"}})
    save("runs/old", replace(made, header=header))
    told = {"questions": 5, "of": 9, "attempts": 5, "against": "base", "sentence": "It is clear."}
    write_json("runs/old/stopped.json", told)
    assert main(["regrade", "runs/old"]) == 0
    assert main(["regrade", "runs/old", "--output", "runs/old", "--overwrite"]) == 0
    for folder in (Path("runs/old-regraded"), Path("runs/old")):
        assert load(folder).missing == 0
        assert "clear" not in (folder / "stopped.json").read_text()
        (folder / "stopped.json").unlink()
        assert load(folder).missing == 4, "nothing of it stays in the log itself"


def test_the_comparison_of_a_run_follows_its_sets(capsys):
    base, tuned = (attempts_of({k: (t, WRONG) for k, (t, _) in TEXTS.items()}) for _ in range(2))
    tuned = replace(tuned, attempts=tuple(replace(a, verdict=RIGHT) for a in tuned.attempts))
    for name, made in (("base", base), ("tuned", tuned)):
        save(f"run/eval/{name}", replace(made, header=replace(made.header, name=name)))
    Path("run/final_model").mkdir()
    Path("run/final_model/README.md").write_text("tuned is better")
    Path("run/manifest.json").write_text("{}")
    sets = [load("run/eval/base"), load("run/eval/tuned")]
    write_json("run/eval/comparison.json", compare(sets).to_json())
    assert main(["regrade", "run/eval/tuned", "--output", "run/eval/tuned", "--overwrite"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "was made of the old verdicts and is made anew" in said
    assert "README.md still tells what the old verdicts showed" in said
    found = json.loads(Path("run/eval/comparison.json").read_text())
    assert found["summaries"]["tuned"]["accuracy"] == 0.6
    # A page goes by the stored answers, whoever changed them.
    write_json("run/eval/comparison.json", compare(sets).to_json())
    data = collect("run")
    assert data.pairs[0].second_accuracy == 0.6
    assert "other scores of 'tuned'" in data.notes[0]
    # What is no run's is dropped.
    Path("run").rename("sets")
    Path("sets/eval").rename("sets/some")
    assert main(["regrade", "sets/some/base", "--output", "sets/some/base", "--overwrite"]) == 0
    assert not Path("sets/some/comparison.json").exists()


def test_logs_of_sampling_are_judged_by_the_verifier():
    """A right answer without steps counts for a score, and is no training row."""
    task = get_graded_task("units")
    [asked] = task.problems("train", limit=1)
    text = f"<answer>{asked.reference}</answer>"
    assert task.grade(asked, text).score == 1
    strict = task.verify(asked, text)
    assert strict.score == 0
    attempt = Attempt(asked.id, 0, 0, text, (1,), StopReason.STOP_TOKEN, strict)
    header = Header("old", "units", "train", "cot", "m", 0, details={JUDGED_BY: VERIFIER})
    save("runs/old", ResultSet(header, (attempt,), {asked.id: asked}))
    assert main(["regrade", "runs/old"]) == 0
    assert load("runs/old-regraded").attempts[0].verdict.score == 0


def test_a_log_is_not_continued_under_another_grader():
    made = attempts_of(TEXTS)
    head = replace(made.header, details={"grader": "one"})
    save("runs/old", replace(made, header=head))
    other = replace(head, details={"grader": "another"})
    with pytest.raises(CheckpointError, match="another version of the grader"):
        AttemptLog("runs/old/attempts.jsonl", other)
    AttemptLog("runs/old/attempts.jsonl", head).close()


@pytest.mark.parametrize("command", ["regrade", "compare"])
@pytest.mark.parametrize("text", ["question;answer\n2 + 2?;4\n", '{"question": "2 + 2?"}\n'])
def test_a_file_of_the_user_s_is_no_damaged_log(text, command, capsys):
    for name in ("rows", "more"):
        Path(name).write_text(text)
    assert main([command, "rows", *(["more"] if command == "compare" else [])]) == 3
    said = capsys.readouterr().err
    assert "is no log of attempts" in said
    assert "remove" not in said
