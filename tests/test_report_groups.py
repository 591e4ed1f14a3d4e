"""Groups of problems and several seeds on the page, where the records hold any."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hostile.texts import Reader
from test_compare import results, table
from test_proof import grouped
from tunesmith.cli import main
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.records import ResultSet, save
from tunesmith.evaluate.seeds import SeedEffect, seed_effect
from tunesmith.evaluate.statistics import wilson
from tunesmith.report.collect import collect
from tunesmith.report.groups import SHOWN, by_attempt, group_tables, seeds_forest, spread_table
from tunesmith.report.page import render
from tunesmith.storage import write_json


def words(page: str) -> str:
    return " ".join(" ".join(Reader(page).texts).split())


def marked(result: ResultSet, **fields) -> ResultSet:
    """Give each problem the fields that the functions make of its place."""
    problems = {
        key: replace(one, meta={name: make(at) for name, make in fields.items()})
        for at, (key, one) in enumerate(result.problems.items())
    }
    return replace(result, problems=problems)


def test_groups_of_a_comparison_have_their_score_number_and_interval(tmp_path):
    base, tuned = (grouped(one, "document") for one in table(8, 24, 8, 40))
    (found,) = group_tables([base, tuned], [compare([base, tuned], "document")])
    assert found.title == "Scores by document"
    assert found.columns == ["document", "Problems", "base", "tuned"]
    group, number, _, said = found.rows[0]
    ours = [k for k, one in tuned.problems.items() if str(one.meta["document"]) == group]
    right = sum(tuned.by_problem()[key][0].verdict.score for key in ours)
    ends = wilson(int(right), len(ours))
    assert number == str(len(ours)) == "4"
    assert said == f"{100 * right / 4:.1f}% ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
    fewer = dict(list(base.problems.items())[1:])
    kept = tuple(one for one in base.attempts if one.problem_id in fewer)
    (less,) = group_tables([replace(base, problems=fewer, attempts=kept), tuned], [], "document")
    assert less.rows[0][2].endswith(" of 3")
    # Rows have no names, and what was compared one by one has no groups.
    rows = [grouped(one) for one in table(8, 24, 8, 40)]
    assert group_tables(rows, [compare(rows)]) == []
    assert group_tables([base, tuned], [compare([base, tuned])]) == []
    for one in (base, tuned):
        save(tmp_path / one.name, one)
    write_json(tmp_path / "comparison.json", compare([base, tuned], "document").to_json())
    page = words(render(collect(tmp_path)))
    assert "Groups" in page
    assert "Scores by document" in page


def test_the_subtasks_of_a_set_are_groups_without_being_asked_for():
    both = [marked(one, subtask=lambda at: f"part {at % 3}") for one in table(8, 24, 8, 40)]
    (found,) = group_tables(both, [])
    assert [row[0] for row in found.rows] == ["part 0", "part 1", "part 2"]
    alone = [marked(one, subtask=str) for one in both]
    assert group_tables(alone, []) == []  # each is its own
    assert group_tables([both[0], table(8, 24, 8, 40)[1]], []) == []  # one set does not know it


def test_of_many_groups_the_largest_are_shown_and_the_others_counted():
    # The first group has twice as many problems as any other.
    base = marked(table(20, 20, 20, 20)[0], subtask=lambda at: f"g{max(0, at - 2) // 2:02d}")
    (found,) = group_tables([base], [])
    assert len(found.rows) == SHOWN
    assert found.rows[0][0] == "g00"
    assert "The 20 largest of 39 groups" in found.note


def test_passes_over_the_questions_are_seeds_of_their_own():
    one = results("a", {"p0": [1.0, 0.0, 1.0], "p1": [1.0, 0.0, 0.0]})
    assert by_attempt(one) == [1.0, 0.0, 0.5]
    (found,) = spread_table([("a", by_attempt(one)), ("b", [])])
    assert found.rows == [["a", "3", "50.0", "50.0", "0.0", "100.0"]]
    assert by_attempt(results("a", {"p0": [1.0], "p1": [0.0]})) == []
    # A pass that asked only some of the questions is no pass over them.
    assert by_attempt(results("a", {"p0": [1.0, 0.0], "p1": [1.0, None]})) == []
    assert spread_table([("b", []), ("c", [0.5])]) == []


def runs(name: str, share: float, seeds: int = 3) -> list[ResultSet]:
    rng = np.random.default_rng(len(name))
    return [
        results(f"{name}-{seed}", {f"p{n}": [float(rng.random() < share)] for n in range(60)})
        for seed in range(seeds)
    ]


def test_an_effect_over_seeds_is_stored_read_and_drawn():
    first, second = runs("base", 0.3), runs("tuned", 0.7)
    effect = seed_effect(first, second)
    for one, score in zip(second, effect.second_by_seed, strict=True):
        assert score == pytest.approx(np.mean([a.verdict.score for a in one.attempts]))
    apart = np.subtract(effect.second_by_seed, effect.first_by_seed)
    assert list(apart) == pytest.approx(list(effect.by_seed))
    stored = json.loads(json.dumps(effect.to_json()))
    assert SeedEffect.from_json(stored) == effect
    for broken in (
        {**stored, "by_seed": "many"}, {**stored, "difference": float("nan")},
        {**stored, "first_by_seed": [0.5]}, {"seeds": 3}, [], None,
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            SeedEffect.from_json(broken)
    drawn = seeds_forest(effect)
    assert [row.name for row in drawn.rows] == ["all 3 seeds", "seed 1", "seed 2", "seed 3"]
    assert {drawn.reach(row) for row in drawn.rows} == {max(row.reach for row in drawn.rows)}
    old = {k: v for k, v in stored.items() if k not in ("first_by_seed", "second_by_seed")}
    assert seeds_forest(SeedEffect.from_json(old)).rows[1].first == "–"
    (alone,) = seeds_forest(seed_effect(first[:1], second[:1])).rows
    assert (alone.name, alone.low) == ("one seed", None)


def test_compare_by_seed_writes_a_page_and_reports_show_what_it_stored(tmp_path, capsys):
    sides = runs("base", 0.3), runs("tuned", 0.7)
    folders = [[str(tmp_path / one.name) for one in side] for side in sides]
    for one in (*sides[0], *sides[1]):
        save(tmp_path / one.name, one)
    page, kept = tmp_path / "page.html", tmp_path / "seeds.json"
    command = ["compare", *folders[0], "--seeds", *folders[1]]
    assert main([*command, "--report", str(page), "--output", str(kept)]) == 0
    assert f"Report: {page}" in capsys.readouterr().err
    text = page.read_text()
    assert "Better" in words(text)
    for said in ("all 3 seeds", "seed 3", "Spread over seeds", "Standard deviation", "tuned-2"):
        assert said in words(text)
    # One mark for the mean with its interval, and one for each seed, in the table of seeds.
    assert text.count('<line class="zero"') == 4
    assert "seed 3" in words(render(collect(tmp_path)))
    one = ["compare", folders[0][0], "--seeds", *folders[1], "--report", str(page)]
    assert main(one) == 0  # a single baseline is no spread of its own
    said = words(page.read_text())
    assert "tuned-0 3 " in said
    assert "base-0 3 " not in said
    write_json(kept, {"seeds": 3})
    data = collect(tmp_path)
    assert data.seeds == []
    assert any("tells of no effect over seeds" in note for note in data.notes)
