"""The bbh task: its layout, its published worked examples and its targets."""

from __future__ import annotations

import json

import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.base import QuestionSettings
from tunesmith.tasks.bbh import BbhTask, worked_turns
from tunesmith.types import Problem, Segment

TASK = BbhTask()
PROMPTS = (
    "canary GUID 1\n-----\nSay which.\n\nQ: One?\nOptions:\n- Yes\n- No\nA: Let's think.\n"
    "So the answer is Yes.\n\nQ: Two?\nA: So the answer is No.\n"
)


def write(folder, name, *rows):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"canary": "x", "examples": list(rows)}), encoding="utf-8")
    return str(path)


def problem(target, asked="?"):
    return Problem("p", "bbh", (Segment("user", asked),), target)


LETTERED = "Which?\nOptions:\n(A) the cat\n(B) the dog\n(C) a bird"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("(B)", "So the answer is (B)."),
        ("(B)", "so the answer is b"),
        ("(B)", "The dog"),
        ("(B)", "\\boxed{B}"),
        ("True", "Not false. So the answer is true."),
        ("Yes", "Yes."),
        ("no", "So the answer is No, it is not."),
        ("24", "So the answer is 24."),
        ("-219", "A - B = -163 - 56 = −219. So the answer is −219."),
        ("1000", "the answer is 1,000"),
        ("abc def ghi", "So the answer is abc, def, ghi."),
        ("abc def ghi", "Sorted:\nABC def ghi"),
        ("] ) >", "So the answer is ] ) >"),
        ("No", "<think>yes</think>\nSo the answer is No."),
    ],
)
def test_the_target_however_it_is_written(target, text):
    assert TASK.grade(problem(target, LETTERED), text).score == 1


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("(B)", "So the answer is (A)."),
        ("(B)", "(A) or (B)"),
        ("True", "So the answer is False."),
        ("24", "So the answer is 25."),
        ("24", "24 of them are not. So the answer is 1."),
        ("abc def ghi", "def abc ghi"),
        ("abc def ghi", "abc def"),
        ("] ) >", "] )"),
        ("Yes", ""),
        ("Yes", "<think>Yes"),
        ("Yes", "Yesterday"),
        ("5", "5" * 200_000),
    ],
)
def test_another_answer_is_wrong(target, text):
    assert TASK.grade(problem(target, LETTERED), text).score == 0


def test_only_marked_answers_with_true_equations_are_trained():
    assert TASK.verify(problem("5"), "2 + 3 = 5. So the answer is 5.").score == 1
    assert TASK.verify(problem("5"), "2 + 3 = 6. So the answer is 5.").score == 0
    assert TASK.verify(problem("5"), "So it is\n5").score == 0
    assert TASK.verify(problem("5"), "5").score == 1


def test_worked_examples_are_found_beside_the_file(tmp_path):
    source = write(tmp_path, "pick", {"input": "Three?", "target": "Yes"})
    (bare,) = TASK.problems("test", source=source)
    with pytest.raises(UsageError, match="no worked examples for the subtask 'pick'"):
        TASK.messages(bare, "cot")
    (tmp_path / "cot-prompts").mkdir()
    (tmp_path / "cot-prompts" / "pick.txt").write_text(PROMPTS)
    (asked,) = TASK.problems("test", source=source)
    turns = TASK.messages(asked, "cot")
    assert [turn.text for turn in turns] == [
        "Say which.\n\nOne?\nOptions:\n- Yes\n- No",
        "Let's think.\nSo the answer is Yes.",
        "Two?",
        "So the answer is No.",
        "Three?",
    ]
    assert TASK.messages(asked, "direct") == asked.prompt
    other = BbhTask()
    (tmp_path / "mine.txt").write_text("Q: Mine?\nA: Yes.")
    other.settings = QuestionSettings(examples=str(tmp_path / "mine.txt"))
    (asked,) = other.problems("test", source=source)
    assert other.messages(asked, "cot")[0].text == "Mine?"


def test_a_folder_is_all_its_subtasks(tmp_path):
    write(tmp_path, "one", {"input": "a", "target": "No"}, {"input": "b", "target": "5"})
    write(tmp_path, "two", {"input": "a", "target": "(A)"})
    problems = TASK.problems("test", source=str(tmp_path))
    assert [p.meta["subtask"] for p in problems] == ["one", "one", "two"]
    assert len({p.id for p in problems}) == 3
    assert TASK.answer_example(problems[0]).segments[-1].text == "No"


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(DataError, match=r"bad\.json:1.*: no input and target"):
        TASK.problems("test", source=write(tmp_path, "bad", {"input": "a"}))
    empty = tmp_path / "empty.txt"
    empty.write_text("nothing")
    with pytest.raises(DataError, match="no worked example"):
        worked_turns(str(empty))
    with pytest.raises(DataError, match="cannot be read"):
        worked_turns(str(tmp_path / "gone.txt"))


def test_published_files(shared):
    folder = shared / "data" / "bbh"
    for file in sorted(folder.glob("*.json")):
        problems = TASK.problems("test", source=str(file))
        assert len(problems) >= 187
        gold = [p.reference for p in problems]
        for form in ("{}", "So the answer is {}.", "<think>x</think>\nso the answer is {}"):
            texts = [form.format(target) for target in gold]
            assert all(TASK.verify(p, t).score == 1 for p, t in zip(problems, texts, strict=True))
        assert len(TASK.messages(problems[0], "cot")) == 7
        share = sum(gold.count(target) for target in gold) / len(gold) ** 2
        moved = gold[97:] + gold[:97]
        right = sum(TASK.grade(p, t).score for p, t in zip(problems, moved, strict=True))
        assert abs(right / len(gold) - share) < 0.12, file.stem
