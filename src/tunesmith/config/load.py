"""Layers of settings into one checked object: command line > file > preset > task > default."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from tunesmith.config import fields
from tunesmith.config.presets import (
    ALIASES,
    EXCLUSIVE,
    LORA_RATE,
    OWN_LORA_RATE,
    PRESETS,
    RIVALS,
    SECTIONS,
    SPLIT_AT_COMMAS,
    SWITCHES,
    TASK_DEFAULTS,
)
from tunesmith.config.schema import FineTuningConfig, Options
from tunesmith.config.yaml_file import YamlFault, YamlFile, read_yaml
from tunesmith.errors import UsageError

O = TypeVar("O", bound=Options)  # noqa: E741

FLAG = "flag"
ARGUMENT = "argument"
"""Origin of settings that a Python caller gives."""


@dataclass(frozen=True, slots=True)
class Resolved(Generic[O]):
    """Checked settings, and where each one that is not a default came from."""

    options: O
    sources: Mapping[str, str]

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (setting, value, source) of everything that differs from the defaults."""
        found = []
        for name, source in sorted(self.sources.items()):
            known = type(self.options).model_fields[name]
            value = getattr(self.options, name)
            if known.is_required() or value != known.get_default(call_default_factory=True):
                found.append((name, fields.shown(value), source))
        return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """Settings of one origin."""

    label: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """What a message calls each setting: ``--lora-rank``, or ``my.yaml:3: lora_rank``."""


def canonical(key: str) -> str:
    """Return a setting's own name: dashes become underscores, aliases are looked up."""
    name = key.replace("-", "_")
    return ALIASES.get(name, name)


def resolve(
    kind: type[O],
    given: Mapping[str, Any],
    configs: Sequence[str] = (),
    origin: str = FLAG,
    *,
    faults: Iterable[str] = (),
) -> Resolved[O]:
    """Merge the layers and check them, reporting every fault at once in a ``UsageError``.

    ``given`` are the settings of the highest layer, from ``origin``; ``configs`` are names of
    presets and paths of YAML files; ``faults`` are those found before, while reading flags.
    """
    found = list(faults)
    layers = [_config_layer(kind, config, found) for config in configs]
    # Any file wins over any preset; among equals the later one wins.
    layers.sort(key=lambda layer: layer.label.startswith("file"))
    layers.append(_layer(kind, given, origin, found))
    merged, sources, places = _stack(layers)
    if issubclass(kind, FineTuningConfig):
        _task_layer(kind, merged, sources)
    try:
        options = kind(**merged)
    except ValidationError as failure:
        found += _wording(kind, failure, places, origin)
        raise _fault(found) from None
    found += [
        f"{_spelled(one, origin)} and {_spelled(other, origin)} cannot both be given: {why}"
        for one, other, why in EXCLUSIVE
        if getattr(options, one, None) and getattr(options, other, None)
    ]
    if found:
        raise _fault(found)
    return Resolved(options, sources)


def suggestion(kind: type[Options], key: str, *, flag: bool = True) -> str:
    """Return «; did you mean …?» for the nearest known name, or nothing."""
    names = [*kind.model_fields, *(a for a, name in ALIASES.items() if name in kind.model_fields)]
    names += [switch for switch, (name, _) in SWITCHES.items() if name in kind.model_fields]
    close = difflib.get_close_matches(canonical(key), names, 1, 0.6)
    if not close:
        return ""
    return f"; did you mean {_flag(close[0]) if flag else repr(close[0])}?"


def _config_layer(kind: type[Options], config: str, faults: list[str]) -> _Layer:
    """Read one value of ``--config``: a preset's name or a file."""
    if config in PRESETS:
        foreign = [name for name in PRESETS[config] if name not in kind.model_fields]
        if foreign:
            faults.append(f"--config {config}: this preset is for tunesmith train")
            return _Layer(f"preset {config}")
        places = {name: f"preset {config}: {name}" for name in PRESETS[config]}
        return _Layer(f"preset {config}", dict(PRESETS[config]), places)
    if not Path(config).is_file():
        close = difflib.get_close_matches(config, PRESETS, 1)
        near = f"; did you mean {close[0]!r}?" if close else ""
        faults.append(
            f"--config {config!r} is neither a file nor a preset ({', '.join(PRESETS)}){near}"
        )
        return _Layer(f"file {config}")
    try:
        return _layer(kind, {}, f"file {config}", faults, read_yaml(Path(config)))
    except YamlFault as fault:
        faults.append(str(fault))
        return _Layer(f"file {config}")


def _layer(
    kind: type[Options],
    given: Mapping[str, Any],
    label: str,
    faults: list[str],
    file: YamlFile | None = None,
) -> _Layer:
    """Bring settings under their own names; what is wrong with a name becomes a fault."""
    layer = _Layer(label)
    source = given if file is None else file.values
    for above, raw, value in _flattened(source):
        key = SECTIONS[above] + raw if above else raw
        if file is not None:
            line = file.lines.get((above, raw) if above else (raw,), 0)
            spelled = f"{above}.{raw}" if above else raw
            place = f"{label.removeprefix('file ')}:{line}: {spelled}"
        else:
            place = _spelled(key, label)
        key = key.replace("-", "_")
        if key in SWITCHES and isinstance(value, bool):
            if not value:
                continue
            key, value = SWITCHES[key]
        name = canonical(key)
        if name not in kind.model_fields:
            near = suggestion(kind, key, flag=label == FLAG)
            faults.append(f"{place}: there is no such setting{near}")
        elif name in layer.values and layer.places[name] != place:
            faults.append(f"{place}: {layer.places[name]} sets the same already")
        else:
            layer.places[name] = place
            layer.values[name] = _shaped(kind, name, value, place, faults)
    for section in SECTIONS:
        if section in kind.model_fields and isinstance(source.get(section), Mapping):
            # A section «lora:» asks for LoRA.
            layer.values.setdefault(section, True)
    return layer


def _flattened(given: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return (section or "", key, value) of settings and of those inside sections."""
    found: list[tuple[str, str, Any]] = []
    for raw, value in given.items():
        if str(raw) in SECTIONS and isinstance(value, Mapping):
            found += [(str(raw), str(key), inner) for key, inner in value.items()]
        else:
            found.append(("", str(raw), value))
    return found


def _shaped(kind: type[Options], name: str, value: Any, place: str, faults: list[str]) -> Any:
    """Bring a value into the shape that the schema wants where YAML and shells differ from it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value == "None" and fields.is_optional(kind, name):
        return None
    if isinstance(value, bool):
        # YAML 1.1 reads an unquoted no, off or on as false or true.
        for word in ("on",) if value else ("no", "off"):
            if word in fields.choices(kind, name):
                return word
    if name == "resume" and str(value).lower() in ("true", "false"):
        return "auto" if str(value).lower() == "true" else None
    if fields.is_list(kind, name):
        if not isinstance(value, list | tuple | str):
            return value
        listed = [value] if isinstance(value, str) else value
        words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in listed]
        if name in SPLIT_AT_COMMAS:
            return [part for word in words for part in str(word).split(",") if part]
        return words
    if fields.is_mapping(kind, name) and isinstance(value, str):
        # A template may hold commas, so only one before the next name separates.
        pairs = [part.partition("=") for part in re.split(r",(?=\s*\w+=)", value)]
        wrong = [
            key + middle + inner
            for key, middle, inner in pairs
            if not (key and inner) or ("," in inner and "{" not in inner)
        ]
        if wrong:
            faults.append(f"{place}: {wrong[0]!r} is not of the form name=value")
        return {key.strip(): inner for key, _, inner in pairs}
    return value


def _stack(layers: Sequence[_Layer]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Put layers on top of each other; return values, their sources and their places."""
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    places: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.values.items():
            rival = RIVALS.get(name)
            if value is None:
                # An explicit «unset» puts back what lies below: the task's value or the default.
                merged.pop(name, None)
                sources.pop(name, None)
                continue
            if rival is not None and layer.values.get(rival) is None:
                # Otherwise a lower layer's epochs, say, would silently lose or win.
                merged.pop(rival, None)
                sources.pop(rival, None)
            merged[name], sources[name] = value, layer.label
            places[name] = layer.places.get(name, name)
    return merged, sources, places


def _task_layer(kind: type[Options], merged: dict[str, Any], sources: dict[str, str]) -> None:
    """Fill what neither user nor preset set with the task's defaults."""
    task = str(merged.get("task", kind.model_fields["task"].default))
    if task not in TASK_DEFAULTS:
        return
    defaults = dict(TASK_DEFAULTS[task])
    labels = dict.fromkeys(defaults, f"task {task}")
    if _is_true(merged.get("lora", False)) and task not in OWN_LORA_RATE:
        defaults["learning_rate"] *= LORA_RATE
        labels["learning_rate"] = f"task {task} (x{LORA_RATE:g} for LoRA)"
    rank = _positive(merged.get("lora_rank"))
    if rank is not None:
        # A rank alone keeps the task's ratio of alpha to rank.
        defaults["lora_alpha"] *= rank / defaults["lora_rank"]
        labels["lora_alpha"] = f"task {task} (its ratio to the rank)"
    for name, value in defaults.items():
        if name not in merged and RIVALS.get(name) not in merged:
            merged[name], sources[name] = value, labels[name]


def _is_true(value: Any) -> bool:
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return False


def _positive(value: Any) -> float | None:
    """Return a number above 0; what is none is left to the schema to refuse."""
    try:
        number = TypeAdapter(float).validate_python(value)
    except ValidationError:
        return None
    return number if number > 0 else None


def _wording(
    kind: type[Options], failure: ValidationError, places: Mapping[str, str], origin: str
) -> list[str]:
    """Return one sentence for each wrong setting, in the order of the schema."""
    sentences: dict[str, str] = {}
    for error in failure.errors():
        name = str(error["loc"][0])
        if name in sentences:
            continue
        if error["type"] == "missing":
            explained = (kind.model_fields[name].description or "").strip()
            sentences[name] = f"{_spelled(name, origin)} is missing: {explained}"
            continue
        value = error["input"]
        close = difflib.get_close_matches(str(value), fields.choices(kind, name), 1)
        near = f"; did you mean {close[0]!r}?" if close else ""
        wanted = fields.expected(kind, name, inside=_is_entry(error))
        sentences[name] = f"{places.get(name, name)}: {value!r} is not {wanted}{near}"
    return list(sentences.values())


def _is_entry(error: Mapping[str, Any]) -> bool:
    """Say whether one entry of a list or mapping is wrong, not the whole."""
    return len(error["loc"]) > 1 and isinstance(error["loc"][1], int)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _spelled(name: str, origin: str) -> str:
    """Return what a person who set something there calls it."""
    if origin == FLAG:
        return _flag(name)
    return name if origin == ARGUMENT else f"{origin}: {name}"


def _fault(faults: Sequence[str]) -> UsageError:
    return UsageError("\n".join(faults), hint="--help lists every setting")
