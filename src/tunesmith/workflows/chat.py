"""``tunesmith chat``: a dialogue in the terminal, or with questions that come through a pipe."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tunesmith.config.load import Resolved
from tunesmith.config.schema_generate import ChatOptions
from tunesmith.errors import DataError, TunesmithError, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.asking import sampling_of
from tunesmith.workflows.chat_commands import carry_out
from tunesmith.workflows.chat_session import Session
from tunesmith.workflows.documents import NEEDS, Shelf, check_columns
from tunesmith.workflows.generate import DEFAULT_TOKENS
from tunesmith.workflows.idle import refuse_idle
from tunesmith.workflows.opening import open_model

INTERRUPTED = 130
MARK = "> "


class _Stopped(KeyboardInterrupt):
    """A first Ctrl-C before there is an answer that could be stopped."""


class _Ended(KeyboardInterrupt):
    """SIGTERM: unlike a first Ctrl-C it leaves at once, also from the prompt."""


def command(resolved: Resolved[ChatOptions]) -> int:
    """Handle ``tunesmith chat``; the answers go to stdout, everything else to stderr.

    Returns 2 if a line that came through a pipe was refused, 130 after a second Ctrl-C.
    """
    options = resolved.options
    console.set_level(options.log_level)
    session = _open(options)
    typed = sys.stdin.isatty()
    if typed:
        console.say("Ask a question; /help lists the commands, Ctrl-D leaves.")
    refused = 0
    before = signal.signal(signal.SIGTERM, _end) if _on_main_thread() else None
    try:
        for number, line in enumerate(_lines(typed), 1):
            try:
                with _interruptible(session):
                    going_on = _take(session, line)
            except _Stopped:
                console.say("(stopped)")
                continue
            except TunesmithError as mistake:
                # A mistake in one line ends that line, not the dialogue.
                session.out.break_off()
                refused += 1
                place = "" if typed else f"line {number}: "
                console.warn(f"{place}{mistake}")
                continue
            if not going_on:
                break
            if typed:
                console.say()
    except KeyboardInterrupt:
        session.out.break_off()
        return INTERRUPTED
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return UsageError.exit_code if refused and not typed else 0


def _open(options: ChatOptions) -> Session:
    """Read the documents and load the model."""
    from tunesmith.generate.dialogue import Dialogue, Voice

    refuse_idle(options, (*NEEDS, ("encoding", "--documents", lambda o: o.documents)))
    check_columns(options)
    if "" in options.stop:
        raise UsageError("--stop is empty.", expected="a text that ends an answer")
    shelf = Shelf(options) if options.documents else None
    loaded, renderer = open_model(options, int8=options.weights == "int8")
    sampling = sampling_of(options, DEFAULT_TOKENS, stop=options.stop)
    voice = Voice.of(loaded, renderer)
    dialogue = Dialogue(voice, sampling, options.system or "", options.seed)
    return Session(options, loaded, dialogue, shelf)


def _take(session: Session, line: str) -> bool:
    """Answer a line or carry out its command; return whether the dialogue goes on."""
    text = line.strip()
    if not text:
        return True
    if text.startswith("/") and not text.startswith("//"):
        return carry_out(session, text)
    session.ask(text[1:] if text.startswith("//") else text)
    return True


def _lines(typed: bool) -> Iterator[str]:
    """Yield what is typed, with history and editing, or the lines of a pipe.

    Ctrl-C at the prompt empties the line; twice in a row it is a ``KeyboardInterrupt``.
    """
    if not typed:
        try:
            yield from sys.stdin
        except UnicodeDecodeError as failure:
            raise DataError(
                f"A line on stdin is no UTF-8 ({failure.reason}).", expected="UTF-8 text"
            ) from None
        return
    with suppress(ImportError):  # a platform without it: lines are plain
        import readline  # noqa: F401  input() edits with it
    again = False
    while True:
        try:
            line = _typed_line()
        except KeyboardInterrupt as interrupt:
            print(file=sys.stderr)
            if again or isinstance(interrupt, _Ended):
                raise
            again = True
            console.say("Ctrl-C again or Ctrl-D leaves.")
            continue
        except EOFError:
            print(file=sys.stderr)
            return
        again = False
        yield line


def _typed_line() -> str:
    if sys.stdout.isatty():
        return input(MARK)
    # The prompt is no answer, so it does not go where the answers go.
    print(MARK, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextmanager
def _interruptible(session: Session) -> Iterator[None]:
    """Let a first Ctrl-C end the answer that is being made, and a second one everything."""
    if not _on_main_thread():
        yield
        return
    count = 0

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        if not session.dialogue.stop():
            raise _Stopped

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise _Ended


def _on_main_thread() -> bool:
    """Say whether signals can be taken here."""
    return threading.current_thread() is threading.main_thread()
