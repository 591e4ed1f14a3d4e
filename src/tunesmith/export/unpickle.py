"""Reads one pickle of weights where it can do nothing, and writes what it holds as safetensors.

Runs in a process of its own (``convert`` starts it). PyTorch is imported first; then the process
gives up files, network, user and rights as programs of ``grading.sandbox`` do, and only then looks
at the pickle, which it has as an open descriptor, as it has the file to write: there is nothing
else to read and nowhere else to write. PyTorch's own reader is told to make tensors only.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith.grading.sandbox import kernel

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
SPARE = 1 << 30
"""Bytes of address space besides twice the file."""


class Refused(Exception):
    """What a file is not converted for."""


def main(orders: dict[str, Any]) -> None:
    """Carry out one order and answer with a line of JSON; everything else is an exit code."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _warm()
    if orders["mode"] != "none":
        # A user namespace takes a process with one thread, which a fork has.
        _wait(os.fork() or _confined(orders))
    else:
        _work(orders)


def _warm() -> None:
    """Have the reader import all that it needs while there is still something to import from."""
    for zipped in (True, False):
        held = io.BytesIO()
        value = {"a": torch.nn.Parameter(torch.zeros(2)), "b": torch.zeros(1, dtype=torch.bfloat16)}
        torch.save(value, held, _use_new_zipfile_serialization=zipped)
        held.seek(0)
        with contextlib.suppress(Exception):
            torch.load(held, map_location="cpu", weights_only=True)
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(pickle.dumps(os.system)), weights_only=True)
    with contextlib.suppress(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(b"none"))
    torch.isfinite(torch.zeros(2, dtype=torch.bfloat16)).all().item()


def _wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _confined(orders: dict[str, Any]) -> int:
    """Leave all namespaces, then become the first process of new ones; never returns in it."""
    kernel.end_with_parent()
    if orders["mode"] == "user":
        kernel.own_user()
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWPID)
    memory = _space()
    kernel.small_root(1 << 16)
    child = os.fork()
    if child:
        return child
    orders["space"] = memory
    _work(orders)
    os._exit(0)


def _space() -> int:
    """Return the address space that is taken already, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _work(orders: dict[str, Any]) -> None:
    source, target, answer = orders["source"], orders["target"], orders["answer"]
    size = os.fstat(source).st_size
    kept = sorted({2, source, target, answer})
    space = orders.get("space") or _space()
    for low, high in zip([0, *kept], [*kept, 1 << 16], strict=True):
        os.closerange(low + 1 if low in kept else low, high)
    kernel.limit(
        seconds=orders["seconds"],
        memory=space + 2 * size + SPARE,
        file_size=2 * size + (64 << 20),
        processes=0,
        files=64,
    )
    kernel.drop(orders["uid"])
    kernel.end_with_parent()
    if not kernel.filter_calls() and orders["mode"] != "none":
        raise OSError("system calls cannot be filtered on this machine")
    try:
        said: dict[str, Any] = convert(source, target, size, copies=orders["copies"])
    except Refused as refusal:
        said = {"fault": str(refusal)}
    except MemoryError:
        said = {"fault": "it claims far more than the file holds"}
    os.write(answer, json.dumps(said).encode())


def convert(source: int, target: int, size: int, *, copies: bool) -> dict[str, Any]:
    """Convert the file behind one descriptor into another; return which names share weights.

    ``copies`` writes a weight again for each name that shares it. Raises ``Refused``.
    """
    with open(source, "rb", closefd=False) as file:
        if zipfile.is_zipfile(file):
            _check_archive(file, size)
        file.seek(0)
        tensors = _tensors(_load(file))
    shared = _shared(tensors)
    total = sum(t.numel() * t.element_size() for n, t in tensors.items() if n not in shared)
    if total > 2 * size:
        raise Refused(f"its weights are {total:,} bytes, in a file of {size:,}")
    written = {n: t for n, t in tensors.items() if copies or n not in shared}
    _write(target, written)
    return {"shared": shared, "names": list(written)}


def _check_archive(file: Any, size: int) -> None:
    """Refuse archives that grow when they are read, or that name places."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as failure:
        raise Refused(f"its archive cannot be read: {failure}") from None
    held = sum(entry.file_size for entry in entries)
    if held > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Refused(f"its archive is a bomb: {held:,} bytes come out of {size:,}")
    for entry in entries:
        if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
            raise Refused(f"its archive names a place outside of it: {entry.filename[:80]!r}")


def _load(file: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as failure:  # the reader raises many kinds, all of them about this file
        said = " ".join(str(failure).split())
        wanted = re.search(r"(?:GLOBAL|unrecognized function|unsupported class) ([\w.]+)", said)
        if wanted:
            raise Refused(f"it wants to use {wanted.group(1)[:80]}, which is no weight") from None
        if re.search(
            r"alloc|out of memory|(resize|Storage) s\w+|overflow|negative", said, re.IGNORECASE
        ):
            raise Refused("it claims far more than the file holds") from None
        if operand := re.search(r"Unsupported operand (\d+)", said):
            raise Refused(
                f"it is a pickle that does other things than weights need (operand "
                f"{operand.group(1)})"
            ) from None
        if "TorchScript" in said:
            raise Refused("it holds a program (TorchScript), no weights") from None
        reason = said.partition("WeightsUnpickler error: ")[2] or said or type(failure).__name__
        raise Refused(f"it cannot be read: {reason[:160]}") from None


def _tensors(found: Any) -> dict[str, torch.Tensor]:
    if not isinstance(found, Mapping) or not found:
        raise Refused(f"it holds no weights by name, but a {type(found).__name__}")
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Refused(f"{str(name)[:80]!r} is no weight, but a {type(value).__name__}")
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in TYPES:
            raise Refused(f"{name[:80]!r} is no plain tensor: {value.dtype}, {value.layout}")
        there = value.untyped_storage().nbytes() // value.element_size()
        if value.numel() > there:
            raise Refused(f"{name[:80]!r} claims {value.numel():,} numbers and holds {there:,}")
        tensors[name] = value.detach()
    return tensors


def _shared(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the name of each weight that is another one's too, with the name that came first."""
    known: dict[Any, str] = {}
    shared = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr(), value.storage_offset(), value.dtype
        key = (*place, tuple(value.shape), value.stride())
        first = known.setdefault(key, name)
        if first != name and value.numel():
            shared[name] = first
    return shared


def _write(target: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the safetensors format: the header's length, the header, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, value in tensors.items():
        end = at + value.numel() * value.element_size()
        kind, shape = TYPES[value.dtype], list(value.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb", closefd=False) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            if value.numel():
                file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
