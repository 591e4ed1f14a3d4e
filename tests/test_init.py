"""``tunesmith init``: from a user's own file to a recipe that runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.cli import main
from tunesmith.config.load import resolve
from tunesmith.config.schema import EvalOptions, FineTuningConfig
from tunesmith.data.formats import FORMATS
from tunesmith.workflows import recipe_data
from tunesmith.workflows.recipe import check_references, run
from tunesmith.workflows.recipe_file import Recipe, load_recipe

MANY = 12
BRIEF = ["train.max_steps=2", "eval.limit=2", "eval.max_new_tokens=8", "train.report_to=none"]
BRIEF += ["train.forgetting=false", "train.eval_samples=0"]
"""What keeps a recipe's run to seconds."""
Make = Callable[[int], dict[str, Any]]


def chat(n: int, turns: str = "messages", role: str = "role", text: str = "content") -> Any:
    said = [("user", f"Add 1 to {n}."), ("assistant", f"{n + 1}")]
    said += [("user", "And 1 more?"), ("assistant", f"{n + 2}")]
    return {turns: [{role: who, text: what} for who, what in said]}


def share_gpt(n: int) -> Any:
    row = chat(n, "conversations", "from", "value")
    for turn in row["conversations"]:
        turn["from"] = {"user": "human", "assistant": "gpt"}[turn["from"]]
    return row


def pair(asked: str, answered: str, **more: Any) -> Make:
    answer = "It is the number {}, of course, as you see."
    return lambda n: {asked: f"What is {n} + 1?", answered: answer.format(n + 1), **more}


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


LAYOUTS: dict[str, tuple[Make, str]] = {
    "messages": (chat, "chat"),
    "ShareGPT conversations": (share_gpt, "chat"),
    "preference pairs": (
        lambda n: {"prompt": f"Add 1 to {n}.", "chosen": f"It is {n + 1}.", "rejected": "No."},
        "instruct",
    ),
    "preferred output": (
        lambda n: {
            "input": {"messages": turn("user", f"Add 1 to {n}.")},
            "preferred_output": turn("assistant", f"{n + 1}"),
            "non_preferred_output": turn("assistant", "No."),
        },
        "instruct",
    ),
    "RAFT": (
        lambda n: {
            "instruction": f"Document [1]: House {n} is blue.\nQuestion: Colour of {n}?",
            "output": "Based on the documents: blue.",
            "oracle_context": f"House {n} is blue.",
            "num_distractors": 0,
            "has_distractors": False,
        },
        "instruct",
    ),
    "instructions with instances": (
        lambda n: {
            "instruction": f"Add {n}.",
            "instances": [{"input": "1", "output": f"{n + 1}"}, {"input": "2", "output": f"{n}"}],
        },
        "instruct",
    ),
    "instruction/input/output": (
        lambda n: {"instruction": "Add 1.", "input": f"{n}", "output": f"{n + 1}"},
        "instruct",
    ),
    "prompt/completion": (pair("prompt", "completion"), "instruct"),
    "prompt/response": (pair("prompt", "response"), "instruct"),
    "prompt/canonical_solution": (
        lambda n: {"prompt": f"def f{n}(x):", "canonical_solution": f"    return x + {n}"},
        "code",
    ),
    "question/answer": (pair("question", "answer"), "instruct"),
    "question/response": (pair("question", "response"), "instruct"),
    "instruction/response": (pair("instruction", "response"), "instruct"),
    "query/response": (pair("query", "response"), "instruct"),
    "problem/solution": (pair("problem", "solution"), "instruct"),
    "input/output": (pair("input", "output"), "instruct"),
    "input/target": (lambda n: {"input": f"{n} + 1", "target": f"{n + 1}"}, "bbh"),
    "text/code": (
        lambda n: {"text": f"Add {n}.", "code": f"def f(x):\n    return x + {n}"},
        "code",
    ),
    "text": (
        lambda n: {"text": f"In the year {n} nothing happened, and nobody was sad."},
        "domain",
    ),
    "code": (lambda n: {"code": f"def f(x):\n    return x + {n}"}, "code"),
    "content": (lambda n: {"content": f"In the year {n} nothing happened here."}, "domain"),
}
"""A row of every layout that the readers know, and the task that is chosen for it."""

QUESTIONS: dict[str, tuple[Make, str]] = {
    "maths": (
        lambda n: {"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"},
        "",
    ),
    "qa": (lambda n: {"question": f"What is {n} + 1?", "answer": f"{n + 1}"}, ""),
    "choice": (
        lambda n: {"question": f"{n}?", "choices": ["a nail", f"cork {n}"], "answer": 1},
        "",
    ),
    "socratic": (
        lambda n: {"instruction": f"Why {n}?", "output": ["Who says so?", f"Is {n} odd?"]},
        "",
    ),
    "mbpp": (
        lambda n: {
            "text": f"Write f, which adds {n}.",
            "code": f"def f(x): return x + {n}",
            "test_list": [f"assert f(1) == {n + 1}"],
        },
        "",
    ),
    "humaneval": (
        lambda n: {
            "prompt": f"def f(x):\n    '''Add {n}.'''\n",
            "entry_point": "f",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(c):\n    assert c(1) == {n + 1}\n",
        },
        "",
    ),
    "raft": (
        lambda n: {
            "instruction": f"Document [1]: House {n} is blue.\nQuestion: Colour of {n}?",
            "output": "Based on the documents: blue.",
            "oracle_context": f"House {n} is blue.",
            "question": f"Colour of {n}?",
            "answer": "blue",
        },
        "",
    ),
}
"""Rows of graded tasks: the task is the key."""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, make: Make, count: int = MANY) -> str:
    Path(path).write_text("".join(json.dumps(make(n)) + "\n" for n in range(count)))
    return path


def begun(file: str, *more: str) -> Recipe:
    """Return the recipe that init writes, its settings checked as its stages do."""
    assert main(["init", file, *more]) == 0
    text = Path("recipe.yaml").read_text()
    assert max(len(line) for line in text.splitlines() if not line.lstrip().startswith("- eval")
               and "split:" not in line) <= 82  # fmt: skip
    recipe = load_recipe(Path("recipe.yaml"))
    check_references(recipe)
    for stage in recipe.stages:
        given = {key: value for key, value in stage.settings.items() if key not in ("data", "from")}
        if stage.verb == "train":
            resolve(FineTuningConfig, given)
        if stage.verb == "eval":
            resolve(EvalOptions, given)
    return recipe


def task_of(recipe: Recipe) -> str:
    [task] = {stage.settings["task"] for stage in recipe.stages if stage.verb in ("train", "eval")}
    return task


def split(recipe: Recipe) -> tuple[list[Any], list[Any]]:
    """Carry out the data stage; return the rows to train on and those held out."""
    [stage] = [stage for stage in recipe.stages if stage.verb == "data"]
    rows = recipe_data.make_data(recipe, stage, Path("made"), {})
    held = rows.with_name("rows-validation.jsonl")
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in (rows, held)]  # type: ignore[return-value]


def test_there_is_a_case_for_every_layout() -> None:
    assert set(LAYOUTS) == {layout.name for layout in FORMATS}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_recipe_for_every_layout(name: str) -> None:
    make, task = LAYOUTS[name]
    recipe = begun(write("mine.jsonl", make))
    assert task_of(recipe) == task
    told = " ".join(Path("recipe.yaml").read_text().replace("#", "").split())
    assert f"read as {name}." in told or task == "bbh"
    train, held = split(recipe)
    assert len(held) == round(0.3 * MANY)
    assert sorted(map(json.dumps, (*train, *held))) == sorted(
        json.dumps(make(n)) for n in range(MANY)
    )


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_recipe_for_every_graded_task_with_rows(name: str) -> None:
    recipe = begun(write("mine.jsonl", QUESTIONS[name][0]))
    assert task_of(recipe) == name
    train, held = split(recipe)
    assert len(train) + len(held) == MANY


def test_a_name_with_a_blank_and_an_umlaut_is_quoted_and_made_plain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [f"Wie viel ist {n} plus 1?;Es ist für dich {n + 1}." for n in range(MANY)]
    text = "\n".join(["Frage;Antwort", *rows, ";leer"])
    Path("Übung eins.csv").write_bytes(text.encode("cp1252"))
    given = ["--encoding", "windows-1252", "--columns", "prompt=Frage,completion=Antwort"]
    assert main(["init", "Übung eins.csv", *given]) == 0
    recipe = Path("recipe.yaml").read_text()
    assert "\nname: Ubung-eins\n" in recipe
    told = " ".join(recipe.replace("#", "").split())
    command = shlex.split(told.partition("model cannot take; ")[2].partition(" names each")[0])
    assert command == ["tunesmith", "data", "validate", "Übung eins.csv", *given]
    capsys.readouterr()
    assert main(command[1:]) == 3
    assert "Accepted 12, refused 1." in capsys.readouterr().err
    assert main(["train", "--task", "instruct", "--dataset", "Übung eins.csv", *given]) == 3
    said = capsys.readouterr().err.partition("Try: ")[2].strip()
    assert shlex.split(said) == [*command[:4], "--fix", "clean.jsonl", *given]
    assert main(shlex.split(said)[1:]) == 3
    assert len(Path("clean.jsonl").read_text().splitlines()) == MANY


def test_lengths_are_measured_by_the_models_tokenizer(tmp_path: Path) -> None:
    recipe = begun(write("mine.jsonl", chat), "--model", "tunesmith/tiny")
    assert "tokens on average" in Path("recipe.yaml").read_text()
    [train] = [stage for stage in recipe.stages if stage.verb == "train"]
    assert train.settings["max_length"] == 64
    assert recipe.model == "tunesmith/tiny"


@pytest.mark.parametrize(
    ("file", "more", "overrides"),
    [
        ("fragen.csv", ["--columns", "prompt=Frage,completion=Antwort"], []),
        ("text.md", [], ["train.max_length=64"]),
    ],
)
def test_a_recipe_runs_to_its_report(file: str, more: list[str], overrides: list[str]) -> None:
    lines = [f'"Was ist {n} und eins, bitte?";"Das ist {n + 1}, ja."' for n in range(MANY)]
    Path("fragen.csv").write_text("Frage;Antwort\n" + "\n".join(lines) + "\n")
    Path("text.md").write_text(
        "\n\n".join(f"In {n} it rained, and it was cold." for n in range(40))
    )
    begun(file, *more)
    records = run("recipe.yaml", [*BRIEF, *overrides], output_dir="runs")
    assert [record.stage.verb for record in records] == [
        "data", "eval", "train", "eval", "compare", "report",
    ]  # fmt: skip
    page = (Path("runs") / Path(file).stem / "report.html").read_text()
    assert "before" in page


def test_odd_files_are_read_as_training_reads_them() -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [LAYOUTS["prompt/completion"][0](n) for n in range(MANY)]
    Path("list.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "mine.parquet")
    Path("latin.csv").write_bytes(
        b"prompt,completion\n"
        + "".join(f"Grüße {n}?,Süß {n}\n" for n in range(MANY)).encode("cp1252")
    )
    for file, more in (
        ("list.json", []),
        ("mine.parquet", []),
        ("latin.csv", ["--encoding", "windows-1252"]),
    ):
        recipe = begun(file, *more, "--overwrite")
        assert len(split(recipe)[0]) + len(split(recipe)[1]) == MANY
    assert "Grüße" in json.dumps(split(recipe)[0], ensure_ascii=False)


def test_faults_and_duplicates_are_counted_and_the_rest_is_split(capsys: Any) -> None:
    make = LAYOUTS["prompt/completion"][0]
    good = [json.dumps(make(n)) for n in range(MANY)]
    Path("mine.jsonl").write_text("\n".join([*good, good[0], '{"prompt": 3}', "{broken"]) + "\n")
    recipe = begun("mine.jsonl")
    text = " ".join(Path("recipe.yaml").read_text().replace("#", "").split())
    assert "Refused: 2 rows that cannot be read" in text
    assert "1 x an exact duplicate of an earlier row (first mine.jsonl:13)" in text
    train, held = split(recipe)
    assert len(train) + len(held) == MANY + 1
    refused = [
        json.loads(line) for line in Path("made/rows-rejects.jsonl").read_text().splitlines()
    ]
    assert [row["line"] for row in refused] == [14, 15]
    capsys.readouterr()
    [stage] = [stage for stage in recipe.stages if stage.verb == "data"]
    strict = {**stage.settings["split"], "allow_refused": 0}
    Path("strict.yaml").write_text(
        yaml.safe_dump({"name": "strict", "stages": [{"data": {"name": "rows", "split": strict}}]})
    )
    assert main(["run", "strict.yaml"]) == 3
    assert "2 of 15 rows cannot be used, the first: mine.jsonl:14" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "more", "code", "said"),
    [
        ("Frage,Antwort\na,b\nc,d\n", [], 3, "fields are Frage, Antwort"),
        ("Frage,Antwort\na,b\nc,d\n", [], 3, "Try: --columns prompt=Frage,completion=Antwort"),
        ("prompt,completion\na,b\na,c\n", [], 3, "one and the same prompt"),
        ("prompt,completion\n", [], 3, "holds no rows"),
        ("prompt,completion\na,b\nc,d\n", ["--task", "units"], 2, "makes its own"),
        ("prompt,completion\na,b\nc,d\n", ["--task", "mats"], 2, "did you mean 'maths'"),
        ("prompt,completion\na,b\nc,d\n", ["--task", "maths"], 3, "no question of the task maths"),
        ("prompt,completion\na,b\nc,d\n", ["--task", "raft"], 3, "no question of the task raft"),
        ("text\na b c\nd e f\n", ["--task", "chat"], 3, "plain text, which --task chat cannot"),
        ("a,b\nc,d\n", ["--columns", "prompt=x,completion=b"], 3, "there is no field 'x'"),
        ('prompt,completion\na,b\nc,"d', [], 3, "mine.csv:3"),
        ("prompt,completion\na,b\nc,d\n", ["--output", "here.txt"], 2, "--output here.yaml"),
        ("prompt,completion\na,b\nc,d\n", ["--split", "test"], 2, "has no splits"),
    ],
)
def test_mistakes_are_sentences(
    content: str, more: list[str], code: int, said: str, capsys: Any
) -> None:
    Path("mine.csv").write_text(content)
    assert main(["init", "--dataset", "mine.csv", *more]) == code
    assert said in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_a_recipe_is_never_replaced_unasked(capsys: Any) -> None:
    write("mine.jsonl", chat)
    Path("recipe.yaml").write_text("mine")
    assert main(["init", "mine.jsonl"]) == 2
    assert "'recipe.yaml' is there already" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == "mine"
    assert main(["init", "mine.jsonl", "--overwrite"]) == 0
    assert load_recipe(Path("recipe.yaml")).name == "mine"


def test_names_that_yaml_would_take_for_something_else() -> None:
    write("no: 'x' #1.jsonl", chat)
    recipe = begun("no: 'x' #1.jsonl")
    assert len(split(recipe)[0]) + len(split(recipe)[1]) == MANY


def test_rows_in_a_folder_that_is_called_like_a_stage() -> None:
    from datasets import Dataset

    Dataset.from_list([LAYOUTS["messages"][0](n) for n in range(MANY)]).save_to_disk("rows")
    assert sum(map(len, split(begun("rows")))) == MANY


KINDS = (*QUESTIONS, "messages", "preference pairs", "RAFT", "text", "code")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_recipe_runs_to_its_report(name: str) -> None:
    make, _ = {**LAYOUTS, **QUESTIONS}[name]
    begun(write("mine.jsonl", make))
    records = run("recipe.yaml", [*BRIEF], output_dir="runs")
    assert records[-1].stage.verb == "report"
