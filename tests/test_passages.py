"""Passages for a question, the form they are asked in, and quotes that are looked up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.config.schema_generate import ChatOptions
from tunesmith.data.raft.passages import Citation, cite
from tunesmith.errors import UsageError
from tunesmith.workflows.documents import Shelf, check_columns
from tunesmith.workflows.raft import RAFTDataGenerator

MILL = "The mill of Aldersee is old. It was founded in 1830 by Jutta Gerlach."
PORT = "The harbour has 12 boats. Its keeper is Ivo Imhof."


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (
            "##Reason: ##begin_quote##It was founded in\n1830##end_quote## so\n<ANSWER>: 1830",
            [("It was founded in 1830", (1,), True)],
        ),
        ("##begin_quote##It was sunk in 1830##end_quote##", [("It was sunk in 1830", (), True)]),
        ("##begin_quote##Its keeper is", [("Its keeper is", (2,), True)]),
        ("##begin_quote####end_quote##", [("", (), True)]),
        ("It says «has 12 boats» and «the mill».", [("has 12 boats", (2,), True),
                                                   ("the mill", (), True)]),
        ('"The" stands in both', [("The", (1, 2), True)]),
        ("Based on the documents: Jutta Gerlach", [("Jutta Gerlach", (1,), False)]),
        ("Based on the documents: Jutta Meier.", [("Jutta Meier", (), False)]),
        ("<ANSWER>: 183", [("183", (), False)]),
        ("Based on the documents: the answer is not given.", []),
        ("", []),
    ],
)  # fmt: skip
def test_quotes_are_looked_up(answer: str, found: list[tuple[str, tuple[int, ...], bool]]) -> None:
    assert cite(answer, [MILL, PORT]) == [Citation(*one) for one in found]


def shelf(folder: Path, **settings: object) -> Shelf:
    return Shelf(ChatOptions(documents=[str(folder)], **settings))


def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "mill.md").write_text(MILL)
    (folder / "port.txt").write_text(PORT)
    return folder


@pytest.mark.parametrize("style", ["plain", "quoted"])
def test_a_question_is_asked_in_the_form_of_training_rows(tmp_path: Path, style: str) -> None:
    asked = "Who is the keeper of the harbour, and who founded the mill?"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"question": asked, "answer": "Jutta Gerlach"}))
    folder = docs(tmp_path)
    [row] = RAFTDataGenerator(
        str(folder),
        str(tmp_path / "rows.jsonl"),
        num_distractors=1,
        distractor_probability=1.0,
        oracle_share=1.0,
        answer_style=style,
        validation_split=0.0,
        questions=str(pairs),
    ).generate()
    shown = shelf(folder, passages=2, answer_style=style).show(asked, lambda _: True)
    texts = [passage.chunk.text for passage in shown.passages]
    assert sorted(texts) == sorted((MILL, PORT))
    # A row's documents come in random order, those of a question by their rank.
    if texts.index(MILL) + 1 == row["oracle_position"]:
        assert shown.text == row["instruction"]
    else:
        swapped = shown.text.replace(MILL, "@").replace(PORT, MILL).replace("@", PORT)
        assert swapped == row["instruction"]


def test_as_many_passages_are_shown_as_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = shelf(docs(tmp_path))
    both = asked.show("Is the keeper of the mill old?", lambda _: True)
    assert len(both.passages) == 2
    size = len(both.text)
    one = asked.show("Is the keeper of the mill old?", lambda text: len(text) < size)
    assert one.passages == both.passages[:1]
    assert "Only 1 of 2 passages fit" in capsys.readouterr().err
    with pytest.raises(UsageError, match="Not even one passage fits"):
        asked.show("Is the keeper of the mill old?", lambda text: "Document" not in text)


def test_a_question_without_a_passage_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = shelf(docs(tmp_path)).show("zebra?", lambda _: True)
    assert none.passages == ()
    assert "no passage shares a word" in capsys.readouterr().err


def test_columns_that_nothing_reads_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing here reads"):
        check_columns(ChatOptions(documents=["x"], columns={"completion": "y"}))
    with pytest.raises(UsageError, match="no file of rows"):
        check_columns(ChatOptions(columns={"text": "y"}))
