"""``tunesmith serve``: models behind OpenAI's API, for this machine or with a key for others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.load import Resolved
from tunesmith.config.schema_serve import ServeOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.listening import Door, access_of, opened_door, service_of
from tunesmith.workflows.opening import open_model

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
    from tunesmith.serve.service import Service
    from tunesmith.serve.worker import Voice

LARGEST_CONTEXT = 8192
"""Where nothing is said: longer ones would leave room for few answers at once."""


def command(resolved: Resolved[ServeOptions]) -> int:
    """Handle ``tunesmith serve``; ends by ``Interrupted`` once a signal has asked for it."""
    options = resolved.options
    with opened_door(options) as door, Opened(options) as service:
        from tunesmith.serve.app import application

        app = application(service, access_of(options, door.key), console.warn)
        door.listen(app, service, lambda: _tell(service, door))
    raise Interrupted("Stopped by a signal; the server has ended.")


class Opened:
    """The models of the settings, loaded and ready to answer; a context that yields the service."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options

    def __enter__(self) -> Service:
        from tunesmith.serve.request_log import RequestLog
        from tunesmith.serve.worker import Worker

        options = self._options
        loaded, voices = voices_of(options)
        worker = Worker(loaded.model, voices, console.warn)
        service = service_of(worker, options, choices=options.max_choices, queue=options.queue)

        def failed(text: str) -> None:
            service.metrics.add("request_log_failures_total")
            console.warn(f"request log: {text}")

        if options.request_log:
            service.log = RequestLog(options.request_log, failed)
        self._service = service
        worker.start()
        service.prompts.begin()
        return service

    def __exit__(self, *_: object) -> None:
        self._service.close()


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


def _tell(service: Service, door: Door) -> None:
    """Say where the server is and what it serves, and show a key that was made."""
    voices: Mapping[str, Voice] = service.worker.voices
    engine = next(iter(voices.values())).engine
    for name, voice in voices.items():
        console.say(f"Serving {name}{' (adapter)' if voice.adapter else ''}")
    console.say(f"  {engine.slots} answers at once for each, of {engine.room:,} tokens with prompt")
    door.announce("ask")
    console.say(f"Listening on {door.url}/v1 (Ctrl-C ends it)")
