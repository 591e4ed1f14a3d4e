"""RAFT: questions, distractors, rows, splits, and the command itself."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_openai import FakeServer
from tunesmith.cli import main
from tunesmith.config.schema_raft import RaftOptions
from tunesmith.data.raft.checks import check_rows
from tunesmith.data.raft.chunks import Chunk, chunk_documents
from tunesmith.data.raft.documents import Document, Pair, read_documents
from tunesmith.data.raft.items import data_set
from tunesmith.data.raft.questions import (
    Question,
    from_model,
    from_pairs,
    from_templates,
    key,
    occurrences,
    read_pairs,
)
from tunesmith.data.raft.retrieval import Bm25, Embeddings
from tunesmith.data.raft.rows import (
    NOT_TOLD,
    Likeness,
    RaftSettings,
    as_fields,
    as_gorilla,
    build_rows,
    may_distract,
    quoted_sentence,
    split_sides,
)
from tunesmith.data.raft.templates import ask
from tunesmith.errors import DataError, ModelError, UsageError
from tunesmith.generate import remote as generate_remote
from tunesmith.types import Origin
from tunesmith.workflows.raft_makers import question_maker

TOWNS = ("Arlon", "Brest", "Calais", "Dijon", "Evian", "Fulda", "Gotha", "Halle", "Ieper", "Jena")
ORIGIN = Origin("t")


def town(name: str, year: int) -> Document:
    """Return a document that templates can ask about, unlike the others."""
    text = (
        f"{name} Castle was built in {year} by monks. The old walls of {name} are {year % 97 + 3} "
        f"metres high, {name.casefold()} stone by {name.casefold()} stone. Visitors of {name} like "
        f"{name}ish bread with {name}ish cheese, and {name}ish songs fill {name}ish inns at night."
    )
    return Document(f"{name}.txt", name, text, ORIGIN)


@pytest.fixture
def chunks() -> list[Chunk]:
    return chunk_documents([town(name, 1100 + 41 * n) for n, name in enumerate(TOWNS)], 300)


@pytest.fixture
def questions(chunks: list[Chunk]) -> list[Question]:
    return from_templates(chunks, 3).questions


def rows_of(questions: list[Question], chunks: list[Chunk], **settings: Any) -> list[Any]:
    return build_rows(questions, chunks, RaftSettings(**settings), Bm25).rows


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            "Arlon Castle was built in 1823 by monks.",
            "In what year was Arlon Castle built?",
            "1823",
        ),
        ("In 1823, Arlon Castle was sold.", "In what year was Arlon Castle sold?", "1823"),
        ("Marie Curie died on 4 July 1934.", "On what date did Marie Curie die?", "4 July 1934"),
        ("Kaye Bell was born in Paris in 1901.", "Where was Kaye Bell born?", "Paris"),
        ("Kaye Bell works at Acme Labs.", "Where does Kaye Bell work?", "Acme Labs"),
        ("Kaye Bell won 25 races in Peru.", "How many races did Kaye Bell win in Peru?", "25"),
        (
            "Kaye Bell sold more than 70,000 maps in Peru.",
            "How many maps did Kaye Bell sell in Peru?",
            "more than 70,000",
        ),
        ("Kaye Bell is a Scottish engineer.", "Who is Kaye Bell?", "a Scottish engineer"),
        ("Ohm River is a tidal inlet.", "What is Ohm River?", "a tidal inlet"),
        ("Port Vila is the capital of Vanuatu.", "What is the capital of Vanuatu?", "Port Vila"),
        ("Ohm River is also known as Blue Lady.", "What is Ohm River also known as?", "Blue Lady"),
        ("Fort Ohm was designed by Kaye Bell.", "By whom was Fort Ohm designed?", "Kaye Bell"),
        ("Kaye Bell discovered radium in 1898.", "What did Kaye Bell discover in 1898?", "radium"),
    ],
)
def test_templates(text: str, question: str, answer: str) -> None:
    assert (question, answer) in {(found.question, found.answer) for found in ask(text)}


@pytest.mark.parametrize(
    "text",
    [
        "He was born in Paris in 1901.",
        "It was built in 1823 by monks.",
        "Their company was founded in 1990.",
        "The network is operated by Acme Labs.",
        "Was it built in 1823?",
        "Arlon Castle gave its land away in 1823.",
        "Kaye Bell bought a fort built in 1823.",
        "Kaye Bell was robbed in 1823, 1907 and 1950.",
        f"Arlon Castle was built in 1823 by {'x' * 500}.",
        "Kaye Bell said that it was sold in 1823 and that he left.",
    ],
)
def test_statements_that_name_nothing_are_not_asked_about(text: str) -> None:
    assert list(ask(text)) == []


@pytest.mark.parametrize(
    ("text", "answer", "times"),
    [
        ("It cost 2,000.", "2,000", 1),
        ("It cost 12,000 or 2,000.5.", "2,000", 0),
        ("four and fourteen", "four", 1),
        ("New\nYork and new york", "New York", 2),
        ("f(x) is f(x)", "f(x)", 2),
        ("nothing", "", 0),
    ],
)
def test_occurrences(text: str, answer: str, times: int) -> None:
    assert occurrences(text, answer) == times


def test_offline_questions_have_one_answer_in_their_chunk(shared: Path) -> None:
    library = read_documents([str(shared / "data" / "docqa" / "xquad.en.json")])
    chunks = chunk_documents(library.documents, 300, 30)
    texts = {chunk.id: chunk.text for chunk in chunks}
    questions = from_templates(chunks, 3).questions
    assert len(questions) > 30
    assert all(occurrences(texts[q.chunk], q.answer) == 1 for q in questions)
    assert all(q.answer in texts[q.chunk] for q in questions)
    assert len({key(q.text) for q in questions}) == len(questions)


def test_an_answer_that_stands_twice_is_not_asked_for() -> None:
    text = "Arlon Castle was built in 1823 by monks. The monks left in 1823."
    asked = from_templates(chunk_documents([Document("a", "a", text, ORIGIN)], 300), 3)
    assert "1823" not in {question.answer for question in asked.questions}
    assert asked.discards["the answer stands in its chunk more than once"]


def test_a_sentence_of_two_chunks_is_asked_about_once() -> None:
    text = " ".join(f"Kaye {name} was born in {1801 + n}." for n, name in enumerate(TOWNS))
    chunks = chunk_documents([Document("a", "a", text, ORIGIN)], 18, 12)
    asked = from_templates(chunks, 2)
    assert len({question.text for question in asked.questions}) == len(asked.questions)
    # The limit counts new questions, not those that the chunk before was asked already.
    assert [q.answer for q in asked.questions if q.chunk == "a#1"] == ["1803", "1804"]
    assert asked.discards["the same question again"]


def test_pairs_find_the_chunk_that_answers(chunks: list[Chunk], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"question": "When was the castle of Dijon built?", "answer": "1223"},
        {"question": "Who built Halle?", "answer": "giants"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = from_pairs(read_pairs(str(path)), chunks)
    assert [(q.chunk, q.answer) for q in asked.questions] == [("Dijon.txt#0", "1223")]
    assert asked.discards == {"no chunk holds the answer": 1}
    assert asked.named == [f"{path}:2: 'giants'"]


def test_pairs_prefer_the_nearest_of_several_chunks(chunks: list[Chunk]) -> None:
    pair = Pair("What did monks of Gotha build?", "monks", ORIGIN)
    assert from_pairs([pair], chunks).questions[0].chunk == "Gotha.txt#0"


def test_a_question_with_two_answers_goes_and_a_copy_too(chunks: list[Chunk]) -> None:
    pairs = [Pair("Who?", "monks", ORIGIN), Pair("who", "stone", ORIGIN)]
    pairs += [Pair("What?", "bread", ORIGIN)] * 2
    pairs = [replace(pair, answer=pair.answer, document="Halle.txt", span=False) for pair in pairs]
    asked = from_pairs(pairs, chunks)
    assert [question.text for question in asked.questions] == ["What?"]
    assert asked.discards["one question, several answers"] == 2
    assert asked.discards["the same question again"] == 1


def test_a_file_of_pairs_without_answers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"frage": "x", "antwort": "y"}\n')
    with pytest.raises(DataError, match="the fields are frage, antwort"):
        read_pairs(str(path))
    assert read_pairs(str(path), {"question": "frage", "answer": "antwort"})[0].answer == "y"


class Stub:
    def __init__(self, reply: str) -> None:
        self.reply = reply

    def replies(self, prompts: Any) -> list[str]:
        return [self.reply] * len(prompts)


def test_questions_of_a_model_are_checked(chunks: list[Chunk]) -> None:
    reply = (
        "Q: When was Arlon Castle built?\nA: 1100.\nQ: Who liked it?\nA: the king\n"
        "Q1: What is fill?\nA1: Arlon\nQ: Is bread bread?\nA: bread\n"
        "Q: What of visitors?\nA: Visitors of Arlon like Arlonish bread with Arlonish cheese, and "
        "Arlonish songs fill\n"
    )
    asked = from_model(chunks[:1], Stub(reply), 9)
    assert [(q.text, q.answer) for q in asked.questions] == [
        ("When was Arlon Castle built?", "1100")
    ]
    assert asked.discards == {
        "the answer is not in its chunk": 1,
        "the answer stands in its chunk more than once": 1,
        "the question tells its answer": 1,
        "the answer is too long": 1,
    }
    assert from_model(chunks[:1], Stub("I am a model."), 3).discards == {
        "a reply without a line of Q: and A:": 1
    }


def test_rows_keep_the_shares(chunks: list[Chunk], questions: list[Question]) -> None:
    many = [replace(q, text=f"{q.text} ({n})") for n in range(40) for q in questions]
    rows = rows_of(many, chunks, abstain_share=0.5)
    assert (
        check_rows({"train": [row for row in rows if row.question in many[: len(questions)]]}) == {}
    )
    share = sum(bool(row.distractors) for row in rows) / len(rows)
    assert 0.44 < share < 0.56
    assert 0.75 < sum(row.position is not None for row in rows) / len(rows) < 0.85
    without = [row for row in rows if row.position is None]
    assert 0.35 < sum(row.mode == "abstain" for row in without) / len(without) < 0.65
    places = [row.position for row in rows if row.position is not None and row.distractors]
    assert all(0.15 < places.count(place) / len(places) < 0.35 for place in range(4))
    # The number of documents tells nothing of whether the oracle is among them.
    assert {len(row.shown) for row in rows if row.distractors} == {4}
    mined = sum(row.mined for row in rows) / sum(len(row.distractors) for row in rows)
    assert 0.4 < mined < 0.6


def test_a_row_does_not_depend_on_its_neighbours(
    chunks: list[Chunk], questions: list[Question]
) -> None:
    together = rows_of(questions, chunks)
    alone = [row for question in reversed(questions) for row in rows_of([question], chunks)]
    assert together == alone[::-1]
    assert rows_of(questions, chunks, seed=1) != together


def test_no_distractor_answers_or_repeats_the_oracle(chunks: list[Chunk]) -> None:
    oracle = chunks[0]
    asked = Question("When was Arlon Castle built?", "1100", oracle.id, "date")
    copy = replace(oracle, id="copy#0", text=oracle.text.replace("1100", "MC"), group="copy")
    teller = replace(chunks[1], id="other#0", text="It was in 1100 that it rained.")
    assert not may_distract(copy, asked, oracle, Likeness())
    assert not may_distract(teller, asked, oracle, Likeness())
    assert not may_distract(oracle, asked, oracle, Likeness())
    assert may_distract(chunks[2], asked, oracle, Likeness())
    # An answer in other words cannot be searched for; then the document must be another one.
    free = replace(asked, answer="long ago", span=False)
    near = replace(chunks[2], group=oracle.group)
    assert not may_distract(near, free, oracle, Likeness())


def test_too_few_distractors_are_counted(chunks: list[Chunk], questions: list[Question]) -> None:
    few = [q for q in questions if q.chunk in {chunks[0].id, chunks[1].id}]
    built = build_rows(few, chunks[:2], RaftSettings(distractor_probability=1), Bm25)
    assert sum(n for why, n in built.short.items() if why.startswith("1 distractors")) == len(few)
    alone = [q for q in questions if q.chunk == chunks[0].id]
    settings = RaftSettings(distractor_probability=1, oracle_share=0)
    built = build_rows(alone, chunks[:1], settings, Bm25)
    assert built.short["the oracle kept, for want of any distractor"] == len(alone)
    assert check_rows({"train": built.rows}) == {}


@pytest.mark.parametrize("style", ["plain", "quoted"])
def test_outputs_by_mode(chunks: list[Chunk], questions: list[Question], style: str) -> None:
    settings = {"distractor_probability": 1.0, "answer_style": style}
    for share, mode in ((0.0, "memorise"), (1.0, "abstain")):
        [row, *_] = rows_of(questions, chunks, oracle_share=0, abstain_share=share, **settings)
        assert row.mode == mode
        assert row.oracle.text not in row.instruction
        assert row.output.endswith(NOT_TOLD if mode == "abstain" else row.question.answer)
        assert ("say so" in row.instruction) is (mode == "abstain")
        assert "quote##" not in row.output
    [row, *_] = rows_of(questions, chunks, oracle_share=1, **settings)
    assert row.oracle.text in row.instruction
    if style == "plain":
        assert row.output == f"Based on the documents: {row.question.answer}"
    else:
        assert f"Document [{row.position + 1}] says ##begin_quote##" in row.output
        assert row.output.endswith(f"<ANSWER>: {row.question.answer}")


def test_the_quote_of_a_free_answer_is_what_its_reason_speaks_of(chunks: list[Chunk]) -> None:
    text = "We asked them, and yes was common. Songs were sung at night in every inn."
    oracle = replace(chunks[0], text=text)
    asked = Question("Do they sing?", "yes", oracle.id, "given", False, "Every night has songs.")
    assert quoted_sentence(asked, oracle) == "Songs were sung at night in every inn."


def test_the_check_of_a_set_sees_each_fault(chunks: list[Chunk], questions: list[Question]) -> None:
    settings = {"distractor_probability": 1.0, "oracle_share": 1.0, "answer_style": "quoted"}
    row, other, *_ = rows_of(questions, chunks, **settings)
    assert check_rows({"train": [row, other]}) == {}

    def found(*rows: Any, **more: Any) -> set[str]:
        return set(check_rows({"train": rows, **more}))

    wrong = replace(row.question, answer="nowhere")
    assert "the answer is not in its oracle" in found(replace(row, question=wrong))
    assert "the oracle is not where it should be" in found(
        replace(row, shown=row.shown[::-1], position=0)
        if row.position == 0
        else replace(row, position=0)
    )
    tells = replace(row.distractors[0], text=f"{row.distractors[0].text} {row.question.answer}.")
    shown = tuple(tells if c.id == tells.id else c for c in row.shown)
    assert "a distractor answers too, or nearly duplicates the oracle" in found(
        replace(row, shown=shown)
    )
    assert "a quote is not in what is shown" in found(
        replace(row, output="##begin_quote##Not in there.##end_quote##")
    )
    assert "a document is missing in the instruction" in found(replace(row, instruction="Hello"))
    assert "a question twice" in found(row, row)
    two = replace(row, question=replace(row.question, answer="monks"))
    assert "a question with two answers" in found(row, two)
    assert "a document on both sides of the split" in found(row, validation=[row])
    assert "the mode and the oracle's place disagree" in found(replace(row, mode="abstain"))
    assert "no document is shown" in found(replace(row, shown=(), position=None, mode="abstain"))


def test_the_split_keeps_groups_and_copies_together(
    chunks: list[Chunk], questions: list[Question]
) -> None:
    held = split_sides(chunks, questions, 0.2, 42)
    assert len(held) == 2
    assert split_sides(chunks[::-1], questions[::-1], 0.2, 42) == held
    assert split_sides(chunks, questions, 0, 42) == frozenset()
    assert (
        split_sides(chunks[:1], [q for q in questions if q.chunk == chunks[0].id], 0.2, 42) == set()
    )
    [name, *_] = held
    copy = next(replace(c, id="copy#0", group="copy") for c in chunks if c.group == name)
    assert "copy" in split_sides([*chunks, copy], questions, 0.2, 42)


def test_layouts(chunks: list[Chunk], questions: list[Question]) -> None:
    row = rows_of(questions, chunks, distractor_probability=1, oracle_share=1)[0]
    fields = as_fields(row)
    assert list(fields)[:5] == [
        *("instruction", "output", "oracle_context", "num_distractors", "has_distractors")
    ]
    assert (fields["num_distractors"], fields["has_distractors"]) == (3, True)
    assert f"Document [{fields['oracle_position']}]: {row.oracle.text}" in fields["instruction"]
    gorilla = as_gorilla(row, 0)
    assert list(gorilla) == [
        *("id", "type", "question", "context", "oracle_context", "cot_answer", "answer"),
        "instruction",
    ]
    assert gorilla["context"]["sentences"][0][row.position] == row.oracle.text
    assert gorilla["instruction"].count("<DOCUMENT>") == 4


def test_bm25_is_quiet_and_stable(capfd: Any) -> None:
    index = Bm25(["red apple", "green pear", "red pear", "red pear"])
    assert index.search("a green pear", 9) == [1, 2, 3]
    assert index.search("banana", 9) == []
    assert Bm25(["", "!"]).search("x", 3) == []
    assert capfd.readouterr() == ("", "")


def test_embeddings_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match="sentence-transformers") as caught:
        Embeddings(["a"], "m")
    assert "tunesmith[embeddings]" in caught.value.hint


def about_bread(asked: str) -> str:
    """Return a question of the town that a prompt is about, which its text answers."""
    name = next(name for name in TOWNS if name in asked)
    return f"Q: What bread do people like in {name}?\nA: {name}ish bread"


def remote(fake: FakeServer, **more: Any) -> Any:
    options = RaftOptions(documents=["x"], address=fake.address, address_model="m", **more)
    return question_maker(options, "address")


def test_an_address_is_asked_again_after_a_passing_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate_remote, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setenv("MY_KEY", "secret")
    with FakeServer(lambda _, before: ("error", "busy", "thinking")[before], text="Hello") as fake:
        assert remote(fake, address_key="MY_KEY").replies(["Hi"]) == ["Hello"]
        assert [seen.target for seen in fake.asked] == ["/v1/chat/completions"] * 3
        assert fake.asked[0].headers["authorization"] == "Bearer secret"
        assert fake.asked[0].body["messages"] == [{"role": "user", "content": "Hi"}]
        assert fake.asked[0].body["temperature"] == 0


def test_an_address_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_remote, "LONGEST_WAIT_S", 0.01)
    with FakeServer(lambda *_: "denied") as fake:
        with pytest.raises(ModelError, match="status 401") as caught:
            remote(fake).replies(["Hi"])
        assert len(fake.asked) == 1
        assert "--address-model" in caught.value.hint
    with FakeServer(lambda *_: "error") as fake:
        with pytest.raises(ModelError, match=r"2 tries.*status 500") as caught:
            remote(fake, address_retries=1).replies(["Hi"])
        # Nothing is stored, so nothing goes on.
        assert "goes on" not in str(caught.value)
        fake.port = 9
        with pytest.raises(ModelError, match="ConnectError"):
            remote(fake, address_retries=1).replies(["Hi"])
    for address, variable, message in (
        ("localhost:80", "OPENAI_API_KEY", "is no plain address"),
        ("http://example.org/v1", "MY_KEY", "unencrypted"),
        ("http://example.org/v1", "NO_SUCH", "NO_SUCH is not set"),
    ):
        monkeypatch.setenv("MY_KEY", "secret")
        options = RaftOptions(documents=["x"], address=address, address_key=variable)
        with pytest.raises(UsageError, match=message):
            question_maker(options, "address")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "docs"
    made.mkdir()
    for number, name in enumerate(TOWNS):
        (made / f"{name}.txt").write_text(town(name, 1100 + 41 * number).text)
    return made


def test_the_command_writes_both_sides_and_counts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "logo.png").write_bytes(b"x")
    output, counts = tmp_path / "out.jsonl", tmp_path / "counts.json"
    words = ["--documents", str(folder), "--output", str(output), "--statistics", str(counts)]
    assert main(["data", "raft", *words]) == 0
    train = [json.loads(line) for line in output.read_text().splitlines()]
    held = [
        json.loads(line) for line in (tmp_path / "out-validation.jsonl").read_text().splitlines()
    ]
    assert train
    assert held
    assert not {row["document"] for row in train} & {row["document"] for row in held}
    found = json.loads(counts.read_text())
    assert found["skipped"] == ["logo.png: .png is not read"]
    assert found["splits"]["train"]["rows"] == len(train)
    told = capsys.readouterr().err
    assert "1 files or rows skipped: logo.png: .png is not read" in told
    assert "with distractors (wanted 50%)" in told
    before = output.read_bytes()
    assert main(["data", "raft", *words]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["data", "raft", *words, "--overwrite"]) == 0
    assert output.read_bytes() == before
    output.unlink()
    assert main(["data", "raft", *words]) == 2, "the held-out rows are still there"


def test_rows_are_not_written_among_the_documents(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "raft", str(folder), "--output", str(folder / "rows.jsonl")]) == 2
    assert "would take it for a document" in capsys.readouterr().err


def test_documents_and_questions_in_another_encoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Das Café Größe wurde 1901 von Jürgen Äpfel in Köln gegründet. Es ist schön dort."
    for name in ("a.txt", "b.md", "c.html"):
        (tmp_path / name).write_bytes(f"{name}: {text}".encode("windows-1252"))
    (tmp_path / "d.csv").write_bytes(f'text\n"Tabelle: {text}"\n'.encode("windows-1252"))
    (tmp_path / "e.json").write_bytes(
        json.dumps([{"text": f"JSON: {text}"}], ensure_ascii=False).encode("windows-1252")
    )
    library = read_documents([str(tmp_path)], encoding="windows-1252")
    assert [text in document.text for document in library.documents] == [True] * 5
    pairs = tmp_path / "pairs.csv"
    pairs.write_bytes("question,answer\nWer gründete es?,Jürgen Äpfel\n".encode("windows-1252"))
    [pair] = read_pairs(str(pairs), encoding="windows-1252")
    assert pair.answer == "Jürgen Äpfel"
    line = ["data", "raft", str(tmp_path / "a.txt"), "--output", str(tmp_path / "o.jsonl")]
    assert main([*line, "--questions", str(pairs)]) == 3
    assert "--encoding" in capsys.readouterr().err
    assert main([*line, "--questions", str(pairs), "--encoding", "windows-1252"]) == 0


@pytest.mark.parametrize("suffix", ["", ".parquet"])
@pytest.mark.parametrize("layout", ["instruction", "gorilla"])
def test_the_command_writes_every_format(
    folder: Path, tmp_path: Path, suffix: str, layout: str
) -> None:
    output = tmp_path / f"rows{suffix}"
    line = ["data", "raft", str(folder), "--layout", layout, "--output", str(output)]
    assert main(line) == 0
    assert output.exists()


def test_the_python_name_of_the_requirement(folder: Path, tmp_path: Path) -> None:
    import tunesmith

    (tmp_path / "one.txt").write_text("\n\n".join(p.read_text() for p in sorted(folder.iterdir())))
    made = tunesmith.RAFTDataGenerator(
        source_file=str(tmp_path / "one.txt"),
        output_file=str(tmp_path / "raft.jsonl"),
        chunk_size=60,
        num_distractors=3,
        distractor_probability=0.5,
        chunk_overlap=0,
    ).generate()
    assert made == [json.loads(line) for line in (tmp_path / "raft.jsonl").read_text().splitlines()]
    assert {type(row["instruction"]) for row in made} == {str}
    assert all(
        row["instruction"].startswith("Use the following documents to answer") for row in made
    )


def test_tokens_of_the_model_limit_chunks(folder: Path, tmp_path: Path, tiny: Path) -> None:
    from transformers import AutoTokenizer

    output = tmp_path / "out.jsonl"
    line = ["data", "raft", str(folder), "--chunk-tokens", "64", "--chunk-overlap", "0"]
    assert main([*line, "--output", str(output)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for text in output.read_text().splitlines():
        assert len(tokenizer(json.loads(text)["oracle_context"])["input_ids"]) <= 64


def test_a_model_is_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The address answers of every chunk; the built-in model writes no question that counts."""
    line = ["data", "raft", str(folder), "--output", str(tmp_path / "o.jsonl")]
    with FakeServer(lambda *_: "json", text=about_bread) as fake:
        assert main([*line, "--ask", "address", "--address", fake.address]) == 0
        assert len(fake.asked) == len(TOWNS)
    rows = [json.loads(text) for text in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert main([*line, "--ask", "model", "--max-questions", "1", "--overwrite"]) == 3
    assert "No question could be made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ("--output rows.xlsx", 2, "no format that rows can be written in"),
        ("--columns frage=x", 2, "'frage', which nothing here reads"),
        ("--documents no/where", 3, "no file 'no/where'"),
        ("--ask given", 2, "no question was given"),
        ("--ask address", 2, "needs --address"),
        ("--chunk-size 20 --chunk-overlap 30", 2, "leaves nothing new"),
        ("--documents nowhere.txt", 3, "no file"),
        ("--retriever embeddings", 2, "sentence-transformers"),
        ("--distractor-probability 2", 2, "--distractor-probability"),
        ("--model other", 2, "--model does nothing without --ask model or --chunk-tokens"),
        ("--dtype float16 --chunk-tokens 64", 2, "--dtype does nothing without --ask model"),
        ("--address http://localhost", 2, "--address does nothing without --ask address"),
        ("--address-timeout 5", 2, "--address-timeout does nothing without --ask address"),
        ("--embedding-model x", 2, "does nothing without --retriever embeddings"),
        ("--ask given --max-questions 5", 2, "--max-questions does nothing without"),
    ],
)
def test_mistakes_are_sentences(
    folder: Path,
    more: str,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert main(["data", "raft", "--documents", str(folder), *more.split()]) == code
    assert message in capsys.readouterr().err


def test_a_share_that_cannot_be_had_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["data", "raft", str(folder), "--output", str(tmp_path / "o.jsonl")]
    assert main([*line, "--oracle-share", "0.2"]) == 0
    assert "the oracle is shown in 50% of the rows instead of 20%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("xquad.en.json", 600),
        ("pubmedqa_ori_pqal.json", 490),
        ("fairytaleqa", 1750),
        ("apibench_torchhub_train.json", 190),
    ],
)
@pytest.mark.parametrize("style", ["plain", pytest.param("quoted", marks=pytest.mark.slow)])
def test_public_data_sets_become_sets(
    shared: Path, tmp_path: Path, name: str, least: int, style: str
) -> None:
    from tunesmith.config.load import resolve
    from tunesmith.config.schema_raft import RaftOptions
    from tunesmith.workflows.raft import make_raft

    given = {"documents": [str(shared / "data" / "docqa" / name)], "answer_style": style}
    given |= {"output": str(tmp_path / "out.jsonl"), "log_level": "error"}
    result = make_raft(resolve(RaftOptions, given).options)
    assert sum(map(len, result.rows.values())) >= least
    assert not result.counts["not matched"]


def test_the_recipe_runs_from_documents_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Path(__file__).parent.parent / "recipes" / "raft.yaml"
    monkeypatch.chdir(tmp_path)
    short = ["rows.raft.max_questions=1", "train.max_steps=2", "train.report_to=none"]
    command = ["run", str(recipe), *short]
    assert main(command) == 0
    assert (tmp_path / "runs" / "raft" / "report.html").is_file()
    rows = (tmp_path / "runs" / "raft" / "rows" / "rows.jsonl").read_text().splitlines()
    assert all(json.loads(row)["oracle_context"] for row in rows)
    assert main([*command, "rows.raft.chunksize=3"]) == 2


def test_the_built_in_documents_are_what_the_script_makes(tmp_path: Path) -> None:
    import random
    import runpy

    script = Path(__file__).parent.parent / "scripts" / "village_documents.py"
    made = runpy.run_path(str(script))
    rng = random.Random(20240607)
    for town in made["TOWNS"]:
        for kind in made["KINDS"]:
            page = made["TARGET"] / f"{town.lower()}-{kind}.md"
            assert page.read_text(encoding="utf-8") == made["page"](rng, kind, town)


@pytest.mark.parametrize(
    "flags",
    [
        ["--documents", "a.jsonl", "--output", "a.jsonl"],
        ["--documents", "b.txt", "--questions", "a.jsonl", "--output", "a.jsonl"],
        ["--documents", "b.txt", "--output", "c.jsonl", "--statistics", "c.jsonl"],
        ["--documents", "b.txt", "--output", "c.jsonl", "--statistics", "c-validation.jsonl"],
        ["--documents", "b.txt", "--output", "c.jsonl", "--statistics", "b.txt"],
    ],
)
def test_what_is_read_and_what_is_made_is_not_written_over(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = '{"text": "The mill was built in 1850.", "question": "When?", "answer": "1850"}\n'
    (tmp_path / "a.jsonl").write_text(content)
    (tmp_path / "b.txt").write_text("The mill was built in 1850.")
    assert main(["data", "raft", *flags]) == 2
    assert "would" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.txt"]
    assert (tmp_path / "a.jsonl").read_text() == content


def test_an_address_that_nobody_asks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--documents", "tunesmith/village", "--output", str(tmp_path / "o.jsonl")]
    assert main(["data", "raft", *words, "--address", "http://localhost:9"]) == 2
    assert "does nothing without --ask address" in capsys.readouterr().err


def test_rows_of_a_data_set_end_at_line_ends_alone(tmp_path: Path) -> None:
    code = "###Instruction: Find a model of cats\u2028and dogs\x85.\n###Output: load('cats')"
    data = {"domain": "cats", "functionality": "finding", "api_call": "load('cats')"}
    row = {"code": code, "api_call": "load('cats')", "api_data": data}
    file = tmp_path / "apibench.json"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(2)))
    found = data_set(str(file))
    assert found is not None
    assert len(found.pairs) == 2
