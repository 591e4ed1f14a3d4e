"""GGUF files: what is written, what is refused, and that llama.cpp says what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tunesmith
from tiny_models import CHATML, tiny_model, tiny_tokenizer
from tunesmith.data.render import Renderer
from tunesmith.data.templates import PLAIN
from tunesmith.errors import ModelError
from tunesmith.export import gguf_words
from tunesmith.export.gguf_file import check_shape
from tunesmith.export.gguf_words import words_of
from tunesmith.export.ollama import frame_of, modelfile
from tunesmith.models.load import load_tokenizer


def smollm2(shared: Path) -> Any:
    """Return SmolLM2's tokenizer as its file says; its class would cut as GPT-2 does."""
    file = str(shared / "data" / "tokenizers" / "smollm2" / "tokenizer.json")
    made = PreTrainedTokenizerFast(
        tokenizer_file=file, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    made.chat_template = CHATML
    return made


def test_the_way_of_cutting_is_read_off_the_tokenizer(shared: Path) -> None:
    assert words_of(load_tokenizer("tunesmith/tiny").tokenizer, 642).pre == "smollm"
    assert words_of(tiny_tokenizer(), 304).pre == "gpt-2"
    assert words_of(smollm2(shared), 49152).pre == "smollm"


def with_cut(*steps: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            with_cut(pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(False)),
            "no name for how this tokenizer cuts text \\(digits False",
        ),
        (
            with_cut(pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)),
            "Whitespace",
        ),
        (with_cut(pre_tokenizers.ByteLevel(True)), "ByteLevel True"),
    ],
)
def test_a_way_that_llama_cpp_does_not_know_is_refused(tokenizer: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        words_of(tokenizer, 304)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="the model 100 rows"):
        words_of(tiny_tokenizer(), 100)


def test_pieces_have_their_kinds_and_unused_rows_are_filled() -> None:
    words = words_of(load_tokenizer("tunesmith/tiny").tokenizer, 650)
    assert words.pieces[0] == "<|start|>"
    assert words.kinds[0] == gguf_words.CONTROL
    assert words.kinds[640] == gguf_words.USER_DEFINED
    assert words.pieces[649] == "[PAD649]"
    assert words.kinds[649] == gguf_words.UNUSED
    assert words.merges[0] == "Ġ ="


def test_pieces_with_bytes_get_scores_in_the_order_of_merges(shared: Path) -> None:
    folder = str(shared / "models" / "stories260K")
    words = words_of(load_tokenizer(folder).tokenizer, 512)
    assert (words.model, words.space_first) == ("llama", True)
    number = words.pieces.index
    assert words.scores[number("▁t")] == 0.0 > words.scores[number("he")]
    assert words.kinds[:4] == [
        gguf_words.UNKNOWN,
        gguf_words.CONTROL,
        gguf_words.CONTROL,
        gguf_words.BYTE,
    ]


@pytest.mark.parametrize(
    ("arch", "settings", "message"),
    [
        ("phi", {}, "Models of type phi are not written"),
        ("gemma2", {}, "type gemma2"),
        ("mistral", {}, "within a window of 8 tokens"),
        ("llama", {"hidden_act": "gelu"}, "with silu, this model with gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "Positions scaled by dynamic",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled in another way"),
        ("gpt2", {"activation_function": "relu"}, "with gelu_new, this model with relu"),
    ],
)
def test_other_shapes_are_refused_by_name(
    arch: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_shape(tiny_model(arch, **settings).config)


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_template_is_said_in_ollamas_language(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    frame = frame_of(tokenizer, Renderer(tokenizer))
    assert frame is not None
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    wanted = tokenizer.apply_chat_template(turns * 2, tokenize=False, add_generation_prompt=True)
    assert frame.text(turns * 2) == wanted
    text, said = modelfile(tokenizer, Renderer(tokenizer), "model-f16.gguf")
    assert said
    assert text.startswith("FROM ./model-f16.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_template_that_looks_at_its_turns_is_not(shared: Path) -> None:
    tokenizer = tiny_tokenizer((shared / "data" / "chat_templates" / "qwen2_5.jinja").read_text())
    assert frame_of(tokenizer, Renderer(tokenizer)) is None
    text, said = modelfile(tokenizer, Renderer(tokenizer), "model-f16.gguf")
    assert not said
    assert "TEMPLATE" not in text


def export(model: Path | str, out: Path, *types: str) -> dict[str, Any]:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    given = {"model": str(model), "output_dir": str(out), "formats": ["gguf"]}
    found = tunesmith.export(**given, gguf_types=list(types or ("f32",))).manifest["parity"]
    assert all(one["verified"] for one in found.values()), found
    for path, one in found.items():
        print(path, {k: one[k] for k in ("relative", "kl", "top1", "greedy", "answers", "ties")})
    return {
        path.removeprefix("gguf/model-").removesuffix(".gguf"): one for path, one in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("which", ["tunesmith/tiny", "stories260K"])
def test_an_adapter_says_the_same_through_llama_cpp(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = which
    if which == "stories260K":
        base = str(request.getfixturevalue("shared") / "models" / which)
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(24))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tunesmith.train(
        model=base, dataset=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "runs"),
        lora=True, max_steps=8, learning_rate=1e-2, forgetting=False, report_to="none",
        max_length=256, packing=False,
    ).run  # fmt: skip
    found = export(run, tmp_path / "out", "f32", "f16", "q8_0")
    assert found["f32"]["greedy"] == found["f32"]["answers"]
    assert found["f32"]["kl"] < 1e-9
    assert found["f32"]["kl"] < found["f16"]["kl"] < found["q8_0"]["kl"] < 1e-2


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("gpt2", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "settings"), SHAPES, ids=str)
def test_each_shape_says_the_same_through_llama_cpp(
    arch: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    # Of these weights no answer has a </s>, which llama.cpp takes for an end.
    tiny_model(arch, seed=1, **settings).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    assert export(tmp_path / "base", tmp_path / "out")["f32"]["greedy"] == 6


@pytest.mark.slow
def test_llama_cpp_cuts_as_a_real_tokenizer_does(shared: Path, tmp_path: Path) -> None:
    tokenizer = smollm2(shared)
    model = tiny_model("llama", vocab=len(tokenizer), bos_token_id=1, eos_token_id=2)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    export(tmp_path / "base", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_the_wrong_way_of_cutting_is_found(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that were merged with others, in a tokenizer that cuts digits apart."""
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<|im_end|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(["12 1000000 2024 the 12 1000000 2024 cat"], trainer)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    model = tiny_model("llama", vocab=len(tokenizer), eos_token_id=1)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    if not wrong:
        export(tmp_path / "base", tmp_path / "out")
        return
    monkeypatch.setattr(gguf_words, "_cut", lambda content: "gpt-2")
    with pytest.raises(ModelError, match="texts are cut into other tokens"):
        export(tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_file_holds_template_special_tokens_and_types(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from tunesmith.export.gguf_file import write_gguf

    tokenizer = tiny_tokenizer()
    for kind in ("f16", "q8_0"):
        path = tmp_path / f"{kind}.gguf"
        # Rows of 48 numbers are no blocks of 32.
        wide = write_gguf(tiny_model(), tokenizer, Renderer(tokenizer), kind, path, "x")
        assert wide == (2 if kind == "q8_0" else 0)
        fields = gguf.GGUFReader(path).fields
        assert fields["tokenizer.chat_template"].contents() == CHATML
        assert fields["tokenizer.ggml.eos_token_id"].contents() == 3
        assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    used = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert used["blk.0.attn_q.weight"] == "Q8_0"
    assert used["blk.0.ffn_down.weight"] == "F16"
    assert used["output_norm.weight"] == "F32"
