"""How much anybody may ask, how long anything may take, and how the server ends."""

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

import served
from served import CHAT, LONG, TEXT, Running, launched, raw, request_bytes, serving
from tunesmith.serve import listen
from tunesmith.serve.faults import STOPPING, Fault
from tunesmith.serve.shapes import chat_request, parse, text_request

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

home = served.home
server = served.narrow


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


def test_slow_clients_hold_nobody_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = server.metric("dropped_connections_total")
    monkeypatch.setattr(listen, "IDLE_S", 0.6)
    monkeypatch.setattr(listen, "UNREAD_S", 0.6)
    monkeypatch.setattr(server.service, "limits", _slower(server, body_s=0.6))
    dribbling = [raw(server, b"GET /health HTTP/1.1\r\nHo") for _ in range(10)]
    half = [raw(server, request_bytes(CHAT)[:-9]) for _ in range(4)]
    deaf = [_deaf(server) for _ in range(2)]
    with server.http() as client:
        began = time.monotonic()
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert time.monotonic() - began < 5
        for _ in range(4):
            for one in dribbling:
                _try_send(one, b"s")
            time.sleep(0.3)
        end = time.monotonic() + 30
        while server.metric("dropped_connections_total") < dropped + 12 and time.monotonic() < end:
            time.sleep(0.05)
        assert server.metric("dropped_connections_total") >= dropped + 12
        assert server.until("running", 0) == 0
        assert all(b" 408 " in one.recv(100) for one in half)
        # What they left unread was more than lies between, and they were not waited for.
        assert all(b"[DONE]" not in _rest(one) for one in deaf)
        assert client.get("/health").status_code == 200
    for one in [*dribbling, *half, *deaf]:
        one.close()


def test_a_client_that_reads_in_the_end_gets_all(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "UNREAD_S", 0.6)
    paused: list[float] = []
    pause = listen.Connection.pause_writing
    monkeypatch.setattr(
        listen.Connection,
        "pause_writing",
        lambda self: (paused.append(time.monotonic()), pause(self)),
    )
    slow = _deaf(server)
    end = time.monotonic() + 30
    while not paused and time.monotonic() < end:
        time.sleep(0.02)
    assert b"[DONE]" in _rest(slow)
    assert time.monotonic() - paused[0] > listen.UNREAD_S
    slow.close()


def _deaf(server: Running) -> socket.socket:
    """Ask for more than the buffers between take."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.connect(("127.0.0.1", server.port))
    one.sendall(request_bytes({**LONG, "stream": True, "temperature": 0}))
    return one


def _rest(one: socket.socket) -> bytes:
    """Return what a connection still has to say before it ends or breaks off."""
    got = b""
    one.settimeout(10)
    with suppress(OSError):
        while piece := one.recv(1 << 15):
            got += piece
            if b"[DONE]" in got[-100:]:
                break
    return got


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
    read_or_refuse(seed, 20)


@pytest.mark.slow
def test_a_million_mutated_bodies_are_read_or_refused() -> None:
    refused = read_or_refuse(1, 1_000_000)
    print(f"{refused:,} of 2,000,000 readings of 1,000,000 bodies were refused")
    assert 100_000 < 2_000_000 - refused < 1_000_000  # either form refuses the other's


def read_or_refuse(seed: int, count: int) -> int:
    """Read bodies as a chat's and as a text's; return how often one was refused."""
    refused = 0
    for body in mutations(seed, count):
        for read in (chat_request, text_request):
            try:
                _ = read(parse(body)).stops
            except Fault:
                refused += 1
    return refused


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


def while_stopping(home: Path, grace: float, tokens: int) -> list[str]:
    """Return the lines that a client gets whose server is stopped after the first one."""
    got: list[str] = []
    with serving(grace=grace, model=str(home / "base"), name="base", max_new_tokens=400) as server:
        client = server.http()
        asked = {**CHAT, "max_tokens": tokens, "temperature": 0, "stream": True}
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
    return [line for line in got if line]


def test_answers_that_run_may_end_within_the_grace_time(home: Path) -> None:
    assert while_stopping(home, 20.0, 150)[-1] == "data: [DONE]"


def test_an_answer_that_outlasts_the_grace_time_is_told_why_it_ends(home: Path) -> None:
    assert STOPPING in while_stopping(home, 0.1, 400)[-1]
