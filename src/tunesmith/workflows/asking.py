"""Who answers a workflow's questions: a backend with what a log has to know of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import DrawOptions, EvalOptions, SampleOptions, SamplingOptions
from tunesmith.config.schema_generate import GenerateOptions
from tunesmith.config.schema_judge import JudgeOptions
from tunesmith.errors import UsageError
from tunesmith.workflows import console
from tunesmith.workflows.opening import open_model, open_renderer, weights_fingerprint

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.generate.backends import Backend
    from tunesmith.generate.requests import Sampling
    from tunesmith.models.load import LoadedModel

AskOptions = EvalOptions | SampleOptions | GenerateOptions | JudgeOptions
KEY = "OPENAI_API_KEY"

OF_SERVERS = (
    "api_key_env",
    "connections",
    "requests_per_minute",
    "address_timeout",
    "address_retries",
    "address_proxy",
)
"""Settings that say something only with ``address``."""
OF_WEIGHTS = ("backend", "weights", "dtype", "device", "chat_template", "batch_size")
"""Settings that say nothing with it."""


def sampling_of(
    options: DrawOptions, limit: int, *, stop: Sequence[str] = (), logprobs: bool = False
) -> Sampling:
    """Return how answers are drawn; ``limit`` tokens is the longest unless the settings say it."""
    from tunesmith.generate.requests import Sampling

    return Sampling(
        options.max_new_tokens or limit,
        options.temperature,
        options.top_p,
        options.top_k,
        options.min_p,
        tuple(stop),
        logprobs,
    )


@dataclass(frozen=True, slots=True)
class Respondent:
    """A backend, what it is called, and what decides its answers besides the plan."""

    backend: Backend
    described: str
    facts: Callable[[], tuple[tuple[Any, ...], Mapping[str, Any]]]
    """What is hashed with the plan, so that a log is continued only under the same, and what the
    log's header says besides. Computed when it is wanted: it may read all weights."""
    local: tuple[LoadedModel, Renderer] | None = None
    """Loaded weights, where there are any: what scores instead of generating needs them."""
    renderer: Renderer | None = None
    """Turns tokens into text, where completions have tokens."""
    sync_every: int = 50
    """Attempts between two flushes of the log to the disk."""
    summary: Callable[[], str] | None = None
    """Says at the end who answered."""

    def tell(self) -> None:
        """Say who answered, where that is worth a line."""
        if self.summary and (text := self.summary()):
            console.say(text)


def respondent_of(loaded: LoadedModel, renderer: Renderer, slots: int | None = None) -> Respondent:
    """Return a loaded model with the project's own engine."""
    from tunesmith.generate.local import EngineBackend

    return _local(EngineBackend(loaded.model, renderer, slots), loaded, renderer)


def open_respondent(options: AskOptions) -> Respondent:
    """Open what the settings name: servers, or a model with one of the local backends.

    Raises ``UsageError`` for settings that would do nothing, before anything is loaded.
    """
    if options.address:
        _refuse_changed(options, OF_WEIGHTS, "does nothing with --address: the servers decide it")
        return _servers(options)
    _refuse_changed(options, OF_SERVERS, "does nothing without --address")
    if options.backend == "vllm":
        return _vllm(options)
    loaded, renderer = open_model(options, int8=options.weights == "int8")
    sampled = isinstance(options, SamplingOptions) and options.temperature > 0
    if options.backend == "transformers" and sampled:
        console.warn(
            "transformers draws samples from one random state for a batch, so they depend on "
            "--batch-size and on what was stored before"
        )
    return respondent_on(options, loaded, renderer)


def respondent_on(options: AskOptions, loaded: LoadedModel, renderer: Renderer) -> Respondent:
    """Return a loaded model with the backend that the settings name."""
    if options.backend == "engine":
        return respondent_of(loaded, renderer, options.batch_size)
    from tunesmith.generate.local import TransformersBackend

    backend = TransformersBackend(loaded.model, renderer, options.batch_size)
    return _local(backend, loaded, renderer, "transformers")


def _local(backend: Backend, loaded: LoadedModel, renderer: Renderer, name: str = "") -> Respondent:
    def facts() -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        identity, details = _facts(weights_fingerprint(loaded), renderer, name)
        return identity, {**details, **({"weight format": "int8"} if loaded.int8 else {})}

    both = (loaded, renderer)
    return Respondent(backend, loaded.described, facts, both, renderer)


def _facts(
    weights: str, renderer: Renderer, name: str
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return what decides answers of local weights; the engine goes without a name."""
    details = {"weights": weights, "template": renderer.fingerprint}
    if not name:
        return (weights, renderer.fingerprint), details
    return (weights, renderer.fingerprint, name), {**details, "backend": name}


def _vllm(options: AskOptions) -> Respondent:
    from tunesmith.generate.vllm import VllmBackend, require_vllm

    require_vllm()
    from tunesmith.models.load import resolve_model
    from tunesmith.storage import hash_tree

    _refuse_changed(
        options, ("weights", "batch_size", "device"), "does nothing with --backend vllm"
    )
    ref = resolve_model(options.model)
    renderer, _ = open_renderer(options, options.model, None)
    weights = hash_tree(ref.path) if Path(ref.path).is_dir() else ref.path
    backend = VllmBackend(ref, renderer, options.dtype)
    return Respondent(
        backend,
        ref.described,
        lambda: _facts(weights, renderer, "vllm"),
        renderer=renderer,
    )


def _servers(options: AskOptions) -> Respondent:
    from tunesmith.generate.remote import RemoteBackend
    from tunesmith.generate.servers import ServerSettings, check_address

    addresses = tuple(dict.fromkeys(check_address(address) for address in options.address))
    if options.model == type(options).model_fields["model"].default:
        raise UsageError(
            "--address needs --model, the name by which the servers know the model.",
            hint=f"--model NAME, as {addresses[0]}/models lists it",
        )
    settings = ServerSettings(
        addresses,
        options.model,
        key_of(options.api_key_env, addresses),
        options.connections,
        options.requests_per_minute,
        options.address_timeout,
        options.address_retries,
        proxies=options.address_proxy,
    )
    backend = RemoteBackend(settings)
    several = f"{len(addresses)} servers" if len(addresses) > 1 else addresses[0]
    console.say(f"Model: {options.model} at {several}, {options.connections} requests at once.")
    return Respondent(
        backend,
        f"{options.model} at {', '.join(addresses)}",
        # The addresses are not hashed: another server with the same model may go on.
        lambda: (
            ("server", options.model),
            {"server model": options.model, "servers": list(addresses)},
        ),
        sync_every=1,
        summary=backend.summary,
    )


def key_of(named: str | None, addresses: tuple[str, ...], flag: str = "--api-key-env") -> str:
    """Return the servers' key; one that ``flag`` has named is to be there, and kept secret."""
    from tunesmith.generate.servers import keeps_secrets

    name = named or KEY
    key = os.environ.get(name, "").strip()
    if not key:
        if named is None:
            return ""
        raise UsageError(
            f"The environment variable {name} is not set or empty.",
            expected="the servers' key in it",
            hint=f"export {name}=…; or leave out {flag}",
        )
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"The key in {name} holds characters that no header takes.")
    in_the_clear = [address for address in addresses if not keeps_secrets(address)]
    if in_the_clear and named is not None:
        raise UsageError(
            f"The key in {name} would be sent unencrypted to {in_the_clear[0]}.",
            expected="an https:// address, this very machine, or no key",
            hint=f"leave out {flag}; or reach the server through an SSH tunnel",
        )
    if in_the_clear:
        console.say(f"The key in {name} is not sent to {', '.join(in_the_clear)}: not encrypted.")
    return key


def _refuse_changed(options: AskOptions, names: tuple[str, ...], why: str) -> None:
    known = type(options).model_fields
    for name in names:
        if getattr(options, name) != known[name].get_default(call_default_factory=True):
            raise UsageError(f"--{name.replace('_', '-')} {why}.", hint="leave it out")
