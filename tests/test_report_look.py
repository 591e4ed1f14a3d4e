"""The page for people: contrast, order of headings, tables that can be read aloud, empty parts."""

from __future__ import annotations

import itertools
import re

import pytest

from hostile.texts import Reader
from test_report import BENIGN, everything, result
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import summarise
from tunesmith.report.charts import histogram
from tunesmith.report.examples import both_wrong, flips
from tunesmith.report.page import Forest, Measure, ReportData, ScoreRow, Table, first_line, render
from tunesmith.report.style import DARK, GROUNDS, LIGHT, STYLE, TEXTS


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_stands_out_from_every_ground(colours):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text, ground in itertools.product(TEXTS, GROUNDS):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for n in range(7):  # lines and dots need three to one
        assert contrast(colours[f"c{n}"], colours["paper"]) >= 3


def test_the_style_has_both_modes_and_the_same_names():
    assert LIGHT.keys() == DARK.keys()
    used = set(re.findall(r"var\(--(\w+)\)", STYLE))
    assert used <= LIGHT.keys()
    assert "prefers-color-scheme: dark" in STYLE
    assert "@media print" in STYLE
    assert "details-content" in STYLE  # what is folded is printed


def test_headings_go_down_one_step_at_a_time():
    levels = [int(tag[1]) for tag, _ in BENIGN.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tables_and_pictures_can_be_read_aloud():
    page = render(everything("plain"))
    tables = re.findall(r"<table.*?</table>", page, re.S)
    assert len(tables) > 10
    for table in tables:
        assert table.count("<caption") == 1
        assert not re.search(r"<th(?![^>]*scope=)[ >]", table), table[:300]
        assert 'scope="row"' in table
    pictures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert all(picture.count("<title>") == 1 for picture in pictures)
    # A drawing has its figures in words and as a table.
    for figure in re.findall(r"<figure>.*?</figure>", page, re.S):
        assert "<desc>" in figure
        assert "<table" in figure
    # Whoever has no mouse can scroll what is wide.
    assert page.count('class="scroll"') == page.count('role="region" tabindex="0"')
    assert ":focus-visible" in page


def test_what_is_empty_is_left_out():
    for name in ("ends", "sources", "overlaps", "cost", "settings", "metrics"):
        page = render(ReportData("t", **{name: [Table("only", ["a"], [["x"]])]}))
        assert len(re.findall("<h2", page)) == 1, name
        assert "only" in page
    assert "<h2" not in render(ReportData("t", verdict="better"))


def test_a_set_with_nothing_graded_shows_no_score():
    sets = [result("base", [None, None]), result("tuned", [1.0, 0.0])]
    scores = [ScoreRow(s.name, "", summarise(s.attempts)) for s in sets]
    text = " ".join(Reader(render(ReportData("t", scores=scores))).texts)
    assert "nothing graded" in text
    assert " 0.0%" not in text
    assert "50.0%" in text


def test_one_problem_and_nothing_right_is_a_truthful_page():
    sets = [result("base", [0.0]), result("tuned", [0.0])]
    pairs = compare(sets).pairs
    scores = [ScoreRow(s.name, "", summarise(s.attempts)) for s in sets]
    text = " ".join(Reader(render(ReportData("t", scores=scores, pairs=pairs))).texts)
    assert "No clear difference" in text
    assert "too few problems" in text


def test_a_difference_is_coloured_by_its_direction_and_only_when_it_is_clear():
    def tone(better, low, high):
        return Measure("m", better, "", "", (low + high) / 2, low, high, "").tone

    assert [tone("higher", 1, 2), tone("lower", 1, 2)] == ["up", "down"]
    assert [tone("higher", -2, -1), tone("lower", -2, -1)] == ["down", "up"]
    assert [tone("higher", -1, 2), tone("neither", 1, 2)] == ["", ""]
    assert Measure("m", "lower", "", "", 1.0, None, None, "").tone == ""


def test_base_and_tuned_have_their_colours_wherever_they_are_drawn():
    names = ["base", "first", "second", "tuned"]
    scores = [ScoreRow(n, "", summarise(result(n, [1.0]).attempts)) for n in names]
    page = render(ReportData("t", scores=scores))
    assert re.findall(r'key b(\d)"></span><bdi>(\w+)', page) == [
        ("0", "base"),
        ("3", "first"),
        ("4", "second"),
        ("1", "tuned"),
    ]
    forest = Forest("base", "tuned", [Measure("m", "lower", "1", "2", 1.0, 0.5, 1.5, "+1")])
    page = render(ReportData("t", loss=forest))
    assert 'class="t0"><bdi>base' in page
    assert 'class="t1"><bdi>tuned' in page


def test_examples_are_drawn_by_seed_and_their_number_is_said():
    before, after = result("a", [0.0] * 40 + [1.0] * 5), result("b", [1.0] * 30 + [0.0] * 15)
    gained, lost = flips(before, after)
    wrong = both_wrong(before, after)
    assert (len(gained), len(lost), len(wrong)) == (30, 5, 10)
    assert gained == flips(before, after)[0]
    assert [e.question for e in gained] == ["answer"] * 30
    data = ReportData("t", both_wrong=wrong[:2], both_wrong_total=10)
    text = " ".join(Reader(render(data)).texts)
    assert "10 in all, 2 of them drawn by seed" in text


def test_a_question_is_folded_under_its_beginning():
    assert first_line("short\nquestion") == "short question"
    assert len(first_line("word " * 100)) <= 110
    assert first_line("word " * 100).endswith("…")


def test_a_histogram_counts_every_reply_once():
    drawn = histogram("h", "tokens", [("a", [1.0] * 3 + [50.0]), ("b", [10_000.0] + [20.0] * 199)])
    assert drawn is not None
    for column in (1, 2):
        shares = sum(float(row[column]) for row in drawn.rows)
        assert shares == pytest.approx(100, abs=0.5)
    assert histogram("h", "tokens", [("a", [])]) is None
    alone = histogram("h", "tokens", [("a", [0.0])])
    assert alone is not None
    assert "nan" not in alone.plot
