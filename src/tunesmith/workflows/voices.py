"""The model that was tuned, beside what became of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import ModelOptions
from tunesmith.errors import CheckpointError, UsageError
from tunesmith.rundir import RunDir
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Base:
    """The model before tuning: the same weights with the adapter off, or weights of its own."""

    loaded: LoadedModel
    renderer: Renderer
    around: Callable[[], AbstractContextManager[Any]]
    """Entered while it answers."""


def open_base(options: ModelOptions, tuned: LoadedModel, renderer: Renderer) -> Base:
    """Return the base of a tuned model.

    An adapter's is the same copy of the weights with the adapter off, unless the adapter brings a
    tokenizer with other tokens; a run's is the model that it began with. ``UsageError`` where
    nothing says what a model was tuned from.
    """
    ref = tuned.ref
    if ref.adapter and _same_tokens(ref.path, tuned.tokenizer):
        console.say("Base: the same weights with the adapter off.")
        return Base(tuned, renderer, tuned.model.disable_adapter)
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import load

    name = ref.path if ref.adapter else began_with(ref.path)
    int8 = tuned.int8 is not None
    loaded = load(name, dtype=options.dtype, device=str(tuned.device), int8=int8)
    console.say(f"Base: {loaded.described}.")
    own = Renderer(loaded.tokenizer, options.chat_template, loaded.eos_ids)
    if loaded.tokenizer.chat_template is None and options.chat_template == "auto":
        # What the run made of a base without a template is the form that it was compared in.
        own = Renderer(loaded.tokenizer, renderer.template, loaded.eos_ids)
    return Base(loaded, own, nullcontext)


def began_with(path: str) -> str:
    """Return the model that the run of a final or best model, or of a checkpoint, began with."""
    for folder in list(Path(path).resolve().parents)[:3]:
        run = RunDir(folder)
        if not run.config.is_file():
            continue
        try:
            manifest = run.read_manifest() if run.manifest.is_file() else {}
            base = manifest.get("base") or run.read_config().get("model")
        except CheckpointError:
            base = None
        if isinstance(base, str) and base:
            return base
    raise UsageError(
        f"Nothing says what {path} was tuned from, so there is no base to compare it with.",
        expected="an adapter, or the folder of a run",
        hint="--model RUN_FOLDER",
    )


def _same_tokens(base: str, tokenizer: Any) -> bool:
    from tunesmith.models.load import load_tokenizer

    return bool(load_tokenizer(base).tokenizer.get_vocab() == tokenizer.get_vocab())
