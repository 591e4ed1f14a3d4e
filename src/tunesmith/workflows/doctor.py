"""``tunesmith doctor``: what this machine has, what will be used of it, and what to do.

No model is loaded and nothing is asked of the network. Each check yields findings; only a
problem, which would stop training, makes the exit code 1.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith import __version__
from tunesmith.config.load import Resolved
from tunesmith.config.schema_start import DoctorOptions
from tunesmith.errors import TunesmithError
from tunesmith.workflows.installed import PYTHON, extras, libraries

if TYPE_CHECKING:
    import torch

WIDTH = 80
GB = 1e9
LEAST_MEMORY = 0.6 * GB
"""A run of the built-in model takes 0.52 GB (``bench/LOG.md``)."""
LITTLE_MEMORY = 4 * GB
LEAST_DISK = 0.2 * GB
LITTLE_DISK = 5 * GB
NVIDIA = Path("/proc/driver/nvidia")
"""There where the driver is loaded, whatever PyTorch can do with it."""
TOLD = ("torch", "transformers", "peft", "accelerate", "datasets")
"""Libraries whose versions are told also where they fit."""
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    todo: str = ""
    """What to do about it, or to type."""


def command(resolved: Resolved[DoctorOptions]) -> int:
    """Handle ``tunesmith doctor``."""
    options = resolved.options
    findings = []
    for finding in examine(options):
        findings.append(finding)
        if not options.json_output:
            print("\n".join(_lines(finding)), flush=True)
    problems = sum(finding.state == "problem" for finding in findings)
    if options.json_output:
        shown = [asdict(finding) for finding in findings]
        print(json.dumps({"problems": problems, "findings": shown}, indent=2, ensure_ascii=False))
    elif problems:
        print(f"\n{problems} problem{'s' * (problems > 1)} would stop training.")
    else:
        print("\nNothing stands in the way of training. Start with: tunesmith demo")
    return TunesmithError.exit_code if problems else 0


def examine(options: DoctorOptions) -> Iterator[Finding]:
    """Yield every finding, the cheap ones first."""
    yield _python()
    yield from _libraries()
    yield from _machine(options)
    yield _disk("output folder", Path(options.output_dir), "another --output-dir")
    yield _temporary()
    yield _sandbox()
    for extra in extras():
        state: Literal["ok", "note"] = "note" if extra.missing else "ok"
        found = f"for {extra.used_by}"
        if extra.missing:
            found = f"not installed ({', '.join(extra.missing)}); needed {found}"
        yield Finding(f"[{extra.name}]", state, found, extra.install if extra.missing else "")
    yield Finding(
        "network",
        "ok",
        "not touched, nor any token: local paths and built-in sets work offline; only hub names "
        "need a network",
    )


def _python() -> Finding:
    found = (
        f"tunesmith {__version__}, Python {platform.python_version()} on {platform.system()} "
        f"{platform.machine()}"
    )
    if not sys.platform.startswith("linux"):
        return Finding("system", "note", found, "everything was tested on Linux only")
    return Finding("system", "ok", found)


def _libraries() -> Iterator[Finding]:
    """Yield one finding for all libraries that are as wanted, and one for each that is not."""
    found = list(libraries())
    if not found:
        yield Finding(
            "libraries",
            "note",
            "tunesmith is not installed as a package, so nobody knows which versions it wants",
            "pip install -e . -c constraints.txt",
        )
    right = [one for one in found if one.fits]
    if right:
        told = ", ".join(f"{one.name} {one.version}" for one in right if one.name in TOLD)
        yield Finding("libraries", "ok", f"{len(right)} in versions that are wanted: {told}")
    for one in found:
        if not one.fits:
            said = f"{one.version or 'not installed'}, but {one.wanted or 'it'} is wanted"
            todo = f"Python {one.wanted}" if one.name == PYTHON else one.install
            yield Finding(one.name, "problem", said, todo)


def _machine(options: DoctorOptions) -> Iterator[Finding]:
    """Yield what needs PyTorch: its build, device, type, attention, memory, threads."""
    try:
        import torch
    except Exception as failure:  # a broken installation fails in many ways
        said = str(failure).split("\n")[0]
        yield Finding("PyTorch", "problem", f"cannot be loaded: {said}", "install torch again")
        return
    yield _build(torch.__version__, torch.version.cuda, torch.cuda.is_available())
    from tunesmith.models.device import choose_device, choose_dtype

    try:
        device = choose_device(options.device)
        torch.zeros(1, device=device)
    except TunesmithError as failure:
        yield Finding("device", "problem", failure.found, failure.expected or "--device cpu")
        return
    except Exception as failure:  # drivers fail in many ways
        said = str(failure).split("\n")[0]
        yield Finding("device", "problem", f"{options.device}: {said}", "--device cpu")
        return
    yield Finding("device", "ok", _named(device))
    dtype = choose_dtype("auto", device)
    yield Finding("precision", "ok", _precision(device, dtype))
    yield Finding("attention", "ok", _attention(device, dtype))
    yield _memory(device)
    yield _threads(torch.get_num_threads())


def _build(version: str, cuda: str | None, usable: bool) -> Finding:
    if cuda is None:
        if NVIDIA.exists():
            found = f"{version} is a build for the CPU alone, and there is an NVIDIA driver here"
            return Finding("PyTorch build", "note", found, "install a build with CUDA to use it")
        return Finding("PyTorch build", "ok", f"{version}, without CUDA")
    if not usable:
        found = f"{version}, with CUDA {cuda}, but no device can be used"
        return Finding("PyTorch build", "note", found, "check the driver (nvidia-smi)")
    return Finding("PyTorch build", "ok", f"{version}, with CUDA {cuda}")


def _named(device: torch.device) -> str:
    import torch

    if device.type != "cuda":
        return f"{device}, {torch.backends.cpu.get_cpu_capability()}"
    count = torch.cuda.device_count()
    more = f"; {count} devices: docs/several_devices.md" if count > 1 else ""
    return f"{torch.cuda.get_device_name(device)}{more}"


def _precision(device: torch.device, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        has = "has" if name == "bfloat16" else "lacks"
        return f"{name}, since this device {has} bfloat16 (--dtype auto)"
    flags = _cpu_flags()
    own = "has" if any(flag in flags for flag in BFLOAT16_FLAGS) else "lacks"
    return (
        f"{name}: --dtype auto takes bfloat16 on a GPU alone; this processor {own} instructions "
        "for it"
    )


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    line = next((one for one in text.splitlines() if one.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    import torch

    if device.type != "cuda":
        return f"segments, row by row: the kernel varlen runs on CUDA devices, not on {device.type}"
    from tunesmith.models.attention_ways import no_varlen

    reason = "it computes in half precision" if dtype == torch.float32 else no_varlen(device)
    return f"segments, not varlen: {reason}" if reason else "varlen, PyTorch's kernel for rows"


def _memory(device: torch.device) -> Finding:
    from tunesmith.models.memory import free_bytes

    free = free_bytes(device)
    found = f"{free / GB:.1f} GB free on {device}"
    if free < LEAST_MEMORY:
        return Finding("memory", "problem", found, "end other programs; the demo takes 0.52 GB")
    if free < LITTLE_MEMORY:
        return Finding("memory", "note", found, "tunesmith estimate says what a run needs")
    return Finding("memory", "ok", found)


def _threads(threads: int) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{cores} cores for this process, {threads} of PyTorch's threads"
    # Half of the logical cores is PyTorch's own choice where each core has two threads.
    if cores and not cores // 2 <= threads <= cores:
        name = "OMP_NUM_THREADS"
        told = f"{name} is {os.environ[name]}" if name in os.environ else f"{name} sets them"
        return Finding("cores", "note", f"{found}: {told}", f"unset {name}, or set it to {cores}")
    if cores and threads < cores and "OMP_NUM_THREADS" in os.environ:
        return Finding("cores", "note", found, f"unset OMP_NUM_THREADS, or set it to {cores}")
    return Finding("cores", "ok", found)


def _disk(name: str, folder: Path, otherwise: str) -> Finding:
    """Say whether a folder, or where it would be made, can be written to and has room."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
        free = shutil.disk_usage(there).free
    except OSError as failure:
        found = f"{folder} cannot be written to: {failure.strerror or failure}"
        return Finding(name, "problem", found, otherwise)
    found = f"{folder}: {free / GB:.1f} GB free"
    if free < LEAST_DISK:
        return Finding(name, "problem", found, f"free some space, or {otherwise}")
    if free < LITTLE_DISK:
        todo = "tunesmith estimate says what the checkpoints of a run take"
        return Finding(name, "note", found, todo)
    return Finding(name, "ok", found)


def _temporary() -> Finding:
    try:
        folder = tempfile.gettempdir()
    except OSError as failure:
        said = failure.strerror or str(failure)
        return Finding("temporary folder", "problem", said, "set TMPDIR to a folder")
    found = _disk("temporary folder", Path(folder), "set TMPDIR to another folder")
    return found if found.state == "problem" else Finding(found.name, "ok", found.found)


def _sandbox() -> Finding:
    """Run one small program confined, as graded programs are."""
    from tunesmith.grading.sandbox.run import described, mode_for

    try:
        confined = described(mode_for(unsafe=False))
        return Finding("sandbox", "ok", f"works (a program was run): {confined}")
    except TunesmithError as failure:
        return Finding(
            "sandbox",
            "note",
            f"{failure.found} Only tasks humaneval and mbpp need it.",
            failure.hint or failure.expected,
        )


def _lines(finding: Finding) -> list[str]:
    """Return a finding in lines of at most 80 columns."""
    head = f"{finding.state:<8} {finding.name:<17} "
    lines = textwrap.wrap(
        head + finding.found,
        WIDTH,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
    )
    if finding.todo:
        lines += textwrap.wrap(
            f"Try: {finding.todo}",
            WIDTH,
            initial_indent=" " * 9,
            subsequent_indent=" " * 14,
            break_on_hyphens=False,
        )
    return lines
