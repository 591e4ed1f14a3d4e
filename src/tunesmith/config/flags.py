"""Command-line flags made from a class of settings, and its help text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from tunesmith.config.load import canonical, suggestion
from tunesmith.config.presets import ALIASES, PRESETS, SWITCHES
from tunesmith.config.schema import Options
from tunesmith.errors import UsageError

WIDTH = 80


def parse(
    kind: type[Options], arguments: Sequence[str], positional: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return (settings, values of --config) of a command line, as text where they are text.

    ``--x value``, ``--x=value``, ``--x`` and ``--no-x`` for booleans; lists take several values.
    The fields in ``positional`` may stand without a flag, the last of them several times.
    """
    given: dict[str, Any] = {}
    configs: list[str] = []
    faults: list[str] = []
    loose: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            loose.append(word)
            continue
        raw, equals, text = word[2:].partition("=")
        name = canonical(raw)
        values = [text] if equals else []
        if name == "config":
            configs += values or _values(queue, 1)
        elif raw in SWITCHES and not equals:
            given[SWITCHES[raw][0]] = SWITCHES[raw][1]
        elif name.startswith("no_") and _is_bool(kind, name[3:]):
            given[canonical(name[3:])] = False
        elif name not in kind.model_fields:
            faults.append(f"unknown flag --{raw}{suggestion(kind, raw)}")
            _values(queue, 1)
        elif _is_bool(kind, name):
            if not values and queue and queue[0].lower() in ("true", "false"):
                values = _values(queue, 1)
            given[name] = values[0] if values else True
        elif name == "resume" and not values and (not queue or queue[0].startswith("--")):
            given[name] = "auto"
        else:
            several = _is_list(kind, name)
            values = values or _values(queue, 1000 if several else 1)
            if not values:
                faults.append(f"--{raw} wants a value")
            elif several:
                given[name] = [*given.get(name, []), *(p for v in values for p in v.split(","))]
            else:
                given[name] = values[0]
    _place(kind, loose, positional, given, faults)
    if faults:
        raise UsageError("\n".join(faults), hint="--help lists every setting")
    return given, configs


def _place(
    kind: type[Options],
    loose: list[str],
    positional: Sequence[str],
    given: dict[str, Any],
    faults: list[str],
) -> None:
    for name in positional:
        if _is_list(kind, name) and loose:
            given[name], loose[:] = [*loose], []
        elif loose:
            given[name] = loose.pop(0)
    faults += [f"unexpected word {word!r}" for word in loose]


def _values(queue: list[str], most: int) -> list[str]:
    taken: list[str] = []
    while queue and len(taken) < most and not queue[0].startswith("--"):
        taken.append(queue.pop(0))
    return taken


def _is_bool(kind: type[Options], name: str) -> bool:
    field = kind.model_fields.get(canonical(name))
    return field is not None and field.annotation is bool


def _is_list(kind: type[Options], name: str) -> bool:
    return str(kind.model_fields[name].annotation).startswith("list")


def sections(kind: type[Options]) -> list[tuple[str, list[str]]]:
    """Return the section titles of a class and the fields of each, every field once."""
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    own = [base for base in kind.__mro__ if issubclass(base, Options) and base is not Options]
    for base in [*reversed(own[1:]), kind]:
        names = [n for n in base.__annotations__ if n in kind.model_fields and n not in seen]
        seen.update(names)
        if names:
            title = "This command" if base is kind else (base.__doc__ or "").strip()
            found.append((title, names))
    return found


def describe(kind: type[Options], name: str) -> tuple[str, str, str]:
    """Return (flags, default, explanation) of one setting."""
    field = kind.model_fields[name]
    aliases = [f"--{a.replace('_', '-')}" for a, target in ALIASES.items() if target == name]
    aliases += [f"--{switch}" for switch, (target, _) in SWITCHES.items() if target == name]
    flags = ", ".join([f"--{name.replace('_', '-')}", *aliases])
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        default = "unset" if value in (None, [], {}) else str(value)
    choices = _choices(field.annotation)
    text = field.description or ""
    return flags, default, f"{text} ({choices})" if choices else text


def _choices(annotation: Any) -> str:
    values = getattr(annotation, "__args__", ()) if "Literal" in str(annotation)[:30] else ()
    return ", ".join(str(value) for value in values)


def usage(command: str, kind: type[Options], positional: Sequence[str] = ()) -> str:
    """Return the help text of a command, at most 80 columns wide."""
    words = " ".join(f"[{name}]" for name in positional)
    lines = [f"usage: tunesmith {command} {words} [--setting value …]".replace("  ", " "), ""]
    for title, names in sections(kind):
        lines.append(f"{title}:")
        for name in names:
            flags, default, text = describe(kind, name)
            lines += textwrap.wrap(flags, WIDTH, initial_indent="  ", subsequent_indent="    ")
            indent = " " * 6
            lines += textwrap.wrap(
                f"{text} [{default}]", WIDTH, initial_indent=indent, subsequent_indent=indent
            )
        lines.append("")
    lines.append(f"--config takes a YAML file or a preset ({', '.join(PRESETS)}), several times.")
    return "\n".join(lines)
