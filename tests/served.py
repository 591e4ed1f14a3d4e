"""A server in a thread of the test's own process, with tiny models behind it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.config.schema_serve import ServeOptions
from tunesmith.serve.app import application
from tunesmith.serve.listen import Listener, bind
from tunesmith.serve.service import Service
from tunesmith.workflows.listening import access_of
from tunesmith.workflows.serve import Opened

KEY = "a-key-that-is-long-enough"
TURNS = [{"role": "user", "content": "how many"}]
CHAT: dict[str, Any] = {"model": "base", "messages": TURNS, "max_tokens": 4}
TEXT: dict[str, Any] = {"model": "base", "prompt": "the cat", "max_tokens": 4}
LONG = {**CHAT, "max_tokens": 400, "logprobs": True, "top_logprobs": 20, "seed": 1}


def write_models(folder: Path) -> None:
    """Write a random model, and two adapters that change what it says."""
    from peft import LoraConfig, get_peft_model

    base, tokenizer = tiny_model("llama", max_position_embeddings=512), tiny_tokenizer()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two"), 1):
        model = tiny_model("llama", max_position_embeddings=512)
        adapted = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        )
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for known, value in adapted.named_parameters():
                if "lora_" in known:
                    value.normal_(std=0.5)
        adapted.save_pretrained(folder / name)


@dataclass
class Running:
    """A server that runs."""

    url: str
    service: Service
    listener: Listener
    app: Any
    reports: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def http(self, **more: Any) -> httpx2.Client:
        """Return a client with the key."""
        headers = {"Authorization": f"Bearer {KEY}", **more.pop("headers", {})}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, **more)

    def openai(self) -> Any:
        """Return the official client."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        """Return one line of /metrics."""
        with self.http() as client:
            text = client.get("/metrics").text
        [line] = [one for one in text.splitlines() if one.startswith(f"tunesmith_{name} ")]
        return float(line.split()[1])

    def until(self, name: str, wanted: float, seconds: float = 10.0) -> float:
        """Wait until a metric has a value; return what it has in the end."""
        end = time.monotonic() + seconds
        while (found := self.metric(name)) != wanted and time.monotonic() < end:
            time.sleep(0.02)
        return found


@contextmanager
def launched(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Run the command itself; yield its process, its address, and the file of what it says."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", "serve", "--port", "0", *words],
            env={**os.environ, "TUNESMITH_API_KEY": KEY, "OMP_NUM_THREADS": "1"},
            stderr=said,
        )
        log = Path(said.name)
        try:
            while not (found := re.search(r"(http://127.0.0.1:\d+)/v1", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            assert KEY not in log.read_text()
            yield process, found.group(1), log
        finally:
            process.kill()
            process.wait()


@contextmanager
def serving(grace: float = 0.5, **settings: Any) -> Iterator[Running]:
    """Run a server on a free port."""
    options = ServeOptions(port=0, grace=grace, **settings)
    taken = bind(options.host, 0)
    url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    stop = threading.Event()
    reports: list[str] = []
    with taken, Opened(options) as service:
        app = application(service, access_of(options, KEY), reports.append)
        listener = Listener(
            app,
            service.worker,
            service.metrics,
            connections=options.connections,
            grace_s=options.grace,
            should_stop=stop.is_set,
        )
        thread = threading.Thread(target=listener.run, args=([taken],), daemon=True)
        thread.start()
        while not listener.started:
            time.sleep(0.01)
        try:
            yield Running(url, service, listener, app, reports)
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random model and two adapters."""
    folder = tmp_path_factory.mktemp("serve")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def narrow(home: Path) -> Iterator[Running]:
    """Return a server with small limits."""
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


def raw(server: Running, data: bytes) -> socket.socket:
    """Return a connection on which these bytes were sent."""
    one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    one.sendall(data)
    return one


def request_bytes(body: dict[str, Any]) -> bytes:
    """Return a request as it goes over the wire."""
    content = json.dumps(body).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content
