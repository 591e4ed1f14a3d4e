"""A base in four or eight bits, and AdamW in eight: an adapter like any other comes of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import tunesmith
from test_engine import STOP, decode, make_requests
from test_training import gradients, make_rows
from test_workflows import weights, write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import Interrupted, UsageError
from tunesmith.workflows import train as workflow
from tunesmith.workflows.estimate import estimate

installed = importlib.util.find_spec("bitsandbytes") is not None
needs_package = pytest.mark.skipif(not installed, reason="bitsandbytes is not installed")
IDS = torch.arange(4, 44)[None]
BITS = ["4bit", "8bit"]
BASE: dict[str, Any] = {
    "dataset": "rows.jsonl",
    "model": "base",
    "max_steps": 3,
    "log_level": "error",
    "report_to": "none",
    "learning_rate": 0.01,
    "run_name": "r",
    "num_workers": 1,
}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl")
    save_base()


def save_base(arch: str = "llama") -> None:
    tiny_model(arch, hidden_size=64, intermediate_size=96).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")


def quantised(bits: str) -> dict[str, Any]:
    from tunesmith.models.quantize import quantisation_config

    return {"quantization_config": quantisation_config(bits, torch.float32), "device_map": "cpu"}


def adapted(bits: str, arch: str = "llama", rank: int = 4, **more: Any) -> Any:
    from tunesmith.models.adapters import add_lora
    from tunesmith.models.load import load

    if arch != "llama":
        tiny_model(arch).save_pretrained("base")
    loaded = load("base", bits=bits)
    model = add_lora(loaded.model, rank=rank, alpha=2 * rank, **more)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.normal_(0, 0.02, generator=torch.Generator().manual_seed(value.numel()))
    return model


@pytest.mark.parametrize(
    "settings",
    [{"load_in_4bit": True, "lora": True}, {"load_in_8bit": True, "lora": True},
     {"optim": "adamw_8bit"}],
    ids=str,
)  # fmt: skip
def test_a_missing_package_is_named_before_anything_is_loaded(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(UsageError, match="needs the package bitsandbytes") as failure:
        tunesmith.train(**{**BASE, "model": "nowhere", "dataset": "no.jsonl"}, **settings)
    assert failure.value.hint == "pip install 'tunesmith[quant]'"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"load_in_4bit": True}, "--load-in-4bit needs --lora"),
        ({"load_in_8bit": True}, "--load-in-8bit needs --lora"),
        ({"load_in_4bit": True, "lora": True, "lora_init": "pissa"}, "PiSSA takes its start out"),
        ({"load_in_8bit": True, "lora": True, "use_dora": True}, "DoRA measures the weights"),
        ({"load_in_4bit": True, "load_in_8bit": True, "lora": True}, "cannot both be given"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        tunesmith.train(**BASE, **settings)


@needs_package
@pytest.mark.parametrize("arch", ["llama", "gpt2", "phi", "gemma3"])
@pytest.mark.parametrize("bits", BITS)
def test_linear_layers_and_nothing_else_are_quantised(bits: str, arch: str) -> None:
    from tunesmith.models.adapters import linear_modules
    from tunesmith.models.load import load
    from tunesmith.models.quantize import is_quantised, parameter_bytes

    save_base(arch) if arch == "llama" else tiny_model(arch).save_pretrained("base")
    whole = load("base").model
    loaded = load("base", bits=bits)
    found = loaded.quantised
    assert found is not None
    inside = [n for n, m in loaded.model.named_modules() if is_quantised(m)]
    assert inside == linear_modules(whole)
    matrices = sum(whole.get_submodule(n).weight.numel() for n in inside)
    assert found.modules == len(inside)
    assert found.bytes_before == 4 * matrices
    # Four-bit layers have a table of 1 KB each, eight-bit ones a scale for each output.
    most = 0.55 * matrices + 1500 * len(inside) if bits == "4bit" else 1.3 * matrices
    assert found.bytes_after < most
    assert found.others + found.bytes_before == sum(4 * p.numel() for p in whole.parameters())
    before = parameter_bytes(loaded.model)
    loaded.model(input_ids=IDS)
    assert parameter_bytes(loaded.model) == before == found.bytes_after + found.others
    assert loaded.model.get_output_embeddings().weight.dtype == torch.float32


@needs_package
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_packed_equals_unpacked(bits: str, checkpointing: bool) -> None:
    from tunesmith.models.adapters import recompute_activations

    model = adapted(bits)
    if checkpointing:
        recompute_activations(model)
        model.train()
    rows = make_rows(6)
    packed, alone = (gradients(model, rows, packing=p) for p in (True, False))
    tolerance = 2e-6
    assert packed[0] == pytest.approx(alone[0], rel=tolerance)
    for name, value in packed[1].items():
        if value is not None:
            error = (value - alone[1][name]).norm() / alone[1][name].norm().clamp_min(1e-6)
            assert error < 10 * tolerance, name


@needs_package
@pytest.mark.parametrize("bits", BITS)
def test_the_engine_generates_with_a_quantised_model(bits: str) -> None:
    from tunesmith.generate.engine import Engine
    from tunesmith.generate.reference import generate_one

    model = adapted(bits).eval()
    requests = make_requests(4)
    made = {c.key: c for c in Engine(model, decode, STOP, max_slots=3).run(requests)}
    alone = {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert made == alone


@needs_package
@pytest.mark.parametrize(
    ("bits", "variant"),
    [("4bit", {}), ("4bit", {"use_dora": True}), ("8bit", {"freeze_ratio": 0.5})],
    ids=str,
)
def test_the_adapter_is_a_plain_one_for_the_base_as_it_was(
    bits: str, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Tensor] = []
    finish = workflow.finish

    @torch.no_grad()
    def look(done: Any, before: Any) -> None:
        made.append(done.loaded.model.eval()(input_ids=IDS).logits)
        finish(done, before)

    monkeypatch.setattr(workflow, "finish", look)
    settings = {f"load_in_{bits}": True, "lora": True, "lora_rank": 4, **variant}
    run = tunesmith.train(**BASE, **settings).run
    config = json.loads((run / "final_model" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert not any(isinstance(v, str) and "quant" in v for v in config.values())
    base, held = (AutoModelForCausalLM.from_pretrained("base", **k) for k in ({}, quantised(bits)))
    with torch.no_grad():
        befores = [model(input_ids=IDS).logits for model in (base, held)]
        tuned, same = (
            PeftModel.from_pretrained(model, run / "final_model").eval()(input_ids=IDS).logits
            for model in (base, held)
        )
    assert torch.equal(same, made[0])
    learnt = [
        (after - before).flatten() for after, before in zip((tuned, same), befores, strict=True)
    ]
    assert torch.cosine_similarity(*learnt, dim=0) > 0.5
    name = "NF4" if bits == "4bit" else "int8"
    assert f"quantised to {name}" in (run / "final_model" / "README.md").read_text()


@needs_package
@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_4bit": True, "lora": True, "optim": "adamw_8bit", "lora_rank": 64},
        {"load_in_8bit": True, "lora": True, "lora_rank": 4, "gradient_checkpointing": True},
        pytest.param({"optim": "adamw_8bit"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {**BASE, "max_steps": 6, "save_steps": 3, **settings}
    whole = tunesmith.train(**{**common, "run_name": "whole"}).run
    checkpoint = workflow._Run._checkpoint

    def stop_there(self: Any, state: Any) -> None:
        checkpoint(self, state)
        if state.step == 3:
            raise Interrupted("stopped")

    monkeypatch.setattr(workflow._Run, "_checkpoint", stop_there)
    with pytest.raises(Interrupted):
        tunesmith.train(**{**common, "run_name": "parts"})
    monkeypatch.setattr(workflow._Run, "_checkpoint", checkpoint)
    state = whole.parent / "parts" / "checkpoints" / "checkpoint-step-3"
    assert {p.suffix for p in state.iterdir()} == {".json", ".safetensors"}
    if "optim" in settings:
        from safetensors.torch import load_file

        kept = load_file(state / "optimizer.safetensors")
        assert any(t.dtype == torch.uint8 for t in kept.values())
    tunesmith.train(**{**common, "run_name": "parts", "resume": "auto"})
    left, right = (weights(name) for name in ("whole", "parts"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@needs_package
@pytest.mark.slow
def test_a_graded_task_is_measured_on_what_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--task", "units", "--model", "base", "--lora", "--load-in-4bit"]
    command += ["--max-rows", "24", "--max-steps", "2", "--eval-questions", "2"]
    assert main([*command, "--max-length", "200", "--report-to", "none", "--run-name", "u"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Quantised to NF4 with double quantisation: 14 linear layers" in said
    assert "head, embeddings and norms" in said
    assert (Path("runs/u/eval/tuned") / "attempts.jsonl").is_file()


@needs_package
@pytest.mark.parametrize("bits", BITS)
def test_an_estimate_counts_the_quantised_weights(bits: str) -> None:
    from tunesmith.models.load import load
    from tunesmith.models.quantize import parameter_bytes

    settings = {k: v for k, v in BASE.items() if k != "run_name"}
    settings |= {f"load_in_{bits}": True, "lora": True, "lora_rank": 4}
    found = estimate(**settings, probe_steps=1)
    plain = estimate(**{**settings, f"load_in_{bits}": False}, probe_steps=0)
    saved = parameter_bytes(load("base").model) - parameter_bytes(load("base", bits=bits).model)
    assert plain.memory.parameters - found.memory.parameters == saved
    assert found.memory.activations == plain.memory.activations


@needs_package
def test_eight_bit_moments_are_counted_as_they_are() -> None:
    from tunesmith.train.estimate import static_memory
    from tunesmith.train.loop import Settings, make_optimizer

    model = tiny_model(hidden_size=64)
    optimizer = make_optimizer(model, Settings(0.01, optim="adamw_8bit"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = 0
    for state in optimizer.state.values():
        kept += sum(t.nbytes for k, t in state.items() if k[:4] != "qmap" and hasattr(t, "nbytes"))
    _, _, counted = static_memory(model, "adamw_8bit")
    assert counted == kept + 4 * len(optimizer.state)
