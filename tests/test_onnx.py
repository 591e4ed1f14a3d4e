"""ONNX files: ONNX Runtime says what the model says, for any number of rows and tokens."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from test_export import save_base
from tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import ModelError, UsageError
from tunesmith.export import onnx_file, parity, reader
from tunesmith.export.parity import Trained, compare
from tunesmith.workflows import export as workflow

needs_writer = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed"
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime read in this process."""

    def ask(consumer: str, path: Path, trained: Trained, kind: str) -> Any:
        request = json.loads(json.dumps(trained.request()))
        said, logits = reader.onnx_model(str(path), request)
        found = [torch.from_numpy(logits[str(n)]) for n in range(len(logits))]
        return compare(consumer, kind, trained, said, found)

    monkeypatch.setattr(parity, "ask_consumer", ask)


@needs_writer
@pytest.mark.usefixtures("here")
def test_a_graph_says_what_the_model_says_also_with_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_file, "INSIDE", 1000)
    base = save_base(tmp_path / "base", num_hidden_layers=1)
    words = ["export", "--model", str(base), "--output-dir", str(tmp_path / "out")]
    assert main([*words, "--formats", "onnx"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = manifest["parity"]["onnx"]
    assert (found["consumer"], found["kind"], found["verified"]) == ("onnxruntime", "float32", True)
    assert found["relative"] < 1e-4
    assert found["greedy"] == found["answers"] == 6
    files = {file["path"]: file["from"] for file in manifest["files"]}
    assert files["onnx/model.onnx"] == files["onnx/model.onnx.data"] == "the model"
    assert {"onnx/config.json", "onnx/tokenizer.json", "onnx/chat_template.jinja"} <= {*files}
    graph = (tmp_path / "out" / "onnx" / "model.onnx").read_bytes()
    beside = (tmp_path / "out" / "onnx" / "model.onnx.data").stat().st_size
    size = sum(p.numel() for p in tiny_model("llama", num_hidden_layers=1).parameters())
    assert beside >= 0.9 * 4 * size
    assert str(Path(torch.__file__).parent).encode() not in graph
    assert str(Path(__file__).parent).encode() not in graph
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"))
    assert [one.shape for one in session.get_inputs()] == [["rows", "length"]] * 2


@needs_writer
def test_a_refusal_of_the_exporter_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise RuntimeError("\nno such operator\nand a long report")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ModelError, match=r"exporter does not take llama: no such operator\n"):
        onnx_file.write_onnx(tiny_model("llama"), tmp_path)
    assert not list(tmp_path.iterdir())


@needs_writer
def test_without_onnx_runtime_it_is_unverified_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(workflow.CONSUMERS, "onnxruntime", "no_such_package")
    monkeypatch.setattr(onnx_file, "write_onnx", lambda model, folder: 0)
    base, out = save_base(tmp_path / "base"), str(tmp_path / "out")
    found = tunesmith.export(model=str(base), output_dir=out, formats=["onnx"]).manifest
    assert found["parity"]["onnx"] == {
        "verified": False, "consumer": "onnxruntime", "why": "not installed"
    }  # fmt: skip
    told = capsys.readouterr().err
    assert "onnx is unverified: onnxruntime is not installed (pip install onnxruntime)" in told


def test_onnx_without_its_packages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base")
    monkeypatch.setattr(workflow.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package onnx,") as said:
        tunesmith.export(model=str(base), output_dir=str(tmp_path / "out"), formats=["onnx"])
    assert said.value.hint == "pip install 'tunesmith[onnx]'"


@pytest.mark.slow
@needs_writer
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_in_a_process_of_its_own(arch: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    tiny_model(arch).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    given = {"model": str(tmp_path / "base"), "output_dir": str(tmp_path / "out")}
    found = tunesmith.export(**given, formats=["onnx"]).manifest["parity"]["onnx"]
    assert found["verified"]
    assert found["relative"] < 1e-5
