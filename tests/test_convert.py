"""``tunesmith convert``: weights come out of a pickle, nothing else does."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunesmith
from hostile.folders import CANARY, Command
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.errors import ModelError, UsageError
from tunesmith.export import convert, unpickle
from tunesmith.grading.sandbox import run as sandbox
from tunesmith.models.load import load

try:
    sandbox.mode_for(unsafe=False)
    CONFINED = True
except UsageError:
    CONFINED = False
confined = pytest.mark.skipif(not CONFINED, reason="nothing can be confined here")


def save_pickled(folder: Path, arch: str = "llama", parts: int = 1, **config: Any) -> Any:
    """Write a model as hubs had them: pickles, in parts with an index, tied weights shared."""
    model = tiny_model(arch, **config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    found = model.state_dict()
    names = list(found)
    if parts == 1:
        torch.save(OrderedDict(found), folder / "pytorch_model.bin")
        return model
    places = {}
    for part in range(parts):
        name = f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        torch.save({one: found[one].clone() for one in names[part::parts]}, folder / name)
        places |= dict.fromkeys(names[part::parts], name)
    (folder / convert.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return model


def same(folder: Path, model: Any) -> bool:
    """Say whether a folder's model says what another one does, to the bit."""
    ids = torch.tensor([[5, 9, 70]])
    with torch.inference_mode():
        return torch.equal(load(str(folder)).model(ids).logits, model(ids).logits)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read pickles in this process; the tests of confinement do not."""

    def ask(source: Path, target: Path, mode: Any, *, copies: bool) -> dict[str, Any]:
        return read(source, target, copies=copies)

    monkeypatch.setattr(convert, "convert_file", ask)
    monkeypatch.setattr(sandbox, "mode_for", lambda **given: "none")


def read(source: Path, target: Path, copies: bool = False) -> dict[str, Any]:
    with source.open("rb") as opened, target.open("wb") as made:
        size = source.stat().st_size
        try:
            return unpickle.convert(opened.fileno(), made.fileno(), size, copies=copies)
        except unpickle.Refused as refusal:
            said = json.dumps({"fault": str(refusal)}).encode()
            return convert._answer(said, source, 0, b"")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("arch", "config"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gpt2", {}), ("qwen3", {})],
    ids=["llama", "tied", "gpt2", "qwen3"],
)
def test_a_converted_model_is_the_same_to_the_bit(
    arch: str, config: dict[str, Any], parts: int, tmp_path: Path
) -> None:
    model = save_pickled(tmp_path / "old", arch, parts, **config)
    new = tunesmith.convert(folder=str(tmp_path / "old"), output=str(tmp_path / "new"))
    assert same(new, model)
    record = json.loads((new / "conversion.json").read_text())
    assert len(record["files"]) == parts
    assert len(list(new.glob("*.safetensors"))) == parts
    held = set().union(*(load_file(file) for file in new.glob("*.safetensors")))
    tied = parts == 1 and bool(model.config.tie_word_embeddings)
    assert ("lm_head.weight" in record["shared"]) == tied
    assert held == set(model.state_dict()) - set(record["shared"])


@pytest.mark.usefixtures("here")
def test_weights_that_are_not_tied_are_written_twice(tmp_path: Path) -> None:
    model = save_pickled(tmp_path / "old", tie_word_embeddings=False)
    found = model.state_dict()
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    torch.save(found, tmp_path / "old" / "pytorch_model.bin")
    new = tunesmith.convert(folder=str(tmp_path / "old"), output=str(tmp_path / "new"))
    held = load_file(new / "model.safetensors")
    assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])


class Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (os.environ[CANARY], "w")


class Evaluates:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (
            "__import__('pathlib').Path(__import__('os').environ['" + CANARY + "']).touch()",
        )


class Loads:
    """Runs another pickle, of which this one says nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(Command()),)


def rebuilt(numel: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Return an archive whose one tensor is more than what is stored."""
    held = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, held)
    raw = io.BytesIO()
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(raw, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = Wrong(numel, size, stride).dumps()
            new.writestr(entry.filename, data)
    return raw.getvalue()


class Wrong:
    def __init__(self, numel: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.given = numel, size, stride

    def __reduce__(self) -> tuple[Any, ...]:
        _, size, stride = self.given
        return torch._utils._rebuild_tensor_v2, (Place(), 0, size, stride, False, OrderedDict())

    def dumps(self) -> bytes:
        numel, raw = self.given[0], io.BytesIO()

        class Pickler(pickle.Pickler):
            def persistent_id(self, one: Any) -> Any:
                place = ("storage", torch.FloatStorage, "0", "cpu", numel)
                return place if isinstance(one, Place) else None

        Pickler(raw, protocol=2).dump({"a": self})
        return raw.getvalue()


class Place:
    pass


def archive(changed: Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], object]) -> bytes:
    held, raw = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(4)}, held)
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(raw, "w") as new:
        changed(new, [(entry.filename, old.read(entry)) for entry in old.infolist()])
    return raw.getvalue()


def bomb(new: zipfile.ZipFile, files: list[tuple[str, bytes]]) -> None:
    for name, data in files:
        inside = bytes(50 << 20) if name.endswith("data/0") else data
        new.writestr(name, inside, zipfile.ZIP_DEFLATED)


def outside(new: zipfile.ZipFile, files: list[tuple[str, bytes]]) -> None:
    for name, data in files:
        new.writestr(name, data)
    new.writestr("archive/../../secret", "secret")


def saved(value: Any, zipped: bool = True) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, _use_new_zipfile_serialization=zipped)
    return held.getvalue()


def huge_in_the_old_form() -> bytes:
    raw = saved({"a": torch.zeros(7)}, zipped=False)
    # The old form makes a storage of as many numbers as the pickle says.
    where = raw.index(b"cpu")
    at = raw.index(b"K\x07", where)
    return raw[:at] + b"\x8a\x07" + (1 << 50).to_bytes(7, "little") + raw[at + 2 :]


HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    ("system", lambda: pickle.dumps({"a": Command()}, 2), "wants to use .*system"),
    ("system of today", lambda: pickle.dumps({"a": Command()}), "other things than weights need"),
    ("system in an archive", lambda: saved({"a": Command()}), "wants to use .*system"),
    ("open", lambda: saved({"a": Opens()}), "wants to use .*open"),
    ("eval", lambda: saved({"a": Evaluates()}), "wants to use .*eval"),
    ("another pickle", lambda: saved({"a": Loads()}), "wants to use .*loads"),
    ("a whole model", lambda: saved(torch.nn.Linear(2, 2)), "wants to use torch.nn"),
    ("zip bomb", lambda: archive(bomb), "its archive is a bomb"),
    ("path", lambda: archive(outside), "names a place outside"),
    ("huge storage", lambda: rebuilt(1 << 50, (4,), (1,)), "claims far more|cannot be read"),
    ("huge in the old form", huge_in_the_old_form, "claims far more|cannot be read"),
    ("huge view", lambda: rebuilt(4, (1 << 40,), (1,)), "claims far more"),
    ("one number many times", lambda: rebuilt(4, (1 << 40,), (0,)), "claims 1,099,511,627,776"),
    ("list", lambda: saved([torch.zeros(2)]), "holds no weights by name, but a list"),
    ("nested", lambda: saved({"model": {"a": torch.zeros(2)}}), "'model' is no weight"),
    ("words", lambda: saved({"a": "text"}), "'a' is no weight, but a str"),
    ("sparse", lambda: saved({"a": torch.eye(3).to_sparse()}), "is no plain tensor"),
    ("noise", lambda: os.urandom(500), "was refused"),
    ("nothing", lambda: b"", "cannot be read"),
    ("cut", lambda: saved({"a": torch.zeros(99)})[:-300], "cannot be read"),
]


@pytest.mark.parametrize(("make", "reason"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_a_hostile_pickle_is_refused_and_does_nothing(
    make: Callable[[], bytes], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CANARY, str(tmp_path / "canary"))
    (tmp_path / "bad.bin").write_bytes(make())
    with pytest.raises(ModelError, match=reason) as said:
        read(tmp_path / "bad.bin", tmp_path / "new")
    assert "bad.bin was refused" in str(said.value)
    assert not (tmp_path / "canary").exists()
    assert (tmp_path / "new").stat().st_size == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["model.norm.weight"].fill_(float("nan")), "are not finite"),
        (lambda found: found.pop("model.norm.weight"), "lack 1 of this architecture's"),
        (lambda found: found.update({"model.norm.weight": torch.ones(7)}), "cannot be loaded"),
    ],
    ids=["nan", "missing", "shape"],
)
def test_a_pickle_of_other_weights_is_refused_and_nothing_is_left(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    model = save_pickled(tmp_path / "old")
    found = {name: value.clone() for name, value in model.state_dict().items()}
    change(found)
    torch.save(found, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        tunesmith.convert(folder=str(tmp_path / "old"), output=str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("here")
def test_what_has_no_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_pickled(tmp_path / "old")
    torch.save({**model.state_dict(), "head.weight": torch.ones(3)},
               tmp_path / "old" / "pytorch_model.bin")  # fmt: skip
    assert main(["convert", str(tmp_path / "old"), "--output", str(tmp_path / "new")]) == 0
    told = capsys.readouterr()
    assert "1 weights have no place in this architecture: head.weight" in told.err
    assert told.out == f"{tmp_path / 'new'}\n"


def test_an_index_is_held_to(tmp_path: Path, here: None) -> None:
    save_pickled(tmp_path / "old", parts=2)
    index = json.loads((tmp_path / "old" / convert.INDEX).read_text())
    names = list(index["weight_map"])
    index["weight_map"][names[0]] = index["weight_map"][names[-1]]
    (tmp_path / "old" / convert.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="of which its index does not say so"):
        tunesmith.convert(folder=str(tmp_path / "old"), output=str(tmp_path / "new"))
    index["weight_map"][names[0]] = "pytorch_model-00001-of-00002.bin"
    index["weight_map"]["more"] = "pytorch_model-00001-of-00002.bin"
    (tmp_path / "old" / convert.INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lack 'more' of their index"):
        tunesmith.convert(folder=str(tmp_path / "old"), output=str(tmp_path / "new"))


def test_what_cannot_be_converted_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"folder": str(tmp_path / "old"), "output": str(tmp_path / "new")}
    with pytest.raises(UsageError, match="old' is no folder"):
        tunesmith.convert(**given)
    (tmp_path / "old").mkdir()
    with pytest.raises(UsageError, match="old' holds no config"):
        tunesmith.convert(**given)
    save_pickled(tmp_path / "old")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle") as said:
        load(str(tmp_path / "old"))
    assert f"tunesmith convert {tmp_path / 'old'} --output" in said.value.hint
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "_possible", lambda: ("none", "why not"))
        with pytest.raises(UsageError, match=r"cannot be confined here \(why not\)"):
            tunesmith.convert(**given)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(UsageError, match="is there already"):
        tunesmith.convert(**given)
    (tmp_path / "new" / "mine").unlink()
    (tmp_path / "old" / "pytorch_model.bin").rename(tmp_path / "old" / "a.bin")
    (tmp_path / "old" / "b.pt").touch()
    with pytest.raises(UsageError, match=r"other pickles: a\.bin, b\.pt"):
        tunesmith.convert(**given)
    save_file({"a": torch.ones(1)}, tmp_path / "old" / "model.safetensors")
    with pytest.raises(UsageError, match="as safetensors already"):
        tunesmith.convert(**given)


@confined
def test_a_confined_process_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_pickled(tmp_path / "old", tie_word_embeddings=True)
    assert main(["convert", str(tmp_path / "old"), "--output", str(tmp_path / "new")]) == 0
    assert same(tmp_path / "new", model)
    told = capsys.readouterr().err
    assert "Read in a process of its own: no network, no files but this one" in told
    assert "lm_head.weight is model.embed_tokens.weight" in told


ESCAPES = """
import os, pathlib, socket
said = []
def tries(name, what):
    try:
        what()
        said.append(name)
    except BaseException:
        pass
tries("reads", lambda: pathlib.Path("/etc/passwd").read_text())
tries("lists", lambda: os.listdir({home!r}))
tries("writes", lambda: pathlib.Path({home!r}, "canary").touch())
tries("starts", lambda: os.fork() or os._exit(0))
tries("runs", lambda: os.access("/bin/sh", os.X_OK) or 1 / 0)
tries("connects", lambda: socket.create_connection(("127.0.0.1", {port}), 1))
tries("kills", lambda: os.kill({pid}, 0))
tries("asks", lambda: os.listdir("/proc/1"))
raise RuntimeError("escaped by: " + " ".join(said))
"""


class Runs:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.text, {})


@confined
def test_a_pickle_that_runs_all_the_same_gets_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own guard is taken away: what is left is the confinement."""
    import socket

    unguarded = convert._BOOT.replace(
        "unpickle.main(",
        "import pickle; unpickle.torch.load = lambda file, **_: pickle.load(file)\nunpickle.main(",
    )
    assert unguarded != convert._BOOT
    monkeypatch.setattr(convert, "_BOOT", unguarded)
    tmp_path.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as server:
        facts = {"home": str(tmp_path), "port": server.getsockname()[1], "pid": os.getpid()}
        (tmp_path / "bad.bin").write_bytes(pickle.dumps(Runs(ESCAPES.format(**facts))))
        # Without namespaces it runs and reads: what is tried below is no idle attempt.
        with pytest.raises(ModelError, match=r"it cannot be read: escaped by: .*reads"):
            convert.convert_file(tmp_path / "bad.bin", tmp_path / "old", "none", copies=False)
        mode = sandbox.mode_for(unsafe=False)
        with pytest.raises(ModelError, match=r"it cannot be read: escaped by:\.\n"):
            convert.convert_file(tmp_path / "bad.bin", tmp_path / "new", mode, copies=False)
    assert not (tmp_path / "canary").exists()
