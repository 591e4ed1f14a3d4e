"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.workflows import console

ROOT = Path(__file__).parent.parent


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
