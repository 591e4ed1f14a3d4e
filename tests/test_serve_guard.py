"""Who is let in, by which names, and what of a request is refused by its name."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

import served
from served import CHAT, KEY, TEXT, TURNS, Running
from tunesmith.cli import main
from tunesmith.serve.guard import host_name

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

home = served.home
server = served.narrow


def test_every_route_wants_the_key(server: Running) -> None:
    routes = [
        (route.path, method) for route in server.app.router.routes for method in route.methods
    ]
    assert len(routes) >= 7
    keys = ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": KEY},
            {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": f"Basic {KEY}"})  # fmt: skip
    with server.http() as client:
        del client.headers["Authorization"]
        for path, method in [*routes, ("/nowhere", "GET"), ("/v1/models", "OPTIONS")]:
            for headers in keys:
                reply = client.request(method, path.replace("{model:path}", "x"), headers=headers)
                assert reply.status_code == 401, (path, method, headers)
                assert not [name for name in reply.headers if name.startswith("access-control")]
        assert client.get("/health", headers={"authorization": f"bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost.evil.example:80"}, 421),
        ({"Host": "10.0.0.1"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:99"}, 200),
        ({"Host": "my-host:1"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    ],
)
def test_names_and_origins(server: Running, headers: dict[str, str], status: int) -> None:
    with server.http() as client:
        reply = client.get("/v1/models", headers=headers)
    assert reply.status_code == status
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_an_address_is_a_name_only_where_the_server_listens_everywhere() -> None:
    from tunesmith.config.schema_serve import ServeOptions
    from tunesmith.workflows.listening import access_of

    assert access_of(ServeOptions(host="0.0.0.0"), "k").any_address
    assert not access_of(ServeOptions(host="192.0.2.1"), "k").any_address
    assert host_name("[::1]:80") == host_name("::1") == "::1"


BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({**CHAT, "tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({**CHAT, "presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty"),
    ({**CHAT, "presence_penalty": False}, "unsupported_parameter", "presence_penalty"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "unsupported_parameter",
     "response_format"),
    ({**CHAT, "store": True}, "unsupported_parameter", "store"),
    ({**CHAT, "temprature": 1}, "unknown_parameter", "temprature"),
    ({**CHAT, "messages": [{**TURNS[0], "name": "Bo"}]}, "unsupported_parameter",
     "messages[0].name"),
    ({**CHAT, "messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "invalid_value", "messages[0].content[0]"),
    ({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]}, "invalid_value",
     "messages[0].content"),
    ({**CHAT, "messages": []}, "invalid_value", "messages"),
    ({"messages": TURNS}, "missing_parameter", "model"),
    ({**CHAT, "temperature": 3}, "invalid_value", "temperature"),
    ({**CHAT, "temperature": "1"}, "invalid_value", "temperature"),
    ({**CHAT, "top_p": 0}, "invalid_value", "top_p"),
    ({**CHAT, "n": 7}, "invalid_value", "n"),
    ({**CHAT, "n": True}, "invalid_value", "n"),
    ({**CHAT, "n": 1.5}, "invalid_value", "n"),
    ({**CHAT, "max_tokens": 401}, "invalid_value", "max_tokens"),
    ({**CHAT, "max_completion_tokens": 5}, "invalid_value", "max_tokens"),
    ({**CHAT, "top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({**CHAT, "stop": list("abcde")}, "invalid_value", "stop"),
    ({**CHAT, "stop": ""}, "invalid_value", "stop"),
    ({**CHAT, "seed": 2**63}, "invalid_value", "seed"),
    ({**CHAT, "stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({**CHAT, "messages": [{"role": "user", "content": "how " * 900}]}, "context_length_exceeded",
     "messages"),
    ({**TEXT, "prompt": []}, "invalid_value", "prompt"),
    ({**TEXT, "prompt": [304]}, "invalid_value", "prompt"),
    ({**TEXT, "prompt": [-1]}, "invalid_value", "prompt"),
    ({**TEXT, "prompt": [1.5]}, "invalid_value", "prompt"),
    ({**TEXT, "prompt": [[1], "x", True]}, "invalid_value", "prompt"),
    ({**TEXT, "prompt": ["x"] * 7}, "invalid_value", "prompt"),
    ({**TEXT, "prompt": ["x"] * 4, "n": 2}, "invalid_value", "n"),
    ({**TEXT, "prompt": ""}, "invalid_value", "prompt"),
    ({**TEXT, "max_tokens": 0}, "invalid_value", "max_tokens"),
    ({**TEXT, "best_of": 2}, "unsupported_parameter", "best_of"),
    ({**TEXT, "suffix": "x"}, "unsupported_parameter", "suffix"),
    ({**TEXT, "echo": True, "logprobs": 1, "stream": True}, "unsupported_parameter", "stream"),
]  # fmt: skip


def test_what_is_not_honoured_is_refused_by_name(server: Running) -> None:
    with server.http() as client:
        for body, code, param in BAD:
            path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
            reply = client.post(
                path, content=json.dumps(body), headers={"content-type": "application/json"}
            )
            found = reply.json()["error"]
            assert (reply.status_code, found["code"], found["param"]) == (400, code, param), body
            assert found["type"] == "invalid_request_error"
        reply = client.post("/v1/chat/completions", json={**CHAT, "model": "other"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert client.get("/v1/models/other").status_code == 404
        assert client.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_a_client_is_told_fixed_texts_and_the_server_the_reason(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret detail")

    kind = {"content-type": "application/json"}
    with server.http() as client:
        assert client.get("/v1/x").json()["error"]["message"].startswith("There is no such address")
        replies = [client.post("/v1/completions", content=b'{"a\xff', headers=kind)]
        monkeypatch.setattr(type(server.service), "body", broken)
        replies.append(client.post("/v1/completions", json=TEXT))
    assert [reply.status_code for reply in replies] == [400, 500]
    for reply, said in zip(replies, ("decode", "a secret detail"), strict=True):
        assert said not in reply.text
        number = reply.headers["x-request-id"]
        assert number in reply.json()["error"]["message"]
        assert any(number in one and said in one for one in server.reports)


def test_what_asks_for_nothing_is_accepted(server: Running) -> None:
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [],
               "tool_choice": "none", "response_format": {"type": "text"}, "store": False,
               "metadata": None, "n": None, "stop": None, "seed": None, "user": "me"}  # fmt: skip
    turns = [
        {"role": "developer", "content": "Be short."},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}], "refusal": None},
        *TURNS,
    ]
    with server.http() as client:
        reply = client.post("/v1/chat/completions", json={**CHAT, **neutral, "messages": turns})
        assert reply.status_code == 200, reply.text
        # A conversation may begin with an answer, and JSON knows one kind of number.
        asked = {**CHAT, "messages": turns[1:], "max_tokens": 4.0, "seed": -3.0, "n": 1.0}
        reply = client.post("/v1/chat/completions", json=asked)
        assert reply.status_code == 200, reply.text
        for prompt in ([5.0, 6], [[5.0], "x"]):
            reply = client.post("/v1/completions", json={**TEXT, "prompt": prompt})
            assert reply.status_code == 200, reply.text


REFUSED: list[tuple[list[str], int, str]] = [
    (["--no-key", "--host", "0.0.0.0"], 2, "would let everybody in"),
    (["--host", "0.0.0.0"], 2, "there is no key"),
    ([], 2, "no terminal to show one"),
    (["--api-key-file", "none.txt"], 2, "cannot be read"),
    (["--api-key-file", "short.txt"], 2, "no good one"),
    (["--no-key", "--api-key-file", "short.txt"], 2, "does nothing without"),
    (["--no-key", "--host", "no.such.host.invalid"], 2, "would let everybody in"),
    (["--no-key", "--context", "9999", "--port", "0"], 2, "more than the model's 2,048"),
    (["--no-key", "--port", "0", "--adapters", "x"], 2, "no name or no path"),
    (["--no-key", "--port", "0", "--adapters", "x=tunesmith/tiny"], 2, "is no adapter"),
    (["--no-key", "--port", "TAKEN"], 2, "cannot be had"),
]


@pytest.mark.parametrize(("flags", "code", "said"), REFUSED, ids=lambda x: str(x)[:40])
def test_a_start_that_is_not_safe_is_refused(
    flags: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)
    Path("short.txt").write_text("short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given_ = [port if word == "TAKEN" else word for word in flags]
        assert main(["serve", *given_]) == code
    assert said in capsys.readouterr().err


def test_adapters_of_other_weights_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--no-key", "--port", "0", "--adapters", f"one={home / 'one'}"]
    assert main(["serve", *flags]) == 2
    assert "was trained on" in capsys.readouterr().err
