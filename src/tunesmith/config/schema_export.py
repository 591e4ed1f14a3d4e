"""Settings of the verb that delivers a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.options import Options
from tunesmith.config.schema import ModelOptions

Format = Literal["bundle", "merged", "adapter", "gguf", "onnx"]
GgufType = Literal["f32", "f16", "q8_0"]


class ExportOptions(ModelOptions):
    """Everything that ``tunesmith export`` knows."""

    output_dir: str
    """Folder to make: each format in a folder of its name, with manifest.json beside them."""
    formats: list[Format] = Field(default=["bundle"], min_length=1)
    """merged: weights with the adapter folded in; adapter: the adapter alone, for PEFT; gguf: for
    llama.cpp and Ollama; onnx: the logits as a graph, for ONNX Runtime; bundle: merged, with a
    model card, a smoke test and a Dockerfile."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights of merged and bundle; auto is that of the base as it was saved."""
    gguf_types: list[GgufType] = Field(default=["f16"], min_length=1)
    """Types of the matrices of --formats gguf, a file each."""
    license: str | None = None
    """Licence that the model card of the bundle names; the base's own if unset."""
    overwrite: bool = False
    """Replace an export that lies there already."""
    push_to_hub: str | None = None
    """Upload the one format that is made to this repository, user/name, once it has been compared
    with the trained model; the token is that of HF_TOKEN or of hf auth login."""
    private: bool = False
    """Make the repository of --push-to-hub a private one."""


class ConvertOptions(Options):
    """Everything that ``tunesmith convert`` knows."""

    folder: str
    """Folder of a model whose weights are pickles: pytorch_model.bin, or parts with an index."""
    output: str
    """Folder to make: the weights as safetensors, with configuration and tokenizer."""
    unsafe_exec: bool = False
    """Read the pickle even where the process that reads it cannot be confined."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is shown on the terminal."""
