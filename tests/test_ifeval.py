"""The ifeval task: its rows, its verdicts, its figures, and the commands."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.following import following
from tunesmith.evaluate.metrics import Summary, summarise
from tunesmith.evaluate.records import Header, ResultSet, load
from tunesmith.grading.constraints import language
from tunesmith.grading.constraints.checks import read_constraints
from tunesmith.grading.constraints.registry import KINDS
from tunesmith.tasks.base import QuestionSettings
from tunesmith.tasks.ifeval import IfevalTask
from tunesmith.types import Attempt, StopReason

TASK = IfevalTask()
NO_COMMA = "punctuation:no_comma"
TITLE = "detectable_format:title"
WORDS = "length_constraints:number_words"
ROW = {
    "key": 1,
    "prompt": "Write on rain. No commas. At least 3 words. Title it.",
    "instruction_id_list": [NO_COMMA, WORDS, TITLE],
    "kwargs": [{}, {"relation": "at least", "num_words": 3, "letter": None}, {}],
}
NONSENSE = "The quick brown fox jumps over the lazy dog. It was a sunny day in May."


def write(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def only(folder, row=ROW):
    (problem,) = TASK.problems("test", source=write(folder, row))
    return problem


def attempts_at(problems, texts):
    return [
        Attempt(p.id, i, 0, text, (1,), StopReason.STOP_TOKEN, TASK.grade(p, text))
        for p, answers in zip(problems, texts, strict=True)
        for i, text in enumerate(answers)
    ]


def result_of(problems, texts):
    made = attempts_at(problems, texts)
    header = Header("a", "ifeval", "test", "direct", "m", 0, planned=len(made))
    return ResultSet(header, tuple(made), {p.id: p for p in problems})


def test_every_row_of_the_public_data_is_known(shared):
    lines = (shared / "data" / "ifeval" / "input_data.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = [read_constraints(row["instruction_id_list"], row["kwargs"]) for row in rows]
    assert len(found) == 271
    assert {one.kind for constraints in found for one in constraints} == KINDS.keys()
    padding = dict.fromkeys(name for kind in KINDS.values() for name in kind.parameters)
    for row, constraints in zip(rows, found, strict=True):
        padded = [padding | kwargs for kwargs in row["kwargs"]]
        assert read_constraints(row["instruction_id_list"], padded) == constraints


def test_the_public_data_gives_little_to_answers_that_ignore_it(shared):
    if importlib.util.find_spec(language.PACKAGE) is None:
        pytest.skip("no detector of languages")
    problems = TASK.problems("test", source=str(shared / "data" / "ifeval" / "input_data.jsonl"))
    assert len({problem.id for problem in problems}) == 271
    assert sum(TASK.grade(problem, "").score for problem in problems) == 0
    assert sum(TASK.grade(problem, NONSENSE).score for problem in problems) < 0.12 * 271
    assert sum(TASK.grade(problem, "a, b").score for problem in problems) < 0.12 * 271
    others = [other.prompt[0].text for other in problems[1:] + problems[:1]]
    graded = [TASK.grade(problem, text) for problem, text in zip(problems, others, strict=True)]
    assert sum(verdict.score for verdict in graded) < 0.12 * 271


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("<<Rain>>\nIt falls down.", 1, "follows 3 of 3"),
        ("<think>a, b</think><<Rain>> it falls", 1, "follows 3 of 3"),
        ("Rain, <<Rain>>\nIt falls, down.", 0, f"follows 2 of 3, not {NO_COMMA}"),
        ("Sure, here:\n<<Rain>>\nIt falls.", 0, f"follows 2 of 3, not {NO_COMMA} (only loosely)"),
        ("a, b", 0, f"follows 0 of 3, not {NO_COMMA}, {WORDS}, {TITLE}"),
        ("", 0, "no answer"),
        ("<think><<Rain>> it falls", 0, "the thinking is not closed"),
    ],
)
def test_a_verdict_asks_for_all_constraints_and_names_those_not_followed(
    tmp_path, text, score, reason
):
    problem = only(tmp_path)
    verdict = TASK.grade(problem, text)
    assert (verdict.score, verdict.reason) == (score, reason)
    assert TASK.verify(problem, text) == verdict
    assert (verdict.answer is None) is (reason in ("no answer", "the thinking is not closed"))


@pytest.mark.parametrize(
    ("change", "said", "expected"),
    [
        ({"prompt": " "}, "no prompt", "instruction_id_list"),
        ({"instruction_id_list": None}, "no list of constraints", "instruction_id_list"),
        ({"instruction_id_list": [NO_COMMA, WORDS, "format:title"]}, "'format:title'", "title"),
        ({"kwargs": [{}]}, "3 constraints and 1 kwargs", "as many"),
        ({"kwargs": [{}, {"relation": "at least"}, {}]}, "lacks its parameter 'num_words'",
         "relation, num_words"),
        ({"kwargs": [{}, {"relation": "about", "num_words": 3}, {}]}, "'about'", "'less than'"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_checked_is_refused_before_anything_is_generated(
    tmp_path, monkeypatch, capsys, change, said, expected
):
    source = write(tmp_path, ROW, ROW | change)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: ") as caught:
        TASK.problems("test", source=source)
    assert said in caught.value.found
    assert expected in caught.value.expected
    monkeypatch.chdir(tmp_path)
    # There is no such model, and the row is refused without looking for it.
    assert main(["eval", "--task", "ifeval", "--dataset", source, "--model", "nowhere"]) == 3
    told = capsys.readouterr().err
    assert "rows.jsonl:2" in told
    assert "Traceback" not in told


def test_a_missing_detector_is_said_before_anything_is_generated(tmp_path, monkeypatch):
    row = ROW | {"instruction_id_list": ["change_case:english_lowercase"], "kwargs": [{}]}
    monkeypatch.setattr(language, "PACKAGE", "no_such_detector")
    with pytest.raises(UsageError, match="is not installed"):
        TASK.problems("test", source=write(tmp_path, row))
    assert TASK.problems("test", source=write(tmp_path, ROW))


def test_own_rows_may_have_other_columns_and_no_kwargs(tmp_path):
    row = {"Frage": "Reimt.", "regeln": [NO_COMMA, TITLE]}
    task = IfevalTask()
    task.settings = QuestionSettings({"prompt": "Frage", "instruction_id_list": "regeln"})
    (problem,) = task.problems("test", source=write(tmp_path, row))
    assert problem.reference == f"{NO_COMMA}; {TITLE}"
    assert task.messages(problem, "direct")[0].text == "Reimt."
    assert task.hint(problem) is None
    with pytest.raises(UsageError, match="no prompt style 'cot'"):
        task.messages(problem, "cot")


def test_a_row_is_trained_on_its_own_answer(tmp_path):
    gold = "<<Rain>>\nIt falls down."
    problem = only(tmp_path, ROW | {"answer": gold})
    assert TASK.answer_example(problem).segments[-1].text == gold
    assert TASK.grade(problem, gold).score == 1
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the row has no answer") as caught:
        TASK.answer_example(only(tmp_path))
    assert "tunesmith sample --task ifeval" in caught.value.hint


def test_the_figures_of_both_levels_strict_and_loose(tmp_path):
    other = ROW | {"prompt": "?", "instruction_id_list": [NO_COMMA], "kwargs": [{}]}
    problems = TASK.problems("test", source=write(tmp_path, ROW, other))
    # Of the first prompt's three: all loosely, two strictly. Of the second's one: none.
    result = result_of(problems, [["Sure, here:\n<<Rain>>\nIt falls."], ["a, b"]])
    found = following(result)
    shares = [
        (level.strict.met, level.loose.met, level.strict.of)
        for level in (found.prompts, found.instructions, *found.kinds.values())
    ]
    assert list(found.kinds) == [TITLE, WORDS, NO_COMMA]
    assert shares == [(0, 1, 2), (2, 3, 4), (1, 1, 1), (1, 1, 1), (0, 1, 2)]
    assert found.instructions.loose.value == 0.75
    assert found.instructions.loose.interval_method == "jackknife over prompts"
    assert found.instructions.loose.interval.low == 0.0
    assert found.prompts.loose.interval_method == "Wilson"
    assert found.prompts.loose.interval.low == pytest.approx(0.0945, abs=1e-4)
    summary = summarise(result.attempts)
    assert summary.following is None
    assert summary.accuracy == found.prompts.strict.value == 0
    whole = Summary(**{**{f: getattr(summary, f) for f in summary.__slots__}, "following": found})
    assert Summary.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_several_attempts_at_a_prompt_are_no_independent_trials(tmp_path):
    other = ROW | {"prompt": "?", "instruction_id_list": [NO_COMMA], "kwargs": [{}]}
    problems = TASK.problems("test", source=write(tmp_path, ROW, other))
    right, wrong = "<<Rain>> it falls", "a, b"
    found = following(result_of(problems, [[right] * 3, [wrong] * 3]))
    assert found.prompts.strict.interval_method == "jackknife over prompts"
    assert (found.prompts.strict.interval.low, found.prompts.strict.interval.high) == (0, 1)
    # Where all agree, each prompt counts once.
    alike = following(result_of(problems, [[right] * 3, [right] * 3])).prompts.strict
    assert (alike.met, alike.of, alike.value) == (6, 6, 1.0)
    assert alike.interval.low == pytest.approx(0.3424, abs=1e-4)


def test_other_questions_and_hinted_attempts_have_no_such_figures(tmp_path):
    result = result_of([only(tmp_path)], [["x"]])
    plain = {key: type(p)(p.id, "qa", p.prompt, "4", {}) for key, p in result.problems.items()}
    assert following(ResultSet(result.header, result.attempts, plain)) is None
    (one,) = result.attempts
    hinted = Attempt(one.problem_id, 0, 0, "x", (1,), one.stop, one.verdict, hinted=True)
    assert following(ResultSet(result.header, (hinted,), result.problems)) is None


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(IfevalTask, "max_new_tokens", 6)
    tiny_model("llama", max_position_embeddings=1024).save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    rows = [
        ROW | {"prompt": f"{n}?", "instruction_id_list": [NO_COMMA, WORDS], "answer": "a b c",
               "kwargs": [{}, {"relation": "less than", "num_words": 50}]}
        for n in range(12)
    ]  # fmt: skip
    Path("rows.json").write_text(json.dumps(rows))
    common = ["--task", "ifeval", "--model", "base", "--dataset", "rows.json"]
    few = ["--limit", "6", "--max-new-tokens", "6"]
    assert main(["eval", *common, *few, "--name", "a"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = next(Path().rglob("a/scores.json")).parent
    scores = json.loads((folder / "scores.json").read_text())
    assert scores == printed
    assert scores["following"]["prompts"]["strict"]["value"] == scores["accuracy"]
    assert scores["following"]["kinds"].keys() == {NO_COMMA, WORDS}
    stored = load(folder)
    assert stored.regraded(TASK.grade) == stored
    assert main(["eval", *common, *few, "--name", "b", "--system", "Be brief."]) == 0
    assert main(["compare", str(folder), str(folder.parent / "b")]) == 0
    assert "of 6" in capsys.readouterr().out
    asked = ["sample", *common, *few, "--prompt", "direct", "--samples", "1", "--output", "s.jsonl"]
    assert main(asked) == 0
    train = ["--max-steps", "1", "--eval-questions", "2", "--report-to", "none", "--num-workers"]
    train += ["1", "--eval-samples", "0", "--run-name", "r", "--max-length", "256"]
    assert main(["train", *common, *train]) == 0
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    assert manifest["finished"]
    assert load("runs/r/eval/tuned").attempts
