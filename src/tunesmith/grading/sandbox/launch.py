"""The process between the grader and a program: it confines, watches the clock and ends all of it.

``run`` keeps an interpreter of its own for it, which forks for each program and reads nothing of
one, so that none leaves a trace for the next. One line of JSON is the answer. The descriptor for
it is closed in every process that runs what others wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from tunesmith.grading.sandbox import kernel, solver, tester

PATIENCE = 1.0
"""Seconds that the tester has to conclude once the program has ended."""
_OVER_CPU = 128 + signal.SIGXCPU


DESCRIPTORS = ("program", "tests", "answer", "alive", "output")
"""What comes with an order, in this order."""
BEGUN = b" "
"""What an answer begins with before anything else is done: JSON goes on after it."""


def wait_for_orders(descriptor: int) -> None:
    """Run each program that is ordered over a socket in a process of its own, until it closes."""
    with socket.socket(fileno=descriptor) as orders:
        while True:
            body, passed, _, _ = socket.recv_fds(orders, 1 << 16, len(DESCRIPTORS))
            if not body:
                return
            watcher = os.fork()
            if not watcher:
                try:
                    orders.close()
                    os.setsid()
                    os.write(passed[2], BEGUN)
                    os.dup2(passed[4], 1)
                    os.dup2(passed[4], 2)
                    os.close(passed[4])
                    main(json.loads(body) | dict(zip(DESCRIPTORS, passed, strict=True)))
                except Exception as fault:
                    _fail(passed[2], f"{type(fault).__name__}: {fault}")
                finally:
                    os._exit(0)
            for at, one in enumerate(passed):
                if at != 2:
                    os.close(one)
            status = os.waitpid(watcher, 0)[1]
            if os.WIFSIGNALED(status):
                by = os.WTERMSIG(status)
                _fail(passed[2], f"the process that watches was killed by signal {by}")
            os.close(passed[2])


def main(orders: dict[str, Any]) -> None:
    """Run one program as ordered, answer, and leave no process behind."""
    answer, alive = orders["answer"], orders["alive"]
    begun = time.monotonic()
    try:
        held = _confine(orders)
    except OSError as fault:
        _fail(answer, str(fault))
        return
    asked, asks = os.pipe()
    replied, replies = os.pipe()
    said, says = os.pipe()
    confined, unready = os.pipe()
    tests = os.fork()
    if not tests:
        _child(_test, orders, orders["tests"], asks, replied, says)
    os.close(says)
    os.close(asks)
    os.close(replied)
    if orders["mode"] != "none":
        kernel.unshare(kernel.NEWPID)
    else:
        kernel.adopt_orphans()
    program = os.fork()
    if not program:
        if orders["mode"] == "none":
            _child(_solve, orders, orders["program"], asked, replies, unready)
        shut = [answer, alive, said, confined, orders["tests"]]
        _first(orders, asked, replies, unready, shut)
    os.close(asked)
    os.close(replies)
    os.close(unready)
    verdict = _watch(orders, said, program)
    _end(orders, tests, program)
    if reason := os.read(confined, 1000):
        verdict = {"kind": "not started", "detail": reason.decode(errors="replace")}
    if verdict["kind"] == "ended":
        verdict = _death(_exits.get(program, 0))
    seconds = round(time.monotonic() - begun, 4)
    _write(answer, verdict | {"isolation": held, "seconds": seconds})


_exits: dict[int, int] = {}
"""Child → the exit code that it was reaped with."""


def _confine(orders: dict[str, Any]) -> list[str]:
    """Confine this process as ``mode`` says; return what is in force for its children."""
    held = ["limits", "no new rights"]
    with contextlib.suppress(OSError):  # where memory ends, a program goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    if orders["mode"] == "none":
        os.chdir(orders["folder"])
        return held
    if orders["mode"] == "user":
        kernel.own_user()
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS)
    kernel.small_root(orders["scratch"])
    return [*held, "no network", "own processes", "read-only libraries and an empty /tmp"]


def _child(work: Any, orders: dict[str, Any], text: int, *descriptors: int) -> None:
    """Run ``work`` in this process, with its text and own descriptors alone, and end.

    The text is read here and nowhere before: what this process forks from has never seen it.
    """
    status = 70
    try:
        os.setsid()
        kept = sorted({2, text, *descriptors})
        for low, high in zip(kept, [*kept[1:], 1 << 16], strict=True):
            os.closerange(low + 1, high)
        work(orders, text, *descriptors)
        status = 0
    finally:
        os._exit(status)


def _read(text: int) -> str:
    with open(text, "rb", buffering=0) as file:
        file.seek(0)
        return file.read().decode()


def _rights(orders: dict[str, Any], uid: int | None, processes: int) -> None:
    limits = orders["limits"]
    kernel.limit(
        seconds=limits["cpu_seconds"],
        memory=limits["memory"],
        file_size=limits["file_size"],
        processes=processes,
        files=limits["files"],
    )
    kernel.drop(uid)
    kernel.end_with_parent()
    if not kernel.filter_calls() and orders["mode"] != "none":
        raise OSError("system calls cannot be filtered on this machine")


def _test(orders: dict[str, Any], text: int, requests: int, replies: int, says: int) -> None:
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    os.dup2(1, 2)
    try:
        _rights(orders, orders["uids"][0] if orders["uids"] else None, 0)
    except Exception as reason:
        _write(says, {"kind": "not started", "detail": str(reason)})
        return
    _write(says, tester.judge(json.loads(_read(text)), requests, replies))


def _solve(orders: dict[str, Any], text: int, requests: int, replies: int, unready: int) -> None:
    os.dup2(1, 2)
    uid = orders["uids"][1] if orders["uids"] else None
    try:
        _rights(orders, uid, orders["limits"]["processes"])
    except Exception as reason:
        os.write(unready, str(reason).encode())
        return
    os.close(
        unready
    )  # before a word of the program is read: it cannot say that it was not confined
    solver.serve(_read(text), requests, replies)


def _first(orders: dict[str, Any], asked: int, replies: int, unready: int, shut: list[int]) -> None:
    """Be the first process of the program's own world: when it ends, the kernel kills the rest."""
    kernel.end_with_parent()
    program = os.fork()
    if not program:
        _child(_solve, orders, orders["program"], asked, replies, unready)
    for descriptor in (asked, replies, unready, *shut):
        os.close(descriptor)
    while True:
        pid, status, used = os.wait3(0)
        if pid == program:
            os._exit(_code(orders, status, used))


def _code(orders: dict[str, Any], status: int, used: Any) -> int:
    """Return an exit code, 128 and more for signals; SIGXCPU where the processor time was over."""
    code = os.waitstatus_to_exitcode(status)
    spent = used.ru_utime + used.ru_stime
    if code == -signal.SIGKILL and spent > orders["limits"]["cpu_seconds"] - 0.5:
        code = -signal.SIGXCPU
    return code if code >= 0 else 128 - code


def _watch(orders: dict[str, Any], said: int, program: int) -> dict[str, Any]:
    """Return the tester's verdict, or why there is none."""
    deadline = time.monotonic() + orders["limits"]["wall_seconds"]
    ended = os.pidfd_open(program)
    poll = select.poll()
    for descriptor in (said, ended, orders["alive"]):
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    line = b""
    gone = False
    while True:
        left = deadline - time.monotonic()
        ready = dict(poll.poll(max(0, left * 1000))) if left > 0 else {}
        if not ready:
            return {"kind": "ended" if gone else "timeout", "detail": "the time is over"}
        if orders["alive"] in ready:
            return {"kind": "stopped", "detail": "the grader has given up"}
        if said in ready:
            part = os.read(said, 1 << 16)
            line += part
            if not part or len(line) > 1 << 16:
                break
        elif ended in ready:
            gone = True
            poll.unregister(ended)
            deadline = min(deadline, time.monotonic() + PATIENCE)
    try:
        verdict = json.loads(line)
    except ValueError:
        # What the program sent was too much for it.
        return {"kind": "error", "detail": "the tests broke down over the program's answers"}
    if verdict["kind"] == "ended" and not gone:
        # Its pipes are closed before it is dead, and how it died is to be told.
        poll.unregister(said)
        poll.poll(PATIENCE * 1000)
    return dict(verdict)


def _end(orders: dict[str, Any], tests: int, program: int) -> None:
    """Kill all that was started here, and wait until it is gone."""
    # A program that has just ended keeps its own exit code: it may be what the verdict needs.
    for pid in (tests, program):
        if _reap(orders, pid, os.WNOHANG):
            continue
        os.kill(pid, signal.SIGKILL)
        _reap(orders, pid, 0)
    if orders["mode"] == "none":
        if orders["uids"]:
            _kill_user(orders["uids"][1])
        _kill_orphans()


def _reap(orders: dict[str, Any], pid: int, how: int) -> bool:
    found, status, used = os.wait4(pid, how)
    if found:
        _exits[pid] = _code(orders, status, used)
    return bool(found)


def _kill_user(uid: int) -> None:
    """Kill every process of a user that nobody else is."""
    killer = os.fork()
    if not killer:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(killer, 0)


def _kill_orphans() -> None:
    """Kill what the program left behind and this process has adopted, until there is no more."""
    until = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < until:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in listed:
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0 if listed else os.WNOHANG)
        except ChildProcessError:
            return


def _death(code: int) -> dict[str, Any]:
    if code == _OVER_CPU:
        return {"kind": "timeout", "detail": "the processor time is over"}
    if code > 128:
        return {"kind": "error", "detail": f"the program was killed by signal {code - 128}"}
    return {"kind": "error", "detail": f"the program ended itself with exit code {code}"}


def _fail(answer: int, reason: str) -> None:
    """Say that there is no verdict, and why; the grader may have gone."""
    with contextlib.suppress(OSError):
        _write(answer, {"kind": "not started", "detail": reason, "isolation": []})


def _write(descriptor: int, made: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(made).encode() + b"\n")
