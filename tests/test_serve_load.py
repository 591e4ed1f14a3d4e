"""The server under load and abuse, for minutes: nightly."""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from served import KEY, launched
from test_serve_limits import mutations

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

MODEL = "tunesmith/tiny"
SECONDS = 60
CONNECTIONS = 64
SLOW = 500
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with launched("--max-new-tokens", "64", "--max-choices", "8") as (_, at, _log):
        yield at


def chat(rng: random.Random) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "How many metres? " * rng.randint(1, 8)}],
        "max_tokens": rng.randint(1, 24),
        "seed": rng.randrange(1000),
        "n": rng.choice((1, 1, 2)),
        "stream": rng.random() < 0.3,
    }


def test_64_connections_for_a_minute(url: str) -> None:
    statuses: Counter[int] = Counter()
    times: list[float] = []

    async def ask(number: int, end: float) -> None:
        rng = random.Random(number)
        async with httpx2.AsyncClient(base_url=url, headers=HEADERS, timeout=60) as client:
            while time.monotonic() < end:
                body, began = chat(rng), time.monotonic()
                reply = await client.post("/v1/chat/completions", json=body)
                statuses[reply.status_code] += 1
                times.append(time.monotonic() - began)
                if body["stream"]:
                    assert reply.text.endswith("data: [DONE]\n\n")

    async def everybody() -> None:
        end = time.monotonic() + SECONDS
        await asyncio.gather(*(ask(number, end) for number in range(CONNECTIONS)))

    asyncio.run(everybody())
    print(f"{len(times)} requests in {SECONDS} s by {CONNECTIONS}: "
          f"{dict(statuses)}; median {statistics.median(times):.3f} s, "
          f"p99 {percentile(times):.3f} s")  # fmt: skip
    assert set(statuses) == {200}


def percentile(times: list[float], share: float = 0.99) -> float:
    return sorted(times)[int(share * (len(times) - 1))]


def healthy(url: str, count: int) -> list[float]:
    """Ask one request after the other; return the time of each."""
    times = []
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    with httpx2.Client(base_url=url, headers=HEADERS, timeout=60) as client:
        for _ in range(count):
            began = time.monotonic()
            reply = client.post("/v1/chat/completions", json=body)
            times.append(time.monotonic() - began)
            assert reply.status_code == 200
    return times


@contextmanager
def slow_clients(url: str, count: int) -> Iterator[Callable[[], int]]:
    """Run slow clients in a process of their own; yield what says how many have connected."""
    words = [url.rsplit(":", 1)[1], str(count), KEY, MODEL]
    program = str(Path(__file__).parent / "slow_clients.py")
    with subprocess.Popen([sys.executable, program, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield lambda: int(process.stdout.readline())  # a line each second
        finally:
            process.kill()


def test_500_slow_clients_hold_nobody_up(url: str) -> None:
    healthy(url, 30)
    before = healthy(url, 300)
    with slow_clients(url, SLOW) as connected:
        while (opened := connected()) < SLOW:
            pass
        among = healthy(url, 300)
    after = healthy(url, 300)
    print(f"{opened} slow connections")
    for name, times in (("alone", before), (f"among {SLOW} slow clients", among), ("after", after)):
        print(f"healthy {name}: median {statistics.median(times) * 1000:.1f} ms, "
              f"p99 {percentile(times) * 1000:.1f} ms")  # fmt: skip
    assert percentile(among) < 2 * percentile([*before, *after])


def test_mutated_requests_never_crash_it(url: str) -> None:
    statuses: Counter[int] = Counter()

    async def send(number: int) -> None:
        headers = {**HEADERS, "content-type": "application/json"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            for body in mutations(number, 800):
                path = ("/v1/chat/completions", "/v1/completions")[number % 2]
                body = body.replace(b'"base"', f'"{MODEL}"'.encode())
                reply = await client.post(path, content=body)
                statuses[reply.status_code] += 1
                if reply.status_code != 200:
                    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    async def everybody() -> None:
        await asyncio.gather(*(send(number) for number in range(8)))

    asyncio.run(everybody())
    print(f"mutated requests: {dict(statuses)}")
    assert set(statuses) <= {200, 400, 404}


def test_the_document_says_what_the_server_does(url: str, tmp_path: Path) -> None:
    program = shutil.which("schemathesis")
    if program is None:
        pytest.skip("schemathesis is not installed")
    words = [program, "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {KEY}"]
    words += ["--mode", "all", "--max-examples", "60", "--checks", "all", "--no-color"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-6000:]
