"""Writing a model as ONNX: the logits of one forward pass, by PyTorch's own exporter."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ModelError

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
INSIDE = 1 << 30
"""Bytes of weights up to which they lie in the file itself; it could not hold two gigabytes."""


class Logits(torch.nn.Module):  # type: ignore[misc]
    """A model as a function of tokens and mask, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits, rows x length x words."""
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits


def write_onnx(model: Any, folder: Path) -> int:
    """Write ``model.onnx`` for any number of rows and tokens; return the bytes of the weights.

    The model is in float32 and on the processor afterwards. Large weights lie beside the graph.
    Raises ``ModelError`` for an architecture that the exporter does not take.
    """
    model.to("cpu").float()
    # Numbers other than one and than each other: equal ones are taken for the same dimension.
    ids = torch.arange(12).reshape(2, 6) % int(model.config.vocab_size)
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Logits(model),
                (ids, torch.ones_like(ids)),
                dynamo=True,
                dynamic_shapes=dict.fromkeys(INPUTS, free),
                input_names=list(INPUTS),
                output_names=["logits"],
                verbose=False,
            )
    except Exception as failure:  # the exporter raises many kinds, all of them about the model
        lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
        reason = lines[0] if lines else type(failure).__name__
        raise ModelError(
            f"PyTorch's ONNX exporter does not take {model.config.model_type}: {reason[:300]}",
            expected="an architecture such as llama, qwen2, qwen3, mistral or gpt2",
            hint="--formats merged, which optimum or another exporter can read",
        ) from None
    finally:
        logger.setLevel(level)
    assert program is not None
    for node in program.model.graph.all_nodes():
        # Where in whose folders each node comes from is nobody else's business.
        node.metadata_props.clear()
        node.doc_string = None
    size: int = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(folder / FILE, external_data=size > INSIDE)
    return size
