"""``tunesmith convert``: a model that is a pickle, as safetensors, read where it can do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_export import ConvertOptions
from tunesmith.errors import UsageError
from tunesmith.storage import whole_folder
from tunesmith.workflows import console

CONFINED = "Read in a process of its own: no network, no files but this one, no rights, limits."
UNCONFINED = "UNSAFE: read with limits and few system calls, but with the user's files in reach."


def command(resolved: Resolved[ConvertOptions]) -> int:
    """Handle ``tunesmith convert``; the folder's path goes to stdout."""
    print(_convert(resolved.options))
    return 0


def convert(**settings: Any) -> Path:
    """Convert a model; settings are those of ``tunesmith convert``. Returns the new folder.

    Raises ``ModelError`` for a pickle that is more than weights; nothing is left of it.
    """
    return _convert(resolve(ConvertOptions, settings, origin="argument").options)


def _convert(options: ConvertOptions) -> Path:
    console.set_level(options.log_level)
    source, target = Path(options.folder), Path(options.output)
    if not (source / "config.json").is_file():
        lacks = "holds no config.json" if source.is_dir() else "is no folder"
        raise UsageError(
            f"{options.folder!r} {lacks}.",
            expected="the folder of a model: config.json, a tokenizer and pytorch_model.bin",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{options.output!r} is there already.", hint="another --output")
    from tunesmith.export.convert import convert_folder, described, pickles_of
    from tunesmith.grading.sandbox import run as sandbox
    from tunesmith.workflows.opening import quiet

    quiet()
    pickles = pickles_of(source)
    mode = sandbox.mode_for(unsafe=options.unsafe_exec, what="Readers of pickles")
    size = sum(path.stat().st_size for path in pickles)
    console.say(f"Pickles: {len(pickles)}, {size:,} bytes; read as weights alone.")
    console.say(CONFINED if mode != "none" else UNCONFINED)
    with whole_folder(target, 2 * size) as folder:
        made = convert_folder(source, folder, mode)
    for file in made.record["files"]:
        console.say(f"{file['from']} -> {file['path']}")
    if made.shared:
        console.say(f"Written once for several names: {described(made.shared)}.")
    if made.unused:
        some = ", ".join(made.unused[:3])
        console.warn(f"{len(made.unused)} weights have no place in this architecture: {some}")
    console.say(f"Loaded and looked at. Model: {target}")
    return target
