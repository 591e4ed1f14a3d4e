"""Whether a text is well-formed code, by language: the parsers of tree-sitter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UsageError

LANGUAGES = (
    "python", "javascript", "typescript", "java", "c", "cpp", "csharp", "go", "rust", "ruby", "php",
    "bash", "sql", "html", "css", "json", "kotlin", "swift", "scala", "lua", "r", "haskell", "yaml",
    "toml",
)  # fmt: skip
ALIASES: Mapping[str, str] = {
    "py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "c++": "cpp",
    "cs": "csharp", "c#": "csharp", "golang": "go", "rs": "rust", "rb": "ruby", "sh": "bash",
    "shell": "bash", "zsh": "bash", "kt": "kotlin", "hs": "haskell", "yml": "yaml",
}  # fmt: skip
"""What a block of an answer may call a language."""
LONGEST = 200_000
"""Characters; longer text is not parsed and counts as wrong."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """What the parser found in one text."""

    valid: bool
    line: int | None = None
    """1-based line of the first fault; None where there is none."""


def has_parsers() -> bool:
    """Say whether the parsers are installed."""
    return importlib.util.find_spec("tree_sitter_language_pack") is not None


def language(name: str) -> str | None:
    """Return a language by the name that a block gives it; None for one that is not known."""
    known = ALIASES.get(name.strip().lower(), name.strip().lower())
    return known if known in LANGUAGES else None


def check(text: str, name: str) -> Syntax:
    """Parse a text; it is valid where the grammar needs neither to skip nor to add anything.

    Blank text is no code. Grammars differ in how much they allow, so rates of two languages do
    not compare. ``UsageError`` for a language that is not known, or without the parsers.
    """
    found = language(name)
    if found is None:
        raise UsageError(
            f"There is no parser here for {name!r}.", expected=f"one of {', '.join(LANGUAGES)}"
        )
    parser = _parser(found)
    if not text.strip() or len(text) > LONGEST:
        return Syntax(False, 1)
    if found == "php" and "<?" not in text:
        text = f"<?php {text}"
    root = parser.parse(text.encode(errors="replace")).root_node
    return Syntax(False, _first_fault(root)) if root.has_error else Syntax(True)


def parse_rates(texts: Iterable[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Return language → (valid, all) of texts with the names of their languages.

    Those of languages that are not known are counted under ``other``, none of them valid.
    """
    counts: dict[str, list[int]] = {}
    for text, name in texts:
        found = language(name)
        count = counts.setdefault(found or "other", [0, 0])
        count[0] += found is not None and check(text, found).valid
        count[1] += 1
    return {name: (valid, total) for name, (valid, total) in sorted(counts.items())}


def _parser(name: str) -> Any:
    try:
        from tree_sitter_language_pack import get_parser
    except ImportError:
        raise UsageError(
            "The syntax of code is checked by tree-sitter, which is not installed.",
            hint="pip install 'tunesmith[code]'",
        ) from None
    return get_parser(name)


def _first_fault(root: Any) -> int:
    """Return the line of the first node that is wrong or missing."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            return int(node.start_point[0]) + 1
        waiting += [child for child in reversed(node.children) if child.has_error]
    return 1
