"""The tasks humaneval and mbpp: reading, asking, finding the program, grading it, in order."""

from __future__ import annotations

import collections
import json
import threading
import time
from pathlib import Path

import pytest

from tunesmith.cli import main
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.attempts import in_order
from tunesmith.grading.programs import extracted
from tunesmith.tasks.base import QuestionSettings
from tunesmith.tasks.programs import HumanEvalTask, MbppTask
from tunesmith.tasks.registry import get_graded_task

HEAD = 'def half(x):\n    return x / 2\n\ndef f(x: int) -> int:\n    """One more."""\n'
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": HEAD,
    "entry_point": "f",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(c):\n    assert c(1) == 2\n    assert half(c(3)) == 2",
}
MBPP = {
    "task_id": 1,
    "text": "Write a function to add one.",
    "code": "import math\r\ndef f(x):\r\n    return x + 1",
    "test_list": ["assert f(1) == 2", "assert math.isclose(f(2), 3)"],
    "test_setup_code": "",
    "challenge_test_list": ["assert f(-1) == 0"],
}


def problem(task, row: dict[str, object], folder: Path):
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    [found] = task.problems("test", source=str(file))
    return found


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("```python\ndef f(x):\n    return x + 1\n```", 1),
        ("Here:\n```python\ndef f(x):\n    return x + 1\n```\nIt adds one.", 1),
        ("    return x + 1\n", 1),
        ("return x + 1\n", 1),
        ("    y = x\n    return y + 1\n\nprint(f(1)", 1),
        ("def f(x):\n    return x + 1\n\nThis adds one.", 1),
        ("```python\ndef f(x): return x\n```\nNo:\n```\ndef f(x): return x + 1\n```", 1),
        ("```python\ndef f(x):\n    return x + 1\n```\n```python\nprint(f(1))\n```", 1),
        ("```\n    return x + 1\n```", 1),
        ("```python\ndef g(x): return x + 1\n```\n```python\ndef f(x): return g(x)\n```", 1),
        ("```python\ndef f(x): return 0\n```\n```python\ndef f(x): return x + 1\n```", 1),
        ("```python\nfrom __future__ import annotations\ndef f(x: N): return x + 1\n```", 1),
        ("```python\ndef f(x):\n    return x + 1```\nIt adds one.", 1),
        ("```python\ndef f(x):\n    # see ```f(1)```\n    return x + 1\n```", 1),
        ("1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```", 1),
        (
            "- g:\n  ```\n  def g(x): return 1\n  ```\n- f:\n  ```\n  def f(x): return x + g(x)```",
            1,
        ),
        ("  ```python\n      y = x\n      return y + 1\n  ```", 1),
        ("```python\ndef f(x):\n    return x\n```", 0),
        ("I cannot.", 0),
        ("", 0),
    ],
)
def test_the_program_of_an_answer_is_found_and_run(tmp_path, answer, score):
    task = HumanEvalTask()
    assert task.grade(problem(task, HUMANEVAL, tmp_path), answer).score == score


def test_a_program_cannot_replace_what_the_tests_use(tmp_path):
    task = HumanEvalTask()
    asked = problem(task, HUMANEVAL, tmp_path)
    forged = "```python\ndef half(x): return 2\ndef f(x): return 2\n```"
    assert task.grade(asked, forged).score == 0
    other = MbppTask()
    asked = problem(other, MBPP, tmp_path)
    forged = "class math:\n    isclose = lambda *a: True\ndef f(x): return 2"
    assert other.grade(asked, forged).score == 0


def test_the_challenge_tests_count_for_training_only(tmp_path):
    task = MbppTask()
    asked = problem(task, MBPP, tmp_path)
    special = "def f(x): return {1: 2, 2: 3}.get(x)"
    assert task.grade(asked, special).score == 1
    assert task.verify(asked, special).score == 0
    assert task.verify(asked, task.answer_text(asked)).score == 1


def test_the_reason_and_the_program_are_kept(tmp_path):
    task = MbppTask()
    verdict = task.grade(problem(task, MBPP, tmp_path), "def f(x): return x")
    assert verdict.answer == "def f(x): return x"
    assert verdict.reason == "assertion: assert f(1) == 2"


def test_a_program_is_run_once(tmp_path):
    task = MbppTask()
    asked = problem(task, MBPP, tmp_path)
    for _ in range(2):
        task.grade(asked, "def f(x): return x + 1")
    assert task.told().startswith("Programs run: 1, ")


def test_broken_tests_are_ungraded(tmp_path):
    task = MbppTask()
    asked = problem(task, {**MBPP, "test_list": ["assert 2 == 2"]}, tmp_path)
    assert task.grade(asked, "def f(x): return x").score is None


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (HumanEvalTask, {**HUMANEVAL, "test": "def check(:"}, "no Python"),
        (HumanEvalTask, {"prompt": "x", "entry_point": "f"}, "no prompt, entry_point and test"),
        (MbppTask, {**MBPP, "test_list": ["assert ("]}, "no Python"),
        (MbppTask, {**MBPP, "test_list": []}, "no text and test_list"),
    ],
)
def test_rows_that_cannot_be_tested_are_named(task, row, said, tmp_path):
    with pytest.raises(DataError, match=f"rows.jsonl:1.*{said}"):
        problem(task(), row, tmp_path)


def test_worse_than_any_python_is_no_program():
    assert extracted("x" * 200_000, "", ["f"]) is None
    deep = "(" * 5000
    assert extracted(deep, "", ["f"]) == deep


def test_results_keep_the_order_and_come_several_at_once():
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 * (3 - item % 3))
        with lock:
            running -= 1
        return item * 2

    assert [*in_order(range(20), work, 2)] == [(n, n * 2) for n in range(20)]
    assert most == 2


def test_what_was_answered_is_graded_before_an_error_goes_on():
    def answers():
        yield from range(3)
        raise ValueError("the server is gone")

    seen = []
    stream = in_order(answers(), str, 2)
    with pytest.raises(ValueError, match="gone"):
        collections.deque(map(seen.append, stream))
    assert seen == [(0, "0"), (1, "1"), (2, "2")]


def test_unsafe_exec_is_refused_where_nothing_is_run():
    with pytest.raises(UsageError, match="--unsafe-exec does nothing"):
        get_graded_task("maths", QuestionSettings(unsafe_exec=True))


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_unsafe_exec_reaches_the_task(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunesmith.grading.sandbox.run._possible", lambda: ("none", "why not"))
    Path("rows.jsonl").write_text(json.dumps(MBPP) + "\n")
    asked = [command, "--task", "mbpp", "--dataset", "rows.jsonl", "--model", "nowhere"]
    asked += ["--output", "s.jsonl"] if command == "sample" else []
    assert main(asked) == 2
    assert "why not" in capsys.readouterr().err
    assert main([*asked, "--unsafe-exec"]) != 2
    assert "UNSAFE" in capsys.readouterr().err


def test_a_program_may_take_the_name_of_a_built_in_function(tmp_path):
    row = {"text": "Add.", "code": "def sum(a, b): return a + b",
           "test_list": ["assert sum(10, 15) == 25"]}  # fmt: skip
    task = MbppTask()
    asked = problem(task, row, tmp_path)
    assert task.grade(asked, row["code"]).score == 1
    assert task.grade(asked, "def sum(a, b): return a").score == 0


def test_without_a_program_to_compare_with_modules_of_tests_are_the_real_ones(tmp_path):
    row = {"text": "Halve.", "test_imports": ["import math"],
           "test_list": ["assert math.isclose(f(3), 1.5)"]}  # fmt: skip
    task = MbppTask()
    asked = problem(task, row, tmp_path)
    forged = "class math: isclose = lambda *a: True\ndef f(x): return 0"
    assert task.grade(asked, forged).score == 0
    assert task.grade(asked, "def f(x): return x / 2").score == 1
