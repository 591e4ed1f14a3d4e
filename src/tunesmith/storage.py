"""The ways to write to a disk: atomic files, an append-only log, hashes.

Nothing here leaves a half-written file behind: a file is written beside its place, flushed to the
disk and renamed; a log is cut back to its last whole record when it is opened again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tunesmith.errors import CheckpointError, DataError, StorageError

TEMPORARY = ".tmp-"
"""Prefix of files that are being written; one that is left over was never acknowledged."""
LOCK = ".lock"
"""Name of the file whose lock a run folder is held by."""

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("your disk quota is used up", "free some space and run the same command again"),
    errno.EACCES: ("you have no permission", "choose another folder, e.g. --output-dir ~/runs"),
    errno.EPERM: ("the system does not permit it", "choose another folder with --output-dir"),
    errno.EROFS: ("the file system is read-only", "choose another folder with --output-dir"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another path"),
    errno.EISDIR: ("there is a folder of this name", "choose another file name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, then run again"),
    errno.EFBIG: ("the file would pass the size limit", "raise the limit (ulimit -f)"),
}


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "written", size: int | None = None) -> Iterator[None]:
    """Turn a failure of the disk into a ``StorageError`` that names the path and the way out."""
    try:
        yield
    except Exception as failure:
        number = _os_error(failure)
        if number is None:
            raise
        said = getattr(failure, "strerror", None) or str(failure)
        reason, hint = _REASONS.get(number, (said, "check the path and the disk"))
        needed = f" ({size:,} bytes are needed)" if size is not None else ""
        found = f"{str(path)!r} cannot be {doing}: {reason}{needed}."
        raise StorageError(found, hint=hint) from failure


def _os_error(failure: Exception) -> int | None:
    """Return the system's error number; 0 for an unknown one, None for what is no such failure."""
    if isinstance(failure, OSError):
        return failure.errno or 0
    # Libraries written in Rust (safetensors) raise a class of their own that quotes the number.
    quoted = re.search(r"\(os error (\d+)\)", str(failure))
    return int(quoted.group(1)) if quoted else None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader, or a power cut, sees the old content or all of the new.

    Missing parent folders are made. A failure raises ``StorageError`` and leaves nothing behind.
    """
    with whole_file(path, len(data)) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: str | Path, size: int | None = None) -> Iterator[IO[bytes]]:
    """Yield a file to write piece by piece; at the end it takes the place of ``path``, whole.

    ``size`` in bytes, where it is known, is named when the disk is full.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    with storage_errors(path, size=size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; a lone surrogate becomes its escape instead of an error."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | Path, obj: object) -> None:
    """Write indented JSON atomically; NaN and infinities are refused with ``ValueError``."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_folder(target: Path, size: int | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it takes the place of ``target``, whole.

    ``size`` in bytes, where it is known, is looked for on the disk before anything is written, and
    named when it is not there.

    All files are flushed before the rename. What stood there before is kept until the new one
    stands; a kill between the two renames is mended by ``settle_folder``. On a failure nothing is
    left of the new one.
    """
    partial, old = _beside(target)
    with storage_errors(target, size=size):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            if size is not None and shutil.disk_usage(partial).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield partial
            for path in sorted(partial.rglob("*")):
                sync_folder(path) if path.is_dir() else sync_file(path)
            sync_folder(partial)
            settle_folder(target)
            if target.exists():
                target.rename(old)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            settle_folder(target)
            raise
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def settle_folder(target: Path) -> None:
    """Bring back what ``target`` held if its replacement never came, else drop it."""
    _, old = _beside(target)
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            old.rename(target)


def settle_folders(parent: Path) -> None:
    """Settle every folder of ``parent`` whose replacement may have been cut short."""
    for old in list(parent.glob(".*.before")):
        settle_folder(parent / old.name.removeprefix(".").removesuffix(".before"))


def _beside(target: Path) -> tuple[Path, Path]:
    """Return where a folder is made, and where the one before it waits."""
    return (
        target.with_name(f".{target.name}.partial"),
        target.with_name(f".{target.name}.before"),
    )


def sync_file(path: Path) -> None:
    """Wait until a file that a library wrote is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Make a rename in ``path`` durable, where the system can open a folder at all."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    path = Path(path)
    with storage_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(path: str | Path) -> str:
    """Return a SHA-256 over the sorted relative names and file hashes of a folder.

    Lock files and leftovers of interrupted writes do not count; links to files are followed.
    """
    root = Path(path)
    with storage_errors(root, "read"):
        files = sorted(
            (file.relative_to(root).as_posix(), file)
            for file in root.rglob("*")
            if file.is_file() and file.name != LOCK and not file.name.startswith(TEMPORARY)
        )
    digest = hashlib.sha256()
    for name, file in files:
        encoded = os.fsencode(name)
        digest.update(b"%d:%s:%s\n" % (len(encoded), encoded, hash_file(file).encode()))
    return digest.hexdigest()


def hash_json(obj: object) -> str:
    """Return the SHA-256 of a value's canonical JSON; dates, paths and the like count as text."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def acquire_lock(handle: int) -> bool:
    """Lock an open file for this process until it is closed; False if another one holds it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this platform
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(place: os.stat_result, holder: int) -> bool:
    """Say whether that process holds that file's lock; True where the system does not tell.

    It is not tried out: whoever wants the lock at that moment would be refused.
    """
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:262153 0 EOF
    held = (line.replace("->", "").split() for line in lines)
    return any(
        words[4] == str(holder) and words[5].rpartition(":")[2] == str(place.st_ino)
        for words in held
        if len(words) > 5
    )


_BODY = len('{"c":"00000000","r":')


class JsonlLog:
    """An append-only log: one JSON object a line, each with the CRC-32 of its own bytes.

    ``{"c":"<crc32 hex>","r":{...}}``. Opening an existing log cuts a torn last line (``cut_bytes``
    says how much) and raises ``DataError`` where any earlier line does not verify. A record
    is durable once ``append`` returns, or with ``sync_every`` > 1 once that many have been made.
    A second process that opens the same log is refused.
    """

    def __init__(self, path: str | Path, *, sync_every: int = 1) -> None:
        self.path = Path(path)
        self.records = 0
        """How many whole records the log holds."""
        self.cut_bytes = 0
        """How many bytes of a torn last record were cut when the log was opened."""
        self._sync_every = max(1, sync_every)
        self._unsynced = 0
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        try:
            self._recover()
        except BaseException:
            self._file.close()
            raise

    def _recover(self) -> None:
        if not acquire_lock(self._file.fileno()):
            raise CheckpointError(
                f"The log {str(self.path)!r} is being written by another process.",
                hint="wait for it to end, or choose another output",
            )
        self._file.seek(0)
        self._end = 0
        whole_line = True
        # A second, buffered view of the file: the raw one that appends would read byte by byte.
        with self.path.open("rb") as reader:
            for line, record in _verified(reader, self.path):
                if record is None:
                    break
                self.records += 1
                self._end += len(line)
                whole_line = line.endswith(b"\n")
        with storage_errors(self.path):
            size = os.fstat(self._file.fileno()).st_size
            self.cut_bytes = size - self._end
            if self.cut_bytes:
                self._file.truncate(self._end)
            if not whole_line:
                self._write(b"\n")
            os.fsync(self._file.fileno())
            sync_folder(self.path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; NaN and infinities are refused with ``ValueError``.

        Raises ``StorageError`` when the disk refuses, and takes back what it had written of the
        record, so that the log stays whole and ``append`` can be tried again.
        """
        body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        line = b'{"c":"%08x","r":%s}\n' % (zlib.crc32(body), body)
        with storage_errors(self.path, size=len(line)):
            try:
                self._write(line)
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._end)
                raise
            self.records += 1
            self._unsynced += 1
            if self._unsynced >= self._sync_every:
                self.sync()

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            written = self._file.write(view)
            view = view[written or 0 :]
        self._end += len(line)

    def sync(self) -> None:
        """Wait until every appended record is on the disk."""
        with storage_errors(self.path):
            os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        """Sync and close; closing twice does nothing."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @staticmethod
    def read(path: str | Path) -> Iterator[dict[str, Any]]:
        """Yield the records of a log, also while another process writes to it.

        A torn last line was never acknowledged and is left out; any other line that does not
        verify raises ``DataError``.
        """
        path = Path(path)
        with storage_errors(path, "read"):
            reader = path.open("rb")
        with reader:
            for _, record in _verified(reader, path):
                if record is not None:
                    yield record


def _verified(lines: Iterator[bytes], path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line with its record; ``None`` for a last line that does not verify."""
    broken: tuple[int, bytes] | None = None
    for number, line in enumerate(lines, 1):
        if broken is not None:
            raise _mismatch(path, broken[0])
        record = _parse_line(line)
        if record is None:
            broken = (number, line)
        else:
            yield line, record
    if broken is not None:
        # A damaged newline joins whole records into one line; only a lone half one is a torn tail.
        starts = (match.start() for match in re.finditer(rb'\{"c":"', broken[1]))
        if any(start and _parse_line(broken[1][start:]) for start in starts):
            raise _mismatch(path, broken[0])
        yield broken[1], None


def _mismatch(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}:{line}: the record does not match its checksum.",
        expected="a log that only tunesmith has written to",
        hint="restore the file from a copy, or remove it to start over",
    )


def _parse_line(line: bytes) -> dict[str, Any] | None:
    line = line.removesuffix(b"\n")
    body = line[_BODY:-1]
    if line != b'{"c":"%08x","r":%s}' % (zlib.crc32(body), body):
        return None
    try:
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
