"""Erasure takes the instruction away, and the audit finds what is left."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.erasure import CAUTIOUS, agrees, audit, clean, erase, traces
from tunesmith.data.strategies import STRATEGIES
from tunesmith.types import Segment

ASKED = "Think step by step and justify every step before you give the final answer."
TURNS = (
    Segment("system", ASKED),
    Segment("user", "What is 2 + 3?"),
    Segment("assistant", "2 + 3 = 5", 1.0),
)
WORD = st.sampled_from(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "you",
        "are",
        "the",
        "step",
        "answer",
        "Question",
        "über",
        "12",
    ]
)
TEXT = st.lists(WORD, min_size=1, max_size=30).map(" ".join)


def kinds(turns: tuple[Segment, ...], **more: object) -> list[str]:
    return [finding.kind for finding in audit(turns, "a.jsonl:1", **more)]  # type: ignore[arg-type]


def test_the_built_in_messages_are_several_different_and_name_no_strategy() -> None:
    assert len(CAUTIOUS) >= 8
    assert len(set(CAUTIOUS)) == len(CAUTIOUS)
    for message in CAUTIOUS:
        assert not any(traces(s.instruction, message, 4) for s in STRATEGIES.values())


def test_the_three_modes() -> None:
    replaced = erase(TURNS, ASKED, "replace", seed=1, key="k")
    assert replaced[0] == Segment("system", CAUTIOUS[0])
    assert replaced[1:] == TURNS[1:]
    assert erase(TURNS, ASKED, "drop", seed=1, key="k") == TURNS[1:]
    rotated = {erase(TURNS, ASKED, "rotate", seed=1, key=str(k))[0].text for k in range(200)}
    assert rotated == set(CAUTIOUS)
    again = [erase(TURNS, ASKED, "rotate", seed=1, key=str(k)) for k in range(20)]
    assert again == [erase(TURNS, ASKED, "rotate", seed=1, key=str(k)) for k in range(20)]
    assert again != [erase(TURNS, ASKED, "rotate", seed=2, key=str(k)) for k in range(20)]


def test_a_general_message_that_repeats_the_instruction_is_passed_over() -> None:
    turns = (Segment("system", CAUTIOUS[0]), *TURNS[1:])
    made = erase(turns, CAUTIOUS[0], "replace", seed=1, key="k")
    assert made[0].text == CAUTIOUS[1]
    assert kinds(made, erased=CAUTIOUS[0]) == []


@given(TEXT, st.sampled_from(("replace", "drop", "rotate")), st.integers(2, 7))
@settings(max_examples=60, deadline=None)
def test_no_ngram_of_an_erased_instruction_is_left(asked: str, mode: str, ngram: int) -> None:
    turns = (Segment("system", asked), Segment("user", "Zebra?"), Segment("assistant", "Quagga."))
    made = erase(turns, asked, mode, seed=3, key="x", ngram=ngram)  # type: ignore[arg-type]
    shown = [turn.text for turn in made]
    free = any(not traces(asked, message, ngram) for message in CAUTIOUS)
    if mode == "drop" or free:
        assert not any(traces(asked, text, ngram) for text in shown)
        assert "instruction" not in kinds(made, erased=asked, ngram=ngram)
    else:
        assert "instruction" in kinds(made, erased=asked, ngram=ngram)


@given(TEXT, TEXT, TEXT, st.integers(2, 8))
@settings(max_examples=80, deadline=None)
def test_any_planted_run_of_the_instruction_is_found(
    asked: str, before: str, after: str, ngram: int
) -> None:
    words = asked.split()
    start = len(words) // 3
    run = " ".join(words[start : start + ngram]) if len(words) >= start + ngram else asked
    turns = (Segment("user", "?"), Segment("assistant", f"{before} {run.upper()}, {after}"))
    assert "instruction" in kinds(turns, erased=asked, ngram=ngram)


def test_a_finding_names_place_turn_and_words() -> None:
    leaking = (Segment("user", f"{ASKED}\nWhat is 2 + 3?"), TURNS[2])
    [finding] = audit(leaking, "orca.jsonl:7", erased=ASKED)
    assert finding.origin == "orca.jsonl:7"
    assert "user" in finding.detail
    assert "think step by step and justify" in finding.detail


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"First line.\nSecond line.", ["escapes"]),
        (r"First line.\n\nthen", ["escapes"]),
        (r"ends with\n", ["escapes"]),
        (r"the angle \nu and \neq and C:\new", []),
        ("a real\nline break", []),
        ("48/2 = <<48/2=24>>24 clips", ["calculator"]),
        ("a << b and c >> d in code", ["calculator"]),
        ("a << b only", []),
        ("done<|endoftext|>", ["end_of_text"]),
    ],
)
def test_artefacts(text: str, found: list[str]) -> None:
    assert kinds((Segment("user", "?"), Segment("assistant", text))) == found


def test_cleaning_takes_out_what_it_is_asked_to_and_counts_turns() -> None:
    turns = (
        Segment("user", "x <<1+1=2>>"),
        Segment("assistant", "so <<1+1=2>>2\\nYes<|endoftext|>\n"),
    )
    assert clean(turns, ["end_of_text"])[0][1].text == "so <<1+1=2>>2\\nYes"
    everything = ["end_of_text", "calculator_marks", "escaped_newlines"]
    cleaned, changed = clean(turns, everything)
    assert cleaned[1].text == "so 2\nYes"
    assert changed == 2
    assert kinds(cleaned) == []
    assert clean(cleaned, everything) == (cleaned, 0)


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("6 * 7 = 42", "42", True),
        ("The total is $1,080.", "1080", True),
        ("so 72\n#### 72", "Natalia sold 48+24 = 72.\n#### 72", True),
        ("<answer>3</answer> of 4", "3", True),
        ("It is 41", "42", False),
        ("The answer is B) at sea", "B", True),
        ("C) in the park", "C", True),
        ("The answer is A", "B", False),
        ("It was Denver Broncos who won.", "Denver Broncos", True),
        ("It was the Panthers.", "Denver Broncos", False),
        ("cartoon", "art", False),
    ],
)
def test_agreement_with_gold(answer: str, gold: str, right: bool) -> None:
    assert agrees(answer, gold) is right
    turns = (Segment("user", "?"), Segment("assistant", answer))
    assert kinds(turns, gold=gold) == ([] if right else ["gold"])
