"""Duplicates are found with both places; what only looks alike stays."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import duplicates
from tunesmith.data.duplicates import bands, find_duplicates, groups, jaccard, shingle_hashes
from tunesmith.data.formats import to_examples
from tunesmith.data.readers import read_rows
from tunesmith.data.words import words
from tunesmith.errors import UsageError
from tunesmith.types import Example, Origin, Segment

STORY = (
    "The old miller had three sons and when he died he left them nothing but the mill, a donkey "
    "and a cat, which the youngest son received because nobody else wanted it at all"
)


def row(line: int, prompt: str, answer: str = "") -> Example:
    turns = [Segment("user", prompt)]
    if answer:
        turns.append(Segment("assistant", answer, 1.0))
    return Example(tuple(turns), Origin("rows.jsonl", line))


def test_exact_duplicates_name_both_places_and_the_first_is_kept() -> None:
    rows = [row(1, "Why  is IT so?", "x"), row(2, "What?", "x"), row(3, "why is it\nso?", "X")]
    [found] = find_duplicates(rows, near=False)
    assert (str(found.origin), str(found.kept), found.kind) == (
        "rows.jsonl:3",
        "rows.jsonl:1",
        "exact",
    )
    assert found.reason() == "the same text as rows.jsonl:1"


def test_roles_and_answers_tell_rows_apart() -> None:
    plain = Example((Segment(None, "ab", 1.0),), Origin("t", 1))
    rows = [row(1, "a", "b"), row(2, "a", "c"), row(3, "ab"), plain]
    assert find_duplicates(rows, near=False) == []


def test_near_duplicates_have_a_similarity_and_form_groups() -> None:
    changed = STORY.replace("youngest", "smallest")
    rows = [row(1, STORY), row(2, "Something else entirely"), row(3, changed), row(4, STORY + "!")]
    found = find_duplicates(rows)
    assert [(f.origin.line, f.kind) for f in found] == [(3, "near"), (4, "near")]
    assert 0.8 <= found[0].similarity < 1
    assert list(groups(found)) == [Origin("rows.jsonl", 1)]
    assert "similarity 0.89 to rows.jsonl:1" in found[0].reason()
    assert find_duplicates(rows[:3], threshold=0.99) == []


def test_other_numbers_make_another_row() -> None:
    one, other = f"{STORY} for 12 days", f"{STORY} for 13 days"
    assert find_duplicates([row(1, one), row(2, other)]) == []
    assert len(find_duplicates([row(1, one), row(2, other)], ignore_numbers=True)) == 1
    assert len(find_duplicates([row(1, f"{STORY} 1,080"), row(2, f"{STORY} 1080.0")])) == 1


def test_another_answer_to_a_long_prompt_is_no_duplicate() -> None:
    rows = [row(1, STORY * 3, "the cat"), row(2, STORY * 3 + " then", "the donkey")]
    assert find_duplicates(rows) == []
    rows[1] = row(2, STORY * 3 + " then", "the cat")
    assert len(find_duplicates(rows)) == 1


def test_how_often_words_come_counts() -> None:
    assert jaccard(shingle_hashes(words("a b a b a b")), shingle_hashes(words("a b a"))) < 1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="similarity"):
        find_duplicates([], threshold=0)
    with pytest.raises(UsageError, match="shingle"):
        find_duplicates([], shingle=0)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    number, size = bands(threshold)
    assert number * size <= duplicates.PERMUTATIONS
    assert 1 - (1 - threshold**size) ** number >= duplicates.RECALL


@given(st.lists(st.text(max_size=60), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_copy_of_everything_is_all_duplicates(texts: list[str]) -> None:
    rows = [row(n, text) for n, text in enumerate(texts)]
    alone = find_duplicates(rows)
    kept = len(rows) - len(alone)
    doubled = find_duplicates([*rows, *rows])
    assert doubled[: len(alone)] == alone
    assert 2 * len(rows) - len(doubled) == kept
    assert all(0 <= found.similarity <= 1 for found in doubled)


@given(st.lists(st.sampled_from("abcdefg"), min_size=1), st.lists(st.sampled_from("abcdefg")))
@settings(deadline=None)
def test_jaccard_is_that_of_bags_of_shingles(first: list[str], second: list[str]) -> None:
    def bag(found: list[str]) -> set[tuple[str, int]]:
        size = min(2, len(found))
        runs = ["".join(found[at : at + size]) for at in range(len(found) - size + 1)] or [""]
        return {(run, runs[:at].count(run)) for at, run in enumerate(runs)}

    one, other = bag(first), bag(second)
    assert jaccard(shingle_hashes(first), shingle_hashes(second)) == pytest.approx(
        len(one & other) / len(one | other)
    )


def test_the_result_is_the_same_in_another_process() -> None:
    code = (
        "from tunesmith.data.duplicates import shingle_hashes as h\n"
        "print(h(['one', 'two', 'three']).tolist())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{shingle_hashes(['one', 'two', 'three']).tolist()}\n"}


def test_scripts_without_spaces_are_compared_by_sign() -> None:
    text = "我们今天去公园散步然后回家吃晚饭看电视最后早点睡觉因为明天还要上班"
    [found] = find_duplicates([row(1, text), row(2, text.replace("电视", "电影"))])
    assert 0.8 <= found.similarity < 1


def edited(text: str, share: float, draw: random.Random) -> str:
    found = text.split()
    for _ in range(max(1, round(share * len(found)))):
        at = draw.randrange(len(found))
        if not any(sign.isdigit() for sign in found[at]):
            found[at] = draw.choice(("really", "very", "small", "other", "some"))
    return " ".join(found)


def test_every_candidate_is_measured() -> None:
    draw = random.Random(0)
    found = []
    for size in range(30, 90):
        text = " ".join(f"w{letter}" for letter in draw.sample(LETTERS, size))
        found += find_duplicates([row(1, text), row(2, edited(text, 0.06, draw))])
    assert 0 < len(found) < 60
    assert all(duplicate.similarity >= 0.8 for duplicate in found)


LETTERS = [a + b for a in "abcdefghijklm" for b in "nopqrstuvwxyz"]


@pytest.mark.parametrize(("share", "least"), [(0.02, 1.0), (0.05, 0.95)])
def test_recall_and_precision_on_real_questions(shared: Path, share: float, least: float) -> None:
    source = str(shared / "data" / "gsm8k" / "train.jsonl")
    _, examples = to_examples(list(read_rows(source, max_rows=300)))
    texts = [" ".join(s.text for s in example.segments) for example in examples]
    draw = random.Random(0)
    originals = [row(n, text) for n, text in enumerate(texts)]
    copies = [row(n + 1000, edited(text, share, draw)) for n, text in enumerate(texts)]
    assert find_duplicates(originals) == []
    found = find_duplicates([*originals, *copies])
    assert len(found) >= least * len(texts)
    assert all((f.origin.line or 0) - 1000 == f.kept.line for f in found)
