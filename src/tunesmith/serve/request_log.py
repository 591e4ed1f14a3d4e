"""The opt-in log of requests and answers: a line with a checksum for each answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunesmith.errors import StorageError
from tunesmith.serve.answers import Reply
from tunesmith.storage import JsonlLog, storage_errors


class RequestLog:
    """Appends records in a thread of its own, so that no client waits for the disk.

    A record holds ``messages`` with the answer as their last turn, or ``prompt`` and
    ``completion``: what every reader of rows takes.
    """

    def __init__(self, path: str, failed: Callable[[str], None]) -> None:
        """Open the file, which only its owner may read; ``failed`` is told what went wrong."""
        file = Path(path)
        with storage_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        self._log = JsonlLog(file)
        self._failed = failed
        self._writer = ThreadPoolExecutor(1, "request-log")

    def add(self, reply: Reply, request_id: str) -> None:
        """Take a whole reply."""
        for record in _records(reply, request_id):
            self._writer.submit(self._append, record)

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._log.append(record)
        except (StorageError, ValueError) as failure:
            self._failed(str(failure))

    def close(self) -> None:
        """Write what has been taken, and close the file."""
        self._writer.shutdown(wait=True)
        self._log.close()


def _records(reply: Reply, request_id: str) -> list[dict[str, Any]]:
    plan = reply.plan
    asked = plan.asked.model_dump(
        exclude={"messages", "prompt", "model", "stream", "stream_options"}, exclude_none=True
    )
    records = []
    for choice in reply.choices:
        text = reply.text_of(choice)
        said: dict[str, Any] = (
            {"messages": [*plan.messages, {"role": "assistant", "content": text}]}
            if plan.chat
            else {"prompt": plan.texts[choice.index // plan.n], "completion": text}
        )
        records.append(
            {
                "id": reply.id,
                "request": request_id,
                "index": choice.index,
                "time": round(time.time(), 3),
                "model": plan.voice.name,
                **said,
                "finish_reason": choice.reason,
                "tokens": choice.tokens,
                "seed": plan.seed,
                "settings": asked,
            }
        )
    return records
