"""Lists of Socratic questions: written and read, checked, imported, asked for and graded."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.cli import main
from tunesmith.config import flags
from tunesmith.config.load import resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.formats import to_examples
from tunesmith.data.readers import Row, read_rows
from tunesmith.data.socratic import (
    FAULTS,
    alike,
    find_faults,
    is_question,
    is_valid,
    parse_list,
    question_type,
    render_list,
)
from tunesmith.data.socratic_import import gsm8k_row, list_row, mathdial_row
from tunesmith.errors import DataError, UsageError
from tunesmith.grading.rouge import common_subsequence, rouge_l, set_rouge_l
from tunesmith.tasks.registry import get_graded_task
from tunesmith.tasks.socratic import WORKED, SocraticTask
from tunesmith.types import Example, Origin

ASKED = "A farm has 12 hens that lay 3 eggs a day. How many eggs are sold in a week?"
GOOD = ["How many eggs do the hens lay in a day?", "How many days has a week?"]
FOREST = {
    "instruction": "What are the causes and consequences of deforestation?",
    "output": [
        "How does deforestation impact local ecosystems and biodiversity?",
        "What policy instruments can reduce the harms of deforestation?",
        "What mitigation or adaptation strategies exist for deforestation?",
    ],
}


def raw(fields: dict) -> Row:
    return Row(fields, Origin("rows.jsonl", 5))


def make(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- lists


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("1. Why?\n2. How?", ["Why?", "How?"]),
        ("1) Why?\n2) How?", ["Why?", "How?"]),
        ("(1) Why?\n[2] How?", ["Why?", "How?"]),
        ("- Why?\n* How?\n• When?", ["Why?", "How?", "When?"]),
        ("Q1: Why?\nQuestion 2: How?", ["Why?", "How?"]),
        ("Here they are:\n\n1. Why?\n\n2. How?\n\nI hope this helps.", ["Why?", "How?"]),
        ("1. Why is it\n   so?\n2. How?", ["Why is it so?", "How?"]),
        ("**1. Why?**\n**2. How?**", ["Why?", "How?"]),
        ("1. Why?\n2. How?\nAnswers:\n1. Because.\n2. So.", ["Why?", "How?"]),
        ("Why?\nNow how?\nThat is all", ["Why?", "Now how?"]),
        ("1. 2.5 times what?\n2. 3 - what?", ["2.5 times what?", "3 - what?"]),
        ("1. Define it\n2. Why?", ["Define it", "Why?"]),
        ("1. Why?\n1. How?", ["Why?", "How?"]),
        ("2.5 litres are enough", []),
        ("", []),
    ],
)
def test_lists_are_read_as_people_write_them(text: str, questions: list[str]) -> None:
    assert parse_list(text) == questions


@given(st.lists(st.text(st.characters(exclude_characters="*_")).filter(lambda t: t.split())))
@settings(deadline=None)
def test_a_written_list_is_read_back(questions: list[str]) -> None:
    assert parse_list(render_list(questions)) == [" ".join(q.split()) for q in questions]


@given(st.text())
@settings(deadline=None)
def test_any_text_is_read_without_a_fault(text: str) -> None:
    found = parse_list(text)
    assert all(item.strip() for item in found)
    find_faults(found, text, gold=text)


def test_training_renders_lists_as_the_task_reads_them(tmp_path: Path) -> None:
    _, [example] = to_examples(list(read_rows(make(tmp_path / "r.jsonl", FOREST))))
    assert example.segments[-1].text == render_list(FOREST["output"])


# --- what makes a list valid


def kinds(questions: list[str], **more: object) -> list[tuple[int | None, str]]:
    return [(f.position, f.kind) for f in find_faults(questions, ASKED, **more)]  # type: ignore[arg-type]


def test_a_good_list_has_no_faults() -> None:
    assert kinds([*GOOD, "How many eggs are sold in a week?"], gold="252") == []


@pytest.mark.parametrize(
    ("questions", "gold", "found"),
    [
        ([], None, [(None, "count")]),
        ([GOOD[0]] * 4, None, [(None, "count"), (1, "repeated"), (2, "repeated"), (3, "repeated")]),
        ([*GOOD, "Define the eggs"], None, [(2, "not a question")]),
        ([*GOOD, "In a day, how many eggs do hens lay?"], None, [(2, "repeated")]),
        ([*GOOD, "Are 252 eggs sold?"], "252", [(2, "direct")]),
        ([*GOOD, "Are 12 eggs sold?"], "12", []),
        ([*GOOD, "Is the answer is 5 eggs right?"], None, [(2, "direct")]),
        ([*GOOD, "Is 12 * 3 = 36 eggs?"], None, [(2, "direct")]),
        ([*GOOD, "Do the eggs go to the market hall?"], "The market hall", [(2, "direct")]),
        ([*GOOD, "Is it right that no eggs break?"], "no", []),
        (["How many eggs are sold in a week?", *GOOD], None, [(0, "premature")]),
        ([*GOOD, "Who painted the ceiling?"], None, [(2, "irrelevant")]),
    ],
)
def test_faults(questions: list[str], gold: str | None, found: list) -> None:
    assert kinds(questions, gold=gold, most=3) == found
    faults = find_faults(questions, ASKED, gold=gold, most=3)
    assert is_valid(faults) is all(kind == "irrelevant" for _, kind in found)
    assert {fault.kind for fault in faults} <= FAULTS.keys()


def test_one_content_word_makes_another_question() -> None:
    asked = "How many cards did Elaine collect in all of the {} month of the year?"
    assert not alike(asked.format("second"), asked.format("third"))
    assert alike(asked.format("second"), asked.format("second").upper())
    assert not alike("How much are 3 eggs?", "How much are 4 eggs?")


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What do you mean by fair?", "clarification"),
        ("How many eggs are left?", "clarification"),
        ("What are we assuming about the price?", "assumptions"),
        ("What if nobody buys any?", "assumptions"),
        ("Why is that so?", "reasons and evidence"),
        ("How do you know that it is the largest?", "reasons and evidence"),
        ("What would happen if the hens stopped laying?", "implications"),
        ("How does deforestation impact biodiversity: what are the consequences?", "implications"),
        ("Is there another way to see this?", "alternative viewpoints"),
        ("What would a critic say?", "alternative viewpoints"),
        ("How would critics argue?", "alternative viewpoints"),
        ("Shall we?", "other"),
    ],
)
def test_types_of_questions(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_questions_end_in_a_mark() -> None:
    assert all(map(is_question, ("Why?", "为什么？", "(Why?)", "«Why?»", "**Why?**")))
    assert not any(map(is_question, ("Why", "Why? Because.", "")))


# --- imports


def test_gsm8k_rows_become_lists_with_steps_beside_them() -> None:
    answer = "How many? ** 2*3=<<2*3=6>>6\nAnd ** 2**2=4 so\n#### 1,006"
    made = gsm8k_row(raw({"question": ASKED, "answer": answer}))
    assert made["output"] == ["How many?", "And"]
    assert made["steps"] == ["2*3=6", "2**2=4 so"]
    assert made["answer"] == "1,006"


@pytest.mark.parametrize(
    ("convert", "fields", "said"),
    [
        (gsm8k_row, {"question": "a", "answer": "b ** c"}, "no «#### …» at its end"),
        (gsm8k_row, {"question": "a", "answer": "#### 5"}, "no line «question"),
        (gsm8k_row, {"question": "a", "answer": "step\n#### 5"}, "'step' of the answer is no"),
        (gsm8k_row, {"question": "a"}, "'answer' is missing"),
        (gsm8k_row, {"question": " ", "answer": "b"}, "'question' is empty"),
        (list_row, {"instruction": "a"}, "'output' is missing"),
        (list_row, {"instruction": "a", "output": [1]}, "no text and no list of texts"),
        (list_row, {"instruction": 3, "output": []}, "'instruction' is int"),
        (mathdial_row, {"question": "a", "conversation": "Bob: hi"}, "turn 1 does not say who"),
        (
            mathdial_row,
            {"question": "a", "conversation": "Student: hi"},
            "the teacher says nothing",
        ),
    ],
)
def test_rows_of_another_form_name_their_line(convert: object, fields: dict, said: str) -> None:
    with pytest.raises(DataError) as caught:
        convert(raw(fields))  # type: ignore[operator]
    assert "rows.jsonl:5" in str(caught.value)
    assert said in str(caught.value)


def test_mathdial_turns_become_messages() -> None:
    turns = [
        "Teacher: (generic)Hi Mia: go on",
        "Mia: I think 4",
        "Teacher: (probing)Why?",
        "Teacher: (telling) It is 5",
        "Teacher: (focus)",
        "Student: Oh",
    ]
    fields = {
        "qid": 7,
        "question": "2 + 3?",
        "student_incorrect_solution": "4",
        "student_profile": "Mia is a 7th grade student.",
        "conversation": "|EOM|".join(turns),
    }
    made = mathdial_row(raw(fields))
    assert [(m["role"], m["content"]) for m in made["messages"]] == [
        ("user", "2 + 3?\n\nMy solution:\n4"),
        ("assistant", "Hi Mia: go on"),
        ("user", "I think 4"),
        ("assistant", "Why?\nIt is 5"),
    ]
    assert made["meta"] == {
        "moves": [["generic"], ["probing", "telling"]],
        "unanswered_end": True,
        "turns_without_text": 1,
        "qid": 7,
    }


def test_public_dialogues_lose_no_word_of_the_teacher(shared: Path) -> None:
    for row in read_rows(str(shared / "data" / "socratic" / "mathdial.jsonl")):
        made = mathdial_row(row)
        to_examples([Row({"messages": made["messages"]}, row.origin)])
        roles = [message["role"] for message in made["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        said = "".join(m["content"] for m in made["messages"] if m["role"] == "assistant")
        spoken = row.fields["conversation"].split("|EOM|")
        teacher = [turn.partition(":")[2] for turn in spoken if turn.startswith("Teacher")]
        moves = [f"({move})" for turn in made["meta"]["moves"] for move in turn]
        assert (
            sum(map(len, moves)) + len("".join(said.split()))
            >= sum(len("".join(turn.split())) for turn in teacher)
            - 10 * made["meta"]["turns_without_text"]
        )


# --- the command


def test_the_command_takes_out_faulty_questions_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": ASKED, "answer": f"{GOOD[0]} ** 36\nWrite it ** x\n{GOOD[1]} ** 7\n#### 252"},
        {"question": ASKED, "answer": "Simplify ** 1\n#### 252"},
        {"question": ASKED, "answer": "no form at all"},
    ]
    data, out = make(tmp_path / "d.jsonl", *rows), tmp_path / "o.jsonl"
    line = ["data", "socratic", "--dataset", data, "--form", "gsm8k", "--output", str(out)]
    assert main(line) == 0
    [kept] = [json.loads(text) for text in out.read_text().splitlines()]
    assert (kept["output"], kept["steps"], kept["answer"]) == (GOOD, ["36", "7"], "252")
    counts = json.loads(capsys.readouterr().out)
    assert counts["rows"] == 3 == counts["kept"] + sum(counts["removed"].values())
    assert counts["removed"] == {"not a question": 1, "unreadable": 1}
    assert counts["removed_questions"] == 1
    rejects = (tmp_path / "o-rejected.jsonl").read_text().splitlines()
    assert [json.loads(r)["line"] for r in rejects] == [1, 2, 3]
    assert json.loads(rejects[0])["question"] == "Write it"

    assert main([*line, "--overwrite", "--faulty", "row"]) == 3
    assert main([*line, "--overwrite", "--faulty", "keep"]) == 0
    assert len(json.loads(out.read_text().splitlines()[0])["output"]) == 3
    assert main([*line, "--overwrite", "--min-questions", "3"]) == 3
    assert main([*line, "--overwrite", "--max-questions", "2"]) == 3
    assert main([*line, "--overwrite", "--min-questions", "3", "--max-questions", "2"]) == 2
    assert main([*line, "--overwrite", "--max-rows", "1"]) == 0


def test_the_command_with_another_form_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(tmp_path / "d.jsonl", FOREST)
    out = str(tmp_path / "o.jsonl")
    assert main(["data", "socratic", "--dataset", data, "--form", "gsm8k", "--output", out]) == 3
    assert "'question' is missing" in capsys.readouterr().err
    assert main(["data", "socratic", "--dataset", data, "--output", out]) == 0
    assert [p.name for p in tmp_path.iterdir() if p.name != "d.jsonl"] == ["o.jsonl"]


def test_public_sets_are_imported(shared: Path, tmp_path: Path) -> None:
    for form, name in (("gsm8k", "gsm8k/test_socratic"), ("mathdial", "socratic/mathdial")):
        out = tmp_path / f"{form}.jsonl"
        source = str(shared / "data" / f"{name}.jsonl")
        line = ["data", "socratic", "--dataset", source, "--form", form, "--output", str(out)]
        assert main(line) == 0
        _, examples = to_examples(list(read_rows(str(out))))
        assert len(examples) >= 0.99 * len(list(read_rows(source)))


# --- ROUGE


def test_rouge_l_by_hand() -> None:
    one, other = ["police", "killed", "the", "gunman"], ["police", "kill", "the", "gunman"]
    assert common_subsequence(one, other) == 3
    assert rouge_l(one, other) == 0.75
    assert rouge_l(["the", "gunman", "kill", "police"], other) == 0.5
    assert rouge_l([], []) == 1
    assert rouge_l([], ["a"]) == 0


@given(*[st.lists(st.sampled_from("abc"), max_size=6)] * 2)
@settings(deadline=None)
def test_rouge_l_against_all_subsequences(one: list[str], other: list[str]) -> None:
    def parts(found: list[str]) -> set[tuple[str, ...]]:
        return {c for n in range(len(found) + 1) for c in itertools.combinations(found, n)}

    longest = max(len(part) for part in parts(one) & parts(other))
    assert common_subsequence(one, other) == longest == common_subsequence(other, one)
    assert 0 <= rouge_l(one, other) <= 1


@given(*[st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=4)] * 2)
@settings(deadline=None)
def test_the_assignment_is_the_best_one(found: list[list[str]], wanted: list[list[str]]) -> None:
    score = set_rouge_l(found, wanted)
    assert set_rouge_l(wanted, found) == pytest.approx(score)
    assert set_rouge_l(found, found[::-1]) == 1
    if found and wanted:
        few, many = sorted((found, wanted), key=len)
        best = max(
            sum(rouge_l(one, other) for one, other in zip(few, chosen, strict=True))
            for chosen in itertools.permutations(many, len(few))
        )
        assert score == pytest.approx(2 * best / (len(found) + len(wanted)))


# --- the task


@pytest.fixture
def task() -> SocraticTask:
    found = get_graded_task("socratic")
    assert isinstance(found, SocraticTask)
    return found


def test_gold_scores_one_and_shuffled_gold_near_chance(
    task: SocraticTask, shared: Path, tmp_path: Path
) -> None:
    source = str(shared / "data" / "gsm8k" / "test_socratic.jsonl")
    out = str(tmp_path / "rows.jsonl")
    main(["data", "socratic", "--dataset", source, "--form", "gsm8k", "--output", out])
    problems = task.problems("test", source=out)
    assert len(problems) == 657
    assert {task.grade(p, p.reference).score for p in problems} == {1.0}
    assert {task.verify(p, p.reference).score for p in problems} == {1.0}
    mixed = [p.reference for p in problems]
    random.Random(0).shuffle(mixed)
    scores = [task.grade(p, text).score or 0.0 for p, text in zip(problems, mixed, strict=True)]
    # Unrelated questions still share «how many … does …»: that is what chance is here.
    assert sum(scores) / len(scores) < 0.25


def test_raw_gsm8k_rows_are_read_and_rows_without_a_question_named(
    task: SocraticTask, tmp_path: Path
) -> None:
    row = {"question": ASKED, "answer": f"{GOOD[0]} ** 36\n{GOOD[1]} ** 7\n#### 252"}
    [problem] = task.problems("test", source=make(tmp_path / "r.jsonl", row))
    assert problem.reference == render_list(GOOD)
    assert problem.meta["answer"] == "252"
    bad = make(tmp_path / "b.jsonl", row, {"question": "a", "answer": "Simplify ** x\n#### 1"})
    with pytest.raises(DataError, match=r"b\.jsonl:2: none of the 1 items is a question"):
        task.problems("test", source=bad)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (render_list(FOREST["output"][::-1]), 1, 1),
        (render_list(FOREST["output"][:2]), 0.8, 0.8),
        (render_list([*FOREST["output"], "What is the capital of France?"]), 0.85, 0.95),
        ("Deforestation is caused by logging.", 0, 0),
        ("1. Logging\n2. Farming", 0, 0),
        ("", 0, 0),
        ("\x00￿ 1. ?", 0, 0.2),
    ],
)
def test_grades(task: SocraticTask, tmp_path: Path, text: str, low: float, high: float) -> None:
    [problem] = task.problems("train", source=make(tmp_path / "r.jsonl", FOREST))
    score = task.grade(problem, text).score
    assert score is not None
    assert low - 1e-9 <= score <= high + 1e-9


def test_only_sound_lists_are_verified(task: SocraticTask, tmp_path: Path) -> None:
    row = {"instruction": ASKED, "output": GOOD, "answer": "252"}
    [problem] = task.problems("train", source=make(tmp_path / "r.jsonl", row))
    assert task.verify(problem, render_list(GOOD)).score == 1
    assert task.verify(problem, "no list").score == 0
    for bad, reason in (
        ("Say it", "not a question"),
        (GOOD[0], "repeated"),
        ("Is it 252?", "direct"),
    ):
        verdict = task.verify(problem, render_list([*GOOD, bad]))
        assert (verdict.score, verdict.reason) == (0, reason)


def test_prompts_and_training_rows_agree(task: SocraticTask, tmp_path: Path) -> None:
    row = {**FOREST, "input": "In Brazil."}
    source = make(tmp_path / "r.jsonl", row, row)
    problems = task.problems("train", source=source)
    assert len({problem.id for problem in problems}) == 2
    example = task.answer_example(problems[0])
    _, [read, _] = to_examples(list(read_rows(source)))
    assert example == Example(read.segments, read.origin)
    assert task.messages(problems[0], "direct") == example.segments[:-1]
    asked = task.messages(problems[0], "asked")
    assert len(asked) == 2 * len(WORKED) + 1
    assert asked[-1].text.endswith("In Brazil.")
    with pytest.raises(UsageError, match="no prompt style 'cot'"):
        task.messages(problems[0], "cot")


def test_worked_examples_are_valid_lists() -> None:
    for instruction, questions in WORKED:
        assert is_valid(find_faults(questions, instruction))


def test_limits_folders_and_missing_sources(task: SocraticTask, tmp_path: Path) -> None:
    rows = [{**FOREST, "instruction": f"What about {n}?"} for n in range(9)]
    make(tmp_path / "test.jsonl", *rows)
    folder = str(tmp_path)
    drawn = task.problems("test", source=folder, limit=4, seed=1)
    assert drawn == task.problems("test", source=folder, limit=4, seed=1)
    assert drawn != task.problems("test", source=folder, limit=4, seed=2)
    assert len(task.problems("test", source=folder, limit=40)) == 9
    with pytest.raises(UsageError, match="no questions of its own"):
        task.problems("test")
    with pytest.raises(UsageError, match="no split 'ood'"):
        task.problems("ood", source=folder)


# --- settings


def train(line: str) -> FineTuningConfig:
    parsed = flags.parse(FineTuningConfig, line.split())
    return resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults).options


def test_the_rate_is_the_tasks_own_with_lora_and_a_rank_keeps_the_ratio() -> None:
    assert train("--task socratic --lora").learning_rate == 5e-5
    assert train("--task socratic --use_lora False").lora is False
    assert train("--task socratic --lora_rank 16").lora_alpha == 4


def test_a_training_run_asks_its_held_out_instructions(tmp_path: Path, task: SocraticTask) -> None:
    from tunesmith.workflows.rows import gather

    rows = [{**FOREST, "instruction": f"What about {n}?"} for n in range(20)]
    source = make(tmp_path / "r.jsonl", *rows)
    data = gather(train(f"--task socratic --train_file {source}"), task)
    assert (len(data.train), len(data.held_out), len(data.questions)) == (18, 2, 2)
    asked = {problem.prompt[0].text for problem in data.questions}
    assert asked == {example.segments[0].text for example in data.held_out}
    named = [{"thema": r["instruction"], "fragen": r["output"]} for r in rows]
    source = make(tmp_path / "n.jsonl", *named)
    columns = "--columns instruction=thema,output=fragen"
    data = gather(train(f"--task socratic --train_file {source} {columns}"), task)
    assert (len(data.train), data.questions) == (18, [])
