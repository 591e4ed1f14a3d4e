from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith import storage
from tunesmith.errors import CheckpointError, DataError, StorageError, UsageError
from tunesmith.rundir import (
    JsonlLog,
    RunDir,
    hash_file,
    hash_json,
    hash_tree,
    write_bytes,
    write_json,
    write_text,
)
from tunesmith.storage import whole_folder
from tunesmith.workflows.several import STACKS

RECORDS = [{"a": 1}, {"text": "Ünïcode \u2028 \n{}"}, {"nested": {"x": [1, None, 0.5]}}]


def filled(path: Path) -> bytes:
    with JsonlLog(path) as log:
        for record in RECORDS:
            log.append(record)
    return path.read_bytes()


# --- atomic files


def test_written_files_hold_what_was_given(tmp_path):
    write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\0\xff")
    write_text(tmp_path / "b.txt", "ä\ud800")
    write_json(tmp_path / "c.json", {"ü": [1, None]})
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"\0\xff"
    assert (tmp_path / "b.txt").read_text("utf-8") == "ä\\ud800"
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {"ü": [1, None]}
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "b.txt", "c.json"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = (os, "fsync") if call == "fsync" else (Path, "replace")
    monkeypatch.setattr(*target, full)
    with pytest.raises(StorageError, match=r"a\.txt.*disk is full \(11 bytes are needed\)"):
        write_text(path, "new content")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.ENOSPC, "disk is full"),
        (errno.EXDEV, "cross-device"),
    ],
)
def test_storage_errors_speak_in_sentences(tmp_path, monkeypatch, code, words):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"(?i){words}") as caught:
        write_text(tmp_path / "x", "y")
    assert caught.value.hint


def test_a_path_through_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_text(tmp_path / "file" / "x", "y")


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    write_text(tmp_path / "x", "y")
    assert events == ["fsync", "rename", "fsync"]


# --- hashes


def test_hash_tree_sees_names_and_contents_but_not_locks(tmp_path):
    write_text(tmp_path / "a" / "x", "1")
    first = hash_tree(tmp_path)
    (tmp_path / "a" / ".lock").write_text("7")
    (tmp_path / ".tmp-abc").write_text("half")
    assert hash_tree(tmp_path) == first
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = hash_tree(tmp_path)
    write_text(tmp_path / "a" / "y", "2")
    assert len({first, renamed, hash_tree(tmp_path)}) == 3
    with pytest.raises(StorageError):
        hash_file(tmp_path / "missing")


def test_hash_json_does_not_depend_on_the_order_of_keys():
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})


# --- the log


def test_a_log_gives_back_its_records_and_goes_on(tmp_path):
    path = tmp_path / "sub" / "log.jsonl"
    filled(path)
    assert list(JsonlLog.read(path)) == RECORDS
    with JsonlLog(path) as log:
        assert (log.records, log.cut_bytes) == (3, 0)
        log.append({"more": True})
    assert list(JsonlLog.read(path)) == [*RECORDS, {"more": True}]


def test_a_log_cut_anywhere_keeps_every_whole_record(tmp_path):
    path = tmp_path / "log.jsonl"
    data = filled(path)
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end - 1 <= cut for end in ends)
        assert list(JsonlLog.read(path)) == RECORDS[:whole]
        with JsonlLog(path) as log:
            kept = 0 if whole == 0 else ends[whole - 1]
            assert log.cut_bytes == max(0, cut - kept)
            assert log.records == whole
            log.append({"next": 1})
        assert list(JsonlLog.read(path)) == [*RECORDS[:whole], {"next": 1}]


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "log.jsonl"
    data = filled(path)
    last = data[:-1].rindex(b"\n") + 1
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        if position < last:  # the newline before the last record included
            with pytest.raises(DataError, match=r"log\.jsonl:[12]: .*checksum"):
                list(JsonlLog.read(path))
            with pytest.raises(DataError):
                JsonlLog(path)
            assert path.read_bytes() == flipped
        else:
            assert list(JsonlLog.read(path)) == RECORDS[:2]


def test_a_valid_checksum_around_something_else_is_no_record(tmp_path):
    path = tmp_path / "log.jsonl"
    for body in (b"[1]", b"{", b""):
        path.write_bytes(b'{"c":"%08x","r":%s}\n' % (zlib.crc32(body), body))
        assert list(JsonlLog.read(path)) == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=60).filter(lambda tail: b"\n" not in tail))
def test_any_torn_tail_is_cut(tmp_path, tail):
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    data = filled(path)
    path.write_bytes(data + tail)
    with JsonlLog(path) as log:
        assert log.cut_bytes == len(tail)
    assert path.read_bytes() == data


def test_a_failed_append_leaves_the_log_whole(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    with JsonlLog(path) as log:
        log.append({"a": 1})
        real = log._file

        class Full:
            def __getattr__(self, name):
                return getattr(real, name)

            def write(self, view):
                if len(view) > 5:
                    return real.write(view[:5])
                raise OSError(errno.ENOSPC, "No space left on device")

        log._file = Full()
        with pytest.raises(StorageError, match="disk is full"):
            log.append({"b": 2})
        log._file = real
        log.append({"c": 3})
    assert list(JsonlLog.read(path)) == [{"a": 1}, {"c": 3}]


def test_short_writes_are_finished(tmp_path):
    with JsonlLog(tmp_path / "log.jsonl") as log:
        real = log._file

        class Short:
            def __getattr__(self, name):
                return getattr(real, name)

            def write(self, view):
                return real.write(view[:3])

        log._file = Short()
        log.append({"text": "long enough"})
        log._file = real
    assert list(JsonlLog.read(tmp_path / "log.jsonl")) == [{"text": "long enough"}]


def test_records_are_synced_as_often_as_asked(tmp_path, monkeypatch):
    synced = []
    with JsonlLog(tmp_path / "log.jsonl", sync_every=3) as log:
        monkeypatch.setattr(storage.os, "fsync", lambda handle: synced.append(log.records))
        for n in range(7):
            log.append({"n": n})
        assert synced == [3, 6]
    assert synced == [3, 6, 7]


def test_a_second_writer_is_refused_but_readers_are_not(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonlLog(path) as log:
        log.append({"a": 1})
        with pytest.raises(CheckpointError, match="another process"):
            JsonlLog(path)
        assert list(JsonlLog.read(path)) == [{"a": 1}]
    JsonlLog(path).close()


def test_a_missing_log_is_a_sentence(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        list(JsonlLog.read(tmp_path / "none.jsonl"))


def test_an_appended_record_survives_a_kill(tmp_path):
    program = (
        "import os, sys; from tunesmith.rundir import JsonlLog\n"
        f"log = JsonlLog({str(tmp_path / 'log.jsonl')!r}, sync_every=100)\n"
        "for n in range(5): log.append({'n': n})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    with JsonlLog(tmp_path / "log.jsonl") as log:
        assert log.records == 5


# --- the run folder


def test_a_run_folder_is_laid_out_and_remembers(tmp_path):
    with RunDir.create(tmp_path / "out", "chat_x") as run:
        run.write_config({"model": "tunesmith/tiny", "learning_rate": 1e-5})
        run.write_manifest({"data": "abc"})
    again = RunDir(tmp_path / "out" / "chat_x")
    assert again.read_config() == {"model": "tunesmith/tiny", "learning_rate": 1e-5}
    assert again.read_manifest()["data"] == "abc"
    assert "tunesmith" in again.read_manifest()
    assert again.metrics == again.path / "metrics.jsonl"
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        RunDir(tmp_path).read_manifest()
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        RunDir(tmp_path).read_config()


def test_an_existing_folder_gets_a_number(tmp_path):
    names = [RunDir.create(tmp_path, "run").path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_resume_reuses_the_folder(tmp_path):
    with pytest.raises(CheckpointError, match="There is no run"):
        RunDir.create(tmp_path, "run", resume=True)
    assert not list(tmp_path.iterdir())
    RunDir.create(tmp_path, "run").close()
    (tmp_path / "run" / "metrics.jsonl").write_text("kept")
    with RunDir.create(tmp_path, "run", resume=True) as run:
        assert run.existed
        assert run.metrics.read_text() == "kept"


def test_overwrite_removes_a_runs_own_things_only(tmp_path):
    with RunDir.create(tmp_path, "run") as run:
        run.write_manifest({})
        write_text(run.final_model / "x", "1")
        write_text(run.metrics, "old")
        write_text(run.path / STACKS / "process-1.txt", "where it stalled")
        write_text(run.path / "my notes.txt", "mine")
        outside = tmp_path / "elsewhere"
        write_text(outside / "precious", "1")
        run.checkpoints.symlink_to(outside)
    with RunDir.create(tmp_path, "run", overwrite=True) as run:
        assert run.path.name == "run"
        assert {p.name for p in run.path.iterdir()} == {".lock", "my notes.txt"}
    assert (outside / "precious").exists()


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_a_kill_left_half_written_is_swept_away(tmp_path, how):
    with RunDir.create(tmp_path, "run") as run:
        write_text(run.path / ".tmp-00ff", "half a config")
    with RunDir.create(tmp_path, "run", **{how: True}) as run:
        assert {p.name for p in run.path.iterdir()} == {".lock"}


def test_overwrite_refuses_a_folder_no_run_has_made(tmp_path):
    write_text(tmp_path / "thesis" / "config.yaml", "title: mine\n")
    write_text(tmp_path / "thesis" / "manifest.json", "[]")
    write_text(tmp_path / "thesis" / "final_model" / "chapter", "1")
    with pytest.raises(UsageError, match="no run of tunesmith made it"):
        RunDir.create(tmp_path, "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "final_model" / "chapter").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "a\\b"])
def test_a_name_cannot_lead_elsewhere(tmp_path, name):
    with pytest.raises(UsageError):
        RunDir.create(tmp_path, name)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(UsageError):
        RunDir.create(tmp_path, "run", resume=True, overwrite=True)


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    program = (
        "import sys; from tunesmith.rundir import RunDir\n"
        f"run = RunDir.create({str(tmp_path)!r}, 'run')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(CheckpointError, match=f"id {child.pid}"):
            RunDir.create(tmp_path, "run", resume=True)
        child.kill()
        child.wait()
    RunDir.create(tmp_path, "run", resume=True).close()


def test_a_folder_without_permission_is_a_sentence(tmp_path, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(StorageError, match="no permission"):
        RunDir.create(tmp_path / "x", "run")


def test_a_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with whole_folder(target) as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "file").write_text(content)
            assert content == "one" or (target / "inner" / "file").read_text() == "one"
    assert (target / "inner" / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_failed_replacement_leaves_the_folder_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    target = tmp_path / "model"
    with whole_folder(target) as partial:
        (partial / "file").write_text("one")
    rename, calls = Path.rename, []

    def failing(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == renames + 1:
            raise OSError(errno.ENOSPC, "full")
        return rename(self, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(StorageError), whole_folder(target) as partial:
            (partial / "file").write_text("two")
    assert (target / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_two_renames_is_mended(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "r")
    run.close()
    (run.path / ".best_model.before").mkdir()
    (run.path / ".best_model.before" / "file").write_text("one")
    RunDir.create(tmp_path, "r", resume=True).close()
    assert (run.best_model / "file").read_text() == "one"


@pytest.mark.parametrize("again", [{"resume": True}, {"overwrite": True}], ids=str)
def test_what_a_killed_measurement_has_left_is_removed(
    again: dict[str, bool], tmp_path: Path
) -> None:
    with RunDir.create(tmp_path, "r") as run:
        run.write_config({"seed": 1})
        probe = run.path / ".probe" / "checkpoint-step-1"
        probe.mkdir(parents=True)
        (probe / "model.safetensors").write_bytes(b"x")
    with RunDir.create(tmp_path, "r", **again) as run:
        assert not (run.path / ".probe").exists()
    (tmp_path / "mine" / ".probe").mkdir(parents=True)
    with RunDir.create(tmp_path, "mine", resume=True) as run:
        assert (run.path / ".probe").exists()  # no run has made that folder


def test_a_run_that_ends_before_its_config_leaves_no_word_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunDir.create(tmp_path, "run") as run:
        raise KeyboardInterrupt
    assert not run.ended.exists()
    with RunDir.create(tmp_path, "run", overwrite=True) as run:
        run.write_config({"seed": 1})
    with pytest.raises(KeyboardInterrupt), RunDir.create(tmp_path, "run", resume=True) as run:
        raise KeyboardInterrupt
    assert run.ended.is_file()


def test_half_written_files_below_eval_are_swept(tmp_path: Path) -> None:
    with RunDir.create(tmp_path, "run") as run:
        run.write_config({"seed": 1})
        (run.eval / "general").mkdir(parents=True)
        for place in (run.path, run.eval, run.eval / "general"):
            (place / ".tmp-0123456789abcdef").write_text("half")
        (run.eval / "general" / "forgetting.json").write_text("{}")
    with RunDir.create(tmp_path, "run", resume=True) as run:
        assert [*run.path.rglob(".tmp-*")] == []
        assert (run.eval / "general" / "forgetting.json").is_file()
