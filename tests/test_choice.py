"""The choice task: layouts, ways to write a letter, chance."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.grading.marked import chosen
from tunesmith.tasks.choice import WORKED, ChoiceTask, listed
from tunesmith.types import Problem, Segment

TASK = ChoiceTask()
TEXTS = ["side", "main", "main hall", "front"]
ROW = {"question": "Which entrance?", "choices": {"label": ["A", "B", "C", "D"], "text": TEXTS}}


def write(tmp_path, *rows, name="test.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {**ROW, "answerKey": "B"},
        {**ROW, "choices": {"label": ["1", "2", "3", "4"], "text": TEXTS}, "answerKey": "2"},
        {"question": "Which entrance?", **dict(zip("ABCD", TEXTS, strict=True)), "answer": "B"},
        {"question": "Which entrance?", **dict(zip("abcd", TEXTS, strict=True)), "answer": "b"},
        {"question": "Which entrance?", "choices": TEXTS, "answer": 1},
        {"question": "Which entrance?", "choices": TEXTS, "answer": "main"},
        {"question": "Which entrance?", "options": dict(zip("ABCD", TEXTS, strict=True)),
         "answer": "main", "answer_idx": "B"},
        {"question": {"stem": "Which entrance?", "choices": [
            {"text": text, "label": label} for text, label in zip(TEXTS, "ABCD", strict=True)]},
         "answerKey": "B"},
        {"question": {**ROW, "answerKey": "B"}, "answer": "B"},
        {"messages": [{"role": "user", "content": "Which entrance?\n"
                       + "\n".join(f"{a}) {t}" for a, t in zip("ABCD", TEXTS, strict=True))}],
         "gold": "B"},
    ],
)  # fmt: skip
def test_every_layout_is_the_same_problem(tmp_path, row):
    (only,) = TASK.problems("test", source=write(tmp_path, row))
    assert only.reference == "B"
    assert only.prompt[0].text == listed("Which entrance?", TEXTS)
    assert TASK.answer_example(only).segments[-1].text == "(B) main"
    assert TASK.chance(only) == 0.25


def problem(reference="B", options=TEXTS):
    meta = {"question": "?", "options": list(options)}
    return Problem("p", "choice", (Segment("user", listed("?", options)),), reference, meta)


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", "(B)", "B.", "b)", "**B**", "(B) main", "B: main", "main", "Main.", "\n B \n",
        "the answer is B", "So the answer is (B).", "THE ANSWER IS: (b) main", "Answer: B",
        "It is B because A is wrong; the answer is B because A is wrong",
        "<answer>B</answer>", "$\\boxed{B}$", "\\boxed{\\text{main}}", "#### B", "Ｂ",
        "I would take option B", "One could take the main one.", "B\n\nThe main entrance.",
        "(A) is too small. The answer is (B).", "<think>A or C? A!</think>B",
    ],
)  # fmt: skip
def test_a_letter_counts_however_it_is_written(text):
    assert TASK.grade(problem(), text).score == 1, TASK.grade(problem(), text)


@pytest.mark.parametrize(
    "text",
    [
        "A", "(C) main hall", "main hall", "E", "", "???", "A or B", "The answer is A or B",
        "(A) (B)", "B, C", "(B) side", "side or main", "<think>B", "Both A and B.", "ab",
        "A good question.", "The answer is a house.", "x" * 100_000, "(" * 50_000,
    ],
)  # fmt: skip
def test_anything_else_is_wrong(text):
    assert TASK.grade(problem(), text).score == 0, TASK.grade(problem(), text)


def test_two_options_named_are_said_so():
    assert TASK.grade(problem(), "A or B").reason == "names A and B"
    assert TASK.grade(problem(), "(B) side").reason == "names B with the text of A"


def test_options_that_are_numbers_or_letters_are_taken_by_their_text():
    assert chosen("5", ["4", "5", "10"]) == ("B", "in the text, by its text")
    assert chosen("The answer is 10.", ["4", "5", "10"])[0] == "C"
    assert chosen("A", ["B", "A"])[0] == "B"


def test_gold_scores_one_and_shuffled_gold_is_chance():
    rng = random.Random(0)
    problems = [problem(rng.choice("ABCD"), [f"thing {n}{a}" for a in "wxyz"]) for n in range(800)]
    gold = [TASK.answer_example(p).segments[-1].text for p in problems]
    assert all(TASK.verify(p, text).score == 1 for p, text in zip(problems, gold, strict=True))
    letters = [text[:3] for text in gold]
    rng.shuffle(letters)
    right = sum(TASK.grade(p, text).score for p, text in zip(problems, letters, strict=True))
    assert abs(right / 800 - 0.25) < 0.05


def test_worked_examples_pass_and_prompts_are_as_said():
    for question, options, answer in WORKED:
        gold = chosen(answer, options)[0]
        meta = {"question": question, "options": list(options)}
        assert TASK.verify(Problem("w", "choice", (), gold, meta), answer).score == 1
    assert TASK.messages(problem(), "cloze") == (Segment("user", "?"),)
    assert TASK.continuations(problem(), "cloze") == TEXTS
    assert TASK.continuations(problem(), "direct")[2] == "(C) main hall"
    assert len(TASK.messages(problem(), "cot")) == 2 * len(WORKED) + 1


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(UsageError, match="no questions of its own"):
        TASK.problems("test")
    for row, said in (
        ({**ROW, "answerKey": "Q"}, r"test\.jsonl:1: the answer 'Q' is none of A, B, C, D"),
        (ROW, "no answer among"),
        ({"question": "?"}, r"test\.jsonl:1: no question with options"),
        ({"question": "?", "choices": ["one"], "answer": 0}, "1 options"),
    ):
        with pytest.raises(DataError, match=said):
            TASK.problems("test", source=write(tmp_path, row))


def test_public_questions(shared):
    source = str(shared / "data" / "rationales" / "cqa_rationales.jsonl")
    problems = TASK.problems("test", source=source)
    assert len(problems) == 500
    assert {TASK.chance(p) for p in problems} == {0.2}
    gold = [TASK.answer_text(p) for p in problems]
    assert all(TASK.grade(p, text).score == 1 for p, text in zip(problems, gold, strict=True))
    right = sum(
        TASK.grade(p, text[:3]).score for p, text in zip(problems, gold[1:] + gold[:1], strict=True)
    )
    assert 0.12 < right / 500 < 0.28
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    said = [row["formatted_text"].rpartition("Therefore, ")[2] for row in rows]
    read = [TASK.grade(p, text) for p, text in zip(problems, said, strict=True)]
    named = [row["answer"] for row in rows]
    agree = sum(v.answer == letter for v, letter in zip(read, named, strict=True))
    assert agree >= 0.97 * 500, agree
