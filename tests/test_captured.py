"""Recorded decode steps: the same answers from fixed buffers, and no trust in a recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from injected import OUT_OF_MEMORY
from test_engine import STOP, decode, make_requests
from tiny_models import ALL_BY_NIGHT, ARCHITECTURES, tiny_model
from tunesmith.generate import captured
from tunesmith.generate.cache import Store
from tunesmith.generate.captured import CapturedSteps, cuda_graphs
from tunesmith.generate.engine import Engine
from tunesmith.generate.live import LiveEngine
from tunesmith.generate.reference import generate_one

Step = Callable[[], torch.Tensor]


def again(step: Step) -> tuple[Callable[[], None], torch.Tensor]:
    """Record like a graph: the same code on the same buffers, into the same result."""
    made = step()

    def replay() -> None:
        made.copy_(step())

    return replay, made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record from the second step of a shape on, and in shapes that a short answer passes."""
    monkeypatch.setattr(captured, "WORTH", 1)
    monkeypatch.setattr(captured, "BLOCK", 8)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("arch", ALL_BY_NIGHT)
def test_recorded_steps_answer_like_sequential_generation(arch: str) -> None:
    model, requests = tiny_model(arch), make_requests(5)
    engine = Engine(model, decode, STOP, max_slots=5, capture=again)
    made = {c.key: c for c in engine.run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert engine._captured is not None
    assert engine._captured.replayed > 5


@pytest.mark.usefixtures("soon")
def test_requests_that_join_are_answered_from_recorded_steps() -> None:
    model, requests = tiny_model("llama"), make_requests(5, prefix=3)
    engine = LiveEngine(model, decode, STOP, room=64, slots=4)
    engine._capture = again
    engine.reset()
    made = {}
    for request in requests:
        engine.add([request])
        made |= {g.key: g.done for g in engine.step() if g.done is not None}
    while engine:
        made |= {g.key: g.done for g in engine.step() if g.done is not None}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert engine._captured is not None
    assert engine._captured.replayed > 5


def frozen(step: Step) -> tuple[Callable[[], None], torch.Tensor]:
    """Give the recording's own result, whatever the buffers hold."""
    return (lambda: None), step().clone()


def refused(_: Step) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("capture", "said"),
    [(frozen, "other logits than the model"), (refused, "not permitted when stream is capturing")],
)
def test_a_recording_that_is_wrong_or_impossible_is_not_used(capture: Any, said: str) -> None:
    model, requests = tiny_model("llama"), make_requests(5)
    engine = Engine(model, decode, STOP, max_slots=5, capture=capture)
    with pytest.warns(UserWarning, match=said):
        made = {c.key: c for c in engine.run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert engine._captured is not None
    assert engine._captured.replayed == 0


@pytest.mark.usefixtures("soon")
def test_memory_that_runs_out_while_recording_halves_the_batch() -> None:
    model, requests = tiny_model("llama"), make_requests(4)
    slots: list[int] = []

    def tight(step: Step) -> tuple[Callable[[], None], torch.Tensor]:
        slots.append(len(step()))
        if slots[-1] > 2:
            raise OUT_OF_MEMORY["cuda"]()
        return again(step)

    engine = Engine(model, decode, STOP, max_slots=8, capture=tight)
    made = {c.key: c for c in engine.run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert max(slots) > 2 >= slots[-1]


def test_a_shape_is_recorded_when_it_has_come_up_often_and_rows_beyond_begin_a_free_slot() -> None:
    met: list[tuple[list[int], list[int]]] = []

    def forward(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        met.append((ids[:, 0].tolist(), places[:, 0].tolist()))
        return torch.nn.functional.one_hot(ids[:, 0], 10).float()

    steps = CapturedSteps(Store(8, 300, prefix_length=20), forward, again)

    def call(rows: int, held: int) -> torch.Tensor | None:
        return steps(torch.full((rows, 1), 7), torch.full((rows,), held), held + 1)

    for _ in range(captured.WORTH):
        assert call(4, 9) is None
    assert not met
    assert call(4, 9) is not None
    found = call(3, 12)  # of the same shape: rows to a power of two, the reach to a block
    assert found is not None
    assert found.argmax(-1).tolist() == [7, 7, 7]
    assert met[-1] == ([7, 7, 7, 0], [32, 32, 32, 20])
    assert steps.replayed == 2
    assert call(3, captured.BLOCK) is None  # of another


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_graphs_answer_like_sequential_generation(arch: str) -> None:
    model = tiny_model(arch).to("cuda")
    requests = make_requests(8)
    engine = Engine(model, decode, STOP, max_slots=8, capture=cuda_graphs())
    made = {c.key: c for c in engine.run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert engine._captured is not None
    assert engine._captured.replayed > 0
    assert not engine._captured.given_up
