"""The estimate: exact where it is arithmetic, without a trace where it probes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.cli import main
from tunesmith.models.adapters import add_lora, freeze_bottom, recompute_activations
from tunesmith.models.attention import packed, positions, read_only_at
from tunesmith.models.fused_layers import fuse_layers
from tunesmith.models.packs import Group
from tunesmith.train.batches import Plan
from tunesmith.train.estimate import (
    Memory,
    Probe,
    Shape,
    chosen_steps,
    duration,
    kept_bytes,
    largest,
    memory,
    on_meta,
    probe,
    static_memory,
    step_tokens,
    watched,
)
from tunesmith.train.label_loss import label_losses
from tunesmith.train.loop import Settings, State, fit, make_optimizer
from tunesmith.train.new_rows import NewRows
from tunesmith.types import Encoded, Origin

ROWS = (Group(20, (8, 12)), Group(60))
PLACES = 100
TRAINED = 20
CPU = torch.device("cpu")
METHODS = ("full", "lora", "frozen")


def make(method: str, arch: str = "llama") -> Any:
    model = tiny_model(arch)
    fuse_layers(model)  # as a run does
    if method == "lora":
        return add_lora(model, rank=4, alpha=8)
    if method == "frozen":
        freeze_bottom(model, 0.5)
    return model


def make_rows(count: int = 24) -> list[Encoded]:
    rng = random.Random(0)
    rows = []
    for number in range(count):
        length = rng.randint(4, 30)
        ids = tuple(rng.randrange(4, 300) for _ in range(length))
        weights = (0.0, 0.0) + (1.0,) * (length - 2)
        rows.append(Encoded(ids, weights, Origin("test", number)))
    return rows


def kept_for_real(model: Any, how: str = "segments") -> int:
    """Return what autograd keeps of a real forward pass."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with packed(model, ROWS, how), hooks:
        read_only_at(range(TRAINED))  # as a step does
        logits = model(
            input_ids=torch.zeros(1, PLACES, dtype=torch.long),
            position_ids=positions(ROWS, CPU),
            use_cache=False,
            logits_to_keep=torch.arange(TRAINED),
        ).logits[0]
        losses = label_losses(logits, torch.zeros(TRAINED, dtype=torch.long))
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logits, losses
    return total


@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
@pytest.mark.parametrize("method", METHODS)
def test_parameters_gradients_and_optimiser_are_exact(method: str, optim: str) -> None:
    model, settings = make(method), Settings(1e-3, optim=optim)
    parameters, gradients, optimizer = static_memory(on_meta(model, recompute=False), optim)
    state, seen = State(model, make_optimizer(model, settings)), []

    def look(*_: object) -> None:
        seen.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))

    state.optimizer.register_step_pre_hook(look)
    list(fit(state, make_rows(), Plan(24, 24, 1, 0), settings, Accelerator(cpu=True)))
    states = state.optimizer.state.values()
    assert parameters == sum(p.nbytes for p in model.parameters())
    assert gradients == seen[0]
    assert optimizer == sum(tensor.nbytes for kept in states for tensor in kept.values())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_activations_of_every_architecture_are_exact(arch: str) -> None:
    model = make("full", arch)
    shape = Shape(ROWS, TRAINED, True)
    assert kept_bytes(on_meta(model, recompute=False), shape) == kept_for_real(model)


@pytest.mark.parametrize(
    ("arch", "how"),
    [("llama", "sdpa"), ("mistral", "sdpa"), ("llama", "eager"), ("gemma2", "eager")],
)
def test_activations_under_other_attention_are_exact(arch: str, how: str) -> None:
    model = make("full", arch)
    shape = Shape(ROWS, TRAINED, True, how)
    assert kept_bytes(on_meta(model, recompute=False), shape) == kept_for_real(model, how)


@pytest.mark.parametrize("method", ["lora", "frozen"])
def test_activations_of_what_is_frozen_are_exact(method: str) -> None:
    model = make(method)
    shape = Shape(ROWS, TRAINED, True)
    assert kept_bytes(on_meta(model, recompute=False), shape) == kept_for_real(model)


def test_a_copy_on_meta_leaves_the_model_and_its_ties_alone() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shells = on_meta(model, recompute=False)
    assert all(p.is_meta for p in shells.parameters())
    assert shells.lm_head.weight is shells.model.embed_tokens.weight
    assert static_memory(shells) == static_memory(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_recomputed_activations_keep_less() -> None:
    model = make("lora")
    shape = Shape(ROWS, TRAINED, True)
    plain = memory(on_meta(model, recompute=False), shape, several=False)
    recompute_activations(model)
    less = memory(
        on_meta(model, recompute=False),
        shape,
        several=False,
        recomputed=on_meta(model, recompute=True),
    )
    blocks_in = 2 * PLACES * 32 * 4
    assert blocks_in < less.activations < 0.8 * plain.activations
    assert less.head == plain.head == 4 * TRAINED * 304


def test_the_head_on_every_token_costs_more_than_on_trained_ones() -> None:
    model = on_meta(make("full"), recompute=False)
    packing = memory(model, Shape(ROWS, TRAINED, True), several=False)
    padded = memory(model, Shape((Group(60), Group(60)), TRAINED, False), several=False)
    assert padded.head - packing.head == 2 * 4 * 120 * 304


def test_gradients_wait_beside_activations_only_when_accumulated() -> None:
    parts = (100, 10, 20, 50, 5)
    assert Memory(*parts, accumulated=False).peak == 100 + 20 + 55
    assert Memory(*parts, accumulated=True).peak == 100 + 20 + 55 + 10


def test_the_end_of_the_backward_pass_has_all_gradients_and_one_block() -> None:
    assert Memory(100, 70, 20, 50, 5, accumulated=False, block=15).peak == 100 + 20 + 70 + 15


def test_the_largest_micro_batch_is_found() -> None:
    rows = make_rows()
    sizes = [len(row.ids) for row in rows]
    plan = Plan(24, 8, 6, 0)
    shape, several = largest(rows, sizes, plan, Settings(1e-3, capacity=4096), 1)
    tokens = step_tokens(sizes, plan)
    assert not several
    assert sum(tokens) == sum(sizes)
    assert shape.tokens == max(tokens)
    assert shape.trained == shape.tokens - 2 * len(shape.groups)
    unpacked = Settings(1e-3, packing=False, rows_a_micro_batch=4)
    shape, several = largest(rows, sizes, plan, unpacked, 1)
    assert several
    assert len(set(shape.groups)) == 1
    assert len(shape.groups) == 4


@pytest.mark.parametrize("method", METHODS)
def test_probes_leave_no_trace(method: str) -> None:
    rows, settings, plan = make_rows(), Settings(1e-2), Plan(24, 8, 3, 0)
    accelerator = Accelerator(cpu=True)
    straight = make(method)
    state = State(straight, make_optimizer(straight, settings))
    expected = [step.loss for step in fit(state, rows, plan, settings, accelerator)]
    model = make(method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = State(model, make_optimizer(model, settings))
    found = probe(state, rows, plan, settings, accelerator, [2, 0, 1])
    assert [p.tokens for p in found] == [
        sum(len(rows[at].ids) for at in plan.step_rows(step)) for step in (2, 0, 1)
    ]
    assert all(p.seconds > 0 for p in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (state.step, state.ledger.count, dict(state.optimizer.state)) == (0, 0, {})
    after = [step.loss for step in fit(state, rows, plan, settings, accelerator)]
    assert after == expected


@pytest.mark.parametrize(("warmup", "whole"), [(2, True), (20, False)])
def test_probes_are_of_steps_that_train_everything_if_any_does(warmup: int, whole: bool) -> None:
    """With new tokens the first steps train their rows alone, which is quicker."""
    rows, plan, model = make_rows(), Plan(24, 8, 20, 0), make("full")
    settings = Settings(1e-2, new_rows=NewRows(300, 4, warmup))
    state, trained = State(model, make_optimizer(model, settings)), []
    probe(
        state,
        rows,
        plan,
        settings,
        Accelerator(cpu=True),
        [0],
        after=lambda done: trained.extend(done.optimizer.state),
    )
    assert (len(trained) == len(list(model.parameters()))) is whole
    assert trained


def test_growth_of_the_process_is_seen_even_if_it_is_gone_at_the_end() -> None:
    import time

    with watched(CPU) as grown:
        block = torch.ones(25_000_000)
        time.sleep(0.05)
        del block
    assert grown[0] > 60e6


def test_probed_steps_and_their_time_scale_to_the_whole() -> None:
    steps = chosen_steps([30, 10, 20, 40, 50], 1)
    assert steps == [4, 4, 0]
    found = duration([Probe(0, 50, 9.0, 0), Probe(0, 50, 1.0, 0), Probe(1, 20, 0.5, 0)], [30], 10)
    assert found.tokens_per_s == pytest.approx(70 / 1.5)
    assert found.seconds == pytest.approx(300 * 1.5 / 70)
    assert (found.low, found.high) == (pytest.approx(300 / 50), pytest.approx(300 / 40))


def test_the_command_compares_itself_with_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(40))
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = ["--dataset", "rows.jsonl", "--max-steps", "3", "--eval-questions", "0"]
    assert main(["train", *plan, "--report-to", "none", "--run-name", "done"]) == 0
    measured = json.loads(Path("runs/done/manifest.json").read_text())["measured"]
    assert measured["steps"] == 3
    assert measured["peak_bytes"] > 1e7
    capsys.readouterr()
    look = ["estimate", *plan, "--compare", "runs/done"]
    assert main([*look, "--gradient-checkpointing", "--overwrite"]) == 0
    said = capsys.readouterr().err
    assert "Against the run" in said
    assert "not used here: overwrite True, eval_questions 0." in said
    stored = json.loads(Path("runs/instruct_rows_estimate/estimate.json").read_text())
    for name in ("peak_bytes", "seconds"):
        pair = stored["compared"][name]
        assert pair["error"] == pytest.approx(pair["predicted"] / pair["measured"] - 1)
    assert stored["steps"] == 3
    assert main(["estimate", *plan, "--probe-steps", "0"]) == 0
    assert "seconds a step" not in capsys.readouterr().err
    (Path("runs/done/manifest.json")).write_text("{}")
    assert main(look) == 2
