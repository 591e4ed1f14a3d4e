"""The safe evaluator, answer extraction and path selection."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.grading.answers import extract_tagged, last_number, parse_number
from tunesmith.grading.arithmetic import ArithmeticRefused, equations, evaluate
from tunesmith.grading.paths import choose_paths, edit_distance, equation_signature

NUMBERS = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(NUMBERS)
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    text = f"{left} {draw(st.sampled_from('+-*'))} {right}"
    return f"({text})" if draw(st.booleans()) else text


@given(expressions())
def test_evaluator_agrees_with_fractions(text: str) -> None:
    import re

    exact = re.sub(r"\d+(\.\d+)?", lambda m: f"Fraction('{m.group()}')", text)
    # The oracle may use eval: the text comes from this test, not from a model.
    assert evaluate(text) == eval(exact, {"Fraction": Fraction})


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os')",
        "10**10**10",
        "9" * 200,
        "(" * 200 + "1" + ")" * 200,
        "1/0",
        "",
        "1 +",
        "x",
        "1e999999999",
        "(" + "*".join(["9" * 39] * 7) + ")" + "*(1)" * 20,
    ],
)
def test_hostile_expressions_are_refused_quickly(hostile: str) -> None:
    began = time.monotonic()
    with pytest.raises(ArithmeticRefused):
        evaluate(hostile)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("47 * 3 = 141", [True]),
        ("47 * 3 = 140", [False]),
        ("1 hour = 60 minutes.", []),
        ("10 / 3 = 3.33", [True]),
        ("10 / 3 = 3", [False]),
        ("2 * (3 + 4) = 14 = 7 * 2", [True, True]),
        ("$48/2=$24, then 24+48 = 72.", [True, True]),
        ("5 * 12 = 1/0", [None]),
        ("1,080 + 20 = 1,100", [True]),
        ("3 = 3\n-5 + 3 = -2", [True]),
    ],
)
def test_equations(text: str, verdicts: list[bool | None]) -> None:
    assert [equation.holds for equation in equations(text)] == verdicts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5 feet", Fraction(2469, 2)),
        ("1.5e3", Fraction(1500)),
        ("-3/4", Fraction(-3, 4)),
        ("$12", Fraction(12)),
        ("nan", None),
        ("inf", None),
        ("1e999999999", None),
        ("4/0", None),
        ("about 3", None),
        ("", None),
    ],
)
def test_parse_number(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


def test_extraction_takes_the_last_complete_tag() -> None:
    assert extract_tagged("<answer>1</answer> no, <answer> 2 </answer>") == "2"
    assert extract_tagged("<answer>1") is None
    assert last_number("It costs 1,080 dollars.") == 1080


def test_paths_are_distinct_by_their_equations() -> None:
    texts = [
        "2 + 3 = 5\nso 5",
        "We see 2+3=5 and so it is 5",
        "3 + 2 = 5",
        "1 + 4 = 5",
    ]
    assert equation_signature(texts[0]) == equation_signature(texts[1])
    chosen = choose_paths(texts, 4)
    assert len(chosen) == 3
    # Of the two that collide, the one farther from the others is kept.
    assert 1 in chosen
    assert len(choose_paths(texts, 2)) == 2
    assert choose_paths([], 3) == []


def test_edit_distance() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
