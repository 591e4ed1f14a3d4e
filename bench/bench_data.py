"""Tokenising rows: tokens per second against ``datasets.map`` with ``apply_chat_template``.

Workload: distinct single-question chats of natural text (pieces of public books and stories,
questions of arithmetic with their solutions). The peer renders and tokenises each row in a mapped
function, with as many processes as ours has, and holds nothing to any contract; ours finds what is
trained, checks every row, and the first run also writes the cache. Both begin with rows in memory
and end with token ids that can be indexed. The arms run in turn in one process tree; medians are
compared. Ratios carry, absolute numbers do not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.data.cache import RowCache
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.readers import read_rows
from tunesmith.data.render import Renderer
from tunesmith.types import Example, Origin, Segment

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
LONGEST = 4096


def make_pairs(limit: int) -> list[tuple[str, str]]:
    """Return distinct (question, answer) pairs: from the public data, else made up."""
    pairs: dict[tuple[str, str], None] = {}
    if SHARED.is_dir():
        for line in (SHARED / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            pairs[row["question"], row["answer"]] = None
        for path in sorted((SHARED / "corpora").glob("*.txt.gz")):
            text = gzip.decompress(path.read_bytes()).decode().replace("\r\n", "\n")
            text = text.replace("<|endoftext|>", "")
            # Pieces of some 350 characters, cut behind a space or a line break.
            parts = re.findall(r"(?s).{100,350}\s", text)
            parts = [part.strip() for part in parts if len(part.strip()) > 100]
            pairs.update(dict.fromkeys(zip(parts[::2], parts[1::2], strict=False)))
    else:
        for number in range(20_000):
            asked = " ".join(f"word{number * k % 9973} is" for k in range(1, 40))
            pairs[asked, f"It is {number}: {asked[::-1]}"] = None
    return list(pairs)[:limit]


def peer(pairs: list[tuple[str, str]], tokenizer: Any, workers: int) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in pairs
    ]
    data = datasets.Dataset.from_list(rows)

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        done = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)
        return {"input_ids": done["input_ids"]}

    return data.map(tokenise, num_proc=workers if workers > 1 else None, remove_columns="messages")


def ours(pairs: list[tuple[str, str]], tokenizer: Any, workers: int, folder: Path) -> Prepared:
    examples = [
        Example((Segment("user", a), Segment("assistant", b, 1.0)), Origin("bench", at))
        for at, (a, b) in enumerate(pairs, 1)
    ]
    cache = RowCache(folder, 10**10)
    return prepare(examples, Renderer(tokenizer), LONGEST, cache=cache, workers=workers)


def agreement(prepared: Prepared, mapped: Any) -> tuple[int, int]:
    """Return rows that agree, and rows looked at; ours leaves out what follows the last answer."""
    picked = range(0, len(mapped), max(1, len(mapped) // 500))
    same = sum(
        mapped[at]["input_ids"][: len(prepared.rows[at].ids)] == list(prepared.rows[at].ids)
        for at in picked
    )
    return same, len(picked)


def processor_seconds() -> float:
    """Return what this process and its finished children have used: little moved by other load."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(do: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return wall seconds, processor seconds and the result."""
    began, used = time.perf_counter(), processor_seconds()
    result = do()
    return time.perf_counter() - began, processor_seconds() - used, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default=str(SHARED / "tokenizers" / "smollm2"))
    arguments = parser.parse_args()
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the peer's own advice for its processes
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    tokenizer.chat_template = Renderer(tokenizer).template
    pairs = make_pairs(arguments.rows)
    print(f"{len(pairs):,} distinct rows; load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    rates: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, seconds: float, used: float, tokens: int) -> None:
        rates.setdefault(name, []).append((tokens / seconds, tokens / used))
        print(
            f"{name:32} {tokens / seconds / 1e6:7.3f}M tokens/s  {seconds:6.2f} s, "
            f"{used:6.2f} s of processors",
            flush=True,
        )

    several = arguments.workers
    for _ in range(arguments.repeats):
        for workers in dict.fromkeys([several, 1]):
            with tempfile.TemporaryDirectory() as folder:
                *spent, prepared = timed(
                    lambda w=workers, f=folder: ours(pairs, tokenizer, w, Path(f))
                )
                note(f"tunesmith, {workers} processes", *spent, prepared.tokens)
                *again_spent, again = timed(
                    lambda w=workers, f=folder: ours(pairs, tokenizer, w, Path(f))
                )
                note("tunesmith, from the cache", *again_spent, prepared.tokens)
                assert again.cached == len(pairs)
            *spent, mapped = timed(lambda w=workers: peer(pairs, tokenizer, w))
            note(f"datasets.map, {workers} processes", *spent, prepared.tokens)
            same, of = agreement(prepared, mapped)
    print(f"\nids agree in {same} of {of} rows looked at; medians of {arguments.repeats} runs")
    for workers in dict.fromkeys([several, 1]):
        for kind, what in enumerate(("tokens/s", "tokens per processor second")):
            mine, other = (
                statistics.median(rate[kind] for rate in rates[f"{name}, {workers} processes"])
                for name in ("tunesmith", "datasets.map")
            )
            print(
                f"{workers} processes: {mine:,.0f} against {other:,.0f} {what}: {mine / other:.2f}x"
            )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        lines = (json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs)
        path.write_text("".join(lines), encoding="utf-8")
        seconds, _, count = timed(lambda: sum(1 for _ in read_rows(str(path))))
        print(f"reading JSON Lines: {count / seconds:,.0f} rows/s")
    print(f"load after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
