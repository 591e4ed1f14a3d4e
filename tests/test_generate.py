"""Prompts from files, rows of answers, and the base beside the tuned model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.schema import ModelOptions
from tunesmith.data.prompts import read_prompts
from tunesmith.errors import DataError, UsageError
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.voices import began_with, open_base

SHORT = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """Return an adapter on the base that has much to say of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        tuned = get_peft_model(model, config)
    folder = base.parent / "adapter"
    tuned.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "content", "asked"),
    [
        ("p.txt", "one\n\n  two \n", ["one", "two"]),
        ("p.jsonl", '{"prompt": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
        ("p.json", '[{"question": "one"}, {"question": "two"}]', ["one", "two"]),
        ("p.csv", "id,question\n1,one\n2,two\n", ["one", "two"]),
        ("p.jsonl", '{"instruction": "add", "input": "1 and 2"}\n', ["add\n\n1 and 2"]),
    ],
)
def test_prompts_of_a_file(tmp_path: Path, name: str, content: str, asked: list[str]) -> None:
    (tmp_path / name).write_text(content)
    assert [prompt.text for prompt in read_prompts(str(tmp_path / name))] == asked


def test_a_conversation_is_asked_up_to_its_last_question(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    [prompt] = read_prompts(str(path))
    assert [(turn.role, turn.text) for turn in prompt.turns] == turns[:4]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", '{"prompt": "one"}\n{"prompt": ""}\n', ":2: the field 'prompt' is empty"),
        ("p.jsonl", '{"prompt": "one"}\n{"answer": "x"}\n', "p.jsonl:2: no field holds a prompt"),
        ("p.jsonl", '{"prompt": 3}\n', "p.jsonl:1: the field 'prompt' is int"),
        ("p.jsonl", '{"prompt": "one"}\n{oops\n', "p.jsonl:2:"),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', "no turn of the user"),
        ("p.csv", "question\none\ntwo,three\n", "p.csv:3: 2 cells"),
        ("p.txt", "\n\n", "holds no prompts"),
        ("p.txt", b"one\ntwo \xff\n", "p.txt:2:"),
        ("p.doc", "x", "no known format"),
    ],
)
def test_faults_of_prompts_have_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_prompts(str(tmp_path / name))
    assert said in str(caught.value)


def test_a_missing_file_of_prompts_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("x")
    with pytest.raises(DataError, match="There is no file") as caught:
        read_prompts(str(tmp_path / "promts.txt"))
    assert "prompts.txt" in caught.value.hint


def test_answers_of_a_file_become_rows(tmp_path: Path, base: Path, capsys: Any) -> None:
    (tmp_path / "p.csv").write_text("question\nthe cat\nthe mat\n")
    output = tmp_path / "answers.jsonl"
    line = ["generate", "--model", str(base), "--prompts", str(tmp_path / "p.csv"), *SHORT]
    line += ["--samples", "2", "--temperature", "1", "--logprobs", "--output", str(output)]
    assert main(line) == 0
    assert capsys.readouterr().out == ""
    made = rows(output)
    assert [row["prompt"] for row in made] == ["the cat", "the mat"]
    assert [row["origin"] for row in made] == [f"{tmp_path}/p.csv:{n}" for n in (2, 3)]
    for row in made:
        assert len(row["answers"]) == 2
        assert [len(one) for one in row["logprobs"]] == row["tokens"]
        assert set(row["stop_reasons"]) <= {"length", "stop_token"}
        assert all(one["logprob"] <= 0 for answer in row["logprobs"] for one in answer)
        # A prompt of a file is answered as if it were asked alone.
        assert row["answers"] == tunesmith.generate(
            row["prompt"], model=str(base), samples=2, temperature=1.0, max_new_tokens=6
        )
    assert main(line) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0


def test_without_an_output_the_answers_go_to_stdout_alone(
    tmp_path: Path, base: Path, capsys: Any
) -> None:
    (tmp_path / "p.txt").write_text("the cat\nthe mat\n")
    said = ["--model", str(base), *SHORT]
    assert main(["generate", "--prompts", str(tmp_path / "p.txt"), *said]) == 0
    both = capsys.readouterr().out
    alone = ""
    for prompt in ("the cat", "the mat"):
        assert main(["generate", prompt, *said]) == 0
        alone += capsys.readouterr().out
    assert both == alone


def test_a_prompt_from_stdin(base: Path, capsys: Any, monkeypatch: Any) -> None:
    said = ["--model", str(base), *SHORT]
    assert main(["generate", "the cat\nsat", *said]) == 0
    wanted = capsys.readouterr().out
    for way in (["-"], ["--prompt", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\nsat\n"))
        assert main(["generate", *way, *said]) == 0
        assert capsys.readouterr().out == wanted
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["generate", "-", *said]) == 2
    assert "The prompt on stdin is empty." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "Neither --prompt nor --prompts"),
        (["x", "--prompts", "y.txt"], "cannot both be given"),
        (["x", "--passages", "2"], "--passages does nothing without --documents"),
        (["x", "--overwrite"], "--overwrite does nothing without --output"),
        (["x", "--encoding", "latin-1"], "--encoding does nothing"),
        (["x", "--columns", "prompt=a"], "--columns does nothing here"),
        (["x", "--stop="], "--stop is empty"),
        (["x", "--output", "a.txt"], "no format that rows can be written in"),
        (["x\udcff"], "lone surrogate"),
        (["x", "--compare-base"], "Nothing says what"),
        (["x" * 20000], "The prompt is 20"),
    ],
)
def test_mistakes_are_sentences(line: list[str], said: str, base: Path, capsys: Any) -> None:
    assert main(["generate", *line, "--model", str(base)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_a_stop_string_ends_an_answer(base: Path) -> None:
    [whole] = tunesmith.generate("the cat", model=str(base), max_new_tokens=20)
    cut = whole[5:8]
    [short] = tunesmith.generate("the cat", model=str(base), max_new_tokens=20, stop=["@@", cut])
    assert short == whole[: whole.index(cut)]


def test_log_probabilities_are_said(base: Path, capsys: Any) -> None:
    tunesmith.generate("the cat", model=str(base), max_new_tokens=4, logprobs=True)
    assert "Log-probability: -" in capsys.readouterr().err


def test_the_base_of_an_adapter_is_the_same_copy_of_the_weights(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    loaded, renderer = open_model(ModelOptions(model=str(adapter)))
    beside = open_base(ModelOptions(model=str(adapter)), loaded, renderer)
    assert beside.loaded is loaded
    output = tmp_path / "o.jsonl"
    settings = {"model": str(adapter), "max_new_tokens": 12}
    tuned = tunesmith.generate("the cat", compare_base=True, output=str(output), **settings)
    [row] = rows(output)
    assert row["answers"] == tuned == tunesmith.generate("the cat", **settings)
    alone = tunesmith.generate("the cat", model=str(base), max_new_tokens=12)
    assert row["base"]["answers"] == alone != tuned


def test_the_base_of_a_run_is_the_model_that_it_began_with(
    base: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    tiny_model("llama", seed=5).save_pretrained(run / "final_model")
    tiny_tokenizer().save_pretrained(run / "final_model")
    (run / "config.yaml").write_text("model: elsewhere\n")
    assert began_with(str(run / "final_model")) == "elsewhere"
    (run / "manifest.json").write_text(json.dumps({"tunesmith": "0", "base": str(base)}))
    assert main(["generate", "the cat", "--model", str(run), "--compare-base", *SHORT]) == 0
    wanted = [
        tunesmith.generate("the cat", model=str(where), max_new_tokens=6)[0]
        for where in (base, run)
    ]
    assert capsys.readouterr().out == f"base:\n{wanted[0]}\ntuned:\n{wanted[1]}\n"
    with pytest.raises(UsageError, match="Nothing says what"):
        began_with(str(base))


def test_rows_of_documents_hold_passages_and_citations(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mill.txt").write_text("The mill was founded in 1830 by Jutta Gerlach.")
    output = tmp_path / "o.jsonl"
    question = "Who founded the mill?"
    [answer] = tunesmith.generate(
        question, documents=[str(tmp_path / "mill.txt")], output=str(output), max_new_tokens=6
    )
    [row] = rows(output)
    assert row["prompt"] == question
    assert row["passages"][0]["document"] == "mill.txt"
    assert row["answers"] == [answer]
    assert len(row["citations"]) == 1
    assert "[1] mill.txt: The mill was founded" in capsys.readouterr().err
