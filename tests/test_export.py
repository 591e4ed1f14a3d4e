"""``tunesmith export``: what is written is what was trained, or nothing is left of it."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunesmith
from tiny_models import CHATML, tiny_model, tiny_tokenizer
from tunesmith.cli import main
from tunesmith.data.render import Renderer
from tunesmith.errors import ModelError, UsageError
from tunesmith.export import bundle, parity, reader, weights
from tunesmith.export.parity import Trained, ask_trained, compare
from tunesmith.models.adapters import add_lora
from tunesmith.models.folder import check_folder
from tunesmith.models.load import load
from tunesmith.types import Segment
from tunesmith.workflows import export as workflow
from tunesmith.workflows.export_source import BUILT_IN

eight = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def save_base(folder: Path, **settings: Any) -> Path:
    tiny_model("llama", **settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_lora(base: Path, folder: Path) -> Path:
    """Write an adapter that changes what its base says."""
    model = add_lora(load(str(base)).model, rank=4, alpha=8, base_name=str(base))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder, save_embedding_layers=False)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """Return a run folder as training leaves it, with scores and sources."""
    run = base.parent / "runs" / "units_rows"
    save_lora(base, run / "final_model")
    (run / "config.yaml").write_text("task: units\n")
    source = {"source": "a|b<script>.jsonl", "rows": 7, "held_out": 2, "sha256": "f00d"}
    made = {"task": "units", "steps": 3, "base": str(base), "losses": ["It fell."]}
    (run / "manifest.json").write_text(json.dumps({**made, "sources": [source]}))
    (run / "eval").mkdir()
    score = {"accuracy": 0.5, "graded": 20, "accuracy_interval": {"low": 0.25, "high": 0.75}}
    scores = {"summaries": {"tuned": score}, "pairs": [{"sentence": "No clear difference."}]}
    (run / "eval" / "comparison.json").write_text(json.dumps(scores))
    lines = [{"step": 1, "prompt": f"How many are {n}?\u2028\x85"} for n in range(4)]
    rows = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (run / "samples.jsonl").write_text("".join(rows))
    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let consumers read in this process, through fresh objects; a slow test starts real ones."""

    def ask(consumer: str, path: Path, trained: Trained, kind: str, base: str | None = None) -> Any:
        request = json.loads(json.dumps({**trained.request(), "base": base}))
        said, logits = reader.transformers_model(str(path), request, peft=consumer == "PEFT")
        found = [torch.from_numpy(logits[str(n)]) for n in range(len(logits))]
        return compare(consumer, kind, trained, said, found)

    monkeypatch.setattr(parity, "ask_consumer", ask)
    monkeypatch.setattr(parity, "ANSWER_TOKENS", 6)
    monkeypatch.setattr(bundle, "run_smoke_test", lambda folder: None)


@pytest.mark.usefixtures("here")
def test_every_form_of_an_adapter_equals_it(run: Path, tmp_path: Path) -> None:
    done = tunesmith.export(
        model=str(run), output_dir=str(tmp_path / "out"), formats=["merged", "adapter", "bundle"]
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == done.manifest
    assert manifest["prompts"] == {"of": "held-out rows of the run", "number": 4}
    assert manifest["parity"].keys() == {"merged", "adapter", "bundle"}
    for found in manifest["parity"].values():
        assert found["verified"]
        assert found["greedy"] == found["answers"] == 4
        assert found["relative"] < 1e-4
    listed = {entry["path"]: entry for entry in manifest["files"]}
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert {str(p.relative_to(tmp_path / "out")) for p in files} == {*listed, "manifest.json"}
    assert listed["merged/model.safetensors"]["from"] == "the adapter and its base"
    assert listed["adapter/adapter_model.safetensors"]["bytes"] > 1000
    assert not (tmp_path / "out" / "merged" / "adapter_config.json").exists()
    for name in ("merged", "adapter", "bundle"):
        assert (tmp_path / "out" / name / "chat_template.jinja").read_text() == CHATML
        stops = json.loads((tmp_path / "out" / name / "generation_config.json").read_text())
        assert stops["eos_token_id"] == [3]
    assert (tmp_path / "out" / "merged" / "model.safetensors").stat().st_mode & 0o044 == 0o044
    # No path of this machine leaves it: the adapter names its base, and a note says so.
    path = str(run.parent.parent).encode()
    given = [p for p in files if p.parent.name == "adapter"]
    assert [p.name for p in given if path in p.read_bytes()] == []
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert "a folder of its own, 'base'" in manifest["notes"][0]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_saved_in_the_type_that_is_asked_for(
    dtype: str, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = {"model": str(run), "output_dir": str(out), "formats": ["merged"], "dtype": dtype}
    found = tunesmith.export(**given).manifest
    assert found["dtype"] == found["parity"]["merged"]["kind"] == dtype
    assert json.loads((out / "merged" / "config.json").read_text())["dtype"] == dtype
    assert 0 < found["parity"]["merged"]["kl"] < 1e-2


@pytest.fixture(scope="module")
def asked(base: Path) -> tuple[Trained, dict[str, Any]]:
    """Return what a model said, and a consumer that says just the same."""
    loaded = load(str(base))
    trained = ask_trained(loaded, Renderer(loaded.tokenizer), BUILT_IN, "built-in ones")
    said, _ = reader.transformers_model(str(base), trained.request(), peft=False)
    return trained, said


def test_a_model_equals_itself(asked: tuple[Trained, dict[str, Any]]) -> None:
    trained, said = asked
    found = compare("transformers", "float32", trained, said, trained.logits)
    assert found.holds
    assert (found.largest, found.kl, found.top1, found.greedy) == (0.0, 0.0, 1.0, 6)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("logits", "logits differ by up to"),
        ("kl", "the mean KL is"),
        ("answers", "1 of 6 greedy answers differ"),
        ("prompts", "1 of 6 prompts come out as other tokens"),
        ("texts", "1 of 5 texts are cut into other tokens"),
        ("ends", "do not end an answer"),
        ("template", "the chat template is another one"),
        ("nan", "its logits are not finite"),
        ("words", "it has another number of words"),
    ],
)
def test_each_difference_is_found(
    key: str, fault: str, asked: tuple[Trained, dict[str, Any]]
) -> None:
    trained, said = asked[0], copy.deepcopy(asked[1])
    logits = [one.clone() for one in trained.logits]
    if key == "logits":
        logits[0][3, int(logits[0][3].argmin())] -= 0.05 * float(logits[0].abs().max())
    elif key == "kl":
        logits = [one * 1.02 for one in logits]
    elif key == "nan":
        logits[0][0, 0] = float("nan")
    elif key == "words":
        logits = [one[:, :-1] for one in logits]
    elif key == "answers":
        worst = int(trained.logits[0][-2].argmin())
        said["answers"][0][-1] = worst
    elif key in ("prompts", "texts"):
        said[key][0] = said[key][0][:-1]
    else:
        said[key] = [] if key == "ends" else "{{ messages }}"
    found = compare("transformers", "float32", trained, said, logits)
    assert any(fault in one for one in found.faults), found.faults
    assert not found.holds


def test_a_tie_within_rounding_is_no_difference(asked: tuple[Trained, dict[str, Any]]) -> None:
    trained, said = asked[0], copy.deepcopy(asked[1])
    logits = [one.clone() for one in trained.logits]
    row = logits[0][-2]
    first, second = row.topk(2).indices.tolist()
    gap = float(row[first] - row[second])
    row[first] -= 0.6 * gap
    said["answers"][0][-1] = second
    found = compare("transformers", "bfloat16", trained, said, logits)
    assert (found.greedy, found.ties) == (5, 1)


@pytest.mark.usefixtures("here")
def test_an_export_that_differs_is_an_error_and_leaves_what_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--model-path", str(run), "--output-dir", str(tmp_path / "out")]
    words += ["--formats", "merged"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    before = (tmp_path / "out" / "merged" / "model.safetensors").read_bytes()
    save = weights.save_merged

    def spoilt(folded: Any, *given: Any) -> None:
        with torch.no_grad():
            folded.model.model.norm.weight.mul_(1.1)
        save(folded, *given)

    monkeypatch.setattr(weights, "save_merged", spoilt)
    assert main([*words, "--overwrite"]) == 5
    said = capsys.readouterr().err
    assert "was not kept" in said
    assert "merged: logits differ" in said
    assert (tmp_path / "out" / "merged" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("here")
def test_a_consumer_that_is_not_installed_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(workflow.CONSUMERS, "PEFT", "no_such_package")
    out = str(tmp_path / "out")
    found = tunesmith.export(model=str(run), output_dir=out, formats=["adapter"]).manifest
    assert found["parity"]["adapter"] == {
        "verified": False, "consumer": "PEFT", "why": "not installed"
    }  # fmt: skip
    assert "adapter is unverified: PEFT is not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_folder_is_replaced_only_if_it_is_an_export(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given: dict[str, Any] = {"model": str(base), "output_dir": str(out), "formats": ["merged"]}
    (out / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match="no export of tunesmith made it"):
        tunesmith.export(**given, overwrite=True)
    assert (out / "mine").is_dir()
    shutil.rmtree(out)
    out.mkdir()
    tunesmith.export(**given)
    with pytest.raises(UsageError, match="holds an export already"):
        tunesmith.export(**given)
    tunesmith.export(**given, overwrite=True)


@pytest.mark.usefixtures("here")
def test_an_export_that_a_kill_left_beside_its_place_comes_back(base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": str(base), "formats": ["merged"]}
    out = tmp_path / "out"
    tunesmith.export(**given, output_dir=str(out))
    out.rename(tmp_path / ".out.before")
    with pytest.raises(UsageError, match="holds an export already"):
        tunesmith.export(**given, output_dir=str(out))
    assert (out / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ["adapter"]}, "has no adapter"),
        ({"formats": ["adapter"], "dtype": "float16"}, "has no adapter"),
        ({"formats": ["merged"], "gguf_types": ["f32"]}, "--gguf-types does nothing"),
        ({"formats": ["merged"], "license": "MIT"}, "--license does nothing"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_loaded(
    settings: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        tunesmith.export(model=str(base), output_dir=str(tmp_path / "out"), **settings)
    assert not list(tmp_path.iterdir())


def test_gguf_without_its_package_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package gguf"):
        tunesmith.export(model=str(base), output_dir=str(tmp_path / "out"), formats=["gguf"])


@pytest.mark.usefixtures("here")
def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=r"up_proj\.weight holds numbers that float16 cannot"):
        tunesmith.export(
            model=str(tmp_path / "base"),
            output_dir=str(tmp_path / "out"),
            formats=["merged"],
            dtype="float16",
        )
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pickle"):
        tunesmith.export(model=str(base), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FLOOD = "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"
SWELL = (
    "{% set n = namespace(t='x') %}{% for a in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}"
)


ASKED = "{% if add_generation_prompt %}" + BOMB + "{% endif %}"


@pytest.mark.parametrize(
    "template", [BOMB, FLOOD, SWELL, ASKED], ids=["bomb", "flood", "swell", "asked"]
)
@pytest.mark.parametrize("config", [False, True], ids=["file", "config"])
def test_a_template_that_does_not_end_is_refused(
    template: str, config: bool, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHATML if config else template)
    if config:
        named = [{"name": "default", "template": template}]
        (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(ModelError, match=r"chat template of .* takes over"):
        tunesmith.export(model=str(base), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    given = {"model": str(base), "output_dir": str(tmp_path / "out")}
    (tmp_path / "secret").write_text("secret")
    (base / "chat_template.jinja").unlink()
    (base / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out of its folder"):
        tunesmith.export(**given)
    (base / "chat_template.jinja").unlink()
    index = {"weight_map": {"lm_head.weight": "../secret"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names '\.\./secret', which lies outside"):
        tunesmith.export(**given)
    assert not (tmp_path / "out").exists()


def test_the_links_of_the_hubs_cache_are_followed(base: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "f00d"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for number, path in enumerate(base.iterdir()):
        blob = tmp_path / "models--a--b" / "blobs" / str(number)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    check_folder(snapshot)


@eight
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_layers_are_made_plain_before_the_adapter_is_folded_in(
    bits: str, run: Path
) -> None:
    loaded = load(str(run), bits=bits)
    ids = torch.tensor([[5, 9, 40, 7, 100, 31]])
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        folded = weights.fold(loaded, bits)
        after = folded.model(input_ids=ids).logits
        plain = weights.fold(load(str(run))).model(input_ids=ids).logits
    assert folded.folded
    assert folded.dequantised == 14
    # Eight bits round their inputs, too.
    assert float((before - after).abs().max() / before.abs().max()) < (
        1e-4 if bits == "4bit" else 0.05
    )
    assert float((plain - after).abs().max()) > 1e-3
    assert not any("Linear4bit" in type(m).__name__ for m in folded.model.modules())


@pytest.mark.usefixtures("here")
def test_the_bundle_tells_scores_lineage_and_licence(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tunesmith.export(model=str(run), output_dir=str(out), license="MIT")
    card = (out / "bundle" / "README.md").read_text()
    assert 'license: "MIT"' in card
    assert "| tuned | 50.0% | 25.0 to 75.0 | 20 |" in card
    assert "- No clear difference." in card
    assert "- It fell." in card
    assert r"| a\|b\<script\>.jsonl | 7 | 2 | f00d |" in card
    assert str(tmp_path.parent) not in card
    assert "Written, not claimed" in (out / "bundle" / "Dockerfile").read_text()
    assert json.loads((out / "manifest.json").read_text())["dtype"] == "float32"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("same", [True, False])
def test_scores_are_told_of_the_weights_that_have_them(
    same: bool, run: Path, base: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "final_model", own / "best_model")
    if not same:
        state = load_file(own / "best_model" / "adapter_model.safetensors")
        halved = {name: value / 2 for name, value in state.items()}
        save_file(halved, own / "best_model" / "adapter_model.safetensors")
    out = tmp_path / "out"
    tunesmith.export(model=str(own / "best_model"), output_dir=str(out), formats=["bundle"])
    card = (out / "bundle" / "README.md").read_text()
    assert ("| tuned | 50.0%" in card) is same
    assert ("- It fell." in card) is same
    assert ("was not evaluated" in card) is not same
    assert ("at most 3 steps" in card) is not same
    assert r"| a\|b" in card


@pytest.mark.usefixtures("here")
def test_samples_that_cannot_be_read_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    (own / "samples.jsonl").write_text('{"step": 1}\n')
    given = {"model": str(own), "output_dir": str(tmp_path / "out"), "formats": ["merged"]}
    assert tunesmith.export(**given).manifest["prompts"]["of"] == "built-in ones"
    assert "samples.jsonl cannot be read" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("here")
def test_the_smoke_test_finds_what_was_changed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.export import smoke_test

    folder = tmp_path / "out" / "bundle"
    tunesmith.export(model=str(run), output_dir=str(tmp_path / "out"))
    assert smoke_test.damaged(folder) == []
    assert smoke_test.answer(folder, "How many?")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    (folder / "config.json").unlink()
    assert smoke_test.damaged(folder) == [
        "config.json is missing",
        "model.safetensors is not the file that was exported",
    ]


def test_a_licence_is_copied_but_no_link_is_followed(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "bundle"
    base.mkdir()
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (base / "LICENSE").write_text("MIT")
    (base / "NOTICE").symlink_to(tmp_path / "secret")
    (base / "README.md").write_text("---\ntags: [a]\nlicense: mit\n---\n")
    bundle.add_bundle(folder, bundle.Story("x", "y", "z", bundle.licence_of(base)), base)
    assert (folder / "LICENSE").read_text() == "MIT"
    assert not (folder / "NOTICE").exists()
    assert 'license: "mit"' in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: mit", "mit"),
        ("license: 'apache-2.0' # see below", "apache-2.0"),
        ("license:\n- mit\n- bsd", "mit, bsd"),
        ("license:\nlanguage: en", "not stated by the base"),
        ("license: {a: b}", "not stated by the base"),
        ("license: [", "not stated by the base"),
        ("tags: [license]", "not stated by the base"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_licence_is_what_the_bases_card_says(
    head: str, licence: str, end: str, tmp_path: Path
) -> None:
    card = f"---\n{head}\n---\nlicense: no\n".replace("\n", end)
    (tmp_path / "README.md").write_bytes(card.encode())
    assert bundle.licence_of(tmp_path) == licence


@pytest.mark.usefixtures("here")
def test_a_recipe_exports_and_does_so_once(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(f"model: {base}\nstages:\n- export: {{formats: [merged]}}\n")
    words = ["run", str(recipe), "--output-dir", str(tmp_path / "runs")]
    assert main(words) == 0
    assert (tmp_path / "runs" / "small" / "export" / "export" / "merged" / "config.json").is_file()
    capsys.readouterr()
    assert main(words) == 0
    assert "unchanged, not run again" in capsys.readouterr().err
    assert main([*words, "export.dtype=bfloat16"]) == 0
    assert "settings.dtype" in capsys.readouterr().err


def test_prompts_that_do_not_fit_are_left_out(base: Path) -> None:
    loaded = load(str(base))
    long = (Segment("user", "x" * 400),)
    renderer = Renderer(loaded.tokenizer)
    assert len(ask_trained(loaded, renderer, [long, *BUILT_IN], "").prompts) == len(BUILT_IN)
    with pytest.raises(ModelError, match="No prompt fits"):
        ask_trained(loaded, renderer, [long], "")


SETTINGS = [
    ("model", "../other", ["merged"]),
    ("dtype", "bfloat16", ["merged"]),
    ("chat_template", "plain", ["merged"]),
    ("license", "MIT", ["bundle"]),
    ("formats", ["bundle"], ["merged"]),
]
ELSEWHERE = {
    "output_dir": "every test here",
    "overwrite": "test_a_folder_is_replaced_only_if_it_is_an_export",
    "gguf_types": "test_gguf",
    "push_to_hub": "test_push",
    "private": "test_push: test_what_went_up_is_the_folder",
    "device": "test_backends: where a model is loaded",
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "value", "formats"), SETTINGS, ids=str)
def test_a_setting_changes_what_is_exported(
    name: str, value: Any, formats: list[str], base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "here").mkdir()
    save_base(tmp_path / "other", seed=1)
    monkeypatch.chdir(tmp_path / "here")
    common = {"model": str(base), "formats": formats}
    first = tunesmith.export(**common, output_dir="one").manifest
    second = tunesmith.export(**{**common, name: value}, output_dir="two").manifest
    hashes = [{f["path"]: f["sha256"] for f in one["files"]} for one in (first, second)]
    assert hashes[0] != hashes[1]


def test_the_table_of_settings_is_complete() -> None:
    from tunesmith.config.schema_export import ExportOptions

    assert {name for name, _, _ in SETTINGS} | ELSEWHERE.keys() == ExportOptions.model_fields.keys()


@pytest.mark.slow
def test_real_consumers_in_processes_of_their_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    formats = ["merged", "adapter", "bundle"]
    found = tunesmith.export(model=str(run), output_dir=str(out), formats=formats).manifest
    assert all(one["verified"] for one in found["parity"].values())
    shutil.copytree(out / "bundle", tmp_path / "elsewhere")
    command = [sys.executable, str(tmp_path / "elsewhere" / "smoke_test.py"), "Hello?"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert bundle.run_smoke_test(out / "bundle") is None
    (out / "bundle" / "config.json").write_text("{}")
    assert "config.json is not the file" in str(bundle.run_smoke_test(out / "bundle"))
