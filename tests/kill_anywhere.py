"""Runs that are killed at random moments, resumed to the end, and compared bit for bit.

    python tests/kill_anywhere.py --kills 10000

One process imports everything once and forks every run off (a zygote), so a kill costs a fraction
of a second. A life of a run ends by SIGKILL (or by ``--signal``) after a random time, or at a
random call that touches the file system. The next life resumes. When a run has been killed often
enough it is let to its end, and its weights, its last checkpoint (optimiser, ledger, scale) and its
metrics (losses, rates) must be those of a run that was never killed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIVES = 20
"""Lives of a run that may end early."""
LONGEST_S = 120.0
"""A life that takes longer hangs."""
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"lora": True, "lora_rank": 4, "lora_dropout": 0.1, "save_steps": 1},
    "full": {"save_steps": 2, "neftune_alpha": 2.0},
    "best": {"save_steps": 2, "eval_steps": 1, "load_best_model_at_end": True, "lora": True},
    # Each row is met twice, the second time from the trunk's file.
    "trunk": {"freeze_ratio": 0.5, "save_steps": 3, "max_rows": 12,
              "per_device_train_batch_size": 2, "validation_split": 0.0,
              "gradient_accumulation_steps": 1, "trunk_cache": "on"},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "model": "base",
    "dataset": "rows.jsonl",
    "max_steps": 8,
    "learning_rate": 0.01,
    "save_total_limit": 2,
    "logging_steps": 1,
    "report_to": "none",
    "log_level": "error",
    "num_workers": 1,
    "cache": False,
}
FINISHED = "after the report"
TOUCHES = ("open", "os.", "shutil.", "pathlib.")
"""Audit events at which a life may end."""


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)


def prepare(folder: Path) -> None:
    """Write a tiny model and rows, and import all that a run needs."""
    import torch

    from tiny_models import tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    tiny_model("llama").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = ({"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}."} for n in range(24))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def life(
    folder: Path,
    name: str,
    settings: dict[str, Any],
    ending: Ending | None,
    doing: Callable[[str, dict[str, Any]], int] | None = None,
) -> int:
    """Fork a run off and wait for its end; return its exit code, or minus the signal.

    ``doing`` is what it runs, a training run if not given.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            faulthandler.enable()
            sink = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 2)
            touched = arm(ending)
            code = (doing or run)(name, settings)
            (folder / f"{name}.touches").write_text(str(touched[0]))
        finally:
            os._exit(code)
    return wait(child, ending)


@dataclass
class Ending:
    """When a life ends: after some seconds, or at the n-th touch of the file system."""

    number: int
    seconds: float | None = None
    touch: int | None = None


def arm(ending: Ending | None) -> list[int]:
    """Let this process end when it is to; return a list that counts touches of the file system."""
    touched = [0]

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if not event.startswith(TOUCHES) or (event == "open" and "/lib/python" in str(given[0])):
            return
        touched[0] += 1
        if ending is not None and touched[0] == ending.touch:
            os.kill(os.getpid(), ending.number)

    sys.addaudithook(hook)
    return touched


def run(name: str, settings: dict[str, Any]) -> int:
    """Train or go on training; the same command that a person would give."""
    import tunesmith
    from tunesmith.errors import TunesmithError
    from tunesmith.train import checkpoint

    run_ = Path("runs") / name
    how: dict[str, Any] = {"overwrite": True}
    if checkpoint.latest(run_ / "checkpoints")[0] is not None:
        how = {"resume": "auto"}
    try:
        tunesmith.train(**COMMON, **settings, **how, run_name=name)
    except TunesmithError as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:  # outside the loop; the command line makes the same of it
        return 130
    return 0


def wait(child: int, ending: Ending | None) -> int:
    """Wait for a child, ending it when it is time."""
    began = time.monotonic()
    limit = ending.seconds if ending is not None and ending.seconds is not None else LONGEST_S
    pause = 0.0005
    asked = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if not asked and time.monotonic() - began > limit:
            asked = True
            number = ending.number if ending is not None and limit < LONGEST_S else signal.SIGKILL
            os.kill(child, number)
        if time.monotonic() - began > LONGEST_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"a life took over {LONGEST_S:.0f} s")
        time.sleep(pause)


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """Return all that must not depend on kills: bytes of weights, checkpoint, and metrics."""
    run_ = folder / "runs" / name
    found: dict[str, Any] = {}
    for part in ("final_model", "best_model"):
        for path in (run_ / part).glob("*.safetensors"):
            found[f"{part}/{path.name}"] = path.read_bytes()
    last = run_ / "checkpoints" / f"checkpoint-step-{COMMON['max_steps']}"
    for path in last.glob("*.safetensors"):
        found[f"last/{path.name}"] = path.read_bytes()
    state = json.loads((last / "state.json").read_text())
    state["extra"]["records"] = [repeatable(r) for r in state["extra"]["records"]]
    found["state"] = state
    lines = map(json.loads, (run_ / "metrics.jsonl").read_text().splitlines())
    found["metrics"] = [repeatable(record) for record in lines]
    found["finished"] = json.loads((run_ / "manifest.json").read_text())["finished"]
    return found


def repeatable(record: dict[str, Any]) -> dict[str, Any]:
    """Return what of a record does not depend on how fast or how full the machine was."""
    from tunesmith.workflows.metrics import MEASURED

    return {key: value for key, value in record.items() if key not in MEASURED}


def leftovers(folder: Path, name: str) -> list[str]:
    """Return what interrupted writes have left for good in a finished run."""
    run_ = folder / "runs" / name
    return [str(p.relative_to(run_)) for p in run_.rglob(".*") if p.name != ".lock"]


def sooner(rng: random.Random, whole: float, touches: int, number: int) -> Ending:
    """Draw an ending, half of them at a touch of the file system.

    A resumed life has less left to do, so most endings lie in the first part of a whole one.
    """
    most = 1.0 if rng.random() < 0.2 else 0.5
    if rng.random() < 0.5:
        return Ending(number, seconds=rng.uniform(0.02, most) * whole)
    return Ending(number, touch=rng.randint(1, round(most * touches)))


def moment(folder: Path, name: str) -> str:
    """Say from the files where a run stood when it was killed."""
    run_ = folder / "runs" / name
    if (run_ / "manifest.json").is_file():
        return FINISHED
    if list(run_.glob(".*_model.*")) or list(run_.glob("checkpoints/.checkpoint*")):
        return "in a save"
    if (run_ / "final_model").is_dir():
        return "at the end"
    steps = sorted(run_.glob("checkpoints/checkpoint-step-*"))
    return f"{len(steps)} checkpoints" if steps else "before a checkpoint"


def work(folder: Path, wanted: int, seed: int, number: int, seconds: float) -> Tally:
    """Kill runs until so many kills are done or the time is over."""
    tally, rng = Tally(), random.Random(seed)
    deadline = time.monotonic() + seconds
    references: dict[str, tuple[dict[str, Any], float, int]] = {}
    allowed = {0, -number} | ({130, 128 + number} if number != signal.SIGKILL else set())
    while tally.kills < wanted and time.monotonic() < deadline:
        kind = list(SETTINGS)[tally.runs % len(SETTINGS)]
        if kind not in references:
            began = time.monotonic()
            name = f"{kind}-{seed}-straight"
            if life(folder, name, SETTINGS[kind], None) != 0:
                tally.faults.append(f"{name}: {(folder / f'{name}.log').read_text()}")
                return tally
            whole = time.monotonic() - began
            touches = int((folder / f"{name}.touches").read_text())
            references[kind] = outcome(folder, name), whole, touches
        expected, whole, touches = references[kind]
        name = f"{kind}-{seed}-{tally.runs}"
        tally.runs += 1
        late = 0
        for _ in range(LIVES):
            code = life(folder, name, SETTINGS[kind], sooner(rng, whole, touches, number))
            if code not in allowed:
                said = (folder / f"{name}.log").read_text()
                tally.faults.append(f"{name}: a life ended with {code}: {said}")
                return tally
            if code == 0:
                break
            tally.kills += 1
            stood = moment(folder, name)
            tally.moments[stood] += 1
            if stood == FINISHED and (late := late + 1) == 2:
                break
        code = life(folder, name, SETTINGS[kind], None)
        if code != 0:
            said = (folder / f"{name}.log").read_text()
            tally.faults.append(f"{name}: the last life ended with {code}: {said}")
            return tally
        found = outcome(folder, name)
        differing = [key for key in expected if found.get(key) != expected[key]]
        differing += leftovers(folder, name)
        if differing:
            tally.faults.append(f"{name}: {', '.join(differing)} differ from the unkilled run")
            return tally
        forget(folder / "runs" / name)
    return tally


def forget(run_: Path) -> None:
    """Remove a run that was found equal."""
    import shutil

    shutil.rmtree(run_)


def parallel(
    folder: Path,
    kills: int,
    jobs: int,
    seed: int,
    number: int,
    seconds: float,
    working: Callable[[Path, int, int, int, float], Tally] | None = None,
) -> list[Tally]:
    """Share the kills among processes forked off this one; each does ``working``."""
    pipes = []
    for job in range(jobs):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                share = kills // jobs + (job < kills % jobs)
                tally = (working or work)(folder, share, seed * 1000 + job, number, seconds)
            except BaseException as failure:
                tally = Tally(faults=[repr(failure)])
            with os.fdopen(writer, "w") as out:
                json.dump([tally.kills, tally.runs, tally.faults, tally.moments], out)
            os._exit(0)
        os.close(writer)
        pipes.append((child, reader))
    tallies = []
    for child, reader in pipes:
        with os.fdopen(reader) as file:
            kills_, runs, faults, moments = json.load(file)
        os.waitpid(child, 0)
        tallies.append(Tally(kills_, runs, faults, Counter(moments)))
    return tallies


def main() -> int:
    """Kill, compare, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--signal", default="SIGKILL")
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # What a kill leaves does not depend on the disk, and memory need not be waited for.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as home:
        folder = Path(home)
        prepare(folder)
        # One life in a child finds out what a run imports; the next ones inherit it.
        import tunesmith.workflows.train  # noqa: F401

        warm(folder)
        began = time.monotonic()
        number = signal.Signals[asked.signal]
        tallies = parallel(folder, asked.kills, asked.jobs, asked.seed, number, asked.seconds)
    took = time.monotonic() - began
    kills, runs = sum(t.kills for t in tallies), sum(t.runs for t in tallies)
    moments: Counter[str] = Counter()
    for tally in tallies:
        moments.update(tally.moments)
    for tally in tallies:
        for fault in tally.faults:
            print(fault, file=sys.stderr)
    print(
        f"{asked.signal}: {kills} of {asked.kills} in {runs} runs, {60 * kills / took:.0f} a "
        f"minute; moments: {dict(moments.most_common())}"
    )
    return 1 if any(t.faults for t in tallies) else 0


def warm(folder: Path) -> None:
    """Make a run in this very process, so that every import and cache is there to be inherited."""
    before = Path.cwd()
    os.chdir(folder)
    code = run("warm", SETTINGS["best"])
    os.chdir(before)
    if code:
        raise SystemExit(f"a run without kills ended with {code}")


if __name__ == "__main__":
    raise SystemExit(main())
