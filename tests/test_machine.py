"""The machine that a checkpoint was made on is known, and another one is said loudly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from test_policy import in_a_folder, train  # noqa: F401
from tunesmith.train.machine import differences, fingerprint

WANTED = {"torch", "torch build", "threads", "CPU capability", "device", "dtype", "processes"}


def test_a_fingerprint_names_what_bits_depend_on() -> None:
    found = fingerprint(Accelerator(cpu=True), torch.bfloat16)
    assert set(found) >= WANTED
    assert found["dtype"] == "bfloat16"
    assert found["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found
    assert differences(found, found) == []
    other = {**found, "threads": 99, "device": "Other GPU"}
    assert differences(found, other) == [
        "device cpu there, Other GPU here",
        f"threads {found['threads']} there, 99 here",
    ]
    del other["threads"]
    assert f"threads unknown there, {found['threads']} here" in differences(other, found)
    assert differences(None, found) == ["the checkpoint does not say on what machine it was made"]


@pytest.mark.usefixtures("in_a_folder")
def test_a_resume_on_another_machine_is_loud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train()
    train(resume="auto")
    assert "another machine" not in capsys.readouterr().err
    content = json.loads((run / "checkpoints/checkpoint-step-8/state.json").read_text())
    assert set(content["extra"]["machine"]) >= WANTED
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        train(resume="auto", log_level="warning")
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert f"threads {threads} there, {threads + 1} here" in said
    assert "not bit-identical" in said
    assert "not bit-identical" in Path(run, "final_model", "README.md").read_text()
