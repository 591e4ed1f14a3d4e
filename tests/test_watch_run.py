"""A run that is watched: its files, its page, its samples and what it says on the terminal."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from test_methods import in_a_folder, train  # noqa: F401
from tunesmith.cli import main
from tunesmith.errors import DivergedError, UsageError
from tunesmith.rundir import CONTENTS, RunDir
from tunesmith.tasks import units_questions as questions
from tunesmith.train.batches import epoch_order
from tunesmith.workflows import console, live_report
from tunesmith.workflows import train as workflow
from tunesmith.workflows.samples import Samples

pytestmark = pytest.mark.usefixtures("in_a_folder")
WHOLE_SAMPLES = True
GARBAGE = "~q}{ |^# @~ zzxqj ~~ ^^"


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in found if record["kind"] == kind]


def weights(run: Path) -> dict[str, torch.Tensor]:
    [file] = (run / "final_model").glob("*.safetensors")
    return load_file(file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


def sums(count: int, odd: int | None = None, answer: str = GARBAGE) -> None:
    rows = [{"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(count)]
    if odd is not None:
        rows[odd]["completion"] = answer
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- numbers


def test_accuracy_memory_and_samples_are_in_the_files() -> None:
    run = train(eval_steps=2, max_steps=4, logging_steps=1, report_to="tensorboard")
    steps = records(run, "train")
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    for record in steps:
        assert 0 <= record["accuracy"] <= 1
        assert record["peak_bytes"] > 1e6
        assert "gpu_percent" not in record  # nothing is told where there is no GPU
    assert [record["step"] for record in records(run, "eval")] == [2, 4]
    assert all(0 <= record["accuracy"] <= 1 for record in records(run, "eval"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/accuracy", "train/peak_bytes", "eval/accuracy"} <= tags
    assert [one.step for one in events.Scalars("train/accuracy")] == [1, 2, 3, 4]
    assert [one.step for one in events.Scalars("eval/loss")] == [2, 4]
    page = (run / "report.html").read_text()
    for text in ("tokens right (%)", "Answers on the way", "most memory held"):
        assert text in page
    made = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert made <= set(CONTENTS)  # so that --overwrite removes all of it


# --- rows


def test_the_ledger_of_a_stopped_and_resumed_run_is_that_of_a_straight_one() -> None:
    common = {"max_steps": 6, "save_steps": 3, "eval_steps": 2, "logging_steps": 1}
    straight = train(**common, run_name="straight")
    stopped = shutil.copytree(straight, straight.with_name("stopped"))
    shutil.rmtree(stopped / "final_model")
    (stopped / "checkpoints" / "checkpoint-step-6" / "model.safetensors").write_bytes(b"torn")
    (stopped / "row_losses.safetensors").unlink()
    (stopped / "samples.jsonl").unlink()
    resumed = train(**common, run_name="stopped", resume="auto")
    assert equal(weights(straight), weights(resumed))
    for name in ("row_losses.safetensors", "rows.json", "samples.jsonl"):
        assert (straight / name).read_bytes() == (resumed / name).read_bytes(), name
    for kind in ("train", "eval"):
        kept = [[r["step"], r["loss"], r["accuracy"]] for r in records(resumed, kind)]
        assert kept == [[r["step"], r["loss"], r["accuracy"]] for r in records(straight, kind)]
    ledger = load_file(straight / "row_losses.safetensors")
    steps = records(straight, "train")
    sizes = [8, 8, 6] * 2  # 22 rows are trained on, in steps of 8
    assert ledger["step"].tolist() == [n for n, size in enumerate(sizes, 1) for _ in range(size)]
    assert len(steps) == 6


@pytest.mark.slow
def test_planted_wrong_labels_are_found_far_better_than_chance(tiny: Path) -> None:
    rng = random.Random(11)
    told = []
    for _ in range(72):
        number, conversion = questions.draw(rng, "train")
        asked = questions.question(number, conversion, questions.WORDINGS[0])
        told.append([asked, questions.worked(number, conversion)])
    wrong = sorted(rng.sample(range(72), 6))
    answers = [told[at][1].split("<answer>")[1] for at in wrong]
    for at, other in zip(wrong, answers[1:] + answers[:1], strict=True):
        told[at][1] = told[at][1].split("<answer>")[0] + "<answer>" + other
    rows = [{"prompt": asked, "completion": answer} for asked, answer in told]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(
        model=str(tiny), num_epochs=2, max_steps=None, validation_split=0, lora=True,
        learning_rate=3e-3, per_device_train_batch_size=12, gradient_accumulation_steps=1,
    )  # fmt: skip
    content = json.loads((run / "rows.json").read_text())
    found = [row["origin"] for row in content["suspect label"]["rows"]]
    hits = {f"rows.jsonl:{at + 1}" for at in wrong} & set(found)
    assert len(hits) >= 3
    assert len(hits) / len(found) >= 0.5  # chance is a twelfth
    for row in content["suspect label"]["rows"]:
        assert len(row["losses"]) == 2
        assert row["deviations"] > content["limits"]["deviations"]
    assert hits.pop() in (run / "report.html").read_text()


# --- spikes


def planted(step: int, rows: int = 96, size: int = 4) -> int:
    """Return the row that is trained in this step of the first epoch."""
    return epoch_order(rows, 42, 0)[size * (step - 1)]


def test_a_spike_names_its_row_and_its_worst_tokens(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = planted(22)
    sums(96, odd)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    settings |= {"validation_split": 0, "max_steps": 24, "learning_rate": 0.003}
    settings |= {"model": str(tiny), "lora": True}
    run = train(**settings, log_level="warning")
    [spike] = records(run, "spike")
    assert spike["step"] == 22
    assert spike["rows"][0]["origin"] == f"rows.jsonl:{odd + 1}"
    assert all(token["text"] for token in spike["rows"][0]["tokens"])
    assert spike["loss"] > spike["usual"]
    said = capsys.readouterr().err
    assert "warning: Step 22: loss" in said
    assert f"rows.jsonl:{odd + 1}: loss" in said
    assert "Loss spikes" in (run / "report.html").read_text()
    sums(96)
    assert records(train(**settings, run_name="clean"), "spike") == []


# --- samples


def test_samples_leave_the_training_untouched() -> None:
    common = {"eval_steps": 1, "max_steps": 5, "lora": True, "lora_dropout": 0.3}
    runs = [train(**common, eval_samples=n, run_name=f"s{n}") for n in (0, 3)]
    assert equal(weights(runs[0]), weights(runs[1]))
    assert not (runs[0] / "samples.jsonl").exists()
    lines = [json.loads(line) for line in (runs[1] / "samples.jsonl").read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == [0, 1, 2, 3, 4, 5]
    held = len({line["origin"] for line in lines})
    assert held == 2  # all that are held out here
    assert len(lines) == 6 * held
    for line in lines:
        assert re.fullmatch(r"What is \d+ \+ 1\?", line["prompt"])
        assert line["reference"].startswith("It is ")
    first, last = lines[0], lines[-held]
    assert first["origin"] == last["origin"]
    page = (runs[1] / "report.html").read_text()
    assert page.index("step 0</dt>") < page.index("step 5</dt>")


def test_the_last_sample_is_what_the_saved_model_says() -> None:
    run = train(max_steps=4)
    last = json.loads((run / "samples.jsonl").read_text().splitlines()[-1])
    import tunesmith

    assert last["step"] == 4
    [said] = tunesmith.generate(last["prompt"], model=str(run), max_new_tokens=64)
    assert said == last["answer"]


def test_plain_text_is_gone_on_from() -> None:
    Path("tales.txt").write_text("\n<|endoftext|>\n".join(f"Once {n} cats sat." for n in range(20)))
    run = train(task="domain", dataset="tales.txt")
    line = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert re.search(r"Once \d+ cats sat\.", line["prompt"] + line["reference"])


def test_a_failing_sample_is_said_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.generate.engine import Engine

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "run", fail)
    run = train(eval_steps=1, log_level="warning")
    assert (run / "final_model").is_dir()
    assert capsys.readouterr().err.count("no samples are taken in this run: RuntimeError") == 1


def test_samples_without_held_out_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="holds no rows out"):
        train(validation_split=0, eval_samples=2)
    assert not (train(validation_split=0) / "samples.jsonl").exists()


# --- the page


def pages(monkeypatch: pytest.MonkeyPatch, every: float) -> list[str]:
    """Return a list that fills with every page that a run writes."""
    from tunesmith.workflows import report

    found: list[str] = []
    write = report.write_report

    def keep(folder: Path, *given: Any, **more: Any) -> Path:
        path = write(folder, *given, **more)
        found.append(path.read_text())
        return path

    monkeypatch.setattr(report, "write_report", keep)
    monkeypatch.setattr(live_report, "EVERY_S", every)
    monkeypatch.setattr(live_report, "SHARE", 1e9)
    return found


REFRESH = re.compile(r'<meta http-equiv="refresh" content="\d+">')


def test_the_page_is_there_while_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pages(monkeypatch, 0.0)
    train(max_steps=5, eval_steps=2, logging_steps=1)
    assert "Running, step 2 of 5." in found[0]
    assert "Running, step 4 of 5." in "".join(found)
    assert all(REFRESH.search(page) for page in found[:-1])
    assert all("<polyline" in page and "<script" not in page for page in found)
    assert "Running" not in found[-1]
    assert not REFRESH.search(found[-1])
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert all(policy in page for page in found)


def test_the_page_is_not_written_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pages(monkeypatch, 3600.0)
    train(max_steps=3, eval_steps=1, save_steps=1)
    assert len(found) == 2  # the first milestone, and the end


def test_without_an_evaluation_the_first_checkpoint_makes_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = pages(monkeypatch, 0.0)
    train(max_steps=4, save_steps=3, eval_strategy="no", validation_split=0)
    assert "Running, step 3 of 4." in found[0]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (DivergedError("Loss is <nan>."), "Failed after step 2 of 4"),
        (KeyboardInterrupt(), "Stopped after step 2 of 4"),
    ],
)
def test_the_page_of_a_run_that_failed_says_so(
    failure: BaseException, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = workflow.LiveReport.step
    calls: list[int] = []

    def fail(self: Any) -> None:
        step(self)
        calls.append(1)
        if len(calls) == 3:
            raise failure

    monkeypatch.setattr(workflow.LiveReport, "step", fail)
    with pytest.raises(type(failure)):
        train(max_steps=4, eval_steps=1)
    page = Path("runs/r/report.html").read_text()
    assert said in page
    assert not REFRESH.search(page)


# --- the terminal


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_each_log_level_shows_what_it_promises(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(max_steps=2, warmup_steps=2, log_level=level)
    said = capsys.readouterr().err
    shown = [
        "step 1: loss" in said,
        "held-out loss" in said,
        "warning: 2 warm-up steps" in said,
    ]
    assert (
        shown
        == {
            "debug": [True, True, True],
            "info": [False, True, True],
            "warning": [False, False, True],
            "error": [False, False, False],
        }[level]
    )
    assert main(["train", "--dataset", "none.jsonl", "--log-level", level]) != 0
    assert "error: " in capsys.readouterr().err


def test_only_warnings_are_shown_of_warning(capsys: pytest.CaptureFixture[str]) -> None:
    train(max_steps=2, warmup_steps=2, log_level="error")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_fits_the_terminal_and_tells_the_time_left(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(console, "_console", terminal)
    note = "loss 12.35, 100% right, 123k tokens/s, 140 GB"
    with console.bar("training", 12000, 400) as bar:
        assert bar._progress is not None
        for _ in range(3):
            bar.advance(100, note=note)
        line = "".join(s.text for s in terminal.render(bar._progress.get_renderable()))
    assert len(line.rstrip("\n")) <= width
    assert note in line
    assert "700/12000" in line
    assert re.search(r"\d\d:\d\d", line)


def test_lines_without_a_terminal_tell_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.bar("training", 100, 20) as bar:
        clock[0] = 20.0
        bar.advance(10, note="loss 1.000")
    assert "training: 30/100, 2:20 left, loss 1.000" in capsys.readouterr().err
    assert [console.clock(s) for s in (7, 723, 3909)] == ["0:07", "12:03", "1:05:09"]


def test_a_run_knows_its_own_files() -> None:
    run = RunDir("x")
    for path in (run.samples, run.row_losses, run.rows):
        assert path.name in CONTENTS
    assert Samples is workflow.Samples
