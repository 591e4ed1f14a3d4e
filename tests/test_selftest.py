"""The self-test: every check holds on sound models, and a fault in what it watches breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft.tuners.lora.layer import Linear as LoraLinear

from test_training import make_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import TrainingError
from tunesmith.generate import engine
from tunesmith.generate.invariants import batched
from tunesmith.models.adapters import add_lora
from tunesmith.models.attention import packed
from tunesmith.models.packs import Group
from tunesmith.train import checkpoint, invariants, loop
from tunesmith.train.batches import packed_capacity
from tunesmith.train.invariants import Subject
from tunesmith.train.loop import Settings
from tunesmith.train.losses import Pack
from tunesmith.train.sharing import SHORTEST, Bundle
from tunesmith.train.trunk_cache import TrunkCache
from tunesmith.types import Finding
from tunesmith.workflows import selftest

ROUNDING = invariants.ROUNDING[torch.float32]
SETTINGS = Settings(1e-2, capacity=packed_capacity(64, 32, "cpu"))


def subject(arch: str = "llama", *, lora: bool = False, **config: Any) -> Subject:
    AcceleratorState._reset_state()
    layers = "n_layer" if arch == "gpt2" else "num_hidden_layers"
    model = tiny_model(arch, **{layers: 4, **config})
    if lora:
        model = add_lora(model, rank=4, alpha=8, dropout=0.1)
    return Subject(model, make_rows(6), SETTINGS, Accelerator(cpu=True), ROUNDING, 128)


def generated(given: Subject, _: Path) -> Finding:
    prompts = [row.ids[: 2 + at] for at, row in enumerate(given.rows[:3])]
    return batched(given.model, prompts, str, [1], tokens=6, rounding=ROUNDING)


def merged(given: Subject, _: Path) -> Finding:
    return invariants.merged(given.model, given.rows, ROUNDING)


CHECKS: dict[str, Callable[[Subject, Path], Finding]] = {
    "packed": lambda given, _: invariants.packed(given),
    "accumulated": lambda given, _: invariants.accumulated(given),
    "shared": lambda given, _: invariants.shared(given),
    "resumed": invariants.resumed,
    "trunk": invariants.kept_trunk,
    "generated": generated,
    "merged": merged,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("arch", "lora"), [("llama", True), ("gpt2", True), ("gemma3", False)])
def test_checks_hold_and_leave_no_trace(arch: str, lora: bool, check: str, tmp_path: Path) -> None:
    given = subject(arch, lora=lora)
    before = {key: value.clone() for key, value in given.model.state_dict().items()}
    trained = [p.requires_grad for p in given.model.parameters()]
    found = CHECKS[check](given, tmp_path)
    assert found.holds, found
    assert (found.difference is None) == (check == "merged" and not lora), found
    after = given.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [p.requires_grad for p in given.model.parameters()] == trained
    assert all(p.grad is None for p in given.model.parameters())


def leak(model: Any, rows: Pack, how: str) -> Any:
    return packed(model, [sum(one.tokens for one in rows.groups)], how)


def as_one_answer(self: Bundle) -> Group:
    own = group.__get__(self)
    return replace(own, rests=(sum(own.rests),)) if own.rests else own


def by_batch(*given: Any, **more: Any) -> Any:
    found = token_losses(*given, **more)
    return found._replace(losses=found.losses / len(found.losses))


def another_token(*given: Any) -> torch.Tensor:
    return choose(*given) ^ 1


def too_much(self: Any, *given: Any) -> torch.Tensor:
    return 1.01 * delta(self, *given)


def displaced(self: TrunkCache, *given: Any) -> torch.Tensor | None:
    value = read(self, *given)
    return None if value is None else value + 0.01


token_losses, choose, delta = loop.token_losses, engine.choose, LoraLinear.get_delta_weight
read, group = TrunkCache._read, Bundle.group
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "packed": (loop, "packed_rows", leak),
    "accumulated": (loop, "token_losses", by_batch),
    "shared": (Bundle, "group", property(as_one_answer)),
    "resumed": (checkpoint, "_unflat", lambda *_: None),
    "trunk": (TrunkCache, "_read", displaced),
    "generated": (engine, "choose", another_token),
    "merged": (LoraLinear, "get_delta_weight", too_much),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_fault_breaks_its_check(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, fault = FAULTS[check]
    given = subject(lora=True)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        found = CHECKS[check](given, tmp_path)
    assert not found.holds, found


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    given = subject()
    given.model.model.layers[0].requires_grad_(False)
    found = invariants.kept_trunk(given, tmp_path)
    assert found.holds
    assert found.difference is None
    assert "embed_tokens.weight is trained and changes what the frozen layers" in found.note


def test_a_shared_prompt_stays_within_the_positions() -> None:
    given = subject("gpt2")
    longest = max(len(row.ids) for row in given.rows)
    assert invariants.shared(replace(given, positions=longest + SHORTEST)).difference is not None
    found = invariants.shared(replace(given, positions=longest + SHORTEST - 1))
    assert found.difference is None
    assert "no room" in found.note


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama", num_hidden_layers=2).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(12))
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["selftest", "--model", "base", "--dataset", "rows.jsonl", "--test-rows", "4"]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert said.count("holds") == 7
    assert "Checked on 4 of these rows" in said
    assert not list(Path("runs").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_unflat", lambda *_: None)
        assert main(command) == TrainingError.exit_code
    said = capsys.readouterr().err
    assert "1 of 7 checks do not hold" in said
    assert "resumed = unstopped" in said


def test_rows_are_spread_over_lengths_within_the_tokens() -> None:
    rows = make_rows(40)
    lengths = sorted(len(row.ids) for row in rows)
    spread = [len(row.ids) for row in selftest._pick(rows, 5, 10_000)]
    assert (spread[0], spread[-1]) == (lengths[0], lengths[-1])
    few = selftest._pick(rows, 5, 5 * lengths[5])
    assert sum(len(row.ids) for row in few) <= 5 * lengths[5]
    assert len(selftest._pick(rows, 5, 1)) == 5
