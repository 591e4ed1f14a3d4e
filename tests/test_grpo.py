"""``tunesmith grpo``, end to end on a tiny model: it learns, stops, and resumes to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema_grpo import GrpoOptions
from tunesmith.errors import DivergedError, Interrupted, OutOfMemoryError, UsageError
from tunesmith.tasks.units import UnitsTask
from tunesmith.train import policy_step
from tunesmith.types import Attempt, Problem, StopReason, Verdict
from tunesmith.workflows.recipe import run as run_recipe
from tunesmith.workflows.rollouts import drawn

SMALL: dict[str, Any] = {
    "model": "base",
    "limit": 6,
    "questions_per_step": 2,
    "samples": 4,
    "max_new_tokens": 6,
    "max_steps": 3,
    "eval_questions": 0,
    "learning_rate": 0.003,
    "log_level": "warning",
}


def taught(_: Any, problem: Problem, text: str) -> Verdict:
    """Reward what a random model does now and then: to write two plain letters."""
    del problem
    letters = sum(char.isascii() and char.isalpha() for char in text)
    return Verdict(float(letters >= 2), text, f"{letters} letters")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "base")
    monkeypatch.setattr(UnitsTask, "verify", taught)


def learn(name: str = "run", **settings: Any) -> Path:
    return tunesmith.grpo(**{**SMALL, "run_name": name, **settings}).run


def final(run: Path) -> dict[str, torch.Tensor]:
    [file] = (run / "final_model").glob("*.safetensors")
    return load_file(file)


def same(one: Path, other: Path) -> bool:
    """Say whether two runs ended with the same bits."""
    first, second = final(one), final(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())


def records(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics without what the machine decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if key != "tokens_per_s"} for line in lines]


def test_a_run_leaves_everything_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "base", "--limit", "6", "--questions-per-step", "2", "--samples", "4"]
    common += ["--max-new-tokens", "6", "--max-steps", "3", "--save-steps", "2"]
    assert main(["grpo", *common, "--lora", "--eval-questions", "4"]) == 0
    run = Path("runs/units_grpo")
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "report.html"):
        assert (run / name).is_file(), name
    assert (run / "final_model" / "adapter_model.safetensors").is_file()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "checkpoint-step-2",
        "checkpoint-step-3",
    ]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["steps"] == 3
    page = (run / "report.html").read_text()
    assert "loss of the policy" in page
    assert "nats per token" not in page
    card = (run / "final_model" / "README.md").read_text()
    assert "base and tuned" in card
    assert "The mean reward was" in card
    assert "None of the 4 held-out questions" in card
    wanted = {"reward", "no_signal", "kl", "clipped", "entropy", "answer_tokens", "grad_norm"}
    assert all(wanted | {"loss", "lr", "cut"} <= line.keys() for line in records(run))
    assert main(["eval", "--model", str(run), "--limit", "2", "--max-new-tokens", "4"]) == 0
    assert "No clear difference" in capsys.readouterr().err


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_the_reward_rises(kl: float) -> None:
    lines = records(
        learn(max_steps=30, limit=8, questions_per_step=4, samples=8, learning_rate=0.01, kl=kl)
    )
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.75
    assert all((line["kl"] > 0) is (kl > 0 and line["step"] > 1) for line in lines)


METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapter, reference": {"lora": True, "lora_rank": 4, "kl": 0.2, "inner_steps": 2},
    "copy as reference": {"kl": 0.2, "lr_scheduler_type": "cosine"},
}


def at_call(number: int, act: Callable[[], None]) -> Callable[..., Verdict]:
    """Return a verifier that acts when it is asked for the n-th time."""
    asked = [0]

    def verify(task: Any, problem: Problem, text: str) -> Verdict:
        asked[0] += 1
        if asked[0] == number:
            act()
        return taught(task, problem, text)

    return verify


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_unstopped(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**METHODS[method], "max_steps": 6, "save_steps": 2}
    straight = learn("straight", **settings)
    child = os.fork()
    if not child:
        killed = at_call(5 * 8 - 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        monkeypatch.setattr(UnitsTask, "verify", killed)
        learn("killed", **settings)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    names = [path.name for path in sorted(Path("runs/killed/checkpoints").iterdir())]
    assert names == ["checkpoint-step-2", "checkpoint-step-4"]
    resumed = learn("killed", **settings, resume="auto")
    assert same(straight, resumed)
    assert records(straight) == records(resumed)
    assert [line["updates"] for line in records(straight)].count(0) < 3


def test_a_signal_leaves_the_last_whole_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = learn("straight", max_steps=5)
    command = ["grpo", "--run-name", "asked"]
    for key, value in {**SMALL, "max_steps": 5}.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    asked = at_call(3 * 8 + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(UnitsTask, "verify", asked)
        assert main(command) == 130
    assert "Stopped by a signal after step 3" in capsys.readouterr().err
    assert (Path("runs/asked/checkpoints/checkpoint-step-3")).is_dir()
    assert main([*command, "--resume"]) == 0
    assert same(straight, Path("runs/asked"))


def backward_with(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]
) -> list[int]:
    """Act before the n-th pass over the answers of a step; return the count of passes."""
    backward, calls = policy_step.backward, [0]

    def watched(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return backward(*given, **more)

    monkeypatch.setattr(policy_step, "backward", watched)
    return calls


def test_a_signal_between_inner_steps_waits_for_the_last_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"max_steps": 4, "inner_steps": 3}
    straight = learn("straight", **settings)
    assert [line["updates"] for line in records(straight)] == [3] * 4
    with monkeypatch.context() as patch:
        backward_with(patch, 3 + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="after step 2"):
            learn("asked", **settings)
    assert same(straight, learn("asked", **settings, resume="auto"))


def test_memory_that_runs_out_between_inner_steps_leaves_the_checkpoint_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"max_steps": 3, "inner_steps": 2, "save_steps": 1}
    straight = learn("straight", **settings)
    update, calls = policy_step.update, [0]

    def fails(*given: Any) -> None:
        calls[0] += 1
        if calls[0] == 2 * 1 + 2:
            raise OutOfMemoryError("Memory ran out in an update.")
        update(*given)

    with monkeypatch.context() as patch:
        patch.setattr(policy_step, "update", fails)
        with pytest.raises(OutOfMemoryError, match="checkpoint-step-1 is left"):
            learn("full", **settings)
    assert same(straight, learn("full", **settings, resume="auto"))


def test_answers_that_do_not_fit_are_computed_in_smaller_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = learn("straight")

    def no_memory() -> None:
        raise MemoryError

    calls = backward_with(monkeypatch, 2, no_memory)
    smaller = learn("smaller")
    assert calls == [4]
    assert json.loads((smaller / "decisions.json").read_text())["sizes"]
    assert "memory did not suffice" in (smaller / "final_model" / "README.md").read_text()
    for one, other in zip(records(straight), records(smaller), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)


def test_a_finished_run_can_learn_more() -> None:
    settings = {"eval_questions": 2}
    straight = learn("straight", max_steps=3, **settings)
    learn("more", max_steps=2, **settings)
    assert same(straight, learn("more", max_steps=3, resume="auto", **settings))


def test_a_question_that_comes_again_is_answered_anew() -> None:
    lines = records(learn(max_steps=4, limit=2, learning_rate=1e-12))
    assert len({(line["reward"], line["answer_tokens"], line["entropy"]) for line in lines}) == 4


def test_a_resume_with_other_questions_or_another_method_is_refused() -> None:
    learn("run", max_steps=2)
    with pytest.raises(tunesmith.errors.CheckpointError, match="the rows are others"):
        learn("run", max_steps=3, question_seed=1, resume="auto")
    with pytest.raises(tunesmith.errors.CheckpointError, match="lora"):
        learn("run", max_steps=3, lora=True, resume="auto")


def test_numbers_that_are_not_finite_stop_before_the_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backward, calls = policy_step.backward, [0]

    def broken(model: Any, *given: Any, **more: Any) -> Any:
        found = backward(model, *given, **more)
        calls[0] += 1
        if calls[0] == 3:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = float("nan")
        return found

    monkeypatch.setattr(policy_step, "backward", broken)
    with pytest.raises(DivergedError, match=r"gradient norm nan; no update was made\. Rows: rol"):
        learn(max_steps=8, save_steps=1)
    whole = sorted(Path("runs/run/checkpoints").iterdir())[-1]
    assert all(value.isfinite().all() for value in load_file(whole / "model.safetensors").values())
    assert not Path("runs/run/final_model").exists()


def test_a_step_whose_answers_are_worth_the_same_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UnitsTask, "verify", lambda *_: Verdict(0.0, None, "never"))
    run = learn(weight_decay=0.5)
    assert [line["no_signal"] for line in records(run)] == [1.0, 1.0, 1.0]
    assert [line["updates"] for line in records(run)] == [0, 0, 0]
    before = load_file("base/model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in final(run).items())
    assert "3 of 3 steps made no update" in (run / "final_model" / "README.md").read_text()


def test_a_grader_that_fails_is_counted_and_not_held_against_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Any, problem: Problem, text: str) -> Verdict:
        if sum(text.encode()) % 3 == 0:
            raise ZeroDivisionError
        return taught(_, problem, text)

    monkeypatch.setattr(UnitsTask, "verify", fails)
    run = learn()
    failed = sum(line["ungraded"] for line in records(run))
    assert failed > 0
    assert "the grader failed on" in capsys.readouterr().err
    assert f"The grader failed on {failed} answers" in (run / "final_model/README.md").read_text()


def attempt(index: int, tokens: tuple[int, ...], stop: StopReason, score: float) -> Attempt:
    return Attempt("p", index, 0, "", tokens, stop, Verdict(score, None, ""))


def test_rows_hold_the_tokens_that_were_drawn_and_the_stop_token_that_was() -> None:
    group = [
        attempt(0, (7, 8), StopReason.STOP_TOKEN, 1.0),
        attempt(1, (7, 9, 9), StopReason.LENGTH, 0.0),
    ]
    made = drawn([4], [(5, 6)], [group], 3, "none")
    assert [row.ids for row in made.rollout.rows] == [(5, 6, 7, 8, 3), (5, 6, 7, 9, 9)]
    assert [row.weights for row in made.rollout.rows] == [(0.0, 0.0, 1.0, 1.0, 1.0)] * 2
    assert made.rollout.advantages == [0.5, -0.5]
    assert (made.cut, made.answer_tokens, made.silent, made.questions) == (0.5, 3.0, 0, (4,))


def folder_of_questions(train: int, dev: int) -> str:
    Path("sums").mkdir()
    for name, numbers in (("train", range(train)), ("dev", range(50, 50 + dev))):
        rows = ({"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in numbers)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(f"sums/{name}.jsonl").write_text(text)
    return "sums"


def test_held_out_questions_that_are_learnt_from_are_refused() -> None:
    source = folder_of_questions(6, 3)
    run = learn("apart", task="maths", dataset=source, eval_questions=3)
    assert (run / "eval" / "tuned" / "attempts.jsonl").is_file()
    with pytest.raises(UsageError, match="3 of 3 held-out questions are among those"):
        learn("same", task="maths", dataset=f"{source}/train.jsonl", limit=None, eval_questions=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"questions_per_step": 9}, "more than the 6 questions"),
        ({"clip_low": 0.1}, "--clip-low does nothing with --inner-steps 1"),
        ({"lora_rank": 4}, "--lora-rank does nothing without --lora"),
        ({"task": "chat"}, "cannot be graded"),
        ({"prompt": "cto"}, "no prompt style"),
        ({"samples": 1}, "samples"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        learn(**settings)
    assert not Path("runs").exists()


def test_a_recipe_has_a_stage_for_it() -> None:
    Path("r.yaml").write_text(
        "name: r\nmodel: base\nstages:\n"
        "  - grpo: {name: learnt, task: units, limit: 4, questions_per_step: 2, samples: 2,\n"
        "           max_new_tokens: 4, max_steps: 1, eval_questions: 0}\n"
        "  - grpo: {name: more, from: learnt, task: units, limit: 4, questions_per_step: 2,\n"
        "           samples: 2, max_new_tokens: 4, max_steps: 1, eval_questions: 0}\n"
        "  - eval: {name: asked, model: more, task: units, limit: 2, max_new_tokens: 4}\n"
    )
    first = run_recipe("r.yaml", output_dir="out")
    assert [record.ran for record in first] == [True] * 3
    assert "learnt" in json.loads(Path("out/r/more/manifest.json").read_text())["model"]
    again = run_recipe("r.yaml", ["more.max_steps=2"], output_dir="out")
    assert [record.ran for record in again] == [False, True, True]


LORA = {"lora": True, "lora_rank": 4}
TWICE = {"inner_steps": 3, "learning_rate": 0.02}
TABLE: list[tuple[str, Any, dict[str, Any], str]] = [
    ("model", "../other", {}, "records"),
    ("limit", 4, {}, "records"),
    ("question_seed", 1, {}, "records"),
    ("prompt", "cot", {"model": "../long"}, "records"),
    ("max_steps", 2, {}, "records"),
    ("questions_per_step", 3, {}, "records"),
    ("samples", 5, {}, "records"),
    ("temperature", 0.5, {}, "records"),
    ("max_new_tokens", 4, {}, "records"),
    ("batch_size", 1, {}, "slots"),
    ("reward", "grade", {}, "records"),
    ("scale_rewards", "none", {}, "records"),
    ("clip_low", 0.01, TWICE, "records"),
    ("clip_high", 0.01, TWICE, "records"),
    ("kl", 0.5, {}, "records"),
    ("inner_steps", 2, {}, "records"),
    ("learning_rate", 0.01, {}, "records"),
    ("lr_scheduler_type", "linear", {}, "records"),
    ("warmup_steps", 1, {"max_steps": 10}, "records"),
    ("optim", "adafactor", {}, "weights"),
    ("weight_decay", 0.5, {}, "weights"),
    ("max_grad_norm", 0.001, {"optim": "adafactor"}, "weights"),
    ("lora", True, {}, "files"),
    ("lora_rank", 8, LORA, "weights"),
    ("lora_alpha", 64.0, LORA, "weights"),
    ("lora_target_modules", ["q_proj"], LORA, "weights"),
    ("seed", 1, {}, "records"),
    ("run_name", "other", {}, "files"),
    ("output_dir", "elsewhere", {}, "files"),
    ("save_steps", 1, {}, "files"),
    ("save_total_limit", 2, {"save_steps": 1}, "files"),
    ("eval_questions", 2, {}, "files"),
]
"""A setting, another value, the settings that it acts among, and what changes."""

ELSEWHERE = {
    "task": "test_held_out_questions_that_are_learnt_from_are_refused",
    "dataset": "the same",
    "resume": "test_killed_and_resumed_equals_unstopped",
    "overwrite": "test_rundir: replaces the folder",
    "log_level": "test_cli: what is shown",
    "dtype": "as in eval", "device": "as in eval", "chat_template": "as in eval",
}  # fmt: skip


def test_the_table_names_every_setting() -> None:
    assert {row[0] for row in TABLE} | ELSEWHERE.keys() == set(GrpoOptions.model_fields)


def look(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from tunesmith.generate import engine

    slots: list[int] = []
    store = engine.Store

    def watched(count: int, *given: Any, **more: Any) -> Any:
        slots.append(count)
        return store(count, *given, **more)

    monkeypatch.setattr(engine, "Store", watched)
    run = learn(**settings)
    files = sorted(str(path) for path in run.rglob("*") if path.is_file())
    hashes = json.loads((run / "manifest.json").read_text())["hashes"]
    weights = {name: value.sum().item() for name, value in final(run).items()}
    return {"records": records(run), "files": files, "weights": weights or hashes, "slots": slots}


Look = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Look:
    """Return a function that trains and says what could be seen; a run is made once."""
    home = tmp_path_factory.mktemp("settings")
    kinds: dict[str, dict[str, Any]] = {"base": {}, "other": {"seed": 1}}
    kinds["long"] = {"max_position_embeddings": 2048}
    for name, kind in kinds.items():
        tiny_model(**kind).save_pretrained(home / name)
        tiny_tokenizer().save_pretrained(home / name)
    seen: dict[str, dict[str, Any]] = {}

    def once(settings: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(settings, sort_keys=True)
        if key not in seen:
            folder = home / str(len(seen))
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr(UnitsTask, "verify", taught)
                seen[key] = look({"model": "../base", **settings}, patch)
        return seen[key]

    return once


def test_a_setting_that_is_as_it_was_changes_nothing(looked: Look) -> None:
    again = looked({"max_steps": SMALL["max_steps"]})
    assert looked({}) == again


@pytest.mark.parametrize(("setting", "value", "among", "what"), TABLE)
def test_every_setting_changes_something(
    setting: str, value: Any, among: dict[str, Any], what: str, looked: Look
) -> None:
    assert looked(among)[what] != looked({**among, setting: value})[what]
