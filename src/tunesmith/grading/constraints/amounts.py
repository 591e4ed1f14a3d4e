"""Relations between a count and a bound, shared by all constraints that count."""

from __future__ import annotations

AT_LEAST = "at least"
LESS_THAN = "less than"
RELATIONS = (LESS_THAN, AT_LEAST)


def holds(count: int, relation: str, bound: int) -> bool:
    """Say whether a count is at least, or less than, its bound."""
    return count >= bound if relation == AT_LEAST else count < bound
