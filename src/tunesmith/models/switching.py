"""Several adapters on one copy of the weights, of which one or none is active at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import ModelError

OWN = "default"
"""PEFT's name of the adapter that a model was loaded with."""


def beside(model: Any, adapters: Mapping[str, str]) -> Any:
    """Load adapters from their folders onto a model, each under its name."""
    from peft import PeftModel

    for name, folder in adapters.items():
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        except Exception as failure:  # PEFT raises many kinds, all of them about this folder
            lines = str(failure).strip().splitlines() or [repr(failure)]
            raise ModelError(
                f"The adapter {folder} cannot be put on this model: {lines[0]}",
                expected="an adapter that was trained on it",
            ) from None
    return model


class Switch:
    """Makes one adapter of a model active, or none; going to the one that is active costs nothing.

    Used by one thread at a time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._plain = not hasattr(model, "peft_config")
        self._active: str | None = None
        self._known = False
        """Whether ``_active`` says how the model stands."""

    def to(self, adapter: str | None) -> None:
        """Let an adapter of this name act, or with None the weights alone."""
        if self._plain or (self._known and adapter == self._active):
            return
        self._known = False
        tuner = self._model.base_model
        if adapter is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self._model.set_adapter(adapter, inference_mode=True)
        self._active, self._known = adapter, True
