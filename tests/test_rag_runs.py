"""``tunesmith eval --task raft``: conditions, their sets of attempts, the table and the JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from scripted import Scripted, respondent
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.config.load import resolve
from tunesmith.config.schema import EvalOptions
from tunesmith.errors import CheckpointError, DataError, UsageError
from tunesmith.evaluate.records import load
from tunesmith.types import Segment
from tunesmith.workflows import rag
from tunesmith.workflows.recipe import run

YEAR = re.compile(r"\b1[5-9]\d\d\b")
TOWNS = ("Arlon", "Brest", "Calais", "Dijon", "Evian", "Fulda", "Gotha", "Halle")


def reader(messages: Sequence[Segment]) -> str:
    """Answer with the year of the document that names the castle, or say that none does."""
    *documents, question = messages[-1].text.split("\n\n")
    [castle] = re.findall(r"(\w+) Castle", question)
    for number, text in enumerate((d for d in documents if d.startswith("Document [")), 1):
        if castle in text and (year := YEAR.search(text)):
            quote = f"##begin_quote##{castle} Castle was built in {year[0]}##end_quote##"
            return f"##Reason: Document [{number}] says {quote}\n<ANSWER>: {year[0]}"
    return "Based on the documents: the answer is not given."


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Write documents and rows of ``data raft`` into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for n, town in enumerate(TOWNS):
        year = 1500 + 41 * n
        more = f"Visitors of {town} like {town}ish bread, {town}ish cheese and {town}ish songs."
        Path(f"docs/{town}.txt").write_text(f"{town} Castle was built in {year}. {more}\n")
    assert main(["data", "raft", "docs", "--output", "rows.jsonl", "--validation-split", "0",
                 "--oracle-share", "0.5", "--distractor-probability", "1",
                 "--max-questions", "1"]) == 0  # fmt: skip
    return [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Let the reader answer, and return what it was asked."""
    who, backend = respondent(reader)
    monkeypatch.setattr(rag, "open_respondent", lambda _: who)
    return backend


def evaluate(**given: Any) -> Any:
    settings = {"task": "raft", "dataset": "rows.jsonl", "name": "x", "log_level": "error"}
    return tunesmith.evaluate(**{**settings, **given})


def figures(result: Any, name: str) -> dict[str, Any]:
    return {c: f["metrics"][name]["value"] for c, f in result.metrics["conditions"].items()}


def test_every_condition_is_measured(asked: Scripted) -> None:
    contexts = ["retrieved", "mixed", "oracle", "distractors", "rows", "none"]
    result = evaluate(documents=["docs"], context=contexts, passages=[1, 3])
    names = ["retrieved-1", "retrieved-3", "mixed-1", "mixed-3-shuffled", "oracle",
             "distractors-1", "distractors-3", "rows", "none"]  # fmt: skip
    assert list(result.metrics["conditions"]) == names
    em, recall = figures(result, "answer_em"), figures(result, "recall_at_k")
    assert em["oracle"] == em["mixed-3-shuffled"] == em["retrieved-3"] == 1.0
    assert em["distractors-1"] == em["none"] == 0.0
    assert 0 < em["rows"] < 1  # half of the rows hide the oracle
    assert recall["retrieved-3"] == 1.0
    assert recall["oracle"] is None
    assert figures(result, "abstention_recall")["distractors-3"] == 1.0
    assert figures(result, "abstention_recall")["none"] is None
    assert figures(result, "right_or_abstains")["rows"] == 1.0
    assert figures(result, "quote_validity")["mixed-3-shuffled"] == 1.0
    assert figures(result, "cites_oracle")["mixed-3-shuffled"] == 1.0
    assert set(result.metrics["comparisons"]) == {"answer_em", "answer_f1"}
    pairs = result.metrics["comparisons"]["answer_em"]["pairs"]
    assert [(p["first"], p["second"]) for p in pairs] == [
        ("x-retrieved-1", f"x-{name}") for name in names[1:]
    ]
    for name in names:
        assert load(Path("runs/x") / name).name == f"x-{name}"
    kept = json.loads(Path("runs/x/conditions.json").read_text())
    assert kept["conditions"].keys() == result.metrics["conditions"].keys()
    assert "hit" in kept["hit"]
    # Stored sets can be compared by any metric of single answers.
    command = ["compare", "runs/x/oracle", "runs/x/none", "--metric", "answer_f1"]
    assert main(command) == 0


SHOWN: list[tuple[str, Any, dict[str, Any]]] = [
    ("documents", ["more"], {"passages": [8]}),
    ("context", ["oracle"], {}),
    ("passages", [2], {}),
    ("oracle_position", ["last"], {"context": ["mixed"]}),
    ("chunk_size", 10, {"documents": ["docs"]}),
    ("prompt", "quoted", {}),
    ("question_seed", 5, {"context": ["mixed"]}),
    ("system", "Be short.", {}),
]
"""A setting, another value, the settings that it acts among."""


@pytest.mark.parametrize(("name", "value", "among"), SHOWN, ids=[one[0] for one in SHOWN])
def test_every_setting_changes_what_is_asked(
    name: str, value: Any, among: dict[str, Any], asked: Scripted
) -> None:
    Path("more").mkdir()
    for town in (*TOWNS, "Jena"):
        Path(f"more/{town}.txt").write_text(f"Of {town} nothing is known but this.\n")
    evaluate(**among, name="a")
    first, asked.asked = asked.asked, []
    evaluate(**{**among, name: value}, name="b")
    assert asked.asked
    assert asked.asked != first


def test_further_phrases_of_abstaining_count_and_are_stored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    english = "Based on the documents: the answer is not given."
    who, _ = respondent(lambda messages: reader(messages).replace(english, "Steht nicht im Text."))
    monkeypatch.setattr(rag, "open_respondent", lambda _: who)
    known = evaluate(context=["distractors"])
    assert figures(known, "abstention_recall") == {"distractors-4": 0.0}
    phrases = ["steht nicht im text"]
    # Of the same name it would go on with answers that know nothing of the phrases.
    with pytest.raises(CheckpointError, match="another fingerprint"):
        evaluate(context=["distractors"], abstain_phrases=phrases)
    told = evaluate(context=["distractors"], abstain_phrases=phrases, name="y")
    assert figures(told, "abstention_recall") == {"distractors-4": 1.0}
    stored = load(Path("runs/y"))
    assert {tuple(p.meta["abstain_phrases"]) for p in stored.problems.values()} == {tuple(phrases)}
    assert {a.verdict.reason for a in stored.attempts if a.verdict} == {"says that it is not told"}
    asked = ["eval", "--task", "raft", "--dataset", "rows.jsonl", "--abstain-phrases"]
    assert main([*asked, "nicht", "--context", "none"]) == 2
    assert "--abstain-phrases does nothing for --context none" in capsys.readouterr().err
    assert main([*asked, " "]) == 2
    assert main(["eval", "--abstain-phrases", "nicht"]) == 2
    assert "does nothing for the task 'units'" in capsys.readouterr().err


def test_a_stopped_command_goes_on_and_another_one_is_refused(asked: Scripted) -> None:
    evaluate(context=["oracle", "none"])
    whole = len(asked.asked)
    log = Path("runs/x/none/attempts.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-2]))
    asked.asked = []
    evaluate(context=["oracle", "none"])
    assert len(asked.asked) == 2 < whole
    Path("docs/Arlon.txt").write_text("Arlon Castle was built in 1999. It is new.\n")
    evaluate(documents=["docs"], passages=[2], name="y")
    Path("docs/Brest.txt").write_text("Brest Castle is not the same any more since 1998.\n")
    with pytest.raises(CheckpointError, match="another fingerprint"):
        evaluate(documents=["docs"], passages=[2], name="y")


def test_one_condition_has_the_folder_to_itself(asked: Scripted) -> None:
    result = evaluate(name=None, context=["oracle"], model="tunesmith/tiny")
    assert result.folder == Path("runs/raft-plain-oracle-tiny")
    assert result.stored == result.folder / "attempts.jsonl"
    assert json.loads((result.folder / "items.json").read_text())["metrics"]["answer_em"]
    assert result.results.problems[result.results.attempts[0].problem_id].meta["documents"]


def test_a_data_set_brings_its_documents(asked: Scripted) -> None:
    squad = {
        "data": [
            {
                "title": town,
                "paragraphs": [
                    {
                        "context": Path(f"docs/{town}.txt").read_text(),
                        "qas": [
                            {
                                "id": town,
                                "question": f"When was {town} Castle built?",
                                "answers": [{"text": f"in {1500 + 41 * n}", "answer_start": 0},
                                            {"text": f"{1500 + 41 * n}", "answer_start": 0}],
                            }
                        ],
                    }
                ],
            }
            for n, town in enumerate(TOWNS)
        ]
    }  # fmt: skip
    Path("squad.json").write_text(json.dumps(squad))
    result = evaluate(dataset="squad.json", context=["retrieved", "oracle"], passages=[2])
    assert figures(result, "answer_em") == {"retrieved-2": 1.0, "oracle": 1.0}


def test_what_does_not_fit_is_cut_and_counted() -> None:
    tiny_model("llama", max_position_embeddings=512).save_pretrained("small")
    tiny_tokenizer().save_pretrained("small")
    given = {"model": "small", "documents": ["docs"], "limit": 2, "max_new_tokens": 4}
    result = evaluate(**given, context=["mixed"], oracle_position=["last"])
    [told] = result.metrics["conditions"].values()
    assert told["shortened"] == 2
    for problem in result.results.problems.values():
        shown = problem.meta["documents"]
        assert 1 < len(shown) < 4
        assert problem.meta["hits"] == [len(shown)]
    with pytest.raises(UsageError, match="Not even one document"):
        evaluate(**{**given, "name": "y", "system": "Be short. " * 40}, context=["oracle"])


def test_the_loss_of_the_answer_is_that_behind_its_mark() -> None:
    model, tokenizer = tiny_model("llama", max_position_embeddings=2048), tiny_tokenizer()
    model.save_pretrained("small")
    tokenizer.save_pretrained("small")
    given = {"model": "small", "limit": 2, "max_new_tokens": 2, "context": ["oracle", "none"]}
    result = evaluate(**given)
    for context, lead in (("oracle", "Based on the documents:"), ("none", "")):
        stored = json.loads(Path(f"runs/x/{context}/items.json").read_text())["losses"]
        for key, problem in load(Path("runs/x") / context).problems.items():
            turn = [{"role": "user", "content": problem.prompt[0].text}]
            before = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            year = problem.reference if not lead else f" {problem.reference}"
            start = tokenizer(before + lead, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*start, *tokenizer(year, add_special_tokens=False)["input_ids"]]])
            with torch.no_grad():
                scores = model.eval()(input_ids=ids).logits[0, :-1].log_softmax(-1)
            wanted = -scores.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum()
            assert stored[key] == [pytest.approx(wanted.item(), rel=1e-4), 4]
    assert figures(result, "answer_loss")["oracle"] > 0
    sentence = main(["compare", "runs/x/none", "runs/x/oracle"])
    assert sentence == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "units", "dataset": None, "context": ["none"]}, "--context does nothing"),
        ({"task": "chat", "passages": [2]}, "--passages does nothing"),
        ({"context": ["none"], "passages": [2]}, "--passages does nothing"),
        ({"oracle_position": ["first"]}, "--oracle-position does nothing"),
        ({"context": ["mixed"], "oracle_position": ["5"]}, "no place among 4"),
        ({"context": ["mixed"], "oracle_position": ["top"]}, "no place among 4"),
        ({"context": ["oracle"], "vote": ["majority"]}, "--vote does nothing"),
        ({"context": ["none"], "documents": ["docs"]}, "--documents does nothing"),
        ({"chunk_size": 20}, "--chunk-size does nothing"),
        ({"context": []}, "No context"),
        ({"prompt": "cot"}, "no prompt style"),
    ],
)
def test_what_would_do_nothing_is_refused(
    given: dict[str, Any], said: str, asked: Scripted
) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate(**given)
    assert not asked.asked


def test_questions_without_documents_are_named(asked: Scripted) -> None:
    Path("plain.jsonl").write_text('{"question": "When was Oslo Castle built?", "answer": "1"}\n')
    with pytest.raises(UsageError, match="show no documents"):
        evaluate(dataset="plain.jsonl")
    with pytest.raises(DataError, match="no passage holds the answer of all 1"):
        evaluate(dataset="plain.jsonl", documents=["docs"], context=["oracle"])
    with pytest.raises(DataError, match="no documents are shown by all 1"):
        evaluate(dataset="plain.jsonl", documents=["docs"], context=["rows"])
    assert evaluate(dataset="plain.jsonl", context=["none"]).summary.n == 1


def test_the_command_prints_json_and_a_table_of_80_columns(
    asked: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    given = ["--context", "mixed", "retrieved", "--passages", "1", "16"]
    assert main(["eval", "--task", "raft", "--dataset", "rows.jsonl", *given]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)) == ["conditions", "comparisons", "passages", "hit"]
    table = [line for line in err.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(table) == 4 + 4 + 4 + 3
    assert all(len(line) <= 80 for line in table)
    assert any("mixed-16-shuffled" in line and "100" in line for line in table)


def test_settings_of_lists_are_read_from_text() -> None:
    given = {"task": "raft", "passages": ["1", "2"], "oracle_position": [1, "last"]}
    options = resolve(EvalOptions, given).options
    assert (options.passages, options.oracle_position) == ([1, 2], ["1", "last"])


def test_a_recipe_asks_the_rows_that_its_data_stage_held_out(asked: Scripted) -> None:
    made = {
        "documents": ["docs"],
        "validation_split": 0.3,
        "max_questions": 1,
        "num_distractors": 1,
    }
    stages = [
        {"data": {"name": "made", "raft": made}},
        {"eval": {"name": "asked", "task": "raft", "dataset": "made", "context": ["none", "rows"]}},
        {"compare": {"name": "both", "of": ["asked/none", "asked/rows"]}},
    ]
    Path("recipe.yaml").write_text(json.dumps({"name": "r", "stages": stages}))
    records = run("recipe.yaml", output_dir="out")
    text = Path("out/r/made/rows-validation.jsonl").read_text()
    held = [json.loads(line) for line in text.splitlines()]
    assert {m[-1].text for m in asked.asked} == {
        row[name] for row in held for name in ("question", "instruction")
    }
    assert records[1].output == Path("out/r/asked/conditions.json")
    assert not any(record.ran for record in run("recipe.yaml", output_dir="out"))
    stages[0]["data"]["raft"] = {**made, "seed": 7}  # type: ignore[dict-item]
    Path("recipe.yaml").write_text(json.dumps({"name": "r", "stages": stages}))
    assert all(record.ran for record in run("recipe.yaml", output_dir="out"))
