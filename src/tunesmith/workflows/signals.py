"""SIGTERM and SIGINT ask a long stage to stop at the next safe point; a second one ends it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Callable flag: true once a signal asked for a stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals(*, launched: bool = False) -> Iterator[StopFlag]:
    """Turn the first SIGTERM or SIGINT into a flag; the second leaves at once (code 128 + n).

    Only the main thread of a process can receive signals; elsewhere the flag stays false. A
    ``launched`` process takes no second one: its launcher passes on what it has got already, and
    kills by itself after a while. Nor does it take any after an exception has ended the block.
    """
    flag = StopFlag()

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag.signal is not None and not launched:
            os._exit(128 + number)
        flag.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    failed = True
    try:
        yield flag
        failed = False
    finally:
        if not (failed and launched):
            for number, handler in before.items():
                signal.signal(number, handler)
