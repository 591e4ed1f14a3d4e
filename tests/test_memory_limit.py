"""Memory that runs out at the k-th forward: smaller parts, the same step, replayed on resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from injected import OUT_OF_MEMORY, at_forward, no_memory
from test_policy import equal, final, in_a_folder, train  # noqa: F401
from test_sharing import prompt_rows
from test_training import make_rows
from tiny_models import tiny_model
from tunesmith.errors import TrainingError
from tunesmith.models.memory import is_out_of_memory
from tunesmith.train import loop
from tunesmith.train.batches import Plan
from tunesmith.train.decisions import Decisions
from tunesmith.train.loop import Settings, State, fit, make_optimizer

PLAN = Plan(rows=24, rows_a_step=8, total_steps=4, seed=3)
SHAPES = {
    "packed": Settings(1e-2, warmup=2, capacity=4096),
    "small packs": Settings(1e-2, warmup=2, capacity=64),
    "padded": Settings(1e-2, warmup=2, packing=False, rows_a_micro_batch=4),
}
BY_NIGHT = [
    "small packs",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("packed", "padded")),
]


def run(
    settings: Settings, numbers: set[int], act: Any = None, decisions: Decisions | None = None
) -> tuple[State, list[float], int]:
    """Return the state, the losses, and how many forward passes there were."""
    model = tiny_model("llama")
    state = State(model, make_optimizer(model, settings))
    state.decisions = decisions or Decisions()
    with at_forward(model, numbers, act or no_memory()) as count:
        steps = fit(state, make_rows(24), PLAN, settings, Accelerator(cpu=True))
        losses = [done.loss for done in steps]
    return state, losses, count[0]


def check_failure(settings: Settings, k: int, expected: list[float], *, backward: bool) -> None:
    told: list[str] = []
    decisions = Decisions(tell=told.append)
    state, losses, _ = run(settings, {k}, no_memory(backward=backward), decisions)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len(state.decisions.sizes) == len(told) == 1
    assert "memory ran out in step" in told[0]
    # The same decisions, without the failure, lead to the same bits.
    again, replayed, _ = run(settings, set(), None, Decisions.from_json(decisions.to_json()))
    assert replayed == losses
    assert all(
        torch.equal(p, q)
        for p, q in zip(state.model.parameters(), again.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(("shape", "backward"), [("packed", False), ("padded", True)])
def test_a_failure_at_a_forward_changes_no_loss(shape: str, backward: bool) -> None:
    settings = SHAPES[shape]
    _, expected, passes = run(settings, set())
    for k in (0, passes - 1):
        check_failure(settings, k, expected, backward=backward)


@pytest.mark.reliability
@pytest.mark.parametrize("shape", SHAPES)
def test_a_failure_at_every_forward_changes_no_loss(shape: str) -> None:
    settings = SHAPES[shape]
    _, expected, passes = run(settings, set())
    for k in range(passes):
        check_failure(settings, k, expected, backward=bool(k % 2))
    print(f"out of memory at the k-th forward, {shape}: {passes} of {passes} places")


@pytest.mark.parametrize("shape", BY_NIGHT)
def test_failures_in_a_row_halve_down_to_single_rows(shape: str) -> None:
    settings = SHAPES[shape]
    _, expected, _ = run(settings, set())
    biggest = 3 if settings.packing else 1

    def act(output: Any) -> Any:
        rows = output.logits.shape[0]
        if rows > biggest:
            raise OUT_OF_MEMORY["python"]()
        return output

    state, losses, _ = run(settings, set(range(2)), no_memory())
    assert losses == pytest.approx(expected, rel=1e-6)
    assert state.decisions.sizes
    _, losses, _ = run(settings, set(range(1000)), act)
    assert losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", BY_NIGHT)
def test_one_row_that_does_not_fit_is_a_sentence(shape: str) -> None:
    with pytest.raises(TrainingError) as raised:
        run(SHAPES[shape], set(range(1000)))
    assert "Memory ran out in step 1 with every row alone" in str(raised.value)
    assert "--gradient-checkpointing, a lower --max-length" in str(raised.value)
    assert not isinstance(raised.value.__context__, RuntimeError)  # it would hold activations


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_every_device_says_it_in_its_own_words(kind: str) -> None:
    assert is_out_of_memory(OUT_OF_MEMORY[kind]())
    run(SHAPES["packed"], {0}, no_memory(kind))


def test_the_real_message_of_a_cpu_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("failure", [RuntimeError("shape mismatch"), ValueError("x")], ids=repr)
def test_another_failure_is_not_taken_for_it(failure: Exception) -> None:
    def fail(_: Any) -> Any:
        raise failure

    with pytest.raises(type(failure), match=str(failure)):
        run(SHAPES["packed"], {1}, fail)


@pytest.mark.parametrize("shared", ["auto", "grouped"])
def test_rows_that_share_most_of_their_tokens_are_parted_in_the_end(shared: str) -> None:
    rows = prompt_rows(2, (3, 4))
    assert sum(sorted(len(row.ids) for row in rows)[:2]) > 64
    settings = Settings(1e-2, capacity=64, shared_prefix=shared, rows_a_micro_batch=8)
    plan = Plan(rows=7, rows_a_step=7, total_steps=1, seed=3)

    def losses(act: Any) -> tuple[list[float], list[int]]:
        model = tiny_model("llama")
        state = State(model, make_optimizer(model, settings))
        with at_forward(model, set(range(999)), act):
            done = list(fit(state, rows, plan, settings, Accelerator(cpu=True)))
        return [one.loss for one in done], list(state.decisions.sizes.values())

    def room_for_a_row(output: Any) -> Any:
        if output.logits.shape[1] > 6:  # what is trained of one row
            raise OUT_OF_MEMORY["cpu"]()
        return output

    expected, _ = losses(lambda output: output)
    found, [size] = losses(room_for_a_row)
    assert found == pytest.approx(expected)
    assert size < 48  # a prompt with two of its answers


def test_several_processes_are_told_to_ask_for_less() -> None:
    model = tiny_model("llama")
    settings = SHAPES["packed"]
    state = State(model, make_optimizer(model, settings))
    accelerator = Accelerator(cpu=True)
    several = type(
        "Two", (), {"num_processes": 2, "__getattr__": lambda _, n: getattr(accelerator, n)}
    )()
    with (
        at_forward(model, {0}, no_memory()),
        pytest.raises(TrainingError, match="2 processes cannot agree"),
    ):
        list(fit(state, make_rows(24), PLAN, settings, several))


def test_a_size_never_grows_beyond_what_is_asked_for() -> None:
    decisions = Decisions(sizes={0: 4000, 2: 300})
    assert [decisions.size(step) for step in range(4)] == [4000, 4000, 300, 300]
    small = replace(SHAPES["packed"], capacity=50)
    _, losses, passes = run(small, set(), None, decisions)
    assert (losses, passes) == run(small, set())[1:]


@pytest.mark.usefixtures("in_a_folder")
def test_a_run_keeps_the_decision_and_a_resume_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses, count = loop.token_losses, [0]

    def no_room(*given: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise OUT_OF_MEMORY["cpu"]()
        return losses(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "token_losses", no_room)
        run_ = train()
    said = capsys.readouterr().err
    assert "memory ran out in step 5, so micro-batches shrink to" in said
    assert "From step 5 on memory did not suffice" in said
    assert list(json.loads((run_ / "decisions.json").read_text())["sizes"]) == ["4"]
    straight = final(run_)
    for step in (6, 8):
        Path(run_ / "checkpoints" / f"checkpoint-step-{step}" / "state.json").write_text("{}")
    assert equal(final(train(resume="auto")), straight)
    (run_ / "decisions.json").unlink()
    (run_ / "checkpoints" / "checkpoint-step-8" / "state.json").write_text("{}")
    assert equal(final(train(resume="auto")), straight)  # the checkpoint of step 6 knows as well
