"""Proof beyond one pair: groups, several metrics, problems needed, seeds, early stopping."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from test_compare import results, table
from tunesmith.cli import main
from tunesmith.errors import UsageError
from tunesmith.evaluate import betting
from tunesmith.evaluate.betting import Anytime, anytime, betting_interval
from tunesmith.evaluate.clean import clean
from tunesmith.evaluate.compare import Comparison, Pair, adjusted, compare
from tunesmith.evaluate.flips import flip_interval, sign_flip_test
from tunesmith.evaluate.needed import needed_pairs, needed_sums
from tunesmith.evaluate.records import (
    ROUNDS,
    STOP_RULE,
    STOPPED,
    AttemptLog,
    ResultSet,
    load,
    save,
    without_stop,
)
from tunesmith.evaluate.scores.stored import ITEMS
from tunesmith.evaluate.seeds import seed_effect, two_way
from tunesmith.evaluate.statistics import Interval, mcnemar_power
from tunesmith.evaluate.stopping import LOOK, StopRule, asked_order
from tunesmith.evaluate.votes import voted
from tunesmith.storage import write_json
from tunesmith.types import Problem
from tunesmith.workflows.recipe import run
from tunesmith.workflows.stopping import tell_stop


def grouped(result: ResultSet, field: str | None = None) -> ResultSet:
    """Return a set whose problems come four to a document."""
    for at, (key, problem) in enumerate(result.problems.items()):
        meta = {field: f"d{at // 4}"} if field else {"source": "s.jsonl", "line": 1 + at // 4}
        assert isinstance(result.problems, dict)
        result.problems[key] = Problem(key, problem.task, problem.prompt, problem.reference, meta)
    return result


def test_the_flip_interval_holds_what_the_flip_test_does_not_reject():
    differences = [0.5, -0.25, 0.75, 0.25, 0.1, 0.5, 0.25, -0.5, 0.3, 0.45]
    interval = flip_interval(differences)
    for shift, inside in ((interval.low, 0.02), (interval.high, -0.02)):
        assert sign_flip_test([d - shift - inside for d in differences]) > 0.05
        assert sign_flip_test([d - shift + inside for d in differences]) < 0.05
    # All nonempty subsets, enumerated: the 2.5% of their means on either side lie outside.
    means = sorted(
        np.mean(part) for size in range(1, 11) for part in itertools.combinations(differences, size)
    )
    assert interval.low == pytest.approx(means[25], abs=0.02)
    assert interval.high == pytest.approx(means[-26], abs=0.02)


def test_fewer_than_six_differences_show_nothing():
    assert flip_interval([0.4, 0.5, 0.4, 0.3, 0.4]) == Interval(-1.0, 1.0)
    # Equal differences show no spread, but few of them are not exact for that.
    assert flip_interval([0.0] * 20).high == pytest.approx(0.27, abs=0.06)
    assert flip_interval([0.4] * 8).low < 0.35
    with pytest.raises(ValueError):
        flip_interval([])


def test_groups_of_rows_are_found_and_widen_the_interval():
    plain = compare(table(8, 24, 8, 40)).pairs[0]
    base, tuned = (grouped(one) for one in table(8, 24, 8, 40))
    (pair,) = compare([base, tuned]).pairs
    assert (pair.groups, pair.grouped_by) == (20, "row")
    assert plain.significant
    assert pair.p > 3 * plain.p
    assert "in 20 rows" in pair.sentence()
    assert "over rows" in pair.test
    assert pair.interval.high - pair.interval.low > plain.interval.high - plain.interval.low


def test_groups_by_a_field_and_a_field_that_is_not_there():
    base, tuned = (grouped(one, "document") for one in table(8, 24, 8, 40))
    (pair,) = compare([base, tuned], "document").pairs
    assert (pair.groups, pair.grouped_by) == (20, "document")
    assert "in 20 groups by document" in pair.sentence()
    assert compare([base, tuned]).pairs[0].groups is None
    with pytest.raises(UsageError, match="does not say to which 'page' it belongs"):
        compare([base, tuned], "page")
    whole = Comparison.from_json(
        json.loads(json.dumps(compare([base, tuned], "document").to_json()))
    )
    assert whole == compare([base, tuned], "document")


def test_problems_needed_reach_the_power_and_not_many_fewer():
    for discordance, difference in ((0.3, 0.1), (0.2, 0.02), (0.05, 0.05)):
        n = needed_pairs(discordance, difference)
        assert mcnemar_power(n, discordance, difference) >= 0.8
        assert mcnemar_power(int(0.9 * n) - 5, discordance, difference) < 0.8
    assert needed_pairs(0.3, 0.0) is None
    assert needed_pairs(0.3, 0.0005) > 50_000
    # (1.96 + 0.84)² · variance / difference²
    assert needed_sums([0.0, 1.0, 0.0, 0.0] * 50) == pytest.approx(7.85 * 0.1884 / 0.0625, abs=1.5)
    assert needed_sums([0.5, 0.5]) is None


def test_the_sentence_says_how_many_problems_a_difference_of_this_size_needs():
    (pair,) = compare(table(40, 14, 10, 36)).pairs
    assert pair.needed == needed_pairs(0.24, 0.04)
    assert f"and {pair.needed:,} of them one of this size" in pair.sentence()


def test_holm_runs_over_all_metrics_and_pairs():
    one, two = compare(table(40, 30, 10, 20)), compare(table(40, 20, 6, 34))
    first, second = adjusted([one.pairs, two.pairs])
    assert first[0].p_holm == 2 * one.pairs[0].p
    assert second[0].p_holm == two.pairs[0].p


def stored(folder: Path, result: ResultSet, **metrics: list[float]) -> str:
    save(folder, result, {})
    values = {
        name: dict(zip(result.problems, several, strict=True)) for name, several in metrics.items()
    }
    write_json(folder / ITEMS, {"metrics": values, "losses": {}})
    return str(folder)


def test_several_metrics_stand_in_one_table(tmp_path, capsys):
    rng = np.random.default_rng(1)
    base, tuned = table(10, 10, 10, 10)
    low, high = rng.random(40).round(3).tolist(), (0.3 + 0.7 * rng.random(40)).round(3).tolist()
    folders = [
        stored(tmp_path / "a", base, chrf=low, rouge_l=low),
        stored(tmp_path / "b", tuned, chrf=high, rouge_l=low),
    ]
    out = tmp_path / "c.json"
    assert main(["compare", *folders, "--metric", "chrf", "rouge_l", "--output", str(out)]) == 0
    said = capsys.readouterr()
    assert "chrf: tuned" in said.err
    assert "rouge_l, No clear difference" in said.out
    found = json.loads(out.read_text())
    assert list(found["metrics"]) == ["chrf", "rouge_l"]
    (pair,) = found["metrics"]["chrf"]["pairs"]
    assert pair["p_holm"] == 2 * pair["p"]
    assert Comparison.from_json(found).pairs[0].p_holm == pair["p_holm"]


def test_effect_over_seeds():
    rng = np.random.default_rng(0)

    def run(name: str, share: float) -> ResultSet:
        return results(name, {f"p{n}": [float(rng.random() < share)] for n in range(120)})

    first = [run(f"a{seed}", 0.3) for seed in range(4)]
    second = [run(f"b{seed}", 0.6) for seed in range(4)]
    effect = seed_effect(first, second)
    assert (effect.seeds, effect.n, len(effect.by_seed)) == (4, 120, 4)
    assert effect.significant
    assert "over 4 seeds" in effect.sentence()
    assert effect.difference == pytest.approx(np.mean(effect.by_seed))
    alone = seed_effect(first[:1], second)
    assert alone.seeds == 4
    single = seed_effect(first[:1], second[:1])
    assert (single.interval, single.p) == (None, None)
    assert "seeds were not varied" in single.sentence()
    with pytest.raises(UsageError, match="2 runs are compared with 4"):
        seed_effect(first[:2], second)


def test_seeds_that_disagree_widen_the_interval_more_than_problems_tell():
    steady = [[0.1, 0.3] * 50] * 3
    apart = [[0.1 + shift, 0.3 + shift] * 50 for shift in (-0.2, 0.0, 0.2)]
    narrow, wide = two_way(steady)[1], two_way(apart)[1]
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    # By hand: the variance of the seeds' means is 0.04 / 3, that of the problems' 0.0101 / 100.
    mean, _, df, p = two_way(apart)
    assert mean == pytest.approx(0.2)
    assert df == pytest.approx(2.03, abs=0.02)
    assert p > 0.05
    assert two_way([[1.0] * 9] * 3)[1:] == (Interval(-1.0, 1.0), None, 0.25)


def test_compare_takes_runs_by_seed(tmp_path, capsys):
    base, tuned = table(20, 30, 5, 20)
    again = results("tuned-2", {key: [a.verdict.score] for key, (a,) in tuned.by_problem().items()})
    folders = []
    for result in (base, tuned, again):
        save(tmp_path / result.name, result)
        folders.append(str(tmp_path / result.name))
    command = ["compare", folders[0], "--seeds", *folders[1:]]
    assert main([*command, "--output", str(tmp_path / "s.json")]) == 0
    assert "over 2 seeds" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["seeds"] == 2
    assert main([*command, "--cluster-by", "row"]) == 0
    assert "in 75 rows" in capsys.readouterr().out
    assert main(["compare", folders[0], "--seeds", folders[1], folders[1]]) == 2
    assert main([*command, "--metric", "a", "b"]) == 2
    assert main(["compare", folders[0]]) == 2
    capsys.readouterr()
    assert main(["compare", folders[0], folders[0] + "/"]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_seeds_count_groups_and_not_the_problems_in_them():
    base, tuned = (grouped(one) for one in table(20, 30, 5, 25))
    first = results("base", {key: [0.0] for key in base.problems})
    found = seed_effect([base], [tuned, tuned])
    assert (found.n, found.groups, found.grouped_by) == (80, 20, "row")
    assert "in 20 rows" in found.sentence()
    alone = seed_effect([first], [first, first])
    assert alone.groups is None
    sums = [[0.3, -0.1], [0.5, 0.1]]
    assert two_way(sums)[0] == pytest.approx(0.2)


def test_runs_that_stopped_when_clear_have_no_effect_over_seeds():
    base = table(20, 30, 5, 20)[0]
    stopped = replace(base, header=replace(base.header, details={STOP_RULE: {"against": "x"}}))
    with pytest.raises(UsageError, match="stopped when clear"):
        seed_effect([base], [stopped, stopped])


def test_rounds_for_what_was_not_solved_before_are_no_gain_over_seeds():
    scores = {f"p{n}": [float(n % 2)] for n in range(100)}
    base = results("a", scores)
    again = results("b", {key: [*one, 1.0] if one == [0.0] else one for key, one in scores.items()})
    head = replace(again.header, samples=1, planned=100, details={ROUNDS: {"count": 2}})
    found = seed_effect([base] * 3, [replace(again, header=head)] * 3)
    assert (found.difference, found.p) == (0.0, 1.0)


def test_one_problem_under_several_seeds_says_so():
    one = results("a", {"p": [1.0]})
    said = seed_effect([one], [one, one]).sentence()
    assert "one problem" in said
    assert "ungraded" not in said


def test_fewer_than_six_scores_promise_no_power():
    first = results("a", {f"p{n}": [0.1 * n] for n in range(5)})
    second = results("b", {f"p{n}": [0.1 * n + 0.1 + 0.01 * n] for n in range(5)})
    (pair,) = compare([first, second]).pairs
    assert pair.detectable is None
    assert pair.needed >= 6


def test_nothing_graded_in_the_first_questions_stops_nothing():
    tuned = table(20, 30, 5, 20)[1]
    nobody = StopRule("base", "f", {}, 2.0)
    run_rule(nobody, tuned)
    assert nobody.stopped is None


def test_betting_intervals_have_a_width_where_all_values_are_equal():
    ends = betting_interval([1.0] * 20)
    assert ends.high == 1.0
    assert 0.7 < ends.low < 0.86
    wide, narrow = betting_interval([0.0, 1.0] * 10), betting_interval([0.4, 0.6] * 10)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert betting_interval([0.2, 0.8] * 500).low == pytest.approx(0.478, abs=0.01)
    with pytest.raises(ValueError):
        betting_interval([])


def test_the_anytime_p_value_belongs_to_the_interval():
    rng = np.random.default_rng(3)
    for share in (0.5, 0.55, 0.6, 0.7, 0.9):
        found = anytime((2.0 * (rng.random(200) < share) - 1).tolist())
        assert (found.p < 0.05) is (0.0 not in found.interval)
    assert anytime([]) == anytime([0.0] * 0)
    assert anytime([0.0] * 30).p == 1.0


def test_where_no_mean_is_possible_nothing_is_known_and_nothing_stops(monkeypatch):
    changed = [0.0] * 32 + [-1.0] * 32
    assert anytime(changed) == Anytime(Interval(-1.0, 1.0), 1.0)
    # What lies between two steps of the grid is possible all the same.
    with monkeypatch.context() as patch:
        patch.setattr(betting, "STEPS", 20)
        exact = betting_interval([0.525] * 300)
    assert exact.low <= 0.525 <= exact.high < exact.low + 0.2
    order = asked_order(f"p{n}" for n in range(96))
    base = results("base", {key: [1.0] for key in order})
    tuned = results("tuned", {key: [float(at < 32)] for at, key in enumerate(order)})
    one = rule(base, 0.01)
    assert len(run_rule(one, tuned)[1]) == 96
    assert one.stopped is None


def rule(base: ResultSet, width: float | None = None) -> StopRule:
    scores = {key: a.verdict.score for key, (a,) in base.by_problem().items()}
    return StopRule("base", "f", scores, width)


class Asked:
    """A plan of single attempts, answered from a set."""

    def __init__(self, result: ResultSet) -> None:
        self.result, self.asked = result, []


def run_rule(one: StopRule, tuned: ResultSet, stored: tuple = (), stop: bool = False):
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.generate.requests import Sampling
    from tunesmith.tasks.registry import get_graded_task

    task = get_graded_task("units")
    problems = [*tuned.problems.values()]
    plan = one.planned(Plan(task, problems, "direct", Sampling(8), 1, 0))
    by_problem, done = tuned.by_problem(), {a.problem_id for a in stored}

    def ask(part):
        for problem in part.problems:
            if problem.id not in done:
                yield by_problem[problem.id][0]

    return plan, list(one.attempts(ask, plan, stored, lambda: stop))


def test_asking_stops_once_the_difference_is_clear():
    base, tuned = table(60, 110, 50, 180)
    one = rule(base)
    plan, made = run_rule(one, tuned)
    assert one.stopped is not None
    assert 64 < len(made) == one.stopped.questions < 400
    assert len(made) % LOOK == 0
    assert [a.problem_id for a in made] == asked_order(tuned.problems)[: len(made)]
    assert 0.0 not in one.stopped.interval
    assert "which holds at every time" in one.stopped.sentence()
    # Gone on with after a kill, it stops at the same place and asks nothing twice.
    again = rule(base)
    _, rest = run_rule(again, tuned, tuple(made[:50]))
    assert again.stopped == one.stopped
    assert len(rest) == len(made) - 50
    assert plan.fingerprint() != run_rule(rule(base, 0.2), tuned)[0].fingerprint()


def test_no_look_is_taken_before_what_is_stored():
    base, tuned = table(10, 0, 110, 0)
    order = asked_order(tuned.problems)
    stored = tuple(tuned.by_problem()[key][0] for key in order[:70])
    one = rule(base)
    assert len(run_rule(one, tuned, stored)[1]) == 26
    assert one.stopped.questions == one.stopped.attempts == 96


def test_asking_goes_on_where_nothing_is_clear_and_after_a_signal():
    base, tuned = table(40, 20, 20, 40)
    one = rule(base)
    assert len(run_rule(one, tuned)[1]) == 120
    assert one.stopped is None
    wide = rule(base, 0.9)
    assert len(run_rule(wide, tuned)[1]) < 120
    assert wide.stopped.why == "width"
    stopped = rule(*table(0, 100, 0, 20)[:1])
    assert len(run_rule(stopped, table(0, 100, 0, 20)[1], stop=True)[1]) == LOOK
    assert stopped.stopped is None


def test_a_set_that_was_stopped_gets_no_p_value_of_a_fixed_number():
    base, tuned = table(40, 30, 10, 20)
    tuned.header.details[STOP_RULE] = {"against": "base"}
    (pair,) = compare([base, tuned]).pairs
    fixed: Pair = compare(table(40, 30, 10, 20)).pairs[0]
    assert pair.sequential
    assert "every time" in pair.test
    assert pair.p > fixed.p
    assert pair.interval.high - pair.interval.low > fixed.interval.high - fixed.interval.low
    assert "asked until clear" in pair.sentence()
    base, tuned = (grouped(one) for one in (base, tuned))
    with pytest.raises(UsageError, match="stopped when clear"):
        compare([base, tuned])


def test_eval_stops_when_clear_and_compare_knows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quiet = ["--log-level", "warning", "--limit", "96", "--max-new-tokens", "4"]
    assert main(["eval", *quiet, "--name", "base"]) == 0
    path = Path("runs/base")
    base = load(path)
    right = {key: [1.0] for key in base.problems}
    best = results("best", right)
    save(Path("runs/best"), ResultSet(best.header, best.attempts, base.problems))
    command = ["eval", *quiet, "--name", "second", "--compare-with", "runs/best"]
    assert main([*command, "--stop-when-clear"]) == 0
    found = load("runs/second")
    assert len(found.attempts) == LOOK
    assert found.missing == 0
    assert json.loads(Path("runs/second/stopped.json").read_text())["tokens_saved"] > 0
    before = Path("runs/second/attempts.jsonl").read_bytes()
    assert main([*command, "--stop-when-clear"]) == 0
    assert Path("runs/second/attempts.jsonl").read_bytes() == before
    # Where it stopped is no longer said once asking goes on, be it to the end or not.
    shutil.copytree("runs/second", "runs/kept")
    shutil.copy("runs/kept/stopped.json", "runs/stop.json")
    Path("runs/second/attempts.jsonl").unlink()
    good = results("second", {key: [1.0] for key in found.problems}).attempts
    head = replace(found.header, details=without_stop(found.header))
    save(Path("runs/second"), ResultSet(head, good, found.problems))
    with monkeypatch.context() as patch:
        patch.setattr(AttemptLog, "append", lambda *_: pytest.fail("asked"))
        with pytest.raises(pytest.fail.Exception):
            main([*command, "--stop-when-clear"])
    assert load("runs/second").missing == 64
    assert main([*command, "--stop-when-clear"]) == 0
    assert not Path("runs/second/stopped.json").exists()
    assert len(load("runs/second").attempts) == 96
    forgotten = Path("runs/kept/stopped.json")
    tell_stop(StopRule("base", "f", {}, None), forgotten.parent)
    assert not forgotten.exists()
    shutil.copy("runs/stop.json", forgotten)
    shutil.rmtree("runs/second")
    Path("runs/kept").rename("runs/second")
    assert main(command) != 0, "the rule is part of the plan"
    capsys.readouterr()
    assert main(["compare", "runs/best", "runs/second"]) == 0
    assert "asked until clear" in capsys.readouterr().out
    Path("runs/second/stopped.json").unlink()
    assert main(["compare", "runs/best", "runs/second"]) == 2
    for wrong in (["--clear-width", "0.1"], ["--stop-when-clear"]):
        assert main(["eval", *quiet, "--name", "third", *wrong]) == 2
    other = [
        "eval",
        *quiet,
        "--name",
        "third",
        "--question-seed",
        "5",
        "--compare-with",
        "runs/best",
    ]
    assert main([*other, "--stop-when-clear"]) == 2
    save(Path("elsewhere"), replace(base, header=replace(base.header, name="third")))
    assert main(["eval", *quiet, "--name", "third", "--compare-with", "elsewhere"]) == 2
    assert not Path("runs/third").exists(), "said before anything is asked"
    shutil.copytree("runs/best", "runs/third/own")
    for own, baseline in (("best", "runs/best"), ("third", "runs/third/own")):
        clash = ["eval", *quiet, "--name", own, "--overwrite", "--compare-with", baseline]
        assert main(clash) == 2
        assert Path(baseline, "attempts.jsonl").is_file(), "nothing is removed before"


def test_a_stopped_set_can_be_voted_on_and_cut():
    _, tuned = table(40, 30, 10, 20)
    stop = {STOP_RULE: {"against": "base"}, STOPPED: {"attempts": 100}}
    tuned = replace(tuned, header=replace(tuned.header, details=stop))
    assert tuned.missing == 0
    stop = {STOP_RULE: {"against": "base"}, STOPPED: {"attempts": 200}}
    sampled = replace(tuned, header=replace(tuned.header, details=stop))
    for one in (clean(tuned, {"p0", "p1"}), voted(sampled, "majority")):
        assert one.missing == 0
        assert STOP_RULE in one.header.details


def test_fields_of_a_file_say_what_belongs_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": f"Who is {n}?", "answer": f"{n}", "book": f"b{n // 2}", "text": "long " * 40}
        for n in range(12)
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a", "b"):
        command = ["eval", "--task", "qa", "--dataset", "q.jsonl", "--max-new-tokens", "2"]
        assert main([*command, "--name", name, "--log-level", "warning"]) == 0
    fields = [one.meta["fields"] for one in load("runs/a").problems.values()]
    assert sorted(one["book"] for one in fields) == sorted(row["book"] for row in rows)
    assert not any("text" in one or "question" in one for one in fields)
    capsys.readouterr()
    assert main(["compare", "runs/a", "runs/b", "--cluster-by", "book"]) == 0
    assert "in 6 groups by book" in capsys.readouterr().out
    assert main(["compare", "runs/a", "runs/b", "--cluster-by", "page"]) == 2
    assert "book" in capsys.readouterr().err


RECIPE = """
model: tunesmith/tiny
stages:
  - eval: {name: first, task: instruct, dataset: rows.jsonl, max_new_tokens: 3}
  - eval: {name: second, task: instruct, dataset: rows.jsonl, max_new_tokens: 6}
  - compare: {of: [first, second], metric: [rouge_l, token_f1]}
  - eval: {name: asked, task: qa, dataset: q.jsonl, max_new_tokens: 2, contamination: [q.jsonl]}
  - eval: {name: again, task: qa, dataset: q.jsonl, max_new_tokens: 3, compare_with: asked}
  - compare: {name: grouped, of: [asked, again], cluster_by: book}
"""


def test_recipes_compare_by_metrics_and_groups_and_hold_against(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {n}.", "completion": f"It is {n}."} for n in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question": f"Who is {n}?", "answer": "x", "book": f"b{n // 2}"} for n in range(12)]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    Path("r.yaml").write_text(RECIPE)
    run(Path("r.yaml"), output_dir="out")
    found = json.loads(Path("out/r/compare/comparison.json").read_text())
    assert list(found["metrics"]) == ["rouge_l", "token_f1"]
    grouped = json.loads(Path("out/r/grouped/comparison.json").read_text())
    assert grouped["pairs"][0]["groups"] == 6
    said = capsys.readouterr().err
    assert "Differences by metric" in said
    assert "12 of 12 test questions occur in training rows" in " ".join(said.split())
    for wrong, match in (
        ("seeds: [a]", "no seeds"),
        ("report: a.html", "no seeds"),
        ("metrik: [a]", "metrik"),
    ):
        Path("r.yaml").write_text(RECIPE.replace("cluster_by: book", wrong))
        with pytest.raises(UsageError, match=match):
            run(Path("r.yaml"), output_dir="out")
