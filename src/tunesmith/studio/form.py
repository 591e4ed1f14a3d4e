"""The form that starts a run: made from the schema, judged as the command line judges flags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config import fields, flags
from tunesmith.config.load import canonical, resolve
from tunesmith.config.presets import PRESETS
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError

COMMON = (
    "model", "task", "dataset", "eval_dataset", "run_name", "num_epochs", "max_steps", "minutes",
    "learning_rate", "max_length", "per_device_train_batch_size", "lora", "lora_rank",
    "eval_steps", "logging_steps", "eval_questions",
)  # fmt: skip
"""Settings that stand first; all others are under «more»."""
LEFT_OUT = ("resume",)
"""A run is resumed from its own page."""
CONFIG = "config"
"""Name of the field that takes presets and YAML files."""
_DECIDES = {"num_epochs": "max_steps", "max_steps": "minutes", "warmup_ratio": "warmup_steps"}
"""Settings that do nothing beside another one."""
_FLAG = re.compile(r"--([a-z0-9-]+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting as a form shows it."""

    name: str
    label: str
    about: str
    kind: str
    """choice, switch, lines (one value a line), text or number."""
    default: str
    words: Sequence[str] = ()
    value: str = ""
    faults: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Filled:
    """What somebody typed, and what is wrong with it."""

    values: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, Sequence[str]] = field(default_factory=dict)
    general: Sequence[str] = ()
    """Faults that belong to no one field."""

    @property
    def is_right(self) -> bool:
        """Whether the command line would take it."""
        return not (self.faults or self.general)

    def arguments(self) -> list[str]:
        """Return the words behind ``tunesmith train``: one for each value, whatever it holds."""
        words = [f"--config={one}" for one in _lines(self.values.get(CONFIG, ""))]
        for name, value in self.values.items():
            if name == CONFIG:
                continue
            several = fields.is_list(FineTuningConfig, name)
            flag = f"--{name.replace('_', '-')}"
            words += [f"{flag}={one}" for one in (_lines(value) if several else [value])]
        return words


def read(form: Mapping[str, Sequence[str]], parent: str) -> Filled:
    """Judge a form; runs go below ``parent`` unless it says otherwise."""
    known = [CONFIG, *FineTuningConfig.model_fields]
    typed = {name: form[name][-1].replace("\r\n", "\n").strip() for name in known if name in form}
    values = {name: text for name, text in typed.items() if text and name not in LEFT_OUT}
    values.setdefault("output_dir", parent)
    filled = Filled(values)
    parsed = flags.parse(FineTuningConfig, filled.arguments())
    try:
        resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults)
    except UsageError as mistake:
        return _with_faults(values, mistake.found.split("\n"))
    return filled


def like(config: Mapping[str, Any]) -> Filled:
    """Return the form as a run's stored settings fill it: with what differs from the defaults."""
    kept = {}
    for name, known in FineTuningConfig.model_fields.items():
        value = config.get(name)
        same = value == known.get_default(call_default_factory=True)
        if value is None or same or name in (*LEFT_OUT, "output_dir", "overwrite"):
            continue
        if config.get(_DECIDES.get(name, "")):
            continue
        shown = "\n".join(map(str, value)) if isinstance(value, list) else fields.shown(value)
        kept[name] = shown if not isinstance(value, float) else repr(value)
    return Filled(kept)


def entries(filled: Filled) -> tuple[list[Entry], list[tuple[str, list[Entry]]]]:
    """Return the common settings, and the others by section."""
    preset = Entry(
        CONFIG,
        "presets and YAML files",
        "Names of presets and paths of YAML files, one a line; what is filled in goes before them.",
        "lines",
        "unset",
        list(PRESETS),
        filled.values.get(CONFIG, ""),
        filled.faults.get(CONFIG, ()),
    )
    common = [*(_entry(name, filled) for name in COMMON), preset]
    others = []
    for title, names in flags.sections(FineTuningConfig):
        rest = [n for n in names if n not in COMMON and n not in LEFT_OUT]
        if rest:
            others.append((title, [_entry(name, filled) for name in rest]))
    return common, others


def _entry(name: str, filled: Filled) -> Entry:
    kind = FineTuningConfig
    words: Sequence[str] = fields.choices(kind, name)
    types = fields.parts(kind, name)
    if fields.is_bool(kind, name):
        shape, words = "choice", ("true", "false")
    elif fields.is_list(kind, name):
        shape = "lines"
    elif words and len(types) == 1:
        shape = "choice"
    elif set(types) <= {int, float}:
        shape = "number"
    else:
        shape = "text"
    about = " ".join((kind.model_fields[name].description or "").split())
    return Entry(
        name,
        name.replace("_", " "),
        about,
        shape,
        flags.default(kind, name),
        words,
        filled.values.get(name, ""),
        filled.faults.get(name, ()),
    )


def _with_faults(values: Mapping[str, str], sentences: Sequence[str]) -> Filled:
    """Lay each sentence beside the field whose flag it begins with."""
    faults: dict[str, list[str]] = {}
    general = []
    for sentence in sentences:
        flag = _FLAG.match(sentence)
        name = canonical(flag[1]) if flag else ""
        if name == CONFIG or (name in FineTuningConfig.model_fields and name not in LEFT_OUT):
            faults.setdefault(name, []).append(sentence)
        else:
            general.append(sentence)
    return Filled(values, faults, general)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
