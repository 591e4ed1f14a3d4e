"""Each rule removes what it names, leaves sound text alone, and says why; so does the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.cli import main
from tunesmith.config.schema_filter import RuleName
from tunesmith.data.filters import (
    RULES,
    apply_rules,
    count_words,
    length_rule,
    quality_rules,
)
from tunesmith.data.formats import to_examples
from tunesmith.data.overlap import OverlapIndex, Question, count_kinds, find_overlaps
from tunesmith.data.readers import read_rows
from tunesmith.data.words import content_words, numbers, words
from tunesmith.errors import UsageError
from tunesmith.types import Example, Origin, Problem, Segment


def pair(prompt: str, answer: str, line: int = 1) -> Example:
    turns = (Segment("user", prompt), Segment("assistant", answer, 1.0))
    return Example(turns, Origin("rows.jsonl", line))


def plain(text: str) -> Example:
    return Example((Segment(None, text, 1.0),), Origin("text.txt", 1))


BAD = [
    ("empty-answer", " \u200b\n", "empty"),
    ("answer-is-prompt", "what IS it?", "again"),
    ("url-only", "https://a.example/b www.c.example", "link"),
    ("control-characters", "an \x1b[31mred\x1b[0m word", r"U\+001B"),
    ("control-characters", "half a pair \ud83d here", r"U\+D83D"),
    ("replacement-characters", "caf\ufffd", "1 characters lost"),
    ("mojibake", "un cafÃ© au lait", "«Ã©»"),
    ("mojibake", "it isnâ€™t so", "â€™"),
    ("mojibake", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "wrong encoding"),
    ("few-letters", "!!! ??? --- ### ***", "15 of 15 characters"),
    ("repetition", "the same line again\n" * 8, "7 of 8 lines"),
    ("repetition", "one two three four five " * 12, "repeat what it said before"),
]
SOUND = [
    "Ja.",
    "x = 2",
    "18",
    "(3 + 4) * 2 - (7 - 1) / 3 = 12",
    "Ein schöner Satz über Äpfel: «Öl» und “Übung”.",
    "„MENÜ“ und „TABÜ“ stehen dort.",
    "Il dit à\u00a0«\u00a0tous\u00a0», puis à\u00a0«\u00a0toutes\u00a0», arrivé…» et allé…»",
    "C'est déjà l'été, à Évian — voilà !",
    "A AÇÃO É SIMPLES, NÃO?",
    "это обычный текст",
    "这是一个句子。",
    "यह एक वाक्य है और इसमें मात्राएँ हैं",
    "นี่คือประโยค",
    "😀👍🏽 fine",
    "see https://a.example for more",
    "if (a) {\n}\nif (b) {\n}\nif (c) {\n}\nreturn [1, 2, 3];",
    "1. one\n2. two\n3. three",
]


@pytest.mark.parametrize(("rule", "answer", "reason"), BAD)
def test_each_rule_removes_what_it_names(rule: str, answer: str, reason: str) -> None:
    result = apply_rules([pair("What is it?", answer, 7)], quality_rules([rule]))
    assert result.kept == []
    [removal] = result.removed
    assert (str(removal.origin), removal.rule) == ("rows.jsonl:7", rule)

    assert re.search(reason, removal.reason)


@pytest.mark.parametrize("answer", SOUND)
def test_sound_text_of_any_language_stays(answer: str) -> None:
    assert apply_rules([pair("What is it?", answer), plain(answer)], RULES).removed == []


def test_a_tool_call_is_an_answer() -> None:
    call = Segment("assistant", "", 1.0, {"tool_calls": [{"name": "f"}]})
    example = Example((Segment("user", "Call f"), call), Origin("x", 1))
    assert apply_rules([example], RULES).removed == []


def test_only_trained_turns_count_as_answers() -> None:
    turns = (Segment("user", "a?"), Segment("assistant", ""), Segment("assistant", "b", 1.0))
    assert apply_rules([Example(turns, Origin("x", 1))], RULES).removed == []


def test_public_data_are_mostly_sound(shared: Path) -> None:
    for name in ("gsm8k/train.jsonl", "t0_per_template/paws_labeled_final_Rewrite.jsonl"):
        _, examples = to_examples(list(read_rows(str(shared / "data" / name))))
        assert apply_rules(examples, RULES).removed == [], name


@given(st.lists(st.text()))
@settings(deadline=None)
def test_every_row_is_kept_or_removed_once(answers: list[str]) -> None:
    rows = [pair("why?", answer, n) for n, answer in enumerate(answers)]
    result = apply_rules(rows, RULES)
    assert len(result.kept) + len(result.removed) == len(rows)
    assert sum(result.summary().values()) == len(result.removed)
    assert apply_rules(result.kept, RULES).removed == []


@pytest.mark.parametrize(
    ("least", "most", "reason"),
    [(5, None, "4 words, fewer than 5"), (None, 3, "4 words, more than 3"), (4, 4, None)],
)
def test_lengths(least: int | None, most: int | None, reason: str | None) -> None:
    rule = length_rule("words", count_words, least, most)
    assert rule(pair("one two", "three four")) == reason


def test_lengths_of_answers_and_in_other_units() -> None:
    example = pair("one two three", "four")
    assert length_rule("words", count_words, 2, None, answers_only=True)(example)
    assert length_rule("characters", len, None, 4, answers_only=True)(example) is None
    assert count_words("我喜欢 tea") == 4
    with pytest.raises(UsageError, match="at least 3 and at most 2"):
        length_rule("words", count_words, 3, 2)


def test_unknown_rules_are_refused_and_the_schema_has_all() -> None:
    with pytest.raises(UsageError, match="no rule 'mojibak'"):
        quality_rules(["mojibak"])
    assert get_args(RuleName) == ("none", *RULES)


# --- words and numbers


def test_words_and_numbers() -> None:
    assert words("Don't pay $1,080.50, Ünal!") == ("don", "t", "pay", "1,080.50", "ünal")
    assert numbers("1,080 and 1080.0 and 007 and 6.20 and 0 and 1.2.3") == (
        *("1080", "1080", "7", "6.2", "0", "1.2.3"),
    )
    assert content_words("The 12 tall ducks, 公园") == {"tall", "ducks", "公", "园"}


# --- contamination


def index(*texts: str) -> OverlapIndex:
    return OverlapIndex(Question(f"q{n}", text, f"test.jsonl:{n}") for n, text in enumerate(texts))


ASKED = "Anna buys 12 red pens for 3 dollars each and sells 7 of them again. How many are left?"


def test_overlaps_name_kind_and_both_places() -> None:
    found = index("Nothing of this kind", ASKED).match(pair(f"Please: {ASKED}", "5", 4))
    [overlap] = found
    assert (overlap.kind, overlap.origin, overlap.place) == (
        "exact",
        "rows.jsonl:4",
        "test.jsonl:1",
    )
    part = "Peter says that anna buys 12 red pens for 3 dollars at the shop"
    [overlap] = index(ASKED).match(pair(part, "?"))
    assert (overlap.kind, overlap.shared) == ("words", "anna buys 12 red pens for 3 dollars")
    assert index(ASKED).match(pair("Anna buys 12 red pens for 4 dollars each", "?")) == []


def test_the_same_numbers_and_topic_are_an_overlap_in_other_words() -> None:
    told = "12 pens, all red, cost Anna 3 dollars apiece; 7 of them she sells. What is left?"
    [overlap] = index(ASKED).match(pair(told, "5 are left, 12 - 7"))
    assert (overlap.kind, overlap.shared) == ("numbers", "12, 3, 7")
    assert index(ASKED).match(pair(told.replace("12", "13"), "6")) == []
    other = "Roads: 12 open on weekdays, 3 at night, 7 never. Which ones?"
    assert index(ASKED).match(pair(other, "x")) == []
    two = "Anna buys 12 red pens for 3 dollars each"
    assert index(two).match(pair("12 pens, all red, cost Anna 3 dollars", "x")) == []


def test_a_phrase_of_every_test_question_identifies_none() -> None:
    opening = "Read the passage below and answer the question about it with one word:"
    tests = [f"{opening} what is {name}" for name in ("a", "b", "c", "d", "e", "f", "g")]
    found = index(*tests).match(pair(f"{opening} who was the king", "Karl"))
    assert found == []
    [found_whole] = index(*tests).match(pair(tests[3], "x"))
    assert (found_whole.kind, found_whole.problem_id) == ("exact", "q3")


def test_one_word_is_a_question_only_where_nothing_else_is_said() -> None:
    assert index("Why?").match(pair("I do not know why", "so")) == []
    assert len(index("Why?").match(pair("Why?", "so"))) == 1


def test_the_strongest_kind_is_reported_and_kinds_are_counted() -> None:
    problems = [Problem("p", "maths", (Segment("user", ASKED),), "5", {"source": "t", "line": 9})]
    near = pair("anna buys 12 red pens for 3 dollars", "x", 1)
    found = find_overlaps([near, pair(ASKED, "5", 2)], problems)
    assert [(o.kind, o.origin, o.place) for o in found] == [("exact", "rows.jsonl:2", "t:9")]
    assert count_kinds(found) == {"exact": 1}


@given(st.text(alphabet=st.characters(categories=["L", "N", "Z", "P"]), min_size=1), st.text())
@settings(deadline=None)
def test_a_question_inside_a_row_is_always_found(asked: str, before: str) -> None:
    if len(words(asked)) < 2:
        return
    assert index(asked).match(pair(f"{before} {asked} .", "x"))[0].kind == "exact"


def test_gsm8k_and_its_socratic_form_hold_the_same_questions(shared: Path) -> None:
    folder = shared / "data" / "gsm8k"
    _, tests = to_examples(list(read_rows(str(folder / "test.jsonl"))))
    _, rows = to_examples(list(read_rows(str(folder / "test_socratic.jsonl"))))
    found = OverlapIndex(Question(str(n), t.segments[0].text, "") for n, t in enumerate(tests))
    assert all(found.match(example)[0].kind == "exact" for example in rows)


# --- the command


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_keeps_fields_and_writes_every_reason(tmp_path: Path, capsys: object) -> None:
    good = {"prompt": "What is it?", "completion": "A thing.", "id": 3}
    data = make(
        tmp_path / "d.jsonl",
        good,
        good,
        {"prompt": "q", "completion": 5},
        {"prompt": "Is it?", "completion": "cafÃ©"},
        {"prompt": "What colour has the sky?", "completion": "blue"},
        {"prompt": STORY, "completion": "so it goes in the tale"},
        {"prompt": STORY.replace("old", "poor"), "completion": "so it goes in the tale"},
    )
    test = make(tmp_path / "t.jsonl", {"prompt": "what colour has the sky", "completion": "?"})
    out = tmp_path / "kept.jsonl"
    line = ["data", "filter", "--dataset", data, "--output", str(out), "--against", test]
    assert main([*line, "--duplicates", "near"]) == 0
    assert lines(out) == [good, {"prompt": STORY, "completion": "so it goes in the tale"}]
    rejects = lines(tmp_path / "kept-rejected.jsonl")
    assert [(r["line"], r["rule"]) for r in rejects] == [
        (2, "exact duplicate"),
        (3, "unreadable"),
        (4, "mojibake"),
        (5, "contamination (exact)"),
        (7, "near duplicate"),
    ]
    assert rejects[0]["row"] == good
    assert "t.jsonl:1" in rejects[3]["reason"]
    said = capsys.readouterr()  # type: ignore[attr-defined]
    counts = json.loads(said.out)
    assert counts["rows"] == 7 == counts["kept"] + sum(counts["removed"].values())
    assert f"{data}:4: mojibake" in said.err


STORY = (
    "The old miller had three sons and when he died he left them nothing but the mill, a donkey "
    "and a cat, which the youngest son received because nobody else wanted it at all"
)


def test_nothing_removed_leaves_no_file_of_rejects(tmp_path: Path) -> None:
    data = make(tmp_path / "d.jsonl", {"prompt": "a b", "completion": "c"})
    assert main(["data", "filter", "--dataset", data, "--output", str(tmp_path / "o.jsonl")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "o.jsonl"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ("--output d.jsonl", 2, "overwritten by what is made of it"),
        ("--output o.jsonl --rejects o.jsonl", 2, "the same file"),
        ("--output o.jsonl --rejects r.csv", 2, "no .jsonl file"),
        ("--output there.jsonl", 2, "is there already"),
        ("--output o.jsonl --rules none,mojibake", 2, "stands alone"),
        ("--output o.jsonl --rules mojibak", 2, "is not one of none"),
        ("--output o.jsonl --min-words 9 --max-words 2", 2, "at least 9 and at most 2"),
        ("--output o.jsonl --min-tokens 9", 2, "need a model"),
        ("--output o.jsonl --min-tokens 9 --model nowhere", 5, "no model 'nowhere'"),
        ("--output o.jsonl --similarity 1.5", 2, "--similarity"),
        ("--output o.jsonl --min-words 9", 3, "No row is left"),
        ("--output o.jsonl --against none.jsonl", 3, "no file"),
        ("--output o.jsonl --against d.jsonl", 3, "No row is left"),
        ("--output o.jsonl --columns prompt=frage", 3, "no field 'frage'"),
        ("--output nan.jsonl --dataset nan-rows.jsonl", 3, "NaN is no JSON number"),
    ],
)
def test_mistakes_are_sentences_and_write_no_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "d.jsonl", {"prompt": "a b c", "completion": "c"})
    (tmp_path / "nan-rows.jsonl").write_text('{"prompt": "e f", "completion": "g", "x": NaN}\n')
    make(tmp_path / "there.jsonl", {"x": 1})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert main(["data", "filter", "--dataset", "d.jsonl", *more.split()]) == code
    assert said in capsys.readouterr().err
    rejects = {"o-rejected.jsonl"}
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name not in rejects}
    assert after == before


def test_an_unknown_layout_is_no_heap_of_bad_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(tmp_path / "d.jsonl", {"frage": "a"}, {"frage": "b"})
    assert main(["data", "filter", "--dataset", data, "--output", str(tmp_path / "o.jsonl")]) == 3
    assert "d.jsonl:1" in capsys.readouterr().err.splitlines()[0]
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]
    good = make(tmp_path / "g.jsonl", {"prompt": "a b", "completion": "c"})
    out = str(tmp_path / "o.jsonl")
    assert main(["data", "filter", good, data, "--output", out]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "g.jsonl"]


def test_overwrite_replaces_both_files(tmp_path: Path) -> None:
    data = make(tmp_path / "d.jsonl", {"prompt": "a b", "completion": "c"})
    out = tmp_path / "o.jsonl"
    out.write_text("old")
    line = ["data", "filter", "--dataset", data, "--output", str(out)]
    assert main(line) == 2
    assert main([*line, "--overwrite"]) == 0
    assert lines(out) == [{"prompt": "a b", "completion": "c"}]


def test_lengths_rules_and_splits_of_the_command(tmp_path: Path) -> None:
    rows = [{"prompt": "w " * n, "completion": "x y"} for n in (2, 5, 30)]
    data = make(tmp_path / "d.jsonl", *rows)
    out = str(tmp_path / "o.parquet")
    line = ["data", "filter", "--dataset", data, "--output", out, "--rules", "none", "--overwrite"]
    assert main([*line, "--min-words", "5", "--max-words", "20"]) == 0
    assert [len(words(r.fields["prompt"])) for r in read_rows(out)] == [5]
    assert main([*line, "--max-characters", "3", "--length-of", "answer", "--max-rows", "2"]) == 0
    assert len(list(read_rows(out))) == 2
    assert main([*line, "--max-tokens", "25", "--model", "tunesmith/tiny"]) == 0
    assert len(list(read_rows(out))) == 2
    assert main([*line, "--min-characters", "20"]) == 0
    assert len(list(read_rows(out))) == 1


@pytest.mark.parametrize("verb", ["filter", "socratic", "validate", "raft"])
def test_a_folder_of_other_things_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear Ada")
    row = {"instruction": "Why is water wet?", "output": ["What is water?"], "text": "a"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    command = {
        "filter": ["filter", "a.jsonl", "--output", "mine", "--overwrite"],
        "socratic": ["socratic", "a.jsonl", "--output", "mine", "--overwrite"],
        "validate": ["validate", "a.jsonl", "--fix", "mine", "--overwrite"],
        "raft": ["raft", "--documents", "tunesmith/village", "--output", "mine"],
    }[verb]
    assert main(["data", *command]) == 2
    assert "it is not replaced" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "Dear Ada"


def test_broken_lines_and_rows_of_several_examples(tmp_path: Path) -> None:
    listed = {
        "instruction": "Add.",
        "instances": [{"input": str(n), "output": "x"} for n in (1, 2)],
    }
    path = tmp_path / "d.jsonl"
    rows = [listed, {**listed, "instances": []}, listed, [1]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    out = tmp_path / "o.jsonl"
    assert main(["data", "filter", str(path), "--output", str(out)]) == 0
    assert lines(out) == [listed]
    rejects = lines(tmp_path / "o-rejected.jsonl")
    assert [(r["line"], r["rule"]) for r in rejects] == [
        (2, "unreadable"),
        (3, "exact duplicate"),
        (4, "unreadable"),
        (5, "unreadable"),
    ]
    assert not any(r["reason"].endswith(".") for r in rejects)


@pytest.mark.parametrize("verb", ["filter", "socratic"])
def test_the_encoding_that_a_message_asks_for_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture, verb: str
) -> None:
    row = {"instruction": "Was heißt grün?", "output": ["Was ist grün?"]}
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(row, ensure_ascii=False).encode("windows-1252"))
    line = ["data", verb, str(path), "--output", str(tmp_path / "o.jsonl")]
    assert main(line) == 3
    assert "--encoding windows-1252" in capsys.readouterr().err
    assert main([*line, "--encoding", "windows-1252"]) == 0
    assert lines(tmp_path / "o.jsonl")[0] == row


@pytest.mark.parametrize(
    "flags",
    [
        ["--similarity", "0.5"],
        ["--ignore-numbers"],
        ["--overlap-words", "5"],
        ["--model", "tunesmith/tiny"],
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str]
) -> None:
    data = make(tmp_path / "d.jsonl", {"prompt": "a b", "completion": "c"})
    assert main(["data", "filter", data, "--output", str(tmp_path / "o.jsonl"), *flags]) == 2
    assert f"{flags[0]} does nothing without" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = make(tmp_path / "d.jsonl", {"prompt": "a b", "completion": "c"})
    name = "x" * 300 + ".jsonl"
    assert main(["data", "filter", data, "--output", str(tmp_path / name)]) == 8
    assert main(["data", "validate", str(tmp_path / name)]) == 8
    assert main(["data", "raft", "--documents", str(tmp_path / name)]) == 8
    assert capsys.readouterr().err.count("the name is too long") == 3
