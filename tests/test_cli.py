"""The command itself: help without heavy imports, messages, exit codes, streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith import __version__, cli
from tunesmith.errors import CheckpointError, DataError, Interrupted

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "numpy"}


def loaded_modules(*arguments: str, first: str = "") -> set[str]:
    """Return the top-level modules that a command line leaves in a fresh process.

    With ``first``, a line to run before it, the command has to succeed.
    """
    program = (
        f"{first}\n"
        "import sys, json, tunesmith.cli as cli\n"
        f"assert not cli.main({list(arguments)!r}) or not {first!r}\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("line", ["--help", "--version", ""])
def test_help_loads_next_to_nothing(line: str) -> None:
    assert not loaded_modules(*line.split()) & {*HEAVY, "pydantic", "yaml", "rich"}


@pytest.mark.parametrize("line", ["train --help", "train --learning-rat 1", "data show --help"])
def test_help_and_faults_of_a_verb_load_nothing_heavy(line: str) -> None:
    assert not loaded_modules(*line.split()) & HEAVY


def test_every_verb_has_a_workflow_and_stands_in_the_help(capsys: Any) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    workflows = Path(cli.__file__).parent / "workflows"
    for name, verb in cli.VERBS.items():
        assert name in text
        source = (workflows / f"{verb.module}.py").read_text(encoding="utf-8")
        assert f"def command(resolved: Resolved[{verb.settings().__name__}]) -> int:" in source


@pytest.mark.parametrize("name", cli.VERBS)
def test_help_of_every_verb(name: str, capsys: Any) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"usage: tunesmith {name}")
    assert cli.main(["help", *name.split()]) == 0
    assert capsys.readouterr().out == first


def test_the_version_goes_to_stdout(capsys: Any) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tunesmith {__version__}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tran", "There is no command 'tran'; did you mean 'train'?"),
        ("evaluate", "'evaluate'"),
        ("data", "did you mean 'data "),
        ("data shwo", "did you mean 'data show'?"),
        ("--verson", "did you mean '--version'?"),
        ("train --learning-rat 1", "did you mean --learning-rate?"),
        ("train --config quick_tset", "did you mean 'quick_test'?"),
        ("sample", "--output is missing: The selected rows"),
        ("compare one", "1 set of attempts was given"),
    ],
)
def test_mistakes_are_sentences_on_stderr(line: str, said: str, capsys: Any) -> None:
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert "Try: tunesmith" in err
    assert "Traceback" not in err


def test_faults_of_flags_and_of_values_come_together(capsys: Any) -> None:
    assert cli.main(["train", "--lora-rnk", "3", "--task", "unit", "--seed", "x"]) == 2
    err = capsys.readouterr().err
    for said in ("--lora-rnk", "'units'", "--seed: 'x'", "Try: tunesmith train --help"):
        assert said in err


@pytest.fixture
def workflow(monkeypatch: Any) -> SimpleNamespace:
    """Put a workflow in place of every verb's own: ``workflow.command`` is what a test sets."""
    stand_in = SimpleNamespace(command=lambda resolved: 0)
    real = cli.importlib.import_module

    def found(name: str) -> Any:
        return stand_in if name.startswith("tunesmith.workflows.") else real(name)

    monkeypatch.setattr(cli.importlib, "import_module", found)
    return stand_in


def raising(failure: BaseException) -> Any:
    def command(resolved: Any) -> int:
        raise failure

    return command


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (DataError("rows.jsonl:3: no JSON."), 3),
        (CheckpointError("in use"), 7),
        (Interrupted("stopped"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(failure: BaseException, code: int, workflow: Any, capsys: Any) -> None:
    workflow.command = raising(failure)
    assert cli.main(["train"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_the_code_of_a_workflow_is_returned(workflow: Any) -> None:
    workflow.command = lambda resolved: 3
    assert cli.main(["train"]) == 3


def test_a_fault_of_ours_keeps_its_traceback_in_a_file(
    workflow: Any, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    workflow.command = raising(ZeroDivisionError("by nought"))
    assert cli.main(["train"]) == cli.UNEXPECTED
    err = capsys.readouterr().err
    assert "ZeroDivisionError: by nought" in err
    assert "Traceback" not in err
    (log,) = tmp_path.iterdir()
    assert str(log) in err
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_where_no_file_can_be_written_the_traceback_is_shown(
    workflow: Any, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path / "absent"))
    workflow.command = raising(ZeroDivisionError("by nought"))
    assert cli.main(["train"]) == cli.UNEXPECTED
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered: str) -> None:
    command = [sys.executable, "-m", "tunesmith", "train", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no command 'nonsense'")


def test_colour_only_for_people(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    cli.main(["nonsense"])
    assert capsys.readouterr().err.startswith("\x1b[1;31merror:")
    monkeypatch.setenv("NO_COLOR", "1")
    cli.main(["nonsense"])
    assert capsys.readouterr().err.startswith("error:")


def test_a_request_to_end_is_a_sentence_wherever_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked_to_end(_: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    monkeypatch.setattr(cli, "_dispatch", asked_to_end)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert cli.main(["train"]) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
