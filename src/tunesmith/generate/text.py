"""The text of a row while it grows: stop strings found in it, and pieces that may be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
_LOST = "\N{REPLACEMENT CHARACTER}"
_MARGIN = 16
"""Characters beyond a stop string that a decoded tail must have: its first one may be half one."""


def cut_at_stop(decode: Decode, tokens: Sequence[int], stop: Sequence[str]) -> str | None:
    """Return the text before the first stop string, None without one.

    Only the tail is looked at, which the last token has lengthened, so the work does not grow with
    the answer; the whole text is made where a stop string stands in the tail.
    """
    wanted = max(map(len, stop)) + _MARGIN
    taken = wanted
    while True:
        tail = decode(tokens[-taken:])
        if taken >= len(tokens) or len(tail) >= wanted:
            break
        taken *= 2
    if not any(one in tail for one in stop):
        return None
    text = decode(tokens)
    found = [at for one in stop if (at := text.find(one)) >= 0]
    return text[: min(found)] if found else None


class Pieces:
    """Cuts a growing answer into pieces that, joined, are its text.

    A piece is held back while it may still change: behind half a character, and where it could be
    the beginning of a stop string.
    """

    def __init__(self, decode: Decode, stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._context = self._read = 0
        """Tokens from the first to the second give the text that new ones are compared with."""
        self._held = ""
        self._shown: list[str] = []

    def add(self, tokens: Sequence[int]) -> str:
        """Return what may be shown now that the row has these tokens; it may be empty."""
        known = self._decode(tokens[self._context : self._read])
        text = self._decode(tokens[self._context :])
        if text.endswith(_LOST) or len(text) <= len(known):
            return ""
        self._held += text[len(known) :]
        self._context, self._read = self._read, len(tokens)
        keep = self._could_begin()
        piece, self._held = self._held[: len(self._held) - keep], self._held[-keep:] * bool(keep)
        self._shown.append(piece)
        return piece

    def rest(self, text: str) -> str:
        """Return what is left to show of the whole text of the ended row."""
        shown = "".join(self._shown)
        return text[len(shown) :] if text.startswith(shown) else ""

    def _could_begin(self) -> int:
        """Return how many held characters at the end could be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
