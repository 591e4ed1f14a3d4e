"""What an export is while it is made, and the manifest that says it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.config.schema_export import ExportOptions
from tunesmith.storage import hash_file
from tunesmith.workflows.export_source import Source

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.export.parity import Parity, Trained
    from tunesmith.models.load import LoadedModel

KIND = "tunesmith.export"
MANIFEST = "manifest.json"


@dataclass(slots=True)
class Making:
    """An export while it is made."""

    options: ExportOptions
    source: Source
    folder: Path
    """Where it is written, to be moved to its place at the end."""
    loaded: LoadedModel
    renderer: Renderer
    trained: Trained
    dtype: str
    results: dict[str, Parity | None] = field(default_factory=dict)
    """By path inside the folder; None where the consumer is not installed."""
    missing: dict[str, str] = field(default_factory=dict)
    """The consumers that are not installed, by the path that they would have read."""
    notes: list[str] = field(default_factory=list)


def manifest_of(making: Making) -> dict[str, Any]:
    """Return what the export's manifest says: origin, numbers of the gate, notes, every file."""
    source, trained = making.source, making.trained
    checks: dict[str, Any] = {}
    for path, one in making.results.items():
        checks[path] = one.to_json() if one else {"verified": False, **_why(making, path)}
    return {
        "kind": KIND,
        "tunesmith": __version__,
        "model": source.ref.described,
        "source": source.to_json(),
        "formats": list(making.options.formats),
        "dtype": making.dtype,
        "template": making.renderer.fingerprint,
        "prompts": {"of": trained.origin, "number": len(trained.prompts)},
        "parity": checks,
        "notes": making.notes,
        "files": files_of(making.folder, source),
    }


def _why(making: Making, path: str) -> dict[str, Any]:
    consumer = making.missing.get(path)
    return {"consumer": consumer, "why": "not installed" if consumer else "not compared; see notes"}


def files_of(folder: Path, source: Source) -> list[dict[str, Any]]:
    """Return each file of a folder with its size, its SHA-256, and what it was made from."""
    origin = "the adapter" if source.ref.adapter else "the model"
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
            "from": _origin(path.name, origin),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    ]


def _origin(name: str, weights: str) -> str:
    if name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "added_tokens")):
        return "the tokenizer of the model"
    if name == "chat_template.jinja":
        return "the template of the training rows"
    if name == "generation_config.json":
        return "the model's own, with the stop tokens of the template"
    if name.endswith((".safetensors", ".gguf", ".onnx", ".onnx.data", "config.json")):
        return f"{weights} and its base" if weights == "the adapter" else weights
    return "tunesmith"
