"""Ways to train: each changes what it says, and what it saves loads without us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import tunesmith
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import ModelError, UsageError
from tunesmith.models.adapters import add_lora, frozen_blocks, least_ratio
from tunesmith.train.groups import parameter_groups
from tunesmith.workflows import train as workflow
from tunesmith.workflows.method import make_trainable
from tunesmith.workflows.train import TrainResult

IDS = torch.arange(4, 44)[None]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl")
    save_base("base")


def save_base(folder: str, arch: str = "llama") -> None:
    tiny_model(arch).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def trained(**settings: Any) -> TrainResult:
    common = {"dataset": "rows.jsonl", "model": "base", "max_steps": 3, "log_level": "error"}
    common |= {"report_to": "none", "learning_rate": 0.01, "run_name": "r"}
    return tunesmith.train(**{**common, **settings})


def train(**settings: Any) -> Path:
    return trained(**settings).run


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def in_memory(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that fills with the logits of each finished model before it is saved."""
    found: list[torch.Tensor] = []
    finish = workflow.finish

    def look(done: Any, before: Any) -> None:
        found.append(logits(done.loaded.model))
        finish(done, before)

    monkeypatch.setattr(workflow, "finish", look)
    return found


VARIANTS = [
    {"use_rslora": True},
    {"use_dora": True},
    {"lora_init": "pissa"},
    {"lora_init": "pissa", "use_rslora": True},
    {"lora_plus_ratio": 8.0},
]
NIGHTLY = [*VARIANTS[:2], *(pytest.param(one, marks=pytest.mark.slow) for one in VARIANTS[2:])]


@pytest.mark.parametrize("arch", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_variant_of_lora_works_on_the_original_base_with_peft_alone(
    variant: dict[str, Any], arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_base("base", arch)
    made = in_memory(monkeypatch)
    run = train(lora=True, lora_rank=4, **variant)
    base = AutoModelForCausalLM.from_pretrained("base")
    before = logits(base)
    after = logits(PeftModel.from_pretrained(base, run / "final_model"))
    assert torch.allclose(after, made[0], atol=1e-3 * float(after.abs().max()))
    assert not torch.allclose(before, after, atol=1e-2 * float(after.abs().max()))
    best = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("base"), run / "best_model"
    )
    assert torch.allclose(logits(best), after, atol=1e-5)


def test_variants_are_saved_as_what_they_are() -> None:
    def saved(name: str, **variant: Any) -> dict[str, Any]:
        run = train(lora=True, lora_rank=4, run_name=name, **variant)
        found: dict[str, Any] = json.loads((run / "final_model/adapter_config.json").read_text())
        return found

    assert saved("rs", use_rslora=True)["use_rslora"] is True
    assert saved("dora", use_dora=True)["use_dora"] is True
    pissa = saved("pissa", lora_init="pissa")
    assert (pissa["r"], pissa["lora_alpha"], pissa["init_lora_weights"]) == (8, 16, True)


def test_pissa_starts_as_the_base_and_from_its_largest_singular_values() -> None:
    base = tiny_model("llama")
    weight = base.model.layers[0].mlp.up_proj.weight.detach().clone()
    before = logits(base)
    adapted = add_lora(base, rank=4, alpha=8, pissa=True)
    assert torch.allclose(logits(adapted), before, atol=1e-3 * float(before.abs().max()))
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    residual = torch.linalg.svdvals(layer.base_layer.weight)[0]
    assert residual == pytest.approx(float(torch.linalg.svdvals(weight)[4]), rel=1e-3)


def test_pissa_cannot_take_more_values_than_there_are() -> None:
    with pytest.raises(ModelError, match="16 singular values"):
        add_lora(tiny_model("llama"), rank=17, alpha=8, pissa=True)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    for rslora, scale in ((False, 2.0), (True, 8.0)):
        adapted = add_lora(tiny_model("llama"), rank=16, alpha=32, rslora=rslora)
        layer = adapted.base_model.model.model.layers[0].mlp.up_proj
        assert layer.scaling["default"] == scale


def test_lora_plus_raises_the_rate_of_b_alone() -> None:
    adapted = add_lora(tiny_model("llama"), rank=4, alpha=8)
    names = {id(p): name for name, p in adapted.named_parameters()}
    groups = parameter_groups(adapted, 0.01, 0.1, lora_plus=16)
    rates = {names[id(p)]: g["initial_lr"] for g in groups for p in g["params"]}
    assert len(rates) == 2 * 2 * 7
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {0.01}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {0.16}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--use-dora --lora --lora-init pissa", "cannot both be given"),
        ("--lora-rank 8", "--lora-rank does nothing without --lora"),
        ("--use-dora", "--use-dora does nothing without --lora"),
        ("--lora-plus-ratio 4", "--lora-plus-ratio does nothing without --lora"),
        ("--shared-prefix grouped --neftune-alpha 5", "noise is drawn for each row"),
        ("--shared-prefix grouped --no-packing", "does nothing without --packing"),
    ],
)
def test_settings_that_do_not_go_together(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"train --dataset rows.jsonl --model base {command}"
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_training_goes_on_in_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    first = train(lora=True, lora_rank=4, use_rslora=True)
    second = train(model=str(first), lora=True, run_name="s", learning_rate=1e-9, log_level="info")
    assert "goes on in the adapter r" in capsys.readouterr().err
    base = AutoModelForCausalLM.from_pretrained("base")
    after = logits(PeftModel.from_pretrained(base, first / "final_model"))
    base = AutoModelForCausalLM.from_pretrained("base")
    further = logits(PeftModel.from_pretrained(base, second / "final_model"))
    assert torch.allclose(after, further, atol=1e-4)
    assert not torch.equal(after, further)
    saved = json.loads((second / "final_model/adapter_config.json").read_text())
    assert (saved["r"], saved["use_rslora"], saved["base_model_name_or_path"]) == (4, True, "base")
    # The settings of the run are those that held, not those of the task.
    assert "lora_rank: 4\n" in (second / "config.yaml").read_text()
    train(model=str(first / "final_model"), lora=True, lora_rank=4, run_name="t")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("--lora --lora-rank 8", "--lora-rank 8 was asked for, the adapter's is 4"),
        ("--lora --lora-alpha 1", "--lora-alpha 1 was asked for, the adapter's is 8"),
        ("--lora --use-dora", "--use-dora true was asked for, the adapter's is false"),
        ("--lora --lora-init pissa", "--lora-init pissa was asked for"),
        ("--lora --lora-target-modules q_proj", "the adapter's are down_proj, gate_proj"),
        ("", "without --lora its base would be trained"),
    ],
)
def test_an_adapter_is_not_trained_as_what_it_is_not(
    settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = add_lora(tiny_model("llama"), rank=4, alpha=8, base_name="base")
    adapted.save_pretrained("adapter")
    assert main(f"train --dataset rows.jsonl --model adapter {settings}".split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("init", [pytest.param("default", marks=pytest.mark.slow), "pissa"])
def test_a_run_that_goes_on_in_an_adapter_resumes(init: str) -> None:
    first = train(lora=True, lora_rank=4, lora_init=init)
    same = {"model": str(first), "lora": True, "max_steps": 4, "save_steps": 2}
    check_resume(same)


def check_resume(settings: dict[str, Any]) -> None:
    """Tear the last checkpoint of a finished run and resume it; compare all that was trained."""
    from safetensors.torch import load_file

    def weights(run: Path) -> dict[str, torch.Tensor]:
        [file] = (run / "final_model").glob("*.safetensors")
        return load_file(file)

    straight = train(run_name="straight", **settings)
    stopped = shutil.copytree(straight, straight.with_name("stopped"))
    shutil.rmtree(stopped / "final_model")
    last = max(stopped.glob("checkpoints/checkpoint-step-*"), key=lambda p: int(p.name[16:]))
    (last / "model.safetensors").write_bytes(b"torn")
    resumed = weights(train(run_name="stopped", resume="auto", **settings))
    expected = weights(straight)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


@pytest.mark.parametrize("variant", NIGHTLY, ids=str)
def test_a_run_of_a_variant_resumes_to_the_bit(variant: dict[str, Any]) -> None:
    check_resume({"lora": True, "lora_rank": 4, "max_steps": 4, "save_steps": 2, **variant})


@pytest.mark.parametrize(
    "method",
    [
        {"optim": "adafactor", "neftune_alpha": 5.0},
        pytest.param(
            {"layer_lr_decay": 0.5, "neftune_alpha": 5.0, "packing": False}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_run_of_all_weights_resumes_to_the_bit(method: dict[str, Any]) -> None:
    check_resume({"max_steps": 4, "save_steps": 2, "eval_steps": 1, **method})


@pytest.mark.parametrize("method", [{"optim": "adafactor"}, {"neftune_alpha": 5.0}], ids=str)
def test_all_weights_are_saved_for_transformers_alone(
    method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = in_memory(monkeypatch)
    run = train(**method)
    saved = logits(AutoModelForCausalLM.from_pretrained(run / "final_model"))
    assert torch.allclose(saved, made[0], atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"lora": True, "lora_rank": 4}], ids=str)
def test_a_ratio_that_freezes_nothing_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"0\.4 of the 2 layers .* none") as refused:
        train(freeze_ratio=0.4, **more)
    assert refused.value.hint == "--freeze-ratio 0.5"
    assert not Path("runs").exists()
    loaded: Any = SimpleNamespace(model=tiny_model("llama"), new_tokens=None)
    with pytest.raises(UsageError, match="none"):
        make_trainable(FineTuningConfig(freeze_ratio=0.4, **more), loaded)
    train(freeze_ratio=0.5, max_steps=1, **more)


@pytest.mark.parametrize("layers", [1, 3, 5, 7, 12, 25, 28, 29, 49, 100, 126])
def test_the_least_ratio_that_freezes_a_layer_is_offered(layers: int) -> None:
    least = least_ratio(layers)
    assert frozen_blocks(layers, least) >= 1
    assert frozen_blocks(layers, least - 0.01) == 0
