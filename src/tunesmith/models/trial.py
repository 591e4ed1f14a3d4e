"""Trying out what a foreign model folder brings to be run: templates, tokenizer, name patterns.

All three are small programs in other people's files. They are first carried out on short texts in a
process of its own, which the kernel ends when it takes too long or too much memory. That finds what
never ends on any text; it cannot find what waits for a certain one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from tunesmith.errors import ModelError

SECONDS = 0.8
"""Of the processor, for each template and pattern, and for a small tokenizer."""
MEGABYTES = 384
LONGEST = 1_000_000
"""Letters that a template may make of two short turns."""
SLOWER = 8 << 20
"""Bytes of a tokenizer's file for which it is given another ``SECONDS``."""
ROOM = 24
"""Bytes of memory for each byte of it."""
CACHED = 64
"""Outcomes that a process keeps."""

_TRIAL = r"""
import json, os, re, signal, sys, warnings
warnings.simplefilter("ignore")
order = json.load(sys.stdin)
seconds, longest = order["seconds"], order["longest"]
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

def stage(name, seconds):
    print(name, flush=True)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its end ends the process

def fault(text):
    print("fault " + text, flush=True)
    os._exit(1)

try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass  # a system without them; the clock outside is there still
turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
for text in order["templates"]:
    stage("template", seconds)
    made = 0
    try:
        form = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).from_string(text)
        for part in form.generate(messages=turns, bos_token="", eos_token=""):
            made += len(part)
            if made > longest:
                os._exit(3)
    except MemoryError:
        os._exit(3)
    except SecurityError as failure:
        fault(str(failure))
    except Exception:
        pass  # what it refuses, or what this trial does not know, is said when it is used
for pattern, name in order["patterns"]:
    stage("pattern", seconds)
    try:
        re.fullmatch(pattern, name)
    except (MemoryError, OverflowError):
        os._exit(3)
    except (re.error, RecursionError) as failure:
        fault(str(failure))
if order["tokenizer"]:
    stage("tokenizer", order["patience"])
    try:
        tokenizer = Tokenizer.from_file(order["tokenizer"])
    except MemoryError:
        os._exit(3)
    except BaseException as failure:
        fault(str(failure))
    runs = "".join(letter * 48 for letter in "aA0 .-_\n\u00e9\u2581")
    for text in (runs, "".join(map(chr, range(32, 127))), "a", "The cat, 12.5 km; isn't it?"):
        try:
            found = tokenizer.encode(text).ids
            if len(found) > 1000 + 100 * len(text) or len(tokenizer.decode(found)) > longest:
                os._exit(3)
        except MemoryError:
            os._exit(3)
        except BaseException as failure:
            fault(str(failure))
print("done", flush=True)
"""
NAME = "base_model.model.model.layers.10.self_attn.q_proj"
"""What a pattern for the names of modules is tried on."""


def try_out(
    where: str,
    *,
    templates: Sequence[str] = (),
    patterns: Sequence[str] = (),
    tokenizer: str | None = None,
    digest: str = "",
    size: int = 0,
) -> None:
    """Raise ``ModelError`` for a template, pattern or tokenizer that does not end, or grows.

    ``where`` is the folder, for the message. ``tokenizer`` is the path of a tokenizer.json of
    ``size`` bytes and with the hash ``digest``, by which a file that was tried is known again.
    """
    # The same contents in another folder have been tried.
    key = (tuple(templates), tuple(patterns), digest, size, SECONDS)
    if key not in _passed:
        _try_out(where, templates, patterns, tokenizer, size)
        _passed[key] = None
        if len(_passed) > CACHED:
            del _passed[next(iter(_passed))]


_passed: dict[tuple[object, ...], None] = {}


def _try_out(
    where: str,
    templates: Sequence[str],
    patterns: Sequence[str],
    tokenizer: str | None,
    size: int,
) -> None:
    seconds = SECONDS
    patience = seconds * (1 + size / SLOWER)
    order = {
        "templates": list(templates),
        "patterns": [[pattern, NAME] for pattern in patterns],
        "tokenizer": tokenizer,
        "seconds": seconds,
        "patience": patience,
        "memory": (MEGABYTES << 20) + ROOM * size,
        "longest": LONGEST,
    }
    quiet = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=6 * (patience + seconds * (1 + len(templates) + len(patterns))),
            check=False,
            env={**os.environ, **quiet},
        )
        said = done.stdout.splitlines()
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    except subprocess.TimeoutExpired as late:
        said, last = str(late.stdout or b"", "utf-8", "replace").splitlines(), ["it does not end"]
    if said[-1:] == ["done"]:
        return
    stages = [line for line in said if line in ("template", "pattern", "tokenizer")]
    if not stages:
        raise ModelError(f"What {where} brings to be run could not be tried out: {last[0]}")
    _refuse(where, stages[-1], said, patience)


def _refuse(where: str, stage: str, said: Sequence[str], patience: float) -> None:
    faults = [line.removeprefix("fault ") for line in said if line.startswith("fault ")]
    reason = faults[0][:200] if faults else ""
    if stage == "template":
        if reason:
            raise ModelError(f"The chat template of {where} tries to leave its sandbox: {reason}")
        raise ModelError(
            f"The chat template of {where} takes over {SECONDS:g} s or {MEGABYTES} MiB, or makes "
            f"over {LONGEST:,} letters, for two turns of a letter each.",
            hint="take it out of the folder, or use a template from its source",
        )
    if stage == "pattern":
        why = reason or f"it takes over {SECONDS:g} s for the name of one module"
        raise ModelError(f"A pattern for modules in {where}/adapter_config.json is refused: {why}.")
    if reason:
        raise ModelError(f"{where}/tokenizer.json cannot be used: {reason}")
    raise ModelError(
        f"{where}/tokenizer.json takes over {patience:.1f} s or {MEGABYTES} MiB, or makes over a "
        "hundred tokens of a letter, for a short text.",
        hint="the tokenizer of the model it was made from",
    )
