"""Showing rows with their trained tokens, in colour or between brackets."""

from __future__ import annotations

from tunesmith.data.render import Renderer
from tunesmith.types import Encoded

OPEN, CLOSE = "⟦", "⟧"


def spans(row: Encoded, renderer: Renderer) -> list[tuple[str, bool]]:
    """Return a row's text in parts that are all trained or all not, special tokens shown."""
    parts: list[tuple[list[int], bool]] = []
    for token, weight in zip(row.ids, row.weights, strict=True):
        trained = weight > 0
        if not parts or parts[-1][1] != trained:
            parts.append(([], trained))
        parts[-1][0].append(token)
    return [(renderer.decode_raw(ids), trained) for ids, trained in parts]


def marked(row: Encoded, renderer: Renderer, limit: int | None = None) -> str:
    """Return a row's text with its trained parts in brackets, cut to ``limit`` characters."""
    text = "".join(f"{OPEN}{t}{CLOSE}" if on else t for t, on in spans(row, renderer))
    return text if limit is None or len(text) <= limit else f"{text[:limit]} …"


def summary(row: Encoded) -> str:
    """Say in one line how much of a row is trained."""
    trained = sum(1 for weight in row.weights if weight)
    return f"{row.origin}: {len(row.ids)} tokens, {trained} trained"
