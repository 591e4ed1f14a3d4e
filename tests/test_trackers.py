"""Trackers: accelerate's interface, opened only when asked for, offline."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from test_methods import in_a_folder, train  # noqa: F401
from tunesmith.cli import main
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.workflows import trackers

pytestmark = pytest.mark.usefixtures("in_a_folder")


class Standin(tracking.GeneralTracker):
    """A tracker of accelerate's interface that keeps what it is told."""

    name = "wandb"
    requires_logging_directory = False
    made: list[Standin]

    def __init__(self, project: str, **more: Any) -> None:
        super().__init__()
        self.project, self.more = project, more
        self.told: list[Any] = []
        type(self).made.append(self)

    @property
    def tracker(self) -> Standin:
        return self

    def start(self) -> None:
        self.told.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finish")


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> type[Standin]:
    """Register the stand-in in wandb's place, and let wandb look installed."""
    find = importlib.util.find_spec
    there = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: there if n == "wandb" else find(n, *a)
    )
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", dict(tracking.LOGGER_TYPE_TO_CLASS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it takes another one's place
        tracking.register_tracker_class(Standin)
    monkeypatch.setattr(Standin, "made", [], raising=False)
    return Standin


def test_a_tracker_is_told_of_every_line_of_metrics(standin: type[Standin]) -> None:
    run = train(report_to=["wandb", "tensorboard"], logging_steps=1, eval_steps=2)
    assert (run / "tensorboard").is_dir()
    [made] = standin.made
    assert made.project == "tunesmith"
    assert made.more == {"name": "r"}
    begun, settings, *logged, ended = made.told
    assert (begun, ended) == ("start", "finish")
    assert settings["learning_rate"] == 0.01
    assert settings["dataset"] == "['rows.jsonl']"
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    for (_, values), line in zip(logged, lines, strict=True):
        shown = {k: v for k, v in line.items() if k not in ("kind", "step")}
        assert values == {f"{line['kind']}/{key}": value for key, value in shown.items()}


def test_a_tracker_is_closed_when_a_run_fails(
    standin: type[Standin], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trackers.Trackers, "log", fail)
    with pytest.raises(KeyboardInterrupt):
        train(report_to="wandb", logging_steps=1)
    assert standin.made[0].told[-1] == "finish"


@pytest.mark.parametrize("name", [n for n in trackers.PACKAGES if n != "tensorboard"])
def test_a_missing_package_is_refused_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    gone = trackers.PACKAGES[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == gone else find(n, *a)
    )
    with pytest.raises(UsageError, match="is not installed") as caught:
        train(report_to=name, model="./there-is-no-such-model")
    assert caught.value.hint.startswith("pip install ")
    assert not Path("runs").exists()


def test_none_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert trackers.chosen_trackers(["none"]) == []
    assert trackers.chosen_trackers(["tensorboard", "tensorboard"]) == ["tensorboard"]
    assert main(["train", "--dataset", "rows.jsonl", "--report-to", "none,tensorboard"]) == 2
    assert "none and a tracker" in capsys.readouterr().err
    assert main(["train", "--dataset", "rows.jsonl", "--report-to", "wandbb"]) == 2
    assert "did you mean 'wandb'?" in capsys.readouterr().err


def test_every_tracker_of_accelerate_can_be_named() -> None:
    known = {str(name) for name in tracking.LOGGER_TYPE_TO_CLASS}
    assert set(trackers.PACKAGES) >= known - {"all"}
    names = {*trackers.PACKAGES, "none"}
    described = FineTuningConfig.model_json_schema()["properties"]["report_to"]
    assert set(described["items"]["enum"]) == names


def test_nothing_of_a_tracker_is_imported_unasked() -> None:
    before = set(sys.modules)
    trackers.chosen_trackers(["tensorboard"])
    assert not {"torch.utils.tensorboard", "wandb"} & (set(sys.modules) - before)


@pytest.mark.slow
def test_wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(report_to="wandb", logging_steps=1)
    assert list(Path().rglob("offline-run-*"))
    assert (run / "final_model").is_dir()
