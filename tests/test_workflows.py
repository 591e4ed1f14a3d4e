"""The real command, end to end, on the built-in model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.cli import main
from tunesmith.types import Segment
from tunesmith.workflows.recipe import run

QUICK = ["--eval-questions", "0", "--report-to", "none", "--log-level", "warning"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_rows(path: str, count: int = 24) -> None:
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(count))
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def weights(run_folder: str) -> dict[str, torch.Tensor]:
    folder = Path("runs") / run_folder / "final_model"
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def test_lora_run_leaves_everything_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows("rows.jsonl")
    command = ["train", "--task", "instruct", "--dataset", "rows.jsonl", "--lora"]
    assert main([*command, "--max-steps", "4", "--save-steps", "2", "--eval-steps", "2"]) == 0
    folder = Path("runs/instruct_rows")
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "report.html", "tensorboard"):
        assert (folder / name).exists(), name
    for name in ("adapter_model.safetensors", "tokenizer.json", "README.md"):
        assert (folder / "final_model" / name).is_file(), name
    assert (folder / "best_model").is_dir()
    assert (folder / "checkpoints" / "checkpoint-step-4").is_dir()
    assert json.loads((folder / "manifest.json").read_text())["finished"]
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(
        json.loads((folder / "final_model" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
    )
    PeftModel.from_pretrained(base, folder / "final_model")
    assert AutoTokenizer.from_pretrained(folder / "final_model").chat_template
    assert main(["generate", "--model", "runs", "What is 1 + 1?", "--max-new-tokens", "8"]) == 0
    assert "held out" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    "method",
    [
        [],
        ["--lora", "--lora-dropout", "0.2"],
        pytest.param(["--freeze-ratio", "0.5"], marks=pytest.mark.slow),
        pytest.param(["--lora", "--gradient-checkpointing"], marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_uninterrupted(method: list[str]) -> None:
    write_rows("rows.jsonl")
    common = ["train", "--task", "instruct", "--dataset", "rows.jsonl", *method, *QUICK]
    common += ["--max-steps", "6", "--save-steps", "3", "--learning-rate", "0.001"]
    assert main([*common, "--run-name", "straight"]) == 0
    if method:
        shutil.copytree("runs/straight", "runs/stopped")
    else:  # which begins with the same bits, too
        assert main([*common, "--run-name", "stopped"]) == 0
    shutil.rmtree("runs/stopped/final_model")
    whole = Path("runs/stopped/checkpoints")
    (whole / "checkpoint-step-6" / "model.safetensors").write_bytes(b"torn")
    assert main([*common, "--run-name", "stopped", "--resume"]) == 0
    straight, resumed = weights("straight"), weights("stopped")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_full_run_loads_with_plain_transformers() -> None:
    from transformers import AutoModelForCausalLM

    Path("tales.txt").write_text("\n<|endoftext|>\n".join(f"Once {n} cats sat." for n in range(20)))
    command = ["train", "--task", "domain", "--dataset", "tales.txt", "--max-steps", "3"]
    assert main([*command, *QUICK]) == 0
    AutoModelForCausalLM.from_pretrained("runs/domain_tales/final_model")


def test_an_existing_run_is_not_written_into() -> None:
    write_rows("rows.jsonl")
    command = ["train", "--dataset", "rows.jsonl", "--max-steps", "1", *QUICK]
    assert main(command) == 0
    assert main(command) == 0
    assert Path("runs/instruct_rows-2/final_model").is_dir()


def test_eval_goes_on_where_it_was_stopped() -> None:
    command = ["eval", "--limit", "6", "--name", "a", "--log-level", "warning"]
    assert main(command) == 0
    log = Path("runs/a/attempts.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert main(command) == 0
    assert sorted(log.read_bytes().splitlines()) == sorted(b"".join(lines).splitlines())
    assert main([*command, "--prompt", "cot"]) != 0


def test_sample_counts_everything_and_trains() -> None:
    command = ["sample", "--limit", "12", "--samples", "4", "--output", "rows.jsonl"]
    assert main([*command, "--log-level", "warning"]) == 0
    attempts = Path("rows.jsonl.attempts.jsonl").read_bytes().splitlines()
    assert len(attempts) == 1 + 48
    before = Path("rows.jsonl").read_bytes()
    assert main([*command, "--log-level", "warning"]) == 0
    assert Path("rows.jsonl").read_bytes() == before
    assert len(before.splitlines()) >= 2
    assert (
        main(["train", "--task", "units", "--dataset", "rows.jsonl", "--max-steps", "1", *QUICK])
        == 0
    )
    shutil.copy("rows.jsonl.attempts.jsonl", "rows.json.attempts.jsonl")
    assert main([*command[:-1], "rows.json", "--log-level", "warning"]) == 0
    question, answer, reasoning = json.loads(Path("rows.json").read_text())[0]
    assert question.endswith(("?", "."))
    assert isinstance(answer, float)
    assert "<answer>" in reasoning


RECIPE = """
name: small
stages:
  - eval: {name: base, task: units, limit: 5, max_new_tokens: 24}
  - sample: {name: paths, task: units, limit: 10, samples: 4}
  - train: {name: rft, task: units, data: [paths], lora: {rank: 4}, max_steps: 2, eval_questions: 0}
  - eval: {name: tuned, model: rft, task: units, limit: 5, max_new_tokens: 24}
  - compare: {of: [base, tuned]}
  - report: {}
"""


def test_a_recipe_runs_once_and_again_only_where_it_changed() -> None:
    Path("small.yaml").write_text(RECIPE)
    first = run("small.yaml", output_dir="runs")
    assert all(record.ran for record in first)
    assert Path("runs/small/report.html").is_file()
    assert not any(record.ran for record in run("small.yaml", output_dir="runs"))
    changed = run("small.yaml", ["rft.max_steps=3"], output_dir="runs")
    assert [record.stage.name for record in changed if record.ran] == [
        "rft",
        "tuned",
        "compare",
        "report",
    ]


def test_data_show_marks_what_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows("rows.jsonl", 2)
    assert main(["data", "show", "rows.jsonl", "--color", "never"]) == 0
    shown = capsys.readouterr().out
    assert "⟦It is 1.<|end|>⟧" in shown
    assert "What is 0 + 1?<|end|>" in shown
    assert main(["data", "show", "rows.jsonl", "--color", "always"]) == 0
    assert "\x1b[" in capsys.readouterr().out


def test_data_show_fails_where_every_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows("rows.jsonl", 2)
    assert main(["data", "show", "rows.jsonl", "--max-length", "8"]) == 3
    assert capsys.readouterr().out.count("refused, ") == 2


def no_tokenizer() -> None:
    from transformers import AutoModelForCausalLM

    import tunesmith

    tiny = Path(tunesmith.__file__).parent / "assets" / "tiny"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained("bare")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--dataset", "none.jsonl"], "no file 'none.jsonl'"),
        (["train", "--dataset", "empty.jsonl"], "is empty"),
        (["train", "--dataset", "broken.jsonl"], "broken.jsonl:2: not valid JSON"),
        (["train", "--dataset", "odd.jsonl"], "--columns"),
        (["train", "--learning-rat", "1"], "did you mean --learning-rate"),
        (["train", "--config", "quick_tst"], "quick_test"),
        (["train", "--dataset", "rows.jsonl", "--model", "bare"], "no tokenizer"),
        (["train", "--dataset", "rows.jsonl", "--model", "./nowhere"], "no model './nowhere'"),
        (["train", "--task", "chat"], "--dataset is missing"),
        (["train", "--dataset", "rows.jsonl", "--max-length", "9999"], "2048"),
        (["train", "--dataset", "rows.jsonl", "--max-length", "10"], "cannot be trained on"),
        (["train", "--dataset", "rows.jsonl", "--lora", "--lora-target-modules", "wq"], "q_proj"),
        (["train", "--dataset", "rows.jsonl", "--resume"], "There is no run"),
        (["eval", "--task", "chat"], "no rows of its own"),
        (["sample", "--task", "chat", "--output", "o.jsonl"], "cannot be graded"),
        (["eval", "--prompt", "loud"], "no prompt style"),
        (["sample", "--output", "rows.txt"], ".jsonl"),
        (["run", "none.yaml"], "no recipe"),
        (["report", "nowhere"], "no folder"),
        (["trian"], "did you mean 'train'"),
    ],
)
def test_mistakes_are_answered_in_sentences(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows("rows.jsonl", 4)
    Path("empty.jsonl").touch()
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    Path("odd.jsonl").write_text('{"frage": "a", "antwort": "b"}\n')
    if "bare" in command:
        no_tokenizer()
    assert main(command) not in (0, 70)
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured
    assert not list(Path().rglob("final_model"))


def test_python_interface() -> None:
    import tunesmith
    from tunesmith.workflows.voices import began_with

    write_rows("rows.jsonl", 8)
    config = tunesmith.FineTuningConfig(dataset=["rows.jsonl"], max_steps=1, eval_questions=0)
    result = tunesmith.train(config, log_level="warning")
    assert result.steps == 1
    assert tunesmith.load(str(result.run)).tokenizer is not None
    assert len(tunesmith.generate("Hello!", model=str(result.run), max_new_tokens=4)) == 1
    assert began_with(str(result.run / "final_model")) == "tunesmith/tiny"
    assert json.loads((result.run / "manifest.json").read_text())["base"] == "tunesmith/tiny"
    scores = tunesmith.evaluate(task="units", limit=3, log_level="warning")
    assert scores.summary.n == 3


def test_a_system_message_goes_in_front_and_into_the_fingerprint() -> None:
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.generate.requests import Sampling
    from tunesmith.tasks.units import UnitsTask

    task = UnitsTask()
    problems = task.problems("test", limit=2)
    plain = Plan(task, problems, "cot", Sampling(8), 1, 0)
    told = Plan(task, problems, "cot", Sampling(8), 1, 0, "Take care.")
    assert told.messages(problems[0])[0] == Segment("system", "Take care.")
    asked = [s for s in plain.messages(problems[0]) if s.role != "system"]
    assert list(told.messages(problems[0])[1:]) == asked
    assert plain.fingerprint() != told.fingerprint()


def test_eval_with_a_system_message_starts_a_log_of_its_own() -> None:
    command = ["eval", "--limit", "2", "--name", "told", "--max-new-tokens", "4"]
    assert main([*command, "--system", "Take care."]) == 0
    assert main([*command, "--system", "Take care."]) == 0
    assert main(command) == 7


def test_data_show_shows_thinking_as_it_would_be_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"prompt": "What is 1 + 1?", "completion": "<think>Let me see.</think>It is 2."}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    words = ["data", "show", "rows.jsonl", "--color", "never"]
    for mode, shown in (
        ("keep", "⟦<think>Let me see.</think>It is 2.<|end|>⟧"),
        ("strip", "⟦It is 2.<|end|>⟧"),
        ("mask", "<think>Let me see.</think>⟦It is 2.<|end|>⟧"),
    ):
        assert main([*words, "--thinking", mode]) == 0
        assert shown in capsys.readouterr().out
    write_rows("rows.jsonl", 2)
    assert main([*words, "--thinking", "strip"]) == 0
    assert "--thinking strip does nothing" in capsys.readouterr().err
