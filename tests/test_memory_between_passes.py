"""Memory that runs out beside the passes of a step: update, held-out loss, answers, the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from injected import OUT_OF_MEMORY, at_forward, no_memory
from test_engine import STOP, decode, make_requests
from test_memory_limit import PLAN
from test_policy import equal, final, in_a_folder, train  # noqa: F401
from test_training import make_rows
from tiny_models import tiny_model
from tunesmith.cli import main
from tunesmith.errors import OutOfMemoryError
from tunesmith.generate.engine import Engine
from tunesmith.train import checkpoint, loop, losses
from tunesmith.train.loop import State, fit, make_optimizer
from tunesmith.train.losses import row_scores

CPU = torch.device("cpu")


def begun(optimizer: Any, *_: Any) -> None:
    """Fail like an optimiser that has made the state of its first weight."""
    first = optimizer.param_groups[0]["params"][0]
    if first not in optimizer.state:
        optimizer.state[first] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(first)}
    raise OUT_OF_MEMORY["cpu"]()


def halfway(optimizer: Any, *_: Any) -> None:
    """Fail like an optimiser that has changed its first weight already."""
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0].add_(1)
    raise OUT_OF_MEMORY["cuda"]()


def at_update(optimizer: Any, number: int, act: Callable[..., None]) -> None:
    """Let the update of this number, from 0, meet ``act`` before it is made."""
    count = [0]

    def hook(*given: Any) -> None:
        count[0] += 1
        if count[0] - 1 == number:
            act(*given)

    optimizer.register_step_pre_hook(hook)


@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
@pytest.mark.parametrize(("number", "act"), [(0, begun), (2, begun), (2, halfway)])
def test_an_update_without_memory_is_a_sentence(optim: str, number: int, act: Any) -> None:
    model = tiny_model("llama")
    settings = loop.Settings(1e-2, warmup=2, capacity=4096, optim=optim)
    state = State(model, make_optimizer(model, settings))
    at_update(state.optimizer, number, act)
    running = fit(state, make_rows(24), PLAN, settings, Accelerator(cpu=True))
    for _ in range(number):
        next(running)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    known = len(state.optimizer.state)
    with pytest.raises(OutOfMemoryError, match=f"the update of step {number + 1}: Ada") as raised:
        next(running)
    assert raised.value.complete == (act is begun) == equal(before, model.state_dict())
    assert (state.step, len(state.optimizer.state)) == (number, known)
    assert all(p.grad is None for p in model.parameters())
    assert "--optim adamw_8bit" in str(raised.value)


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize(("act", "left"), [(begun, 4), (halfway, 3)])
def test_the_last_whole_step_is_left_to_go_on_from(
    act: Any, left: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make = loop.make_optimizer

    def failing(model: Any, settings: Any) -> Any:
        made = make(model, settings)
        at_update(made, 4, act)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_optimizer", failing)
        line = "train --dataset rows.jsonl --model base --max-steps 8 --report-to none --lora "
        line += "--learning-rate 0.01 --run-name r --save-steps 3 --lora-rank 4 --lora-dropout 0.1"
        assert main([*line.split(), "--logging-steps", "1"]) == 6
    said = capsys.readouterr().err
    assert "Memory ran out in the update of step 5" in said
    assert f"checkpoint-step-{left} is left to go on from." in said
    assert "Traceback" not in said
    assert checkpoint.steps(Path("runs/r/checkpoints"))[0][0] == left
    straight = final(train(run_name="straight"))
    assert equal(final(train(resume="auto")), straight)


@pytest.mark.usefixtures("in_a_folder")
def test_a_step_of_single_rows_that_do_not_fit_leaves_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = loop._backward

    def no_room(state: State, *given: Any) -> Any:
        if state.step == 4:
            raise OUT_OF_MEMORY["python"]()
        return made(state, *given)

    monkeypatch.setattr(loop, "_backward", no_room)
    with pytest.raises(OutOfMemoryError, match=r"every row alone.*checkpoint-step-4 is left"):
        train()


def test_held_out_losses_go_on_with_fewer_rows_at_once() -> None:
    model, rows = tiny_model("llama").train(), make_rows(24)
    expected = row_scores(model, rows, CPU, 200)
    most = max(len(row.ids) for row in rows)

    def act(output: Any) -> Any:
        if output.logits.shape[1] > 3 * most:
            raise OUT_OF_MEMORY["cpu"]()
        return output

    for numbers, failing in (({0}, no_memory()), ({2}, no_memory()), (set(range(99)), act)):
        with at_forward(model, numbers, failing) as count:
            found = row_scores(model, rows, CPU, 200)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.loss for one in found] == pytest.approx([one.loss for one in expected])
        assert count[0] > 2
        assert model.training


@pytest.mark.parametrize(("may_halve", "said"), [(True, "one row of"), (False, "24 rows of")])
def test_a_held_out_row_that_does_not_fit_is_a_sentence(may_halve: bool, said: str) -> None:
    model = tiny_model("llama").train()
    with (
        at_forward(model, set(range(99)), no_memory()),
        pytest.raises(OutOfMemoryError, match=f"held-out losses were taken: {said}"),
    ):
        row_scores(model, make_rows(24), CPU, 4096, may_halve=may_halve)
    assert model.training


@pytest.mark.parametrize(("number", "kind"), [(0, "cuda"), (7, "cpu")])
def test_answers_go_on_with_fewer_at_once_and_stay_the_same(number: int, kind: str) -> None:
    model, requests = tiny_model("llama"), make_requests(3)
    expected = {done.key: done for done in Engine(model, decode, STOP).run(requests)}
    with at_forward(model, {number, number + 3}, no_memory(kind)):
        found = list(Engine(model, decode, STOP).run(requests))
    assert len(found) == len(expected)
    assert {done.key: done for done in found} == expected


def test_an_answer_that_does_not_fit_is_a_sentence() -> None:
    model = tiny_model("llama").train()
    attention = model.config._attn_implementation
    with (
        at_forward(model, set(range(99)), no_memory()),
        pytest.raises(OutOfMemoryError, match="while a single answer was generated"),
    ):
        list(Engine(model, decode, STOP).run(make_requests(4)))
    assert model.training
    assert model.config._attn_implementation == attention


def test_another_failure_of_an_answer_stays_what_it_is() -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("shape mismatch")

    model = tiny_model("llama")
    with at_forward(model, {1}, fail), pytest.raises(RuntimeError, match="shape mismatch"):
        list(Engine(model, decode, STOP).run(make_requests(4)))
    with at_forward(model, {1}, fail), pytest.raises(RuntimeError, match="shape mismatch"):
        row_scores(model, make_rows(24), CPU, 64)


@pytest.mark.usefixtures("in_a_folder")
def test_samples_that_do_not_fit_end_no_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def no_room(*_: Any) -> Any:
        raise OUT_OF_MEMORY["cuda"]()

    monkeypatch.setattr(Engine, "_fill_prefix", no_room)
    monkeypatch.setattr(Engine, "_admit", no_room)
    train(eval_steps=2)
    assert capsys.readouterr().err.count("no samples are taken in this run: OutOfMemory") == 1


@pytest.mark.usefixtures("in_a_folder")
def test_the_last_measurement_may_fail_when_the_model_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, count = losses._scores, [0]

    def no_room(*given: Any) -> Any:
        return None if (Path("runs/r") / "final_model").exists() else real(*given)

    def counted(*given: Any) -> Any:
        count[0] += 1
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "_scores", no_room)
        with pytest.raises(OutOfMemoryError, match="the model lies in") as raised:
            train()
    assert "held-out losses were taken" in str(raised.value)
    assert "--resume" in str(raised.value)
    saved = final(Path("runs/r"))
    monkeypatch.setattr(losses, "_scores", counted)
    assert equal(final(train(resume="auto")), saved)
    assert count[0]
    assert (Path("runs/r") / "report.html").is_file()


@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
def test_an_optimiser_counts_the_step_of_each_weight_that_it_changes(optim: str) -> None:
    model = tiny_model("llama")
    optimizer = make_optimizer(model, loop.Settings(1e-2, optim=optim))
    for _ in range(2):
        counts = [optimizer.state[p].get("step") for p in model.parameters()]
        before = [one._version for one in counts if one is not None]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert all(optimizer.state[p]["step"] > 0 for p in model.parameters())
        assert all(one._version > then for one, then in zip(counts, before, strict=False))


def made_and_changed(optimizer: Any, *_: Any) -> None:
    """Fail like an optimiser whose fused kernel has done the first group of weights."""
    first = optimizer.param_groups[0]["params"][0]
    optimizer.state[first] = {"step": torch.ones(()), "exp_avg": torch.zeros_like(first)}
    raise OUT_OF_MEMORY["cpu"]()


def test_a_first_update_that_was_begun_is_not_taken_for_whole() -> None:
    model = tiny_model("llama")
    settings = loop.Settings(1e-2, capacity=4096)
    state = State(model, make_optimizer(model, settings))
    at_update(state.optimizer, 0, made_and_changed)
    with pytest.raises(OutOfMemoryError) as raised:
        next(fit(state, make_rows(24), PLAN, settings, Accelerator(cpu=True)))
    assert not raised.value.complete
    assert not state.optimizer.state
