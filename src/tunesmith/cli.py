"""The command line: a static table of verbs; each handler imports its workflow when it runs."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith import __version__
from tunesmith.errors import TunesmithError, UsageError

UNEXPECTED = 70
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Verb:
    """One command: what it does, its class of settings, its workflow."""

    summary: str
    options: str
    module: str
    positional: tuple[str, ...] = ()


VERBS = {
    "demo": Verb("the whole story on the built-in model, offline", "DemoOptions", "demo"),
    "train": Verb("fine-tune a model: full, LoRA or frozen layers", "FineTuningConfig", "train"),
    "eval": Verb("ask a model a task's questions and grade it", "EvalOptions", "evaluate"),
    "sample": Verb("sample, verify and select reasoning paths", "SampleOptions", "sample"),
    "generate": Verb("answer one prompt", "GenerateOptions", "generate", ("prompt",)),
    "compare": Verb(
        "compare stored results on the same questions", "CompareOptions", "compare", ("results",)
    ),
    "run": Verb(
        "carry out a recipe", "RunRecipeOptions", "recipe", ("recipe", "overrides")
    ),
    "report": Verb("write the page of a run or recipe", "ReportOptions", "report", ("folder",)),
    "data show": Verb(
        "show rows with their trained tokens marked", "ShowOptions", "show", ("dataset",)
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake prints a sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
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
        with tempfile.NamedTemporaryFile(
            "w", prefix="tunesmith-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(traceback.format_exc())
        _complain(
            f"Something went wrong that should not: {type(failure).__name__}: {failure}\n"
            f"The traceback lies in {log.name}; please report it."
        )
        return UNEXPECTED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"tunesmith {__version__}")
        return 0
    name = " ".join(arguments[:2]) if " ".join(arguments[:2]) in VERBS else arguments[0]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, 1)
        near = f"; did you mean {close[0]!r}?" if close else "."
        raise UsageError(
            f"There is no command {name!r}{near}", expected=", ".join(VERBS), hint="tunesmith --help"
        )
    verb = VERBS[name]
    rest = arguments[len(name.split()) :]
    from tunesmith.config import flags, schema
    from tunesmith.config.load import resolve

    kind = getattr(schema, verb.options)
    if "-h" in rest or "--help" in rest:
        print(flags.usage(name, kind, verb.positional))
        return 0
    given, configs = flags.parse(kind, rest, verb.positional)
    resolved = resolve(kind, given, configs)
    workflow = importlib.import_module(f"tunesmith.workflows.{verb.module}")
    return int(workflow.command(resolved))


def overview() -> str:
    """Return the help text of the command itself."""
    width = max(len(name) for name in VERBS)
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "tunesmith: make a small language model reason better on your task, with the evidence",
            "",
            "usage: tunesmith COMMAND [settings]",
            "",
            *lines,
            "",
            "tunesmith COMMAND --help lists the settings of a command.",
            "Start with: tunesmith demo",
        ]
    )


def _complain(text: str) -> None:
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    label = "\x1b[1;31merror:\x1b[0m" if color else "error:"
    print(f"{label} {text}", file=sys.stderr)
