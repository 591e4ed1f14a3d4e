from __future__ import annotations

import json
import random

import pytest

from tunesmith.errors import CheckpointError, DataError
from tunesmith.evaluate import records
from tunesmith.evaluate.metrics import Summary, problem_scores, summarise
from tunesmith.evaluate.records import AttemptLog, Header, ResultSet, load, save, stored_sets
from tunesmith.evaluate.statistics import wilson
from tunesmith.storage import JsonlLog
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict


def problem(n: int) -> Problem:
    return Problem(f"p{n}", "units", (Segment("user", f"Question {n}?"),), str(n), {"number": n})


def attempt(n: int, score: float | None, index: int = 0, answer: str | None = "1") -> Attempt:
    verdict = Verdict(score, answer, "because")
    return Attempt(
        f"p{n}", index, 7, f"text {n}\u2028<b>", (1, 2, n), StopReason.STOP_TOKEN, verdict
    )


def header(**changes: object) -> Header:
    given = {"name": "base", "task": "units", "split": "test", "prompt": "direct"}
    return Header(**{**given, "model": "tiny", "seed": 3, **changes})


# --- summaries


def test_a_summary_counts_by_hand():
    attempts = [attempt(0, 1.0), attempt(1, 0.0), attempt(2, 0.0, answer=None), attempt(3, None)]
    attempts.append(Attempt("p4", 0, 1, "", (1,) * 10, StopReason.LENGTH, None))
    summary = summarise(attempts)
    assert (summary.problems, summary.n, summary.graded, summary.ungraded) == (5, 5, 3, 2)
    assert (summary.correct, summary.answered) == (1, 2)
    assert summary.accuracy == pytest.approx(1 / 3)
    assert summary.accuracy_interval == wilson(1, 3)
    assert summary.answer_interval == wilson(2, 3)
    assert summary.interval_method == "Wilson"
    assert summary.mean_tokens == (3 * 4 + 10) / 5
    assert summary.stops == {"length": 1, "stop_token": 4}
    assert not summary.trusted
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_an_unparsed_answer_is_wrong_and_a_failed_grader_is_not():
    wrong = summarise([attempt(0, 1.0), attempt(1, 0.0, answer=None)])
    ungraded = summarise([attempt(0, 1.0), attempt(1, None, answer=None)])
    assert (wrong.accuracy, ungraded.accuracy) == (0.5, 1.0)
    assert (wrong.ungraded, ungraded.ungraded) == (0, 1)


def test_one_percent_ungraded_is_the_limit():
    rest = [attempt(n, 1.0) for n in range(99)]
    assert summarise([*rest, attempt(99, None)]).trusted
    assert not summarise([*rest[:98], attempt(98, None), attempt(99, None)]).trusted


def test_several_attempts_at_one_problem_are_not_independent_trials():
    # Ten attempts at each of 20 problems that are always right or always wrong.
    attempts = [attempt(n, float(n % 2), index) for n in range(20) for index in range(10)]
    summary = summarise(attempts)
    width = summary.accuracy_interval.high - summary.accuracy_interval.low
    naive = wilson(100, 200)
    assert summary.interval_method.startswith("betting")
    assert width > 2.5 * (naive.high - naive.low)


def test_nothing_at_all_is_no_error():
    summary = summarise([])
    assert (summary.n, summary.accuracy, summary.trusted) == (0, 0.0, False)
    assert summarise([attempt(0, None)]).accuracy == 0.0
    assert problem_scores([attempt(0, 1.0), attempt(0, 0.0, 1), attempt(1, None)]) == {"p0": 0.5}


def test_gold_answers_score_one_and_shuffled_ones_chance():
    rng = random.Random(0)
    gold = [rng.randrange(4) for _ in range(400)]
    shuffled = gold[:]
    rng.shuffle(shuffled)
    exact = summarise([attempt(n, float(g == g)) for n, g in enumerate(gold)])
    chance = summarise(
        [attempt(n, float(a == g)) for n, (a, g) in enumerate(zip(shuffled, gold, strict=True))]
    )
    assert exact.accuracy == 1.0
    assert chance.accuracy == pytest.approx(0.25, abs=0.06)


# --- stored attempts


def test_a_set_comes_back_as_it_was_saved(tmp_path):
    problems = {f"p{n}": problem(n) for n in range(3)}
    attempts = tuple(attempt(n, 0.0, index) for n in range(3) for index in range(2))
    result = ResultSet(header(samples=2, planned=6, details={"a": 1}), attempts, problems)
    save(tmp_path / "eval" / "base", result, summarise(attempts).to_json())
    again = load(tmp_path / "eval" / "base")
    assert again == result
    assert again.missing == 0
    assert [a.index for a in again.by_problem()["p1"]] == [0, 1]
    assert load(tmp_path / "eval" / "base" / "attempts.jsonl") == result
    assert json.loads((tmp_path / "eval/base/scores.json").read_text())["n"] == 6
    assert stored_sets(tmp_path) == [tmp_path / "eval" / "base"]


def test_the_order_of_finishing_does_not_matter(tmp_path):
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        with AttemptLog(tmp_path / name, header(planned=3)) as log:
            for n in order:
                log.append(problem(n), attempt(n, 1.0))
    assert load(tmp_path / "a") == load(tmp_path / "b")


def test_a_log_is_continued_where_it_was_cut(tmp_path):
    path = tmp_path / "attempts.jsonl"
    with AttemptLog(path, header(planned=3)) as log:
        for n in range(2):
            log.append(problem(n), attempt(n, 1.0))
    path.write_bytes(path.read_bytes()[:-9])
    assert load(path).missing == 2
    with AttemptLog(path, header(planned=3, name="renamed", model="other/path")) as log:
        assert log.done == {("p0", 0)}
        assert log.cut_bytes > 0
        for n in (1, 2):
            log.append(problem(n), attempt(n, 1.0))
    assert load(path).missing == 0


def test_a_flipped_byte_of_a_set_is_found_or_cut(tmp_path):
    path = tmp_path / "attempts.jsonl"
    with AttemptLog(path, header(planned=3)) as log:
        for n in range(3):
            log.append(problem(n), attempt(n, 1.0))
    data = path.read_bytes()
    last = data[:-1].rindex(b"\n") + 1
    ends = {position for position in range(len(data)) if data[position] == 10}
    for position in sorted({*range(0, len(data), 2), *ends}):
        flipped = bytearray(data)
        flipped[position] ^= 1 + position % 255
        path.write_bytes(flipped)
        # Opening a log waits for the disk.
        opened = position % 7 == 0
        if position < last:  # the newline before the last record included
            line = data[:position].count(b"\n") + 1
            for use in [load] + [lambda file: AttemptLog(file, header(planned=3))] * opened:
                with pytest.raises(DataError, match=rf"attempts\.jsonl:{line}: .*checksum"):
                    use(path)
            assert path.read_bytes() == flipped
        else:
            assert load(path).missing == 1
            if not opened:
                continue
            with AttemptLog(path, header(planned=3)) as log:
                assert (len(log.done), log.cut_bytes) == (2, len(data) - last)


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"prompt": "cot"}, {"samples": 2}, {"fingerprint": "x"}, {"split": "dev"}],
)
def test_a_log_is_not_continued_under_another_plan(tmp_path, change):
    AttemptLog(tmp_path / "log", header()).close()
    with pytest.raises(CheckpointError, match=next(iter(change))):
        AttemptLog(tmp_path / "log", header(**change))
    AttemptLog(tmp_path / "log", header()).close()


def test_an_attempt_is_stored_once(tmp_path):
    with AttemptLog(tmp_path / "log", header()) as log:
        log.append(problem(0), attempt(0, 1.0))
        with pytest.raises(ValueError):
            log.append(problem(0), attempt(0, 1.0))
        with pytest.raises(ValueError):
            log.append(problem(1), attempt(0, 1.0, 1))
    stored = list(JsonlLog.read(tmp_path / "log"))
    with JsonlLog(tmp_path / "log") as raw:
        raw.append(stored[-1])
    with pytest.raises(DataError, match="twice"):
        load(tmp_path / "log")


def test_a_log_of_something_else_is_refused(tmp_path):
    for n, record in enumerate([{"kind": "train"}, {"kind": records.KIND, "version": 99}]):
        with JsonlLog(tmp_path / f"{n}.jsonl") as log:
            log.append(record)
        with pytest.raises(DataError, match="no log of attempts"):
            load(tmp_path / f"{n}.jsonl")
    with JsonlLog(tmp_path / "x.jsonl") as log:
        log.append({"kind": records.KIND, "version": 1})
    with pytest.raises(DataError, match="header has no"):
        load(tmp_path / "x.jsonl")
    AttemptLog(tmp_path / "y.jsonl", header()).close()
    with JsonlLog(tmp_path / "y.jsonl") as log:
        log.append({"problem": "p", "index": 0})
    with pytest.raises(DataError, match=r"y\.jsonl:2"):
        load(tmp_path / "y.jsonl")


def test_stored_attempts_can_be_graded_again(tmp_path):
    result = ResultSet(
        header(), (attempt(0, None), attempt(1, None)), {"p0": problem(0), "p1": problem(1)}
    )
    save(tmp_path, result)

    def grader(problem: Problem, text: str) -> Verdict:
        return Verdict(float(text.startswith(f"text {problem.reference}")), "x", "")

    again = load(tmp_path).regraded(grader)
    assert summarise(again.attempts).accuracy == 1.0


def test_meta_that_json_does_not_know_is_kept_as_text(tmp_path):
    from fractions import Fraction

    odd = Problem(
        "p0", "units", (Segment("user", "?"),), "1", {"factor": Fraction(1, 3), "t": (1,)}
    )
    save(tmp_path, ResultSet(header(), (attempt(0, 1.0),), {"p0": odd}))
    assert load(tmp_path).problems["p0"].meta == {"factor": "1/3", "t": [1]}
