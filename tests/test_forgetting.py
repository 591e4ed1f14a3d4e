"""Forgetting: the general suite before and after a training, and what is said of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tunesmith
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema import EvalOptions, FineTuningConfig
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.general import answered, by_kind, read_suite, sentence
from tunesmith.evaluate.losses import RowLoss, compare_losses
from tunesmith.rundir import RunDir
from tunesmith.workflows.forgetting import (
    FOLDER,
    FOUND,
    NOT_FINITE,
    ask_general,
    compare_general,
)
from tunesmith.workflows.opening import open_model

WHOLE_SUITE = True
ROOT = Path(__file__).parent.parent


def test_the_built_in_suite_is_what_its_script_writes():
    script = ROOT / "scripts" / "general_suite.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0
    suite = read_suite()
    assert len(suite.texts) >= 12
    assert len(suite.questions) >= 50
    for problem in suite.questions:
        options = problem.meta["options"]
        assert len({*options}) == len(options) == 4
        assert problem.reference in "ABCD"
    letters = [problem.reference for problem in suite.questions]
    assert all(letters.count(letter) > 5 for letter in "ABCD")  # no place is always right


def test_the_likeliest_option_for_each_byte_is_the_answer():
    suite = read_suite()
    short, long = suite.questions[0], suite.questions[1]
    sizes = [len(option) for option in short.meta["options"]]
    gold = "ABCD".index(short.reference)
    scores = {short.id: [-2.0 * n for n in sizes], long.id: [math.nan, -1.0, -1.0, -1.0]}
    scores[short.id][gold] = -1.0 * sizes[gold]
    found = answered(suite.questions, scores, "base", "m")
    assert [a.verdict.score for a in found.attempts] == [1.0, None]
    assert found.attempts[0].text == short.meta["options"][gold]


def stored(name, right):
    suite = read_suite()
    scores = {
        problem.id: [0.0 if (letter == problem.reference) == good else -99.0 for letter in "ABCD"]
        for problem, good in zip(suite.questions, right, strict=False)
    }
    return answered(suite.questions, scores, name, "m")


def test_what_was_lost_is_said_and_what_was_not():
    def losses(per_byte, rows=12):
        return [RowLoss(f"text-{n}", per_byte * 100 + n % 3, 100) for n in range(rows)]

    same = compare_losses(losses(1.0), losses(1.0))
    worse = compare_losses(losses(1.0), losses(1.5))
    better = compare_losses(losses(1.0), losses(0.5))
    good, bad = stored("base", [True] * 60), stored("tuned", [False] * 20 + [True] * 40)
    lost = compare([good, bad])
    kept = compare([good, stored("tuned", [True] * 60)])
    assert sentence(same, kept).startswith("No clear loss of general ability: 1.01")
    assert sentence(worse, kept).startswith("General ability is lower than before: ")
    assert sentence(better, lost).startswith("General ability is lower than before: ")
    assert sentence(better, None).startswith("No loss of general ability: ")
    assert "60 short questions right (-33.3 points" in sentence(None, lost)
    assert sentence(None, None) == ""
    counts = by_kind(good, bad)
    assert counts["copying"] == [10, 0, 10]
    assert sum(n[2] for n in counts.values()) == 60


def test_a_suite_of_ones_own_and_what_is_none(tmp_path):
    own = tmp_path / "own.jsonl"
    rows = [{"text": "A text."}, {"question": "Which?", "choices": ["a", "b"], "answer": "B"}]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = read_suite(own)
    assert (len(suite.texts), len(suite.questions)) == (1, 1)
    own.write_text('{"prompt": "neither"}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:1"):
        read_suite(own)
    own.write_text("\n")
    with pytest.raises(DataError):
        read_suite(own)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl")
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    return tmp_path


COMMON = {
    "dataset": "rows.jsonl", "model": "base", "max_steps": 2, "report_to": "none",
    "log_level": "error", "num_workers": 1, "learning_rate": 0.01,
}  # fmt: skip


def test_a_run_measures_it_and_shows_it(place):
    run = tunesmith.train(**COMMON).run
    found = json.loads((run / "eval" / "general" / "forgetting.json").read_text())
    assert found["loss"]["rows"] == len(read_suite().texts)
    assert found["loss"]["first"] != found["loss"]["second"]
    assert found["comparison"]["pairs"][0]["n"] == len(read_suite().questions)
    assert json.loads((run / "manifest.json").read_text())["forgetting"] == [found["sentence"]]
    page = (run / "report.html").read_text()
    assert "General ability" in page
    assert "loss of general ability" in page or "ability is lower" in page
    # What the suite asks is no score of the task.
    assert "Differences on the same problems" not in page
    assert main(["report", str(run)]) == 0
    assert "General ability" in (run / "report.html").read_text()


def test_losses_that_are_not_finite_are_said_and_an_earlier_finding_goes(place, monkeypatch):
    run = RunDir(place / "run")
    loaded, renderer = open_model(EvalOptions(model="base", device="cpu"))
    config = FineTuningConfig.model_construct(forgetting=True, forgetting_file=None)
    ask_general(loaded, renderer, run, config, "base")
    with torch.no_grad():
        next(loaded.model.parameters()).mul_(math.nan)
    ask_general(loaded, renderer, run, config, "tuned")
    assert compare_general(run) == [NOT_FINITE]
    assert json.loads((run.eval / FOLDER / FOUND).read_text())["loss"] is None
    without = config.model_copy(update={"forgetting": False})
    ask_general(loaded, renderer, run, without, "base")
    assert [*(run.eval / FOLDER).iterdir()] == [run.eval / FOLDER / "tuned"]


def test_a_run_of_its_own_suite_measures_that_one(place):
    Path("own.jsonl").write_text('{"text": "the cat sat on the mat"}\n')
    run = tunesmith.train(**COMMON, forgetting_file="own.jsonl").run
    found = json.loads((run / "eval" / "general" / "forgetting.json").read_text())
    assert (found["loss"]["rows"], found["comparison"]) == (1, None)


def test_no_forgetting_leaves_it_out_and_a_file_for_nothing_is_refused(place):
    run = tunesmith.train(**COMMON, forgetting=False).run
    assert not (run / "eval" / "general").exists()
    assert "General ability" not in (run / "report.html").read_text()
    with pytest.raises(UsageError, match="does nothing"):
        tunesmith.train(**COMMON, forgetting=False, forgetting_file="own.jsonl")
    with pytest.raises(DataError):
        tunesmith.train(**COMMON, forgetting_file="none.jsonl")


def test_the_same_weights_lose_nothing(place):
    run = tunesmith.train(**{**COMMON, "learning_rate": 1e-12}).run
    found = json.loads((run / "eval" / "general" / "forgetting.json").read_text())
    assert found["loss"]["difference"] == pytest.approx(0, abs=1e-6)
    assert found["comparison"]["pairs"][0]["gained"] == 0
    assert found["sentence"].startswith("No clear loss of general ability")
