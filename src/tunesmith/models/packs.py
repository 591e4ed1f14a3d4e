"""How rows lie in one sequence: which of them share their beginning, and what each one is taught.

Rows that begin alike (k answers to one prompt) are a group: the tokens that they share stand once,
the rest of each row after them. P shared tokens and k rests of C tokens take P+kC places, not
k(P+C).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that begin alike; a row by itself is a group whose prefix is the whole row."""

    prefix: int
    """Tokens that all rows of the group share; they see themselves alone, causally."""
    rests: tuple[int, ...] = ()
    """Tokens of each continuation, at least 1: it sees the prefix and its own tokens, causally.

    Rows that end where the prefix does have none.
    """

    @property
    def tokens(self) -> int:
        """Return the places that the group takes."""
        return self.prefix + sum(self.rests)


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows in one sequence, with all that their losses need; labels stand row after row.

    One place may have several labels: the last token of a prefix predicts the first token of each
    continuation, and a trained token of a prefix is a label of each of its rows.
    """

    ids: tuple[int, ...]
    groups: tuple[Group, ...]
    places: tuple[int, ...]
    """Of each label: the place in ``ids`` whose output predicts it."""
    targets: tuple[int, ...]
    """Of each label: the token."""
    weights: tuple[float, ...]
    """Of each label: the weight of its loss."""
    counts: tuple[int, ...]
    """Labels of each row."""
