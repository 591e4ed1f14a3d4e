"""A YAML mapping together with the line of each of its keys, so that faults can name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class YamlFault(Exception):
    """A file that holds no usable mapping; the message is a whole sentence."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """What a file holds."""

    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """Path of keys → 1-based line: ``("lora", "rank")`` for a key in a section; items of a list
    are counted from 1."""


def read_yaml(path: Path) -> YamlFile:
    """Read a mapping, safely: no tag makes an object; a key given twice is refused.

    Raises ``YamlFault`` for a file that cannot be read, is no YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise YamlFault(f"{path} is not a text file in UTF-8.") from None
    except OSError as failure:
        raise YamlFault(f"{path} cannot be read: {failure.strerror}.") from None
    try:
        return _parse(path, text)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise YamlFault(f"{place}: not valid YAML: {failure.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as failure:
        reason = str(failure).splitlines()[0] if str(failure) else "it is nested too deep"
        raise YamlFault(f"{path}: not valid YAML: {reason}.") from None


def _parse(path: Path, text: str) -> YamlFile:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return YamlFile()
        if not isinstance(root, yaml.MappingNode):
            raise YamlFault(
                f"{path}:{root.start_mark.line + 1}: this is no mapping of settings "
                "(«name: value», one a line)."
            )
        lines: dict[tuple[str, ...], int] = {}
        _lines(path, root, (), lines)
        return YamlFile(loader.construct_document(root), lines)
    finally:
        loader.dispose()


def _lines(
    path: Path, node: yaml.Node, above: tuple[str, ...], lines: dict[tuple[str, ...], int]
) -> None:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value, 1):
            _lines(path, item, (*above, str(number)), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        place = (*above, str(key.value))
        line = key.start_mark.line + 1
        if place in lines:
            name = ".".join(place)
            raise YamlFault(f"{path}:{line}: {name!r} stands in line {lines[place]} already.")
        lines[place] = line
        _lines(path, value, place, lines)
