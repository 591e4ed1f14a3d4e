"""Models and data of others, from the folder of public data beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loss_on(model: torch.nn.Module, tokenizer: object, text: str) -> float:
    """Return plain transformers' own loss on a text."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])  # type: ignore[operator]
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.slow
@pytest.mark.parametrize("method", [[], ["--lora"]])
def test_a_real_small_model_is_trained_and_loads_without_us(
    shared: Path, method: list[str]
) -> None:
    base = shared / "models" / "stories260K"
    text = shared / "data" / "corpora" / "fairytaleqa_stories.txt.gz"
    command = ["train", "--task", "domain", "--model", str(base), "--dataset", str(text), *method]
    command += ["--max-rows", "16", "--max-steps", "6", "--run-name", "d"]
    assert main([*command, "--learning-rate", "0.002", "--report-to", "none"]) == 0
    final = Path("runs/d/final_model")
    plain = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(final)
    story = "Once upon a time there was a king who had three daughters."
    before = loss_on(plain, tokenizer, story)
    if method:
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(plain, final)
    else:
        tuned = AutoModelForCausalLM.from_pretrained(final)
    assert loss_on(tuned, tokenizer, story) != before
    [sentence] = json.loads(Path("runs/d/manifest.json").read_text())["losses"]
    assert "nats per byte" in sentence
    assert "95% interval" in sentence


@pytest.mark.slow
def test_gsm8k_rows_train_and_are_asked(shared: Path) -> None:
    rows = shared / "data" / "gsm8k" / "train.jsonl"
    command = ["train", "--task", "maths", "--dataset", str(rows), "--lora", "--max-rows", "30"]
    command += ["--max-steps", "2", "--eval-questions", "3", "--allow-refused", "1"]
    assert main([*command, "--run-name", "g", "--report-to", "none"]) == 0
    assert json.loads(Path("runs/g/manifest.json").read_text())["finished"]
    assert len(Path("runs/g/eval/tuned/attempts.jsonl").read_text().splitlines()) == 1 + 3
    ask = ["eval", "--task", "maths", "--dataset", str(rows.parent), "--model", "runs/g"]
    assert main([*ask, "--limit", "3", "--name", "asked", "--max-new-tokens", "16"]) == 0
