"""``tunesmith doctor``: every check finds what it looks for, and says what to do."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from test_cli import loaded_modules
from tunesmith.cli import main
from tunesmith.config.schema_start import DoctorOptions
from tunesmith.grading.sandbox import run as sandbox
from tunesmith.models import memory
from tunesmith.workflows import doctor, installed

ROOT = Path(__file__).parent.parent
GB = 10**9


def found(**settings: Any) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(DoctorOptions(**settings))}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_machine_that_can_train(capsys: Any) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert heads <= {"ok", "note", "Nothing"}
    text = " ".join(" ".join(lines).split())
    for told in ("Python 3.", "torch 2.", "PyTorch build", "precision", "attention segments",
                 "GB free on cpu", "runs: ", "sandbox", "[gguf]", "ok network"):  # fmt: skip
        assert told in text
    assert not list(Path().iterdir()), "nothing is left behind"


def test_as_json_it_says_the_same(capsys: Any) -> None:
    assert main(["doctor", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["problems"] == 0
    assert [one["name"] for one in made["findings"]] == list(found())
    assert {one["state"] for one in made["findings"]} <= {"ok", "note"}


def test_no_model_library_is_loaded_and_nothing_is_asked_of_the_network() -> None:
    block = "import socket; socket.socket.connect = None"
    loaded = loaded_modules("doctor", first=block)
    assert not loaded & {"transformers", "peft", "datasets", "huggingface_hub"}


def versions(monkeypatch: pytest.MonkeyPatch, **other: str | None) -> None:
    """Let libraries have other versions, or none."""
    own = metadata.version

    def version(name: str) -> str:
        if name not in other:
            return own(name)
        if other[name] is None:
            raise metadata.PackageNotFoundError(name)
        return str(other[name])

    monkeypatch.setattr(installed.metadata, "version", version)


def test_libraries_below_the_floor_or_missing_are_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    versions(monkeypatch, torch="2.4.0", transformers="6.1", peft=None)
    findings = found()
    assert findings["torch"].state == "problem"
    assert findings["torch"].todo == "pip install 'torch>=2.10'"
    assert findings["transformers"].found.startswith("6.1, but ")
    assert findings["peft"].found.startswith("not installed, but ")
    assert findings["libraries"].found.startswith(f"{len(installed.libraries()) - 3} in versions")
    assert main(["doctor"]) == 1
    assert "3 problems would stop training." in capsys.readouterr().out


def test_a_package_that_is_not_installed_knows_no_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.metadata, "metadata", nothing)
    assert found()["libraries"].state == "note"


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    assert found()["Python"].state == "problem"


def test_every_extra_is_told_with_what_needs_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(installed.USED_BY) == set(extras) - {"dev", "bench", "docs"}


def test_a_missing_extra_is_a_note_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, sacrebleu=None)
    finding = found()["[eval]"]
    assert finding.state == "note"
    assert finding.todo == "pip install 'tunesmith[eval]'"
    assert "sacrebleu" in finding.found


def test_a_broken_pytorch_is_a_problem_and_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = found()
    assert findings["PyTorch"].state == "problem"
    assert "device" not in findings
    assert findings["sandbox"].state == "ok"


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert found(device=device)["device"].state == "problem"


@pytest.mark.parametrize(
    ("cuda", "usable", "state"),
    [(None, False, "ok"), ("13.0", False, "note"), ("13.0", True, "ok")],
)
def test_builds_of_pytorch(cuda: str | None, usable: bool, state: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(doctor, "NVIDIA", Path("nowhere"))
    assert doctor._build("2.13", cuda, usable).state == state
    monkeypatch.setattr(doctor, "NVIDIA", Path())
    assert doctor._build("2.13", None, False).state == "note"


@pytest.mark.parametrize(("free", "state"), [(0.3, "problem"), (2.0, "note"), (16.0, "ok")])
def test_little_memory(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(free * GB))
    assert found()["memory"].state == state


@pytest.mark.parametrize(("free", "state"), [(0.1, "problem"), (2.0, "note"), (50.0, "ok")])
def test_little_disk(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free * GB)))
    assert found()["output folder"].state == state


def test_an_output_folder_that_cannot_be_written(capsys: Any) -> None:
    Path("taken").write_text("")
    assert found(output_dir="taken/runs")["output folder"].state == "problem"
    assert main(["doctor", "--output-dir", "taken"]) == 1
    assert "1 problem would stop training." in capsys.readouterr().out


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    findings = found()
    assert findings["temporary folder"].state == "problem"
    assert "TMPDIR" in findings["temporary folder"].todo


@pytest.mark.parametrize(
    ("threads", "variable", "state"),
    [(4, None, "ok"), (2, None, "ok"), (2, "2", "note"), (1, "1", "note"), (9, "9", "note")],
)
def test_threads(
    threads: int, variable: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert doctor._threads(threads).state == state


def test_a_machine_that_cannot_confine_programs_trains_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_possible", lambda: ("none", "no user namespaces"))
    finding = found()["sandbox"]
    assert finding.state == "note"
    assert "no user namespaces" in finding.found
    assert "--unsafe-exec" in finding.todo
