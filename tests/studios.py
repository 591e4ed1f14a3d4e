"""A studio over a folder of made-up runs, asked in the test's own process."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from starlette.testclient import TestClient

from tunesmith.config.schema import FineTuningConfig
from tunesmith.config.schema_serve import StudioOptions
from tunesmith.rundir import RunDir
from tunesmith.serve.listen import Listener, bind
from tunesmith.serve.service import Service
from tunesmith.serve.workers import Workers
from tunesmith.studio.jobs import Jobs
from tunesmith.studio.login import Logins
from tunesmith.workflows.listening import service_of
from tunesmith.workflows.studio import Models, studio_application

KEY = "a-key-that-is-long-enough"
URL = "http://127.0.0.1:8000"


@dataclass
class Pages:
    """A studio, its client with the key, and what lies behind it."""

    parent: Path
    app: Any
    client: TestClient
    logins: Logins
    workers: Workers
    models: Models
    service: Service

    @property
    def jobs(self) -> Jobs:
        """Return what the pages have started."""
        return next(
            route.endpoint.__self__.jobs
            for route in self.app.router.routes
            if getattr(route.endpoint, "__name__", "") == "front"
        )

    @property
    def bearer(self) -> dict[str, str]:
        """Return the header that brings the key."""
        return {"Authorization": f"Bearer {KEY}"}

    def get(self, path: str, status: int = 200) -> str:
        """Return a page."""
        reply = self.client.get(path, headers={"Accept": "text/html"})
        assert reply.status_code == status, (path, reply.status_code, reply.text[:500])
        return reply.text

    def post(self, path: str, **fields: str) -> Any:
        """Send a form as one of the pages would."""
        token = re.search(r'name="token" value="(\w+)"', self.get("/start"))
        assert token
        body = urllib.parse.urlencode({"token": token[1], **fields})
        return self.client.post(path, content=body, headers=FORM, follow_redirects=False)


FORM = {"Content-Type": "application/x-www-form-urlencoded", "Origin": URL, "Accept": "text/html"}


def pages_over(parent: Path, *, key: str | None = KEY) -> Pages:
    """Return a studio over a folder."""
    options = StudioOptions(output_dir=str(parent))
    workers = Workers()
    models, logins = Models(workers, options), Logins(key, 8000)
    service = service_of(workers, options)
    app = studio_application(options, service, models, logins, key)
    client = TestClient(app, base_url=URL)
    if key is not None:
        client.headers["Authorization"] = f"Bearer {key}"
    return Pages(parent, app, client, logins, workers, models, service)


@contextmanager
def listening(pages: Pages) -> Iterator[str]:
    """Let a studio answer on a free port; its pages then have that address."""
    stop = threading.Event()
    with bind("127.0.0.1", 0) as taken:
        listener = Listener(
            pages.app, pages.workers, pages.service.metrics, connections=64, grace_s=0.5,
            should_stop=stop.is_set,
        )  # fmt: skip
        thread = threading.Thread(target=listener.run, args=([taken],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(20)
            pages.workers.stop()
            for job in pages.jobs.all():
                if job.child is not None:
                    job.child.wait(60)


def make_run(
    parent: Path, name: str, *, finished: bool = False, steps: int = 4, **settings: Any
) -> RunDir:
    """Write a run's folder as training leaves it; it is held until it is closed."""
    run = RunDir.create(parent, name)
    config = FineTuningConfig(task="units").model_dump(mode="json") | settings
    run.write_config(config)
    records = [
        {"kind": "train", "step": n, "loss": 2 / n, "lr": 1e-3, "tokens_per_s": 100.0 + n}
        for n in range(1, steps + 1)
    ]
    records.append({"kind": "eval", "step": steps, "loss": 0.5, "accuracy": 0.75})
    write_records(run, records)
    if finished:
        run.write_manifest({"planned steps": steps, "seconds": 65.0, "finished": True})
    return run


def write_records(run: RunDir, records: list[dict[str, Any]]) -> None:
    """Write metrics as training does."""
    run.metrics.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


def write_config(run: RunDir, **settings: Any) -> None:
    """Put other settings into a run's file."""
    head = run.config.read_text(encoding="utf-8").partition("\n")[0]
    config = {**run.read_config(), **settings}
    run.config.write_text(f"{head}\n{yaml.safe_dump(config, allow_unicode=True)}", encoding="utf-8")
