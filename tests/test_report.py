from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile.texts import HOSTILE, PAYLOADS, Reader, as_shown
from tunesmith.errors import UsageError
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import summarise
from tunesmith.evaluate.records import Header, ResultSet, save
from tunesmith.report import charts
from tunesmith.report.charts import Chart, Series, draw, thinned, ticks
from tunesmith.report.collect import collect
from tunesmith.report.curves import read_metrics
from tunesmith.report.examples import flips
from tunesmith.report.page import (
    Command,
    Counts,
    ExamplePair,
    Forest,
    Measure,
    ReportData,
    ScoreRow,
    StageLine,
    Table,
    duration,
    render,
)
from tunesmith.report.watched import RowList, SampleCourse, row_lists, sample_courses
from tunesmith.storage import JsonlLog, write_json, write_text
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict


def result(name: str, scores: list[float | None], text: str = "answer") -> ResultSet:
    problems = {
        f"{text[:3]}{n}": Problem(f"{text[:3]}{n}", text, (Segment("user", text),), text)
        for n in range(len(scores))
    }
    attempts = tuple(
        Attempt(key, 0, 0, f"{name}: {text}", (1, 2), StopReason.LENGTH, Verdict(s, text, text))
        for key, s in zip(problems, scores, strict=True)
    )
    return ResultSet(
        Header(name, text, "test", text, text, 0, planned=len(scores)), attempts, problems
    )


def a_table(text: str) -> Table:
    return Table(text, [text, text, text], [[text, text, text], [text, "2", "3"]], text, long=2)


def a_forest(text: str) -> Forest:
    rows = [
        Measure(text, "lower", text, text, -0.5, -0.7, -0.3, text),
        Measure(text, text, text, text, 0.5, None, None, text),
    ]
    return Forest(text, text, rows, [text])


def everything(text: str) -> ReportData:
    """Every field of the page holds ``text``."""
    sets = [
        result("a" + text, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, None], text),
        result("b" + text, [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0], text),
    ]
    sets[1].problems["x"] = Problem(text, text, (), text)
    pair = compare([sets[0], sets[1]]).pairs[0]
    example = ExamplePair(text, text, text, text, text, text)
    return ReportData(
        title=text,
        subtitle=text,
        headline=[text],
        stages=[StageLine(text, text, text, 3.0)],
        scores=[ScoreRow(s.name, text, summarise(s.attempts)) for s in sets],
        pairs=[pair],
        verdict="better",
        called=text,
        losses=[text],
        loss=a_forest(text),
        metrics=[a_table(text)],
        forgetting=a_forest(text),
        seeds=[replace(a_forest(text), one_scale=True)],
        spread=[a_table(text)],
        groups=[a_table(text)],
        charts=[Chart(text, [Series(text, [(1, 2.0), (2, 1.0)])], text)],
        course=[text],
        spikes=[text],
        spikes_total=2,
        row_lists=[RowList(text, text, 5, [(text, text)])],
        samples=[SampleCourse(text, text, [(step, text) for step in range(9)])],
        gained=[example] * 6,
        gained_total=6,
        lost=[example],
        lost_total=1,
        both_wrong=[example],
        both_wrong_total=9,
        lengths=charts.histogram(text, text, [(text, [1.0, 5.0]), (text + "2", [2.0, 3.0])]),
        ends=[a_table(text)],
        sources=[a_table(text)],
        overlaps=[a_table(text)],
        cost=[a_table(text)],
        settings=[a_table(text)],
        counts=[Counts(text, {text: 3, text + "2": text})],
        contamination=[text],
        facts=[(text, text)],
        notes=[text],
        commands=[Command(text, text)],
        status=text,
        refresh=30,
    )


BENIGN = Reader(render(everything("plain")))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element(text):
    page = render(everything(text))
    page.encode()
    seen = Reader(page)
    assert seen.elements == BENIGN.elements
    assert seen.others == []
    shown = as_shown(text)
    # It can be read as it was written: title, headline, cells, examples, commands…
    whole = "\x00".join(seen.texts)
    assert whole.count(shown) >= 90
    assert any(shown in value for value in seen.attributes)  # the charts' labels
    assert not re.search("[\0\x07\x1b\x85]", page)


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 20))
def test_three_hundred_payloads_stay_text_in_every_field(start):
    assert len(PAYLOADS) >= 300
    text = " ".join(PAYLOADS[start : start + 20])
    seen = Reader(render(everything(text)))
    assert seen.elements == BENIGN.elements
    assert seen.others == []
    assert "\x00".join(seen.texts).count(text) >= 90


@given(st.text(max_size=40))
@settings(max_examples=10, deadline=None)
def test_no_text_adds_an_element(text):
    assert Reader(render(everything("x" + text))).elements == BENIGN.elements


def test_the_page_loads_and_runs_nothing():
    page = render(everything("plain"))
    tags = {tag for tag, _ in BENIGN.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "a"}
    names = {name for _, attributes in BENIGN.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "href", "srcset", "action", "xlink:href"}
    assert "url(" not in page
    assert "@import" not in page
    policy = next(value for value in BENIGN.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "script-src" not in policy
    # The policy comes before anything that it should govern.
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_elements_are_balanced():
    void = {"meta", "line", "polyline"}
    open_tags: list[str] = []
    for tag, _ in BENIGN.elements:
        if tag.startswith("/"):
            if tag[1:] not in void:
                assert open_tags.pop() == tag[1:]
        elif tag not in void:
            open_tags.append(tag)
    assert open_tags == []


def test_an_empty_report_is_a_page_too():
    seen = Reader(render(ReportData("nothing")))
    assert "nothing" in seen.texts
    assert not any(tag == "h2" for tag, _ in seen.elements)


def test_figures_stand_on_the_page():
    sets = [result("base", [0.0] * 6 + [1.0] * 4), result("tuned", [1.0] * 9 + [0.0])]
    comparison = compare(sets)
    scores = [ScoreRow(s.name, "", summarise(s.attempts)) for s in sets]
    page = render(ReportData("t", scores=scores, pairs=comparison.pairs))
    text = " ".join("".join(Reader(page).texts).split())
    assert "40.0%" in text
    assert "16.8% to 68.7%" in text
    assert "+50.0" in text
    assert "6 / 1" in text
    assert comparison.pairs[0].sentence() in text
    assert "exact McNemar test" in text


def test_ungraded_and_missing_problems_are_said():
    first, second = result("base", [0.0, 1.0, None]), result("tuned", [1.0, 1.0, 1.0, 1.0])
    pair = compare([first, second]).pairs[0]
    page = render(
        ReportData("t", scores=[ScoreRow("base", "", summarise(first.attempts))], pairs=[pair])
    )
    text = " ".join("".join(Reader(page).texts).split())
    assert "1 ungraded" in text
    assert "1 missing from base (ans3)" in text
    assert "not given" in text


# --- charts


def test_ticks_are_round_and_enclose_the_range():
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1])
    assert ticks(0.13, 2.9) == pytest.approx([0, 1, 2, 3])
    assert ticks(1e-6, 5e-6)[-1] == pytest.approx(5e-6)


@given(
    st.lists(
        st.tuples(st.integers(0, 10_000), st.floats(allow_nan=True, allow_infinity=True, width=32)),
        max_size=30,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_series_can_be_drawn(points):
    drawn = draw(Chart("c", [Series("s", sorted(points, key=lambda p: p[0]))]))
    if drawn is not None:
        numbers = re.findall(r"-?\d+\.\d\d", re.search('points="([^"]*)"', drawn.plot)[1])
        assert numbers
        assert all(-0.01 <= float(n) <= 100.01 for n in numbers)
        assert "nan" not in drawn.plot


def test_long_series_are_averaged_and_it_is_said():
    points = [(float(n), float(n % 2)) for n in range(4000)]
    thin, size = thinned(points)
    assert size == 10
    assert len(thin) == charts.MAX_POINTS
    assert all(y == 0.5 for _, y in thin)
    assert "mean of 10" in draw(Chart("c", [Series("s", points)])).note
    assert draw(Chart("c", [Series("s", [])])) is None


def test_durations():
    assert [duration(s) for s in (None, 0.42, 59, 125, 4800)] == [
        "",
        "0.4 s",
        "59 s",
        "2 min 5 s",
        "1 h 20 min",
    ]


# --- collecting


def metrics(path, steps=5):
    with JsonlLog(path) as log:
        for step in range(1, steps + 1):
            log.append({"kind": "train", "step": step, "loss": 3.0 / step, "lr": 1e-4})
        log.append({"kind": "eval", "step": steps, "loss": 0.9})


def test_a_recipes_folder_becomes_a_report(tmp_path):
    sets = [result("z-base", [0.0] * 10 + [1.0] * 5), result("a-tuned", [1.0] * 14 + [0.0])]
    for position, stored in enumerate(sets):
        folder = tmp_path / stored.name
        save(folder / "eval", stored, summarise(stored.attempts).to_json())
        inputs = {"settings": {"task": "units", "select": {"max_paths": 4}}}
        record = {"verb": "eval", "position": position, "inputs": inputs, "seconds": 2.5}
        write_json(folder / "stage.json", record)
    metrics(tmp_path / "rft" / "run" / "metrics.jsonl")
    write_json(
        tmp_path / "rft" / "run" / "manifest.json",
        {
            "tunesmith": "1",
            "counts": {"paths": {"kept": 12, "wrong answer": 30}},
            "contamination": "No overlap.",
            "hashes": {"data": "abc123"},
            "losses": ["The loss fell."],
        },
    )
    write_json(
        tmp_path / "rft" / "run" / "checkpoints" / "c1" / "manifest.json", {"counts": {"x": {}}}
    )
    data = collect(tmp_path)
    assert [row.name for row in data.scores] == ["z-base", "a-tuned"]
    assert [stage.name for stage in data.stages] == ["z-base", "a-tuned"]
    assert data.stages[0].text == "task units, select (max_paths 4)"
    assert (data.gained_total, data.lost_total) == (10, 1)
    assert data.gained[0].before.startswith("z-base")
    assert data.headline == [data.pairs[0].sentence()]
    assert [chart.title for chart in data.charts] == [
        "rft: loss (nats per token)",
        "rft: learning rate",
    ]
    assert [s.name for s in data.charts[0].series] == ["training", "held-out"]
    assert data.counts == [Counts("paths", {"kept": 12, "wrong answer": 30})]
    assert data.contamination == ["No overlap."]
    assert data.losses == ["The loss fell."]
    assert ("rft data", "abc123") in data.facts
    assert data.notes == []
    assert "wrong answer" in render(data)


def test_every_stored_comparison_is_shown_once_and_headed_by_its_ends(tmp_path):
    near = [result("b", [0.0, 1.0]), result("a", [1.0, 1.0]), result("c", [1.0, 0.0])]
    far = [result("far-b", [0.0, 0.0]), result("far-c", [1.0, 0.0])]
    for stored in [*near, *far]:
        save(tmp_path / "eval" / stored.name, stored)
    for name, sets in {"far": far, "near": near, "part": near[:2]}.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "comparison.json", compare(sets).to_json())
    data = collect(tmp_path)
    assert [row.name for row in data.scores] == ["b", "a", "c", "far-b", "far-c"]
    assert len(data.pairs) == 3 + 1
    assert ["b" in line and "c" in line for line in data.headline] == [True, True]
    assert "far-c" in data.headline[1]


def test_a_stored_comparison_is_used_and_a_broken_one_is_made_again(tmp_path):
    sets = [result("b", [0.0, 1.0]), result("a", [1.0, 1.0])]
    for stored in sets:
        save(tmp_path / "eval" / stored.name, stored)
    write_json(tmp_path / "comparison.json", compare(sets).to_json())
    data = collect(tmp_path)
    assert (data.pairs[0].first, data.scores[0].name) == ("b", "b")
    write_json(tmp_path / "comparison.json", {"old": 1})
    data = collect(tmp_path)
    assert data.pairs[0].first == "a"
    assert "left out" in data.notes[0]


def test_the_own_evaluations_of_a_recipes_runs_stay_on_their_pages(tmp_path):
    sets = [result("first", [0.0, 1.0]), result("last", [1.0, 1.0]), result("mid", [1.0, 1.0])]
    for stored in sets:
        save(tmp_path / stored.name, stored)
    write_json(tmp_path / "z-compare" / "comparison.json", compare(sets).to_json())
    for stage in ("a-rft", "b-sft"):
        own = [result("base", [0.0, 1.0]), result("tuned", [1.0, 1.0])]
        for stored in own:
            save(tmp_path / stage / "run" / "eval" / stored.name, stored)
        write_json(tmp_path / stage / "run" / "eval" / "comparison.json", compare(own).to_json())
        write_json(tmp_path / stage / "run" / "manifest.json", {"tunesmith": "1"})
    data = collect(tmp_path)
    assert [row.name for row in data.scores] == ["first", "last", "mid"]
    assert (len(data.pairs), data.notes) == (3, [])
    assert "a-rft" not in data.commands[0].line
    data = collect(tmp_path / "a-rft" / "run")
    assert [row.name for row in data.scores] == ["base", "tuned"]
    assert len(data.pairs) == 1


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path):
    metrics(tmp_path / "metrics.jsonl")
    write_text(tmp_path / "manifest.json", "{broken")
    write_text(tmp_path / "eval" / "x" / "attempts.jsonl", "broken\nbroken\n")
    save(tmp_path / "eval" / "half", ResultSet(Header("half", "t", "s", "p", "m", 0, 1, 9), (), {}))
    data = collect(tmp_path)
    assert len(data.charts) == 2
    assert len(data.notes) == 3
    assert any("half is not finished: 9" in note for note in data.notes)


def test_nothing_to_report_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="holds neither"):
        collect(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        collect(tmp_path / "none")


def test_metrics_are_read_with_and_without_checksums_and_once_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics(path, steps=3)
    with path.open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 2, "loss": 9.0}) + "\n")
        file.write('{"kind": "train", "st')
    records = read_metrics(path)
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
    ]
    assert records[1]["loss"] == 9.0


def test_examples_of_several_attempts_show_what_changed():
    def several(name, scores):
        problem = Problem("p", "t", (Segment("user", "?"),), "1")
        attempts = tuple(
            Attempt("p", i, 0, f"{name}{i}", (), StopReason.LENGTH, Verdict(s, None, ""))
            for i, s in enumerate(scores)
        )
        return ResultSet(Header(name, "t", "s", "p", "m", 0, 2), attempts, {"p": problem})

    gained, lost = flips(several("a", [1.0, 0.0]), several("b", [1.0, 1.0]))
    assert lost == []
    assert (gained[0].before, gained[0].after) == ("a1", "b0")


def test_settings_of_a_stage_are_words_and_no_code() -> None:
    from tunesmith.report.collect import _brief

    value = {"sources": [{"name": "a", "erase": False}, {"name": "b"}], "rows": 3}
    assert _brief(value) == "(sources (name a, erase false) + (name b), rows 3)"


# --- a run that is going on, and what it saw of its rows


def test_only_a_running_page_reads_itself_again():
    assert 'http-equiv="refresh" content="30"' in render(everything("plain"))
    assert "refresh" not in render(ReportData("done"))


def test_answers_between_the_first_and_the_latest_are_folded_away():
    page = render(everything("plain"))
    assert "3 between" in page
    steps = re.findall(r"<dt>step (\d)</dt>", page)
    assert steps == [str(step) for step in range(9)]


def test_rows_and_samples_that_cannot_be_read_are_noted(tmp_path):
    notes = []
    assert row_lists(tmp_path, notes) == sample_courses(tmp_path, notes) == notes == []
    (tmp_path / "rows.json").write_text('{"never learnt": {"count": 1}}')
    one = {
        "step": 1,
        "origin": "a:1",
        "prompt": "a\u2028b",
        "reference": "\x85",
        "answer": "\u2029",
    }
    (tmp_path / "samples.jsonl").write_text(json.dumps(one, ensure_ascii=False) + "\n")
    assert sample_courses(tmp_path, notes)[0].prompt == "a\u2028b"
    assert notes == []
    (tmp_path / "samples.jsonl").write_text('{"step": 1')
    assert row_lists(tmp_path, notes) == []
    assert sample_courses(tmp_path, notes) == []
    assert ["rows.json" in notes[0], "samples.jsonl" in notes[1]] == [True, True]
