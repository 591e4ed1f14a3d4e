"""``tunesmith serve``: models behind OpenAI's API, for this machine or with a key for others."""

from __future__ import annotations

import copy
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.load import Resolved
from tunesmith.config.schema_serve import ListenOptions, ServeOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.idle import refuse_idle
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
    from tunesmith.serve.guard import Access
    from tunesmith.serve.service import Service
    from tunesmith.serve.worker import Voice

KEY = "TUNESMITH_API_KEY"
SHORTEST_KEY = 16
LARGEST_CONTEXT = 8192
"""Where nothing is said: longer ones would leave room for few answers at once."""
SPARE_FILES = 64
"""Open files that are not connections."""


def command(resolved: Resolved[ServeOptions]) -> int:
    """Handle ``tunesmith serve``; ends by ``Interrupted`` once a signal has asked for it."""
    options = resolved.options
    console.set_level(options.log_level)
    require_server()
    from tunesmith.serve.listen import bind, is_loopback

    refuse_idle(options, (("api_key_file", "a key (--no-key)", lambda o: o.key),))
    loopback = is_loopback(options.host)
    key = key_of(options, loopback=loopback)
    with ExitStack() as stack:
        taken = stack.enter_context(bind(options.host, options.port))
        port = taken.getsockname()[1]
        service = stack.enter_context(Opened(options))
        from tunesmith.serve.app import application
        from tunesmith.serve.listen import Listener

        app = application(service, access_of(options, key), console.warn)
        stop = stack.enter_context(stop_on_signals())
        listener = Listener(
            app,
            service.worker,
            service.metrics,
            connections=connections_of(options.connections),
            grace_s=options.grace,
            should_stop=stop,
            ready=lambda: _tell(options, service, port, key, loopback=loopback),
        )
        listener.run([taken])
    raise Interrupted("Stopped by a signal; the server has ended.")


def access_of(options: ListenOptions, key: str | None) -> Access:
    """Return who may ask the server, and by which names."""
    from tunesmith.serve.guard import Access, host_name
    from tunesmith.serve.listen import is_everywhere

    names = {"localhost", "127.0.0.1", "::1", options.host, *options.allowed_hosts}
    return Access(key, frozenset(map(host_name, names)), any_address=is_everywhere(options.host))


class Opened:
    """The models of the settings, loaded and ready to answer; a context that yields the service."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options

    def __enter__(self) -> Service:
        from tunesmith.serve.metrics import Metrics
        from tunesmith.serve.plan import Limits
        from tunesmith.serve.request_log import RequestLog
        from tunesmith.serve.service import Service
        from tunesmith.serve.worker import Worker

        options = self._options
        loaded, voices = voices_of(options)
        worker = Worker(loaded.model, voices, console.warn)
        metrics = Metrics(
            {
                "running": ("Answers that are being decoded.", lambda: worker.running),
                "waiting": ("Answers that wait for their turn.", lambda: worker.waiting),
                "steps": ("Decoding steps so far.", lambda: worker.steps),
            }
        )

        def failed(text: str) -> None:
            metrics.add("request_log_failures_total")
            console.warn(f"request log: {text}")

        log = RequestLog(options.request_log, failed) if options.request_log else None
        limits = Limits(
            body_bytes=options.max_body_kb << 10,
            max_new_tokens=options.max_new_tokens,
            choices=options.max_choices,
            queue=options.queue,
            request_s=options.request_timeout,
            body_s=min(options.request_timeout, Limits().body_s),
        )
        self._service = Service(worker, limits, metrics, log)
        worker.start()
        return self._service

    def __exit__(self, *_: object) -> None:
        self._service.worker.stop()
        if self._service.log is not None:
            self._service.log.close()


def require_server() -> None:
    """Raise ``UsageError`` where what a server is made of is not installed."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"The server needs {' and '.join(missing)}, not installed here.",
            expected="the extra of that name",
            hint="pip install 'tunesmith[serve]'",
        )


def key_of(options: ListenOptions, *, loopback: bool) -> str | None:
    """Return the key that clients need; one that is made is shown by ``_tell``."""
    if not options.key:
        if not loopback:
            raise UsageError(
                f"--no-key would let everybody in who reaches {options.host}.",
                expected="a key, or an address that only this machine reaches",
                hint="--host 127.0.0.1, or --api-key-file FILE",
            )
        return None
    given, where = os.environ.get(KEY, ""), f"The key in {KEY}"
    if options.api_key_file is not None:
        where = f"The key in {options.api_key_file!r}"
        try:
            given = Path(options.api_key_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            said = getattr(failure, "strerror", None) or "it is no text"
            raise UsageError(
                f"The key file {options.api_key_file!r} cannot be read: {said}.",
                expected="a file that holds the key and nothing else",
            ) from None
    key = given.strip()
    if key or options.api_key_file is not None:
        if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"{where} is no good one: it has {len(key)} characters.",
                expected=f"at least {SHORTEST_KEY} letters, digits or signs without a space",
                hint="python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE",
            )
        return key
    if not loopback:
        raise UsageError(
            f"{options.host} can be reached from other machines, and there is no key.",
            expected=f"a key in a file or in {KEY}",
            hint="--api-key-file FILE, or --host 127.0.0.1",
        )
    if not sys.stderr.isatty():
        raise UsageError(
            "There is no key, and no terminal to show one on that is made now.",
            expected=f"a key in a file or in {KEY}",
            hint="--api-key-file FILE; or --no-key, for whoever is on this machine",
        )
    return secrets.token_urlsafe(32)


def voices_of(options: ServeOptions) -> tuple[LoadedModel, dict[str, Voice]]:
    """Load the weights once, and return who answers by which name."""
    from tunesmith.generate.live import LiveEngine
    from tunesmith.models.switching import OWN
    from tunesmith.serve.worker import Voice

    further = _adapters(options)
    inner = {name: f"further{number}" for number, name in enumerate(further)}
    folders = {inner[name]: path for name, path in further.items()}
    int8 = options.weights == "int8"
    loaded, renderer = open_model(options, int8=int8, adapters=folders or None)
    own = options.name or options.model
    plan: dict[str, tuple[str | None, Renderer]] = {
        own: (OWN if loaded.ref.adapter else None, renderer)
    }
    if loaded.ref.adapter:
        base = _base_renderer(options, loaded)
        if base is not None:
            plan[_base_name(loaded, {own, *further})] = (None, base)
    for name, path in further.items():
        if name in plan:
            raise UsageError(f"Two models have the name {name!r}.", hint="--name another")
        plan[name] = (inner[name], _adapter_renderer(options, loaded, name, path))
    if options.context is not None and options.context > loaded.max_positions:
        raise UsageError(
            f"--context {options.context} is more than the model's {loaded.max_positions:,}.",
            hint=f"--context {loaded.max_positions}",
        )
    room = min(options.context or LARGEST_CONTEXT, loaded.max_positions)
    voices = {}
    for name, (adapter, one) in plan.items():
        engine = LiveEngine(
            loaded.model,
            one.decode,
            one.stop_ids,
            room=room,
            slots=options.batch_size,
            share=1 / len(plan),
        )
        # A tokenizer of its own: it is used by another thread than the engine's.
        voices[name] = Voice(name, engine, copy.deepcopy(one), adapter)
    return loaded, voices


def _adapters(options: ServeOptions) -> dict[str, str]:
    """Return name → folder of the adapters, each on the weights of ``--model``."""
    from tunesmith.models.load import resolve_model

    found: dict[str, str] = {}
    base = resolve_model(options.model) if options.adapters else None
    for given in options.adapters:
        name, equals, path = given.partition("=")
        if not (name and equals and path):
            raise UsageError(
                f"--adapters {given!r} has no name or no path.", expected="name=PATH, such as "
                "tuned=runs/units_rows"
            )  # fmt: skip
        if name in found:
            raise UsageError(f"Two adapters have the name {name!r}.", hint="another name=PATH")
        ref = resolve_model(path)
        if ref.adapter is None:
            raise UsageError(
                f"{path} is no adapter, but a whole model.",
                expected="the folder of an adapter, or a run that was trained with --lora",
                hint=f"tunesmith serve --model {path}",
            )
        if base is not None and Path(ref.path).resolve() != Path(base.path).resolve():
            raise UsageError(
                f"The adapter {name!r} was trained on {ref.path}, not on {base.path}.",
                expected="adapters of the very weights that --model names",
                hint=f"--model {ref.path}",
            )
        found[name] = ref.adapter
    return found


def _adapter_renderer(options: ServeOptions, loaded: LoadedModel, name: str, path: str) -> Renderer:
    """Return what renders for an adapter: its own tokenizer's template, if it brings one."""
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import load_tokenizer

    own = load_tokenizer(path)
    if own.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UsageError(
            f"The adapter {name!r} brings other tokens than the model that is served.",
            expected="adapters that share the model's tokenizer",
            hint=f"tunesmith serve --model {path}",
        )
    return Renderer(own.tokenizer, options.chat_template, own.eos_ids or loaded.eos_ids)


def _base_renderer(options: ServeOptions, loaded: LoadedModel) -> Renderer | None:
    """Return what renders for the weights without the adapter; None where they cannot answer."""
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import load_tokenizer

    base = load_tokenizer(loaded.ref.path)
    if base.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        console.say("The adapter brings tokens of its own, so its base is not served beside it.")
        return None
    return Renderer(base.tokenizer, options.chat_template, base.eos_ids or loaded.eos_ids)


def _base_name(loaded: LoadedModel, taken: set[str]) -> str:
    from tunesmith.models.load import ModelRef

    name = ModelRef(loaded.ref.path, None, "").name
    name = Path(name).name if Path(name).is_dir() else name
    return name if name not in taken else f"{name}-base"


def connections_of(wanted: int) -> int:
    """Return how many connections there may be; the system's limit is raised where it can be."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < needed:
            allowed = max(1, most - SPARE_FILES)
            console.warn(f"the system allows {most} open files: at most {allowed} connections")
            return allowed
    return wanted


def _tell(
    options: ServeOptions, service: Service, port: int, key: str | None, *, loopback: bool
) -> None:
    """Say where the server is and what it serves, and show a key that was made."""
    voices: Mapping[str, Voice] = service.worker.voices
    engine = next(iter(voices.values())).engine
    for name, voice in voices.items():
        console.say(f"Serving {name}{' (adapter)' if voice.adapter else ''}")
    console.say(f"  {engine.slots} answers at once for each, of {engine.room:,} tokens with prompt")
    if not loopback:
        console.warn("nothing is encrypted here: put a proxy with TLS in front for other machines")
    if key is None:
        console.warn("no key is asked for: whoever is on this machine may ask")
    elif options.api_key_file is None and not os.environ.get(KEY, "").strip():
        print(f"Key, made now and kept nowhere:\n  {key}", file=sys.stderr)
    host = f"[{options.host}]" if ":" in options.host else options.host
    console.say(f"Listening on http://{host}:{port}/v1 (Ctrl-C ends it)")
