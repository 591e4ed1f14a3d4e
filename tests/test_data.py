"""Readers and formats: what people bring, and one clear sentence for what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunesmith.data import bytes_in, json_in
from tunesmith.data.formats import to_examples
from tunesmith.data.overlap import find_overlaps
from tunesmith.data.readers import Row, read_rows
from tunesmith.data.select import Rule, select
from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.units import UnitsTask
from tunesmith.types import Attempt, Example, Origin, Problem, Segment, StopReason

PAIR = {"prompt": "a?", "completion": "b"}


def read(path: Path | str, **settings: object) -> list:
    return list(read_rows(str(path), **settings))  # type: ignore[arg-type]


def test_every_file_format_gives_the_same_row(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR) + "\n\n", encoding="utf-8-sig")
    (tmp_path / "a.json").write_text(json.dumps([PAIR]))
    (tmp_path / "b.json").write_text(json.dumps({"data": [PAIR]}))
    (tmp_path / "lines.json").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR))
    (tmp_path / "a.csv").write_text("prompt,completion\r\na?,b\r\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR]), tmp_path / "a.parquet")
    datasets.Dataset.from_list([PAIR]).save_to_disk(str(tmp_path / "saved"))
    names = ("a.jsonl", "a.json", "b.json", "lines.json", "a.csv", "a.jsonl.gz", "a.parquet")
    for name in (*names, "saved"):
        assert read(tmp_path / name)[0].fields == PAIR, name


def test_text_files_hold_documents(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one\ntwo\n<|endoftext|>\nthree\n")
    rows = read(path)
    assert [row.fields["text"] for row in rows] == ["one\ntwo", "three"]
    assert rows[1].origin.line == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl:2: not valid JSON at column"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: list, not an object"),
        ("a.jsonl", b'["q", "a", 1]\n', r"a.jsonl:1: list, not an object"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl:1: byte 0xff is not UTF-8"),
        ("a.jsonl", b'{"a": 1, "a": 2}\n', r"a.jsonl:1: the key 'a' stands twice"),
        ("a.jsonl", b'{"a": NaN}\n', r"a.jsonl:1: NaN is no JSON number"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, r"nested too deeply|not valid JSON"),
        ("a.json", b'[{"a": 1, "a": 2}]', r"a.json:1: the key 'a' stands twice"),
        ("a.json", b'{"data": [{"a": 1}]} x', r"not valid JSON"),
        ("a.csv", b"a,a\n1,2\n", r"the column 'a' stands twice"),
        ("a.csv", b'a,b\n"1,2\n', r"a.csv:2: unexpected end of data"),
        ("a.json", b'[{"a": 1},]', r"not valid JSON"),
        ("a.json", b"3", "a.json:1: int, not an object"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a.csv:3: 3 cells, but 2 columns"),
        ("a.csv", b"a,b\n", "no rows"),
        ("a.parquet", b"nothing", "no readable Parquet"),
        ("a.xlsx", b"x", "no known format"),
        ("a.jsonl.gz", b"x", "cannot be read"),
    ],
)
def test_bad_files_give_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("semicolons.csv", "prompt;completion\na?;b\n"),
        ("tabs.tsv", "prompt\tcompletion\na?\tb\n"),
        ("blank.csv", "prompt,completion\n\na?,b\n,\n"),
        ("utf16.csv", "prompt,completion\na?,b\n"),
        ("objects.json", '{"one": {"prompt": "a?", "completion": "b"}, "two": {"prompt": "c"}}'),
        ("indented.json", json.dumps(PAIR, indent=1) + json.dumps(PAIR, indent=1)),
    ],
)
def test_other_spellings_of_a_table(tmp_path: Path, name: str, text: str) -> None:
    encoding = "utf-16" if "utf16" in name else "utf-8"
    (tmp_path / name).write_text(text, encoding=encoding)
    first = read(tmp_path / name)[0].fields
    assert {key: first[key] for key in PAIR} == PAIR


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt,completion\nWie?,Größe\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a.csv:2: byte 0xf6 is not UTF-8"):
        read(tmp_path / "a.csv")
    [row] = read(tmp_path / "a.csv", encoding="windows-1252")
    assert row.fields["completion"] == "Größe"


def test_a_list_larger_than_a_piece_is_read_item_by_item(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 1000, "completion": str(n)} for n in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "data": rows}))
    found = read(tmp_path / "a.json")
    assert [row.fields for row in found] == rows
    assert str(found[-1].origin).endswith("a.json:1 (item 3000)")


def test_an_object_too_large_to_hold_is_read_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_in, "LONGEST", 400)
    monkeypatch.setattr(json_in, "CHUNK", 50)
    monkeypatch.setattr(bytes_in, "CHUNK", 50)
    rows = [{"prompt": f"q{n}", "completion": "x"} for n in range(40)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1", "data": rows, "end": None}))
    assert [row.fields for row in read(path)] == rows
    path.write_text(json.dumps({"data": rows, "more": rows}))
    with pytest.raises(DataError, match="a second list in a large object"):
        read(path)
    path.write_text(json.dumps({"data": rows})[:-1])
    with pytest.raises(DataError, match="expected , or }"):
        read(path)


def test_sampled_paths_are_trained_on_their_reasoning(tmp_path: Path) -> None:
    path = tmp_path / "rft.json"
    path.write_text('[["How many feet?", 3.0, "1 + 2 = <answer>3</answer>"], ["Who?", "A", "A"]]')
    layout, examples = to_examples(read_rows(str(path)))
    assert layout.name == "question/response"
    assert [s.text for s in examples[0].segments] == [
        "How many feet?",
        "1 + 2 = <answer>3</answer>",
    ]


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no file") as caught:
        read(tmp_path / "chat.jsonl")
    assert "chats.jsonl" in caught.value.hint


def test_a_folder_without_data_and_a_missing_split(tmp_path: Path) -> None:
    import datasets

    with pytest.raises(DataError, match="no saved data set"):
        read(tmp_path)
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list([PAIR])})
    saved.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="no split 'validation'"):
        read(tmp_path / "d", split="validation")


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        (PAIR, ["a?", "b"]),
        ({"prompt": "a?", "response": "b"}, ["a?", "b"]),
        ({"question": "a?", "answer": "b"}, ["a?", "b"]),
        ({"instruction": "do", "input": "it", "output": "done"}, ["do\n\nit", "done"]),
        ({"instruction": "do", "output": ["x?", "y?"]}, ["do", "1. x?\n2. y?"]),
        ({"text": "words"}, ["words"]),
        ({"code": "x = 1"}, ["x = 1"]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            ["a", "b"],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            ["a", "b"],
        ),
    ],
)
def test_layouts(tmp_path: Path, fields: dict, texts: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(fields))
    _, [example] = to_examples(read(path))
    assert [segment.text for segment in example.segments] == texts
    assert example.segments[-1].weight == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frage": "a", "antwort": "b"}, "the fields are frage, antwort"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": 3}, "'completion' is int"),
        ({"messages": []}, "no list of turns"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "role 'wizard'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the assistant"),
        ({"instruction": "a", "output": [1]}, "item 1 of 'output' is int"),
    ],
)
def test_bad_rows_name_their_line(tmp_path: Path, fields: dict, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(fields))
    with pytest.raises(DataError, match=rf"a.jsonl:2: .*{message}"):
        to_examples(read(path))


CALL = {"name": "price", "arguments": {"symbol": "AAPL", "days": 3}}
ASKED = [{"role": "user", "content": "a"}]
ANSWERED = [{"role": "assistant", "content": "b"}]


def one(fields: dict) -> Example:
    _, [example] = to_examples([Row(fields, Origin("a.jsonl", 1))])
    return example


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": ASKED, "chosen": ANSWERED, "rejected": "c"},
        {"prompt": ASKED, "chosen": ASKED + ANSWERED, "rejected": "c"},
        {
            "chosen": ASKED + ANSWERED,
            "rejected": [*ASKED, {"role": "assistant", "content": "c"}],
        },
        {"input": {"messages": ASKED}, "preferred_output": ANSWERED, "non_preferred_output": "c"},
        {"prompt": ASKED, "completion": ANSWERED},
    ],
)
def test_of_a_pair_the_chosen_side_is_trained_and_the_other_kept(fields: dict) -> None:
    example = one(fields)
    assert [(s.role, s.text, s.weight) for s in example.segments] == [
        ("user", "a", 0.0),
        ("assistant", "b", 1.0),
    ]
    kept = fields.get("rejected", fields.get("non_preferred_output"))
    assert example.meta.get("rejected") == kept


def test_weights_of_turns_are_kept() -> None:
    turns = [
        *ASKED,
        {**ANSWERED[0], "weight": 0},
        *ASKED,
        {**ANSWERED[0], "train": False},
        *ASKED,
        {**ANSWERED[0], "weight": 0.5},
    ]
    assert [s.weight for s in one({"messages": turns}).segments[1::2]] == [0.0, 0.0, 0.5]
    for bad in ({**ASKED[0], "weight": 1}, {**ANSWERED[0], "weight": 2}):
        with pytest.raises(DataError, match="weight"):
            one({"messages": [bad, *ANSWERED]})
    with pytest.raises(DataError, match="to be trained"):
        one({"messages": [*ASKED, {**ANSWERED[0], "weight": 0}]})


def test_tool_calls_of_both_spellings_are_the_same() -> None:
    tools = [{"type": "function", "function": {"name": "price"}}]
    openai = one(
        {
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "type": "function",
                            "function": {**CALL, "arguments": json.dumps(CALL["arguments"])},
                        }
                    ],
                },
                {"role": "tool", "content": "7"},
                *ANSWERED,
            ],
            "tools": tools,
        }
    )
    sharegpt = one(
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": json.dumps([{"name": "price"}]),
        }
    )
    assert openai.segments == sharegpt.segments
    assert openai.segments[1].extra["tool_calls"][0]["function"] == CALL
    assert all(segment.extra["tools"] == tools for segment in openai.segments)


def test_reasoning_becomes_a_think_block() -> None:
    turn = {**ANSWERED[0], "reasoning_content": "hm"}
    assert one({"messages": [*ASKED, turn]}).segments[1].text == "<think>\nhm\n</think>\n\nb"


def test_parts_of_text_are_joined_and_pictures_refused() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
    assert (
        one({"messages": [{"role": "user", "content": parts}, *ANSWERED]}).segments[0].text == "xy"
    )
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}
    with pytest.raises(DataError, match="image_url"):
        one({"messages": [picture, *ANSWERED]})


@pytest.mark.parametrize("name", ["prompt", "completion"])
def test_a_lone_surrogate_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"'\\ud83d'"):
        one({**PAIR, name: "x \ud83d"})


def test_an_instruction_may_have_several_instances() -> None:
    row = {"instruction": "add", "instances": [{"input": "1", "output": "2"}, {"output": "3"}]}
    _, examples = to_examples([Row(row, Origin("a", 1))])
    assert [[s.text for s in e.segments] for e in examples] == [["add\n\n1", "2"], ["add", "3"]]


def test_columns_may_be_paths_and_templates() -> None:
    row = Row({"q": {"text": "2+2?", "of": ["3", "4"]}, "a": "4"}, Origin("a", 1))
    columns = {"prompt": "{q.text} Choose: {q.of}", "completion": "a"}
    _, [example] = to_examples([row], columns)
    assert [s.text for s in example.segments] == ["2+2? Choose: 3\n4", "4"]
    with pytest.raises(DataError, match=r"no field 'q\.txt'"):
        to_examples([row], {"prompt": "{q.txt}", "completion": "a"})


def test_columns_rename_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"frage": "a", "antwort": "b"}))
    columns = {"prompt": "frage", "completion": "antwort"}
    _, [example] = to_examples(read(path), columns)
    assert [s.text for s in example.segments] == ["a", "b"]
    with pytest.raises(DataError, match="no field 'fraage'"):
        to_examples(read(path), {"prompt": "fraage"})


def test_overlaps_are_found_with_their_place() -> None:
    def row(text: str) -> Example:
        return Example((Segment("user", text),), Origin("train.jsonl", 3))

    asked = "How many feet are there in 6.2 meters of rope?"
    problem = Problem("p", "maths", (Segment("user", asked),), "20")
    assert find_overlaps([row("nothing of the kind")], [problem]) == []
    near = "How many feet are there in 6.3 meters of rope?"
    assert find_overlaps([row(near)], [problem]) == []
    [found] = find_overlaps([row(f"First: {asked.upper()} Then more.")], [problem])
    assert (found.problem_id, found.origin) == ("p", "train.jsonl:3")
    short = Problem("s", "maths", (Segment("user", "2 + 3?"),), "5")
    assert len(find_overlaps([row("What is 2 + 3 please")], [short])) == 1
    assert find_overlaps([row("What is 2 + 4 please")], [short]) == []


def test_selection_counts_every_attempt() -> None:
    problem = Problem("p", "units", (Segment("user", "?"),), "10")
    texts = [
        "5 * 2 = 10\n<answer>10</answer>",
        "5*2 = 10\n<answer>10</answer>",
        "4 + 6 = 10\n<answer>10</answer>",
        "3 + 7 = 10\n<answer>10</answer>",
        "5 * 2 = 11\n<answer>10</answer>",
        "<answer>11</answer>",
        "<answer>10</answer>",
        "no idea",
    ]
    attempts = [
        Attempt("p", at, at, text, (), StopReason.STOP_TOKEN) for at, text in enumerate(texts)
    ]
    attempts.append(Attempt("p", 8, 8, texts[0], (), StopReason.LENGTH))
    chosen = select({"p": problem}, attempts, UnitsTask(), Rule(2))
    assert len(chosen.kept) == 2
    assert sum(chosen.discards.values()) + len(chosen.kept) == len(attempts)
    assert chosen.discards["the same path again"] == 1
    assert chosen.discards["more than 2 paths"] == 1
    assert chosen.discards["a false equation"] == 1
    assert chosen.discards["cut off at the token limit"] == 1
    assert select({"p": problem}, attempts[::-1], UnitsTask(), Rule(2)) == chosen
    row = chosen.kept[0].example
    assert row.segments[0].weight == 0
    assert row.segments[-1].weight == 1


@pytest.mark.parametrize("template", ["{Frage", "Frage}", "{}", "{{Frage}"])
def test_a_template_with_a_lone_brace_is_refused(template: str) -> None:
    row = Row({"Frage": "a", "Antwort": "b"}, Origin("x", 1))
    with pytest.raises(UsageError, match="is no template"):
        to_examples([row], {"prompt": template, "completion": "Antwort"})
    _, [example] = to_examples([row], {"prompt": '{"q": "{Frage}"}', "completion": "Antwort"})
    assert example.segments[0].text == '{"q": "a"}'


def test_a_column_that_no_layout_reads_is_named() -> None:
    row = Row({"Frage": "a", "Antwort": "b"}, Origin("x", 1))
    with pytest.raises(DataError, match="'completon', which no layout reads") as caught:
        to_examples([row], {"prompt": "Frage", "completon": "Antwort"})
    assert caught.value.hint == "--columns completion=Antwort"


def test_an_instruction_without_instances_is_refused() -> None:
    row = Row({"instruction": "Add.", "instances": []}, Origin("x", 1))
    with pytest.raises(DataError, match="'instances' is an empty list"):
        to_examples([row])


def test_a_link_to_nothing_is_not_suggested(tmp_path: Path) -> None:
    link = tmp_path / "rows.jsonl"
    link.symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError) as caught:
        list(read_rows(str(link)))
    assert caught.value.hint == ""
