"""Prompts are made in a process of their own: what they cost ends there, and holds nobody up."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from served import serving, write_models
from tiny_models import CHATML, tiny_tokenizer
from tunesmith.data import prompt_process
from tunesmith.data.prompt_process import CostlyPrompt, PromptProcess
from tunesmith.data.render import Renderer
from tunesmith.errors import ContractError
from tunesmith.types import Segment

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
WAITS = (
    "{% set said = messages[-1].content %}"
    f"{{% if said == 'loops' %}}{LOOPS}"
    "{% elif said == 'power' %}{{ ((8 + messages|length) ** (9 ** 9)) % 7 }}"
    "{% elif said == 'memory' %}{{ ('x' * (messages|length * 7 * 10 ** 8))|length }}{% endif %}"
    f"{CHATML}"
)
"""A template that nothing is wrong with until a certain word is said."""


@pytest.fixture(scope="module")
def prompts() -> Iterator[PromptProcess]:
    made = PromptProcess()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_process, "SECONDS", 0.5)


def said(text: str) -> tuple[Segment, ...]:
    return (Segment("user", text),)


def test_prompts_are_those_of_the_renderer(prompts: PromptProcess) -> None:
    several = [Renderer(tiny_tokenizer()), Renderer(tiny_tokenizer(), "plain")]
    turns = (*said("How many?"), Segment("assistant", "Two."), *said("Sure? \u00e9\u2603"))
    for renderer in [*several, several[0]]:
        for messages in (turns, turns[:1], (Segment(None, "The cat"),)):
            assert prompts.prompt_ids(renderer, messages) == renderer.prompt_ids(messages)
    strict = Renderer(
        tiny_tokenizer(CHATML + "{{ raise_exception('odd') if messages|length > 2 }}")
    )
    with pytest.raises(ContractError, match="odd") as refused:
        prompts.prompt_ids(strict, turns)
    assert not isinstance(refused.value, CostlyPrompt)
    assert refused.value.hint
    del several, renderer
    gc.collect()
    assert len(prompts._known) == 1


@pytest.mark.parametrize("word", ["memory", "power"])
def test_what_does_not_end_is_ended_and_the_next_prompt_is_made(
    prompts: PromptProcess, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if word == "memory":  # 700 MB are there in an instant, so that only their limit can end it
        monkeypatch.setattr(prompt_process, "SECONDS", 20.0)
    renderer = Renderer(tiny_tokenizer(WAITS))
    wanted = prompts.prompt_ids(renderer, said("hi"))
    began = time.process_time()
    with pytest.raises(CostlyPrompt):
        prompts.prompt_ids(renderer, said(word))
    assert time.process_time() - began < 0.3  # all of it was spent elsewhere
    assert prompts.prompt_ids(renderer, said("hi")) == wanted


def test_the_limit_of_one_prompt_is_none_of_the_next_tokenizers(
    prompts: PromptProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer(tiny_tokenizer())
    heavy = Renderer(tiny_tokenizer(CHATML + "{#" + "x" * (24 << 20) + "#}"))
    with monkeypatch.context() as patch:
        patch.setattr(prompt_process, "MEGABYTES", 8)
        wanted = prompts.prompt_ids(renderer, said("hi"))
    assert prompts.prompt_ids(heavy, said("hi")) == wanted


def test_a_process_that_was_ended_from_outside_is_followed_by_another(
    prompts: PromptProcess,
) -> None:
    renderer = Renderer(tiny_tokenizer())
    wanted = prompts.prompt_ids(renderer, said("hi"))
    process: Any = prompts._process
    process.kill()
    process.wait()
    assert prompts.prompt_ids(renderer, said("hi")) == wanted


NOISE = """
import sys
sys.addaudithook(lambda event, _: event == "pickle.find_class" and print("noise", flush=True))
"""


def test_what_a_library_prints_does_not_get_between_the_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    renderer, noisy = Renderer(tiny_tokenizer()), PromptProcess()
    try:
        assert noisy.prompt_ids(renderer, said("hi")) == renderer.prompt_ids(said("hi"))
    finally:
        noisy.close()


def test_a_slow_template_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_process, "SECONDS", 1.0)
    write_models(tmp_path)
    settings = {"model": str(tmp_path / "base"), "name": "base", "max_new_tokens": 400}
    with serving(chat_template=WAITS, **settings) as server, server.http() as client:

        def ask(words: str, **more: Any) -> Any:
            turns = [{"role": "user", "content": words}]
            body = {"model": "base", "messages": turns, "max_tokens": 2, **more}
            return client.post("/v1/chat/completions", json=body)

        assert ask("hi").status_code == 200
        found: list[Any] = []
        slow = threading.Thread(target=lambda: found.append(ask("loops")))
        slow.start()
        time.sleep(0.2)
        began = time.monotonic()
        ids = {"model": "base", "prompt": [5, 6], "max_tokens": 2}
        assert client.get("/health").status_code == 200
        assert time.monotonic() - began < 1
        slow.join(30)
        assert ask("hi").status_code == 200
        assert client.post("/v1/completions", json=ids).status_code == 200
    [reply] = found
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (
        400,
        "prompt_too_slow",
        "messages",
    )
    assert "template" in error["message"]
    assert any("of the processor" in report for report in server.reports)


def test_many_turns_cost_what_they_may_and_no_more(prompts: PromptProcess) -> None:
    """A prompt is rendered up to each answer, so its cost grows with the square of its turns."""
    renderer = Renderer(tiny_tokenizer())
    turns = [Segment(("user", "assistant")[n % 2], f"turn {n}") for n in range(4095)]
    assert prompts.prompt_ids(renderer, turns[:201]) == renderer.prompt_ids(turns[:201])
    with pytest.raises(CostlyPrompt):
        prompts.prompt_ids(renderer, turns)
