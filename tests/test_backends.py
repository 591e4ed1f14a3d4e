"""Local backends behind one interface: the engine, and transformers' generate as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.data.render import Renderer
from tunesmith.errors import UsageError
from tunesmith.evaluate.records import load
from tunesmith.generate.backends import Backend, Question
from tunesmith.generate.local import EngineBackend, TransformersBackend
from tunesmith.generate.requests import Completion, Sampling
from tunesmith.types import Segment, StopReason


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer())


def questions(count: int, **sampling: object) -> list[Question]:
    how = Sampling(**{"max_new_tokens": 12, **sampling})  # type: ignore[arg-type]
    texts = [f"how many {'cats ' * n}are there" for n in range(count)]
    return [Question(n, (Segment("user", text),), how, n) for n, text in enumerate(texts)]


def made(backend: Backend, asked: Sequence[Question]) -> dict[object, Completion]:
    return {done.key: done for done in backend.answers(asked)}


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
def test_transformers_and_the_engine_agree_greedily(arch: str, renderer: Renderer) -> None:
    model = tiny_model(arch)
    # What a model's own settings would do to every call that does not say otherwise.
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 1
    asked = questions(11, logprobs=True)
    ours = made(EngineBackend(model, renderer), asked)
    theirs = made(TransformersBackend(model, renderer, 4), asked)
    assert model.generation_config.repetition_penalty == 5.0
    assert {k: (d.tokens, d.text, d.stop) for k, d in ours.items()} == {
        k: (d.tokens, d.text, d.stop) for k, d in theirs.items()
    }
    for key, done in ours.items():
        assert theirs[key].logprobs == pytest.approx(done.logprobs, abs=1e-3)
        assert done.logprobs


def test_stop_strings_cut_alike(renderer: Renderer) -> None:
    model = tiny_model("llama")
    [free] = made(EngineBackend(model, renderer), questions(1)).values()
    stop = (free.text[4:6],)
    asked = questions(6, stop=stop)
    ours = made(EngineBackend(model, renderer), asked)
    assert ours == made(TransformersBackend(model, renderer), asked)
    assert ours[0].stop is StopReason.STOP_STRING


def test_samples_are_repeatable_and_differ_by_seed(renderer: Renderer) -> None:
    model = tiny_model("llama")
    backend = TransformersBackend(model, renderer)
    asked = questions(4, temperature=1.0, top_p=0.9, top_k=20, min_p=0.01)
    assert made(backend, asked) == made(backend, asked)
    others = [Question(q.key, q.messages, q.sampling, 100 + q.seed) for q in asked]
    assert made(backend, asked) != made(backend, others)


def test_the_positions_of_a_model_limit_answers(renderer: Renderer) -> None:
    model = tiny_model("llama", max_position_embeddings=64, eos_token_id=None)
    asked = questions(4, max_new_tokens=40)
    ours = made(EngineBackend(model, renderer), asked)
    assert ours == made(TransformersBackend(model, renderer), asked)
    with pytest.raises(UsageError, match="the model takes 64"):
        made(TransformersBackend(model, renderer), questions(30)[29:])


def test_a_stop_is_looked_at_in_every_step(renderer: Renderer) -> None:
    model = tiny_model("llama")
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 6

    backend = TransformersBackend(model, renderer, 2)
    assert list(backend.answers(questions(8, max_new_tokens=100), should_stop=stop)) == []
    assert calls < 15


def test_eval_with_transformers_has_a_log_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "--limit", "4", "--max-new-tokens", "12"]
    assert main([*command, "--name", "ours"]) == 0
    assert main([*command, "--name", "theirs", "--backend", "transformers"]) == 0
    ours, theirs = load("runs/ours"), load("runs/theirs")
    assert [a.tokens for a in ours.attempts] == [a.tokens for a in theirs.attempts]
    assert theirs.header.details["backend"] == "transformers"
    assert main([*command, "--name", "ours", "--backend", "transformers"]) == 7
    capsys.readouterr()
    assert main([*command, "--backend", "transformers", "--temperature", "1", "--name", "n"]) == 0
    assert "depend on --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["eval"], ["sample", "--output", "o.jsonl"]])
def test_vllm_is_refused_where_it_is_not_installed(
    verb: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "--backend", "vllm"]) == 2
    said = capsys.readouterr().err
    assert "vLLM, which is not installed" in said
    assert "pip install 'tunesmith[vllm]'" in said
