"""The qa task: rules, columns, patterns that would run for ever."""

from __future__ import annotations

import json
import time

import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.tasks import rules
from tunesmith.tasks.base import QuestionSettings
from tunesmith.tasks.qa import WORKED, QaTask
from tunesmith.tasks.registry import get_graded_task


def task(checker=None, **columns):
    made = QaTask()
    made.settings = QuestionSettings(columns=columns, checker=checker)
    return made


def only(tmp_path, row, checker=None, **columns):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    made = task(checker, **columns)
    (problem,) = made.problems("test", source=str(path))
    return made, problem


@pytest.mark.parametrize(
    ("rule", "answer", "right", "wrong"),
    [
        ("exact", "Paris", ["paris.", "The answer is Paris", "\\boxed{PARIS}", "Hm.\n**Paris**"],
         ["Paris or Rome", "", "Rome"]),
        ("number", "1234.5", ["1,234.5 km", "The answer is 1234.5", "#### 1234.50"],
         ["1234", "none", ""]),
        ("number:0.5", "10", ["10.4", "9.5"], ["10.6"]),
        ("number:1%", "200", ["201", "198 of them"], ["203"]),
        ("contains", "New York", ["It lies in new  york, I think"], ["newyork", "York"]),
        ("regex", r"^\s*\d{4}-\d\d-\d\d\s*$", ["2024-01-31"], ["31.1.2024"]),
        ("choice", "B", ["(b)", "The answer is B."], ["A or B", "C", ""]),
        ("f1>=0.5", "the old grey mill", ["an old mill", "Grey mill"], ["the house", ""]),
        ("exact", ["Paris", "City of Light"], ["city of light"], ["London"]),
    ],
)  # fmt: skip
def test_each_rule(tmp_path, rule, answer, right, wrong):
    made, problem = only(tmp_path, {"question": "?", "answer": answer}, rule)
    for text in right:
        assert made.grade(problem, text).score == 1, (text, made.grade(problem, text))
    for text in wrong:
        assert made.grade(problem, text).score == 0, (text, made.grade(problem, text))


def test_a_row_may_have_a_rule_of_its_own(tmp_path):
    row = {"question": "?", "answer": "5", "checker": "number"}
    made, problem = only(tmp_path, row, "exact")
    assert made.grade(problem, "5.0").score == 1
    made, problem = only(tmp_path, {"question": "?", "answer": "5"}, "exact")
    assert made.grade(problem, "5.0").score == 0


def test_columns_name_the_fields(tmp_path):
    row = {"Frage": {"text": "Hauptstadt?"}, "Antwort": "Paris"}
    _, problem = only(tmp_path, row, question="Frage.text", answer="Antwort")
    assert (problem.prompt[0].text, problem.reference) == ("Hauptstadt?", "Paris")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: there is no field 'Fragen'"):
        only(tmp_path, row, question="Fragen")


def test_a_pattern_that_runs_for_ever_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "REGEX_SECONDS", 0.2)
    pattern = r"^(a|aa|aaa)+[bc]*\s*$"
    made, problem = only(tmp_path, {"question": "?", "answer": pattern}, "regex")
    hard = "a" * 3000 + "!"
    began = time.monotonic()
    verdicts = [made.grade(problem, hard) for _ in range(6)]
    assert time.monotonic() - began < 2
    assert {v.score for v in verdicts} == {None}, verdicts[0]
    assert verdicts[0].reason == "the pattern takes too long"


@pytest.mark.parametrize(
    ("row", "checker", "said"),
    [
        ({"question": "?"}, None, r"rows\.jsonl:1: no answer"),
        ({"question": "?", "answer": ""}, None, r"rows\.jsonl:1: no answer"),
        ({"question": "?", "answer": []}, None, r"rows\.jsonl:1: no answer"),
        ({"answer": "x"}, None, r"rows\.jsonl:1: no question"),
        ({"question": "?", "answer": "x"}, "number", "is no number"),
        ({"question": "?", "answer": "("}, "regex", "the pattern"),
        ({"question": "?", "answer": "x" * 2000}, "regex", "more than 1000 characters"),
        ({"question": "?", "answer": "x", "rule": "nearly"}, None, "no checker 'nearly'"),
        ({"question": "?", "answer": "x", "rule": "f1>=2"}, None, "no checker|not in"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, checker, said):
    with pytest.raises(DataError, match=said):
        only(tmp_path, row, checker)


def test_a_checker_that_is_none_and_settings_that_do_nothing_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no checker 'fuzzy'"):
        only(tmp_path, {"question": "?", "answer": "x"}, "fuzzy")
    with pytest.raises(UsageError, match="--checker does nothing for the task 'units'"):
        get_graded_task("units", QuestionSettings(checker="exact"))
    assert get_graded_task("qa", QuestionSettings(checker="exact")).settings.checker == "exact"


def test_prompts_and_rows(tmp_path):
    made, problem = only(tmp_path, {"question": "Two plus two?", "answer": "4"})
    assert made.messages(problem, "direct") == problem.prompt
    assert len(made.messages(problem, "cot")) == 2 * len(WORKED) + 1
    assert made.answer_example(problem).segments[-1].text == "4"
    assert made.verify(problem, "2 + 2 = 4\nThe answer is 4").score == 1
    assert made.verify(problem, "2 + 3 = 4\nThe answer is 4").score == 0
    row = {"question": "?", "answer": "^[ab]+$", "checker": "regex", "example": "abba"}
    made, problem = only(tmp_path, row)
    assert made.answer_example(problem).segments[-1].text == "abba"


def test_gold_scores_one_and_shuffled_gold_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"{n}?", "answer": f"word{n} and more{n}"} for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rule in ("exact", "contains", "f1>=0.9"):
        made = task(rule)
        problems = made.problems("test", source=str(path))
        gold = [made.answer_text(p) for p in problems]
        assert all(made.grade(p, t).score == 1 for p, t in zip(problems, gold, strict=True))
        moved = gold[1:] + gold[:1]
        assert not any(made.grade(p, t).score for p, t in zip(problems, moved, strict=True))
