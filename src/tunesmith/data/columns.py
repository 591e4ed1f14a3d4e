"""Fields under the names that layouts look for: ``--columns``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tunesmith.data.chats import RowFault
from tunesmith.data.readers import Fault, Row
from tunesmith.errors import UsageError

Fields = Mapping[str, Any]

_PLACE = re.compile(r"\{([^{}]+)\}")
"""A field in a template of ``--columns``."""


@lru_cache
def _check_templates(columns: tuple[tuple[str, str], ...]) -> None:
    """Refuse a template without a field, or with a brace that has no partner."""
    for wanted, own in columns:
        if "{" not in own and "}" not in own:
            continue
        rest = own
        while (inner := re.sub(r"\{[^{}]*\}", "", rest)) != rest:
            rest = inner
        if "{" in rest or "}" in rest or not _PLACE.search(own):
            raise UsageError(
                f"--columns {wanted}={own} is no template.",
                expected="names of fields in pairs of braces",
                hint=f"--columns '{wanted}={{question}} Choose: {{options}}'",
            )


def rename(fields: Fields, columns: Mapping[str, str]) -> Fields:
    """Return fields under the names that formats look for (``--columns``).

    A column is a field, a path into one (``question.text``), or a template such as
    ``{question} Choose: {options}``.
    """
    if not columns:
        return fields
    _check_templates(tuple(columns.items()))
    taken = {own for own in columns.values() if own in fields}
    renamed = {name: value for name, value in fields.items() if name not in taken}
    for wanted, own in columns.items():
        if "{" in own or "}" in own:
            renamed[wanted] = _PLACE.sub(lambda m: _as_text(fields, m[1]), own)
        else:
            renamed[wanted] = _at(fields, own)
    return renamed


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row under the names that are looked for; raises ``DataError`` with its place."""
    try:
        return Row(dict(rename(row.fields, columns)), row.origin)
    except RowFault as wrong:
        raise Fault(row.origin, wrong.reason, wrong.expected).error() from None


def _at(fields: Fields, path: str) -> Any:
    if path in fields:
        return fields[path]
    value: Any = fields
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(map(str, fields)) or "none"
            raise RowFault(f"there is no field {path!r}", f"one of {known}")
        value = value[name]
    return value


def _as_text(fields: Fields, path: str) -> str:
    value = _at(fields, path.strip())
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)
