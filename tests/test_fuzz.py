"""A share of the reader fuzzing; `python tests/fuzz_readers.py` runs as much as is asked for."""

from __future__ import annotations

import pytest

from fuzz_readers import fuzz_files, fuzz_lines


@pytest.mark.parametrize(("rows", "files"), [(20_000, 300)])
def test_readers_answer_with_rows_or_reasons(rows: int, files: int) -> None:
    counts = fuzz_lines(rows, seed=7)
    assert sum(counts.values()) == rows
    assert all(counts.values())
    assert all(fuzz_files(files, seed=7).values())


@pytest.mark.reliability
def test_readers_answer_with_rows_or_reasons_at_length() -> None:
    print(fuzz_lines(600_000, seed=8), fuzz_files(5_000, seed=8))


@pytest.mark.slow
def test_readers_answer_with_rows_or_reasons_all_night() -> None:
    print(fuzz_lines(100_000_000, seed=9), fuzz_files(100_000, seed=9))
