"""What a foreign model folder may not do to the one who exports it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.shapes import RENDER, SHAPES

SECONDS = 5
MEGABYTES = 512
LONGEST = 1_000_000
"""Letters that a template may make of a few short turns."""
TRIAL = (
    RENDER
    + """
import json, sys
seconds, megabytes, longest = map(int, sys.argv[1:])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
except (ImportError, ValueError, OSError):
    pass  # a system without them; the clock outside is there still
order = json.load(sys.stdin)
if not ends(order["text"], order["shapes"], longest, lambda why: None):
    sys.exit(3)
"""
)


def check_folder(folder: Path) -> None:
    """Refuse a model folder whose files lie outside it, or whose template does not end.

    What an export holds is given to others: a link would hand out any file of this machine. The
    hub's cache keeps the files of a model as links into its own folder. Raises ``ModelError``.
    """
    inside = folder.resolve()
    if inside.parent.name == "snapshots":
        inside = inside.parent.parent
    for path in folder.iterdir():
        if not path.resolve().is_relative_to(inside):
            raise ModelError(
                f"{path} leads out of its folder.", expected="files of the model itself"
            )
    for index in folder.glob("*.index.json"):
        shards = _json(index).get("weight_map")
        names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
        for name in sorted(names):
            if Path(name).name != name:
                raise ModelError(f"{index.name} names {name!r}, which lies outside of its folder.")
    for text in _templates(folder):
        check_template(text, str(folder))


def check_template(text: str, where: str) -> None:
    """Refuse a chat template that takes too long, too much memory or makes too much text."""
    command = [sys.executable, "-P", "-c", TRIAL, str(SECONDS), str(MEGABYTES), str(LONGEST)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps({"text": text, "shapes": SHAPES}),
            text=True,
            encoding="utf-8",
            errors="replace",
            capture_output=True,
            timeout=6 * SECONDS,
            check=False,
        )
        broken = done.returncode == 3 or done.returncode < 0
    except subprocess.TimeoutExpired:
        broken = True
    if broken:
        raise ModelError(
            f"The chat template of {where} takes over {SECONDS} s or {MEGABYTES} MiB, or makes "
            f"over {LONGEST:,} letters, for a few short turns.",
            hint="take it out of the folder, or use a template from its source",
        )


def _templates(folder: Path) -> Iterator[str]:
    for path in (folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")):
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    several = found if isinstance(found, list) else [found]
    for one in several:
        text = one.get("template") if isinstance(one, dict) else one
        if isinstance(text, str):
            yield text


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
