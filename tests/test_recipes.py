"""The shipped recipes of techniques, each carried out in small on the built-in model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunesmith.models.load import resolve_model
from tunesmith.workflows.recipe import run

RECIPES = Path(__file__).parent.parent / "recipes"
ASK = ["eval.limit=2", "eval.max_new_tokens=60"]
ROUNDS = ["sample.limit=8", "sample.samples=2", "train.max_steps=1", "train.report_to=none"]
ROUNDS += ["eval.limit=2", "eval.max_new_tokens=40", "train.validation_split=0"]
SAMPLE = ["sample.limit=8", "sample.samples=2"]
TRAIN = ["train.max_steps=1", "train.report_to=none", "train.validation_split=0"]

GRPO = ["grpo.limit=4", "grpo.max_steps=1", "grpo.questions_per_step=2", "grpo.samples=2"]
GRPO += ["grpo.max_new_tokens=20"]
GSM8K = ["rft.dataset=gsm8k", "eval.dataset=gsm8k"]
TASK = ["eval.limit=4", "eval.max_new_tokens=20", "train.max_steps=1", "train.report_to=none"]


def inside(stage: str) -> list[str]:
    return [f"{stage}.{one}" for one in ROUNDS]


SMALL = {
    "units-rft-rounds": [*ASK, *inside("rft"), "rft.rounds=2", "rft-votes.samples=2"],
    "units-star": [*ASK, *inside("star"), "star.rounds=2", "star.sample.max_new_tokens=60"],
    "units-grpo": [*ASK, *SAMPLE, *TRAIN, *GRPO],
    "distil": [*ASK, *SAMPLE, *TRAIN, "paths.model=./teacher", "teacher-test.model=./teacher"],
    "maths-rft": [*ASK, *inside("rft"), "rft.sample.max_new_tokens=8", "rft.rounds=1", *GSM8K],
    "units-socratic": ASK,
    **dict.fromkeys(("chat", "code", "instruct", "domain", "socratic"), TASK),
    "raft-baselines": [*TRAIN, "eval.limit=2", "eval.max_new_tokens=8"],
}


QUICK = ("units-socratic", "units-grpo", "instruct")
"""Recipes that the default set runs; the others are for the nightly one."""


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL],
)
def test_a_shipped_recipe_runs_to_its_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve_model("tunesmith/tiny").path, "teacher")
    Path("gsm8k").mkdir()
    for split, numbers in (("train", range(8)), ("dev", range(8, 10)), ("test", range(10, 12))):
        rows = (
            {"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"}
            for n in numbers
        )
        Path(f"gsm8k/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = run(RECIPES / f"{name}.yaml", SMALL[name], output_dir="out")
    assert all(record.ran for record in records)
    page = (Path("out") / name / "report.html").read_text()
    compared = json.loads((Path("out") / name / "compare" / "comparison.json").read_text())
    assert len(compared["summaries"]) >= 2
    assert all(name in page for name in compared["summaries"])
    if name == "distil":
        told = {r.stage.name: json.loads((r.folder / "stage.json").read_text()) for r in records}
        assert told["paths"]["inputs"]["settings"]["model"] == "./teacher"
        header = (Path("out/distil/paths") / "rows.jsonl.attempts.jsonl").read_text().split("\n")[0]
        assert json.loads(header)["r"]["model"] == "teacher"
