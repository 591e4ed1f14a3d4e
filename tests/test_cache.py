"""The cache of tokenised rows: nothing stale, damaged or lost, and no token changed."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_render import THINKING
from tiny_models import CHATML, tiny_tokenizer
from tunesmith.data import cache as cache_module
from tunesmith.data import parallel, prepare
from tunesmith.data.blocks import BlockBuilder, DamagedBlockError, TokenRows, from_bytes
from tunesmith.data.cache import RowCache, block_key, settings_key
from tunesmith.data.parallel import choose_workers, encode_in_processes
from tunesmith.data.prepare import Prepared
from tunesmith.data.render import Renderer
from tunesmith.errors import ContractError, TunesmithError
from tunesmith.train.losses import lengths
from tunesmith.types import Encoded, Example, Origin, Segment

GIGABYTE = 10**9


def chats(count: int, note: str = "", source: str = "rows.jsonl") -> list[Example]:
    return [
        Example(
            (
                Segment("user", f"What is {n} + 1{note}?"),
                Segment("assistant", f"It is {n + 1}, as {'so ' * (n % 7)}often.", 0.5 + n % 2),
            ),
            Origin(source, n + 1),
        )
        for n in range(count)
    ]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "BLOCK_CHARACTERS", 400)


def run(folder: Path, examples: list[Example], renderer: Renderer | None = None, **more: Any):
    cache = RowCache(folder, more.pop("limit", GIGABYTE))
    renderer = renderer or Renderer(tiny_tokenizer())
    length = more.pop("max_length", 80)
    return prepare.prepare(examples, renderer, length, cache=cache, **more), cache


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.rows"))


def same(one: Prepared, other: Prepared) -> bool:
    return (
        list(one.rows) == list(other.rows)
        and list(one.documents) == list(other.documents)
        and one.counts() == other.counts()
        and one.refused == other.refused
    )


def test_the_second_run_comes_from_the_cache_and_is_the_same(tmp_path: Path) -> None:
    plain = prepare.prepare(chats(60), Renderer(tiny_tokenizer()), 80)
    first, _ = run(tmp_path, chats(60))
    again, cache = run(tmp_path, chats(60))
    assert first.cached == 0
    assert again.cached == 60
    assert again.made() == "from the cache"
    assert "tokens/s" in first.made()
    assert same(plain, first)
    assert same(first, again)
    assert cache.notes == []
    assert len(files(tmp_path)) > 3


def test_refused_rows_and_cut_turns_come_from_the_cache_too(tmp_path: Path) -> None:
    long = Example(
        (Segment("user", "word " * 90), Segment("assistant", "no", 1.0)), Origin("l.jsonl", 9)
    )
    talk = Example(
        (
            Segment("user", "old " * 20),
            Segment("assistant", "yes", 1.0),
            Segment("user", "new?"),
            Segment("assistant", "yes", 1.0),
        ),
        Origin("l.jsonl", 10),
    )
    data = [*chats(30), long, talk]
    first, _ = run(tmp_path, data, allow_refused=0.5)
    again, _ = run(tmp_path, data, allow_refused=0.5)
    assert again.cached == 32
    assert again.cut_turns == 2
    assert again.refused[0].startswith("l.jsonl:9: ")
    assert same(first, again)
    with pytest.raises(ContractError, match=r"l.jsonl:9"):
        run(tmp_path, data)


def asked_as(**changes: Any) -> list[Example]:
    return [
        Example((dataclasses.replace(e.segments[0], **changes), e.segments[1]), e.origin)
        for e in chats(60)
    ]


def changed_stop() -> Renderer:
    return Renderer(tiny_tokenizer(), stop_ids=[7])


def changed_vocabulary() -> Renderer:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["What"])
    return Renderer(tokenizer)


def changed_bos() -> Renderer:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    return Renderer(tokenizer)


@pytest.mark.parametrize(
    ("examples", "settings"),
    [
        (chats(60, note="!"), {}),
        ([Example((*e.segments, Segment("user", "and?")), e.origin) for e in chats(60)], {}),
        (asked_as(role="tool"), {}),
        (asked_as(weight=0.5), {}),
        (asked_as(extra={"name": "x"}), {}),
        (chats(60), {"max_length": 81}),
        (chats(60), {"answers_only": False}),
        (chats(60), {"renderer": Renderer(tiny_tokenizer(), "plain")}),
        (chats(60), {"renderer": Renderer(tiny_tokenizer(THINKING))}),
        (chats(60), {"renderer": changed_stop()}),
        (chats(60), {"renderer": changed_vocabulary()}),
        (chats(60), {"renderer": changed_bos()}),
    ],
    ids=[
        "text", "turns", "role", "weight", "extra", "length", "loss", "template", "own template",
        "stop tokens", "vocabulary", "bos",
    ],
)  # fmt: skip
def test_whatever_changes_meets_no_old_rows(
    tmp_path: Path, examples: list[Example], settings: dict[str, Any]
) -> None:
    run(tmp_path, chats(60))
    changed, _ = run(tmp_path, examples, **settings)
    assert changed.cached == 0


@pytest.mark.parametrize("name", ["CODE_VERSION", "__version__"])
def test_another_version_meets_no_old_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run(tmp_path, chats(20))
    monkeypatch.setattr(cache_module, name, "another")
    assert run(tmp_path, chats(20))[0].cached == 0


def test_a_template_that_asks_for_the_date_is_another_one_tomorrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datetime

    from tunesmith.data import render

    dated, plain = (
        Renderer(tiny_tokenizer(head + CHATML)) for head in ("{{ strftime_now('%Y') }}", "")
    )
    before = dated.identity, plain.identity

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2099, 1, 1)

    monkeypatch.setattr(render.datetime, "date", Tomorrow)
    assert dated.identity != before[0]
    assert plain.identity == before[1]


def test_names_are_those_of_the_file_at_hand(tmp_path: Path) -> None:
    run(tmp_path, chats(20))
    moved, _ = run(tmp_path, chats(20, source="moved.jsonl"))
    assert moved.cached == 20
    assert moved.rows[3].origin == Origin("moved.jsonl", 4)


@pytest.mark.parametrize("where", [0.0, 0.02, 0.5, 0.99, "cut", "empty"])
def test_a_damaged_file_is_found_and_made_again(tmp_path: Path, where: float | str) -> None:
    first = prepare.prepare(chats(40), Renderer(tiny_tokenizer()), 80)
    run(tmp_path, chats(40))
    path = files(tmp_path)[1]
    content = bytearray(path.read_bytes())
    if where == "cut":
        del content[-9:]
    elif where == "empty":
        content.clear()
    else:
        content[int(len(content) * float(where))] ^= 4
    path.write_bytes(content)
    again, cache = run(tmp_path, chats(40))
    assert same(first, again)
    assert 0 < again.cached < 40
    assert f"{path} is damaged" in cache.notes[0]
    third, cache = run(tmp_path, chats(40))
    assert third.cached == 40
    assert cache.notes == []


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_goes_unseen(at: int, bit: int) -> None:
    builder = BlockBuilder()
    builder.add(Encoded((1, 2, 3), (0.0, 1.0, 0.5), Origin("t")), 0)
    builder.refuse(1, "too long")
    content = bytearray(builder.build(2).to_bytes())
    assert from_bytes(bytes(content)).refused == ((1, "too long"),)
    content[at % len(content)] ^= 1 << bit
    with pytest.raises(DamagedBlockError):
        from_bytes(bytes(content))


ROW = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 1.0, 0.5, 0.1, -1.0])), max_size=12
)


@given(st.lists(st.lists(st.lists(ROW, max_size=3), min_size=1, max_size=4), max_size=4))
@settings(max_examples=100, deadline=None)
def test_blocks_give_back_the_rows_that_went_in(data: list[list[list[list[Any]]]]) -> None:
    blocks, rows, documents, first = [], [], [], 0
    for examples in data:
        builder = BlockBuilder()
        for number, several in enumerate(examples):
            for row in several:
                ids, weights = tuple(i for i, _ in row), tuple(w for _, w in row)
                encoded = Encoded(ids, weights, Origin("t", first + number))
                builder.add(encoded, number)
                rows.append(encoded)
                documents.append(first + number)
        blocks.append(from_bytes(builder.build(len(examples)).to_bytes()))
        first += len(examples)
    view = TokenRows(blocks, lambda number: Origin("t", number))
    assert list(view) == rows
    assert view[:] == rows
    assert list(view.documents()) == documents
    assert list(lengths(view)) == [len(row.ids) for row in rows]
    assert view.tokens == sum(len(row.ids) for row in rows)
    assert view.trained_tokens == sum(1 for row in rows for w in row.weights if w)
    if rows:
        assert view[-1] == rows[-1]
    with pytest.raises(IndexError):
        view[len(rows)]


def test_more_weights_than_a_byte_can_count() -> None:
    builder = BlockBuilder()
    row = Encoded(tuple(range(700)), tuple(n / 8 for n in range(700)), Origin("t"))
    builder.add(row, 0)
    assert from_bytes(builder.build(1).to_bytes()).row(0, Origin("t")) == row


def test_lengths_make_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = run(tmp_path, chats(30))
    wanted = [len(row.ids) for row in prepared.rows]
    monkeypatch.setattr(Encoded, "__post_init__", lambda self: pytest.fail("a row was made"))
    assert list(lengths(prepared.rows)) == wanted
    assert max(prepared.lengths()) == max(wanted)
    assert prepared.tokens == sum(wanted)


KILLED = """
import pickle, sys, time
from pathlib import Path
from tunesmith.data import cache, prepare
examples, renderer, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
prepare.BLOCK_CHARACTERS = 400
store = cache.RowCache.store
def slow(self, key, content):
    store(self, key, content)
    print("stored", flush=True)
    time.sleep(0.05)
cache.RowCache.store = slow
prepare.prepare(examples, renderer, 80, cache=cache.RowCache(folder, 10**9), workers=1)
"""


def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    examples, folder = chats(200), tmp_path / "cache"
    task = tmp_path / "task"
    task.write_bytes(pickle.dumps((examples, Renderer(tiny_tokenizer()), folder)))
    command = [sys.executable, "-c", KILLED, str(task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=package_path()) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == b"stored\n"
        process.kill()
    finished = len(files(folder))
    assert finished >= 3
    done, cache = run(folder, examples)
    assert 0 < done.cached < 200
    assert cache.notes == []
    assert same(done, prepare.prepare(examples, Renderer(tiny_tokenizer()), 80))


def package_path() -> dict[str, str]:
    package = str(Path(prepare.__file__).parent.parent.parent)
    return {**os.environ, "PYTHONPATH": package, "USE_TORCH": "0"}


def test_what_is_unused_longest_goes_first_and_it_is_said(tmp_path: Path) -> None:
    run(tmp_path, chats(40, note=" old"))
    old = files(tmp_path)
    for path in old:
        os.utime(path, (1, 1))
    run(tmp_path, chats(40, note=" new"))
    new = [path for path in files(tmp_path) if path not in old]
    size = sum(path.stat().st_size for path in new)
    _, cache = run(tmp_path, chats(40, note=" new"), limit=size + 10)
    assert files(tmp_path) == new
    assert f"removed {len(old)} files" in cache.notes[0]


def test_a_run_keeps_its_own_rows_however_small_the_limit(tmp_path: Path) -> None:
    prepared, cache = run(tmp_path, chats(40), limit=1)
    assert len(list(prepared.rows)) == 40
    assert cache.notes == []
    assert run(tmp_path, chats(40))[0].cached == 40


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("in the way")
    prepared, cache = run(tmp_path, chats(40))
    assert len(prepared.rows) == 40
    assert [note for note in cache.notes if "not cached" in note]


def test_two_at_once_give_the_same(tmp_path: Path) -> None:
    examples, folder = chats(120), tmp_path / "cache"
    task = tmp_path / "task"
    task.write_bytes(pickle.dumps((examples, Renderer(tiny_tokenizer()), folder)))
    command = [sys.executable, "-c", KILLED, str(task)]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=package_path()) for _ in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    done, cache = run(folder, examples)
    assert done.cached == 120
    assert cache.notes == []
    assert same(done, prepare.prepare(examples, Renderer(tiny_tokenizer()), 80))


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    data = [
        *chats(50),
        Example((Segment("user", "x " * 99), Segment("assistant", "y", 1.0)), Origin("z")),
    ]
    runs = [
        run(tmp_path / str(workers), data, workers=workers, allow_refused=0.5)[0]
        for workers in (1, 3)
    ]
    assert same(*runs)
    made = [{path.name: path.read_bytes() for path in files(tmp_path / str(n))} for n in (1, 3)]
    assert made[0] == made[1]


def test_the_first_broken_row_is_named_whatever_the_processes() -> None:
    data = chats(40)
    for at in (7, 20):
        data[at] = Example(
            (Segment(None, "a"), Segment("assistant", "b", 1.0)), Origin("mixed.jsonl", at)
        )
    for workers in (1, 2):
        with pytest.raises(ContractError, match=r"mixed.jsonl:7: plain text and chat"):
            prepare.prepare(data, Renderer(tiny_tokenizer()), 80, workers=workers)


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch, killed: signal.Signals
) -> None:
    started: list[Any] = []
    begin = parallel._Worker.__init__

    def noted(self: Any) -> None:
        begin(self)
        started.append(self)

    monkeypatch.setattr(parallel._Worker, "__init__", noted)

    def parts() -> Iterator[list[Example]]:
        for number in range(1000):
            if number == 4:
                started[0]._process.send_signal(killed)
                time.sleep(0.1)
            yield chats(3)

    blocks = encode_in_processes(
        parts(), Renderer(tiny_tokenizer()), 80, answers_only=True, workers=2
    )
    with pytest.raises(TunesmithError, match="ended early"):
        list(blocks)
    assert all(worker._process.poll() is not None for worker in started)


def test_processes_are_started_unasked_for_much_text_only() -> None:
    assert choose_workers(None, 1000) == 1
    assert choose_workers(None, parallel.WORTH_IT) >= 1
    assert choose_workers(3, 1000) == 3


def test_keys_tell_settings_and_order_apart() -> None:
    data = chats(3)
    one = settings_key("f", 10, True)
    assert one not in {settings_key("g", 10, True), settings_key("f", 11, True)}
    assert one != settings_key("f", 10, False)
    assert block_key(one, data) != block_key(one, data[::-1])
    assert block_key(one, data[:2]) != block_key(one, data)
    assert block_key(one, data) == block_key(one, chats(3, source="other"))
