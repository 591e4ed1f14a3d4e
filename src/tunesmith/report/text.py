"""Texts that may hold anything, made showable."""

from __future__ import annotations

from typing import Any

_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


def plain_text(value: Any) -> Any:
    """Make a text showable: control characters become their pictures, surrogates their escapes.

    Everything else stays as it is, markup included; escaping is the template's.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    value = value.replace("\r\n", "\n").encode("utf-8", "backslashreplace").decode("utf-8")
    return value.translate(_PICTURES)
