"""Runs whose machine loses its power at random moments, resumed from what the disk held by then.

    python tests/power_cut.py --cuts 1000      # root on Linux: it mounts images of ext4

A run trains on an ext4 file system in an image. At a random time, or at a random call that touches
the file system, it is stopped and the image is copied, without what the kernel had not written yet:
that is what a power cut leaves. The copy is mounted, which replays its journal. Every checkpoint
that the run had called saved must be there and whole, or a later one, and none that bears its name
may be torn. The next life goes on from it; in the end weights, last checkpoint and metrics must be
those of a run that nothing cut. The image's own disk keeps what it was told to write, in order.
"""

from __future__ import annotations

import argparse
import faulthandler
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kill_anywhere import (
    LIVES,
    LONGEST_S,
    SETTINGS,
    Ending,
    Tally,
    arm,
    leftovers,
    life,
    moment,
    outcome,
    prepare,
    run,
    sooner,
    warm,
)

SIZE = 64 * 2**20
"""Bytes of an image."""
OPTIONS = ("loop", "loop,commit=1", "loop,data=writeback")
"""The last lets a file's name reach the disk before its content unless the content is flushed."""
Straight = tuple[dict[str, Any], float, int]
"""Of a run that nothing cut: its outcome, the seconds it took and how often it touched files."""
UNABLE = 77
"""Exit code where images cannot be mounted."""


def command(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def make_image(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    command("mkfs.ext4", "-q", "-F", path)


@contextmanager
def mounted(image: Path, at: Path, options: str) -> Iterator[Path]:
    """Mount an image; unmounting writes to it whatever was left to write."""
    at.mkdir(exist_ok=True)
    command("mount", "-t", "ext4", "-o", options, image, at)
    try:
        yield at
    finally:
        command("umount", at)


def copied(image: Path, target: Path) -> None:
    """Copy an image that the kernel may be writing to, as it was at one moment."""
    for _ in range(50):
        command("cp", "--sparse=always", image, target)
        if filecmp.cmp(image, target, shallow=False):
            return
    raise TimeoutError("the image was written to all the time")


def cut_life(folder: Path, name: str, kind: str, ending: Ending, image: Path) -> tuple[int, int]:
    """Run until the end or the cut; return 0 or minus the signal, and the last step said saved.

    A cut leaves the image as the disk held it; the mounted file system is not to be used again.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(reader)
            os.chdir(folder)
            faulthandler.enable()
            os.dup2(os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            _say_what_is_saved(writer)
            arm(ending)
            code = run(name, SETTINGS[kind])
        finally:
            os._exit(code)
    os.close(writer)
    try:
        code = _until_stopped(child, ending)
        os.set_blocking(reader, False)
        told = _told(reader)
        if code == -signal.SIGSTOP:
            try:
                copied(image, image.with_suffix(".after"))
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return code, max((int(step) for step in told.split()), default=0)
    finally:
        os.close(reader)


def _told(reader: int) -> bytes:
    try:
        return os.read(reader, 2**16)
    except BlockingIOError:
        return b""


def _say_what_is_saved(writer: int) -> None:
    """Write a checkpoint's step to a pipe as soon as saving it has returned."""
    from tunesmith.train import checkpoint

    save = checkpoint.save

    def saying(folder: Path, state: Any, *rest: Any) -> Path:
        path = save(folder, state, *rest)
        os.write(writer, f"{state.step}\n".encode())
        return path

    checkpoint.save = saying


def _until_stopped(child: int, ending: Ending) -> int:
    """Wait until a child is stopped, by itself or at its time, or has ended."""
    began = time.monotonic()
    while time.monotonic() - began < LONGEST_S:
        done, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if done and os.WIFSTOPPED(status):
            return -signal.SIGSTOP
        if done:
            return os.waitstatus_to_exitcode(status)
        if ending.seconds is not None and time.monotonic() - began > ending.seconds:
            os.kill(child, signal.SIGSTOP)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a life took over {LONGEST_S:.0f} s")


def fault_of(folder: Path, saved: int) -> str | None:
    """Return what is wrong with a run's checkpoints after a cut, None if nothing is."""
    from tunesmith.train import checkpoint

    path, complaints = checkpoint.latest(folder / "checkpoints")
    if complaints:
        return f"a checkpoint bears its name and is torn: {'; '.join(complaints)}"
    step = int(path.name.rpartition("-")[2]) if path is not None else 0
    return f"step {saved} was called saved, {step} is the last there" if step < saved else None


def work(home: Path, wanted: int, seed: int, seconds: float) -> Tally:
    """Cut runs off until so many cuts are made or the time is over."""
    tally, rng = Tally(), random.Random(seed)
    blank, image, at = home / "blank.img", home / "run.img", home / "disk"
    make_image(blank, SIZE)
    with mounted(blank, at, "loop"):
        shutil.copytree(home / "plain/base", at / "base")
        shutil.copy(home / "plain/rows.jsonl", at)
    straight: dict[str, Straight] = {}
    for kind, settings in SETTINGS.items():
        began = time.monotonic()
        if life(home / "plain", kind, settings, None) != 0:
            tally.faults.append((home / f"plain/{kind}.log").read_text())
            return tally
        whole = time.monotonic() - began
        touches = int((home / f"plain/{kind}.touches").read_text())
        straight[kind] = outcome(home / "plain", kind), whole, touches
    deadline = time.monotonic() + seconds

    def enough() -> bool:
        return tally.kills >= wanted or time.monotonic() > deadline

    while not enough() and not tally.faults:
        kind = list(SETTINGS)[tally.runs % len(SETTINGS)]
        name = f"{kind}-{tally.runs}"
        tally.runs += 1
        command("cp", "--sparse=always", blank, image)
        one_run(home, name, kind, straight[kind], rng, tally, enough)
    return tally


def one_run(
    home: Path,
    name: str,
    kind: str,
    straight: Straight,
    rng: random.Random,
    tally: Tally,
    enough: Callable[[], bool],
) -> None:
    """Cut one run off several times, let it end, and compare."""
    expected, whole, touches = straight
    image, at, saved = home / "run.img", home / "disk", 0
    for _ in range(LIVES):
        if enough():
            break
        options = rng.choice(OPTIONS)
        ending = sooner(rng, whole, touches, signal.SIGSTOP)
        with mounted(image, at, options):
            code, last = cut_life(at, name, kind, ending, image)
            said = (at / f"{name}.log").read_text()
        if code == 0:
            break
        if code != -signal.SIGSTOP:
            tally.faults.append(f"{name}: a life ended with {code}: {said}")
            return
        tally.kills += 1
        saved = max(saved, last)
        image.with_suffix(".after").replace(image)
        with mounted(image, at, "loop"):
            tally.moments[moment(at, name)] += 1
            fault = fault_of(at / "runs" / name, saved)
        if fault is not None:
            tally.faults.append(f"{name}, {options}: {fault}")
            return
    with mounted(image, at, "loop"):
        code = life(at, name, SETTINGS[kind], None)
        if code != 0:
            tally.faults.append(f"{name}: the last life: {(at / f'{name}.log').read_text()}")
            return
        found = outcome(at, name)
        differing = [key for key in expected if found.get(key) != expected[key]]
        differing += leftovers(at, name)
    if differing:
        tally.faults.append(f"{name}: {', '.join(differing)} differ from the uncut run")


def able(home: Path) -> bool:
    """Say whether this process may mount an image of ext4."""
    image = home / "try.img"
    try:
        make_image(image, 2**21)
        with mounted(image, home / "try", "loop"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> int:
    """Cut, compare, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shm = Path("/dev/shm")
    roomy = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 8 * SIZE
    memory = shm if roomy else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home = Path(folder)
        if not able(home):
            print("No image of ext4 can be mounted here: it takes root on Linux and loop devices.")
            return UNABLE
        (home / "plain").mkdir()
        prepare(home / "plain")
        import tunesmith.workflows.train  # noqa: F401

        warm(home / "plain")
        began = time.monotonic()
        tally = work(home, asked.cuts, asked.seed, asked.seconds)
    took = time.monotonic() - began
    for fault in tally.faults:
        print(fault, file=sys.stderr)
    where = ", ".join(f"{count} {stood}" for stood, count in sorted(tally.moments.items()))
    print(f"cut {tally.kills} times in {tally.runs} runs, {took:.0f} s: {where}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
