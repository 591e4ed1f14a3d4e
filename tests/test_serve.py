"""What the server answers: the engine's own texts, in OpenAI's shapes, whoever else asks."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import served
import tunesmith
from served import Running, serving
from tunesmith.cli import main
from tunesmith.storage import JsonlLog

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

ASKED = "how many cats are there"
TURNS = [{"role": "user", "content": ASKED}]


home = served.home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    adapters = [f"one={home / 'one'}", f"two={home / 'two'}"]
    with serving(
        model=str(home / "base"),
        name="base",
        adapters=adapters,
        max_new_tokens=400,
        request_log=str(home / "log.jsonl"),
    ) as running:
        yield running


def texts(reply: Any) -> list[str]:
    return [choice.message.content for choice in reply.choices]


def test_each_name_answers_as_generate_does_from_one_copy(server: Running, home: Path) -> None:
    client, found = server.openai(), {}
    for _ in range(2):
        for name in ("base", "one", "two"):
            reply = client.chat.completions.create(
                model=name, messages=TURNS, temperature=0, max_tokens=12
            )
            [said] = tunesmith.generate(ASKED, model=str(home / name), max_new_tokens=12)
            assert texts(reply) == [said]
            assert reply.choices[0].finish_reason == "length"
            assert (reply.usage.completion_tokens, reply.model) == (12, name)
            found[name] = said
    assert len(set(found.values())) == 3
    engines = [voice.engine for voice in server.service.worker.voices.values()]
    assert len({id(engine._model) for engine in engines}) == 1
    assert [one.id for one in client.models.list()] == ["base", "one", "two"]
    assert client.models.retrieve("two").id == "two"


def test_samples_are_those_of_generate_with_that_seed(server: Running, home: Path) -> None:
    drawn = {"temperature": 0.9, "top_p": 0.8}
    wanted = tunesmith.generate(
        ASKED, model=str(home / "one"), samples=3, seed=5, max_new_tokens=9, **drawn
    )
    for _ in range(2):
        reply = server.openai().chat.completions.create(
            model="one", messages=TURNS, n=3, seed=5, max_completion_tokens=9, **drawn
        )
        assert texts(reply) == wanted
    assert len(set(wanted)) == 3
    free = [
        texts(server.openai().chat.completions.create(model="one", messages=TURNS, max_tokens=9))
        for _ in range(2)
    ]
    assert free[0] != free[1]


def test_a_stream_is_the_whole_answer_in_pieces(server: Running) -> None:
    asked = {"model": "one", "messages": TURNS, "seed": 3, "n": 2, "max_tokens": 10}
    asked |= {"logprobs": True, "top_logprobs": 2}
    client = server.openai()
    whole = client.chat.completions.create(**asked)
    pieces = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].usage == whole.usage
    assert pieces[-1].choices == []
    for choice in whole.choices:
        own = [p.choices[0] for p in pieces[:-1] if p.choices[0].index == choice.index]
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        assert [one.finish_reason for one in own if one.finish_reason] == [choice.finish_reason]
        told = [entry for one in own if one.logprobs for entry in one.logprobs.content]
        assert told == choice.logprobs.content
        assert len(told) == 10


def test_logprobs_are_the_models(server: Running) -> None:
    reply = server.openai().chat.completions.create(
        model="base", messages=TURNS, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    voice = server.service.worker.voices["base"]
    from tunesmith.types import Segment

    ids = list(voice.renderer.prompt_ids([Segment("user", ASKED)]))
    base = voice.engine._model.base_model.model
    for entry in reply.choices[0].logprobs.content:
        with torch.inference_mode(), voice.engine._model.disable_adapter():
            scores = base(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, tokens = scores.topk(3)
        assert entry.logprob == pytest.approx(float(values[0]), abs=1e-4)
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(
            values.tolist(), abs=1e-4
        )
        assert entry.token == voice.renderer.decode_raw([int(tokens[0])])
        ids.append(int(tokens[0]))


def test_stop_texts_end_an_answer(server: Running) -> None:
    asked = {"model": "two", "messages": TURNS, "temperature": 0, "max_tokens": 12}
    client = server.openai()
    [free] = texts(client.chat.completions.create(**asked))
    for stop in (free[4:6], ["never", free[4:6]]):
        reply = client.chat.completions.create(**asked, stop=stop)
        assert texts(reply) == [free[: free.index(free[4:6])]]
        assert reply.choices[0].finish_reason == "stop"
        pieces = client.chat.completions.create(**asked, stop=stop, stream=True)
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == texts(reply)[0]


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_echo_scores_every_token_of_a_prompt(server: Running, max_tokens: int) -> None:
    voice = server.service.worker.voices["one"]
    ids = list(voice.renderer._tokenizer("the cat sat on the mat")["input_ids"])
    prompts = [ids, [5, 6, 7], [9]]
    reply = server.openai().completions.create(
        model="one", prompt=prompts, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0
    )
    model = voice.engine._model
    model.set_adapter("further0")
    for prompt, choice in zip(prompts, reply.choices, strict=True):
        told = choice.logprobs
        row = [*prompt]
        for place in range(1, len(prompt) + max_tokens):
            with torch.inference_mode():
                scores = model(input_ids=torch.tensor([row[:place]])).logits[0, -1].log_softmax(-1)
            if place == len(row):
                row.append(int(scores.argmax()))
            assert told.token_logprobs[place] == pytest.approx(float(scores[row[place]]), abs=1e-4)
            assert max(told.top_logprobs[place].values()) == pytest.approx(
                float(scores.max()), abs=1e-4
            )
        assert told.token_logprobs[0] is None
        assert len(told.tokens) == len(told.text_offset) == len(prompt) + max_tokens
        assert choice.text.startswith(voice.renderer.decode_raw(prompt))


def test_texts_go_on(server: Running, home: Path) -> None:
    reply = server.openai().completions.create(
        model="base", prompt=["the cat", "how many"], temperature=0, max_tokens=7, n=2, echo=True
    )
    alone = server.openai().completions.create(
        model="base", prompt="how many", temperature=0, max_tokens=7
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[3].text == f"how many{alone.choices[0].text}"
    pieces = server.openai().completions.create(
        model="base", prompt="how many", temperature=0, max_tokens=7, stream=True, logprobs=0
    )
    found = [piece.choices[0] for piece in pieces]
    assert "".join(one.text for one in found) == alone.choices[0].text
    assert sum(len(one.logprobs.tokens) for one in found if one.logprobs) == 7


def test_neighbours_change_nothing(server: Running) -> None:
    asked = [
        {
            "model": ("base", "one", "two")[number % 3],
            "messages": [{"role": "user", "content": f"how many {number} " * (1 + number % 4)}],
            "temperature": float(number % 2),
            "seed": number,
            "max_tokens": 6 + number,
            "n": 1 + number % 3,
        }
        for number in range(24)
    ]

    client = server.openai()

    def ask(one: dict[str, Any]) -> list[str]:
        return texts(client.chat.completions.create(**one))

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, asked))
    assert together == [ask(one) for one in asked]


def test_a_new_request_does_not_wait_for_those_that_run(server: Running) -> None:
    client = server.openai()
    asked = {"model": "base", "messages": TURNS, "temperature": 0}
    stream = client.chat.completions.create(
        **asked, max_tokens=390, stream=True, extra_body={"stop": ["never said"]}
    )
    iterator = iter(stream)
    next(iterator)
    short = client.chat.completions.create(**asked, max_tokens=2)
    assert short.usage.completion_tokens <= 2
    assert server.metric("running") == 1
    stream.close()


def test_a_client_that_leaves_frees_its_slot(server: Running) -> None:
    asked = {"model": "two", "messages": TURNS, "n": 4, "seed": 1, "max_tokens": 390}
    first = server.metric("steps")
    server.openai().chat.completions.create(**asked)
    before, steps = server.metric("cancelled_total"), server.metric("steps")
    stream = server.openai().chat.completions.create(**asked, stream=True)
    next(iter(stream))
    assert server.metric("running") > 0
    stream.close()
    assert server.until("running", 0) == 0
    assert server.metric("steps") - steps < (steps - first) / 2  # of those of the whole answer
    with server.http() as client, pytest.raises(Exception, match="timed out"):
        client.post("/v1/chat/completions", json=asked, timeout=0.15)
    assert server.until("cancelled_total", before + 2) == before + 2
    assert server.until("running", 0) == 0
    assert server.metric("waiting") == 0


def test_a_broken_step_is_told_by_its_number_and_the_next_one_works(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = server.service.worker.voices["base"].engine
    asked = {"model": "base", "messages": TURNS, "max_tokens": 3}
    for failure, status, code in (
        (RuntimeError("secret detail"), 500, "internal_error"),
        (MemoryError(), 503, "out_of_memory"),
    ):

        def fail(*_: Any, failure: Exception = failure) -> Any:
            raise failure

        with monkeypatch.context() as patch, server.http() as client:
            patch.setattr(type(engine), "_grow", fail)
            reply = client.post("/v1/chat/completions", json=asked)
            streamed = client.post("/v1/chat/completions", json={**asked, "stream": True})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert reply.headers["x-request-id"] in reply.json()["error"]["message"]
        assert "secret" not in reply.text + streamed.text
        said = f"{reply.headers['x-request-id']}: "
        assert f"{said}{'memory' if status == 503 else 'broken'}" in capsys.readouterr().err
        assert streamed.status_code == 200
        assert code in streamed.text
        assert "[DONE]" not in streamed.text
        assert server.openai().chat.completions.create(**asked).usage.completion_tokens <= 3
    assert engine.slots < 32


def test_the_log_of_requests_is_read_as_rows(
    server: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = server.openai().chat.completions.create(
        model="one", messages=TURNS, n=2, seed=9, max_tokens=5, user="somebody"
    )
    log = home / "log.jsonl"
    for _ in range(100):
        found = [one for one in JsonlLog.read(log) if one["id"] == reply.id]
        if len(found) == 2:
            break
        threading.Event().wait(0.05)
    assert log.stat().st_mode & 0o077 == 0
    assert [one["messages"][-1]["content"] for one in found] == texts(reply)
    assert {(one["model"], one["seed"], one["settings"]["user"]) for one in found} == {
        ("one", 9, "somebody")
    }
    rows = home / "rows.jsonl"
    lines = [line for line in log.read_text().splitlines() if reply.id in line]
    rows.write_text("".join(f"{line}\n" for line in lines))
    code = main(["data", "validate", str(rows), "--columns", "messages=r.messages", "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    [validated] = json.loads(out)
    assert (validated["accepted"], validated["refused"]) == (2, 0)


def test_words_of_the_router_are_all_documented(server: Running) -> None:
    with server.http() as client:
        document = client.get("/openapi.json").json()
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in server.app.router.routes
        for method in route.methods - {"HEAD"}
    }
    named = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert routes == named
    assert len(list(itertools.chain(routes))) == 7
