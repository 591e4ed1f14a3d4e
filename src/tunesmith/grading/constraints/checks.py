"""Reading constraints from rows, and holding a text to them, strictly and loosely."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.grading.constraints.registry import KINDS


class ConstraintFault(ValueError):
    """A constraint that cannot be checked; ``expected`` says what it should have been."""

    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(reason)
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint with its parameters, known and complete."""

    kind: str
    """One of ``KINDS``."""
    parameters: Mapping[str, Any]

    @property
    def tells_language(self) -> bool:
        """Whether its check needs a detector of languages."""
        return KINDS[self.kind].tells_language

    def strict(self, text: str) -> bool:
        """Say whether a text as it stands follows it; one of nothing but space follows none."""
        return bool(text.strip()) and KINDS[self.kind].check(text, **self.parameters)

    def loose(self, text: str) -> bool:
        """Say whether a text follows it in one of its eight forms (see ``loose_forms``)."""
        return any(self.strict(form) for form in loose_forms(text))

    def __str__(self) -> str:
        said = " ".join(f"{name}={value!r}" for name, value in sorted(self.parameters.items()))
        return f"{self.kind} {said}".strip()


def read_constraints(ids: Any, kwargs: Any) -> list[Constraint]:
    """Return the constraints of a row; ``ConstraintFault`` for what is unknown, missing or wrong.

    ``kwargs`` has a mapping of parameters for each id; a parameter that is null is absent, since
    public copies of the data pad every mapping with nulls. None stands for no parameters at all.
    """
    listed = isinstance(ids, Sequence) and not isinstance(ids, str)
    if not listed or not ids:
        raise ConstraintFault("no list of constraints", '"instruction_id_list": ["…", …]')
    given = [{}] * len(ids) if kwargs is None else kwargs
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(ids):
        count = len(given) if isinstance(given, Sequence) and not isinstance(given, str) else "no"
        raise ConstraintFault(
            f"{len(ids)} constraints and {count} kwargs", "as many kwargs as constraints"
        )
    return [_read(name, values) for name, values in zip(ids, given, strict=True)]


def _read(name: Any, values: Any) -> Constraint:
    if not isinstance(name, str) or name not in KINDS:
        near = difflib.get_close_matches(str(name), KINDS, n=1)
        known = f"perhaps {near[0]}" if near else f"one of {', '.join(KINDS)}"
        raise ConstraintFault(f"there is no constraint {name!r}", known)
    readers = KINDS[name].parameters
    wanted = ", ".join(readers) or "no parameters"
    if not isinstance(values, Mapping):
        if values is not None:
            raise ConstraintFault(f"the kwargs of {name} are {values!r}", f"a mapping of {wanted}")
        values = {}
    present = {key: value for key, value in values.items() if value is not None}
    for key in present:
        if key not in readers:
            raise ConstraintFault(f"{name} has no parameter {key!r}", wanted)
    parameters = {}
    for key, reader in readers.items():
        if key not in present:
            raise ConstraintFault(f"{name} lacks its parameter {key!r}", wanted)
        try:
            parameters[key] = reader(present[key])
        except (ValueError, OverflowError) as wrong:
            raise ConstraintFault(
                f"{name} has {key} = {present[key]!r}", f"{key} as {wrong}"
            ) from None
    if name.endswith(":nth_paragraph_first_word"):
        wanted_one, of = parameters["nth_paragraph"], parameters["num_paragraphs"]
        if wanted_one > of:
            raise ConstraintFault(
                f"{name} asks for paragraph {wanted_one} of {of}", "nth_paragraph ≤ num_paragraphs"
            )
    return Constraint(name, parameters)


def loose_forms(text: str) -> list[str]:
    """Return the forms of a text that the loose verdict looks at, the text itself first.

    It stands as it is, without its first line, without its last, and without both; and each of
    these without asterisks. Equal forms are given once.
    """
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(form.replace("*", "") for form in cut)]))


def stored_constraints(meta: Mapping[str, Any]) -> list[Constraint]:
    """Return the constraints that a problem keeps in its ``meta``; none where it has none."""
    stored = meta.get("constraints")
    if not stored:
        return []
    return read_constraints([one["kind"] for one in stored], [one["kwargs"] for one in stored])
