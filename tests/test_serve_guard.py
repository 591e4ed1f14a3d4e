"""Who is let in and how much anybody may ask: keys, names, limits, slow clients, the end."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from served import KEY, Running, launched, serving, write_models
from tunesmith.cli import main
from tunesmith.serve import listen
from tunesmith.serve.faults import Fault
from tunesmith.serve.guard import host_name
from tunesmith.serve.shapes import chat_request, parse, text_request

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

TURNS = [{"role": "user", "content": "how many"}]
CHAT: dict[str, Any] = {"model": "base", "messages": TURNS, "max_tokens": 4}
TEXT: dict[str, Any] = {"model": "base", "prompt": "the cat", "max_tokens": 4}
LONG = {**CHAT, "max_tokens": 400, "logprobs": True, "top_logprobs": 20, "seed": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serving(
        model=str(home / "base"),
        name="base",
        max_new_tokens=400,
        max_choices=6,
        batch_size=2,
        queue=6,
        max_body_kb=16,
        connections=40,
        allowed_hosts=["My-Host"],
    ) as running:
        yield running


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
    from tunesmith.workflows.serve import access_of

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


def test_bodies_have_limits(server: Running) -> None:
    kind = {"content-type": "application/json"}
    filler = b'{"model":"' + b"x" * (17 << 10) + b'"}'
    with server.http() as client:

        def post(content: Any, headers: dict[str, str] = kind) -> tuple[int, str]:
            reply = client.post("/v1/chat/completions", content=content, headers=headers)
            return reply.status_code, reply.json()["error"]["code"]

        assert post(filler) == (413, "body_too_large")
        assert post(iter([filler[:9000], filler[9000:]])) == (413, "body_too_large")
        assert post(b"[" * 9000) == (400, "too_deep")
        assert post(b'{"a":' * 1500 + b"1") == (400, "too_deep")
        assert post(b'{"tools": "' + b"[" * 9000 + b'"}') == (400, "unsupported_parameter")
        assert post(b"{}", {"content-type": "text/plain"}) == (415, "wrong_content_type")
        for bad in (b"", b"\xff\xfe", b"{", b"[]", b"null", b'{"a":NaN}', b'{"a":1,"a":2}'):
            assert post(bad) == (400, "invalid_json"), bad
        with raw(server, request_bytes(CHAT).replace(b"-Length: ", b"-Length: 999")[:-20]) as early:
            assert b" 413 " in early.recv(100)  # before any of it has come
        assert client.get("/health", headers={"x-long": "y" * 20_000}).status_code == 431


def test_a_full_queue_says_when_to_come_back(server: Running) -> None:
    with server.http() as client:
        streams = [
            client.stream("POST", "/v1/chat/completions", json={**LONG, "n": 4, "stream": True})
            for _ in range(2)
        ]
        opened = [stream.__enter__() for stream in streams]
        assert [one.status_code for one in opened] == [200, 200]
        assert server.until("running", 2) == 2
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        for stream in streams:
            stream.__exit__(None, None, None)
        assert server.until("waiting", 0) == server.until("running", 0) == 0
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def raw(server: Running, data: bytes) -> socket.socket:
    """Return a connection on which these bytes were sent."""
    one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    one.sendall(data)
    return one


def request_bytes(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def test_slow_clients_hold_nobody_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = server.metric("dropped_connections_total")
    monkeypatch.setattr(listen, "IDLE_S", 0.6)
    monkeypatch.setattr(listen, "UNREAD_S", 0.6)
    monkeypatch.setattr(server.service, "limits", _slower(server, body_s=0.6))
    dribbling = [raw(server, b"GET /health HTTP/1.1\r\nHo") for _ in range(10)]
    half = [raw(server, request_bytes(CHAT)[:-9]) for _ in range(4)]
    deaf = []
    for _ in range(2):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", server.port))
        one.sendall(request_bytes({**LONG, "stream": True}))
        deaf.append(one)
    with server.http() as client:
        began = time.monotonic()
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert time.monotonic() - began < 5
        for _ in range(4):
            for one in dribbling:
                _try_send(one, b"s")
            time.sleep(0.3)
        end = time.monotonic() + 8
        while server.metric("dropped_connections_total") < dropped + 12 and time.monotonic() < end:
            time.sleep(0.05)
        assert server.metric("dropped_connections_total") >= dropped + 12
        assert server.until("running", 0) == 0
        assert all(b" 408 " in one.recv(100) for one in half)
        assert client.get("/health").status_code == 200
    for one in [*dribbling, *half, *deaf]:
        one.close()


def _try_send(one: socket.socket, data: bytes) -> None:
    try:
        one.sendall(data)
    except OSError:
        return


def _slower(server: Running, **changed: float) -> Any:
    from dataclasses import replace

    return replace(server.service.limits, **changed)


def test_connections_have_a_limit(server: Running) -> None:
    several = [raw(server, b"") for _ in range(40)]
    time.sleep(0.2)
    extra = raw(server, b"")
    assert extra.recv(100).startswith(b"HTTP/1.1 503")
    for one in [*several, extra]:
        one.close()
    time.sleep(0.2)
    with server.http() as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_a_time(
    server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(server.service, "limits", _slower(server, request_s=0.1))
    with server.http() as client:
        reply = client.post("/v1/chat/completions", json={**LONG, "stream": stream})
    assert reply.status_code == (200 if stream else 504)
    assert '"code":"timeout"' in reply.text
    assert server.until("running", 0) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_mutated_bodies_are_read_or_refused(seed: int) -> None:
    for body in mutations(seed, 20):
        for read in (chat_request, text_request):
            with suppress(Fault):
                _ = read(parse(body)).stops


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """Yield bodies with bytes and values changed."""
    rng = random.Random(seed)
    values = [None, True, 0, -1, 2**70, 1e400, "", "\ud800", [], {}, [[]], "x" * 300, 0.5, [1, "a"]]
    for _ in range(count):
        body = dict(rng.choice((CHAT, TEXT, {**CHAT, "stop": ["a"], "stream": True})))
        for name in rng.sample([*body, "n", "logprobs", "seed", "tools"], rng.randint(0, 3)):
            body[name] = rng.choice(values)
        data = bytearray(json.dumps(body).encode())
        for _ in range(rng.choice((0, 0, 1, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data)


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


@pytest.mark.parametrize("second", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_signal_ends_what_runs(home: Path, second: bool) -> None:
    words = ["--model", str(home / "base"), "--name", "base", "--max-new-tokens", "400"]
    with launched(*words, "--grace", "30" if second else "0.3") as (process, url, log):
        # Nobody reads the answer, so it cannot end by itself.
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        deaf.sendall(request_bytes({**LONG, "stream": True, "n": 6}))
        deaf.recv(10)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if second:
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.wait(15) == (128 + signal.SIGTERM if second else 130)
        assert time.monotonic() - began < 8
        rest = log.read_text()
        deaf.close()
    assert ("Stopped by a signal" in rest) is not second
    assert "Traceback" not in rest


def test_answers_that_run_may_end_within_the_grace_time(home: Path) -> None:
    got: list[str] = []
    with serving(grace=20.0, model=str(home / "base"), name="base") as server:
        client = server.http()
        asked = {**CHAT, "max_tokens": 150, "temperature": 0, "stream": True}
        ready = threading.Event()

        def read() -> None:
            with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
                for line in reply.iter_lines():
                    ready.set()
                    got.append(line)

        reader = threading.Thread(target=read)
        reader.start()
        ready.wait(10)
    reader.join(20)
    client.close()
    assert got[-2:] == ["data: [DONE]", ""] or got[-1] == "data: [DONE]"
