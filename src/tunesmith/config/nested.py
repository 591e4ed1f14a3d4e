"""Checking of YAML whose settings nest, in lists of sections: all faults at once, with lines."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from tunesmith.config import fields
from tunesmith.config.schema import Options
from tunesmith.errors import UsageError

O = TypeVar("O", bound=Options)  # noqa: E741
Place = tuple[str | int, ...]
"""Path of keys and of 0-based positions in lists, as pydantic gives it."""


def build(
    kind: type[O],
    values: Mapping[str, Any],
    *,
    where: str,
    lines: Mapping[tuple[str, ...], int] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> O:
    """Return checked settings; every fault is reported together in one ``UsageError``.

    ``where`` names the file (or the stage of a recipe); ``lines`` are those of ``YamlFile``;
    ``aliases`` are other names of keys, at any depth. Keys take dashes or underscores.
    """
    reader = _Reader(where, lines or {}, aliases or {})
    cleaned = reader.clean(kind, values, ())
    try:
        options = kind.model_validate(cleaned)
    except ValidationError as failure:
        reader.add(kind, failure)
        options = None
    if reader.faults or options is None:
        raise UsageError("\n".join(reader.faults), hint="docs/reference.md lists every key")
    return options


class _Reader:
    """Walks settings beside their schema and keeps what it finds wrong."""

    def __init__(
        self, where: str, lines: Mapping[tuple[str, ...], int], aliases: Mapping[str, str]
    ) -> None:
        self.faults: list[str] = []
        self._where, self._lines, self._aliases = where, lines, aliases
        self._written: dict[Place, Place] = {}
        """Place under the schema's names → place as the file spells it."""

    def clean(self, kind: type[Options], values: Mapping[str, Any], at: Place) -> dict[str, Any]:
        """Return settings under their own names, without the unknown ones."""
        cleaned: dict[str, Any] = {}
        for raw, value in values.items():
            name = str(raw).replace("-", "_")
            name = self._aliases.get(name, name)
            place = (*at, name)
            self._written[place] = (*self._written.get(at, at), str(raw))
            if name not in kind.model_fields:
                close = difflib.get_close_matches(name, [*kind.model_fields, *self._aliases], 1)
                near = (
                    f"; did you mean {close[0]!r}?"
                    if close
                    else f"; known: {', '.join(kind.model_fields)}"
                )
                self.faults.append(f"{self._spelled(place)}: there is no such setting{near}")
            elif name in cleaned:
                self.faults.append(f"{self._spelled(place)}: {name!r} is set already")
            else:
                cleaned[name] = self._inside(kind, name, value, place)
        return cleaned

    def _inside(self, kind: type[Options], name: str, value: Any, place: Place) -> Any:
        inner = section(kind, name)
        if value is False and "no" in fields.choices(kind, name):
            return "no"  # YAML 1.1 reads an unquoted no as false.
        if inner is None:
            return value
        if isinstance(value, Mapping):
            return self.clean(inner, value, place)
        if not isinstance(value, list):
            return value
        cleaned = []
        for number, item in enumerate(value):
            here = (*place, number)
            self._written[here] = (*self._written[place], number)
            cleaned.append(self.clean(inner, item, here) if isinstance(item, Mapping) else item)
        return cleaned

    def add(self, kind: type[Options], failure: ValidationError) -> None:
        """Put pydantic's errors into sentences, one for each setting."""
        said: set[Place] = set()
        for error in failure.errors():
            place, owner, name = self._owner(kind, tuple(error["loc"]))
            if place in said:
                continue
            said.add(place)
            if error["type"] == "missing":
                explained = (owner.model_fields[name].description or "").strip()
                self.faults.append(f"{self._spelled(place)} is missing: {explained}")
                continue
            value = error["input"]
            if section(owner, name) is not None:
                count = isinstance(error["loc"][-1], int)
                wanted = "a mapping of settings" if count else "a list or mapping of settings"
                if isinstance(value, list):
                    wanted = fields.expected(owner, name)
            else:
                inside = len(error["loc"]) > len(place)
                wanted = fields.expected(owner, name, inside=inside and fields.is_list(owner, name))
                if inside and fields.is_mapping(owner, name):
                    value = f"{error['loc'][-1]}: {value}"
                    words = str(error.get("ctx", {}).get("expected", "text")).replace("'", "")
                    wanted = f"a name with {words}"
            close = difflib.get_close_matches(str(value), fields.choices(owner, name), 1)
            near = f"; did you mean {close[0]!r}?" if close else ""
            shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
            self.faults.append(f"{self._spelled(place)}: {shown} is not {wanted}{near}")

    def _owner(self, kind: type[Options], loc: Sequence[str | int]) -> tuple[Place, Any, str]:
        """Return the place of the setting that an error is about, its class and its name."""
        owner: Any = kind
        place: list[str | int] = []
        name = str(loc[0])
        for depth, step in enumerate(loc):
            place.append(step)
            if isinstance(step, int):
                continue
            if step not in owner.model_fields:
                place.pop()
                break
            name = step
            inner = section(owner, name)
            rest = loc[depth + 1 :]
            if inner is None or not any(isinstance(word, str) for word in rest):
                if inner is not None:
                    place += rest
                break
            owner = inner
        return tuple(place), owner, name

    def _spelled(self, place: Place) -> str:
        """Return what a message calls a setting: ``mix.yaml:7: sources[2].share``."""
        written = self._written.get(place)
        if written is None:
            parent = place[:-1]
            written = (*self._written.get(parent, parent), place[-1])
        text = ""
        for step in written:
            text += f"[{step + 1}]" if isinstance(step, int) else f".{step}" if text else step
        keys = tuple(str(step + 1) if isinstance(step, int) else step for step in written)
        while keys and not (lines := self._below(keys)):
            keys = keys[:-1]
        line = f":{min(lines)}" if keys else ""
        return f"{self._where}{line}: {text}"

    def _below(self, keys: tuple[str, ...]) -> list[int]:
        """Return the lines of a key, or of all keys inside an item of a list."""
        if keys in self._lines:
            return [self._lines[keys]]
        return [line for place, line in self._lines.items() if place[: len(keys)] == keys]


def section(kind: type[Options], name: str) -> type[Options] | None:
    """Return the class of settings that a field (or each entry of its list) holds, if any."""
    for part in fields.parts(kind, name):
        inner = get_args(part)[0] if get_origin(part) is list else part
        if isinstance(inner, type) and issubclass(inner, Options):
            return inner
    return None
