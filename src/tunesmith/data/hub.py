"""Data sets and models from a hub: whether it can be reached, and the one way to download rows."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tunesmith.errors import DataError


def unreachable(endpoint: str | None = None) -> str | None:
    """Say why the hub cannot be reached, or None; its own client takes a minute to find out.

    ``endpoint`` is another hub's address.
    """
    from huggingface_hub import constants

    address = urlsplit(endpoint or constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if getproxies().get(address.scheme):
        return None  # a proxy finds the host for us
    try:
        socket.getaddrinfo(address.hostname or "", 443)
    except OSError as failure:
        return f"{address.hostname} cannot be reached: {failure.args[-1]}"
    return None


def load_split(name: str, config: str | None, split: str, *, called: str = "") -> Any:
    """Return one split of a hub data set, from the hub's cache where there is no network.

    ``called`` is what the user typed. Raises ``DataError`` with the splits that there are.
    """
    import datasets

    reason = unreachable()
    try:
        with _offline(reason is not None):
            found = datasets.load_dataset(name, config)
    except Exception as failure:  # no network, no such name, a gate: the hub says which
        said = reason or (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise DataError(
            f"There is no file {called or name!r}, and the hub's data set {name!r} cannot be "
            f"loaded: {said}.",
            expected="a path, a name such as org/data or org/data@configuration, or a network",
            hint="a path to a local copy",
        ) from None
    if not hasattr(found, "keys"):
        return found
    if split not in found:
        raise DataError(
            f"{name} has no split {split!r}.",
            expected=", ".join(found),
            hint=f"--dataset-train-split {next(iter(found))}",
        )
    return found[split]


@contextlib.contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Let the libraries look into their cache only, instead of trying again and again."""
    if not wanted:
        yield
        return
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
