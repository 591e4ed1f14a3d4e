"""Every system call of a save made to fail, one at a time, in processes forked off this one.

    python tests/system_calls.py --stride 1

Started without the preloaded library it compiles it and starts itself again with it. Prints how
many places were tried, or what went wrong at one of them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FAULTS = {"KILL": 1, "ENOSPC": 2, "EIO": 3, "EINTR": 4, "short write": 5}
PRELOADED = "TUNESMITH_FAULTS"


def compiled(folder: Path) -> Path:
    """Build the library that lets calls fail."""
    target = folder / "faults.so"
    source = Path(__file__).with_name("system_calls.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return target


class Calls:
    """The preloaded library, seen from within."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self.library.fault_count.restype = ctypes.c_long

    def arm(self, at: int, kind: int) -> None:
        self.library.fault_arm(ctypes.c_long(at), ctypes.c_long(kind))

    def count(self) -> int:
        found = int(self.library.fault_count())
        self.library.fault_disarm()
        return found


def child(folder: Path, at: int, kind: int, made: tuple[object, ...]) -> None:
    """Save the second checkpoint and prune to two, with a fault; say how it ended."""
    from tunesmith.errors import StorageError
    from tunesmith.train import checkpoint

    state, calls = made[0], Calls()
    said: dict[str, object] = {}
    calls.arm(at, kind)
    try:
        checkpoint.save(folder, state, {})  # type: ignore[arg-type]
        checkpoint.prune(folder, 2)
        said["done"] = True
    except StorageError as failure:
        said["failed"] = str(failure)
    except BaseException as failure:
        said["strange"] = repr(failure)
    said["calls"] = calls.count()
    (folder / "said.json").write_text(json.dumps(said))


def attempt(base: Path, at: int, kind: int, made: tuple[object, ...]) -> dict[str, object]:
    """Fork a save off; return what it said, with the checkpoints as they lie there after it."""
    from tunesmith.train import checkpoint

    with tempfile.TemporaryDirectory(dir=base) as home:
        folder = Path(home)
        state, earlier = made
        for content in earlier:  # type: ignore[attr-defined]
            shutil.copytree(content, folder / content.name)
        pid = os.fork()
        if pid == 0:
            try:
                child(folder, at, kind, made)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        said: dict[str, object] = {"killed": os.WIFSIGNALED(status)}
        if (folder / "said.json").is_file():
            said |= json.loads((folder / "said.json").read_text())
        newest, complaints = checkpoint.latest(folder)
        said["newest"], said["complaints"] = newest.name if newest else None, complaints
        # The next save must recover, whatever was left.
        again = checkpoint.save(folder, state, {})  # type: ignore[arg-type]
        checkpoint.prune(folder, 2)
        said["recovered"] = checkpoint.latest(folder) == (again, [])
        said["left"] = sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
        return said


def wrong(said: dict[str, object], kind: str) -> str | None:
    """Return what is wrong with how an attempt ended, or None."""
    if said["newest"] not in ("checkpoint-step-2", "checkpoint-step-3"):
        return f"the newest checkpoint is {said['newest']}"
    if said["complaints"]:
        return f"a broken checkpoint stands there: {said['complaints']}"
    if said.get("strange"):
        return f"no sentence: {said['strange']}"
    if not said["recovered"] or said["left"]:
        return f"the next save did not recover: {said}"
    if said.get("done") and said["newest"] != "checkpoint-step-3":
        return "the save was acknowledged and is not there"
    if kind == "short write" and not said.get("done"):
        return f"a short write is no failure: {said}"
    if not (said.get("done") or said.get("failed") or said["killed"]):
        return f"it ended without a word: {said}"
    return None


def main() -> int:
    """Try every ``stride``-th place of a save with each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1)
    asked = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as home:
        if PRELOADED not in os.environ:
            library = compiled(Path(home))
            settings = {**os.environ, "LD_PRELOAD": str(library), PRELOADED: "1"}
            return subprocess.run([sys.executable, *sys.argv], env=settings, check=False).returncode
        return try_all(Path(home), asked.stride)


def try_all(base: Path, stride: int) -> int:
    """Try the places of a save, and print their number."""
    import torch

    from test_checkpoint import make_state, steps
    from tunesmith.train import checkpoint

    torch.set_num_threads(1)
    state = make_state(True)
    earlier = []
    for done in steps(state):
        if done.step == 3:
            break
        earlier.append(checkpoint.save(base / "earlier", state, {}))
    made = (state, earlier)
    tried = total = 0
    for kind, number in FAULTS.items():
        calls = attempt(base, 0, number, made)["calls"]
        assert isinstance(calls, int)
        assert calls > 30
        total += calls
        for at in range(1, calls + 1, stride):
            tried += 1
            fault = wrong(attempt(base, at, number, made), kind)
            if fault is not None:
                print(f"{kind} at call {at} of {calls}: {fault}", file=sys.stderr)
                return 1
    print(f"system calls of a save: {tried} faults at {total} places, {', '.join(FAULTS)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
