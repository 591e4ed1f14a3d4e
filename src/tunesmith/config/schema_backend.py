"""Settings that say who generates: the engine, another library, or a server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.options import Options


class WeightOptions(Options):
    """Weights"""

    weights: Literal["full", "int8"] = "full"
    """int8 holds linear layers, embeddings and head in eight bits with a scale for each row: about
    a quarter of float32's memory, answers that differ a little. For generating only."""


class BackendOptions(WeightOptions):
    """Who answers"""

    backend: Literal["engine", "transformers", "vllm"] = "engine"
    """What generates from local weights: the engine; transformers' own generate (greedy the same;
    samples depend on their batch); or vLLM, which must be installed."""
    address: list[str] = Field(default_factory=list)
    """OpenAI-compatible servers, such as http://localhost:8000/v1, in place of local weights;
    --model is then their name of the model, and requests are spread over them."""
    api_key_env: str | None = None
    """Environment variable that holds the servers' key; OPENAI_API_KEY, where it is set, if unset.
    A key is sent by https or to this machine only."""
    connections: int = Field(default=16, ge=1)
    """Requests that are under way at once, on all servers together."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests begun in a minute, repeated ones included."""
    address_timeout: float = Field(default=300.0, gt=0)
    """Seconds to wait for the next piece of an answer; for a connection 10 of them at most."""
    address_retries: int = Field(default=8, ge=0)
    """Times that a question is asked again after failures that may pass (429, 5xx, no connection,
    silence, an answer that breaks off), with growing waits."""
    address_proxy: bool = False
    """Use the proxies that the environment names (HTTPS_PROXY and the like)."""
