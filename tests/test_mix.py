"""Mixes: counts that add up, bytes that do not change, prompts that stay on one side."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.cli import main
from tunesmith.config.schema_mix import check_mix, load_mix
from tunesmith.data import mix_rows
from tunesmith.data.erasure import CAUTIOUS, traces
from tunesmith.data.formats import to_examples
from tunesmith.data.groups import group, held_out, similarity
from tunesmith.data.mix_rows import Pool, Spec, Treatment
from tunesmith.data.mixture import Ask, apportion, copies, largest_total, plan
from tunesmith.data.named_sets import ASSETS, NAMED_SETS, converted, find
from tunesmith.data.readers import Row, read_rows
from tunesmith.data.strategies import STRATEGIES
from tunesmith.data.words import normalised
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate import records
from tunesmith.types import Attempt, Origin, Problem, Segment, StopReason, Verdict
from tunesmith.workflows import console
from tunesmith.workflows.mix import MixResult
from tunesmith.workflows.mix import mix as mix_once
from tunesmith.workflows.recipe import check_references, run
from tunesmith.workflows.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent
TEACHER = "You are a teacher who always explains every single step in full detail."
NOUNS = "apple boat cloud drum engine forest garden hammer island jacket kettle ladder".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    console.set_level("info")


def sentence(seed: object) -> str:
    return " ".join(random.Random(str(seed)).choices(NOUNS, k=8))


def write(name: str, count: int, *, system: str = "", salt: str = "") -> None:
    rows: list[dict[str, Any]] = []
    for n in range(count):
        question = f"{sentence((name, salt, n))} {n}?"
        rows.append({"instruction": question, "output": f"It is {n}."})
        if system:
            rows[-1]["system"] = system
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def mix(made_of: Any, output: str) -> MixResult:
    return mix_once(made_of, output, overwrite=True)


def recipe(**settings: Any) -> Any:
    return check_mix(settings, where="mix.yaml")


def two(**more: Any) -> dict[str, Any]:
    sources = [
        {"name": "a", "dataset": "a.jsonl", "share": 0.7},
        {"name": "b", "dataset": "b.jsonl", "share": 0.3},
    ]
    return {"sources": sources, "rows": 40, **more}


# Counts.

ASKS = st.lists(
    st.tuples(
        st.integers(1, 300),
        st.sampled_from(("upsample", "redistribute")),
        st.integers(1, 5),
        st.floats(0.05, 1),
    ),
    min_size=1,
    max_size=6,
)


@given(ASKS, st.integers(1, 900))
@settings(max_examples=150, deadline=None)
def test_a_plan_adds_up_and_keeps_its_caps(found: list[Any], rows: int) -> None:
    whole = sum(share for *_, share in found)
    asks = [Ask(f"s{n}", f[3] / whole, f[0], f[1], f[2]) for n, f in enumerate(found)]
    planned = plan(asks, rows)
    assert sum(one.target for one in planned.values()) == rows
    assert sum(one.planned for one in planned.values()) <= rows
    for ask in asks:
        one = planned[ask.name]
        assert one.unique <= ask.available
        assert one.planned <= ask.available * ask.max_repeat
        assert not one.repeats or ask.when_short == "upsample"
        assert not one.repeats or one.planned <= one.target
    if sum(one.planned for one in planned.values()) < rows:
        assert all(planned[ask.name].unique == ask.available for ask in asks)
    assert plan(asks[::-1], rows) == planned


@given(st.integers(0, 5000), st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_parts_add_up_and_lie_within_one_of_their_share(total: int, shares: list[float]) -> None:
    named = {f"s{n}": share for n, share in enumerate(shares)}
    parts = apportion(total, named)
    assert sum(parts.values()) == total
    for name, share in named.items():
        assert abs(parts[name] - total * share / sum(shares)) < 1 + 1e-6


@given(st.integers(1, 50), st.integers(0, 400), st.integers(1, 6))
def test_copies_go_round_and_stop_at_the_cap(count: int, repeats: int, cap: int) -> None:
    times = copies(count, repeats, cap)
    assert sum(times) == count + min(repeats, count * (cap - 1))
    assert max(times) - min(times) <= 1
    assert max(times) <= cap


def test_a_short_source_stops_the_mix_and_says_what_would_fit() -> None:
    asks = [Ask("big", 0.5, 100), Ask("small", 0.5, 10)]
    with pytest.raises(DataError, match="small has 10 of 30") as caught:
        plan(asks, 60)
    assert caught.value.hint == "rows: 21"
    assert {name: one.planned for name, one in plan(asks, None).items()} == {"big": 11, "small": 10}
    assert largest_total(asks) == 21
    with pytest.raises(DataError):
        plan(asks, 22)


def test_the_three_ways_of_a_short_source() -> None:
    up = plan([Ask("big", 0.5, 100), Ask("small", 0.5, 10, "upsample", 3)], 40)
    assert (up["small"].planned, up["big"].planned) == (20, 20)
    assert up["small"].notes == ["up-sampled 2.00 times"]
    capped = plan([Ask("big", 0.5, 100), Ask("small", 0.5, 10, "upsample", 3)], 100)
    assert (capped["small"].planned, capped["big"].planned) == (30, 70)
    assert "cap of 3 reached, 20 rows to the others" in capped["small"].notes
    given_away = plan([Ask("big", 0.5, 100), Ask("small", 0.5, 10, "redistribute")], 60)
    assert (given_away["small"].planned, given_away["big"].planned) == (10, 50)
    assert given_away["big"].notes == ["20 more in place of short sources"]


def test_without_shares_sources_go_by_their_size() -> None:
    planned = plan([Ask("a", None, 300), Ask("b", None, 100)], None)
    assert {name: one.planned for name, one in planned.items()} == {"a": 300, "b": 100}


# Groups.


def test_equal_and_nearly_equal_prompts_share_a_group() -> None:
    text = " ".join(f"word{n}" for n in range(40))
    near, far = text.replace("word39", "other"), " ".join(f"word{n}" for n in range(0, 40, 2))
    assert similarity(text, near) > 0.8 > similarity(text, far)
    prompts = ["A  b?", text, far, near, "a B?", "c"]
    numbers = group(prompts)
    assert numbers[0] == numbers[4]
    assert numbers[1] == numbers[3]
    assert len(set(numbers)) == 4
    assert [len({*pair}) for pair in zip(group(prompts[::-1])[::-1], numbers, strict=True)]
    assert group([text, far], threshold=0.5) == [0, 1]
    assert normalised("A  b?\n") == "a b?"


def test_pairs_at_the_threshold_are_found() -> None:
    found = total = 0
    for n in range(60):
        words = [f"w{n}x{k}" for k in range(60)]
        other = [*words[:54], *(f"o{n}x{k}" for k in range(6))]
        one, two_ = " ".join(words), " ".join(other)
        if similarity(one, two_) >= 0.8:
            total += 1
            found += len(set(group([one, two_]))) == 1
    assert total == 60
    assert found >= 58


def test_pairs_below_the_threshold_stay_apart() -> None:
    for n in range(30):
        words = [f"w{n}x{k}" for k in range(60)]
        one, other = " ".join(words), " ".join([*words[:49], *(f"o{k}" for k in range(11))])
        assert 0.6 < similarity(one, other) < 0.8
        assert len(set(group([one, other]))) == 2


def test_groups_that_are_all_too_large_hold_out_the_smallest() -> None:
    assert held_out([0] * 5 + [1] * 4, [f"row{n}" for n in range(9)], 1, 0) == {5, 6, 7, 8}
    assert held_out([0] * 5, [f"row{n}" for n in range(5)], 1, 0) == set()
    assert held_out([0, 1], ["a", "b"], 0, 0) == set()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 20), st.integers(0, 9))
def test_held_out_rows_are_whole_groups_whatever_their_order(
    groups: list[int], wanted: int, seed: int
) -> None:
    names = [f"row{n}" for n in range(len(groups))]
    held = held_out(groups, names, wanted, seed)
    inside = {number for place, number in enumerate(groups) if place not in held}
    outside = {groups[place] for place in held}
    assert not inside & outside
    if len(set(groups)) > 1:
        assert held
        assert inside
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    again = held_out([groups[n] for n in order], [names[n] for n in order], wanted, seed)
    assert {names[order[place]] for place in again} == {names[place] for place in held}


# Rows.


def test_lineage_erasure_and_layout_of_the_output() -> None:
    write("a.jsonl", 50, system=TEACHER)
    write("b.jsonl", 50)
    made_of = two(erasure={"mode": "replace"}, strategies={"default": "direct"}, validation=0.1)
    result = mix(recipe(**made_of), "out.jsonl")
    rows = [*made(), *made("out-validation.jsonl")]
    assert len(rows) == 40
    assert len(made("out-validation.jsonl")) == 4
    for row in rows:
        meta = row["meta"]
        assert row["messages"][0] == {"role": "system", "content": CAUTIOUS[0]}
        assert meta["erasure"] == "replace"
        assert len(meta["fingerprint"]) == 32
        file, _, line = meta["origin"].partition(":")
        original = json.loads(Path(file).read_text().splitlines()[int(line) - 1])
        assert original["instruction"] == row["messages"][1]["content"]
        if meta["source"] == "a":
            assert (meta["instruction"], meta["strategy"]) == (TEACHER, "explain-then-answer")
        else:
            assert meta["instruction"] == STRATEGIES["direct"].instruction
            assert meta["strategy"] == "direct"
    layout, examples = to_examples(list(read_rows("out.jsonl")))
    assert layout.name == "messages"
    assert examples[0].segments[-1].weight == 1
    [stage] = result.summary["stages"]
    assert {name: s["rows"] for name, s in stage["sources"].items()} == {"a": 28, "b": 12}
    assert sum(s["share"] for s in stage["sources"].values()) == pytest.approx(1)
    assert json.loads(Path("out.mix.json").read_text()) == json.loads(json.dumps(result.summary))


@pytest.mark.parametrize("mode", ["replace", "drop", "rotate", None])
def test_modes_of_erasure(mode: str | None) -> None:
    write("a.jsonl", 40, system=TEACHER)
    sources = [{"name": "a", "dataset": "a.jsonl"}]
    mix(recipe(sources=sources, **({"erasure": {"mode": mode}} if mode else {})), "out.jsonl")
    heads = {row["messages"][0]["content"] for row in made()}
    if mode is None:
        assert heads == {TEACHER}
        assert {row["meta"]["erasure"] for row in made()} == {""}
        return
    assert {row["meta"]["instruction"] for row in made()} == {TEACHER}
    assert not any(
        traces(TEACHER, turn["content"], 6) for row in made() for turn in row["messages"]
    )
    roles = {row["messages"][0]["role"] for row in made()}
    assert roles == ({"user"} if mode == "drop" else {"system"})
    assert mode != "rotate" or len(heads) > 3


def test_a_source_may_keep_its_instructions() -> None:
    write("a.jsonl", 20, system=TEACHER)
    sources = [{"name": "a", "dataset": "a.jsonl", "erase": False}]
    mix(recipe(sources=sources, erasure={"mode": "drop"}), "out.jsonl")
    assert {row["messages"][0]["content"] for row in made()} == {TEACHER}


def test_rows_that_leak_are_refused_counted_and_named() -> None:
    rows = [{"system": TEACHER, "instruction": f"{n}?", "output": f"{n}"} for n in range(10)]
    rows[3]["output"] = f"As you said: {TEACHER}"
    rows[5]["output"] = "a<|endoftext|>b"
    rows[7]["output"] = "first\\nSecond <<1+1=2>>"
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings_ = {"sources": [{"name": "a", "dataset": "a.jsonl"}], "erasure": {"mode": "rotate"}}
    result = mix(recipe(**settings_, validation=0), "out.jsonl")
    assert {row["meta"]["origin"] for row in made()} == {
        f"a.jsonl:{n}" for n in range(1, 11) if n not in (4, 6)
    }
    counts = result.summary["audit"]["counts"]
    assert counts["refused"] == {"end_of_text": 1, "instruction": 1}
    assert counts["left"] == {"calculator": 1, "escapes": 1}
    found = {(row["kind"], row["origin"], row["refused"]) for row in made("out.audit.jsonl")}
    assert ("instruction", "a.jsonl:4", True) in found
    assert ("calculator", "a.jsonl:8", False) in found
    kept = mix(recipe(**settings_, validation=0, audit={"refuse": []}), "out.jsonl")
    assert len(made()) == 10
    assert kept.summary["audit"]["counts"]["left"]["instruction"] == 1


def test_gold_answers_are_checked_and_may_refuse() -> None:
    rows = [
        {"question": f"{n} + 1?", "answer": f"It is {n + (n != 2)}", "gold": n + 1}
        for n in range(6)
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "a", "dataset": "a.jsonl", "gold": "gold"}
    result = mix(recipe(sources=[source]), "out.jsonl")
    assert result.summary["audit"]["counts"]["left"] == {"gold": 1}
    result = mix(recipe(sources=[source], audit={"refuse": ["gold"]}), "out.jsonl")
    assert result.summary["sources"]["a"]["refused"] == {"gold": 1}
    with pytest.raises(DataError, match="6 of 6 rows of a cannot be used") as caught:
        mix(recipe(sources=[{**source, "gold": "golden"}]), "out.jsonl")
    assert "a.jsonl:1: the field 'golden' is missing" in caught.value.found


def test_copies_stay_in_training_and_say_their_number() -> None:
    write("a.jsonl", 200)
    write("b.jsonl", 10)
    sources = [
        {"name": "a", "dataset": "a.jsonl", "share": 0.8},
        {"name": "b", "dataset": "b.jsonl", "share": 0.2, "when_short": "upsample"},
    ]
    result = mix(recipe(sources=sources, rows=100, validation=0.1), "out.jsonl")
    train, held = made(), made("out-validation.jsonl")
    assert len(train) + len(held) == 100
    assert {row["meta"]["copy"] for row in held} == {0}
    inside = {row["meta"]["fingerprint"] for row in train}
    assert not inside & {row["meta"]["fingerprint"] for row in held}
    own = [row["meta"] for row in train if row["meta"]["source"] == "b"]
    assert max(meta["copy"] for meta in own) <= 3
    figures = result.summary["stages"][0]["sources"]["b"]
    assert figures["rows"] == 20
    assert figures["copies"] == sum(meta["copy"] > 0 for meta in own) > 0


def test_near_duplicates_stay_on_one_side_across_sources() -> None:
    base = [sentence(n) + " " + sentence((n, 2)) + f" number {n}" for n in range(60)]
    for name, tail in (("a.jsonl", ""), ("b.jsonl", " please")):
        rows = ({"prompt": text + tail, "completion": "x"} for text in base)
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix(recipe(**two(rows=80, validation=0.25)), "out.jsonl")
    train = [row["messages"][0]["content"] for row in made()]
    held = [row["messages"][0]["content"] for row in made("out-validation.jsonl")]
    assert 15 <= len(held) <= 20
    assert not any(similarity(one, other) >= 0.8 for one in train for other in held)


@given(st.randoms(use_true_random=False))
@settings(max_examples=8, deadline=None)
def test_same_bytes_whatever_the_order_of_sources_and_of_other_files(shuffle: Any) -> None:
    write("a.jsonl", 40, system=TEACHER)
    write("b.jsonl", 40)
    settings_ = two(rows=30, erasure={"mode": "rotate"}, strategies={"default": "direct"})
    settings_["sources"][0] |= {"few_shot": 2, "few_shot_share": 0.5}
    mix(recipe(**settings_), "out.jsonl")
    before = made(), made("out-validation.jsonl"), Path("out.jsonl").read_bytes()
    mix(recipe(**settings_ | {"sources": settings_["sources"][::-1]}), "out.jsonl")
    assert Path("out.jsonl").read_bytes() == before[2]
    lines = Path("b.jsonl").read_text().splitlines(keepends=True)
    shuffle.shuffle(lines)
    Path("b.jsonl").write_text("".join(lines))
    mix(recipe(**settings_), "out.jsonl")
    for name, rows in (("out.jsonl", before[0]), ("out-validation.jsonl", before[1])):
        for row, old in zip(made(name), rows, strict=True):
            # Only the line that a row of the shuffled file came from may change.
            if row["meta"]["source"] == "b":
                row["meta"]["origin"] = old["meta"]["origin"]
            assert row == old


def test_same_bytes_in_another_process_and_other_bytes_with_another_seed() -> None:
    write("a.jsonl", 40)
    write("b.jsonl", 40)
    Path("m.yaml").write_text(yaml.safe_dump(two(rows=30, output="out.jsonl")))
    mix(load_mix(Path("m.yaml")), "out.jsonl")
    before = Path("out.jsonl").read_bytes()
    program = "from tunesmith.cli import main; main(['data', 'mix', 'm.yaml'])"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert Path("out.jsonl").read_bytes() == before
    again = ["data", "mix", "m.yaml", "--seed", "7", "--log-level", "error"]
    assert main(again) == 2
    assert main([*again, "--overwrite"]) == 0
    assert Path("out.jsonl").read_bytes() != before


def test_solved_examples_come_from_training_rows_and_never_from_the_row_itself() -> None:
    write("a.jsonl", 60, system=TEACHER)
    source = {"name": "a", "dataset": "a.jsonl", "few_shot": 3}
    mix(recipe(sources=[source], erasure={"mode": "drop"}, validation=0.2), "out.jsonl")
    train, held = made(), made("out-validation.jsonl")
    origins = {row["meta"]["origin"] for row in train}
    for row in [*train, *held]:
        shots = row["meta"]["shots"].split()
        assert len(set(shots)) == 3
        assert row["meta"]["origin"] not in shots
        assert set(shots) <= origins
        text = row["messages"][0]["content"]
        answer = row["messages"][-1]["content"]
        assert text.count("\nIt is ") == 3
        assert f"\n{answer}" not in text
        assert not traces(TEACHER, text, 6)


def test_few_shot_share() -> None:
    write("a.jsonl", 300)
    source = {"name": "a", "dataset": "a.jsonl", "few_shot": 1, "few_shot_share": 0.3}
    mix(recipe(sources=[source]), "out.jsonl")
    share = sum(bool(row["meta"]["shots"]) for row in made()) / len(made())
    assert 0.2 < share < 0.4


def test_stages_have_outputs_of_their_own_and_one_split() -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write(name, 60)
    first = {"name": "stage-1", "rows": 40, "sources": [{"name": "a", "dataset": "a.jsonl"}]}
    second = {"name": "stage-2", **two(rows=50)}
    replay = {"dataset": "c.jsonl", "share": 0.2}
    made_of = recipe(stages=[first, second], replay=replay, validation=0.2)
    result = mix(made_of, "out.jsonl")
    assert {n: p.name for n, p in result.outputs.items()} == {
        "stage-1": "out-stage-1.jsonl",
        "stage-2": "out-stage-2.jsonl",
    }
    trained, held = set(), set()
    for name, rows in (("stage-1", 40), ("stage-2", 50)):
        train, outside = made(f"out-{name}.jsonl"), made(f"out-{name}-validation.jsonl")
        assert len(train) + len(outside) == rows
        assert sum(r["meta"]["source"] == "replay" for r in [*train, *outside]) == rows // 5
        trained |= {row["meta"]["fingerprint"] for row in train}
        held |= {row["meta"]["fingerprint"] for row in outside}
    assert not trained & held


@pytest.mark.parametrize("output", ["out.parquet", "saved"])
def test_columnar_outputs_hold_the_same_rows(output: str) -> None:
    write("a.jsonl", 40, system=TEACHER)
    write("b.jsonl", 40)
    made_of = recipe(**two(validation=0.1, erasure={"mode": "rotate"}))
    mix(made_of, "out.jsonl")
    mix(made_of, output)
    assert [row.fields for row in read_rows(output)] == made()
    if output == "saved":
        held = [row.fields for row in read_rows(output, split="validation")]
        assert held == made("out-validation.jsonl")
        mix(made_of, output)


def test_repeated_rows_of_a_source_count_once() -> None:
    write("a.jsonl", 10)
    Path("a.jsonl").write_text(Path("a.jsonl").read_text() * 2)
    result = mix(recipe(sources=[{"name": "a", "dataset": "a.jsonl"}]), "out.jsonl")
    assert result.summary["sources"]["a"]["repeated"] == 10
    assert result.summary["stages"][0]["rows"] == 10


def test_only_rows_of_the_assigned_strategy() -> None:
    rows = [
        {"system": STRATEGIES[name].instruction, "instruction": f"{n}?", "output": f"{name} {n}"}
        for n in range(10)
        for name in ("direct", "step-by-step")
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "a", "dataset": "a.jsonl", "only_assigned": True}
    made_of = recipe(sources=[source], strategies={"map": {"a": "step-by-step"}})
    result = mix(made_of, "out.jsonl")
    assert {row["meta"]["strategy"] for row in made()} == {"step-by-step"}
    assert result.summary["sources"]["a"]["refused"] == {"strategy": 10}


def test_an_example_never_completes_an_erased_instruction() -> None:
    asked = "alpha beta gamma delta epsilon zeta"
    rows = [
        {"system": asked, "instruction": f"Delta epsilon zeta {sentence(n)}?", "output": "x"}
        for n in range(20)
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "a", "dataset": "a.jsonl", "few_shot": 1}
    settings_ = {"sources": [source], "erasure": {"mode": "drop"}, "validation": 0}
    mix(recipe(**settings_), "out.jsonl")
    assert all(row["meta"]["shots"] for row in made())
    for row in rows:
        row["output"] = "Alpha beta gamma"
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix(recipe(**settings_), "out.jsonl")
    assert not any(row["meta"]["shots"] for row in made())


def test_examples_are_no_near_duplicates_and_bring_no_instruction_back() -> None:
    base = " ".join(f"word{n}" for n in range(30))
    rows = [{"instruction": f"{base} {n}", "output": f"{n}"} for n in range(20)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "a", "dataset": "a.jsonl", "few_shot": 1}
    mix(recipe(sources=[source], validation=0), "out.jsonl")
    assert not any(row["meta"]["shots"] for row in made())
    asked = [{"system": TEACHER, "instruction": sentence(n), "output": "x"} for n in range(40)]
    telling = [{"instruction": f"{TEACHER} {sentence(n)}", "output": "y"} for n in range(40, 80)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*asked, *telling]))
    mix(recipe(sources=[source], validation=0, erasure={"mode": "drop"}), "out.jsonl")
    erased = [row for row in made() if row["meta"]["erasure"]]
    assert len(erased) == 40
    for row in erased:
        assert row["meta"]["shots"]
        assert not traces(TEACHER, row["messages"][0]["content"], 6)


# Mistakes.


def test_data_that_changes_while_it_is_mixed_is_noticed() -> None:
    write("a.jsonl", 20)
    pool = Pool(Spec("a", "a.jsonl"), Treatment(seed=1))
    write("a.jsonl", 20, salt="other")
    with pytest.raises(DataError, match="changed while it was being mixed"):
        pool.take(5)
    write("a.jsonl", 1)
    with pytest.raises(DataError, match="being mixed"):
        pool.take(20)


def test_a_turn_with_more_than_text_needs_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.jsonl", 20)
    whole = mix_rows.treated

    def with_name(*given_: Any) -> Any:
        row = whole(*given_)
        head = replace(row.turns[0], extra={"name": "Ida"})
        return replace(row, turns=(head, *row.turns[1:]))

    monkeypatch.setattr(mix_rows, "treated", with_name)
    sources = [{"name": "a", "dataset": "a.jsonl"}]
    mix(recipe(sources=sources), "out.jsonl")
    assert made()[0]["messages"][0]["name"] == "Ida"
    for output in ("out.parquet", "saved"):
        with pytest.raises(DataError, match=r"a.jsonl:\d+: a turn carries name besides its text"):
            mix(recipe(sources=sources), output)
        assert not Path(output).exists()


def stored(name: str, task: str = "units", planned: int = 4, split: str = "x") -> str:
    attempts, problems = [], {}
    for n in range(4):
        key = f"{split}/{n}"
        problems[key] = Problem(key, task, (Segment("user", "?"),), "1", {"kind": "small"})
        verdict = Verdict(float(n % 2), "1", "")
        attempts.append(Attempt(key, 0, 0, "1", (1,), StopReason.STOP_TOKEN, verdict))
    header = records.Header(name, task, "test", "direct", "m", 0, planned=planned)
    records.save(name, records.ResultSet(header, tuple(attempts), problems))
    return name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "maths"}, "belong to different tasks: maths, units"),
        ({"planned": 9}, "run of 'step-by-step' is not finished: 5 attempts are missing"),
        ({"split": "y"}, "share no graded problem"),
        (None, "There are no stored attempts"),
    ],
)
def test_measured_runs_that_cannot_be_compared(other: Any, message: str) -> None:
    write("a.jsonl", 20)
    measured = {"direct": stored("one"), "step-by-step": stored("two", **other) if other else "no"}
    sources = [{"name": "a", "dataset": "a.jsonl"}]
    with pytest.raises(DataError, match=message):
        mix(recipe(sources=sources, strategies={"measured": measured}), "out.jsonl")


def test_a_measured_category_that_nothing_belongs_to_is_said(capsys: Any) -> None:
    write("a.jsonl", 20)
    measured = {"direct": stored("one"), "step-by-step": stored("two")}
    strategies = {"measured": measured, "measured_by": "kind"}
    sources = [{"name": "a", "dataset": "a.jsonl"}]
    mix(recipe(sources=sources, strategies=strategies), "out.jsonl")
    assert "no category or source of the mix: small" in capsys.readouterr().err
    sources[0]["category"] = "small"
    mix(recipe(sources=sources, strategies=strategies), "out.jsonl")
    assert "no category" not in capsys.readouterr().err
    assert {row["meta"]["strategy"] for row in made()} == {"direct"}


def test_all_faults_of_a_recipe_are_named_with_their_lines() -> None:
    Path("m.yaml").write_text(
        "rows: many\n"
        "sources:\n"
        "  - {name: a, dataset: a.jsonl, shar: 0.5}\n"
        "  - name: b\n"
        "    share: 2\n"
        "    when-short: upsampel\n"
        "erasure: {mode: erase}\n"
        "stratgies: {}\n"
    )
    with pytest.raises(UsageError) as caught:
        load_mix(Path("m.yaml"))
    for said in (
        "m.yaml:1: rows: 'many' is not a whole number",
        "m.yaml:3: sources[1].shar: there is no such setting; did you mean 'share'?",
        "m.yaml:4: sources[2].dataset is missing: A file",
        "m.yaml:5: sources[2].share: 2 is not a number above 0 and of at most 1",
        "m.yaml:6: sources[2].when-short: 'upsampel' is not one of fail, upsample, redistribute; "
        "did you mean 'upsample'?",
        "m.yaml:7: erasure.mode: 'erase' is not one of replace, drop, rotate",
        "m.yaml:8: stratgies: there is no such setting; did you mean 'strategies'?",
    ):
        assert said in caught.value.found, said


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({}, "'sources' is missing or empty"),
        ({"sources": [{"name": "a", "dataset": "x", "share": 0.5}]}, "add up to 0.5, not to 1"),
        ({"sources": "a"}, "sources: 'a' is not a list"),
        ({"sources": ["a"]}, r"sources\[1\]: 'a' is not a mapping"),
        ({"sources": [{"name": "a", "dataset": "x"}] * 2}, "two sources are called 'a'"),
        (
            {"sources": [{"name": "a", "dataset": "x", "share": 1}, {"name": "b", "dataset": "y"}]},
            "no share for b",
        ),
        ({**two(), "stages": [{"name": "s", "sources": [{"name": "a", "dataset": "x"}]}]}, "with"),
        (two(strategies={"measured": {"direct": "x"}}), "one run measures nothing"),
        (two(strategies={"measured": {"guess": "x", "direct": "y"}}), "no strategy 'guess'"),
        (two(replay={"dataset": "c"}), "replay.share is missing"),
        (two(strategies={"map": {"a": "guess"}}), "'a: guess' is not a name with none, direct"),
        (two(strategies={"default": "auto"}), "strategies.default: 'auto' is not one of none"),
    ],
)
def test_contradictions_are_sentences(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**settings_)


def test_another_name_of_a_setting() -> None:
    source = {"name": "a", "dataset_name": "x", "proportion": 1.0}
    assert recipe(sources=[source], validation_split=0.2).sources[0].share == 1
    with pytest.raises(UsageError, match="'share' is set already"):
        recipe(sources=[{**source, "share": 1.0}])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nowhere.yaml"], "There is no mix recipe 'nowhere.yaml'"),
        (["m.yaml"], "m.yaml names no output"),
        (["m.yaml", "--output", "out.xlsx"], "no format that rows can be written in"),
        (["m.yaml", "--output", "a.jsonl"], "would be overwritten by what is made of it"),
        (["m.yaml", "--output", "kept"], "is no saved data set; it is not replaced"),
        (["m.yaml", "--output", "out.jsonl", "--rows", "9999"], "Too few rows for the shares"),
        (["text.yaml", "--output", "out.jsonl"], "plain text, not a question with an answer"),
    ],
)
def test_mistakes_on_the_command_line(command: list[str], message: str, capsys: Any) -> None:
    write("a.jsonl", 40)
    write("b.jsonl", 40)
    Path("kept").mkdir()
    Path("kept/thesis.txt").write_text("mine")
    Path("notes.txt").write_text("Some plain text.")
    Path("m.yaml").write_text(yaml.safe_dump(two()))
    Path("text.yaml").write_text("sources: [{name: t, dataset: notes.txt}]")
    assert main(["data", "mix", *command]) in (2, 3)
    assert message in capsys.readouterr().err
    assert Path("kept/thesis.txt").read_text() == "mine"
    assert not Path("out.jsonl").exists()


def test_unreadable_rows_stop_the_mix_unless_they_are_allowed() -> None:
    write("a.jsonl", 9)
    Path("a.jsonl").write_text(Path("a.jsonl").read_text() + '{"instruction": "x", "output": ""}\n')
    sources = [{"name": "a", "dataset": "a.jsonl"}]
    with pytest.raises(DataError, match=r"1 of 10 rows of a cannot be used:\n  a.jsonl:10: "):
        mix(recipe(sources=sources), "out.jsonl")
    result = mix(recipe(sources=sources, allow_refused=0.1), "out.jsonl")
    assert result.summary["sources"]["a"]["unreadable"] == 1


# Named sets.

LAYOUTS = {
    "slimorca": (
        {
            "conversations": [
                {"from": "system", "value": "Explain.", "weight": None},
                {"from": "human", "value": "Why?", "weight": 0},
                {"from": "gpt", "value": "Because.", "weight": 1},
            ]
        },
        ["Explain.", "Why?", "Because."],
    ),
    "arc-challenge": (
        {
            "id": "x",
            "question": "Which one floats?",
            "choices": {"text": ["iron", "cork"], "label": ["1", "2"]},
            "answerKey": "2",
        },
        ["Which one floats?\n\n1) iron\n2) cork", "The answer is 2) cork"],
    ),
    "commonsenseqa": (
        {
            "id": "y",
            "question": "Where do boats sleep?",
            "question_concept": "boat",
            "choices": {"label": ["A", "B"], "text": ["harbour", "tree"]},
            "answerKey": "A",
        },
        ["Where do boats sleep?\n\nA) harbour\nB) tree", "The answer is A) harbour"],
    ),
    "squad": (
        {
            "id": "z",
            "title": "T",
            "context": "Ida left at noon.",
            "question": "When did Ida leave?",
            "answers": {"text": ["at noon", "noon"], "answer_start": [9, 12]},
        },
        ["Ida left at noon.\n\nQuestion: When did Ida leave?", "at noon"],
    ),
    "metamathqa": (
        {
            "type": "GSM_Rephrased",
            "query": "What is 2 + 2?",
            "original_question": "2 + 2?",
            "response": "2 + 2 = 4\n#### 4\nThe answer is: 4",
        },
        ["What is 2 + 2?", "2 + 2 = 4\n#### 4\nThe answer is: 4"],
    ),
    "gsm8k": (
        {"question": "1 + 1?", "answer": "<<1+1=2>>2\n#### 2"},
        ["1 + 1?", "<<1+1=2>>2\n#### 2"],
    ),
    "alpaca-instruct": (
        {"instruction": "Say it", "input": "hi", "output": "hi!", "text": "all"},
        ["Say it\n\nhi", "hi!"],
    ),
    "dolly": (
        {"instruction": "When?", "context": "At noon.", "response": "Noon.", "category": "qa"},
        ["When?\n\nAt noon.", "Noon."],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_named_sets_become_conversations(name: str) -> None:
    fields, texts = LAYOUTS[name]
    entry = find(name)
    assert entry is not None
    origin = Origin("hub", 1)
    row = converted(entry, fields, origin)
    _, [example] = to_examples([Row(row, origin)])
    assert [segment.text for segment in example.segments] == texts
    if "gold" in row:
        from tunesmith.data.erasure import agrees

        assert agrees(texts[-1], row["gold"])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("squad", {"question": "?"}, "no column 'answers'"),
        ("arc-easy", {"question": "?", "choices": None, "answerKey": "A"}, "NoneType"),
        (
            "arc-easy",
            {"question": "?", "choices": {"label": ["A"], "text": ["x"]}, "answerKey": "E"},
            "'E' is none of A",
        ),
    ],
)
def test_a_row_of_another_layout_is_named(name: str, fields: dict, message: str) -> None:
    entry = find(name)
    assert entry is not None
    with pytest.raises(DataError, match=message) as caught:
        converted(entry, fields, Origin("hub[train]", 3))
    assert "hub[train]:3" in caught.value.found


def test_names_are_found_and_local_files_go_first() -> None:
    assert find("Open-Orca/SlimOrca-Dedup") is find("slimorca")
    assert find("allenai/ai2_arc") is find("arc-challenge")
    assert find("nothing") is None
    assert len({entry.name for entry in NAMED_SETS}) == len(NAMED_SETS)
    rows = list(read_rows("tunesmith/words", max_rows=2))
    assert str(rows[1].origin) == "tunesmith/words:2"
    Path("gsm8k").write_text("mine")
    with pytest.raises(DataError, match="gsm8k has no known format"):
        next(read_rows("gsm8k"))


@pytest.mark.parametrize("folder", ["teacher", "tasks"])
def test_the_built_in_sets_are_what_the_scripts_make(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    made = importlib.import_module(f"{folder.removesuffix('s')}_sets").made()
    for name, text in made.items():
        assert (ASSETS / folder / name).read_text(encoding="utf-8") == text
    named = [one for one in NAMED_SETS if one.builtin and one.path.startswith(f"{folder}/")]
    files = {file.name for entry in named for file in entry.files()}
    assert files == {*made} == {path.name for path in (ASSETS / folder).iterdir()}


def test_a_built_in_set_has_the_splits_that_it_has() -> None:
    trained = [row.fields for row in read_rows("tunesmith/errands")]
    held_out = list(read_rows("tunesmith/errands", split="test"))
    assert (len(trained), len(held_out)) == (240, 60)
    assert not [row for row in held_out if row.fields in trained]
    assert str(held_out[0].origin) == "tunesmith/errands[test]:1"
    with pytest.raises(DataError, match="tunesmith/words has no test split"):
        next(read_rows("tunesmith/words", split="test"))


# Recipes.

SMALL = """
name: small
stages:
  - data:
      name: mixed
      mix:
        rows: 40
        validation: 0.1
        sources:
          - {name: a, dataset: a.jsonl, share: 0.5}
          - {name: words, dataset: tunesmith/words, share: 0.5, gold: gold}
        erasure: {mode: rotate}
  - train: {name: tuned, task: instruct, data: [mixed], max_steps: 2, eval_questions: 0}
  - report: {}
"""


def test_a_recipe_trains_on_a_mix_and_runs_again_when_a_source_changes(capsys: Any) -> None:
    write("a.jsonl", 40, system=TEACHER)
    Path("small.yaml").write_text(SMALL)
    assert all(record.ran for record in run("small.yaml", output_dir="runs"))
    said = capsys.readouterr().err
    assert "rows-validation.jsonl: 4 rows, read as messages" in said
    assert "realised" in Path("runs/small/report.html").read_text()
    assert not any(record.ran for record in run("small.yaml", output_dir="runs"))
    write("a.jsonl", 40, system=TEACHER, salt="other")
    again = run("small.yaml", output_dir="runs")
    assert [record.stage.name for record in again if record.ran] == ["mixed", "tuned", "report"]
    assert "reads.a.jsonl" in capsys.readouterr().err
    changed = run("small.yaml", ["mixed.mix.rows=30"], output_dir="runs")
    assert changed[0].ran
    assert len(made("runs/small/mixed/rows.jsonl")) == 27


def test_the_mix_of_a_recipe_can_be_made_alone(capsys: Any) -> None:
    write("a.jsonl", 40, system=TEACHER)
    Path("small.yaml").write_text(SMALL)
    command = ["data", "mix", "small.yaml", "--log-level", "error"]
    assert main([*command, "--output", "saved"]) == 0
    assert len(list(read_rows("saved", split="validation"))) == 4
    assert json.loads(capsys.readouterr().out)["stages"][0]["rows"] == 40
    Path("small.yaml").write_text(SMALL.replace("share: 0.5, gold", "shar: 0.5, gold"))
    assert main([*command, "--output", "saved"]) == 2
    assert "small.yaml:11: sources[2].shar: there is no such" in capsys.readouterr().err
    assert load_mix(ROOT / "recipes" / "orca.yaml").rows == 300_000


def test_a_datasets_folder_serves_a_recipe_too(capsys: Any) -> None:
    write("a.jsonl", 40, system=TEACHER)
    quick = {"data": ["mixed"], "max_steps": 1, "eval_questions": 0}
    sources = [{"name": "a", "dataset": "a.jsonl"}]
    mixed = {"name": "mixed", "mix": {"output": "anything", "sources": sources}}
    Path("r.yaml").write_text(yaml.safe_dump({"stages": [{"data": mixed}, {"train": quick}]}))
    run("r.yaml", output_dir="runs")
    assert "runs/r/mixed/rows: 2 rows, read as messages" in capsys.readouterr().err
    assert not any(record.ran for record in run("r.yaml", output_dir="runs"))


def test_stages_of_a_mix_are_trained_on_one_by_one() -> None:
    write("a.jsonl", 40)
    source = {"name": "a", "dataset": "a.jsonl"}
    stages = [{"name": f"stage-{n}", "rows": 10 * n, "sources": [source]} for n in (1, 2)]
    quick = {"max_steps": 1, "eval_questions": 0}
    recipe_ = {
        "name": "two",
        "stages": [
            {"data": {"name": "mixed", "mix": {"stages": stages, "validation": 0.1}}},
            {"train": {"name": "one", "data": ["mixed/stage-1"], **quick}},
            {"train": {"name": "both", "from": "one", "data": ["mixed/stage-2"], **quick}},
        ],
    }
    Path("two.yaml").write_text(yaml.safe_dump(recipe_))
    assert [record.ran for record in run("two.yaml", output_dir="runs")] == [True] * 3
    recipe_["stages"] = [recipe_["stages"][0], {"train": {"data": ["mixed"], **quick}}]
    Path("two.yaml").write_text(yaml.safe_dump(recipe_))
    with pytest.raises(UsageError, match="names no rows of the stage 'mixed'") as caught:
        run("two.yaml", output_dir="runs")
    assert "mixed/stage-1, mixed/stage-2" in caught.value.expected


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"mixx": {}}, "has the key 'mixx'; did you mean 'mix'"),
        ({}, "does not say what it makes"),
        ({"mix": 3}, "mix is int"),
        ({"mix": "no.yaml"}, "There is no mix recipe 'no.yaml'"),
        ({"mix": {"sorces": []}}, "sorces: there is no such setting; did you mean 'sources'"),
        (
            {"mix": {"sources": [{"name": "a", "dataset": "later"}]}},
            "refers to 'later', which is no earlier stage",
        ),
    ],
)
def test_a_wrong_data_stage_is_refused_before_anything_runs(stage: Any, message: str) -> None:
    later = {"eval": {"name": "later", "task": "units", "limit": 1}}
    stages = [{"data": {"name": "mixed", **stage}}, later]
    Path("r.yaml").write_text(yaml.safe_dump({"name": "r", "stages": stages}))
    with pytest.raises(UsageError, match=message):
        check_references(load_recipe(Path("r.yaml")))


def test_measured_strategies_choose_the_rows() -> None:
    Path("r.yaml").write_text(
        "name: r\nstages:\n"
        "  - eval: {name: direct, task: units, limit: 40, prompt: direct}\n"
        "  - eval: {name: worked, task: units, limit: 40, prompt: cot}\n"
        "  - data:\n      name: mixed\n      mix:\n"
        "        sources: [{name: c, dataset: tunesmith/conversions, category: units,"
        " only_assigned: true}]\n"
        "        strategies: {measured: {direct: direct, step-by-step: worked}}\n"
    )
    run("r.yaml", ["mixed.mix.rows=50"], output_dir="runs")
    assert {row["meta"]["strategy"] for row in made("runs/r/mixed/rows.jsonl")} == {"step-by-step"}
    measured = json.loads(Path("runs/r/mixed/rows.mix.json").read_text())["strategies"]["measured"]
    assert measured["choices"] == {"units": "step-by-step"}
    assert "held-out items" in measured["held out"][0]


def test_the_mixture_of_the_orca_requirement() -> None:
    from tunesmith.workflows.recipe_data import checked

    whole = load_recipe(ROOT / "recipes" / "orca.yaml")
    [stage] = [stage for stage in whole.stages if stage.verb == "data"]
    _, mixture = checked(whole, stage)
    assert {s.dataset: s.share for s in mixture.sources} == {
        "Open-Orca/SlimOrca-Dedup": 0.425,
        "allenai/ai2_arc": 0.125,
        "tau/commonsense_qa": 0.125,
        "openai/gsm8k": 0.1,
        "meta-math/MetaMathQA": 0.125,
        "rajpurkar/squad": 0.1,
    }
    assert (mixture.rows, mixture.validation, mixture.seed) == (300_000, 0.05, 42)
    assert all(find(source.dataset) for source in mixture.sources)
    assert [source.name for source in mixture.sources if source.erase] == ["slimorca"]


# Real data.


@pytest.mark.slow
def test_all_t0_templates_become_an_orca_set(shared: Path) -> None:
    files = sorted((shared / "data" / "t0_per_template").glob("*.jsonl"))
    sources = [{"name": file.stem, "dataset": str(file)} for file in files]
    made_of = recipe(sources=sources, erasure={"mode": "rotate"}, strategies={"default": "direct"})
    result = mix(made_of, "out.jsonl")
    train, held = made(), made("out-validation.jsonl")
    assert len(files) == 56 or len(files) == 55
    assert len(train) + len(held) == sum(s["usable"] for s in result.summary["sources"].values())
    assert len({row["meta"]["strategy"] for row in train}) >= 5
    assert result.summary["audit"]["counts"]["left"].get("instruction", 0) == 0
    for row in [*train, *held]:
        assert row["meta"]["instruction"]
        for turn in row["messages"]:
            assert "<|endoftext|>" not in turn["content"]
            assert not traces(row["meta"]["instruction"], turn["content"], 6)
    asked = {normalised(row["messages"][1]["content"]) for row in train}
    assert not asked & {normalised(row["messages"][1]["content"]) for row in held}


def test_gsm8k_loses_its_calculator_marks(shared: Path) -> None:
    file = str(shared / "data" / "gsm8k" / "train.jsonl")
    source = {"name": "gsm8k", "dataset": file, "gold": "answer"}
    marked = mix(recipe(sources=[source], rows=300), "out.jsonl")
    assert marked.summary["audit"]["counts"]["left"]["calculator"] > 200
    source["clean"] = ["calculator_marks"]
    cleaned = mix(recipe(sources=[source], rows=300), "out.jsonl")
    assert cleaned.summary["audit"]["counts"]["left"] == {}


def test_broken_lines_count_as_unreadable(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": f"{n}."} for n in range(5)]
    listed = {"instruction": "Add.", "instances": [{"input": "1", "output": "x"}] * 2}
    path = tmp_path / "a.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, [1], listed])
    path.write_bytes(text.encode() + b'{"prompt": "gr\xfcn", "completion": "a"}\n')
    for allowed, code in ((0.3, 3), (0.4, 0)):
        recipe = tmp_path / "m.yaml"
        recipe.write_text(
            f"allow_refused: {allowed}\noutput: {tmp_path}/o.jsonl\n"
            f"sources:\n  - {{name: a, dataset: {path}}}\n"
        )
        assert main(["data", "mix", str(recipe)]) == code
    counts = json.loads((tmp_path / "o.mix.json").read_text())["sources"]["a"]
    assert (counts["read"], counts["usable"], counts["unreadable"]) == (8, 5, 3)


def test_a_source_has_an_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"prompt": "grün?", "completion": "ja"}'.encode("windows-1252"))
    recipe = tmp_path / "m.yaml"
    recipe.write_text(
        f"output: {tmp_path}/o.jsonl\n"
        f"sources:\n  - {{name: a, dataset: {path}, encoding: windows-1252}}\n"
    )
    assert main(["data", "mix", str(recipe)]) == 0
    assert "grün?" in (tmp_path / "o.jsonl").read_text(encoding="utf-8")


def test_only_what_is_wrong_with_a_mix_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = tmp_path / "m.yaml"
    recipe.write_text(
        "output: o.jsonl\nsources:\n  - {name: a, dataset: b}\n  - {name: a, dataset: c}\n"
    )
    assert main(["data", "mix", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert "two sources are called 'a'" in said
    assert "another stage" not in said
    assert "shares" not in said
