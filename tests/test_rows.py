"""What a training run reads: sources joined, cut to shares, held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.config.load import resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError
from tunesmith.tasks.registry import get_task
from tunesmith.workflows.rows import gather, split_shares


def write(path: Path, count: int) -> str:
    rows = ({"prompt": f"{path.stem} {n}", "completion": "x"} for n in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(*sources: str, **settings: object) -> list[str]:
    given = {"dataset": list(sources), "validation_split": 0, **settings}
    config = resolve(FineTuningConfig, given).options
    return [example.segments[0].text for example in gather(config, get_task("instruct")).train]


def test_sources_are_cut_to_their_shares(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 100)
    found = rows(f"{a}:0.25", f"{b}:0.75")
    assert (sum(text[0] == "a" for text in found), sum(text[0] == "b" for text in found)) == (
        30,
        91,
    )
    assert found == rows(f"{a}:1", f"{b}:3")
    assert found != rows(f"{a}:1", f"{b}:3", seed=1)
    assert len(rows(a, b)) == 130


def test_order_of_kept_rows_is_that_of_the_file(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 50), write(tmp_path / "b.jsonl", 10)
    kept = [int(text.split()[1]) for text in rows(f"{a}:0.5", f"{b}:0.5") if text[0] == "a"]
    assert len(kept) == 11
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("sources", "said"),
    [(["a.jsonl:0.5", "b.jsonl"], "no share"), (["a.jsonl:0", "b.jsonl:1"], "takes nothing")],
)
def test_shares_that_say_nothing_are_refused(sources: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        split_shares(sources)


def test_names_without_shares_stay_as_they_are() -> None:
    assert split_shares(["C:/rows.jsonl", "org/name"]) == (["C:/rows.jsonl", "org/name"], None)
