"""Hostile model folders are refused by name: in 2 s and 512 MiB, which the long form measures."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostile.folders import CANARY, CASES, Case, make
from shares import tell
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.errors import ModelError
from tunesmith.models import folder as checks
from tunesmith.models.adapters import add_lora
from tunesmith.models.load import load, load_tokenizer

SECONDS, MEMORY = 2.0, 512 << 20
QUICK = [case for case in CASES if not case.slow]
PATIENT = [case for case in CASES if case.slow]


def sound(home: Path) -> tuple[Path, Path]:
    """Write a base and an adapter on it that are loaded as they are."""
    base, adapter = home / "base", home / "adapter"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = add_lora(load(str(base)).model, rank=4, alpha=8, base_name=str(base))
    model.save_pretrained(adapter, save_embedding_layers=False)
    return base, adapter


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    home = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CANARY, str(home / "canary"))
        yield sound(home)
    assert not (home / "canary").exists()


def refused(case: Case, models: tuple[Path, Path], home: Path) -> None:
    folder = make(case, *models, home)
    try:
        with pytest.raises(ModelError, match=case.reason) as said:
            load(str(folder))
        assert len(str(said.value)) < 1000
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_hostile_folder_is_refused(case: Case, models: tuple[Path, Path], tmp_path: Path) -> None:
    refused(case, models, tmp_path)


@pytest.mark.parametrize("case", PATIENT[::4], ids=lambda case: case.name)
def test_what_does_not_end_is_ended(case: Case, models: tuple[Path, Path], tmp_path: Path) -> None:
    refused(case, models, tmp_path)


def test_sound_folders_are_loaded(models: tuple[Path, Path]) -> None:
    base, adapter = models
    assert load(str(base)).model is not None
    assert load(str(adapter)).ref.adapter == str(adapter)
    assert load_tokenizer(str(base)).tokenizer.chat_template


def test_a_tokenizer_alone_is_looked_at_too(models: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(models[0] / "tokenizer.json", tmp_path)
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "vocab_file": "../secret"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    with pytest.raises(ModelError, match="lies outside of its folder"):
        load_tokenizer(str(tmp_path))


def test_an_outcome_is_kept_for_the_same_files_only(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(models[0], tmp_path / "model")
    checks.check_folder(folder)
    began = time.perf_counter()
    checks.check_folder(folder)
    assert time.perf_counter() - began < 0.1
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(ModelError, match="leave its sandbox"):
        checks.check_folder(folder)


def measured(folder: Path) -> tuple[float, int, str]:
    """Load a folder in a fork; return seconds, bytes that came on top, and what was said."""
    reads, writes = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        said, before = "it was loaded", resident()
        try:
            load(str(folder))
        except ModelError as refusal:
            said = str(refusal)
        except BaseException as other:
            said = f"{type(other).__name__}: {other}"
        own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        others = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        os.write(writes, json.dumps([max(own, 0), others, said[:2000]]).encode())
        os._exit(0)
    os.close(writes)
    signal.alarm(60)
    with os.fdopen(reads) as answer:
        own, others, said = json.loads(answer.read())
    signal.alarm(0)
    os.waitpid(child, 0)
    return time.monotonic() - began, own + others, said


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_every_hostile_folder_is_refused_in_time_and_memory(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    longest, largest = 0.0, 0
    for case in CASES:
        (tmp_path / case.name).mkdir()
        folder = make(case, *models, tmp_path / case.name)
        seconds, memory, said = measured(folder)
        if seconds >= SECONDS:  # somebody else may have had the processor
            seconds, memory, said = measured(folder)
        assert re.search(case.reason, said), f"{case.name}: {said}"
        assert seconds < SECONDS, f"{case.name}: {seconds:.1f} s"
        assert memory < MEMORY, f"{case.name}: {memory >> 20} MiB"
        longest, largest = max(longest, seconds), max(largest, memory)
        shutil.rmtree(tmp_path / case.name)
    tell("hostile folders refused by name", len(CASES), len(CASES))
    print(f"at most {longest:.2f} s and {largest >> 20} MiB")
