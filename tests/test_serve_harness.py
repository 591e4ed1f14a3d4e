"""lm-evaluation-harness's client for OpenAI's API: on our server the numbers of its own model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import test_harness
from served import KEY, Running, serving
from test_harness import asked, compare, text

NEEDED = ("lm_eval", "aiohttp", "tenacity", "requests", "starlette", "uvicorn")
pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NEEDED),
        reason="lm_eval with its API clients is not installed",
    ),
    pytest.mark.filterwarnings("ignore"),
]
home = test_harness.home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serving(model=str(home / "model"), name="served") as running:
        yield running


@pytest.fixture
def models(home: Path, server: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the harness's own model, and its client on our server."""
    from lm_eval.api.registry import get_model

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    own = get_model("hf")(
        pretrained=str(home / "model"), device="cpu", dtype="float32", logits_cache=False
    )
    client = get_model("local-completions")(
        model="served",
        base_url=f"{server.url}/v1/completions",
        tokenizer=str(home / "model"),
        max_length=256,
        batch_size=4,
    )
    return own, client


def test_likelihoods_are_those_of_its_own_model(models: tuple[Any, Any]) -> None:
    pairs = [(text(n, 3 + 4 * n), f" {text(n + 1, 1 + n % 4)}") for n in range(12)]
    found = [model.loglikelihood(asked("loglikelihood", *pairs)) for model in models]
    compare(*found)
    greedy = [
        (context, model_said[:9])
        for context, model_said in zip(
            ("the cat", "how many"),
            models[0].generate_until(
                asked(
                    "generate_until",
                    *((c, {"until": [], "max_gen_toks": 12}) for c in ("the cat", "how many")),
                )
            ),
            strict=True,
        )
    ]
    likeliest = [model.loglikelihood(asked("loglikelihood", *greedy)) for model in models]
    compare(*likeliest)
    assert {flag for answers in (found[0], likeliest[0]) for _, flag in answers} == {True, False}


def test_generations_are_those_of_its_own_model(models: tuple[Any, Any]) -> None:
    contexts = ["the cat", "how many are", text(2, 60)]
    for until in (["e", " a"], ["zz"], ["t"]):
        settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
        asking = asked("generate_until", *((c, settings) for c in contexts))
        theirs, ours = (model.generate_until(asking) for model in models)
        assert ours == theirs
        assert any(theirs)


@pytest.mark.slow
def test_tasks_give_the_same_numbers(home: Path, models: tuple[Any, Any]) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ["tiny_choice", "tiny_write"]
    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    theirs, ours = (
        simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
        for model in models
    )
    for name in names:
        rows = zip(theirs["samples"][name], ours["samples"][name], strict=True)
        for one, other in rows:
            assert json.dumps(one["arguments"]) == json.dumps(other["arguments"])
            compare(one["resps"], other["resps"])
        assert ours["results"][name] == theirs["results"][name]
    print({name: ours["results"][name] for name in names})
