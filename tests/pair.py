"""Two processes that train together: how tests start them, and what runs in each.

Run as a program it carries out a list of jobs (JSON in the first argument), one after the other:
``env`` to set, ``train`` settings, those of ``COMMON`` to go ``without``, a ``fault`` to inject,
folders to ``keep`` as a copy and to ``drop`` before.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent.parent / "src"
SHARDS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
COMMON = {
    "dataset": ["rows.jsonl"],
    "model": "base",
    "max_steps": 6,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "eval_steps": 2,
    "save_steps": 2,
    "num_workers": 1,
    "report_to": "none",
}


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{SOURCES}{os.pathsep}{Path(__file__).parent}",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def started(folder: Path, jobs: Sequence[dict[str, Any]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Yield both processes at work on the jobs; whatever is left of them at the end is killed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pair = []
    for rank in (0, 1):
        env = environment() | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
        pair.append(
            subprocess.Popen(
                [sys.executable, __file__, json.dumps(list(jobs))],
                cwd=folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    try:
        yield pair
    finally:
        for process in pair:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def outcome(pair: Sequence[subprocess.Popen[str]], limit_s: float = 180) -> list[tuple[int, str]]:
    """Return the exit code of each process and what it said on stderr."""
    until = time.monotonic() + limit_s
    said = [process.communicate(timeout=max(1, until - time.monotonic()))[1] for process in pair]
    return [(process.returncode, text) for process, text in zip(pair, said, strict=True)]


def inject(fault: str, rank: int) -> None:
    """Let one process stall, fail or die in its fourth micro-batch, or let both take their time."""
    from tunesmith.errors import DataError
    from tunesmith.train import loop
    from tunesmith.workflows.metrics import Metrics

    losses, calls = loop.token_losses, [0]

    def token_losses(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if rank == 1 and calls[0] == 4:
            if fault == "stall":
                time.sleep(600)
            if fault == "error":
                raise DataError("A row went missing.")
            if fault == "death":
                os.kill(os.getpid(), signal.SIGKILL)
        if fault == "slow":
            time.sleep(0.3)
        found = losses(*given, **more)
        if fault == "nan" and rank == 1 and calls[0] == 4:
            found.losses.register_hook(lambda gradient: gradient * float("nan"))
        return found

    loop.token_losses = token_losses
    if fault == "broken":
        update, made = loop.update, [0]

        def break_once(state: Any, accelerator: Any) -> None:
            update(state, accelerator)
            made[0] += 1
            if made[0] == 3:
                weight = next(p for p in state.model.parameters() if p.requires_grad)
                own = weight.to_local() if hasattr(weight, "to_local") else weight
                if rank == 1 or own is weight:  # of shards one alone
                    own.data.view(-1)[0] = float("nan")

        loop.update = break_once
    if fault == "slow" and rank == 0:
        write = Metrics.write

        def write_slowly(self: Metrics) -> None:
            time.sleep(1)
            write(self)

        Metrics.write = write_slowly


def main() -> None:
    import torch

    torch.set_num_threads(1)
    import tunesmith
    from conftest import SHORT_SUITE
    from tunesmith.errors import TunesmithError
    from tunesmith.workflows import samples

    rank = int(os.environ["RANK"])
    # As in the process of the tests: three general rows, and short answers on the way.
    general = importlib.import_module("tunesmith.evaluate.general")
    general.SUITE = Path(f".general-{rank}.jsonl").resolve()
    general.SUITE.write_text(SHORT_SUITE)
    samples.LONGEST = 4
    for job in json.loads(sys.argv[1]):
        for name in (*SHARDS, *ZERO):
            os.environ.pop(name, None)
        os.environ.update(job.get("env", {}))
        if job.get("fault"):
            inject(job["fault"], rank)
        if rank == 0:
            for source, place in job.get("keep", {}).items():
                shutil.copytree(source, place)
            for name in job.get("drop", []):
                shutil.rmtree(name)
        try:
            common = {n: value for n, value in COMMON.items() if n not in job.get("without", [])}
            tunesmith.train(**{**common, **job["train"]})
        except TunesmithError as mistake:
            print(f"error: {mistake}", file=sys.stderr, flush=True)
            sys.exit(mistake.exit_code)


if __name__ == "__main__":
    main()
