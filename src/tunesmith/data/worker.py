"""A process that tokenises: takes examples from standard input, gives blocks to standard output.

Started afresh and without torch, so that no thread or lock of its parent can be half there. Each
message is its length and a pickle; both ends are this program.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tunesmith.types import Example, Origin, Segment

Plain = tuple[list[tuple[str | None, str, float, dict[str, Any]]], tuple[Any, ...]]
"""An example of built-in types, which travel faster than classes."""


def flatten(examples: Sequence[Example]) -> list[Plain]:
    """Return examples as they travel."""
    return [
        (
            [(s.role, s.text, s.weight, dict(s.extra)) for s in e.segments],
            (e.origin.source, e.origin.line, e.origin.item),
        )
        for e in examples
    ]


def _examples(plain: list[Plain]) -> list[Example]:
    return [Example(tuple(Segment(*s) for s in turns), Origin(*origin)) for turns, origin in plain]


def start(module: str) -> subprocess.Popen[bytes]:
    """Start a process that runs a module of this package and talks by its standard streams."""
    package = str(Path(__file__).parent.parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Without torch a process is there in a second; each has one core, so one thread.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "USE_TORCH": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<q", len(content)))
    stream.write(content)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message; ``EOFError`` where the other end is gone."""
    head = stream.read(8)
    content = stream.read(*struct.unpack("<q", head)) if len(head) == 8 else b""
    if len(head) < 8 or len(content) < struct.unpack("<q", head)[0]:
        raise EOFError
    return pickle.loads(content)


def main() -> None:
    """Serve until the other end closes."""
    from tunesmith.data.prepare import encode_block
    from tunesmith.errors import ContractError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that prints may get between the messages
    try:
        renderer, max_length, answers_only = receive(source)
        while True:
            examples = _examples(receive(source))
            try:
                block = encode_block(examples, renderer, max_length, answers_only=answers_only)
                send(target, (block.to_bytes(), None))
            except ContractError as failure:
                send(target, (None, (failure.found, failure.expected, failure.hint)))
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
