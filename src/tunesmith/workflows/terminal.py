"""Text from models and files on a terminal: shown, never obeyed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PICTURES = 0x2400
"""Unicode has a picture of each control character from here on: ␛ for escape."""
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""What turns the order of letters round, so that a line reads as something else."""
_SHOWN = {
    **{code: chr(_PICTURES + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (*_DIRECTIONS, *range(0xD800, 0xE000))},
}


def visible(text: str) -> str:
    """Return a text with its control characters as pictures or escapes; lines and tabs stay."""
    return text.translate(_SHOWN)


def one_line(text: str, width: int) -> str:
    """Return the beginning of a text on one line of at most ``width`` letters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: max(1, width - 2)].rstrip()} …"


class Answers:
    """Writes answers to stdout: as they are into files and pipes, visible on a terminal."""

    def __init__(self) -> None:
        self.on_terminal = sys.stdout.isatty()
        self._open = False

    def piece(self, text: str) -> None:
        """Write the next piece of an answer at once."""
        shown = visible(text) if self.on_terminal else text
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
        self._open = True

    def end(self) -> None:
        """End an answer's last line; an empty answer has one too."""
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._open = False

    def break_off(self) -> None:
        """End the line of an answer that was begun and failed."""
        if self._open:
            self.end()

    def whole(self, text: str) -> None:
        """Write an answer that is done."""
        self.piece(text)
        self.end()

    def beside(self, columns: Sequence[tuple[str, str]]) -> None:
        """Write several models' answers: in columns on a terminal, below their names elsewhere."""
        if not self.on_terminal:
            for name, text in columns:
                self.whole(f"{name}:\n{text}")
            return
        grid = Table(expand=True)
        for name, _ in columns:
            grid.add_column(Text(visible(name)), ratio=1, overflow="fold")
        grid.add_row(*(Text(visible(text)) for _, text in columns))
        Console(highlight=False, emoji=False).print(grid)
