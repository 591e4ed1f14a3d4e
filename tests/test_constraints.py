"""The 25 kinds of verifiable constraints against answers judged by hand, and how they are read."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter

import pytest

from constraint_cases import CASES
from tunesmith.errors import UsageError
from tunesmith.grading.constraints import language
from tunesmith.grading.constraints.checks import (
    Constraint,
    ConstraintFault,
    loose_forms,
    read_constraints,
    stored_constraints,
)
from tunesmith.grading.constraints.registry import KINDS
from tunesmith.grading.constraints.sentences import sentences

HAS_DETECTOR = importlib.util.find_spec(language.PACKAGE) is not None


def read(kind, kwargs):
    (constraint,) = read_constraints([kind], [kwargs])
    return constraint


@pytest.mark.parametrize(
    ("kind", "kwargs", "right", "wrong"),
    CASES,
    ids=[f"{kind}-{place}" for place, (kind, *_) in enumerate(CASES)],
)
def test_verdicts_agree_with_hand_checked_answers(kind, kwargs, right, wrong):
    if KINDS[kind].tells_language and not HAS_DETECTOR:
        pytest.skip("no detector of languages")
    constraint = read(kind, kwargs)
    assert [text for text in right if not constraint.strict(text)] == []
    assert [text for text in wrong if constraint.strict(text)] == []


def test_each_of_the_25_kinds_has_enough_cases():
    right, wrong = Counter(), Counter()
    for kind, _, yes, no in CASES:
        right[kind] += len(set(yes))
        wrong[kind] += len(set(no) - {""})
        assert "" in no
    assert right.keys() == wrong.keys() == KINDS.keys()
    assert len(KINDS) == 25
    assert min(right.values()) >= 3
    assert min(wrong.values()) >= 3


@pytest.mark.parametrize(
    ("kind", "kwargs", "text"),
    [
        ("detectable_format:json_format", {}, "Sure, here it is:\n[1, 2]"),
        ("detectable_format:json_format", {}, "[1, 2]\nI hope that helps."),
        ("detectable_format:json_format", {}, "Sure:\n[1, 2]\nAnything else?"),
        ("startend:end_checker", {"end_phrase": "The end."}, "It rains. **The end.**"),
        ("startend:end_checker", {"end_phrase": "The end."}, "Rain. *The end.*\n(20 words)"),
        ("punctuation:no_comma", {}, "Sure, here:\nRain falls"),
        ("startend:quotation", {}, 'Sure:\n**"Rain."**\nBye.'),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "Yes.\n*Say* it\nRain"),
    ],
)
def test_loose_verdicts_forgive_a_line_or_asterisks(kind, kwargs, text):
    constraint = read(kind, kwargs)
    assert not constraint.strict(text)
    assert constraint.loose(text)


def test_loose_verdicts_forgive_nothing_else():
    constraint = read("detectable_format:json_format", {})
    assert not constraint.loose("Sure.\nHere:\n[1, 2]")
    assert not constraint.loose("Sure, [1, 2]")
    assert not constraint.loose("")
    # What is left of one line without its first line is nothing, and follows nothing.
    assert not read("punctuation:no_comma", {}).loose("a, b")


def test_the_eight_loose_forms():
    assert loose_forms("*a*\nb\n*c*") == [
        "*a*\nb\n*c*", "b\n*c*", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb",
    ]  # fmt: skip
    assert len(loose_forms("*a*\n*b*\n*c*")) == 8
    assert loose_forms("a") == ["a", ""]


@pytest.mark.parametrize(
    ("ids", "kwargs", "reason"),
    [
        (None, [], "no list of constraints"),
        ([], [], "no list of constraints"),
        ("punctuation:no_comma", [{}], "no list of constraints"),
        (["punctuation:no_commas"], [{}], "no constraint 'punctuation:no_commas'"),
        ([3], [{}], "no constraint 3"),
        ([["a"]], [{}], "no constraint"),
        (["punctuation:no_comma"], [{}, {}], "1 constraints and 2 kwargs"),
        (["punctuation:no_comma"], "{}", "1 constraints and no kwargs"),
        (["punctuation:no_comma"], [{"n": 1}], "no parameter 'n'"),
        (["punctuation:no_comma"], [[]], "are \\[\\]"),
        (["keywords:existence"], [{}], "lacks its parameter 'keywords'"),
        (["keywords:existence"], None, "lacks its parameter 'keywords'"),
        (["keywords:existence"], [{"keywords": None}], "lacks its parameter"),
        (["keywords:existence"], [{"keywords": "word"}], "keywords = 'word'"),
        (["keywords:existence"], [{"keywords": ["a", ""]}], "keywords = "),
        (["keywords:letter_frequency"],
         [{"letter": "ab", "let_relation": "at least", "let_frequency": 1}], "letter = 'ab'"),
        (["length_constraints:number_words"], [{"relation": "around", "num_words": 3}], "around"),
        (["length_constraints:number_words"], [{"relation": [], "num_words": 3}], "relation = "),
        (["length_constraints:number_words"], [{"relation": "at least", "num_words": "3"}], "'3'"),
        (["length_constraints:number_words"], [{"relation": "at least", "num_words": 3.5}], "3.5"),
        (["length_constraints:number_words"],
         [{"relation": "at least", "num_words": float("nan")}], "nan"),
        (["length_constraints:number_words"],
         [{"relation": "at least", "num_words": True}], "True"),
        (["length_constraints:number_paragraphs"], [{"num_paragraphs": 0}], "num_paragraphs = 0"),
        (["length_constraints:nth_paragraph_first_word"],
         [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "so"}], "paragraph 3 of 2"),
        (["language:response_language"], [{"language": "xx"}], "language = 'xx'"),
        (["language:response_language"], [{"language": ["de"]}], "language = "),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(ids, kwargs, reason):
    with pytest.raises(ConstraintFault, match=reason) as caught:
        read_constraints(ids, kwargs)
    assert caught.value.expected


def test_nulls_that_pad_kwargs_are_absent_and_whole_floats_are_counts():
    padded = {"relation": "at least", "num_words": 3.0, "keywords": None, "letter": None}
    constraint = read("length_constraints:number_words", padded)
    assert constraint.parameters == {"relation": "at least", "num_words": 3}
    assert read("punctuation:no_comma", None).strict("a b")
    (plain,) = read_constraints(["punctuation:no_comma"], None)
    stored = {"constraints": [{"kind": plain.kind, "kwargs": plain.parameters}]}
    assert stored_constraints(stored) == [plain]
    assert stored_constraints({}) == []
    assert str(constraint) == "length_constraints:number_words num_words=3 relation='at least'"


def test_a_missing_detector_is_said(monkeypatch):
    monkeypatch.setattr(language, "PACKAGE", "no_such_detector")
    language.detect.cache_clear()
    with pytest.raises(UsageError, match="not installed") as caught:
        Constraint("language:response_language", {"language": "de"}).strict("Ein Satz.")
    assert "tunesmith[ifeval]" in caught.value.hint


@pytest.mark.skipif(not HAS_DETECTOR, reason="no detector of languages")
def test_the_detector_says_the_same_every_time_and_knows_its_codes():
    text = "Hola hello bonjour, no si yes oui"
    found = set()
    for _ in range(5):
        language.detect.cache_clear()
        found.add(language.detect(text))
    assert len(found) == 1
    assert set(language._factory().get_lang_list()) == language.LANGUAGES
    assert read("language:response_language", {"language": "zh"}).strict("今天天气很好。")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50. He left.", 2),
        ("The U.S. Army came. I live in the U.S. The end.", 3),
        ("J. K. Rowling wrote it. So do I. You?", 3),
        ("Wait... what? Yes... It is. So… no.", 4),
        ('"Stop!" he said. "Go." She went.', 3),
        ("Is it “so?” he asked. (It was.) Yes.", 3),
        ("Really?! Yes!!! No.", 3),
        ("1. First item\n2. Second item\n- third", 3),
        ("# Title\n\nText here. more text.", 3),
        ("one line\nof the same sentence", 1),
        ("i like it. you like it! ok?", 3),
        ("今天很好。我们去吧！走。", 3),
        ("यह है। वह है।", 2),
        ("هل هذا؟ نعم.", 2),
        ("See e.g. Fig. 3 and No. 5. No. I won't.", 3),
        ("We met at 5 p.m. Then we ate pies, etc. Bob left.", 3),
        ("Do one more rep. Then enjoy the sun. Go.", 3),
        ("See www.a.com for 2.0.1. It is out.", 2),
        ("It is true.[1] So is this.", 2),
        ("**Bold.** Next one", 2),
        ("", 0),
        ("... !? ***", 0),
    ],
)
def test_sentences(text, expected):
    assert len(sentences(text)) == expected, sentences(text)


@pytest.mark.parametrize("unit", [".", "*", "\n", "[a", "<<a", "p.s.!", "A. ", "***\n", " *a", '"'])
def test_no_check_is_slow_on_a_long_text(unit):
    text = unit * (100_000 // len(unit)) + "x"
    begun = time.perf_counter()
    for kind, kwargs, *_ in CASES:
        if not KINDS[kind].tells_language:
            read(kind, kwargs).strict(text)
    assert time.perf_counter() - begun < 2
