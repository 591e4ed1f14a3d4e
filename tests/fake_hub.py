"""A small hub: it takes repositories, large files and commits, and misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"
LARGE = (".safetensors", ".gguf", ".onnx")


@dataclass
class State:
    """What the hub holds, and how it is to behave."""

    repos: dict[str, bool] = field(default_factory=dict)
    """Name → private."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 → a large file."""
    break_off: int = 0
    """Uploads of large files whose connection is cut in the middle."""
    fail: dict[str, int] = field(default_factory=dict)
    """A part of a path → the error that it gets."""
    spoil: bool = False
    """Change a byte of what is stored."""
    asked: list[str] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    """The few calls that an upload takes."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, found: Any = None, code: int = 200, said: str = "") -> None:
        body = b"" if found is None else json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if said:
            self.send_header("X-Error-Message", said)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refused(self) -> bool:
        path = self.path.partition("?")[0]
        self.state.asked.append(f"{self.command} {path}")
        for part, code in self.state.fail.items():
            if part in path:
                self.body()
                self.answer({"error": "no"}, code, "not for you")
                return True
        good = path.startswith("/store/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not good:
            self.body()
            self.answer({"error": "Invalid credentials"}, 401, "Invalid credentials")
        return not good

    def name(self) -> str:
        return "/".join(self.path.split("/")[3:5]).partition("?")[0]

    def do_GET(self) -> None:
        state, path = self.state, self.path.partition("?")[0]
        if self.refused():
            return
        if path == "/api/whoami-v2":
            self.answer({"name": "ada", "type": "user"})
        elif "/tree/" in path:
            self.answer([listed(name, data) for name, data in state.files[self.name()].items()])
        elif path == f"/api/models/{self.name()}" and self.name() in state.repos:
            self.answer({
                "id": self.name(), "private": state.repos[self.name()], "sha": "0" * 40,
                "siblings": [], "tags": [], "downloads": 0, "likes": 0,
            })  # fmt: skip
        else:
            self.answer({"error": "Entry not found"}, 404, "Entry not found")

    def do_PUT(self) -> None:
        if self.refused():
            return
        state, name = self.state, self.path.rpartition("/")[2]
        if state.break_off:
            state.break_off -= 1
            self.rfile.read(1000)
            self.close_connection = True
            self.connection.close()
            return
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == name
        state.objects[name] = data[:-1] + b"\x7f" if state.spoil else data
        self.answer()

    def do_POST(self) -> None:
        state, path = self.state, self.path.partition("?")[0]
        if self.refused():
            return
        raw = self.body()
        if path == "/api/repos/create":
            given = json.loads(raw)
            owner = given.get("organization") or "ada"
            name = f"{owner}/{given['name']}"
            code = 409 if name in state.repos else 200
            private = given.get("private") or given.get("visibility") == "private"
            state.repos.setdefault(name, bool(private))
            state.files.setdefault(name, {})
            self.answer({"url": f"{state.address}/{name}", "name": name}, code)
        elif "/preupload/" in path:
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(raw)["files"]
            ]
            self.answer({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self.place(one) for one in json.loads(raw)["objects"]]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.commit(raw)
        else:
            self.answer({"error": "Entry not found"}, 404)

    def place(self, one: dict[str, Any]) -> dict[str, Any]:
        """Say where a large file goes; one that is here already goes nowhere."""
        if one["oid"] in self.state.objects:
            return one
        there = f"{self.state.address}/store/{one['oid']}"
        return {**one, "actions": {"upload": {"href": there, "header": {}}}}

    def commit(self, raw: bytes) -> None:
        files = self.state.files[self.name()]
        for line in map(json.loads, raw.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
        self.answer({
            "success": True, "commitOid": "1" * 40,
            "commitUrl": f"{self.state.address}/{self.name()}/commit/{'1' * 40}",
        })  # fmt: skip


def listed(name: str, data: bytes) -> dict[str, Any]:
    """Return what a listing says of a file."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git}
    if name.endswith(LARGE):
        oid = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
    return found


@contextmanager
def hub() -> Iterator[State]:
    """Run a hub of one's own on a free port."""
    state = State()
    handler = type("Own", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join()
