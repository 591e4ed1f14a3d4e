"""Sentences and chunks: nothing is lost, nothing is longer than the limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.raft.chunks import chunk_document, count_words
from tunesmith.data.raft.documents import Document
from tunesmith.data.raft.sentences import sentence_spans, sentences
from tunesmith.data.raft.templates import ask
from tunesmith.types import Origin

TEXTS = st.lists(
    st.sampled_from(
        [
            "Dr. Smith paid 3.5 dollars.",
            "“Stop!” he said.",
            "No.",
            "one\ntwo",
            "A. B. Cole came",
            "\n\n",
            "# Head\n",
            "- item\n",
            "x" * 30,
            "。漢字！",
            "e.g. this",
            "It cost 1,000.50 in 1999.",
            "¿?",
            "\t",
        ]
    ),
    max_size=30,
).map(" ".join) | st.text(max_size=200)


def document(text: str) -> Document:
    return Document("d", "title", text, Origin("d.txt"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith left. He ran.", ["Dr. Smith left.", "He ran."]),
        ("It cost 3.5 euros. Fine.", ["It cost 3.5 euros.", "Fine."]),
        ("J. K. Rowling wrote it. She did.", ["J. K. Rowling wrote it.", "She did."]),
        ("“Stop!” he said. Then she left.", ["“Stop!” he said.", "Then she left."]),
        ('He said "Go." Then it went.', ['He said "Go."', "Then it went."]),
        ("Fruit, e.g. apples, is sold. Yes!", ["Fruit, e.g. apples, is sold.", "Yes!"]),
        ("He lives in the U.S. The law is old.", ["He lives in the U.S.", "The law is old."]),
        ("The U.S. Army came.", ["The U.S. Army came."]),
        ("It works.[12] And so on.", ["It works.[12]", "And so on."]),
        ("one line\nof text. Next", ["one line\nof text.", "Next"]),
        ("# Head\nText here.", ["# Head", "Text here."]),
        ("Items\n- one\n- two", ["Items", "- one", "- two"]),
        ("A title\n\nA text", ["A title", "A text"]),
        ("今日は。明日も！", ["今日は。", "明日も！"]),
        (
            "He said no. She went. World War I. Then",
            ["He said no.", "She went.", "World War I.", "Then"],
        ),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(TEXTS)
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert all(a < b for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@given(TEXTS, st.integers(1, 12), st.integers(0, 8))
def test_chunks_cover_the_text_and_keep_the_limit(text: str, limit: int, overlap: int) -> None:
    chunks = chunk_document(document(text), limit, min(overlap, limit - 1))
    covered: set[int] = set()
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert 0 < count_words(chunk.text) <= limit
        covered |= set(range(chunk.start, chunk.end))
    assert all(at in covered for at, letter in enumerate(text) if not letter.isspace())
    assert [c.end for c in chunks] == sorted({c.end for c in chunks})
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@settings(max_examples=50)
@given(TEXTS, st.integers(1, 20), st.integers(0, 5))
def test_any_measure_is_kept(text: str, limit: int, overlap: int) -> None:
    """Letters stand in for tokens: one word may be longer than the limit."""
    for chunk in chunk_document(document(text), limit, min(overlap, limit - 1), len):
        assert len(chunk.text) <= limit


@pytest.mark.parametrize("text", [".", "(", "A ", "A.", "\n", '."', "[1]", "'", " and", "A of "])
def test_long_runs_do_not_slow_the_search(text: str) -> None:
    """Twenty thousand repetitions take no time; a search that steps back would take minutes."""
    whole = text * 20_000 + "x."
    chunk_document(document(whole), 300)
    assert list(ask(whole)) == []


@given(TEXTS)
def test_any_text_may_be_asked_about(text: str) -> None:
    for found in ask(text):
        assert found.answer in found.sentence
        assert found.sentence in text


def test_sentences_stay_whole_where_they_fit() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten."
    chunks = chunk_document(document(text), 7)
    assert [c.text for c in chunks] == ["One two three. Four five six.", "Seven eight nine. Ten."]
    assert [c.id for c in chunks] == ["d#0", "d#1"]


def test_chunks_overlap_by_whole_sentences() -> None:
    text = "One two three. Four five. Six seven eight. Nine ten."
    chunks = chunk_document(document(text), 6, 3)
    assert [c.text for c in chunks] == [
        "One two three. Four five.",
        "Four five. Six seven eight.",
        "Six seven eight. Nine ten.",
    ]


def test_a_long_sentence_is_cut_between_words() -> None:
    chunks = chunk_document(document("a b c d e f g."), 3)
    assert [c.text for c in chunks] == ["a b c", "d e f", "g."]
