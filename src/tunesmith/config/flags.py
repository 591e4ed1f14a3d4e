"""Command-line flags made from a class of settings, and its help text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config import fields
from tunesmith.config.load import canonical, suggestion
from tunesmith.config.presets import ALIASES, BARE, PRESETS, SWITCHES, TASK_DEFAULTS
from tunesmith.config.schema import FineTuningConfig, Options

WIDTH = 80
OWN = "This command"
"""Title of the settings that no other command shares."""


@dataclass(slots=True)
class Parsed:
    """What a command line says, values still as text, and what is wrong with it."""

    given: dict[str, Any] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    """Values of ``--config``."""
    faults: list[str] = field(default_factory=list)


def parse(kind: type[Options], arguments: Sequence[str], positional: Sequence[str] = ()) -> Parsed:
    """Read a command line; faults are returned, to be reported with those of other layers.

    ``--x value``, ``--x=value``; ``--x``, ``--x true|false`` and ``--no-x`` for booleans; lists
    take several values. The fields in ``positional`` may stand without a flag, a list among them
    several times; after ``--`` everything does.
    """
    parsed = Parsed()
    loose: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            loose += queue
            break
        if not word.startswith("-") or len(word) == 1:
            loose.append(word)
        elif word.startswith("--"):
            _flag(kind, word[2:], queue, parsed)
        else:
            parsed.faults.append(f"unknown flag {word}; flags begin with two dashes")
    _place(kind, loose, positional, parsed)
    return parsed


def _flag(kind: type[Options], text: str, queue: list[str], parsed: Parsed) -> None:
    """Read one flag and take its values off the queue."""
    raw, equals, value = text.partition("=")
    name = canonical(raw)
    values = [value] if equals else []
    if name == "config":
        values = values or _values(queue, 1)
        parsed.configs += values
        if not values:
            parsed.faults.append("--config wants a YAML file or a preset's name")
    elif name in SWITCHES and SWITCHES[name][0] in kind.model_fields:
        _switch(name, values or _truth(queue), parsed)
    elif name.startswith("no_") and _has_no(kind, canonical(name[3:])) and not equals:
        parsed.given[canonical(name[3:])] = False
    elif name not in kind.model_fields:
        parsed.faults.append(f"unknown flag --{raw}{suggestion(kind, raw)}")
        _values(queue, 1)
    elif fields.is_bool(kind, name):
        values = values or _truth(queue)
        parsed.given[name] = values[0] if values else True
    elif name in BARE and not values and (not queue or queue[0].startswith("--")):
        parsed.given[name] = BARE[name]
    else:
        several = fields.is_list(kind, name)
        values = values or _values(queue, len(queue) if several else 1)
        if not values:
            parsed.faults.append(f"--{raw} wants {fields.expected(kind, name)}")
        elif several:
            parsed.given[name] = [*parsed.given.get(name, []), *values]
        else:
            parsed.given[name] = values[0]


def _has_no(kind: type[Options], name: str) -> bool:
    """Say whether ``--no-x`` is a flag."""
    words = fields.choices(kind, name)
    return fields.is_bool(kind, name) or (name in BARE and bool({"no", "off"} & {*words}))


def _switch(name: str, values: list[str], parsed: Parsed) -> None:
    """Read a flag that stands for a value of another setting, such as ``--bf16``."""
    target, meaning = SWITCHES[name]
    said = values[0].lower() if values else "true"
    if said not in ("true", "false"):
        parsed.faults.append(f"--{name}: {values[0]!r} is not true or false")
    elif said == "true" and parsed.given.get(target, meaning) != meaning:
        other = f"--{target.replace('_', '-')} {parsed.given[target]}"
        parsed.faults.append(f"--{name} contradicts {other}")
    elif said == "true":
        parsed.given[target] = meaning


def _place(
    kind: type[Options], loose: list[str], positional: Sequence[str], parsed: Parsed
) -> None:
    """Give the words without a flag to the fields that may stand so."""
    for name in positional:
        if fields.is_list(kind, name) and loose:
            parsed.given[name] = [*parsed.given.get(name, []), *loose]
            loose = []
        elif loose and name not in parsed.given:
            parsed.given[name] = loose.pop(0)
    parsed.faults += [f"unexpected word {word!r}" for word in loose]


def _values(queue: list[str], most: int) -> list[str]:
    taken: list[str] = []
    while queue and len(taken) < most and not queue[0].startswith("--"):
        taken.append(queue.pop(0))
    return taken


def _truth(queue: list[str]) -> list[str]:
    """Take a truth value off the queue if one comes next; any other word is no value of this."""
    return _values(queue, 1) if queue and queue[0].lower() in ("true", "false") else []


def sections(kind: type[Options]) -> list[tuple[str, list[str]]]:
    """Return the section titles of a class and the fields of each, every field once."""
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    own = [base for base in kind.__mro__ if issubclass(base, Options) and base is not Options]
    for base in [kind, *reversed(own[1:])]:
        names = [n for n in base.__annotations__ if n in kind.model_fields and n not in seen]
        seen.update(names)
        if names:
            title = OWN if base is kind else (base.__doc__ or "").strip()
            found.append((title, names))
    return found


def spellings(name: str) -> list[str]:
    """Return every flag that a setting may be given by, its own name first."""
    aliases = [f"--{a.replace('_', '-')}" for a, target in ALIASES.items() if target == name]
    aliases += [f"--{switch}" for switch, (target, _) in SWITCHES.items() if target == name]
    return [f"--{name.replace('_', '-')}", *aliases]


def default(kind: type[Options], name: str) -> str:
    """Return what holds without the flag."""
    if issubclass(kind, FineTuningConfig) and all(
        name in layer for layer in TASK_DEFAULTS.values()
    ):
        return "the task's"
    return fields.default(kind, name)


def usage(command: str, kind: type[Options], positional: Sequence[str] = ()) -> str:
    """Return the help text of a command, at most 80 columns wide."""
    words = [positional_word(kind, name) for name in positional]
    lines = [" ".join(["usage: tunesmith", command, *words, "[--setting value …]"]), ""]
    for title, names in sections(kind):
        lines.append(f"{title}:")
        for name in names:
            lines += _wrapped(", ".join(spellings(name)), 2, 4)
            words = list(fields.choices(kind, name))
            text = (kind.model_fields[name].description or "").replace("\n", " ")
            among = f" One of: {', '.join(words)}." if len(words) > 1 else ""
            lines += _wrapped(f"{text}{among} [{default(kind, name)}]", 6, 6)
        lines.append("")
    if issubclass(kind, FineTuningConfig):
        lines += ["What «the task's» is in [ ] above:", *task_table(), ""]
    presets = f" or a preset ({', '.join(PRESETS)})" if issubclass(kind, FineTuningConfig) else ""
    return "\n".join(
        [
            *lines,
            *_wrapped(
                f"--config takes a YAML file{presets}; several may follow each other, each with a "
                "--config of its own. The command line goes before files, files before presets, "
                "presets before the task.",
                0,
                0,
            ),
            *_wrapped(
                "Names take dashes or underscores. Switches: --x, --x true, --x false, --no-x.",
                0,
                0,
            ),
        ]
    )


def task_table() -> list[str]:
    """Return the tasks' own defaults as lines of a table, under 80 columns."""
    heads = ("task", "rate", "epochs", "batch", "warm-up", "eval/save", "length", "LoRA r/alpha")
    rows = [heads]
    for task, values in TASK_DEFAULTS.items():
        batch = f"{values['per_device_train_batch_size']}x{values['gradient_accumulation_steps']}"
        rows.append(
            (
                task,
                f"{values['learning_rate']:g}",
                f"{values['num_epochs']:g}",
                batch,
                str(values["warmup_steps"]),
                f"{values['eval_steps']}/{values['save_steps']}",
                str(values["max_length"]),
                f"{values['lora_rank']}/{values['lora_alpha']:g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def positional_word(kind: type[Options], name: str) -> str:
    """Return how a field without a flag is shown in the usage line."""
    word = name.upper() + (" …" if fields.is_list(kind, name) else "")
    known = kind.model_fields[name]
    return word if known.is_required() else f"[{word}]"


def _wrapped(text: str, first: int, rest: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_on_hyphens=False,
    )
