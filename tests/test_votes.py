"""``tunesmith eval --vote``: one answer out of several, beside one sample and greedy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from tunesmith.cli import main
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.records import Header, ResultSet, load, save
from tunesmith.evaluate.votes import ballot, choose, mean_logprob, voted
from tunesmith.storage import JsonlLog
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict

TEN = Problem("p", "units", (Segment("user", "What is ten?"),), "10")


def attempt(index: int, answer: str | None, logprob: float | None, tokens: int = 2) -> Attempt:
    verdict = Verdict(float(answer == "10"), answer, "said")
    stop = StopReason.STOP_TOKEN
    return Attempt("p", index, index, f"{answer}", (1,) * tokens, stop, verdict, False, logprob)


def result(*attempts: Attempt) -> ResultSet:
    header = Header("asked", "units", "test", "cot", "tiny", 0, len(attempts), len(attempts))
    return ResultSet(header, attempts, {"p": TEN})


def test_the_three_votes_by_hand() -> None:
    answers = ["7", "10", None, "7", "3"]
    means = [math.log(0.2), math.log(0.5), -0.001, math.log(0.2), math.log(0.6)]
    assert choose(answers) == 0
    assert choose(answers, "weighted", means) == 4
    assert choose(answers, "best", means) == 4
    means[4] = math.log(0.45)
    assert choose(answers, "weighted", means) == 1
    assert choose([*answers, "3"], "weighted", [*means, math.log(0.3)]) == 4


def test_of_equal_votes_the_first_answer_wins() -> None:
    assert choose(["4", "5", "5", "4"]) == 0
    assert choose(["4", "5"], "weighted", [-1.0, -1.0]) == 0
    assert choose([None, "5", "4"], "best", [-0.1, -1.0, -1.0]) == 1
    assert choose([None, None]) is None
    assert choose([None, None], "best", [-1.0, None]) is None


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.floats(-9, 0)), max_size=9),
)
def test_a_weighted_vote_is_the_largest_sum(tries: list[tuple[str | None, float]]) -> None:
    answers, means = [a for a, _ in tries], [m for _, m in tries]
    won = choose(answers, "weighted", means)
    sums = {
        answer: math.fsum(math.exp(m) for a, m in tries if a == answer)
        for answer in answers
        if answer is not None
    }
    if won is None:
        assert not sums
    else:
        assert sums[answers[won]] == pytest.approx(max(sums.values()))
        assert answers.index(answers[won]) == won


def test_a_ballot_is_the_number_where_one_is_asked_for() -> None:
    same = ["12", "12.0", "1.2e1", "$12", "12 feet", " 12 "]
    assert {ballot(text, numeric=True) for text in same} == {"12"}
    assert ballot("3/4", numeric=True) == ballot("0.75", numeric=True)
    assert ballot("11 * 3 + 7", numeric=True) != ballot("11 * 2 + 18", numeric=True)
    assert ballot("1. Why?\n2. When?", numeric=True) != ballot("1. Who?\n2. Why?", numeric=True)
    assert ballot("3 June", numeric=False) != ballot("3 July", numeric=False)


def test_what_cannot_be_read_does_not_vote() -> None:
    mute = [attempt(0, None, -0.1), attempt(1, None, -0.1), attempt(2, "10", -9.0)]
    for how in ("majority", "weighted", "best"):
        [one] = voted(result(*mute), how).attempts
        assert (one.index, one.seed, one.text) == (0, 2, "10")
        assert one.verdict is not None
        assert one.verdict.reason == "said; 1 of 3 say so"
    [nobody] = voted(result(*mute[:2]), "majority").attempts
    assert nobody.verdict == Verdict(0.0, None, "said")


def test_length_does_not_count_against_an_answer() -> None:
    long, short = attempt(0, "10", -3.0, 30), attempt(1, "7", -2.0, 2)
    assert mean_logprob(long) == pytest.approx(-0.1)
    assert voted(result(long, short), "best").attempts[0].text == "10"


def test_a_vote_by_probability_needs_it() -> None:
    bare = result(attempt(0, "10", None), attempt(1, "7", None))
    assert voted(bare, "majority").header.name == "asked-majority"
    with pytest.raises(DataError, match="no log-probabilities"):
        voted(bare, "weighted")


def test_log_probabilities_are_stored_and_older_logs_still_read(tmp_path: Path) -> None:
    made = result(attempt(0, "10", -1.5), attempt(1, "7", None))
    save(tmp_path, made)
    assert load(tmp_path).attempts == made.attempts
    _, first, second = JsonlLog.read(tmp_path / "attempts.jsonl")
    assert first["logprob"] == -1.5
    assert "logprob" not in second
    voting = voted(made, "majority")
    assert (voting.header.samples, voting.header.planned) == (1, 1)
    assert voting.header.fingerprint != made.header.fingerprint
    assert replace(voting.attempts[0], verdict=None).logprob == -1.5


ASK = {"limit": 3, "prompt": "cot", "log_level": "error", "max_new_tokens": 30}


def test_votes_are_sets_that_compare_with_one_sample_and_greedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tunesmith.evaluate(**ASK, name="greedy")
    tunesmith.evaluate(**ASK, name="other", system="Answer in French.")
    several = {"samples": 3, "temperature": 0.9, "vote": ["majority", "weighted", "best"]}
    found = tunesmith.evaluate(**ASK, **several, name="asked")
    assert [*found.votes] == several["vote"]
    own = found.results
    assert all(a.logprob is not None and a.logprob < 0 for a in own.attempts if a.tokens)
    for how in several["vote"]:
        stored = load(found.folder / how)
        assert stored.attempts == voted(own, how).attempts
        assert len(stored.attempts) == 3
    told = json.loads((found.folder / "comparison.json").read_text())
    names = ["greedy", "asked", "asked-majority", "asked-weighted", "asked-best"]
    assert [*told["summaries"]] == names
    tests = {(p["first"], p["second"]): p["test"] for p in told["pairs"]}
    assert tests["greedy", "asked-majority"] == "exact McNemar test"
    assert len(tests) == 10
    assert main(["compare", "runs/greedy", "runs/asked/majority"]) == 0
    assert "asked-majority" in capsys.readouterr().out
    # A second call makes nothing again; another vote is a matter of the stored attempts.
    log = (found.folder / "attempts.jsonl").read_bytes()
    again = tunesmith.evaluate(**ASK, **{**several, "vote": ["best"]}, name="asked")
    assert again.votes["best"] == found.votes["best"]
    assert (found.folder / "attempts.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vote": ["majority"]}, "several attempts"),
        ({"vote": ["majority"], "samples": 2}, "would be alike"),
        ({"vote": ["median"]}, "majority"),
    ],
)
def test_a_vote_that_says_nothing_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tunesmith.evaluate(**ASK, **settings)
