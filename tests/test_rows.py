"""What a training run reads: sources joined, cut to shares, held out."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.cli import main
from tunesmith.config.load import resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.spool import Spool, joined, pick
from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.registry import get_task
from tunesmith.types import Example, Origin, Segment
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


def test_splits_of_plain_files_are_refused(tmp_path: Path) -> None:
    """A test split of a plain file would be the training rows themselves."""
    a, b = write(tmp_path / "a.jsonl", 4), write(tmp_path / "b.jsonl", 4)
    for settings in (
        {"dataset_train_split": "first"},
        {"dataset_test_split": "validation"},
        {"dataset_test_split": "validation", "eval_dataset": b},
    ):
        with pytest.raises(UsageError, match="has no splits"):
            rows(a, **settings)
    saved = tmp_path / "saved"
    parts = {
        "first": [{"prompt": "p", "completion": "c"}],
        "second": [{"prompt": "q", "completion": "c"}],
    }
    datasets.DatasetDict({n: datasets.Dataset.from_list(r) for n, r in parts.items()}).save_to_disk(
        saved
    )
    assert rows(str(saved), dataset_train_split="first", dataset_test_split="second") == ["p"]
    assert len(rows(a, str(saved), dataset_train_split="first")) == 5


def test_order_of_kept_rows_is_that_of_the_file(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 50), write(tmp_path / "b.jsonl", 10)
    kept = [int(text.split()[1]) for text in rows(f"{a}:0.5", f"{b}:0.5") if text[0] == "a"]
    assert len(kept) == 11
    assert kept == sorted(kept)


def test_streaming_changes_nothing_but_where_rows_lie(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 100)
    found = []
    for streaming in (False, True):
        given = {"dataset": [f"{a}:1", f"{b}:2"], "streaming": streaming, "max_rows": 60}
        data = gather(resolve(FineTuningConfig, given).options, get_task("instruct"))
        found.append((list(data.train), list(data.held_out)))
        assert isinstance(data.train, list) is not streaming
    assert found[0] == found[1]
    assert found[0][1]


def test_a_streamed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path / "a.jsonl", 24)
    command = ["train", "--dataset", rows, "--max-steps", "2", "--report-to", "none", "--no-cache"]
    hashes = []
    for name, more in (("one", []), ("two", ["--streaming", "--num-workers", "2"])):
        assert main([*command, "--run-name", name, *more]) == 0
        weights = tmp_path / "runs" / name / "final_model" / "model.safetensors"
        hashes.append(weights.read_bytes())
    assert hashes[0] == hashes[1]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SEGMENTS = st.builds(
    Segment,
    st.sampled_from(["user", "assistant", None]),
    TEXTS,
    st.sampled_from([0.0, 0.5, 1.0]),
    st.dictionaries(TEXTS, TEXTS | st.integers() | st.none(), max_size=2),
)


@given(st.lists(st.lists(SEGMENTS, min_size=1, max_size=3), max_size=8), st.data())
def test_a_spool_is_the_list_that_went_in(texts: list, data: st.DataObject) -> None:
    examples = [
        Example(tuple(segments), Origin("f", at, None if at % 2 else "x"), {"n": at})
        for at, segments in enumerate(texts)
    ]
    spool = Spool()
    for example in examples:
        spool.append(example)
    assert list(spool) == examples
    start, end = data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9))
    assert list(spool[start:end]) == examples[start:end]
    numbers = data.draw(st.lists(st.integers(0, len(examples) - 1))) if examples else []
    assert list(pick(spool, numbers)) == list(pick(examples, numbers))
    assert list(joined([spool, spool])) == joined([examples, examples])


@pytest.mark.parametrize(
    ("sources", "said"),
    [(["a.jsonl:0.5", "b.jsonl"], "no share"), (["a.jsonl:0", "b.jsonl:1"], "takes nothing")],
)
def test_shares_that_say_nothing_are_refused(sources: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        split_shares(sources)


def test_names_without_shares_stay_as_they_are() -> None:
    assert split_shares(["C:/rows.jsonl", "org/name"]) == (["C:/rows.jsonl", "org/name"], None)


def test_held_out_texts_that_are_trained_on_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for chats: a text met in training is no evidence, whatever its spaces and case."""

    def texts(name: str, *found: str) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
        return str(path)

    def held_out(other: str) -> list[str]:
        given = {"task": "domain", "dataset": [rows], "eval_dataset": other}
        data = gather(resolve(FineTuningConfig, given).options, get_task("domain"))
        assert len(data.train) == 3
        assert data.repeated == 2
        return [example.segments[0].text for example in data.held_out]

    rows = texts("t.jsonl", "One cat sat.", "Two cats sat.", "Three cats sat.")
    assert held_out(texts("u.jsonl", "two  cats SAT.", "One cat sat.", "No cat.")) == ["No cat."]
    assert "2 held-out rows are also trained on and are left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="is also a training row"):
        held_out(rows)
    book = tmp_path / "book.txt"
    book.write_text("Once a cat sat.\n\nThen it stood.\n")
    given = {"task": "domain", "dataset": [str(book)], "eval_dataset": str(book)}
    with pytest.raises(DataError, match="is also a training row"):
        gather(resolve(FineTuningConfig, given).options, get_task("domain"))


def test_the_test_split_of_every_source_is_held_out(tmp_path: Path) -> None:
    def saved(name: str, *splits: str) -> str:
        parts = {
            split: datasets.Dataset.from_list([{"prompt": f"{name} {split}", "completion": "c"}])
            for split in splits
        }
        datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    def held_out(*sources: str, **more: object) -> list[str]:
        given = {"dataset": list(sources), "dataset_test_split": "test", **more}
        data = gather(resolve(FineTuningConfig, given).options, get_task("instruct"))
        return [example.segments[0].text for example in data.held_out]

    a, b, c = saved("a", "train", "test"), saved("b", "train", "test"), saved("c", "train")
    assert held_out(a, b) == ["a test", "b test"]
    assert held_out(f"{a}:0.5", f"{b}:0.5") == ["a test", "b test"]
    assert held_out(a, b, eval_dataset=b) == ["b test"]
    plain = write(tmp_path / "plain.jsonl", 4)
    for sources in ([a, plain], [plain, a]):
        with pytest.raises(UsageError, match=r"plain\.jsonl has no splits") as refused:
            held_out(*sources)
        assert f"--eval-dataset {a}" in str(refused.value)
    with pytest.raises(DataError, match="c has no split 'test'"):
        held_out(a, c)
