"""``data validate``: every row is accepted or refused, and what is odd is said."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow
import pyarrow.parquet
import pytest

from tiny_models import CHATML, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.data.formats import Examples
from tunesmith.data.readers import Fault, read_rows, scan
from tunesmith.data.render import Renderer
from tunesmith.data.validate import Checker, Judgement, Lengths, corrected
from tunesmith.errors import DataError
from tunesmith.types import Example, Origin, Segment
from tunesmith.workflows.targets import write_kept

GOOD = {"prompt": "How many feet?", "completion": "Three."}


def write(path: Path, *lines: object) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text)
    return path


def chat(*turns: tuple[str, str]) -> Example:
    made = (Segment(role, text, float(role == "assistant")) for role, text in turns)
    return Example(tuple(made), Origin("c.jsonl", 1))


def judged(*examples: Example, renderer: Renderer | None = None, task: str = "custom") -> Judgement:
    judgement = Judgement("c.jsonl")
    checker = Checker(judgement, renderer, 150, task)
    for example in examples:
        checker.check(example)
    return judgement


def test_every_line_is_accepted_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(
        tmp_path / "a.jsonl",
        GOOD,
        '{"prompt": "a", "completion": \n',
        "\n",
        {"prompt": "b", "completion": ""},
        [1],
        {"prompt": "c", "completion": "d", "id": 7},
    )
    assert main(["data", "validate", str(path), "--json"]) == 3
    [found] = json.loads(capsys.readouterr().out)
    assert (found["accepted"], found["refused"], found["read_to_the_end"]) == (2, 3, True)
    assert [fault["line"] for fault in found["faults"]] == [2, 4, 5]
    assert main(["data", "validate", str(path), "--allow-refused", "0.7"]) == 0
    said = capsys.readouterr().err
    assert "the field 'completion' is empty" in said
    assert main(["data", "validate", str(write(tmp_path / "b.jsonl", GOOD))]) == 0


def test_what_cannot_be_read_to_the_end_fails_whatever_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"prompt": "a", "completion": "b"}, {"prompt"')
    [_, fault] = scan(str(path))
    assert isinstance(fault, Fault)
    assert fault.rest
    assert main(["data", "validate", str(path), "--allow-refused", "1"]) == 3


def test_a_spreadsheet_from_windows_is_led_to_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "liste.csv"
    path.write_bytes("Nr;Frage;Antwort\n1;Wie?;Größe\n".encode("cp1252"))
    assert main(["data", "validate", str(path)]) == 3
    assert "Try: --encoding windows-1252" in capsys.readouterr().err
    encoded = ["--encoding", "windows-1252"]
    assert main(["data", "validate", str(path), *encoded]) == 3
    assert "--columns prompt=Nr,completion=Frage" in capsys.readouterr().err
    columns = ["--columns", "prompt=Frage,completion=Antwort"]
    assert main(["data", "validate", str(path), *encoded, *columns]) == 0


def test_a_file_that_breaks_off_is_said_before_its_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"frage": "a"},\n{"frage": "b"},]')
    with pytest.raises(DataError, match=r"a\.json:3: not valid JSON"):
        Examples(scan(str(path)))
    write(path, '[{"frage": "a"}]')
    with pytest.raises(DataError, match="no known layout"):
        Examples(scan(str(path)))


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (chat(("user", "a\x07"), ("assistant", "b")), "control characters"),
        (chat(("user", "a\ufffd"), ("assistant", "b")), "replacement characters"),
        (chat(("user", "cafÃ©"), ("assistant", "b")), "Windows-1252"),
        (chat(("user", "a"), ("assistant", "b<|endoftext|>")), "<|endoftext|>"),
        (chat(("user", "a\\nb"), ("assistant", "c")), "instead of a line break"),
        (chat(("user", "a"), ("user", "b"), ("assistant", "c")), "two turns of the user"),
        (chat(("assistant", "a"), ("user", "b"), ("assistant", "c")), "speaks first"),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "last turn is the user's"),
        (chat(("user", "a"), ("system", "s"), ("assistant", "b")), "not the first"),
    ],
)
def test_odd_rows_are_named(example: Example, what: str) -> None:
    fine = chat(("system", "s"), ("user", "hello"), ("assistant", "café – ok"))
    found = judged(fine, example)
    assert found.accepted == 2
    [(said, kind)] = found.warnings.items()
    assert what in said
    assert (kind.count, kind.places) == (1, ["c.jsonl:1"])


def test_repetitions_and_contradictions_are_counted() -> None:
    one = chat(("user", "a"), ("assistant", "b"))
    found = judged(one, chat(("user", " A "), ("assistant", "b")), one)
    assert found.warnings["an exact duplicate of an earlier row"].count == 2
    found = judged(one, chat(("user", "a"), ("assistant", "c")))
    assert list(found.warnings) == ["the same prompt as an earlier row, another answer"]


@pytest.mark.parametrize(
    ("task", "warned"), [("chat", True), ("domain", True), ("instruct", False), ("custom", False)]
)
def test_rows_that_do_not_suit_the_task(task: str, warned: bool) -> None:
    assert bool(judged(chat(("user", "a"), ("assistant", "b")), task=task).warnings) == warned


def test_rows_are_held_to_the_contract_of_a_model() -> None:
    renderer = Renderer(tiny_tokenizer())
    fine, long = (
        chat(("user", "a"), ("assistant", "b")),
        chat(("user", "a"), ("assistant", "b" * 199)),
    )
    found = judged(fine, long, renderer=renderer)
    assert (found.accepted, found.refused) == (1, 1)
    assert list(found.reasons) == ["… tokens, more than the 150 allowed, in one exchange"]
    assert found.tokens is not None
    assert found.tokens.rows == 1
    deaf = CHATML.replace("m['content']", "('' if m['role'] == 'system' else m['content'])")
    example = chat(("system", "Be brief."), ("user", "a"), ("assistant", "b"))
    found = judged(example, renderer=Renderer(tiny_tokenizer(deaf)))
    assert list(found.reasons) == ["the template loses turn … (system)"]


def test_tools_that_a_template_leaves_out_are_refused() -> None:
    """Even where none is called: the model would be taught to answer without seeing them."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    turns = (Segment("user", "a", extra={"tools": tools}), Segment("assistant", "b", 1.0))
    found = judged(Example(turns, Origin("a", 1)), renderer=Renderer(tiny_tokenizer(CHATML)))
    assert list(found.reasons) == ["the template leaves out the row's tools (weather)"]
    shown = Renderer(tiny_tokenizer("{{ tools | default('') | string }}" + CHATML))
    assert judged(Example(turns, Origin("a", 1)), renderer=shown).accepted == 1


def test_lost_tool_calls_are_refused() -> None:
    call = {"type": "function", "function": {"name": "price", "arguments": {"of": "AAPL", "n": 3}}}
    turns = (Segment("user", "a"), Segment("assistant", "", 1.0, {"tool_calls": [call]}))
    example = Example(turns, Origin("c.jsonl", 1))
    found = judged(example, renderer=Renderer(tiny_tokenizer()))
    assert list(found.reasons) == ["the template loses the tool call in turn …"]
    shows = CHATML.replace(
        "m['content']", "m['content'] ~ (m['tool_calls'] | default('') | string)"
    )
    assert judged(example, renderer=Renderer(tiny_tokenizer(shows))).accepted == 1


def test_a_corrected_copy_and_its_rejects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    turns = [{"from": "human", "value": "a\x07"}, {"from": "gpt", "value": "b"}]
    path = write(
        tmp_path / "a.jsonl",
        {"conversations": [*turns, {"from": "human", "value": "bye"}]},
        {"conversations": turns},
        {"conversations": []},
    )
    target = tmp_path / "fixed.jsonl"
    assert main(["data", "validate", str(path), "--fix", str(target)]) == 3
    [row] = read_rows(str(target))
    assert row.fields["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    rejects = [row.fields for row in read_rows(str(tmp_path / "fixed-rejects.jsonl"))]
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [
        (2, "an exact duplicate of an earlier row"),
        (3, "'conversations' is no list of turns"),
    ]
    said = capsys.readouterr().err
    assert "3 rows" in said
    assert "Accepted 1, refused 1, left out as duplicates 1." in said
    for what in ("turns behind the last answer", "control characters removed", "exact duplicates"):
        assert what in said
    assert main(["data", "validate", str(target)]) == 0


def test_a_corrected_copy_replaces_nothing_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    before = path.read_bytes()
    copy = tmp_path / "fixed.jsonl"
    fix = ["data", "validate", str(path), "--fix"]
    assert main([*fix, str(path), "--overwrite"]) == 2
    assert path.read_bytes() == before
    assert main([*fix, str(copy)]) == 0
    assert main([*fix, str(copy)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*fix, str(copy), "--overwrite"]) == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.jsonl", "fixed.jsonl"]


def test_no_corrected_copy_is_made_of_nothing(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [1])
    assert main(["data", "validate", str(bad), "--fix", str(tmp_path / "fixed.jsonl")]) == 3
    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == ["bad.jsonl", "fixed-rejects.jsonl"]


def test_a_value_that_json_has_no_form_for_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "a.parquet"
    columns = {"prompt": ["a"], "chosen": ["b"], "rejected": [datetime.date(2020, 1, 1)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), source)
    assert main(["data", "validate", str(source), "--fix", str(tmp_path / "fixed.jsonl")]) == 3
    assert "cannot be written" in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["a.parquet"]


def test_a_file_of_blank_lines_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    blank = write(tmp_path / "blank.jsonl", "\n\n")
    assert main(["data", "validate", str(blank)]) == 3
    assert "holds no rows" in capsys.readouterr().err
    assert main(["data", "validate", str(blank), "--fix", str(tmp_path / "fixed.jsonl")]) == 3
    assert [found.name for found in tmp_path.iterdir()] == ["blank.jsonl"]


def test_corrections_leave_a_good_row_alone() -> None:
    counts: Counter[str] = Counter()
    example = chat(("user", "a\n\tb"), ("assistant", "é"))
    assert corrected(example, counts) == example
    assert not counts


def test_test_questions_among_the_rows_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = "How many feet are there in six meters of rope?"
    rows = write(tmp_path / "a.jsonl", {"prompt": asked, "completion": "20"}, GOOD)
    tests = write(tmp_path / "t.jsonl", {"question": asked, "answer": "20"})
    assert main(["data", "validate", str(rows), "--against", str(tests), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    [(what, kind)] = found["warnings"].items()
    assert what == "holds a test question word for word"
    assert kind["rows"] == 1


def test_every_test_question_is_looked_for_however_few_rows_are(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = [f"How many feet are there in {n} meters of blue rope?" for n in ("six", "nine")]
    rows = write(tmp_path / "a.jsonl", {"prompt": asked[1], "completion": "20"}, GOOD)
    tests = write(tmp_path / "t.jsonl", *({"question": q, "answer": "20"} for q in asked))
    line = ["data", "validate", str(rows), "--against", str(tests), "--json", "--max-rows", "1"]
    assert main(line) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["warnings"]) == 1


@pytest.mark.parametrize("verb", ["validate", "show", "filter"])
def test_a_split_of_what_has_none_is_refused(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    more = ["--output", str(tmp_path / "kept.jsonl")] if verb == "filter" else []
    assert main(["data", verb, str(path), "--split", "test", *more]) == 2
    assert "--split test, but" in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_failure_while_rows_are_made_is_none_of_writing_them(tmp_path: Path) -> None:
    def rows(_: IO[bytes]) -> Iterator[tuple[Origin, dict[str, str]]]:
        yield Origin("a", 1), {"prompt": "a"}
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="of ours"):
        write_kept(tmp_path / "kept.jsonl", tmp_path / "rejects.jsonl", rows)
    assert not list(tmp_path.iterdir())


def test_near_duplicates_are_found_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = "the quick brown fox jumps over the lazy dog while seven wizards brew a bitter potion"
    rows = [{"prompt": text, "completion": "yes"} for text in (words, words + " again")]
    path = write(tmp_path / "a.jsonl", *rows)
    found = []
    for more in ([], ["--near-duplicates"]):
        assert main(["data", "validate", str(path), "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["warnings"])
    assert found[0] == {}
    assert found[1] == {"nearly an earlier row": {"rows": 1, "first": [f"{path}:2 = {path}:1"]}}


def test_a_histogram_holds_every_row() -> None:
    lengths = Lengths("words")
    for length in (0, 1, 2, 3, 4, 5, 8, 9):
        lengths.add(length, f"at {length}", 4)
    assert dict(lengths.bars()) == {
        "0 to 1": 2,
        "2": 1,
        "3 to 4": 2,
        "5 to 8": 2,
        "9 to 16": 1,
    }
    assert (lengths.over, lengths.longest_at) == (3, "at 9")


@pytest.mark.parametrize(
    ("template", "refused"),
    [("chatml", 99), ("gemma", 99), ("mistral_v1", 99), ("llama3_2", 0), ("qwen2_5", 0)],
)
def test_real_tool_conversations_under_real_templates(
    shared: Path, template: str, refused: int
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "tokenizers" / "smollm2")
    text = shared / "data" / "chat_templates" / f"{template}.jinja"
    judgement = Judgement("glaive")
    checker = Checker(judgement, Renderer(tokenizer, str(text)), 4096, "custom")
    for item in Examples(scan(str(shared / "data" / "chat" / "glaive_toolcall_en.json"))):
        assert isinstance(item, Example)
        checker.check(item)
    assert judgement.accepted + judgement.refused == 148
    # One more has a single answer of over 4,096 tokens.
    assert judgement.refused == refused + 1


@pytest.mark.parametrize(
    "flags", [["--max-length", "20"], ["--chat-template", "plain"], ["--overwrite"]]
)
def test_a_setting_that_would_do_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str]
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    assert main(["data", "validate", str(path), *flags]) == 2
    assert "nothing without" in capsys.readouterr().err
