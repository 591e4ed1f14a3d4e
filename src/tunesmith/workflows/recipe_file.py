"""The layout of a recipe: a YAML file that names a model and a list of stages."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.yaml_file import YamlFault, read_yaml
from tunesmith.errors import UsageError

VERBS = ("data", "train", "grpo", "rft", "sample", "eval", "compare", "export", "report")
TOP_KEYS = ("name", "about", "model", "stages")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe: a verb, a name that later stages refer to, and its settings."""

    verb: str
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe."""

    name: str
    about: str
    model: str
    stages: tuple[Stage, ...]
    path: Path


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` overrides, reporting every fault at once.

    An override is ``model=…`` for the whole recipe, ``stage.key=value`` for one stage, or
    ``eval.key=value`` (any verb) for all stages of that verb. Values are read as YAML.
    """
    if not path.is_file():
        raise UsageError(
            f"There is no recipe {str(path)!r}.",
            expected="a YAML file with name, model and stages",
            hint="tunesmith run recipes/units-rft.yaml",
        )
    try:
        raw = read_yaml(path).values
    except YamlFault as fault:
        raise UsageError(str(fault), expected="a YAML mapping") from None
    faults: list[str] = []
    recipe = _parse(path, raw, faults)
    if not faults:
        recipe = _override(recipe, overrides, faults)
    if faults:
        raise UsageError(
            "\n".join(f"{path}: {fault}" for fault in faults),
            expected=f"stages of {', '.join(VERBS)}, each with its settings",
        )
    return recipe


def _parse(path: Path, raw: Mapping[str, Any], faults: list[str]) -> Recipe:
    faults += [f"unknown key {key!r}{_near(key, TOP_KEYS)}" for key in raw if key not in TOP_KEYS]
    stages: list[Stage] = []
    listed = raw.get("stages")
    if not isinstance(listed, list) or not listed:
        faults.append("'stages' is missing, empty or not a list")
        listed = []
    for position, entry in enumerate(listed, 1):
        stage = _stage(position, entry, faults)
        if stage is None:
            continue
        if any(stage.name == other.name for other in stages):
            faults.append(f"two stages are called {stage.name!r}")
        stages.append(stage)
    return Recipe(
        str(raw.get("name") or path.stem),
        str(raw.get("about") or ""),
        str(raw.get("model") or "tunesmith/tiny"),
        tuple(stages),
        path,
    )


def _stage(position: int, entry: Any, faults: list[str]) -> Stage | None:
    if not isinstance(entry, dict) or len(entry) != 1:
        faults.append(f"stage {position} is not of the form «verb: {{settings}}»")
        return None
    verb, settings = next(iter(entry.items()))
    settings = {} if settings is None else settings
    if verb not in VERBS:
        faults.append(f"stage {position}: unknown verb {verb!r}{_near(verb, VERBS)}")
        return None
    if not isinstance(settings, dict):
        faults.append(f"stage {position} ({verb}): its settings are not a mapping")
        return None
    settings = dict(settings)
    name = str(settings.pop("name", verb))
    if not name.replace("-", "").replace("_", "").isalnum():
        faults.append(f"stage {position}: the name {name!r} may hold letters, digits, - and _ only")
        return None
    return Stage(str(verb), name, settings)


def _override(recipe: Recipe, overrides: Sequence[str], faults: list[str]) -> Recipe:
    model = recipe.model
    settings = {stage.name: dict(stage.settings) for stage in recipe.stages}
    names = [*settings, *VERBS]
    for override in overrides:
        key, equals, text = override.partition("=")
        target, dot, field = key.partition(".")
        if not equals:
            faults.append(f"the override {override!r} is not of the form key=value")
        elif key == "model":
            model = text
        elif not dot:
            faults.append(f"the override {key!r} names no stage{_near(key, ['model', *names])}")
        elif target not in names:
            faults.append(f"there is no stage {target!r}{_near(target, names)}")
        else:
            for stage in recipe.stages:
                if target in (stage.name, stage.verb):
                    _set(settings[stage.name], field.replace("-", "_"), yaml.safe_load(text))
    stages = tuple(Stage(s.verb, s.name, settings[s.name]) for s in recipe.stages)
    return Recipe(recipe.name, recipe.about, model, stages, recipe.path)


def _set(settings: dict[str, Any], field: str, value: Any) -> None:
    """Set a key, or with dots a key inside: ``mix.rows`` in the settings of a data stage."""
    head, dot, rest = field.partition(".")
    if dot and isinstance(settings.get(head), Mapping):
        settings[head] = dict(settings[head])
        _set(settings[head], rest, value)
    else:
        settings[field] = value


def _near(word: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
