"""The command line: a static table of verbs; each handler imports its workflow when it runs."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from tunesmith import __version__
from tunesmith.errors import TunesmithError, UsageError

if TYPE_CHECKING:
    from tunesmith.config.schema import Options

UNEXPECTED = 70
INTERRUPTED = 130
HELP = ("-h", "--help")


@dataclass(frozen=True, slots=True)
class Verb:
    """One command: what it does, its class of settings, its workflow."""

    summary: str
    options: str
    """Its class of settings, as ``module.Class`` in ``tunesmith.config``."""
    module: str
    positional: tuple[str, ...] = ()

    def settings(self) -> type[Options]:
        """Return its class of settings."""
        module, _, name = self.options.partition(".")
        kind: type[Options] = getattr(importlib.import_module(f"tunesmith.config.{module}"), name)
        return kind


VERBS = {
    "demo": Verb(
        "the whole story on the built-in model, offline", "schema_results.DemoOptions", "demo"
    ),
    "doctor": Verb(
        "look at the machine: versions, devices, memory, sandbox, extras",
        "schema_start.DoctorOptions",
        "doctor",
    ),
    "init": Verb(
        "write a commented recipe from your own rows",
        "schema_start.InitOptions",
        "init",
        ("dataset",),
    ),
    "train": Verb(
        "fine-tune a model: full, LoRA or frozen layers", "schema.FineTuningConfig", "train"
    ),
    "find-lr": Verb(
        "find a learning rate by a sweep", "schema_before.FindRateOptions", "find_rate"
    ),
    "estimate": Verb(
        "memory and time of a run before it starts", "schema_before.EstimateOptions", "estimate"
    ),
    "selftest": Verb(
        "check the promises of exactness on your model and machine",
        "schema_before.SelfTestOptions",
        "selftest",
    ),
    "eval": Verb("ask a model a task's questions and grade it", "schema.EvalOptions", "evaluate"),
    "sample": Verb("sample, verify and select reasoning paths", "schema.SampleOptions", "sample"),
    "grpo": Verb(
        "reinforcement learning (GRPO) from verified answers",
        "schema_grpo.GrpoOptions",
        "grpo",
    ),
    "generate": Verb(
        "answer a prompt, or a file of them",
        "schema_generate.GenerateOptions",
        "generate",
        ("prompt",),
    ),
    "chat": Verb(
        "talk with a model in the terminal, also about documents",
        "schema_generate.ChatOptions",
        "chat",
    ),
    "serve": Verb(
        "serve a model with its adapters by OpenAI's API",
        "schema_serve.ServeOptions",
        "serve",
    ),
    "studio": Verb(
        "watch, start, compare and try runs in the browser",
        "schema_serve.StudioOptions",
        "studio",
    ),
    "compare": Verb(
        "compare stored results on the same questions",
        "schema_results.CompareOptions",
        "compare",
        ("results",),
    ),
    "regrade": Verb(
        "grade stored attempts again, and show what changed",
        "schema_results.RegradeOptions",
        "regrade",
        ("results",),
    ),
    "judge": Verb(
        "a model judges two sets of replies, or grades one",
        "schema_judge.JudgeOptions",
        "judge",
        ("results",),
    ),
    "run": Verb(
        "carry out a recipe", "schema_results.RunRecipeOptions", "recipe", ("recipe", "overrides")
    ),
    "report": Verb(
        "write the page of a run or recipe", "schema_results.ReportOptions", "report", ("folder",)
    ),
    "export": Verb(
        "deliver a model: merged, adapter, GGUF or a bundle",
        "schema_export.ExportOptions",
        "export",
    ),
    "convert": Verb(
        "make safetensors of a model that is a pickle, confined",
        "schema_export.ConvertOptions",
        "convert",
        ("folder",),
    ),
    "data validate": Verb(
        "judge every row: refused, odd, repeated, too long",
        "schema_data.ValidateOptions",
        "validate",
        ("dataset",),
    ),
    "data show": Verb(
        "show rows with their trained tokens marked",
        "schema_data.ShowOptions",
        "show",
        ("dataset",),
    ),
    "data filter": Verb(
        "remove duplicates, test questions and bad rows, and say why",
        "schema_filter.FilterOptions",
        "filter",
        ("dataset",),
    ),
    "data socratic": Verb(
        "import and check lists of Socratic questions",
        "schema_socratic.SocraticOptions",
        "socratic",
        ("dataset",),
    ),
    "data mix": Verb(
        "mix sources by share, with erasure, strategies and lineage",
        "schema_mix.MixOptions",
        "mix",
        ("recipe",),
    ),
    "data raft": Verb(
        "questions with documents: retrieval-augmented fine-tuning data",
        "schema_raft.RaftOptions",
        "raft",
        ("documents",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake prints a sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _ended_like_ctrl_c():
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except TunesmithError as mistake:
        _complain(str(mistake))
        return mistake.exit_code
    except KeyboardInterrupt:
        _complain("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as failure:
        _complain(
            f"Something went wrong that should not: {type(failure).__name__}: {failure}\n"
            f"{_keep_traceback()}"
        )
        return UNEXPECTED


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end what takes no notice of it with a sentence, as SIGINT does.

    Stages that stop at a safe point have handlers of their own (``workflows/signals.py``).
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in HELP:
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"tunesmith {__version__}")
        return 0
    name, rest = _verb(arguments)
    verb = VERBS[name]
    from tunesmith.config import flags
    from tunesmith.config.load import resolve

    kind = verb.settings()
    if any(word in HELP for word in rest):
        print(flags.usage(name, kind, verb.positional))
        return 0
    parsed = flags.parse(kind, rest, verb.positional)
    try:
        resolved = resolve(kind, parsed.given, parsed.configs, faults=parsed.faults)
    except UsageError as mistake:
        mistake.hint = f"tunesmith {name} --help"
        raise
    if verb.module != "train":
        from tunesmith.workflows.launched import refuse_several

        refuse_several(name)
    workflow = importlib.import_module(f"tunesmith.workflows.{verb.module}")
    return int(workflow.command(resolved))


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    """Split a command line into the name of its verb and the rest."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return name, arguments[words:]
    typed = [word for word in arguments[:2] if not word.startswith("-")]
    tries = [" ".join(typed), *arguments[:1]]
    known = [*VERBS, "--help", "--version"]
    close = [match for word in tries for match in difflib.get_close_matches(word, known, 1)]
    near = f"; did you mean {close[0]!r}?" if close else "."
    hint = f"tunesmith {close[0]}" if close and close[0] in known[-2:] else "tunesmith --help"
    raise UsageError(
        f"There is no command {arguments[0]!r}{near}", expected=", ".join(VERBS), hint=hint
    )


def overview() -> str:
    """Return the help text of the command itself."""
    width = max(len(name) for name in VERBS)
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "tunesmith: make a small language model reason better on your task,",
            "with the evidence",
            "",
            "usage: tunesmith COMMAND [settings]",
            "",
            *lines,
            "",
            "tunesmith COMMAND --help lists the settings of a command.",
            "Start with: tunesmith demo",
        ]
    )


def _keep_traceback() -> str:
    """Save the traceback for a report; where no file can be written, show it."""
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tunesmith-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(text)
    except OSError:
        return text
    return f"The traceback lies in {log.name}; please report it."


def _complain(text: str) -> None:
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    label = "\x1b[1;31merror:\x1b[0m" if color else "error:"
    print(f"{label} {text}", file=sys.stderr)
