"""What confines a process: namespaces, a small root folder, limits, no rights, few system calls."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _SET_SUBREAPER = 4, 22, 38, 36
_SET_DEATH_SIGNAL = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
_SYSTEM_CALLS = {
    # ptrace, process_vm_*, socket, mounts, namespaces, bpf, keys, perf, userfaultfd, io_uring,
    # kexec, modules, handles, the new mount calls, pidfd_getfd, reboot, swap, clocks, personality,
    # memory, semaphores and messages of System V, which no limit of a process counts
    "x86_64": (
        0xC000003E, 56, (
            101, 310, 311, 41, 165, 166, 155, 161, 272, 308, 321, 248, 249, 250, 298, 323, 425,
            426, 427, 246, 320, 175, 313, 176, 303, 304, 428, 429, 430, 431, 432, 433, 442, 438,
            169, 167, 164, 227, 135, 103, 163, 179, 29, 30, 64, 68,
        ),
    ),
    "aarch64": (
        0xC00000B7, 220, (
            117, 270, 271, 198, 40, 39, 41, 51, 97, 268, 280, 217, 218, 219, 241, 282, 425,
            426, 427, 104, 294, 105, 273, 106, 264, 265, 428, 429, 430, 431, 432, 433, 442, 438,
            142, 224, 170, 112, 92, 116, 89, 60, 194, 196, 190, 186,
        ),
    ),
}  # fmt: skip
"""Machine → its number for the filter, its ``clone``, and the calls that are refused."""
_CLONE3 = 435
_NAMESPACES = 0x7E020080


def _call(name: str, *args: object) -> None:
    if getattr(_LIBC, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces; ``OSError`` where the kernel does not allow it."""
    _call("unshare", flags)


def own_user() -> None:
    """Become the master of new namespaces without being root: a user namespace of one user."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def standard_library() -> list[str]:
    """Return the folders of Python's own modules.

    Those of the installation: a virtual environment has none, and may lie in ``/tmp``.
    """
    base = {"platbase": sys.base_exec_prefix}
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib", vars=base)]
    return [path for path in found if path]


def small_root(size: int) -> None:
    """Change the root into libraries, read only, and an empty ``/tmp`` of ``size`` bytes in memory.

    Needs a mount namespace of one's own. No ``/proc``, no ``/etc``, no programs, no homes.
    """
    own = standard_library()
    # The interpreter goes by the path as it was called, which may lead through links.
    real = {path: str(Path(path).resolve()) for path in (*own, *_READABLE)}
    wanted = {path: path for path in (*real.values(), *_READABLE)} | {p: real[p] for p in own}
    wanted = {path: source for path, source in wanted.items() if Path(path).is_dir()}
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    Path("/tmp/old").mkdir()
    _call("syscall", _PIVOT_ROOT[platform.machine()], b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path, source in wanted.items():
        if any(path.startswith(f"{other}/") for other in wanted):
            continue
        Path(path).mkdir(parents=True, exist_ok=True)
        _mount(f"/old{source}", path, None, _BIND)
        _mount("none", path, None, _REMOUNT | _BIND | _RDONLY | _flags(path))
    Path("/dev").mkdir()
    for name in ("null", "zero", "urandom"):
        Path(f"/dev/{name}").touch()
        _mount(f"/old/dev/{name}", f"/dev/{name}", None, _BIND)
    Path("/tmp").mkdir()
    _call("umount2", b"/old", _DETACH)
    Path("/old").rmdir()
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, f"mode=777,size={size},nr_inodes=1000")
    _mount("none", "/", None, _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    os.chdir("/tmp")


def _flags(path: str) -> int:
    """Return the flags of a mount that a user namespace may not take away."""
    return _NOSUID | _NODEV | (os.statvfs(path).f_flag & (8 | 1024 | 2048))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    try:
        _call(
            "mount", source.encode(), target.encode(), kind and kind.encode(),
            ctypes.c_ulong(flags), data.encode(),
        )  # fmt: skip
    except OSError as fault:
        raise OSError(fault.errno, f"mount of {target}: {os.strerror(fault.errno or 0)}") from None


def limit(*, seconds: int, memory: int, file_size: int, processes: int, files: int) -> None:
    """Set the limits of this process and of those it starts; they cannot be raised again."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, processes),
    ):
        hardest = resource.getrlimit(what)[1]
        if hardest != resource.RLIM_INFINITY:
            most = min(most, hardest)
        resource.setrlimit(what, (most, most))


def drop(uid: int | None) -> None:
    """Give up every right: the user, if there is another one, groups and capabilities."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    number = _CAPSET.get(platform.machine())
    if number is not None:
        _call("syscall", number, struct.pack("=Ii", 0x20080522, 0), bytes(24))
    _call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; a change of the user undoes it."""
    _call("prctl", _SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def filter_calls() -> bool:
    """Refuse sockets, tracing, mounts, namespaces and the like; False where it cannot be done."""
    known = _SYSTEM_CALLS.get(platform.machine())
    if known is None:
        return False
    machine, clone, refused = known
    load, equal, at_least, masked, give = 0x20, 0x15, 0x35, 0x45, 0x06
    deny, absent, allow, kill = 0x50001, 0x50026, 0x7FFF0000, 0x80000000
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, kill), (load, 0, 0, 0)]
    # Numbers above this bit are those of another calling convention (x32).
    code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]
    code += [(equal, 0, 1, _CLONE3), (give, 0, 0, absent)]
    for number in refused:
        code += [(equal, 0, 1, number), (give, 0, 0, deny)]
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (masked, 0, 1, _NAMESPACES)]
    code += [(give, 0, 0, deny), (give, 0, 0, allow)]
    program = b"".join(struct.pack("=HBBI", *step) for step in code)
    held = ctypes.create_string_buffer(program)
    head = struct.pack("@HxxxxxxP", len(code), ctypes.addressof(held))
    return bool(_LIBC.prctl(_SET_SECCOMP, 2, ctypes.c_char_p(head), 0, 0) == 0)


def adopt_orphans() -> None:
    """Become the parent of all that descends from here and loses its own."""
    _call("prctl", _SET_SUBREAPER, 1, 0, 0, 0)
