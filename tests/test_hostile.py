"""Hostile programs get nothing, forge nothing and leave nothing; a share here, all in the nightly.

Canaries outside of the sandbox tell: a file, a process, a port and a secret in the environment.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostile.forgeries import FORGERIES
from hostile.programs import COUNT, programs
from tunesmith.errors import UsageError
from tunesmith.grading.sandbox import run as sandbox
from tunesmith.grading.sandbox.run import Checks, Kind, Limits, Outcome, mode_for, run

SHORT = Limits(cpu_seconds=1, wall_seconds=1.5)
ALL_AT_ONCE = 2
SHARE = 10
"""One program in so many runs by default."""

try:
    MODE = mode_for(unsafe=False)
except UsageError as found:
    pytest.skip(f"programs cannot be confined here: {found.found}", allow_module_level=True)


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, object]]:
    secret = f"secret-{random.getrandbits(64)}"
    folder = tmp_path_factory.mktemp("canary")
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):  # as open as it can be: only the sandbox protects it
            place.chmod(place.stat().st_mode | 0o755)
    file = folder / "canary"
    file.write_text(secret)
    file.chmod(0o666)
    folder.chmod(0o777)
    sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
    process = subprocess.Popen(sleeper, env={"SECRET": secret})
    before = os.environ.get("SECRET")
    os.environ["SECRET"] = secret
    sandbox._drop_launcher()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        port = server.getsockname()[1]
        yield {"secret": secret, "file": file, "pid": process.pid, "port": port}
        with pytest.raises(TimeoutError):
            server.accept()
    assert process.poll() is None, "a program has killed a process outside"
    process.kill()
    process.wait()
    assert file.read_text() == secret
    assert [path.name for path in folder.iterdir()] == ["canary"]
    os.environ.pop("SECRET") if before is None else os.environ.update(SECRET=before)


def left() -> list[int]:
    """Return the processes of this one's sandboxes: by their users, or as a launcher's children."""
    low = sandbox._UIDS + (os.getpid() % 100_000) * 200
    found, parents = [], {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = (place / "status").read_text().splitlines()
            facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            parents[int(place.name)] = int(facts["PPid"])
            if low <= int(facts["Uid"].split()[1]) < low + 200:
                found.append(int(place.name))
    own = [pid for pid, parent in parents.items() if parent == os.getpid()]
    launchers = [pid for pid in own if b"wait_for_orders" in _command(pid)]
    return [*found, *(pid for pid, parent in parents.items() if parent in launchers)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def run_all(sources: list[tuple[str, str]], tests: Checks) -> dict[str, Outcome]:
    """Run programs two at once, say how fast, and see that nothing is left a second later."""
    before = folders()
    begun = time.perf_counter()
    with ThreadPoolExecutor(ALL_AT_ONCE) as pool:
        made = pool.map(lambda one: run(one[1], tests, SHORT, mode=MODE), sources)
        found = dict(zip((name for name, _ in sources), made, strict=True))
    took = time.perf_counter() - begun
    print(f"{len(sources)} programs, {len(sources) / took:.1f} a second, {ALL_AT_ONCE} at once")
    until = time.monotonic() + 1
    while (still := left()) and time.monotonic() < until:
        time.sleep(0.05)
    assert still == []
    new, until = folders() - before, time.monotonic() + 10
    while new & folders() and time.monotonic() < until:  # another test's program goes on a while
        time.sleep(0.05)
    assert not new & folders()
    return found


def folders() -> set[str]:
    """Return the names of programs' folders, those of other tests' sandboxes among them."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("program-*")}


def none_escapes(canaries: Mapping[str, object], every: int) -> None:
    chosen = [*programs(canaries)][::every]
    found = run_all(chosen, Checks(["assert f() == 'escaped', f()"], ["f"], ["f"]))
    assert len(found) == len(chosen)
    escaped = [name for name, outcome in found.items() if outcome.kind is Kind.PASS]
    assert escaped == []
    broken = {n: o for n, o in found.items() if o.kind in (Kind.NOT_STARTED, Kind.TESTS)}
    assert broken == {}
    assert max(o.seconds for o in found.values()) < SHORT.wall_seconds + 1


def none_forges(every: int) -> None:
    chosen = [(str(n), source) for n, source in enumerate(FORGERIES)][::every]
    expected = random.SystemRandom().randrange(10**12, 10**13)
    found = run_all(chosen, Checks([f"assert f(7) == {expected}"], ["f"], ["f"]))
    assert len(found) == len(chosen)
    forged = [FORGERIES[int(n)] for n, outcome in found.items() if outcome.kind is Kind.PASS]
    assert forged == []
    ungraded = {n: o for n, o in found.items() if o.kind in (Kind.NOT_STARTED, Kind.TESTS)}
    assert ungraded == {}


def test_a_share_of_the_hostile_programs_gets_nothing_and_leaves_nothing(canaries):
    none_escapes(canaries, SHARE)


@pytest.mark.slow
def test_three_hundred_hostile_programs_get_nothing_and_leave_nothing(canaries):
    assert len([*programs(canaries)]) == COUNT
    none_escapes(canaries, 1)


def test_a_share_of_the_forgeries_fails():
    none_forges(3)


@pytest.mark.slow
def test_fifty_forgeries_fail():
    assert len(FORGERIES) == 50
    none_forges(1)
