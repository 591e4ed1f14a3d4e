"""Layers compiled one by one: the same losses, little code, the same bits after a kill."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

import tunesmith
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import Interrupted, TrainingError, UsageError
from tunesmith.models import compiled
from tunesmith.models.adapters import add_lora, freeze_bottom
from tunesmith.models.trunk import caught, find_trunk, replaced
from tunesmith.train.losses import packed_rows, row_scores, token_losses
from tunesmith.types import Encoded, Origin
from tunesmith.workflows.compiling import check_compiled

# PyTorch looks there while it reads a layer's code, and does not warn anybody but us.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

LENGTHS = ((5, 7), (9, 3, 4), (11,), (6, 6, 6), (2, 13), (8, 20))
"""Rows of six batches."""


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    counters.clear()


def batch(lengths: Sequence[int]) -> list[Encoded]:
    ids = [tuple(4 + (7 * at + n) % 290 for at in range(n)) for n in lengths]
    return [Encoded(row, (0.0, *[1.0] * (len(row) - 1)), Origin("r", 1)) for row in ids]


def model_of(arch: str, *, lora: bool, **config: Any) -> Any:
    model = tiny_model(arch, **config)
    return add_lora(model, rank=4, alpha=8.0).train() if lora else model.train()


def step(model: Any, lengths: Sequence[int], *, packing: bool) -> tuple[float, torch.Tensor]:
    """Return the loss of a batch and all of its gradients in a row."""
    rows, device = batch(lengths), torch.device("cpu")
    if packing:
        with packed_rows(model, rows):
            loss = token_losses(model, rows, device).losses.mean()
            loss.backward()
    else:
        loss = token_losses(model, rows, device, packing=False).losses.mean()
        loss.backward()
    found = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return loss.item(), torch.cat(found)


ALL = list(itertools.product(("llama", "qwen3", "gemma3", "gpt2"), (True, False), (True, False)))
QUICK = [("llama", False, True)]


@pytest.mark.parametrize(
    ("arch", "lora", "packing"),
    [one if one in QUICK else pytest.param(*one, marks=pytest.mark.slow) for one in ALL],
    ids=str,
)
def test_losses_agree_and_further_shapes_need_no_further_code(
    arch: str, lora: bool, packing: bool
) -> None:
    plain, changed = model_of(arch, lora=lora), model_of(arch, lora=lora)
    assert compiled.compile_blocks(changed) == 2
    graphs = []
    for lengths in LENGTHS:
        one, wanted = step(plain, lengths, packing=packing)
        other, found = step(changed, lengths, packing=packing)
        assert other == pytest.approx(one, abs=1e-4)
        assert torch.allclose(found, wanted, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[-1] <= 16
    # A batch of one row and one without padding are cases of their own; then no more comes.
    assert graphs[0 if packing else 3] == graphs[-1]


def test_names_stay_and_only_training_is_compiled() -> None:
    model = model_of("llama", lora=True)
    names = [list(model.state_dict()), [name for name, _ in model.named_modules()]]
    compiled.compile_blocks(model)
    assert names == [list(model.state_dict()), [name for name, _ in model.named_modules()]]
    model, rows = model_of("llama", lora=False), batch((5, 7))
    scores = row_scores(model, rows, torch.device("cpu"), 64)
    compiled.compile_blocks(model)
    assert row_scores(model, rows, torch.device("cpu"), 64) == scores
    assert not counters["stats"]["unique_graphs"]
    step(model, (5, 7), packing=False)
    assert counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_layers_of_a_kept_trunk_are_passed_over() -> None:
    model = model_of("llama", lora=False)
    freeze_bottom(model, 0.5)
    compiled.compile_blocks(model)
    trunk = find_trunk(model)
    rows, device = batch((5, 7)), torch.device("cpu")
    with packed_rows(model, rows), caught(trunk) as states:
        token_losses(model, rows, device)
    losses, read = [], []
    for times in (1, 2, 1):
        with packed_rows(model, rows), replaced(trunk, times * states[0]):
            losses.append(token_losses(model, rows, device).losses.mean().item())
        read.append(counters["frames"]["total"])
    assert read[0] == read[2]
    assert losses[0] == losses[2] == pytest.approx(step(model, (5, 7), packing=True)[0], abs=1e-5)
    assert losses[1] != pytest.approx(losses[0], abs=1e-5)


def test_no_compiler_is_a_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", "--dataset", "rows.jsonl", "--device", "cpu", "--torch-compile"]) == 2
    said = capsys.readouterr().err
    assert "--torch-compile on cannot be done: a C++ compiler is needed on a CPU" in said
    assert "apt-get install g++" in said
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_a_small_example_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.why_not(torch.device("cpu")) is None

    def broken(*_: Any) -> Any:
        raise RuntimeError("Python.h: no such file\nand much more")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    why, hint = compiled.why_not(torch.device("cpu")) or ("", "")
    assert "Python.h: no such file" in why
    assert "\n" not in why
    assert hint == "--torch-compile off"
    with (
        pytest.raises(TrainingError, match=r"could not be compiled.*Python\.h") as failure,
        compiled.explained(lambda: False, lambda: 3),
    ):
        torch.compile(torch.sin, backend=broken)(torch.ones(3))
    assert failure.value.hint == "--torch-compile off"
    with (
        pytest.raises(Interrupted, match="after step 3"),
        compiled.explained(lambda: True, lambda: 3),
    ):
        torch.compile(torch.sin, backend=broken)(torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"gradient_checkpointing": "full"}, "--gradient-checkpointing full"),
        ({"gradient_checkpointing": 1}, "--gradient-checkpointing 1"),
        ({"lora": True, "use_dora": True}, "--use-dora"),
        ({"lora": True, "load_in_4bit": True}, "--load-in-4bit"),
        ({"lora": True, "load_in_8bit": True}, "--load-in-8bit"),
        ({"minutes": 5.0}, "--minutes"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=f"--torch-compile on and {flag} cannot both be given"):
        check_compiled(FineTuningConfig(torch_compile="on", **settings))
    check_compiled(FineTuningConfig(**settings))


def train(**more: Any) -> Path:
    common = {"dataset": "rows.jsonl", "model": "base", "max_steps": 4, "log_level": "error"}
    common |= {"report_to": "none", "learning_rate": 0.01, "save_steps": 2, "num_workers": 1}
    common |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    common |= {"torch_compile": "on", "eval_strategy": "no", "eval_samples": 0, "run_name": "r"}
    return tunesmith.train(**{**common, **more}).run


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    write_rows("rows.jsonl")
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final_model" / "model.safetensors")


def test_a_run_saves_the_same_names_and_says_where_it_goes_on_otherwise(
    base: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, run = train(torch_compile="off", run_name="plain"), train()
    assert counters["stats"]["unique_graphs"]
    one, other = weights(plain), weights(run)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)
    for path in run.glob("checkpoints/*4"):
        shutil.rmtree(path)
    capsys.readouterr()
    train(torch_compile="off", resume="auto", log_level="warning")
    wanted = "The run began with --torch-compile on, by eager"
    assert wanted in capsys.readouterr().err
    assert wanted in (run / "final_model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_inductor_resumes_to_the_same_bits_and_agrees(
    packing: bool, base: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process would compile anew, at the shape of the batch that it begins with."""
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    losses = {}
    for name, more in {
        "plain": {"torch_compile": "off"},
        "whole": {},
        "resumed": {"resume": "auto"},
    }.items():
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path.cwd() / name))
        if name == "resumed":
            shutil.copytree("runs/whole", "runs/resumed")
            for path in Path("runs/resumed/checkpoints").glob("*4"):
                shutil.rmtree(path)
        run = train(run_name=name, packing=packing, logging_steps=1, **more)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses["whole"] == pytest.approx(losses["plain"], abs=1e-4)
    assert losses["resumed"] == losses["whole"]
    one, other = weights(Path("runs/whole")), weights(Path("runs/resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
