"""What a page gathers besides scores: metrics, lineage, cost, settings, and whole comparisons."""

from __future__ import annotations

import json
import math

import pytest

from hostile.texts import HOSTILE, Reader
from test_report import metrics, result
from tunesmith.cli import main
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.losses import RowLoss, compare_losses
from tunesmith.evaluate.records import save
from tunesmith.evaluate.statistics import Interval
from tunesmith.report import evidence, lineage
from tunesmith.report.collect import collect
from tunesmith.report.page import render
from tunesmith.storage import write_json, write_text


def words(page: str) -> str:
    return " ".join(" ".join(Reader(page).texts).split())


def losses(per_byte):
    return [RowLoss(str(n), per_byte * 100 + n % 3, 100) for n in range(9)]


MANIFEST = {
    "tunesmith": "1",
    "steps": 20,
    "counts": {"training": {"tokens": 1000, "trained tokens": 400}},
    "measured": {"peak_bytes": 2_500_000_000, "seconds": 75.0, "steps": 10, "device": "cpu"},
    "loss": compare_losses(losses(1.0), losses(0.5)).to_json(),
    "losses": ["The loss fell."],
    "sources": [
        {"source": "a.jsonl", "rows": 75, "held_out": 8, "sha256": "f" * 64},
        {"source": "b.jsonl", "rows": 25, "held_out": 0, "sha256": None},
    ],
    "contamination": ["One question occurs."],
    "overlaps": [{"question": "t:1", "row": "a:7", "kind": "word for word", "shared": "how many"}],
}


def test_a_runs_page_tells_lineage_contamination_cost_and_settings(tmp_path):
    metrics(tmp_path / "metrics.jsonl")
    write_json(tmp_path / "manifest.json", MANIFEST)
    write_text(tmp_path / "config.yaml", "task: custom\nseed: 7\nlora: true\nnum_epochs: 3.0\n")
    data = collect(tmp_path)
    assert data.verdict == "better"
    assert data.headline == ["The loss fell."]
    assert data.loss.rows[0].tone == "up"
    assert [row[:4] for row in data.sources[0].rows] == [
        ["a.jsonl", "75", "75.0%", "8"],
        ["b.jsonl", "25", "25.0%", "0"],
    ]
    assert data.overlaps[0].rows == [["t:1", "a:7", "word for word", "how many"]]
    cost = dict(data.cost[0].rows)
    assert cost["time of the training steps"] == "1 min 15 s"
    assert cost["steps in that time"] == "10 (of 20; the others before a resume)"
    assert cost["most memory held"] == "2.50 GB"
    # The task's own three epochs are no news.
    assert data.settings[0].rows == [["seed", "7", "42"], ["lora", "true", "false"]]
    page = words(render(data))
    for heading in ("Held-out loss", "Data", "Contamination", "Cost", "Settings", "Training"):
        assert heading in page
    assert data.notes == []


def test_a_worse_loss_is_the_verdict_too_and_an_unclear_one(tmp_path):
    metrics(tmp_path / "metrics.jsonl")
    for tuned, said in ((1.5, "worse"), (1.0, "no clear difference")):
        loss = compare_losses(losses(1.0), losses(tuned)).to_json()
        write_json(tmp_path / "manifest.json", {"loss": loss, "losses": ["x"]})
        assert collect(tmp_path).verdict == said
    write_json(tmp_path / "manifest.json", {"losses": ["x"]})
    assert collect(tmp_path).verdict == ""


def test_what_is_not_finite_or_malformed_is_not_drawn():
    good = MANIFEST["loss"]
    assert evidence.loss_forest(good) is not None
    assert evidence.loss_forest({**good, "difference": math.nan}) is None
    assert evidence.loss_forest({**good, "new": 1}) is not None  # a later version's field
    for bad in (
        None, [], {}, {"interval": 3}, {"interval": {"low": 1}}, {**good, "first": "a"},
        {**good, "rows": True}, {**good, "second": None},
        {**good, "interval": {"low": 0, "high": "1"}},
    ):  # fmt: skip
        assert evidence.loss_forest(bad) is None
    assert (
        evidence.forgetting_forest([("", {}), ("a", {"loss": 3, "comparison": [], "kinds": 1})])
        is None
    )
    assert lineage.source_tables("", {"sources": [1, {"rows": "x"}]})[0].rows[0][1] == "0"
    assert lineage.overlap_tables("", {"overlaps": "x"}) == []
    assert lineage.mix_tables("m", {"sources": [], "stages": [{}], "audit": 3}) == []
    assert [evidence.figure(v) for v in (None, True, math.nan, 0.12345, 12.345, 1234.5, -0.5)] == [
        "–", "–", "–", "0.123", "12.3", "1,234", "−0.500",
    ]  # fmt: skip


def test_manifests_of_odd_types_are_noted_and_the_page_is_made(tmp_path):
    metrics(tmp_path / "metrics.jsonl")
    odd = {"losses": 5, "contamination": True, "loss": {**MANIFEST["loss"], "first": "a"}}
    write_json(tmp_path / "manifest.json", odd)
    data = collect(tmp_path)
    assert (data.losses, data.contamination, data.loss) == ([], [], None)
    assert [note.rpartition(" ")[2] for note in data.notes] == ["'losses'.", "'contamination'."]
    assert "holds no sentences" in words(render(data))


def test_an_export_inside_a_stage_leaves_the_stage_as_it_is(tmp_path):
    write_json(tmp_path / "train" / "manifest.json", MANIFEST)
    metrics(tmp_path / "train" / "metrics.jsonl")
    alone = collect(tmp_path)
    for folder in ("release", "release/bundle"):
        write_json(tmp_path / "train" / folder / "manifest.json", {"kind": "tunesmith.export"})
    found = collect(tmp_path)
    assert found == alone
    assert (len(found.losses), len(found.sources), len(found.cost)) == (1, 1, 1)


def test_a_mixture_tells_what_was_read_wanted_and_erased(tmp_path):
    metrics(tmp_path / "metrics.jsonl")
    pool = {"read": 100, "unreadable": 2, "refused": {"gold": 3}, "repeated": 5, "usable": 90}
    source = {"target_rows": 60, "target_share": 0.6, "rows": 50, "share": 0.5, "copies": 1}
    mix = {
        "sources": {"flan": pool},
        "stages": [{"name": "one", "sources": {"flan": {**source, "validation": 4}}}],
        "audit": {"erased rows": 40, "counts": {"left": {"instruction": 1}}},
    }
    write_json(tmp_path / "mixed.mix.json", mix)
    tables = collect(tmp_path).sources
    assert tables[0].rows == [["flan", "100", "2", "3", "5", "90"]]
    assert tables[1].rows == [["flan", "60.0% (60)", "50.0% (50)", "1", "4"]]
    assert [row[1] for row in tables[2].rows] == ["40", "1"]


def test_the_general_suite_of_a_run_is_shown_apart(tmp_path):
    metrics(tmp_path / "metrics.jsonl")
    general = tmp_path / "eval" / "general"
    sets = [result("base", [1.0] * 8 + [0.0]), result("tuned", [0.0] * 8 + [1.0])]
    for one in sets:
        save(general / one.name, one)
    found = {"sentence": "It fell.", "loss": None, "comparison": compare(sets).to_json()}
    write_json(general / "forgetting.json", {**found, "kinds": {"sums": [8, 1, 9]}})
    data = collect(tmp_path)
    assert data.scores == []
    assert data.pairs == []
    assert data.forgetting.rows[0].tone == "down"
    assert data.forgetting.sentences == ["It fell.", "right before → after: sums 8 → 1 of 9."]
    # What is on no page is in no command of it either.
    for one in sets:
        save(tmp_path / "eval" / one.name, one)
    line = collect(tmp_path).commands[0].line
    assert line.split()[2:] == [str(tmp_path / "eval" / one.name) for one in sets]


def reply_set(folder, name, values, text="a reply"):
    """Store a set of replies with one metric that pairs and one that does not."""
    one = result(name, [0.5] * len(values), text)
    save(folder, one)
    told = {"title": "chrF", "better": "higher", "value": sum(values) / len(values)}
    ends = {"interval": {"low": min(values), "high": max(values)}}
    other = {"title": text, "better": "lower", "value": 2.0, "interval": None}
    measured = {"chrf": {**told, **ends}, "odd": other}
    write_json(folder / "metrics.json", {"metrics": measured, "names": {}, "notes": []})
    scores = dict(zip(one.problems, values, strict=True))
    write_json(folder / "items.json", {"metrics": {"chrf": scores, "odd": scores}, "losses": {}})


def test_metrics_of_replies_have_direction_interval_and_difference(tmp_path):
    # Twice as many: of four replies no difference is clear.
    reply_set(tmp_path / "a", "a", [0.1, 0.2, 0.3, 0.2] * 2)
    reply_set(tmp_path / "b", "b", [0.5, 0.6, 0.9, 0.6] * 2)
    data = collect(tmp_path)
    table = data.metrics[0]
    assert list(table.columns) == ["Metric", "a", "b", "b − a"]
    assert table.rows[0][:3] == ["↑ chrF", "0.200 (0.100 to 0.300)", "0.650 (0.500 to 0.900)"]
    assert table.rows[0][3].startswith("+0.450 (+")
    assert table.rows[1][0].startswith("↓")
    write_text(tmp_path / "a" / "metrics.json", "{")
    assert any("metrics.json" in note for note in collect(tmp_path).notes)


def test_a_comparison_has_a_page_of_its_own(tmp_path, capsys):
    for at, name in enumerate(("a", "b", "c")):
        reply_set(tmp_path / name, name, [0.1 + at / 4, 0.2 + at / 4, 0.3 + at / 5, 0.2 + at / 4])
    folders = [str(tmp_path / name) for name in "abc"]
    page = tmp_path / "page.html"
    assert main(["compare", *folders, "--report", str(page)]) == 0
    said = words(page.read_text())
    assert "c against a" in said
    assert said.count("against") >= 3  # every pair
    more = ["--metric", "chrf", "odd", "--report", str(page), "--output", str(tmp_path / "c.json")]
    capsys.readouterr()
    assert main(["compare", *folders, *more]) == 0
    assert "page.html" in capsys.readouterr().err
    written = json.loads((tmp_path / "c.json").read_text())
    assert list(written["metrics"]) == ["chrf", "odd"]
    said = words(page.read_text())
    assert "Compared by odd" in said
    assert "Score: chrf" in said


def test_a_lower_value_that_is_better_is_called_better():
    pair = compare([result("a", [1.0] * 20), result("b", [0.0] * 20)]).pairs[0]
    assert evidence.verdict(pair, None) == "worse"
    assert evidence.verdict(pair, None, "lower") == "better"
    assert evidence.verdict(None, None) == ""


@pytest.mark.parametrize("text", HOSTILE[:6])
def test_hostile_texts_in_files_stay_texts(tmp_path, text):
    reply_set(tmp_path / "a", "a" + text, [0.1, 0.2], text)
    reply_set(tmp_path / "b", "b" + text, [0.3, 0.2], text)
    metrics(tmp_path / "metrics.jsonl")
    hostile = {**MANIFEST, "sources": [{"source": text, "rows": 1, "sha256": text}]}
    hostile |= {"contamination": [text], "overlaps": [dict.fromkeys(["question", "row"], text)]}
    write_json(tmp_path / "manifest.json", hostile)
    write_json(tmp_path / "config.yaml", {"model": text, "dataset": [text]})
    tags = {tag for tag, _ in Reader(render(collect(tmp_path))).elements}
    assert not tags & {"script", "img", "iframe", "b", "form", "a"}


def test_the_interval_of_a_comparison_is_the_bars():
    found = evidence.read_loss(MANIFEST["loss"])
    assert isinstance(found.interval, Interval)
    measure = evidence.loss_measure(MANIFEST["loss"])
    assert (measure.low, measure.high) == (found.interval.low, found.interval.high)
