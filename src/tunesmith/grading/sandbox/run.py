"""Run one program against its tests, confined, and return a verdict that it cannot forge."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import UsageError

Mode = Literal["root", "user", "none"]
"""Namespaces set up by root, by a user namespace, or not at all."""


class Kind(enum.StrEnum):
    """What became of a program."""

    PASS = "pass"
    ASSERTION = "assertion"
    """A check of the tests is false."""
    ERROR = "error"
    """It raised, ended itself, was killed, defines no such name or answers with no plain data."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "too much output"
    TESTS = "tests"
    """The tests themselves are at fault, so the program has no verdict."""
    NOT_STARTED = "not started"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use; bytes, seconds and counts."""

    cpu_seconds: int = 6
    wall_seconds: float = 12.0
    memory: int = 512 << 20
    """Address space of each of its processes."""
    file_size: int = 1 << 20
    scratch: int = 8 << 20
    """Of all files together, which are kept in memory."""
    processes: int = 8
    """Processes and threads."""
    files: int = 64
    output: int = 1 << 20
    """Written to both standard streams."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What a program is held against; sources of trusted text that run in the tester."""

    checks: Sequence[str]
    """Run one after the other."""
    names: Sequence[str]
    """Names of the program that the checks may use; no other is taken from it."""
    needed: Sequence[str]
    """Those without which nothing is checked."""
    preamble: str = ""
    """Run first: imports and definitions that the checks use."""
    setup: str = ""
    """Run after the program, with its names."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one program."""

    kind: Kind
    detail: str
    seconds: float
    """From the first process to the last one's end, without the interpreter's start."""
    isolation: tuple[str, ...] = ()
    """What was in force."""


_BOOT = """
import sys, types
root = sys.argv[1]
for name, place in (("tunesmith", root), ("tunesmith.grading", root + "/grading")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [place]
from tunesmith.grading.sandbox import launch
launch.wait_for_orders(int(sys.argv[2]))
"""
"""Runs ``launch`` without the package's own ``__init__``, and without any site-packages."""
_UIDS = 1_900_000_000
"""Users that nobody is; each program has two of them, so that none can touch another."""
_SLACK = 5.0
"""Seconds after which the process that watches the clock is itself taken for dead."""
_own = threading.local()
_taken: Iterator[int] = iter(range(1 << 20))


def run(program: str, tests: Checks, limits: Limits | None = None, *, mode: Mode) -> Outcome:
    """Run a program's text against tests; safe to call from several threads."""
    limits = limits or Limits()
    wire = {
        "preamble": tests.preamble,
        "names": list(tests.names),
        "needed": list(tests.needed),
        "setup": tests.setup,
        "tests": list(tests.checks),
    }
    made, tail = _once(program, wire, limits, mode)
    if made == b"":
        # A launcher that has ended, or stands still, before its first word has begun no program.
        made, tail = _once(program, wire, limits, mode)
    return _outcome(made, tail, limits)


def _once(
    program: str, wire: dict[str, Any], limits: Limits, mode: Mode
) -> tuple[bytes | None, bytes]:
    """Have a program run; return what ``_listen`` does."""
    with contextlib.ExitStack() as stack:
        held = [_text(stack, text) for text in (program, json.dumps(wire))]
        answer, says = _pipe(stack)
        alive, grader = _pipe(stack)
        output, writes = _pipe(stack)
        orders: dict[str, Any] = {
            "mode": mode,
            "limits": asdict(limits),
            "scratch": limits.scratch,
            "uids": users(),
        }
        if mode == "none":
            orders["folder"] = stack.enter_context(_folder())
        try:
            _order(orders, (*held, says, alive, writes))
        finally:
            for one in (says, writes):
                os.close(one)
        try:
            made, tail = _listen(answer, output, limits)
        finally:
            os.close(grader)
        if made == b"" or not _silent(answer):
            _drop_launcher()
        return made, tail


class _Launcher:
    """An interpreter that forks for each program that it is ordered to run; one a thread."""

    def __init__(self) -> None:
        self.number = next(_taken)
        self._own, its = socket.socketpair()
        package = Path(__file__).parent.parent.parent
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, str(package), str(its.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            pass_fds=(its.fileno(),),
            start_new_session=True,
        )
        its.close()

    def order(self, orders: dict[str, Any], passed: tuple[int, ...]) -> None:
        """Have a program run."""
        socket.send_fds(self._own, [json.dumps(orders).encode()], passed)

    def __del__(self) -> None:
        self._own.close()
        self._process.kill()
        self._process.wait()


def _launcher() -> _Launcher:
    """Return this thread's own; a fork of this process makes another."""
    if getattr(_own, "pid", None) != os.getpid():
        _own.launcher, _own.pid = _Launcher(), os.getpid()
    made = _own.launcher
    assert isinstance(made, _Launcher)
    return made


def _order(orders: dict[str, Any], passed: tuple[int, ...]) -> None:
    """Have a program run, by a new launcher where somebody has killed this thread's own."""
    try:
        _launcher().order(orders, passed)
    except OSError:
        _drop_launcher()
        _launcher().order(orders, passed)


def _drop_launcher() -> None:
    _own.pid = None


def _silent(answer: int) -> bool:
    """Wait until the launcher has closed its answer, which it does when all others are gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(answer, selectors.EVENT_READ)
        until = time.monotonic() + _SLACK
        while (left := until - time.monotonic()) > 0:
            if selector.select(left) and not os.read(answer, 1 << 16):
                return True
    return False


def _listen(answer: int, output: int, limits: Limits) -> tuple[bytes | None, bytes]:
    """Return the launcher's answer, None after too much output, and the end of what was written.

    An answer that is not there in time is what there is of it: nothing of one that was not begun.
    """
    deadline = time.monotonic() + limits.wall_seconds + _SLACK
    tail, written = b"", 0
    with selectors.DefaultSelector() as selector:
        selector.register(answer, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        made = b""
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                part = os.read(key.fd, 1 << 16)
                if key.fd == answer:
                    made += part
                    if not part or made.endswith(b"\n"):
                        return made, tail
                else:
                    written += len(part)
                    tail = (tail + part)[-400:]
                    if written > limits.output:
                        return None, tail
                    if not part:
                        selector.unregister(output)
    return made, tail


def _outcome(made: bytes | None, output: bytes, limits: Limits) -> Outcome:
    if made is None:
        return Outcome(Kind.OUTPUT, f"more than {limits.output:,} bytes", 0.0)
    try:
        found = json.loads(made)
    except ValueError:
        said = output.decode(errors="replace").strip()[-200:]
        return Outcome(Kind.NOT_STARTED, f"the sandbox gave no answer: {said}", 0.0)
    kind = Kind.NOT_STARTED if found["kind"] == "stopped" else Kind(found["kind"])
    held = tuple(found["isolation"])
    return Outcome(kind, str(found["detail"])[:600], float(found.get("seconds", 0)), held)


def users() -> list[int]:
    """Return the users of tester and program; none where this process cannot become another."""
    if os.geteuid() or not _has_all_users():
        return []
    base = _UIDS + (os.getpid() % 100_000) * 200 + 2 * (_launcher().number % 100)
    return [base, base + 1]


@lru_cache(maxsize=1)
def _has_all_users() -> bool:
    """Say whether the users that nobody is exist here: root of a container may have a few only."""
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:
        return True
    maps = [[int(part) for part in line.split()] for line in lines]
    return any(first <= _UIDS and first + count >= _UIDS + (1 << 25) for first, _, count in maps)


def _text(stack: contextlib.ExitStack, text: str) -> int:
    """Return a descriptor of a text that is in memory and in no folder."""
    descriptor = os.memfd_create("text")
    stack.callback(os.close, descriptor)
    data = memoryview(text.encode(errors="replace"))
    while data:
        data = data[os.write(descriptor, data) :]
    return descriptor


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    reads, writes = os.pipe()
    stack.callback(os.close, reads)
    return reads, writes


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="program-")
    Path(folder).chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_WAYS: tuple[Mode, ...] = ("root", "user")


@lru_cache(maxsize=1)
def _possible() -> tuple[Mode, str]:
    """Return the mode that this machine allows, by trying it, or ``none`` and the reason."""
    if not sys.platform.startswith("linux"):
        return "none", "there are no namespaces on this system"
    probe = Checks(["assert f(1) == 2"], ["f"], ["f"])
    why = []
    for tried in _WAYS if users() else _WAYS[1:]:
        found = run("def f(x): return x + 1", probe, mode=tried)
        if found.kind is Kind.PASS:
            return tried, ""
        why.append(found.detail)
    return "none", "; ".join(dict.fromkeys(why))


def mode_for(*, unsafe: bool, what: str = "Model-written programs") -> Mode:
    """Return how programs are confined here; ``UsageError`` where they cannot be.

    ``what`` names them in it. With ``unsafe`` they then run all the same, with limits, no rights
    and few system calls, but with the same files and network as the user that they run as.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(f"{what} can be run on Linux only.", expected="a Linux machine")
    mode, why = _possible()
    if mode == "none" and not unsafe:
        raise UsageError(
            f"{what} cannot be confined here ({why}), so none is run.",
            expected="a kernel that allows namespaces, to root or to users",
            hint="a container started with --privileged, a machine without that limit, or "
            "--unsafe-exec, which runs them with limits alone",
        )
    return mode


def described(mode: Mode) -> str:
    """Say what confines programs in this mode."""
    own = bool(users())
    user = "a user of its own" if own else "the user's own rights and none more"
    if mode == "none":
        more = "" if own else ", programs killed and verdicts forged"
        return f"UNSAFE: limits, few system calls and {user}; the user's files can be read{more}"
    return (
        f"own namespaces without network, {user}, read-only libraries with an empty /tmp, few "
        "system calls, limits; the tests run apart from the program"
    )
