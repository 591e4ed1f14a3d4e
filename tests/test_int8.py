"""Weights in int8: what the engine generates with them, what they take, and what they refuse."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

import tunesmith
from test_engine import STOP, decode, make_requests
from tiny_models import ALL_BY_NIGHT, ARCHITECTURES, tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema import ModelOptions
from tunesmith.data.render import Renderer
from tunesmith.errors import ModelError, UsageError
from tunesmith.evaluate.records import load as load_set
from tunesmith.generate.engine import Engine
from tunesmith.generate.reference import generate_one
from tunesmith.models import int8_weights
from tunesmith.models.adapters import add_lora
from tunesmith.models.fused_lora import fuse_lora
from tunesmith.models.int8_weights import (
    Int8Embedding,
    Int8Linear,
    held_bytes,
    hold_in_int8,
    quantise_rows,
)
from tunesmith.models.load import load
from tunesmith.workflows.voices import open_base

IDS = torch.arange(4, 44)[None]
QUIET = {"log_level": "error", "max_new_tokens": 4, "limit": 2}


def linear(out: int = 5, width: int = 7, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(out_features=out, in_features=width, bias=bias)


def in_int8(layer: torch.nn.Linear, dtype: torch.dtype = torch.float32) -> Int8Linear:
    return Int8Linear(*quantise_rows(layer.weight.detach()), dtype, layer.bias)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    return Path("base")


def adapter(folder: str = "adapter", arch: str = "llama", **kind: Any) -> str:
    """Save a base and an adapter on it that changes answers; return the adapter's folder."""
    tiny_model(arch).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    model = add_lora(tiny_model(arch), rank=4, alpha=8, base_name="base", **kind)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.normal_(0, 0.1, generator=torch.Generator().manual_seed(value.numel()))
    model.save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("block", [1, 2, 100])
def test_a_product_is_that_of_the_dequantised_weight(
    rows: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_weights, "BLOCK_BYTES", block * 7 * 4)
    layer = in_int8(linear())
    x = torch.randn(2, rows, 7)
    expected = x @ layer.weight.t() + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_no_number_moves_by_more_than_half_a_scale() -> None:
    weight = torch.randn(40, 30) * torch.logspace(-6, 6, 40)[:, None]
    values, scales = quantise_rows(weight)
    torch.testing.assert_close(scales, weight.abs().amax(1) / 127)
    moved = (values * scales[:, None] - weight).abs()
    assert (moved <= scales[:, None] * 0.50001).all()


@pytest.mark.parametrize("tiny", [0.0, 1e-45])
def test_a_row_of_zeros_stays_one(tiny: float) -> None:
    layer = linear()
    with torch.no_grad():
        layer.weight[2] = tiny
    held = in_int8(layer)
    assert held.scales[2] == 1
    assert held(torch.randn(4, 7))[:, 2].tolist() == [layer.bias[2].item()] * 4


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_numbers_that_int8_cannot_hold_are_refused(odd: float) -> None:
    weight = torch.ones(3, 3)
    weight[1, 1] = odd
    with pytest.raises(ModelError, match="which int8 cannot hold"):
        quantise_rows(weight)


def test_bfloat16_is_rounded_once_more_only() -> None:
    layer, x = in_int8(linear(), torch.bfloat16).to(torch.bfloat16), torch.randn(3, 7)
    layer.scales = layer.scales.float()
    x = x.bfloat16()
    expected = x.double() @ (layer.values.double() * layer.scales.double()[:, None]).t()
    found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected + layer.bias, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("arch", ALL_BY_NIGHT)
def test_the_engine_equals_sequential_generation(arch: str) -> None:
    model = tiny_model(arch)
    hold_in_int8(model, torch.float32)
    requests = make_requests(5)
    made = {done.key: done for done in Engine(model, decode, STOP, max_slots=4).run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_matrix_is_quantised_and_memory_falls(arch: str) -> None:
    model = tiny_model(arch)
    before, names = held_bytes(model), set(model.state_dict())
    held = hold_in_int8(model, torch.float32)
    kinds = [type(m) for m in model.modules()]
    assert not {torch.nn.Linear, Conv1D} & set(kinds)
    tied = model.config.tie_word_embeddings
    assert held.matrices == sum(kinds.count(k) for k in (Int8Linear, Int8Embedding)) - tied
    whole = [p for p in model.parameters() if p.dim() > 1]
    assert len(whole) == (arch == "gpt2")  # the embeddings of positions
    assert held_bytes(model) == held.bytes_after + held.others
    numbers = held.bytes_before // 4
    rows = sum(m.scales.numel() for m in model.modules() if isinstance(m, Int8Linear))
    rows += 0 if tied else model.get_input_embeddings().scales.numel()
    assert held.bytes_after == numbers + 4 * rows
    assert held_bytes(model) == before - held.bytes_before + held.bytes_after
    assert names >= {n for n in model.state_dict() if not n.endswith((".values", ".scales"))}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_those_of_the_dequantised_model(arch: str) -> None:
    model, other = tiny_model(arch), tiny_model(arch)
    plain = logits(model)
    with torch.no_grad():
        for module in other.modules():
            weight = getattr(module, "weight", None)
            words = module is other.get_input_embeddings()
            if not (isinstance(module, torch.nn.Linear | Conv1D) or words):
                continue
            if words and other.get_output_embeddings().weight is weight:
                continue  # the same matrix, as the head
            by_row = weight.t() if isinstance(module, Conv1D) else weight
            values, scales = quantise_rows(by_row)
            by_row.copy_(values * scales[:, None])
    hold_in_int8(model, torch.float32)
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-4, atol=1e-4)
    assert 0 < (logits(model) - plain).abs().max() / plain.std() < 0.5


def test_a_head_is_off_by_no_more_than_its_scales_allow() -> None:
    """A logit moves by at most half a scale for each unit of its input."""
    model = tiny_model("llama", tie_word_embeddings=False)
    head = model.get_output_embeddings()
    state = torch.randn(6, 32)
    held = in_int8(head)
    moved = (held(state) - head(state)).abs()
    bound = 0.5 * held.scales * state.abs().sum(1, keepdim=True)
    assert (moved <= bound * 1.001 + 1e-5).all()
    assert moved.max() > 0.1 * bound.min()


def test_a_tied_head_is_one_matrix() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    hold_in_int8(model, torch.float32)
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert words.values.data_ptr() == head.values.data_ptr()
    assert isinstance(head, Int8Linear)
    torch.testing.assert_close(words(torch.tensor([5]))[0], head.weight[5])


def test_a_matrix_that_another_module_holds_stays_whole() -> None:
    class Odd(torch.nn.Embedding):
        pass

    model = tiny_model("llama", tie_word_embeddings=True)
    model.get_input_embeddings().__class__ = Odd
    whole = model.get_input_embeddings().weight.clone()
    held = hold_in_int8(model, torch.float32)
    assert held.matrices == 14
    assert torch.equal(model.get_output_embeddings().weight, whole)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [{}, {"dora": True}], ids=["lora", "dora"])
def test_an_adapter_lies_on_top(arch: str, kind: dict[str, Any], base: Path) -> None:
    folder = adapter(arch=arch, **kind)
    loaded = load(folder, int8=True)
    assert not {type(m) for m in loaded.model.modules()} & {Conv1D, torch.nn.Embedding} or (
        arch == "gpt2"
    )
    assert not [
        n for n, m in loaded.model.named_modules() if isinstance(m, Int8Linear) and "lora_" in n
    ]
    other = tiny_model(arch)
    hold_in_int8(other, torch.float32)
    with torch.no_grad():
        with loaded.model.disable_adapter():
            torch.testing.assert_close(logits(loaded.model), logits(other))
        plain = PeftModel.from_pretrained(tiny_model(arch), folder).eval()
        near, far = logits(plain), logits(other)
        off = (logits(loaded.model) - near).abs().mean()
        assert off < 0.3 * (far - near).abs().mean()
    assert fuse_lora(loaded.model) == 0
    requests = make_requests(2)
    made = {done.key: done for done in Engine(loaded.model, decode, STOP).run(requests)}
    assert made == {r.key: generate_one(loaded.model, r, decode, STOP) for r in requests}


def test_what_an_adapter_brings_stays_whole(base: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "modules_to_save" in name:
                value += 1e-4
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("adapter")
    loaded = load("adapter", int8=True)
    [saved] = [v for n, v in load_file("adapter/adapter_model.safetensors").items() if "head" in n]
    head = loaded.model.get_output_embeddings()
    torch.testing.assert_close(head(torch.eye(32)).t(), saved, rtol=0, atol=0)
    # A file in a narrower type does not round them either.
    tiny_model("llama").to(torch.bfloat16).save_pretrained("base")
    head = load("adapter", int8=True).model.get_output_embeddings()
    torch.testing.assert_close(head(torch.eye(32)).t(), saved, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_weights_of_a_bfloat16_file_are_taken_from_it(arch: str, tmp_path: Path) -> None:
    tiny_model(arch).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path), dtype="float32", int8=True)
    other = load(str(tmp_path), dtype="float32").model
    hold_in_int8(other, torch.float32)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(logits(loaded.model), logits(other))
    assert logits(load(str(tmp_path), dtype="bfloat16", int8=True).model).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainable": True}, "cannot be trained"),
        ({"bits": "8bit"}, "cannot be trained, nor quantised once more"),
        ({"dtype": "float16"}, "do not go with float16"),
    ],
    ids=str,
)
def test_what_int8_does_not_go_with_is_refused(
    settings: dict[str, Any], said: str, base: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        load("base", int8=True, **settings)


def test_a_base_that_is_quantised_already_is_refused(base: Path) -> None:
    config = base / "config.json"
    text = config.read_text(encoding="utf-8").rstrip().rstrip("}")
    config.write_text(text + ', "quantization_config": {"load_in_8bit": true}}')
    with pytest.raises(ModelError, match="was quantised when it was saved"):
        load("base", int8=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["eval", "--address", "http://localhost:1/v1", "--model", "m"], "does nothing with --add"),
        (["eval", "--backend", "vllm"], "vllm"),
        (["sample", "--output", "o.jsonl", "--dtype", "float16"], "do not go with float16"),
        (["generate", "--prompt", "a", "--dtype", "float16"], "do not go with float16"),
        (["train", "--dataset", "x.jsonl"], "--weights"),
    ],
    ids=str,
)
def test_mistakes_are_sentences(
    line: list[str], said: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line, "--weights", "int8"]) == 2
    assert said in capsys.readouterr().err


def test_an_evaluation_says_int8_and_is_a_set_of_its_own(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tunesmith.evaluate(model="base", **QUIET)
    small = tunesmith.evaluate(model="base", weights="int8", **QUIET)
    assert small.folder.name == f"{full.folder.name}-int8"
    header = load_set(small.folder).header
    assert header.details["weight format"] == "int8"
    assert header.model.endswith(", weights in int8")
    assert "weight format" not in load_set(full.folder).header.details
    assert header.fingerprint != load_set(full.folder).header.fingerprint
    assert main(["compare", str(full.folder), str(small.folder)]) == 0
    assert f"{small.folder.name}: " in capsys.readouterr().out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows with every run of the engine: whether its model is in int8."""
    found: list[bool] = []
    run = Engine.run

    def look(self: Engine, *given: Any, **more: Any) -> Any:
        found.append(any(isinstance(m, Int8Linear) for m in self._model.modules()))
        return run(self, *given, **more)

    monkeypatch.setattr(Engine, "run", look)
    return found


@pytest.mark.parametrize("weights", ["full", "int8"])
@pytest.mark.parametrize(
    "verb",
    [
        ["eval", "--limit", "1"],
        ["sample", "--prompt", "direct", "--limit", "1", "--samples", "1", "--output", "o.jsonl"],
        ["generate", "--prompt", "a"],
        ["chat"],
    ],
    ids=lambda verb: verb[0],
)
def test_every_verb_that_generates_takes_it(
    verb: list[str], weights: str, base: Path, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main([*verb, "--model", "base", "--max-new-tokens", "2", "--weights", weights]) == 0
    assert seen == [weights == "int8"]


def test_generate_and_its_base_are_both_in_int8(
    base: Path, seen: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter()
    line = ["generate", "--prompt", "a", "--model", folder, "--compare-base", "--max-new-tokens"]
    assert main([*line, "3", "--weights", "int8"]) == 0
    assert seen == [True, True]
    said = capsys.readouterr().err
    assert "Weights in int8, a scale for each row: 16 matrices" in said


def test_the_base_of_a_whole_model_is_in_int8_too(base: Path) -> None:
    """As that of an adapter, which is the same copy of the weights."""
    run = Path("runs/r")
    (run / "final_model").mkdir(parents=True)
    tiny_model("llama", seed=1).save_pretrained(run / "final_model")
    tiny_tokenizer().save_pretrained(run / "final_model")
    (run / "config.yaml").write_text("model: base\n", encoding="utf-8")
    for int8 in (False, True):
        tuned = load(str(run), int8=int8)
        before = open_base(ModelOptions(), tuned, Renderer(tuned.tokenizer))
        assert bool(before.loaded.int8) is int8
