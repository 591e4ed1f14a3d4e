"""Write docs/reference.md from the schema, or with --check say whether it is stale."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from tunesmith.cli import VERBS
from tunesmith.config.reference import reference

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"


def text() -> str:
    """Return what the page should hold."""
    return reference(
        (name, verb.summary, verb.settings(), verb.positional) for name, verb in VERBS.items()
    )


def main(arguments: list[str]) -> int:
    """Write the page; with ``--check`` compare it and return 1 if it differs."""
    wanted = text()
    if "--check" not in arguments:
        PAGE.write_text(wanted, encoding="utf-8")
        print(f"wrote {PAGE.name}")
        return 0
    present = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if present == wanted:
        return 0
    changes = difflib.unified_diff(present.splitlines(), wanted.splitlines(), lineterm="", n=0)
    print("\n".join(list(changes)[:20]), file=sys.stderr)
    print("docs/reference.md is stale; run: make reference", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
