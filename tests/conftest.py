"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tunesmith.workflows import console

ROOT = Path(__file__).parent.parent
settings.register_profile("day", max_examples=40)
settings.register_profile("night", max_examples=300)
settings.load_profile("night" if os.environ.get("TUNESMITH_NIGHTLY") else "day")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Let a flush check its descriptor and not wait: no test here has a power cut.

    That files are flushed, and when, is seen by tests that look at the calls.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
        yield


@pytest.fixture(scope="module", autouse=True)
def little_to_look_through() -> None:
    """Keep what has been imported out of the searches for garbage: some code here asks for one."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def shared() -> Path:
    """Return the folder of public data beside the checkout, or skip the test."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no shared data beside this checkout")
    return folder


@pytest.fixture
def tiny() -> Path:
    """Return the folder of the built-in base model."""
    return ROOT / "src" / "tunesmith" / "assets" / "tiny"


@pytest.fixture(autouse=True)
def usual_messages() -> None:
    """Show what a command shows by default, whatever level an earlier test has asked for."""
    console.set_level("info")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the cache of whoever runs them, and of one another's."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("cache")))


SHORT_SUITE = (
    '{"text": "The cat sat on the mat."}\n{"text": "It rained, and nobody came."}\n'
    '{"question": "What is 1 + 1?", "choices": ["2", "3"], "answer": "A", "kind": "sums"}\n'
)


@pytest.fixture(scope="session")
def short_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a general suite of three rows."""
    file = tmp_path_factory.mktemp("suite") / "general.jsonl"
    file.write_text(SHORT_SUITE)
    return file


@pytest.fixture(autouse=True)
def general_suite(
    request: pytest.FixtureRequest, short_suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let runs that are not about forgetting take three rows instead of seventy-six."""
    if not getattr(request.module, "WHOLE_SUITE", False):
        # By its name in full: ``tunesmith.evaluate`` is a function of the Python API, too.
        general = importlib.import_module("tunesmith.evaluate.general")
        monkeypatch.setattr(general, "SUITE", short_suite)


@pytest.fixture(autouse=True)
def short_samples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the answers on the way be short where a module is not about them."""
    if not getattr(request.module, "WHOLE_SAMPLES", False):
        monkeypatch.setattr("tunesmith.workflows.samples.LONGEST", 4)
