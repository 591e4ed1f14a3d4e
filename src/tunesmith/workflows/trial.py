"""A model made trainable for a look, and then given back as it was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.workflows import method

if TYPE_CHECKING:
    from tunesmith.models.load import LoadedModel


@contextmanager
def as_trained(config: FineTuningConfig, loaded: LoadedModel) -> Iterator[Any]:
    """Put adapter, new rows, freezing and checkpointing on the model; take them off at the end.

    Yields the model. PiSSA would change the weights; for a look its adapter starts like any other,
    which has the same shapes.
    """
    from tunesmith.models.adapters import keep_activations
    from tunesmith.models.vocabulary import old_rows

    base, flags = loaded.model, [(p, p.requires_grad) for p in loaded.model.parameters()]
    new = loaded.new_tokens
    kept = nullcontext() if new is None else old_rows(base, new.first)
    try:
        with kept:
            method.make_trainable(config.model_copy(update={"lora_init": "default"}), loaded)
            yield loaded.model
    finally:
        if loaded.model is not base:
            loaded.model = loaded.model.unload()
        keep_activations(loaded.model)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
