"""``tunesmith export``: a model for other programs, each form compared with what was trained."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_export import ExportOptions
from tunesmith.errors import ModelError, UsageError
from tunesmith.storage import settle_folder, whole_folder, write_json, write_text
from tunesmith.workflows import console
from tunesmith.workflows.export_manifest import KIND, MANIFEST, Making, files_of, manifest_of
from tunesmith.workflows.export_source import (
    Source,
    base_folder,
    find_source,
    prompts_of,
    read_json,
)
from tunesmith.workflows.opening import open_model

if TYPE_CHECKING:
    from tunesmith.export.hub import Hub

KINDS = {"f32": "float32", "f16": "float16", "q8_0": "q8_0"}
"""Types of GGUF, by the limits that hold for them."""
CONSUMERS = {
    "llama.cpp": "llama_cpp",
    "onnxruntime": "onnxruntime",
    "PEFT": "peft",
    "transformers": "transformers",
}
"""What reads an export, and the package that it is."""
PACKAGES = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript")}
"""What writes a format."""
READERS = {
    "adapter": "PEFT",
    "bundle": "transformers",
    "gguf": "llama.cpp",
    "merged": "transformers",
    "onnx": "onnxruntime",
}
"""What reads a format."""
INSTALL = {"llama.cpp": "pip install llama-cpp-python"}


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    manifest: dict[str, Any]


def command(resolved: Resolved[ExportOptions]) -> int:
    """Handle ``tunesmith export``; the folder's path goes to stdout."""
    print(_export(resolved.options).folder)
    return 0


def export(**settings: Any) -> Exported:
    """Export a model; settings are those of ``tunesmith export``.

    Raises ``ModelError`` where an export differs from the trained model; nothing is left of it.
    """
    return _export(resolve(ExportOptions, settings, origin="argument").options)


def _export(options: ExportOptions) -> Exported:
    target = Path(options.output_dir)
    settle_folder(target)
    _check_target(target, options.overwrite)
    source = find_source(options.model)
    _check_formats(options, source)
    hub = _hub(options)
    in_full = options.model_copy(update={"dtype": "float32"})
    loaded, renderer = open_model(in_full, bits=source.bits)
    prompts, origin = prompts_of(source.run)
    from tunesmith.export.parity import ask_trained

    trained = ask_trained(loaded, renderer, prompts, origin)
    console.say(f"Compared on {len(trained.prompts)} prompts ({origin}).")
    dtype = source.dtype if options.dtype == "auto" else options.dtype
    with whole_folder(target) as folder:
        making = Making(options, source, folder, loaded, renderer, trained, dtype)
        for make in _steps(options):
            make(making)
        _judge(making)
        for path in folder.rglob("*"):
            # The safetensors library keeps its files from everybody else, a server included.
            path.chmod(0o755 if path.is_dir() else 0o644)
        manifest = manifest_of(making)
        write_json(folder / MANIFEST, manifest)
    console.say(f"Export: {target}")
    if hub is not None:
        _push(hub, making, target)
    return Exported(target, manifest)


def _hub(options: ExportOptions) -> Hub | None:
    """Return the hub to push to, asked whether it knows us, before hours of work."""
    name = options.push_to_hub
    if name is None:
        return None
    [form, *more] = options.formats
    consumer = READERS[form]
    if more:
        raise UsageError("--push-to-hub takes one format.", hint=f"--formats {form}")
    if importlib.util.find_spec(CONSUMERS[consumer]) is None:
        raise UsageError(
            f"--push-to-hub uploads what was compared, and {consumer} is not installed.",
            hint=INSTALL.get(consumer, f"pip install {consumer}"),
        )
    from tunesmith.export.hub import Hub

    hub = Hub(name)
    console.say(f"Pushing to {name} as {hub.check()} when all is compared.")
    return hub


def _push(hub: Hub, making: Making, target: Path) -> None:
    """Upload an export that holds; whatever goes wrong, the folder stays."""
    form = making.options.formats[0]
    if not all(one is not None and one.holds for one in making.results.values()):
        raise ModelError(
            f"{target} was not compared with the trained model, so it was not pushed.",
            hint="--formats merged, or bundle",
        )
    private = making.options.private
    with console.bar(f"uploading to {hub.name}", 1):
        page = hub.push(target / form, private=private, say=console.say)
    console.say(f"On the hub, every file as here: {page}{' (private)' if private else ''}")


def _steps(options: ExportOptions) -> list[Callable[[Making], None]]:
    """Return what is to be made; the adapter before it is folded in, the rest after it."""
    steps: list[Callable[[Making], None]] = []
    if "adapter" in options.formats:
        steps.append(_adapter)
    if {"merged", "bundle", "gguf", "onnx"} & {*options.formats}:
        steps.append(_whole)
    return steps


def _adapter(making: Making) -> None:
    from tunesmith.export.weights import save_adapter

    save_adapter(making.loaded, making.renderer, making.folder / "adapter")
    if making.source.bits is None:
        _ask(making, "adapter", "PEFT", "float32")
        return
    making.results["adapter"] = None
    making.notes.append(
        f"The adapter was trained on its base in {making.source.bits}; loaded on the base as it is "
        "it gives slightly other logits, so the adapter alone was not compared."
    )


def _whole(making: Making) -> None:
    from tunesmith.export.weights import fold, save_merged

    options, loaded = making.options, making.loaded
    tokenizer = loaded.tokenizer
    folded = fold(loaded, making.source.bits)
    if folded.dequantised:
        making.notes.append(
            f"{folded.dequantised} quantised linear layers were made plain before the adapter was "
            "folded in: the weights are those that the figures were taken with."
        )
    if "gguf" in options.formats:
        _gguf(making, folded.model)
    if "onnx" in options.formats:
        _onnx(making, folded.model)
    for name in ("merged", "bundle"):
        if name in options.formats:
            save_merged(folded, tokenizer, making.renderer, making.folder / name, making.dtype)
            _ask(making, name, "transformers", making.dtype)
            if name == "bundle":
                _bundle(making)


def _bundle(making: Making) -> None:
    """Add card, licence, smoke test and Dockerfile to the model, then run the smoke test."""
    from tunesmith.export.bundle import add_bundle, licence_of, run_smoke_test, story_of

    source, folder = making.source, making.folder / "bundle"
    run = source.run
    manifest = read_json(run.manifest) if run else {}
    named = str(manifest.get("base") or source.base_name())
    base = base_folder(named) or Path(source.ref.path)
    story = story_of(
        run.path.name if run else Path(source.ref.name).name,
        # A path of this machine says nothing elsewhere.
        Path(named).name if Path(named).is_absolute() else named,
        making.options.license or licence_of(base),
        manifest,
        read_json(run.eval / "comparison.json") if run else {},
        making.notes,
        source.hashes,
    )
    add_bundle(folder, story, base)
    write_json(folder / MANIFEST, {"kind": KIND, "files": files_of(folder, source)})
    found = making.results["bundle"]
    fault = None if found is None else run_smoke_test(folder)
    if found is not None and fault is not None:
        found.faults.append(fault)


def _gguf(making: Making, model: Any) -> None:
    """Write the GGUF files from the weights in float32, and a Modelfile for the first of them."""
    from tunesmith.export.gguf_file import write_gguf
    from tunesmith.export.ollama import modelfile

    folder = making.folder / "gguf"
    folder.mkdir()
    tokenizer, types = making.loaded.tokenizer, list(dict.fromkeys(making.options.gguf_types))
    name = making.source.run.path.name if making.source.run else making.source.ref.name
    for kind in types:
        path = folder / f"model-{kind}.gguf"
        wide = write_gguf(model, tokenizer, making.renderer, kind, path, name)
        if wide:
            making.notes.append(f"{path.name}: {wide} matrices stay in f16, as no rows of 32.")
        tabled = kind == "f32" and model.config.model_type == "gpt2"
        limit = "float32 with tables" if tabled else KINDS[kind]
        _ask(making, f"gguf/{path.name}", "llama.cpp", limit)
    text, said = modelfile(tokenizer, making.renderer, f"model-{types[0]}.gguf")
    write_text(folder / "Modelfile", text)
    if not said:
        making.notes.append(
            "The chat template cannot be said in Ollama's language; its Modelfile has none."
        )


def _onnx(making: Making, model: Any) -> None:
    """Write the ONNX graph from the weights in float32, with all that its user needs besides."""
    from tunesmith.export.onnx_file import write_onnx
    from tunesmith.export.weights import save_words

    folder = making.folder / "onnx"
    folder.mkdir()
    with console.bar("tracing the graph", 1):
        write_onnx(model, folder)
    model.config.save_pretrained(folder)
    save_words(making.loaded.tokenizer, making.renderer, model.generation_config, folder)
    _ask(making, "onnx", "onnxruntime", "float32")


def _ask(making: Making, path: str, consumer: str, kind: str) -> None:
    """Let an export's consumer read it, where it is installed."""
    from tunesmith.export.parity import ask_consumer

    if importlib.util.find_spec(CONSUMERS[consumer]) is None:
        making.results[path], making.missing[path] = None, consumer
        return
    with console.bar(f"comparing {path}", 1):
        found = ask_consumer(consumer, making.folder / path, making.trained, kind)
    making.results[path] = found


def _judge(making: Making) -> None:
    """Show what was found; a difference over its limit ends the export."""
    found = {path: one for path, one in making.results.items() if one is not None}
    if found:
        columns = ["export", "by", "logits", "KL", "top-1", "greedy"]
        console.table("Exports against the trained model", columns, [
            [path, one.consumer, f"{one.relative:.1e}", f"{one.kl:.1e}", f"{one.top1:.1%}",
             f"{one.greedy}/{one.answers}" + (f" +{one.ties}" if one.ties else "")]
            for path, one in found.items()
        ])  # fmt: skip
        console.say(
            "logits: largest difference over the largest logit; KL: mean, in nats; greedy: answers "
            "alike, + those that part between two tokens equally likely within rounding."
        )
    for note in making.notes:
        console.say(note)
    for path, consumer in making.missing.items():
        hint = INSTALL.get(consumer, f"pip install {consumer}")
        console.warn(f"{path} is unverified: {consumer} is not installed ({hint})")
    faults = [f"{path}: {fault}" for path, one in found.items() for fault in one.faults]
    if faults:
        raise ModelError(
            "The export differs from the trained model and was not kept:\n" + "\n".join(faults),
            expected="what the trained model says, within rounding",
            hint="--dtype float32, if the type of the weights rounds too much",
        )


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse a folder that is there already, unless it is an export and may be replaced."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        found = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        ours = isinstance(found, dict) and found.get("kind") == KIND
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UsageError(
            f"{str(target)!r} is there already, and no export of tunesmith made it.",
            hint="another --output-dir",
        )
    if not overwrite:
        raise UsageError(
            f"{str(target)!r} holds an export already.", hint="--overwrite, or another --output-dir"
        )


def _check_formats(options: ExportOptions, source: Source) -> None:
    """Refuse what cannot be made, and settings that would do nothing."""
    for name, packages in PACKAGES.items():
        missing = [one for one in packages if importlib.util.find_spec(one) is None]
        if name in options.formats and missing:
            raise UsageError(
                f"--formats {name} needs the package {missing[0]}, which is missing.",
                hint=f"pip install 'tunesmith[{name}]'",
            )
    if "adapter" in options.formats and not source.ref.adapter:
        raise UsageError(
            f"{source.ref.described} has no adapter.", hint="--formats merged, or bundle"
        )
    if options.private and options.push_to_hub is None:
        raise UsageError("--private does nothing without --push-to-hub.")
    known = ExportOptions.model_fields
    uses = {"dtype": ("merged", "bundle"), "gguf_types": ("gguf",), "license": ("bundle",)}
    for name, formats in uses.items():
        changed = getattr(options, name) != known[name].get_default(call_default_factory=True)
        if changed and not {*formats} & {*options.formats}:
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing without --formats {' or '.join(formats)}."
            )
