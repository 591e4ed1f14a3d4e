"""Settings that would do nothing are refused, with what they need to work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.schema import Options
from tunesmith.errors import UsageError

Need = tuple[str, str, Callable[[Any], bool]]
"""A setting, the flags that give it something to do, and whether the settings have them."""


def refuse_idle(options: Options, needs: Sequence[Need]) -> None:
    """Raise ``UsageError`` for a setting that was changed and would do nothing."""
    for name, other, used in needs:
        changed = getattr(options, name) != type(options).model_fields[name].default
        if changed and not used(options):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} does nothing without {other}.", hint=f"{flag} … {other}")


def refuse_idle_split(sources: Iterable[str], split: str, flag: str) -> None:
    """Raise ``UsageError`` for a split that was asked for where no source has splits."""
    sources = list(sources)
    if sources and not any(has_splits(source) for source in sources):
        raise UsageError(
            f"{flag} {split}, but {', '.join(sources)} has no splits; all of it would be read.",
            expected="a saved folder with splits or a hub name",
            hint=f"leave out {flag}, or name the file of that split",
        )


def has_splits(source: str) -> bool:
    """Say whether a source is made of splits: a saved folder with several, a name on a hub."""
    from tunesmith.data.named_sets import find

    path = Path(source)
    if path.exists():
        return (path / "dataset_dict.json").is_file()
    named = find(source)
    return named is None or not named.builtin or len(named.files()) > 1
