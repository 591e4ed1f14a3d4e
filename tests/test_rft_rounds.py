"""The recipe stage ``rft``: rounds of sampling and training the base, scored on held-out ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith.workflows.evaluate as evaluating
import tunesmith.workflows.sample as sampling
import tunesmith.workflows.train as training
from tunesmith.data.select import Rule, pool, select
from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.units import UnitsTask
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict
from tunesmith.workflows.recipe import StageRecord, check_references, run
from tunesmith.workflows.recipe_file import load_recipe

TASK = UnitsTask()
TEN = Problem("p", "units", (Segment("user", "What is ten?"),), "10")
RECIPE = """
name: r
stages:
  - rft:
      name: rft
      rounds: 2
      sample: {limit: 10, samples: 3}
      later: {temperature: 0.9}
      train: {lora: {rank: 4}, max_steps: 1, report_to: none, validation_split: 0}
      eval: {limit: 2, max_new_tokens: 4}
"""


class Killed(BaseException):
    """Nothing catches it, like a kill."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    return "r.yaml"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what was done with which model, in order."""
    made: list[tuple[str, str]] = []
    sample, train, evaluate = sampling.sample, training.run_training, evaluating.evaluate
    monkeypatch.setattr(
        sampling, "sample", lambda o: (made.append(("sample", o.model)), sample(o))[1]
    )
    monkeypatch.setattr(
        training,
        "run_training",
        lambda r: (made.append(("train", r.options.model)), train(r))[1],
    )
    monkeypatch.setattr(
        evaluating, "evaluate", lambda o: (made.append(("eval", o.model)), evaluate(o))[1]
    )
    return made


def weights(record: StageRecord) -> dict[str, torch.Tensor]:
    return load_file(record.output / "adapter_model.safetensors")


def grade_by_round(scores: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every held-out answer of a round score this."""
    evaluate = evaluating.evaluate

    def graded(options: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            verdict = Verdict(scores[options.name], "1", "by the round")
            inner.setattr(UnitsTask, "grade", lambda *_: verdict)
            return evaluate(options)

    monkeypatch.setattr(evaluating, "evaluate", graded)


# --- pooling


def path(text: str, index: int, *, hinted: bool = False) -> Attempt:
    text = f"{text}\n<answer>10</answer>"
    return Attempt("p", index, index, text, (1,), StopReason.STOP_TOKEN, None, hinted)


def test_rules_of_selection_hold_over_all_rounds() -> None:
    first = [path("5 + 5 = 10", 0), path("4 + 6 = 10", 1)]
    second = [path("5+5 = 10", 0), path("3 + 7 = 10", 3)]
    both = pool([first, second, []])
    assert [a.index for a in both.attempts] == [0, 1, 2, 5]
    assert [both.place(index) for index in (0, 1, 2, 5)] == [(1, 0), (1, 1), (2, 0), (2, 3)]
    chosen = select({"p": TEN}, both.attempts, TASK, Rule(4))
    assert len(chosen.kept) == 3
    assert chosen.discards == {"the same path again": 1}
    assert len(select({"p": TEN}, both.attempts, TASK, Rule(2)).kept) == 2


def test_a_hinted_path_gives_way_to_one_that_another_round_found() -> None:
    both = pool([[path("5 + 5 = 10", 0, hinted=True)], [path("4 + 6 = 10", 0)]])
    [one] = select({"p": TEN}, both.attempts, TASK, Rule()).kept
    assert one.attempt is not None
    assert both.place(one.attempt.index) == (2, 0)


# --- the stage


def test_each_round_samples_with_the_last_model_and_trains_the_base(
    recipe: str, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grade_by_round({"round-1": 0.0, "round-2": 1.0}, monkeypatch)
    [record] = run(recipe, output_dir="out")
    folder = Path("out/r/rft")
    models = [str(folder / f"round-{n}" / "model" / "final_model") for n in (1, 2)]
    base = "tunesmith/tiny"
    wanted = [("sample", base), ("train", base), ("eval", models[0])]
    wanted += [("sample", models[0]), ("train", base), ("eval", models[1])]
    assert calls == wanted
    assert str(record.output) == models[1]
    told = json.loads((folder / "rounds.json").read_text())
    assert told["best"] == 2
    assert "95% interval" in told["sentences"][0]
    heads = [
        json.loads(
            (folder / f"round-{n}" / "paths.jsonl.attempts.jsonl").read_text().split("\n")[0]
        )
        for n in (1, 2)
    ]
    assert [head["r"]["seed"] for head in heads] == [0, 1]
    assert [head["r"]["details"]["temperature"] for head in heads] == [0.7, 0.9]
    rows = [json.loads(line) for line in (folder / "round-2/rows.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows} == {1, 2}
    # Finished, it is not run again; a changed part of it says so.
    assert [one.ran for one in run(recipe, output_dir="out")] == [False]
    assert len(calls) == 6


@pytest.mark.slow
def test_a_fall_ends_the_rounds_and_the_best_model_is_kept(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grade_by_round({"round-1": 1.0, "round-2": 0.0, "round-3": 1.0}, monkeypatch)
    [record] = run(recipe, ["rft.rounds=3"], output_dir="out")
    assert "round-1" in str(record.output)
    assert not Path("out/r/rft/round-3").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "round 1 is kept. " in said
    assert "95% interval" in said


@pytest.mark.slow
def test_killed_between_rounds_it_goes_on_to_the_same_model(
    recipe: str, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grade_by_round({"round-1": 0.0, "round-2": 1.0}, monkeypatch)
    [whole] = run(recipe, output_dir="whole")
    calls.clear()
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(sampling, "sample", killing(sampling.sample, 2))
        with pytest.raises(Killed):
            run(recipe, output_dir="out")
    assert [what for what, _ in calls] == ["sample", "train", "eval"]
    calls.clear()
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(evaluating, "evaluate", killing(evaluating.evaluate, 1))
        with pytest.raises(Killed):
            run(recipe, output_dir="out")
    assert [what for what, _ in calls] == ["sample", "train"]
    calls.clear()
    [again] = run(recipe, output_dir="out")
    assert [what for what, _ in calls] == ["eval"]
    one, other = weights(whole), weights(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def killing(act: Any, call: int) -> Any:
    """Return a function that is killed at its ``call``-th call."""
    left = [call]

    def maybe(*given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return act(*given)

    return maybe


@pytest.mark.slow
def test_a_round_without_a_new_path_trains_nothing(
    recipe: str, calls: list[tuple[str, str]]
) -> None:
    # Greedy answers verify what they did before, by a model that one step has hardly changed.
    greedy = ["rft.sample.temperature=0", "rft.sample.samples=1", "rft.later={}"]
    [record] = run(recipe, [*greedy, "rft.train.learning_rate=1.0e-12"], output_dir="out")
    assert [what for what, _ in calls] == ["sample", "train", "eval", "sample"]
    assert "round-1" in str(record.output)
    assert "adds no path" in json.loads(Path("out/r/rft/rounds.json").read_text())["sentences"][0]


def test_nothing_verified_is_a_sentence(recipe: str) -> None:
    with pytest.raises(DataError, match="No path was verified in 1 round"):
        run(recipe, ["rft.sample.max_new_tokens=2"], output_dir="out")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rft.eval.split=test", "would decide which round is kept"),
        ("rft.sample.split=dev", "learnt from"),
        ("rft.train.model=x", "train: model is not set there"),
        ("rft.sample.max_paths=3", "sample: max_paths is not set there; .* in select"),
        ("rft.sample.address=http://a/v1", "sample: address is not .* which no server has"),
        ("rft.select.samples=3", "says nothing of the selection"),
        ("rft.later.limit=3", "the same questions"),
        ("rft.rouns=3", "did you mean 'rounds'"),
        ("rft.train.lorra=true", "did you mean 'lora'"),
    ],
)
def test_faults_are_found_before_anything_is_run(recipe: str, override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_references(load_recipe(Path(recipe), [override]))


def test_held_out_questions_that_are_learnt_from_are_refused(recipe: str) -> None:
    rows = ({"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(9))
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="are among those to learn from"):
        run(recipe, ["rft.task=maths", "rft.dataset=rows.jsonl"], output_dir="out")
