from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.base import UNCLOSED, GradedTask, Task
from tunesmith.tasks.maths import WORKED, MathsTask, final_answer, gold_number
from tunesmith.tasks.registry import get_graded_task, get_task, task_names
from tunesmith.types import Problem, Segment

TASK = MathsTask()
ROWS = [
    {"question": "How many legs have 4 dogs?", "answer": "4*4=<<4*4=16>>16 legs.\n#### 16"},
    {"question": "Half of 7?", "answer": "7/2 = <<7/2=3.5>>3.5\n#### 3.5"},
    {"question": "A house?", "answer": "It is $1,234,000.\n#### 1,234,000"},
]


def problem(reference: str) -> Problem:
    return Problem("p", "maths", (Segment("user", "?"),), reference)


def folder_of(tmp_path, **splits):
    for name, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "answer", "place"),
    [
        ("9 * 2 = 18\n#### 18", "18", "after ####"),
        ("#### 1,234.50.\nThe answer is 7", "1,234.50.", "after ####"),
        ("I say <answer>$18</answer> or 19", "$18", "in <answer>"),
        ("So the answer is: **18** eggs.\nThanks 5", "**18** eggs.", "after «the answer is»"),
        ("Final answer: -$5", "-$5", "after «the answer is»"),
        ("2+2=<<2+2=4>>4\nA: 4", "4", "after A:"),
        ("first 3, then 4 eggs", "4", "the last number"),
        ("#### none, so A: 5", "5", "the last number"),
        ("no idea", None, "nowhere"),
        ("", None, "nowhere"),
    ],
)
def test_the_final_answer_is_found(text, answer, place):
    assert final_answer(text) == (answer, place)


@pytest.mark.parametrize(
    "text",
    ["#### 1250", "#### 1,250", "#### $1,250.00", "#### 1250.", "#### 1250 dollars", "A: 2500/2"],
)
def test_one_number_written_in_many_ways(text):
    assert TASK.grade(problem("1250"), text).score == 1


@pytest.mark.parametrize(
    "text", ["#### 125", "#### 1250.01", "#### -1250", "#### 12 50", "", "nan"]
)
def test_another_number_is_wrong_and_nothing_is_an_exception(text):
    assert TASK.grade(problem("1250"), text).score == 0


def test_hostile_answers_are_wrong_at_once():
    for text in (
        "#### 1e999999999",
        "#### 1/0",
        "#" * 9000,
        "9" * 100_000,
        "#### ____",
        "<<" * 5000,
    ):
        assert TASK.grade(problem("5"), text).score == 0


def test_only_a_marked_answer_with_true_equations_is_trained_on():
    assert TASK.verify(problem("18"), "9 * 2 = 18\n#### 18").score == 1
    assert TASK.verify(problem("18"), "9 x 2 = <<9*2=18>>18\n#### 18").score == 1
    assert TASK.verify(problem("6"), "2/3 of 9 = 6\n#### 6").score == 1
    assert TASK.verify(problem("240"), "300 x 4/5 = 240\n#### 240").score == 1
    assert TASK.verify(problem("7"), "2/3 of 9 = 7\n#### 7").score == 0
    assert TASK.verify(problem("18"), "9 * 3 = 18\n#### 18").score == 0
    assert "false" in TASK.verify(problem("18"), "9 * 3 = 18\n#### 18").reason
    assert TASK.verify(problem("18"), "It is 18").score == 0
    assert TASK.verify(problem("18"), "9 * 2 = 18\n#### 19").score == 0
    assert TASK.verify(problem("18"), "1/0 = 18\n#### 18").score == 0


def test_worked_examples_are_right_by_their_own_rule():
    for question, solution in WORKED:
        reference = solution.rpartition("#### ")[2]
        assert TASK.verify(problem(reference), solution).score == 1, question


def test_prompts():
    asked = problem("1")
    assert TASK.messages(asked, "direct") == asked.prompt
    worked = TASK.messages(asked, "cot")
    assert [segment.role for segment in worked] == ["user", "assistant"] * len(WORKED) + ["user"]
    assert worked[-1:] == asked.prompt
    assert all(segment.weight == 0 for segment in worked)
    with pytest.raises(UsageError, match="no prompt style 'tree'"):
        TASK.messages(asked, "tree")


def test_a_file_is_read_as_it_stands(tmp_path):
    source = folder_of(tmp_path, train=ROWS) + "/train.jsonl"
    problems = TASK.problems("test", source=source)
    assert [p.reference for p in problems] == ["16", "3.5", "1234000"]
    assert [p.prompt[0].text for p in problems] == [row["question"] for row in ROWS]
    assert problems == TASK.problems("train", source=source)
    example = TASK.answer_example(problems[0])
    assert example.segments[-1] == Segment("assistant", "4*4=16 legs.\n#### 16", 1.0)
    assert (example.origin.line, example.segments[0].weight) == (1, 0.0)
    drawn = TASK.problems("test", source=source, limit=2, seed=1)
    assert drawn == TASK.problems("test", source=source, limit=2, seed=1)
    assert len(drawn) == 2


def test_gold_scores_one_and_shuffled_gold_next_to_nothing(tmp_path):
    rows = [
        {"question": f"{n}?", "answer": f"So {n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(200)
    ]
    problems = TASK.problems("test", source=folder_of(tmp_path, test=rows))
    gold = [TASK.answer_example(p).segments[-1].text for p in problems]
    assert all(TASK.verify(p, text).score == 1 for p, text in zip(problems, gold, strict=True))
    random.Random(0).shuffle(gold)
    right = sum(TASK.grade(p, text).score for p, text in zip(problems, gold, strict=True))
    assert right <= 6


def test_a_folder_without_a_dev_file_sets_a_tenth_of_train_aside(tmp_path):
    rows = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(400)]
    source = folder_of(tmp_path, train=rows, test=ROWS)
    train, dev = (TASK.problems(split, source=source) for split in ("train", "dev"))
    assert len(train) + len(dev) == 400
    assert not {p.id for p in train} & {p.id for p in dev}
    assert 20 <= len(dev) <= 60
    assert len(TASK.problems("test", source=source)) == 3
    folder_of(tmp_path, dev=ROWS[:1])
    assert len(TASK.problems("train", source=source)) == 400
    assert len(TASK.problems("dev", source=source)) == 1


def test_a_saved_data_set_has_the_same_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(60)]
    saved = DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(ROWS)})
    saved.save_to_disk(str(tmp_path / "saved"))
    source = str(tmp_path / "saved")
    train, dev, test = (TASK.problems(split, source=source) for split in TASK.splits)
    assert (len(train) + len(dev), len(test)) == (60, 3)
    assert dev


def test_a_question_that_comes_twice_stays_two_problems(tmp_path):
    source = folder_of(tmp_path, test=[ROWS[0], ROWS[0]])
    assert len({p.id for p in TASK.problems("test", source=source)}) == 2


def test_an_answer_without_the_marker_gets_it_for_training(tmp_path):
    source = folder_of(tmp_path, test=[{"question": "?", "answer": "It is 1,200."}])
    (only,) = TASK.problems("test", source=source)
    assert TASK.answer_example(only).segments[-1].text == "It is 1,200.\n#### 1200"


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(UsageError, match="no questions of its own"):
        TASK.problems("test")
    with pytest.raises(UsageError, match="no split 'tset'"):
        TASK.problems("tset", source=str(tmp_path))
    with pytest.raises(DataError, match="no file for the test split"):
        TASK.problems("test", source=str(tmp_path))
    with pytest.raises(DataError, match="neither a dev nor a train file"):
        TASK.problems("dev", source=str(tmp_path))
    source = folder_of(
        tmp_path, test=[ROWS[0], {"prompt": "?"}], train=[{"question": "?", "answer": "x"}]
    )
    with pytest.raises(DataError, match=r"test\.jsonl:2: no question and answer"):
        TASK.problems("test", source=source)
    with pytest.raises(DataError, match=r"train\.jsonl:1.*no number"):
        TASK.problems("train", source=source)


def test_agreement_with_the_published_judgements(shared):
    """Every solution of every published model is judged as its authors judged it."""
    path = shared / "data" / "gsm8k" / "example_model_solutions.jsonl"
    judged = 0
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            asked = problem(gold_number(row["ground_truth"]))
            for model in row.keys() - {"question", "ground_truth"}:
                verdict = TASK.grade(asked, row[model]["solution"])
                assert bool(verdict.score) == row[model]["is_correct"], row[model]["solution"]
                judged += 1
    assert judged == 2640


def test_right_answers_with_false_equations_in_published_solutions(shared):
    """What the strict verifier keeps out of training that the task's own rule counts as right."""
    right = refused = 0
    path = shared / "data" / "gsm8k" / "example_model_solutions.jsonl"
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            asked = problem(gold_number(row["ground_truth"]))
            for model in row.keys() - {"question", "ground_truth"}:
                text = row[model]["solution"]
                right += TASK.grade(asked, text).score == 1
                refused += TASK.verify(asked, text).reason.endswith("is false")
    print(f"{refused} of {right} right solutions hold a false equation")
    assert (right, refused) == (995, 24)


def test_right_answers_with_false_equations_in_published_rationales(shared):
    """Those made after seeing the answer are where the steps are wrong (STaR's rationalisation)."""
    counts = Counter()
    path = shared / "data" / "rationales" / "arithmetic_rationales.jsonl"
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            asked = problem(row["question"]["answer"])
            text = f"{row['rationale']}\n#### {row['answer']}"
            assert TASK.grade(asked, text).score == 1
            is_false = TASK.verify(asked, text).reason.endswith("is false")
            counts[row["source"], is_false] += 1
    print(dict(counts))
    assert counts == {
        ("generated", False): 154,
        ("rationalized", False): 97,
        ("rationalized", True): 249,
    }


def test_published_gold_solutions_pass(shared):
    problems = TASK.problems("test", source=str(shared / "data" / "gsm8k"))
    solutions = [str(p.meta["solution"]) for p in problems]
    assert all(TASK.grade(p, s).score == 1 for p, s in zip(problems, solutions, strict=True))
    strict = sum(TASK.verify(p, s).score == 1 for p, s in zip(problems, solutions, strict=True))
    assert strict > 0.95 * len(problems)
    assert not any("<<" in solution for solution in solutions)


# --- the table of tasks


def test_every_task_of_the_table_is_what_it_says():
    for name in task_names():
        task = get_task(name)
        assert isinstance(task, Task)
        assert (task.name, bool(task.summary)) == (name, True)
    assert isinstance(get_graded_task("maths"), GradedTask)


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(UsageError, match="--task maths") as caught:
        get_task("math")
    assert "units" in caught.value.expected
    with pytest.raises(UsageError, match="cannot be graded"):
        get_graded_task("chat")


# --- other layouts, other ways to write a number


@pytest.mark.parametrize("case", [str, str.lower])
def test_svamp_is_read(tmp_path, case):
    rows = [
        {
            "ID": "chal-1",
            "Body": "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars",
            "Question": "How much do you have to pay to buy each pack?",
            "Equation": "( 76.0 - 25.0 )",
            "Answer": 51.0,
        },
        {"Body": "A.", "Question": "B?", "Equation": "", "Answer": "7"},
    ]
    path = tmp_path / "SVAMP.json"
    path.write_text(json.dumps([{case(k): v for k, v in row.items()} for row in rows]))
    first, second = TASK.problems("test", source=str(path))
    assert first.reference == "51"
    assert first.prompt[0].text.endswith(
        "of 25 dollars. How much do you have to pay to buy each pack?"
    )
    assert TASK.answer_example(first).segments[-1].text == "76 - 25 = 51\n#### 51"
    assert TASK.answer_example(second).segments[-1].text == "#### 7"
    assert all(TASK.verify(p, str(p.meta["solution"])).score == 1 for p in (first, second))


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("1234.5", "#### 1,234.5 km"),
        ("3/4", "The answer is 3/4."),
        ("3/4", "\\boxed{\\frac{3}{4}}"),
        ("3/4", "#### ¾"),
        ("3/2", "#### 1 1/2 cups"),
        ("0.75", "THE ANSWER IS 75%"),
        ("50", "So we get $\\boxed{50\\%}$."),
        ("-5", "The answer is −5"),
        ("-5", "#### –5"),
        ("5", "\\boxed{\\$5}"),
        ("25", "#### ２５"),
        ("25", "#### ٢٥"),
        ("1000", "\\boxed{1{,}000\\text{ km}}"),
    ],
)
def test_numbers_as_people_write_them(gold, text):
    assert TASK.grade(problem(gold), text).score == 1


@pytest.mark.parametrize(
    ("gold", "text"),
    [("50", "#### 0.5"), ("0.5", "#### 5%"), ("52", "#### 5²"), ("5", "\\boxed{")],
)
def test_other_numbers_stay_wrong(gold, text):
    assert TASK.grade(problem(gold), text).score == 0


def test_a_gold_percentage_is_also_a_share(tmp_path):
    source = folder_of(tmp_path, test=[{"question": "?", "answer": "Half.\n#### 50%"}])
    (only,) = TASK.problems("test", source=source)
    scores = [
        TASK.grade(only, text).score for text in ("#### 50%", "#### 50", "#### 0.5", "#### 5")
    ]
    assert scores == [1, 1, 1, 0]


def test_a_plan_comes_before_the_steps():
    asked = problem("1")
    plan, cot = TASK.messages(asked, "plan"), TASK.messages(asked, "cot")
    assert [s.role for s in plan] == [s.role for s in cot]
    for planned, worked in zip(plan[1:-1:2], cot[1:-1:2], strict=True):
        first, _, rest = planned.text.partition("\n")
        assert first.startswith("Plan: ")
        assert rest == worked.text
        gold = worked.text.rpartition("#### ")[2]
        assert TASK.verify(problem(gold), planned.text).score == 1


def test_only_what_stands_behind_the_thinking_is_graded():
    wrong_steps = "<think>9 * 3 = 18, no: #### 5</think>"
    assert TASK.verify(problem("18"), wrong_steps + "9 * 2 = 18\n#### 18").score == 1
    assert TASK.grade(problem("5"), wrong_steps + "none").score == 0
    assert TASK.grade(problem("18"), "so, 2 * 9</think>\n#### 18").score == 1
    for text in ("<think>#### 18", "<think>a</think><think>#### 18"):
        assert TASK.grade(problem("18"), text) == UNCLOSED
        assert TASK.verify(problem("18"), text) == UNCLOSED
