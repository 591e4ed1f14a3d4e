"""Rows go to files and come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.formats import to_examples
from tunesmith.data.readers import read_rows
from tunesmith.data.writers import example_fields, write_rows, write_splits
from tunesmith.errors import UsageError
from tunesmith.types import Example, Origin, Segment

ROWS = [{"prompt": f"what is {n} é \ud83d?", "completion": "x" * n, "n": n} for n in range(1, 5)]
PLAIN = [{**row, "prompt": str(row["n"])} for row in ROWS]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "folder"])
def test_rows_come_back(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert write_rows(target, PLAIN) == 4
    assert [row.fields for row in read_rows(str(target))] == PLAIN
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert [row.fields for row in read_rows(str(tmp_path / "rows.jsonl"))] == ROWS


def test_splits_go_beside_each_other(tmp_path: Path) -> None:
    write_splits(tmp_path / "r.jsonl", {"train": PLAIN[:3], "validation": PLAIN[3:]})
    assert [r.fields["n"] for r in read_rows(str(tmp_path / "r-validation.jsonl"))] == [4]
    write_splits(tmp_path / "f", {"train": PLAIN[:3], "validation": PLAIN[3:]})
    assert [r.fields["n"] for r in read_rows(str(tmp_path / "f"), split="validation")] == [4]


def test_a_failing_source_leaves_no_file(tmp_path: Path) -> None:
    def rows() -> object:
        yield PLAIN[0]
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "rows.jsonl", rows())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="xlsx"):
        write_rows(tmp_path / "rows.xlsx", PLAIN)


def test_an_example_is_read_as_it_was_written(tmp_path: Path) -> None:
    turns = (Segment("system", "s"), Segment("user", "u"), Segment("assistant", "a", 1.0))
    write_rows(tmp_path / "r.jsonl", [example_fields(Example(turns, Origin("x")))])
    _, [example] = to_examples(list(read_rows(str(tmp_path / "r.jsonl"))))
    assert example.segments == turns


def test_a_saved_folder_shows_no_bar_of_another_library(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    import datasets

    before = datasets.are_progress_bars_disabled()
    write_rows(tmp_path / "folder", [{"a": 1}])
    assert capfd.readouterr().err == ""
    assert datasets.are_progress_bars_disabled() is before
