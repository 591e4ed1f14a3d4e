"""Exports that are killed at random moments: the folder holds the old export or the new, whole.

    python tests/kill_export.py --kills 1000

As in ``kill_anywhere``, one process imports everything once and forks every life off. Two models
are exported in turn over the same folder, each export with ``--overwrite``; a life ends by SIGKILL
after a random time or at a random call that touches the file system. After each kill the folder
must hold all files of one of the two exports by their hashes; an export whose rename was cut in
half may wait beside its place, and the next command brings it back. At the end nothing is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kill_anywhere import LIVES, Ending, Tally, life, parallel

MODELS = ("one", "other")
FORMS = ["merged", "bundle"]
END = 80
"""Touches of the file system from the two renames to the end, or a few more."""


def run(name: str, settings: dict[str, Any]) -> int:
    """Export one of the models; the same command that a person would give."""
    import tunesmith
    from tunesmith.errors import TunesmithError

    try:
        tunesmith.export(**settings, output_dir=name, formats=FORMS, overwrite=True)
    except TunesmithError as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    return 0


def prepare(folder: Path) -> None:
    """Write two tiny models, and let consumers read in the process itself."""
    import torch

    from tiny_models import tiny_model, tiny_tokenizer
    from tunesmith.export import bundle, parity, reader
    from tunesmith.workflows import console, export_source

    torch.set_num_threads(1)
    console.set_level("error")
    for seed, name in enumerate(MODELS):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)

    def ask(consumer: str, path: Path, trained: Any, kind: str) -> Any:
        request = json.loads(json.dumps(trained.request()))
        said, logits = reader.transformers_model(str(path), request, peft=False)
        found = [torch.from_numpy(logits[str(n)]) for n in range(len(logits))]
        return parity.compare(consumer, kind, trained, said, found)

    parity.ask_consumer = ask  # a process of its own would take seconds a life
    bundle.run_smoke_test = lambda folder, minutes=20.0: None
    # What is written does not depend on how much is asked.
    parity.ANSWER_TOKENS, parity.TEXTS = 4, parity.TEXTS[:1]
    export_source.BUILT_IN = export_source.BUILT_IN[:1]


def held(folder: Path) -> dict[str, str]:
    """Return the hash of each file of an export, by its manifest and by the files themselves.

    Raises ``AssertionError`` where they differ, which a mixture would.
    """
    from tunesmith.storage import hash_file

    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {file["path"]: file["sha256"] for file in manifest["files"]}
    found = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path != folder / "manifest.json"
    }
    assert found == listed, "the files are not those of the manifest"
    return found


def stands(folder: Path, name: str) -> tuple[str, Path] | None:
    """Return how an export stands after a kill, and where; None where there is none yet."""
    place, before = folder / name, folder / f".{name}.before"
    if place.exists():
        return "in its place", place
    return ("between the renames", before) if before.exists() else None


def work(folder: Path, wanted: int, seed: int, number: int, seconds: float) -> Tally:
    """Kill exports until so many kills are done or the time is over."""
    tally, rng = Tally(), random.Random(seed)
    deadline = time.monotonic() + seconds
    name = f"out{seed}"
    expected: dict[str, dict[str, str]] = {}
    whole, touches = 0.0, 0
    for model in MODELS:
        began = time.monotonic()
        if life(folder, name, {"model": model}, None, run) != 0:
            tally.faults.append(said(folder, name))
            return tally
        whole = time.monotonic() - began
        touches = int((folder / f"{name}.touches").read_text())
        expected[model] = held(folder / name)
    while tally.kills < wanted and time.monotonic() < deadline:
        tally.runs += 1
        for turn in range(LIVES):
            if tally.kills == wanted:
                break
            ending = drawn(rng, whole, touches, number)
            code = life(folder, name, {"model": MODELS[turn % 2]}, ending, run)
            if code not in (0, -number):
                tally.faults.append(f"a life ended with {code}: {said(folder, name)}")
                return tally
            tally.kills += code != 0
            found = stands(folder, name)
            if found is None or held(found[1]) not in expected.values():
                tally.faults.append(f"{name}: after a kill there is no whole export")
                return tally
            partly = (folder / f".{name}.partial").exists()
            tally.moments[f"{found[0]}{', another half made' if partly else ''}"] += code != 0
        model = MODELS[tally.runs % 2]
        if life(folder, name, {"model": model}, None, run) != 0:
            tally.faults.append(said(folder, name))
            return tally
        left = [path.name for path in folder.glob(f".{name}.*")]
        if left or held(folder / name) != expected[model]:
            tally.faults.append(f"{name}: the last export is not whole; left: {left}")
            return tally
    return tally


def drawn(rng: random.Random, whole: float, touches: int, number: int) -> Ending:
    """Draw an ending; a third of them near the end, where folders change their places."""
    if rng.random() < 0.4:
        return Ending(number, seconds=rng.uniform(0.02, 1.0) * whole)
    first = touches - END if rng.random() < 0.6 else 1
    return Ending(number, touch=rng.randint(max(1, first), touches))


def said(folder: Path, name: str) -> str:
    """Return what the last life wrote to stderr."""
    return (folder / f"{name}.log").read_text()


def main() -> int:
    """Kill, look, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as home:
        folder, before = Path(home), Path.cwd()
        prepare(folder)
        # One export in this very process, so that every import is there to be inherited.
        os.chdir(folder)
        for model in MODELS:
            if run("warm", {"model": model}):
                raise SystemExit("an export without kills failed")
        os.chdir(before)
        began = time.monotonic()
        tallies = parallel(
            folder, asked.kills, asked.jobs, asked.seed, signal.SIGKILL, asked.seconds, work
        )
    took = time.monotonic() - began
    kills = sum(t.kills for t in tallies)
    moments = sum((t.moments for t in tallies), Counter[str]())
    for fault in (fault for tally in tallies for fault in tally.faults):
        print(fault, file=sys.stderr)
    print(
        f"SIGKILL: {kills} of {asked.kills} exports, {60 * kills / took:.0f} a minute; moments: "
        f"{dict(moments.most_common())}"
    )
    return 1 if any(t.faults for t in tallies) else 0


if __name__ == "__main__":
    raise SystemExit(main())
