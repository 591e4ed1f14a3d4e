"""The two files that a command over rows writes: what it keeps, and what it takes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import DataError, UsageError
from tunesmith.types import Origin


class NothingLeftError(Exception):
    """Ends the writing of a file that would hold no row."""


def check_targets(
    sources: Iterable[str], output: str, rejects: str | None, *, overwrite: bool
) -> tuple[Path, Path]:
    """Return the files for kept and for removed rows, or say which must not be written."""
    kept = Path(output)
    refused = Path(rejects) if rejects else kept.with_name(f"{kept.stem}-rejected.jsonl")
    if refused.suffix != ".jsonl":
        raise UsageError(
            f"--rejects {refused} is no .jsonl file.", hint=f"--rejects {refused.stem}.jsonl"
        )
    targets = {path.resolve(): path for path in (kept, refused)}
    if len(targets) == 1:
        raise UsageError("--output and --rejects are the same file.")
    for source in sources:
        if Path(source).resolve() in targets:
            raise UsageError(
                f"{source} would be overwritten by what is made of it.",
                expected="another name for --output and --rejects",
            )
    for path in targets.values():
        if path.exists() and not overwrite:
            raise UsageError(f"{str(path)!r} is there already.", hint="--overwrite replaces it")
    return kept, refused


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

    def fields(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
        for origin, row in rows(file):
            place[:] = [origin]
            yield row

    with whole_file(rejects) as file:
        try:
            with _writable(output, place):
                write_rows(output, fields(file))
        except NothingLeftError:
            pass


@contextmanager
def _writable(output: Path, place: list[Origin]) -> Iterator[None]:
    """Turn a value that the format has no form for (a date, NaN, mixed types) into a sentence."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as failure:
        at = f" up to {place[0]}" if place else ""
        raise DataError(
            f"A row{at} cannot be written to {output}: {failure}.",
            hint="another format: .jsonl has JSON's values, .parquet and folders one type a field",
        ) from failure
