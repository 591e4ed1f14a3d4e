"""Settings of ``tunesmith serve`` and ``tunesmith studio``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.options import Options
from tunesmith.config.schema import ModelOptions
from tunesmith.config.schema_backend import WeightOptions


class ListenOptions(Options):
    """Server"""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own loopback needs a key that you give."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    api_key_file: str | None = None
    """File that holds the key, alone; else $TUNESMITH_API_KEY, else one is made and shown once."""
    key: bool = True
    """Ask for the key on every route; --no-key lets in whoever is on this machine."""
    allowed_hosts: list[str] = Field(default_factory=list)
    """Further names of this server that may stand in the Host header."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Most tokens of an answer, and how many a conversation's gets where a request says nothing."""
    connections: int = Field(default=1024, ge=1)
    """Most connections at once."""
    max_body_kb: int = Field(default=1024, ge=1)
    """Largest body of a request, in KiB."""
    request_timeout: float = Field(default=300.0, gt=0)
    """Longest time that a request may take, in seconds."""
    grace: float = Field(default=10.0, ge=0)
    """Seconds that running answers have to end after SIGTERM or Ctrl-C."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is shown on the terminal."""


class ServeOptions(WeightOptions, ListenOptions, ModelOptions):
    """Everything that ``tunesmith serve`` knows."""

    name: str | None = None
    """Name that clients call --model by; what --model says if unset."""
    adapters: list[str] = Field(default_factory=list)
    """Adapters to serve beside it on the same weights, each as name=PATH: a folder or a run."""
    context: int | None = Field(default=None, ge=2)
    """Most tokens of a prompt with its answer; the model's positions if unset, 8192 at most."""
    max_choices: int = Field(default=32, ge=1)
    """Most answers of one request, all its prompts together."""
    batch_size: int = Field(default=32, ge=1)
    """Answers decoded at once by a model, fewer where memory does not suffice."""
    queue: int = Field(default=256, ge=0)
    """Answers that may wait for their turn; beyond, requests get status 429."""
    request_log: str | None = None
    """File that every request is appended to with its answer (JSON Lines with checksums)."""


class StudioOptions(ListenOptions):
    """Everything that ``tunesmith studio`` knows."""

    output_dir: str = "runs"
    """Folder that run folders lie in; what is shown, and where new runs go."""
    model: list[str] = Field(default_factory=list)
    """Models to chat with from the beginning; more can be loaded on the page."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of their weights; auto is bfloat16 on a GPU that has it, float32 elsewhere."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; a run that the page starts takes its own from the form."""
