"""``tunesmith sample``: rounds, hints, selection and figures."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console

import tunesmith
from tunesmith.cli import main
from tunesmith.data.select import NOT_SHOWN, SAME_AS_GOLD, SOLVED_WITHOUT, Rule, select
from tunesmith.errors import CheckpointError, UsageError
from tunesmith.evaluate.attempts import Plan
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import problem_scores, summarise
from tunesmith.evaluate.records import Header, ResultSet, load
from tunesmith.evaluate.rounds import ONE_ROUND, Rounds, with_hint
from tunesmith.evaluate.sampled import Running, powers, sampled
from tunesmith.generate.requests import Sampling
from tunesmith.grading.paths import choose_paths, edit_distance, equation_signature
from tunesmith.storage import JsonlLog
from tunesmith.tasks.maths import MathsTask
from tunesmith.tasks.socratic import SocraticTask
from tunesmith.tasks.units import UnitsTask
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict
from tunesmith.workflows import console
from tunesmith.workflows.sample import SampleResult
from tunesmith.workflows.sample_report import Pace

TASK = UnitsTask()
TEN = Problem("p", "units", (Segment("user", "What is ten?"),), "10")


def attempt(
    text: str,
    index: int = 0,
    *,
    problem: Problem = TEN,
    hinted: bool = False,
    tokens: int = 5,
    stop: StopReason = StopReason.STOP_TOKEN,
) -> Attempt:
    verdict = TASK.verify(problem, text)
    return Attempt(problem.id, index, index, text, (1,) * tokens, stop, verdict, hinted)


def answer(steps: str) -> str:
    return f"{steps}\n<answer>10</answer>"


def plan(samples: int = 2, rounds: Rounds = ONE_ROUND, limit: int = 4) -> Plan:
    problems = TASK.problems("train", limit=limit)
    return Plan(TASK, problems, "cot", Sampling(8, 0.7), samples, 0, "", rounds)


# --- rounds


def test_a_further_round_asks_what_is_not_verified_often_enough() -> None:
    asked = plan(2, Rounds(3, enough=2))
    a, b, c, d = (problem.id for problem in asked.problems)
    verified = {(a, 0), (a, 1), (b, 0), (c, 2), (c, 3)}
    assert [(p.id, list(i)) for p, i in asked.asked(0, verified)] == [
        (p.id, [0, 1]) for p in asked.problems
    ]
    # What a later round has found says nothing about what an earlier one asked.
    assert [(p.id, list(i)) for p, i in asked.asked(1, verified)] == [
        (name, [2, 3]) for name in (b, c, d)
    ]
    assert [(p.id, list(i)) for p, i in asked.asked(2, verified)] == [
        (name, [4, 5]) for name in (b, d)
    ]


def test_a_round_with_a_hint_asks_only_what_nobody_solved() -> None:
    asked = plan(2, Rounds(2, enough=2, hint_last=True))
    first, second, *rest = (problem.id for problem in asked.problems)
    assert [p.id for p, _ in asked.asked(1, {(first, 0), (second, 0), (second, 1)})] == rest


@given(st.data())
def test_a_stopped_run_asks_what_an_unstopped_one_would_have(data: st.DataObject) -> None:
    rounds = Rounds(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), None, False)
    asked = plan(data.draw(st.integers(1, 3)), rounds)
    rng = random.Random(data.draw(st.integers(0, 99)))
    right = {(p.id, n): rng.random() < 0.4 for p in asked.problems for n in range(12)}

    def made(kills: int) -> list[tuple[str, int]]:
        done: list[tuple[str, int]] = []
        verified: set[tuple[str, int]] = set()
        for life in range(kills + 1):
            left = rng.randint(0, 6) if life < kills else 1000
            for number in range(rounds.count):
                todo = [(p.id, n) for p, i in asked.asked(number, frozenset(verified)) for n in i]
                todo = [key for key in todo if key not in done]
                rng.shuffle(todo)
                for key in todo[:left]:
                    done.append(key)
                    verified |= {key} if right[key] else set()
                left -= min(left, len(todo))
                if not left:
                    break
        assert len(done) == len(set(done))
        return sorted(done)

    assert made(0) == made(data.draw(st.integers(1, 5)))


def test_the_temperature_rises_evenly_to_the_last_round() -> None:
    rounds, first = Rounds(3, 4, 1.1), Sampling(8, 0.7)
    found = [rounds.sampling(first, n).temperature for n in range(3)]
    assert found == pytest.approx([0.7, 0.9, 1.1])
    assert replace(rounds.sampling(first, 2), temperature=0.7) == first
    assert Rounds(3).sampling(first, 2) == first


def test_one_round_is_the_plan_that_it_always_was() -> None:
    """Logs that were begun before there were rounds go on."""
    assert plan().fingerprint() == plan(rounds=Rounds(1, 4)).fingerprint()
    assert plan().fingerprint()[:16] == "e0e8d0947a2dfd29"
    telling = replace(plan(), sampling=Sampling(8, 0.7, logprobs=True))
    assert telling.fingerprint() == plan().fingerprint()
    others = [Rounds(2), Rounds(2, 3), Rounds(2, 4, 1.0), Rounds(2, 4, None, True)]
    assert len({plan(rounds=one).fingerprint() for one in (ONE_ROUND, *others)}) == 5


# --- hints


def test_a_hint_stands_in_the_prompt_and_in_no_training_row() -> None:
    told = plan(2, Rounds(2, hint_last=True))
    problem = told.problems[0]
    hint = TASK.hint(problem)
    plain, hinted = told.messages(problem), told.messages(problem, hinted=True)
    assert hinted[-1].text == f"{plain[-1].text}\n{hint}"
    assert hinted[:-1] == plain[:-1]
    gold = problem.reference
    path = attempt(f"{gold} * 1 = {gold}\n<answer>{gold}</answer>", problem=problem, hinted=True)
    chosen = select({problem.id: problem}, [path], TASK, Rule())
    [row] = chosen.kept
    assert [s.text for s in row.example.segments] == [problem.prompt[-1].text, path.text]
    assert not any(hint in segment.text for segment in row.example.segments)


def test_every_task_says_how_it_tells_an_answer_or_that_it_cannot() -> None:
    six = Problem("m", "maths", (Segment("user", "3 * 2?"),), "6")
    assert "is 6." in (MathsTask().hint(six) or "")
    assert "<answer>10</answer>" in TASK.hint(TEN)
    listed = Problem("s", "socratic", (Segment("user", "Why?"),), "1. What is it?\n2. Why?")
    with pytest.raises(UsageError, match="no hint for 's'"):
        with_hint(SocraticTask(), listed, listed.prompt[-1])


def test_hinted_attempts_enter_no_score() -> None:
    own, told = attempt("no"), attempt(answer("5 + 5 = 10"), 2, hinted=True)
    summary = summarise([own, told])
    assert (summary.n, summary.accuracy) == (1, 0.0)
    assert problem_scores([own, told]) == {"p": 0.0}
    chosen = select({"p": TEN}, [own, told], TASK, Rule())
    figures = sampled({"p": TEN}, [own, told], 1, TASK, chosen)
    assert figures.pass_at == {1: 0.0}
    assert (figures.distinct_paths, figures.answer_rate) == (0.0, 0.0)
    assert (figures.hinted, figures.hinted_verified) == (1, 1)


# --- selection


def test_hinted_paths_stand_in_only_where_none_was_found() -> None:
    own = attempt(answer("5 + 5 = 10"), 0)
    told = attempt(answer("4 + 6 = 10"), 1, hinted=True)
    repeated = attempt("<answer>10</answer>", 2, hinted=True)
    chosen = select({"p": TEN}, [own, told], TASK, Rule())
    assert [one.attempt for one in chosen.kept] == [own]
    assert chosen.discards == {SOLVED_WITHOUT: 1}
    # A path that is too long to be kept is one that was found, all the same.
    chosen = select({"p": TEN}, [replace(own, tokens=(1,) * 9), told], TASK, Rule(max_tokens=8))
    assert chosen.discards == {SOLVED_WITHOUT: 1, "longer than 8 tokens": 1}
    chosen = select({"p": TEN}, [told, repeated], TASK, Rule())
    assert [one.attempt for one in chosen.kept] == [told]
    # Told the answer, «#### 10» shows nothing, though the maths verifier has no equation to doubt.
    said = Attempt("p", 0, 0, "#### 10", (1,), StopReason.STOP_TOKEN, None, True)
    maths = select({"p": replace(TEN, task="maths")}, [said], MathsTask(), Rule())
    assert maths.discards == {NOT_SHOWN: 1}
    unhinted = replace(said, hinted=False)
    assert len(select({"p": TEN}, [unhinted], MathsTask(), Rule()).kept) == 1


def test_gold_rows_are_added_and_no_path_repeats_them() -> None:
    gold = {"solution": "4 * 3 = 12\n#### 12", "source": None}
    problems = {
        name: Problem(name, "maths", (Segment("user", f"{name}?"),), "12", gold)
        for name in ("a", "b")
    }
    same = Attempt("a", 0, 0, "So 4*3=12.\n#### 12", (1,), StopReason.STOP_TOKEN)
    other = Attempt("a", 1, 1, "6 * 2 = 12\n#### 12", (1,), StopReason.STOP_TOKEN)
    chosen = select(problems, [same, other], MathsTask(), Rule(keep_gold=True))
    assert [one.attempt for one in chosen.kept] == [other]
    assert chosen.discards == {SAME_AS_GOLD: 1}
    rows = [(row.problem.id, row.attempt) for row in chosen.rows()]
    assert rows == [("a", None), ("a", other), ("b", None)]
    plain = select(problems, [same, other], MathsTask(), Rule())
    assert len(plain.rows()) == len(plain.kept) == 2


STEPS = st.sampled_from(["5 + 5 = 10", "5+5 = 10", "2 * 5 = 10", "4 + 6 = 10", "9 + 2 = 10", ""])
TRIES = st.lists(
    st.tuples(
        st.sampled_from("pqr"),
        STEPS,
        st.booleans(),
        st.integers(1, 9),
        st.sampled_from([StopReason.STOP_TOKEN, StopReason.LENGTH, StopReason.CANCELLED]),
        st.booleans(),
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=300)
@given(
    TRIES,
    st.integers(1, 3),
    st.sampled_from(["farthest", "short", "long"]),
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_kept_and_discarded_add_up_to_all(
    tries: list[Any], k: int, prefer: Any, longest: int | None, gold: bool, rng: random.Random
) -> None:
    problems = {name: replace(TEN, id=name) for name in "pqr"}
    attempts = [
        attempt(
            f"{steps}\n<answer>{10 if right else 11}</answer>",
            index,
            problem=problems[name],
            hinted=hinted,
            tokens=tokens,
            stop=stop,
        )
        for index, (name, steps, right, tokens, stop, hinted) in enumerate(tries)
    ]
    rule = Rule(k, prefer, longest, gold)
    chosen = select(problems, attempts, TASK, rule)
    assert len(chosen.kept) + sum(chosen.discards.values()) == len(attempts)
    assert all(n > 0 for n in chosen.discards.values())
    assert len(chosen.gold) == (3 if gold else 0)
    for name in "pqr":
        paths = [one.attempt for one in chosen.kept if one.problem.id == name]
        assert len(paths) <= k
        assert len({equation_signature(path.text) for path in paths}) == len(paths)
        assert all(path.verified and len(path.tokens) <= (longest or 99) for path in paths)
        if any(path.hinted for path in paths):
            own = (a for a in attempts if a.problem_id == name and not a.hinted)
            assert not any(a.verified for a in own)
    shuffled = rng.sample(attempts, len(attempts))
    assert select(problems, shuffled, TASK, rule) == chosen


@given(st.text("ab 1", max_size=70), st.text("ab 1", max_size=70))
def test_edit_distance_equals_the_plain_table(first: str, second: str) -> None:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    assert edit_distance(first, second) == row[-1]


@given(st.lists(st.tuples(STEPS, st.text("xyz", max_size=6)), min_size=1, max_size=8))
def test_of_colliding_paths_the_farthest_from_the_others_stays(pairs: list[Any]) -> None:
    texts = [f"{words} {steps}" for steps, words in pairs]
    marks = [equation_signature(text) for text in texts]

    def far(p: int) -> int:
        return sum(
            edit_distance(texts[p], texts[o]) for o in range(len(texts)) if marks[o] != marks[p]
        )

    chosen = choose_paths(texts, len(texts))
    assert len(chosen) == len(set(marks))
    for p in chosen:
        rivals = [o for o in range(len(texts)) if marks[o] == marks[p]]
        assert p == max(rivals, key=lambda o: (far(o), -o))


def test_short_and_long_paths_may_be_preferred() -> None:
    texts = ["1 + 9 = 10", "well, 1+9 = 10", "2 + 8 = 10", "3 + 7 = 10"]
    lengths = [5, 7, 6, 9]
    assert choose_paths(texts, 2, "short", lengths) == [0, 2]
    assert choose_paths(texts, 2, "long", lengths) == [1, 3]
    assert choose_paths(texts, 9, "short", lengths) == [0, 2, 3]
    assert choose_paths(texts, 1, "long") == [1]


def test_texts_without_equations_are_told_apart_by_their_words() -> None:
    same = ["It is ten, surely.", "it is  TEN surely"]
    assert equation_signature(same[0]) == equation_signature(same[1])
    assert equation_signature("It is 1.5.") != equation_signature("It is 15")


# --- figures


def test_figures_by_hand() -> None:
    problems = {name: replace(TEN, id=name) for name in "pqr"}

    def tries(name: str, *texts: str) -> list[Attempt]:
        return [attempt(text, n, problem=problems[name]) for n, text in enumerate(texts)]

    one, two, wrong = answer("5 + 5 = 10"), answer("4 + 6 = 10"), "<answer>11</answer>"
    attempts = [
        *tries("p", one, two, one, one),
        *tries("q", wrong, one, wrong, "no idea"),
        *tries("r", "no", "no", "no", "no", one, one),
    ]
    chosen = select(problems, attempts, TASK, Rule(1))
    figures = sampled(problems, attempts, 4, TASK, chosen)
    # Attempts 4 and 5 of r belong to a later round, which asks only what was not solved.
    assert figures.pass_at == pytest.approx({1: 5 / 12, 2: (1 + 1 / 2 + 0) / 3, 4: 2 / 3})
    assert figures.majority_at == pytest.approx({1: 1 / 3, 2: 1 / 3, 4: 1 / 3})
    assert figures.distinct_paths == pytest.approx((2 + 1 + 1) / 3)
    assert figures.answer_rate == pytest.approx(9 / 14)
    rows = [(d.solved, d.problems, d.attempts, d.verified, d.kept) for d in figures.difficulty]
    assert rows == [
        ("none of its attempts", 1, 6, 2, 1),
        ("up to a quarter", 1, 4, 1, 1),
        ("all of them", 1, 4, 4, 1),
    ]
    running = Running(4)
    for one_ in random.Random(1).sample(attempts, len(attempts)):
        running.add(one_.problem_id, one_.index, one_.verified)
    assert (running.attempts, running.verified, running.solved) == (14, 7, 3)
    assert running.pass_at(1) == pytest.approx(figures.pass_at[1])
    assert running.pass_at(4) == pytest.approx(figures.pass_at[4])


def test_a_number_written_in_several_ways_is_one_answer() -> None:
    written = ("11", "11", "10", "10.0", "1e1")
    attempts = [attempt(f"<answer>{text}</answer>", n) for n, text in enumerate(written)]
    chosen = select({"p": TEN}, attempts, TASK, Rule())
    figures = sampled({"p": TEN}, attempts, 5, TASK, chosen)
    assert figures.majority_at == {1: 0.0, 2: 0.0, 4: 0.0, 5: 1.0}


def test_only_the_first_round_is_compared() -> None:
    def made(name: str, details: dict[str, Any]) -> ResultSet:
        header = Header(name, "units", "train", "cot", "tiny", 0, 1, 1, "", details)
        return ResultSet(header, (attempt("no"), attempt(answer("5 + 5 = 10"), 1)), {"p": TEN})

    rounds = made("rounds", {"rounds": {"count": 2}})
    plain = made("plain", {})
    found = compare([rounds, plain])
    assert [found.summaries[name].accuracy for name in ("rounds", "plain")] == [0.0, 0.5]
    assert found.pairs[0].difference == pytest.approx(0.5)


def test_the_ks_are_powers_of_two_and_the_last() -> None:
    assert [powers(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


# --- the command

COMMON = {"limit": 3, "samples": 2, "max_new_tokens": 2, "log_level": "error"}
Ask = Callable[..., SampleResult]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sampling")


@pytest.fixture
def ask(home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Ask:
    """Return ``tunesmith.sample`` with short answers; what it writes is named after the test."""
    monkeypatch.chdir(home)

    def sample(**given: Any) -> SampleResult:
        name = f"{request.node.name}{given.pop('name', '')}"
        return tunesmith.sample(**{**COMMON, "output": f"{name}.jsonl", **given})

    return sample


def stored(result: SampleResult) -> list[dict[str, Any]]:
    return list(JsonlLog.read(result.log))


def test_rounds_go_on_until_enough_and_mark_what_was_hinted(ask: Ask) -> None:
    result = ask(rounds=3, enough=1, hint_last=True)
    header, *records = stored(result)
    # Two tokens verify nothing, so every round asks everything.
    assert len(records) == result.attempts == 3 * 3 * 2
    assert sorted({r["index"] for r in records if r.get("hinted")}) == [4, 5]
    assert sum(bool(r.get("hinted")) for r in records) == result.figures.hinted == 6
    assert (header["planned"], header["samples"]) == (6, 2)
    assert header["details"]["rounds"]["hint_last"] is True
    assert len({r["seed"] for r in records}) == len(records)
    assert set(result.figures.pass_at) == {1, 2}
    assert len(load(result.log).first_round().attempts) == 6
    again = ask(rounds=3, enough=1, hint_last=True)
    assert (again.generated, again.attempts, again.tokens_per_second) == (0, 18, 0.0)
    with pytest.raises(CheckpointError, match="another rounds"):
        ask(rounds=3, enough=2, hint_last=True)


def test_one_round_leaves_the_log_that_it_always_left(ask: Ask) -> None:
    header, *records = stored(ask())
    assert "rounds" not in header["details"]
    assert not any("hinted" in record for record in records)
    assert len(records) == 6


def test_a_torn_tail_is_said(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    log = ask(log_level="info").log
    whole = log.read_bytes()
    log.write_bytes(whole[:-9])
    ask(log_level="info")
    assert "was not written to its end" in capsys.readouterr().err
    assert sorted(log.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize(
    ("among", "name", "value"),
    [
        ({}, "rounds", 2),
        ({"rounds": 2, "temperature": 0.2}, "round_temperature", 9.0),
        ({"rounds": 2}, "hint_last", True),
    ],
)
def test_a_setting_of_rounds_changes_the_attempts(
    ask: Ask, among: dict[str, Any], name: str, value: Any
) -> None:
    before, after = ask(name="a", **among), ask(name="b", **among, **{name: value})
    found = [
        sorted((r["problem"], r["index"], r["text"]) for r in stored(x)[1:])
        for x in (before, after)
    ]
    assert found[0] != found[1]


def write_answers(log: Path, texts: list[tuple[str, int]]) -> None:
    """Leave a log of these answers and numbers of tokens; right is what has ``G``, the gold."""
    header, *records = list(JsonlLog.read(log))
    log.unlink()
    with JsonlLog(log) as made:
        made.append(header)
        for record in records:
            if record["index"] >= len(texts):
                continue
            text, tokens = texts[record["index"]]
            verdict = {"score": float("G" in text), "answer": None, "reason": ""}
            text = text.replace("G", record["reference"])
            changed = {"text": text, "tokens": [1] * tokens, "verdict": verdict}
            made.append(record | changed | {"stop": "stop_token"})


def test_a_setting_of_the_selection_changes_the_rows_alone(ask: Ask) -> None:
    first = ask(samples=3)
    end = "\n<answer>G</answer>"
    texts = [(f"G + 0 = G{end}", 20), (f"G - 0 = G{end}", 10), (f"So it is G * 1 = G{end}", 30)]
    write_answers(first.log, texts)
    plain = ask(samples=3)
    assert (plain.rows, plain.generated, plain.solved) == (9, 0, 3)

    def indices(**given: Any) -> list[int | None]:
        result = ask(samples=3, **given)
        assert result.rows + sum(result.discards.values()) == result.attempts == 9
        lines = result.output.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == result.rows + result.gold
        return [row["attempt"] for row in rows][: len(rows) // 3]

    assert indices(max_paths=1) == [0]
    assert indices(max_paths=1, prefer="short") == [1]
    assert indices(max_paths=1, prefer="long") == [2]
    assert indices(max_path_tokens=20) == [0, 1]
    assert indices(keep_gold=True) == [None, 0, 1, 2]


@pytest.mark.parametrize("width", [80, 120])
def test_the_figures_stand_below_the_bar_on_a_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(console, "_console", terminal)
    asked = plan(128, Rounds(2))
    keys = [(p.id, n) for p in asked.problems for n in range(129)]
    pace = Pace(asked, keys, keys[:60])
    pace.add(attempt(answer("5 + 5 = 10"), 300))
    with console.bar("sampling 1/2", 120_000, 516, two_lines=True) as bar:
        for _ in range(3):
            bar.advance(100, note=pace.note())
        assert bar._progress is not None
        shown = "".join(s.text for s in terminal.render(bar._progress.get_renderable()))
    above, below = shown.rstrip().split("\n")
    assert "816/120000" in above
    assert re.search(r"\d\d:\d\d", above)
    assert len(above.rstrip()) <= width
    assert below.startswith("  12% verified, 2 solved, pass@1 12%, pass@128 25%, ")
    assert below.endswith("tok/s")


def test_without_a_terminal_a_line_tells_the_figures(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    ask(log_level="info", rounds=2)
    said = capsys.readouterr().err
    assert re.search(r"sampling 2/2: 5/6, .*left, 0% verified, 0 solved, pass@1 0%", said)
    assert "Round 2: 3 questions, 6 attempts." in said
    assert "verified pass@k" in said


@pytest.mark.parametrize(("enough", "asked"), [(1, 0), (2, 3)])
def test_enough_spares_what_is_solved(ask: Ask, enough: int, asked: int) -> None:
    log = ask(rounds=2, enough=enough).log
    write_answers(log, [("G + 0 = G\n<answer>G</answer>", 20), ("no", 1)])
    assert ask(rounds=2, enough=enough).generated == 2 * asked


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (["--enough", "2"], "--enough says"),
        (["--round-temperature", "1"], "--round-temperature says"),
        (["--hint-last"], "--hint-last says"),
        (["--rounds", "2", "--hint-last", "--task", "socratic", "--dataset", "q.jsonl"], "no hint"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    given_: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"instruction": "Tom has 3 apples and eats one.", "output": ["How many had he?", "Why?"]}
    Path("q.jsonl").write_text(json.dumps(row) + "\n")
    prompt = ["--prompt", "direct"] if "socratic" in given_ else []
    assert main(["sample", "--output", "rows.jsonl", *given_, *prompt]) == 2
    assert message in capsys.readouterr().err


def test_a_verdict_at_the_limit_is_not_verified() -> None:
    cut = attempt(answer("5 + 5 = 10"), stop=StopReason.LENGTH)
    assert cut.verdict == Verdict(1.0, "10", "verified")
    assert not cut.verified
