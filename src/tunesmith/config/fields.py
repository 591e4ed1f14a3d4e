"""What a field of the schema takes, read off its annotation."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from tunesmith.config.schema import Options

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOUNDS = {
    "ge": "of at least",
    "gt": "above",
    "le": "of at most",
    "lt": "below",
    "min_length": "of length at least",
}


def parts(kind: type[Options], name: str) -> tuple[Any, ...]:
    """Return the types that a field takes, without None."""
    return tuple(part for part in _split(kind.model_fields[name].annotation) if part is not _NONE)


def is_optional(kind: type[Options], name: str) -> bool:
    """Say whether a field may be unset (None)."""
    return _NONE in _split(kind.model_fields[name].annotation)


def is_bool(kind: type[Options], name: str) -> bool:
    """Say whether a field is a switch."""
    return name in kind.model_fields and parts(kind, name) == (bool,)


def is_list(kind: type[Options], name: str) -> bool:
    """Say whether a field takes several values."""
    return any(get_origin(part) is list for part in parts(kind, name))


def is_mapping(kind: type[Options], name: str) -> bool:
    """Say whether a field takes ``name=value`` pairs."""
    return any(get_origin(part) is dict for part in parts(kind, name))


def choices(kind: type[Options], name: str) -> tuple[str, ...]:
    """Return the words that a field, or each entry of its list, takes; () where it takes any."""
    found = [get_args(p)[0] if get_origin(p) is list else p for p in parts(kind, name)]
    words = [get_args(part) for part in found if get_origin(part) is Literal]
    return tuple(str(word) for group in words for word in group)


def expected(kind: type[Options], name: str, *, inside: bool = False) -> str:
    """Say in words what a field takes, such as «a whole number at least 1 or epoch».

    ``inside`` asks for what an entry of its list has to be.
    """
    if inside:
        return " or ".join(_say(get_args(part)[0]) for part in parts(kind, name))
    said = [_say(part) for part in parts(kind, name)]
    text = " or ".join(said)
    bounds = _bounds(kind.model_fields[name].metadata)
    return f"{text} {bounds}" if bounds else text


def default(kind: type[Options], name: str) -> str:
    """Return a field's default as a person would type it."""
    field = kind.model_fields[name]
    return (
        "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
    )


def shown(value: Any) -> str:
    """Return a setting's value as a person would type it."""
    if value is None or value == [] or value == {}:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={inner}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


_NONE = type(None)


def _split(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _say(part: Any) -> str:
    # An annotated alternative, such as the number in «a number or epoch», brings its own bounds.
    if hasattr(part, "__metadata__"):
        inner, *metadata = get_args(part)
        bounds = _bounds([m for info in metadata for m in getattr(info, "metadata", [info])])
        return f"{_say(inner)} {bounds}".strip()
    if get_origin(part) is Literal:
        words = [str(word) for word in get_args(part)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(part) is list:
        return "a list"
    if get_origin(part) is dict:
        return "pairs such as name=value"
    if isinstance(part, type) and issubclass(part, Options):
        return "a section"
    return _NAMES.get(part, "a value")


def _bounds(metadata: list[Any]) -> str:
    found = [
        f"{word} {getattr(item, attribute):g}"
        for item in metadata
        for attribute, word in _BOUNDS.items()
        if isinstance(getattr(item, attribute, None), int | float)
    ]
    return " and ".join(found)
