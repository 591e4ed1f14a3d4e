"""Opening a model for a workflow: weights, tokenizer, renderer, and one line that says which."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunesmith.config.schema import ModelOptions, TokenizerOptions
from tunesmith.errors import UsageError
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel


DEFAULT_LENGTH = 2048


def open_model(
    options: ModelOptions,
    *,
    trainable: bool = False,
    bits: str | None = None,
    int8: bool = False,
    adapters: Mapping[str, str] | None = None,
) -> tuple[LoadedModel, Renderer]:
    """Load the model that the settings name, and the renderer for its chat template."""
    quiet()
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import load

    loaded = load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        trainable=trainable,
        bits=bits,
        int8=int8,
        adapters=adapters,
    )
    renderer = Renderer(loaded.tokenizer, options.chat_template, loaded.eos_ids)
    dtype = str(loaded.dtype).removeprefix("torch.")
    console.say(f"Model: {loaded.ref.described} ({dtype} on {loaded.device}).")
    if loaded.quantised is not None:
        from tunesmith.models.quantize import ROUNDED

        console.say(f"{loaded.quantised}.{f' {ROUNDED}' if bits == '8bit' else ''}")
    if loaded.int8 is not None:
        console.say(f"{loaded.int8}. Answers may differ a little from those of the full weights.")
    if renderer.form in ("plain", "instruction") and options.chat_template == "auto":
        console.say("The model brings no chat template; a plain form of its own tokens is used.")
    return loaded, renderer


def open_renderer(
    options: TokenizerOptions, model: str, max_length: int | None
) -> tuple[Renderer, int]:
    """Load a tokenizer alone; return its renderer and the length that rows may have."""
    quiet()
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import load_tokenizer

    loaded = load_tokenizer(model)
    renderer = Renderer(loaded.tokenizer, options.chat_template, loaded.eos_ids)
    limit = min(max_length or DEFAULT_LENGTH, loaded.max_positions or max_length or DEFAULT_LENGTH)
    if max_length is not None and max_length > limit:
        raise UsageError(
            f"--max-length {max_length} is more than the {limit} positions of this model.",
            hint=f"--max-length {limit}",
        )
    console.say(
        f"Tokenizer: {loaded.described}; chat template: {renderer.form}; "
        f"at most {limit:,} tokens a row."
    )
    return renderer, limit


def weights_fingerprint(loaded: LoadedModel) -> str:
    """Return a hash of every parameter's bytes: what the attempts of a log were made with."""
    import torch

    digest = hashlib.sha256()
    for name, value in loaded.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def quiet() -> None:
    """Keep the libraries' own bars and notes off the terminal: one project speaks at a time."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
