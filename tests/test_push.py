"""``tunesmith export --push-to-hub``: only what holds goes up, and what went up is what is here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_hub import TOKEN, State, hub
from test_export import here, save_base
from tunesmith.cli import main
from tunesmith.export import weights
from tunesmith.workflows import export as workflow

__all__ = ["here"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Return a hub that the usual variables lead to; its client does not wait between tries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    with hub() as state:
        monkeypatch.setenv("HF_ENDPOINT", state.address)
        yield state


def push(base: Path, out: Path, *more: str) -> int:
    words = ["export", "--model", str(base), "--output-dir", str(out), "--formats", "merged"]
    return main([*words, "--push-to-hub", "ada/units", *more])


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("private", [False, True])
def test_what_went_up_is_the_folder(
    private: bool, base: Path, there: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(base, tmp_path / "out", *(["--private"] if private else [])) == 0
    assert there.files["ada/units"] == files(tmp_path / "out" / "merged")
    assert there.repos == {"ada/units": private}
    told = capsys.readouterr()
    assert "Pushing to ada/units as ada when all is compared." in told.err
    assert f"On the hub, every file as here: {there.address}/ada/units" in told.err
    assert told.out == f"{tmp_path / 'out'}\n"
    assert TOKEN not in told.err


@pytest.mark.usefixtures("here")
def test_an_unknown_token_is_said_before_anything_is_made(
    base: Path, there: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert push(base, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "The hub does not know the token for 'ada/units' (error 401)." in told
    assert "hf_bad" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_no_token_no_name_and_no_hub_are_said(
    base: Path, there: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["export", "--model", str(base), "--output-dir", str(tmp_path / "out"), "--formats"]
    for name in ("units", "a/b/c", "../etc", "a/ b", ""):
        assert main([*words, "merged", "--push-to-hub", name]) == 2
        assert "--push-to-hub takes the name of a repository" in capsys.readouterr().err
    assert main([*words, "merged", "bundle", "--push-to-hub", "ada/units"]) == 2
    assert "--push-to-hub takes one format" in capsys.readouterr().err
    assert main([*words, "merged", "--private"]) == 2
    assert "--private does nothing without --push-to-hub" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.delenv("HF_TOKEN")
        patched.setattr("huggingface_hub.get_token", lambda: None)
        assert push(base, tmp_path / "out") == 2
    assert "needs a token, and there is none" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setenv("HF_ENDPOINT", "http://no.such.host.invalid")
        assert push(base, tmp_path / "out") == 2
    assert "no.such.host.invalid cannot be reached" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setitem(workflow.CONSUMERS, "transformers", "no_such_package")
        assert push(base, tmp_path / "out") == 2
    assert "uploads what was compared, and transformers is not" in capsys.readouterr().err
    assert there.asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("times", [1, 8])
def test_an_upload_that_breaks_off_goes_on(
    times: int, base: Path, there: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there.break_off = times
    assert push(base, tmp_path / "out") == 0
    assert there.files["ada/units"] == files(tmp_path / "out" / "merged")
    assert ("once more, 2 of 3" in capsys.readouterr().err) == (times == 8)


@pytest.mark.usefixtures("here")
def test_an_upload_that_never_ends_is_a_sentence_and_the_export_stays(
    base: Path, there: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there.break_off = 1000
    assert push(base, tmp_path / "out") == 5
    told = capsys.readouterr().err
    assert "The upload to 'ada/units' broke off 3 times" in told
    assert f"hf upload ada/units {tmp_path / 'out' / 'merged'}" in told
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert there.files["ada/units"] == {}


@pytest.mark.usefixtures("here")
def test_what_arrives_otherwise_is_found(
    base: Path, there: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there.spoil = True
    assert push(base, tmp_path / "out") == 5
    told = capsys.readouterr().err
    assert "files on the hub are not those of the folder: model.safetensors" in told


@pytest.mark.usefixtures("here")
def test_other_files_are_named_and_a_public_place_takes_nothing_private(
    base: Path, there: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there.repos["ada/units"] = False
    there.files["ada/units"] = {"old.bin": b"1", ".gitattributes": b""}
    assert push(base, tmp_path / "one", "--private") == 2
    assert "is there already and public, so nothing was uploaded" in capsys.readouterr().err
    assert set(there.files["ada/units"]) == {"old.bin", ".gitattributes"}
    assert push(base, tmp_path / "two") == 0
    assert "Other files lie in ada/units as before: old.bin." in capsys.readouterr().err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("part", "code", "exit_code", "sentence"),
    [
        ("repos/create", 403, 2, "does not let the token write for 'ada/units' (error 403)"),
        ("/commit/", 413, 5, "The hub refuses 'ada/units' (error 413)"),
        ("preupload", 503, 5, "broke off 3 times: error 503 of the hub"),
    ],
)
def test_a_refusal_of_the_hub_is_a_sentence(
    part: str, code: int, exit_code: int, sentence: str, base: Path, there: State, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    there.fail[part] = code
    assert push(base, tmp_path / "out") == exit_code
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told
    assert (tmp_path / "out" / "merged" / "config.json").is_file()


@pytest.mark.usefixtures("here")
def test_what_differs_is_not_pushed(
    base: Path, there: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = weights.save_merged

    def spoilt(folded: Any, *given: Any) -> None:
        with torch.no_grad():
            folded.model.model.norm.weight.mul_(1.1)
        save(folded, *given)

    monkeypatch.setattr(weights, "save_merged", spoilt)
    assert push(base, tmp_path / "out") == 5
    assert [line for line in there.asked if not line.endswith("whoami-v2")] == []


def test_the_manifest_names_no_token(base: Path, there: State, tmp_path: Path, here: None) -> None:
    assert push(base, tmp_path / "out") == 0
    assert TOKEN not in json.dumps(json.loads((tmp_path / "out" / "manifest.json").read_text()))
