"""Every graded task of a file, and countdown: trained, evaluated and sampled by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.evaluate.records import load
from tunesmith.tasks.registry import get_task

ROWS = {
    "maths": [
        {"Body": f"There are {n} pens.", "Question": "One more?", "Equation": f"({n}+1)",
         "Answer": n + 1}
        for n in range(24)
    ],
    "choice": [
        {"question": f"Which is {n}?", "A": f"{n}", "B": f"{n + 1}", "answer": "A"}
        for n in range(24)
    ],
    "bbh": {"canary": "", "examples": [
        {"input": f"Is {n} even?\nOptions:\n- Yes\n- No", "target": "No" if n % 2 else "Yes"}
        for n in range(24)
    ]},
    "qa": [{"question": f"{n}?", "answer": f"n{n}", "checker": "contains"} for n in range(24)],
    "countdown": None,
    "humaneval": [
        {"prompt": f"def f{n}(x):\n", "entry_point": f"f{n}", "canonical_solution": "    return x",
         "test": "def check(c):\n    assert c(1) == 1"}
        for n in range(24)
    ],
    "mbpp": [
        {"text": f"Write f{n}.", "code": f"def f{n}(x): return x", "test_list": [f"assert f{n}(1)"]}
        for n in range(24)
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", ROWS)
def test_a_task_trains_evaluates_and_samples(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(get_task(task)), "max_new_tokens", 6)
    tiny_model("llama", max_position_embeddings=1024).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    common = ["--task", task, "--model", "base"]
    if ROWS[task] is not None:
        Path("rows.json").write_text(json.dumps(ROWS[task]))
        common += ["--dataset", "rows.json"]
    if task == "bbh":
        Path("cot-prompts").mkdir()
        Path("cot-prompts/rows.txt").write_text("Q: Is 2 even?\nA: So the answer is Yes.\n")
    train = ["--max-steps", "1", "--eval-questions", "2", "--report-to", "none", "--max-rows", "20"]
    train += ["--eval-samples", "0", "--num-workers", "1", "--run-name", "r", "--max-length", "256"]
    assert main(["train", *common, *train]) == 0
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    assert manifest["finished"]
    asked = Path("runs/r/eval/tuned/attempts.jsonl").read_text().splitlines()
    assert len(asked) == 1 + 2, "rows on one line of a file are questions each"
    few = ["--limit", "2", "--max-new-tokens", "4"]
    assert main(["eval", *common, *few]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 2
    assert main(["sample", *common, *few, "--samples", "1", "--output", "s.jsonl"]) == 0
    if task in ("choice", "bbh"):
        scored = ["--limit", "2", "--choice-by", "likelihood"]
        assert main(["eval", *common, *scored]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (found["n"], found["chance"], found["stops"]) == (2, 0.5, {"scored": 2})


def test_sampling_reads_questions_as_evaluation_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("Frage;Antwort\nWas ist 2+2?;4\nWas ist 3+3?;6\n")
    asked = ["sample", "--task", "qa", "--dataset", "q.csv", "--prompt", "direct", "--samples", "1"]
    asked += ["--max-new-tokens", "4", "--output", "s.jsonl", "--checker", "number"]
    assert main(asked) == 3
    assert "no question (fields: Frage, Antwort)" in capsys.readouterr().err
    assert main([*asked, "--columns", "question=Frage,answer=Antwort"]) == 0
    assert len(load("s.jsonl.attempts.jsonl").attempts) == 2
    assert main(["sample", "--checker", "number", "--output", "u.jsonl"]) == 2
    assert "--checker does nothing for the task 'units'" in capsys.readouterr().err
