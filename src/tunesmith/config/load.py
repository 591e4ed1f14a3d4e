"""Layers of settings into one checked object: command line > file > preset > task > default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from tunesmith.config.presets import ALIASES, LORA_RATE, PRESETS, SECTIONS, SWITCHES, TASK_DEFAULTS
from tunesmith.config.schema import FineTuningConfig, Options
from tunesmith.errors import UsageError

O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass(frozen=True, slots=True)
class Resolved(Generic[O]):
    """Checked settings, and where each one that is not a default came from."""

    options: O
    sources: Mapping[str, str]

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (setting, value, source) of everything that differs from the defaults."""
        return [
            (name, str(getattr(self.options, name)), source)
            for name, source in sorted(self.sources.items())
        ]


def canonical(key: str) -> str:
    """Return a setting's own name: dashes become underscores, aliases are looked up."""
    name = key.replace("-", "_")
    return ALIASES.get(name, name)


def resolve(
    kind: type[O], given: Mapping[str, Any], configs: Sequence[str] = (), origin: str = "flag"
) -> Resolved[O]:
    """Merge the layers and check them, reporting every fault at once in a ``UsageError``."""
    faults: list[str] = []
    layers: list[tuple[str, dict[str, Any]]] = []
    for config in configs:
        label = "preset" if config in PRESETS else "file"
        layers.append((f"{label} {config}", _load(kind, config, faults)))
    # A file named after a preset still wins over it: presets lie below files.
    layers.sort(key=lambda layer: layer[0].startswith("file"))
    layers.append((origin, normalise(kind, given, origin, faults)))
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for label, layer in layers:
        for name, value in layer.items():
            merged[name], sources[name] = value, label
    if kind is FineTuningConfig:
        _task_layer(merged, sources)
    try:
        options = kind(**merged)
    except ValidationError as failure:
        for error in failure.errors():
            name = str(error["loc"][0]) if error["loc"] else "?"
            if error["type"] == "missing":
                faults.append(f"{_flag(name)} is missing: {_doc(kind, name)}")
            else:
                shown = f"{error.get('input')!r}"
                faults.append(f"{_flag(name)} ({sources.get(name, '')}): {shown}: {error['msg']}")
        raise _fault(faults) from None
    if faults:
        raise _fault(faults)
    known = {name: source for name, source in sources.items() if name in kind.model_fields}
    return Resolved(options, known)


def normalise(
    kind: type[Options], given: Mapping[str, Any], where: str, faults: list[str]
) -> dict[str, Any]:
    """Return settings under their own names; unknown ones become faults with a suggestion."""
    found: dict[str, Any] = {}
    for raw, value in given.items():
        key = str(raw).replace("-", "_")
        if key in SECTIONS and isinstance(value, Mapping):
            found[key] = True
            inner = {f"{SECTIONS[key]}{name}": inside for name, inside in value.items()}
            found.update(normalise(kind, inner, where, faults))
            continue
        if key in SWITCHES and value is True:
            key, value = SWITCHES[key]
        name = canonical(key)
        if name not in kind.model_fields:
            faults.append(f"{where}: unknown setting {str(raw)!r}{suggestion(kind, key)}")
            continue
        found[name] = _shaped(kind, name, value)
    return found


def suggestion(kind: type[Options], key: str) -> str:
    """Return «; did you mean …?» for the nearest known name, or nothing."""
    names = [*kind.model_fields, *(a for a, name in ALIASES.items() if name in kind.model_fields)]
    close = difflib.get_close_matches(key.replace("-", "_"), names, 1, 0.6)
    return f"; did you mean {_flag(close[0])}?" if close else ""


def _shaped(kind: type[Options], name: str, value: Any) -> Any:
    """Bring a value into the shape that the schema wants where YAML and shells differ from it."""
    annotation = str(kind.model_fields[name].annotation)
    if annotation.startswith("list") and isinstance(value, str):
        return [part for part in value.split(",") if part]
    if annotation.startswith("dict") and isinstance(value, str):
        return dict(part.split("=", 1) for part in value.split(",") if "=" in part)
    if value == "None":
        return None
    return value


def _load(kind: type[Options], config: str, faults: list[str]) -> dict[str, Any]:
    if config in PRESETS:
        return dict(PRESETS[config])
    path = Path(config)
    if not path.is_file():
        close = difflib.get_close_matches(config, PRESETS, 1)
        near = f"; did you mean {close[0]!r}?" if close else ""
        faults.append(
            f"--config {config!r} is neither a file nor a preset ({', '.join(PRESETS)}){near}"
        )
        return {}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as failure:
        faults.append(f"{config} cannot be read: {' '.join(str(failure).split())}")
        return {}
    if not isinstance(raw, dict):
        faults.append(f"{config} holds {type(raw).__name__}, not a mapping of settings")
        return {}
    return normalise(kind, raw, config, faults)


def _task_layer(merged: dict[str, Any], sources: dict[str, str]) -> None:
    """Fill what neither user nor preset set with the task's defaults."""
    task = str(merged.get("task", FineTuningConfig.model_fields["task"].default))
    defaults = dict(TASK_DEFAULTS.get(task, {}))
    if merged.get("lora") in (True, "true", "True"):
        defaults["learning_rate"] = defaults.get("learning_rate", 2e-5) * LORA_RATE
    if "lora_rank" in merged and "lora_alpha" not in merged and defaults:
        # A rank alone keeps the task's ratio of alpha to rank.
        ratio = defaults["lora_alpha"] / defaults["lora_rank"]
        defaults["lora_alpha"] = ratio * float(merged["lora_rank"])
    if "max_steps" in merged:
        defaults.pop("num_epochs", None)
    for name, value in defaults.items():
        if name not in merged:
            merged[name], sources[name] = value, f"task {task}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _doc(kind: type[Options], name: str) -> str:
    field = kind.model_fields.get(name)
    return (field.description or "") if field else ""


def _fault(faults: list[str]) -> UsageError:
    return UsageError("\n".join(faults), hint="--help lists every setting")
