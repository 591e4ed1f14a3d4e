"""``tunesmith studio``: pages on which runs are watched, started, compared and talked with."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.load import Resolved
from tunesmith.config.schema_serve import ServeOptions, StudioOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.rundir import RunDir
from tunesmith.workflows import console
from tunesmith.workflows.compare import comparison_page
from tunesmith.workflows.listening import Door, access_of, opened_door, service_of
from tunesmith.workflows.serve import voices_of
from tunesmith.workflows.studio_rows import RowReader

if TYPE_CHECKING:
    from tunesmith.serve.guard import Guard
    from tunesmith.serve.service import Service
    from tunesmith.serve.workers import Workers
    from tunesmith.studio.login import Logins


def command(resolved: Resolved[StudioOptions]) -> int:
    """Handle ``tunesmith studio``; ends by ``Interrupted`` once a signal has asked for it."""
    options = resolved.options
    _check_parent(options.output_dir)
    with opened_door(options) as door, ExitStack() as stack:
        from tunesmith.serve.workers import Workers
        from tunesmith.studio.login import Logins

        workers = Workers()
        service = service_of(workers, options)
        stack.callback(service.close)
        models = Models(workers, options)
        for name in options.model:
            models.load(name)
        logins = Logins(door.key, door.port)
        app = studio_application(options, service, models, logins, door.key)
        door.listen(app, service, lambda: _tell(options, logins, door))
    raise Interrupted("Stopped by a signal; the pages have ended, runs that they started go on.")


def studio_application(
    options: StudioOptions, service: Service, models: Models, logins: Logins, key: str | None
) -> Guard:
    """Return the application: the server's own routes and the pages, behind one guard."""
    from tunesmith.serve.app import application
    from tunesmith.studio.app import Hooks, Studio

    hooks = Hooks(
        RowReader().seen,
        lambda paths: comparison_page([str(path) for path in paths]),
        models.load,
        models.unload,
    )
    pages = Studio(Path(options.output_dir), service, logins, hooks)
    access = replace(access_of(options, key), otherwise=logins.lets_in)
    return application(service, access, console.warn, pages.routes(), pages.shown)


class Models:
    """Loads and gives back the models that the chat talks with, one at a time."""

    def __init__(self, workers: Workers, options: StudioOptions) -> None:
        self._workers, self._options = workers, options
        self._lock = threading.Lock()
        self._known: dict[str, list[str]] = {}
        """What was asked for → the names that answer since."""

    def load(self, name: str) -> Sequence[str]:
        """Load a model, and with a run also what it began with; return the names, the base first.

        What is loaded already is not loaded again.
        """
        with self._lock:
            tuned, base = self._once(name), _base_of(name)
            if len(tuned) == 1 and base is not None:
                return [self._once(base)[0], tuned[0]]
            return tuned[::-1]

    def _once(self, name: str) -> list[str]:
        """Return the names that answer for a model, which is loaded unless it has been."""
        there = self._workers.voices
        if not all(one in there for one in self._known.get(name, [""])):
            self._known[name] = self._open(name)
        return self._known[name]

    def unload(self, voice: str) -> None:
        """Give back the weights of a model, and of all that answers by them."""
        from tunesmith.models.device import choose_device
        from tunesmith.models.memory import give_back

        with self._lock:
            self._workers.remove(voice)
            give_back(choose_device(self._options.device))

    def _open(self, name: str) -> list[str]:
        """Load weights; return the names of their voices, the one that was asked for first."""
        from tunesmith.serve.worker import Worker

        options = ServeOptions(
            model=name,
            name=_short(name, self._options.output_dir),
            dtype=self._options.dtype,
            device=self._options.device,
        )
        loaded, voices = voices_of(options)
        taken = self._workers.voices
        named = {}
        for voice in voices.values():
            free = voice.name
            while free in taken or free in named:
                free += " again"
            named[free] = replace(voice, name=free)
        worker = Worker(loaded.model, named, console.warn)
        worker.start()
        self._workers.add(worker)
        return list(named)


def _base_of(name: str) -> str | None:
    """Return the model that a run began with; None for what is no run."""
    place = Path(name)
    if not (place / "config.yaml").is_file():
        return None
    base = RunDir(place).read_config().get("model")
    return base if isinstance(base, str) else None


def _short(name: str, parent: str) -> str:
    """Return what a model is called on the page: a run by its name below the parent."""
    try:
        return Path(name).resolve().relative_to(Path(parent).resolve()).as_posix()
    except ValueError:
        return name


def _check_parent(parent: str) -> None:
    path = Path(parent)
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"--output-dir {parent!r} is a file.", expected="a folder that run folders lie in"
        )


def _tell(options: StudioOptions, logins: Logins, door: Door) -> None:
    """Say where the pages are, with a link that lets one browser in."""
    door.announce("start programs by it")
    if door.key is None:
        console.say(f"Open {door.url}/ (Ctrl-C ends it)")
        return
    print(f"Open, once:\n  {door.url}/login?token={logins.token}", file=sys.stderr)
    console.say(
        f"Runs below {options.output_dir}. Ctrl-C ends the pages; what they started goes on"
    )
