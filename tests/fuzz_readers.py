"""Random and damaged data for the readers, with what must hold for every file.

    python tests/fuzz_readers.py --rows 100000000 --files 100000 --seed 1

Lines: accepted + refused + blank = physical lines, and an accepted row equals what a second parser
reads. Whole files: rows, faults and ``DataError`` are all that a reader may answer with.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from tunesmith.data.readers import Fault, Row, scan
from tunesmith.errors import DataError

SEEDS = (
    b'{"prompt": "How many feet?", "completion": "Three."}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    '{"text": "café — «naïve» 漢字 🙂", "n": 1.5e-3, "t": [true, false, null]}'.encode(),
    b'{"a": {"b": {"c": [1, 2, [3, {"d": "\\u00e9\\n\\t\\""}]]}}}',
    b'{"question": "2 + 2?", "answer": "4", "id": 12345678901234567890}',
)
PIECES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\\ud83d",
    b"\r",
    b"\t",
    b"null",
    b"// x",
    b'"prompt": 1, ',
    b"\xe2\x80\xa8",
    b"'",
    b"{" * 50,
    b"[" * 3000,
    b"9" * 5000,
)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to three random edits."""
    made = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(made))
        kind = rng.randrange(5)
        if kind == 0:
            made[at:at] = rng.choice(PIECES)
        elif kind == 1 and made:
            del made[at : at + rng.randint(1, 8)]
        elif kind == 2 and made:
            made[min(at, len(made) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 3:
            made[at:] = b""
        else:
            made[at:at] = made[rng.randint(0, len(made)) :][:20]
    return bytes(made)


def make_line(rng: random.Random) -> bytes:
    """Return a line without its end: good, damaged, blank or random."""
    kind = rng.random()
    if kind < 0.5:
        row = {"prompt": f"q{rng.random()}", "completion": "x" * rng.randrange(40)}
        return json.dumps(row).encode() if rng.random() < 0.5 else rng.choice(SEEDS)
    if kind < 0.9:
        return damaged(rng.choice(SEEDS), rng).replace(b"\n", b" ")
    if kind < 0.95:
        return rng.choice((b"", b" ", b"\t", b"\r"))
    return rng.randbytes(rng.randrange(30)).replace(b"\n", b"")


def second_parser(line: bytes) -> Any:
    """Return what another parser reads, or None where it refuses the line."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def same(ours: Any, theirs: Any) -> bool:
    """Compare two readings; the other parser makes floats of integers beyond 64 bits."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, int) and isinstance(theirs, float):
        return abs(ours) >= 1 << 63 and float(ours) == theirs
    return type(ours) is type(theirs) and bool(ours == theirs)


def check_lines(folder: Path, lines: list[bytes], pool: dict[bytes, Any]) -> dict[str, int]:
    """Write lines to a file, read it and hold the answers to the rules."""
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    rows = faults = 0
    for found in scan(str(path)):
        line = found.origin.line
        assert line is not None
        if isinstance(found, Fault):
            faults += 1
            assert found.reason
            continue
        rows += 1
        expected = pool[lines[line - 1]]
        assert expected is None or same(found.fields, expected), lines[line - 1]
    mark = b"\xef\xbb\xbf"
    blank = sum(not line.strip(b" \t\r") for line in [lines[0].removeprefix(mark), *lines[1:]])
    assert rows + faults + blank == len(lines), (rows, faults, blank, len(lines))
    return {"accepted": rows, "refused": faults, "blank": blank}


def fuzz_lines(rows: int, seed: int) -> dict[str, int]:
    """Read ``rows`` lines in files of up to 200,000, drawn from pools of 20,000."""
    rng = random.Random(seed)
    counts = {"accepted": 0, "refused": 0, "blank": 0}
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        while done < rows:
            lines = [make_line(rng) for _ in range(20_000)]
            pool = {line: second_parser(line) for line in lines}
            wanted = min(200_000, rows - done)
            drawn = lines[:wanted] + rng.choices(lines, k=max(0, wanted - len(lines)))
            rng.shuffle(drawn)
            for name, number in check_lines(Path(folder), drawn, pool).items():
                counts[name] += number
            done += wanted
    return counts


def whole_file(rng: random.Random) -> tuple[str, bytes]:
    """Return the name and bytes of a damaged file of some format."""
    rows = [json.loads(rng.choice(SEEDS)) for _ in range(rng.randint(0, 6))]
    kind = rng.choice(("jsonl", "json", "object.json", "csv", "tsv", "txt", "parquet", "jsonl.gz"))
    if kind == "json":
        raw = json.dumps(rows, indent=rng.choice((None, 1))).encode()
    elif kind == "object.json":
        raw = json.dumps({"version": 1, "data": rows}).encode()
    elif kind in ("csv", "tsv"):
        raw = b'prompt,completion\r\na,"b, c"\r\n"d ""e""",f\r\n' * rng.randint(0, 3)
    elif kind == "txt":
        raw = b"one\ntwo\n<|endoftext|>\nthree\n" * rng.randint(0, 3)
    elif kind == "parquet":
        raw = PARQUET
    else:
        raw = b"\n".join(json.dumps(row).encode() for row in rows)
    if rng.random() < 0.15:
        raw = raw.decode(errors="ignore").encode(
            rng.choice(("utf-16", "utf-8-sig", "cp1252")), "replace"
        )
    if rng.random() < 0.9:
        raw = damaged(raw, rng)
    if kind.endswith(".gz"):
        raw = gzip.compress(raw, 1)
        if rng.random() < 0.5:
            raw = damaged(raw, rng)
    return f"file.{kind}", raw


def _parquet() -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    held = io.BytesIO()
    rows = [{"prompt": f"q{n}", "completion": "a"} for n in range(5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), held)
    return held.getvalue()


PARQUET = _parquet()


def fuzz_files(count: int, seed: int) -> dict[str, int]:
    """Read ``count`` damaged files; nothing but rows, faults and ``DataError`` may come of them."""
    rng = random.Random(seed)
    counts = {"rows": 0, "faults": 0, "refused files": 0}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            name, raw = whole_file(rng)
            path = Path(folder) / name
            path.write_bytes(raw)
            try:
                for found in scan(str(path)):
                    counts["rows" if isinstance(found, Row) else "faults"] += 1
            except DataError:
                counts["refused files"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    print("lines:", fuzz_lines(arguments.rows, arguments.seed), flush=True)
    print(f"{arguments.rows / (time.perf_counter() - began):,.0f} rows/s, made and compared ones")
    print("files:", fuzz_files(arguments.files, arguments.seed))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:,.0f} MiB, {time.perf_counter() - began:,.0f} s")


if __name__ == "__main__":
    main()
