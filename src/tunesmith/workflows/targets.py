"""The two files that a command over rows writes: what it keeps, and what it takes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunesmith.errors import DataError, UsageError
from tunesmith.storage import storage_errors
from tunesmith.types import Origin

if TYPE_CHECKING:
    from tunesmith.data.readers import Fault, Row

SAVED = ("dataset_dict.json", "dataset_info.json")
"""One of these lies in a folder that ``save_to_disk`` wrote."""


class NothingLeftError(Exception):
    """Ends the writing of a file that would hold no row."""


def check_output(
    path: Path,
    inputs: Iterable[str | Path],
    split: str | None = None,
    *,
    overwrite: bool,
) -> None:
    """Refuse a place with no format, one that is read, and one that holds something else.

    ``split`` names a second one that is written beside the rows. Rows that are there already are
    replaced only with ``overwrite``.
    """
    from tunesmith.data.writers import SUFFIXES, split_path

    if path.suffix and path.suffix not in SUFFIXES:
        raise UsageError(
            f"{str(path)!r} has no format that rows can be written in.",
            expected=f"{', '.join(SUFFIXES)}, or a name without a suffix for a datasets folder",
        )
    places = {path.resolve(), split_path(path, split or "train").resolve()}
    for name in inputs:
        if Path(name).resolve() in places:
            raise UsageError(
                f"{str(name)!r} would be overwritten by what is made of it.",
                expected="an output of another name",
            )
    beside = split_path(path, split) if split else path
    with storage_errors(path):
        free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        taken = path if not free else beside if beside.is_file() else None
    if not free and path.is_dir() is bool(path.suffix):
        raise _in_the_way(path)
    if not free and path.is_dir() and not any((path / name).is_file() for name in SAVED):
        raise _in_the_way(path)
    if taken is not None and not overwrite:
        raise UsageError(f"{str(taken)!r} is there already.", hint="--overwrite replaces it")


def _in_the_way(path: Path) -> UsageError:
    what = "a folder" if path.suffix else "no saved data set"
    return UsageError(
        f"{str(path)!r} exists and is {what}; it is not replaced.", hint="another --output"
    )


def check_targets(
    sources: Iterable[str],
    output: str,
    rejects: str | None,
    *,
    overwrite: bool,
    ending: str = "-rejected",
) -> tuple[Path, Path]:
    """Return the files for kept and for removed rows, or say which must not be written."""
    kept = Path(output)
    sources = list(sources)
    refused = Path(rejects) if rejects else kept.with_name(f"{kept.stem}{ending}.jsonl")
    if refused.suffix != ".jsonl":
        raise UsageError(
            f"--rejects {refused} is no .jsonl file.", hint=f"--rejects {refused.stem}.jsonl"
        )
    with storage_errors(kept):
        targets = {path.resolve(): path for path in (kept, refused)}
    if len(targets) == 1:
        raise UsageError("--output and --rejects are the same file.")
    check_output(kept, sources, overwrite=overwrite)
    check_output(refused, sources, overwrite=overwrite)
    return kept, refused


def rows_or_faults(
    source: str, *, split: str = "train", max_rows: int | None = None, encoding: str | None = None
) -> Iterator[Row | Fault]:
    """Yield the rows of a source and the faults between them.

    Raises ``DataError`` where nothing behind a fault can be read, and where there is no row.
    """
    from tunesmith.data.readers import Fault, scan

    found = None
    for found in islice(scan(source, split=split, encoding=encoding), max_rows):
        if isinstance(found, Fault) and found.rest:
            raise found.error()
        yield found
    if found is None:
        raise DataError(f"{source} holds no rows.", expected="at least one row")


def write_kept(
    output: Path,
    rejects: Path,
    rows: Callable[[IO[bytes]], Iterator[tuple[Origin, Mapping[str, Any]]]],
) -> None:
    """Write the rows that ``rows`` yields; it writes the others into the file that it is given.

    Where ``rows`` raises ``NothingLeftError`` the rejects are written and the output is not.
    """
    from tunesmith.data.writers import write_rows
    from tunesmith.storage import whole_file

    place: list[Origin] = []
    own: list[Exception] = []

    def fields(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
        try:
            for origin, row in rows(file):
                place[:] = [origin]
                yield row
        except Exception as failure:
            own.append(failure)
            raise

    with whole_file(rejects) as file:
        try:
            with _writable(output, place, own):
                write_rows(output, fields(file))
        except NothingLeftError:
            pass


@contextmanager
def _writable(output: Path, place: list[Origin], own: list[Exception]) -> Iterator[None]:
    """Turn a value that the format has no form for (a date, NaN, mixed types) into a sentence.

    Failures in ``own`` come from the making of the rows, not from their writing, and stay.
    """
    try:
        yield
    except (TypeError, ValueError, OverflowError) as failure:
        if failure in own:
            raise
        at = f" up to {place[0]}" if place else ""
        raise DataError(
            f"A row{at} cannot be written to {output}: {failure}.",
            hint="another format: .jsonl has JSON's values, .parquet and folders one type a field",
        ) from failure
