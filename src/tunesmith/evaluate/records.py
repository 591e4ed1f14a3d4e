"""Stored attempts: a log that is continued after a stop, and the result set that is read from it.

``<folder>/attempts.jsonl`` begins with a header (what was asked of which model) and holds one
record an attempt with its question and gold answer, so that it can be graded again and shown.
``<folder>/scores.json`` is the summary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith import __version__
from tunesmith.errors import CheckpointError, DataError
from tunesmith.storage import JsonlLog, acquire_lock, write_json
from tunesmith.types import Attempt, Problem, Segment, StopReason, Verdict

ATTEMPTS = "attempts.jsonl"
SCORES = "scores.json"
KIND = "tunesmith.attempts"
VERSION = 1
JUDGED_BY, VERIFIER = "judged by", "the verifier of training rows"
"""In the details of a log whose attempts a task's strict check has judged, not its scoring."""
STOP_RULE = "stop when clear"
"""Key of the details that says by which rule asking ends early; absent where all are asked."""
STOPPED = "stopped"
"""Key of the details that says where it did, and the name of the file (JSON) that says so."""
ROUNDS = "rounds"
"""Key of the header's details that says how several rounds were asked; absent with one."""


@dataclass(frozen=True, slots=True)
class Header:
    """What decides a set of attempts; the first record of its log."""

    name: str
    """The name that tables show, such as ``base-cot``."""
    task: str
    split: str
    prompt: str
    """Prompt style."""
    model: str
    """The model as a person names it."""
    seed: int
    samples: int = 1
    """Attempts at each problem, of the first round where there are several."""
    planned: int = 0
    """Attempts that a finished log holds; with several rounds, those of the first one."""
    fingerprint: str = ""
    """Hash of the plan and of the model's weights: a log is continued only under the same one."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Versions, hashes and sampling settings, for the report."""


@dataclass(frozen=True, slots=True)
class ResultSet:
    """All attempts of one model at one set of problems, in the order of problems and indices."""

    header: Header
    attempts: tuple[Attempt, ...]
    problems: Mapping[str, Problem]

    @property
    def name(self) -> str:
        return self.header.name

    @property
    def missing(self) -> int:
        """How many planned attempts are not there."""
        stopped = self.header.details.get(STOPPED)
        planned = self.header.planned if stopped is None else int(stopped["attempts"])
        return max(0, planned - len(self.attempts))

    def first_round(self) -> ResultSet:
        """Return the set without the rounds that asked only what was not solved before.

        In the first round every problem is asked equally often, so its scores can be compared.
        """
        if ROUNDS not in self.header.details:
            return self
        first = tuple(a for a in self.attempts if a.index < self.header.samples)
        return replace(self, attempts=first)

    def by_problem(self) -> dict[str, list[Attempt]]:
        """Return the attempts of each problem, ordered by their index."""
        grouped: dict[str, list[Attempt]] = {}
        for attempt in self.attempts:
            grouped.setdefault(attempt.problem_id, []).append(attempt)
        return grouped

    def regraded(self, grader: Callable[[Problem, str], Verdict]) -> ResultSet:
        """Return the same attempts with the verdicts of another grader."""
        attempts = tuple(
            replace(attempt, verdict=grader(self.problems[attempt.problem_id], attempt.text))
            for attempt in self.attempts
        )
        return replace(self, attempts=attempts)


class AttemptLog:
    """The log of one set of attempts, written as they finish and continued after a stop."""

    def __init__(self, path: str | Path, header: Header, *, sync_every: int = 1) -> None:
        """Open or begin the log.

        ``CheckpointError`` if it was begun under another plan, ``DataError`` with file and line
        where a record does not match its checksum.
        """
        self.path = Path(path)
        self.done: set[tuple[str, int]] = set()
        """(problem id, index) of the attempts that are stored already."""
        self.verified: set[tuple[str, int]] = set()
        """Those of them that are verified by the verdict that they were stored with."""
        self._log = JsonlLog(self.path, sync_every=sync_every)
        try:
            if self._log.records:
                self._continue(header)
            else:
                head = {"kind": KIND, "version": VERSION, "tunesmith": __version__}
                self._log.append(head | _plain(asdict(header)))
        except BaseException:
            self._log.close()
            raise

    def _continue(self, header: Header) -> None:
        records = JsonlLog.read(self.path)
        before = _header(next(records), self.path)
        changed = [
            key
            for key in ("task", "split", "prompt", "seed", "samples", "planned", "fingerprint")
            if getattr(before, key) != getattr(header, key)
        ]
        if before.details.get(ROUNDS) != header.details.get(ROUNDS):
            changed = [*(key for key in changed if key != "fingerprint"), ROUNDS]
        graders = [one.details.get("grader") for one in (before, header)]
        if None not in graders and graders[0] != graders[1]:
            raise CheckpointError(
                f"{str(self.path)!r} holds attempts judged by another version of the grader.",
                expected="one grader for all attempts of a set",
                hint="--overwrite to start over; a set of tunesmith eval can be graded again in "
                "its place (tunesmith regrade) and then go on",
            )
        if changed:
            raise CheckpointError(
                f"{str(self.path)!r} holds attempts made with another {', '.join(changed)}.",
                expected="the settings that the log was begun with",
                hint="choose another output, or give --overwrite to start over",
            )
        for _, _, attempt in _stored(records, self.path, header.task):
            self._note(attempt)

    def _note(self, attempt: Attempt) -> None:
        key = (attempt.problem_id, attempt.index)
        self.done.add(key)
        if attempt.verified:
            self.verified.add(key)

    @property
    def cut_bytes(self) -> int:
        """Bytes of a half-written last attempt that were cut; it is made again."""
        return self._log.cut_bytes

    def append(self, problem: Problem, attempt: Attempt) -> None:
        """Store one attempt; it is durable once this returns (see ``JsonlLog``)."""
        key = (attempt.problem_id, attempt.index)
        if problem.id != attempt.problem_id or key in self.done:
            raise ValueError(f"attempt {key} does not belong here or is stored already")
        self._log.append(_record(problem, attempt))
        self._note(attempt)

    def close(self) -> None:
        """Sync and close the log."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def save(folder: str | Path, result: ResultSet, scores: Mapping[str, Any] | None = None) -> None:
    """Write a whole set into an empty place: the log, and the scores if there are any."""
    with AttemptLog(Path(folder) / ATTEMPTS, result.header, sync_every=1000) as log:
        for attempt in result.attempts:
            log.append(result.problems[attempt.problem_id], attempt)
    if scores is not None:
        write_json(Path(folder) / SCORES, scores)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from a set's log while it is replaced.

    ``CheckpointError`` where one is writing it: what that one appends would be lost.
    """
    log = folder / ATTEMPTS
    if not log.is_file():
        yield
        return
    with log.open("rb") as file:
        if not acquire_lock(file.fileno()):
            raise CheckpointError(
                f"The log {str(log)!r} is being written by another process.",
                expected="a log that nobody is adding to",
                hint="wait for it to end, or choose another output",
            )
        yield


def load(path: str | Path) -> ResultSet:
    """Read a set from its folder or from the log itself.

    Raises ``DataError`` for a log of something else, with a record that does not match its checksum
    or with an attempt stored twice. An unfinished set loads; its ``missing`` says how many attempts
    are not there.
    """
    path = Path(path)
    file = path / ATTEMPTS if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"There are no stored attempts at {str(path)!r}.",
            expected=f"a folder of tunesmith eval, which holds {ATTEMPTS}",
            hint="tunesmith eval --task units --name first",
        )
    with file.open("rb") as stream:
        head = stream.readline(1 << 16)
    # A damaged log still has one of these; nobody is to remove a file of his own for a checksum.
    if head and not any(mark in head for mark in (KIND.encode(), b'"fingerprint"')):
        _header({}, file)
    records = JsonlLog.read(file)
    header = _stopped(_header(next(records, {}), file), file.with_name(f"{STOPPED}.json"))
    attempts: dict[tuple[str, int], Attempt] = {}
    problems: dict[str, Problem] = {}
    for line, problem, attempt in _stored(records, file, header.task):
        key = (attempt.problem_id, attempt.index)
        if key in attempts:
            raise DataError(f"{file}:{line}: attempt {key[1]} at {key[0]!r} is stored twice.")
        attempts[key] = attempt
        problems.setdefault(problem.id, problem)
    # The order in which they finished depends on the batch; the set's own order does not.
    places = {problem_id: place for place, problem_id in enumerate(sorted(problems))}
    ordered = sorted(attempts.values(), key=lambda a: (places[a.problem_id], a.index))
    return ResultSet(header, tuple(ordered), problems)


def load_all(paths: Sequence[str | Path]) -> list[ResultSet]:
    """Read several sets; of equal names each gets what tells its place from the others' places.

    The tuned models of two runs become ``tuned (first)`` and ``tuned (second)``.
    """
    sets = [load(path) for path in paths]
    places = [Path(path).resolve().parts for path in paths]
    for name in {one.name for one in sets}:
        alike = [at for at, one in enumerate(sets) if one.name == name]
        if len(alike) < 2:
            continue
        own = _apart([places[at] for at in alike])
        for at, parts in zip(alike, own, strict=True):
            called = f"{name} ({'/'.join(parts)})" if parts else name
            sets[at] = replace(sets[at], header=replace(sets[at].header, name=called))
    return sets


def _apart(places: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the parts of paths without what all of them begin and end with."""
    shortest = min(map(len, places))
    first = next((at for at in range(shortest) if len({p[at] for p in places}) > 1), shortest)
    left = shortest - first
    last = next((at for at in range(left) if len({p[-1 - at] for p in places}) > 1), left)
    return [place[first : len(place) - last] for place in places]


def read_header(folder: str | Path) -> Header | None:
    """Return what a finished set was, without reading its answers; None where there is none."""
    file = Path(folder) / ATTEMPTS
    if not (file.is_file() and file.with_name(SCORES).is_file()):
        return None
    try:
        return _header(next(JsonlLog.read(file), {}), file)
    except (DataError, OSError):
        return None


def stored_sets(folder: str | Path) -> list[Path]:
    """Return the folders below ``folder`` that hold attempts, by name."""
    return sorted(file.parent for file in Path(folder).rglob(ATTEMPTS))


def versions() -> dict[str, str]:
    """Return the versions that decide results, for headers and manifests."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    names = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy")
    found = {"tunesmith": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _header(record: Mapping[str, Any], file: Path) -> Header:
    if record.get("kind") != KIND or record.get("version") != VERSION:
        raise DataError(
            f"{str(file)!r} is no log of attempts of this version.",
            expected=f"a first record of kind {KIND!r}, version {VERSION}",
            hint="tunesmith eval writes one into its output folder",
        )
    try:
        return Header(**{entry.name: record[entry.name] for entry in fields(Header)})
    except KeyError as failure:
        raise DataError(f"{file}:1: the header has no {failure}.") from failure


def without_stop(header: Header) -> dict[str, Any]:
    """Return the details of a set that holds another number of attempts than where it stopped.

    By which rule asking ended stays: it decides how the set may be compared.
    """
    return {key: value for key, value in header.details.items() if key != STOPPED}


def _stopped(header: Header, file: Path) -> Header:
    """Return the header of a set that was stopped when clear with what its folder says of that."""
    if STOP_RULE not in header.details or not file.is_file():
        return header
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        int(found["attempts"])
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise DataError(
            f"{file} does not say where asking stopped: {failure}.",
            hint="remove it; the same tunesmith eval again writes it anew",
        ) from None
    return replace(header, details={**header.details, STOPPED: found})


def _record(problem: Problem, attempt: Attempt) -> dict[str, Any]:
    verdict = attempt.verdict
    return {
        **({"hinted": True} if attempt.hinted else {}),
        **({} if attempt.logprob is None else {"logprob": attempt.logprob}),
        "problem": problem.id,
        "index": attempt.index,
        "seed": attempt.seed,
        "question": _segments(problem.prompt),
        "reference": problem.reference,
        "meta": _plain(problem.meta),
        "text": attempt.text,
        "tokens": list(attempt.tokens),
        "stop": attempt.stop.value,
        "verdict": None if verdict is None else asdict(verdict),
    }


def _stored(
    records: Iterable[Mapping[str, Any]], file: Path, task: str
) -> Iterator[tuple[int, Problem, Attempt]]:
    """Yield the 1-based line, problem and attempt of every record after the header."""
    for line, record in enumerate(records, 2):
        try:
            problem, attempt = _restored(record, task)
        except (KeyError, TypeError, ValueError) as failure:
            raise DataError(
                f"{file}:{line}: no stored attempt ({type(failure).__name__}: {failure})."
            ) from failure
        yield line, problem, attempt


def _restored(record: Mapping[str, Any], task: str) -> tuple[Problem, Attempt]:
    prompt = tuple(
        Segment(part["role"], part["text"], extra=part.get("extra", {}))
        for part in record["question"]
    )
    problem = Problem(record["problem"], task, prompt, record["reference"], record["meta"])
    verdict = record["verdict"]
    attempt = Attempt(
        record["problem"],
        int(record["index"]),
        int(record["seed"]),
        record["text"],
        tuple(record["tokens"]),
        StopReason(record["stop"]),
        None if verdict is None else Verdict(**verdict),
        bool(record.get("hinted", False)),
        record.get("logprob"),
    )
    return problem, attempt


def _segments(prompt: Sequence[Segment]) -> list[dict[str, Any]]:
    parts = []
    for segment in prompt:
        part: dict[str, Any] = {"role": segment.role, "text": segment.text}
        if segment.extra:
            part["extra"] = _plain(segment.extra)
        parts.append(part)
    return parts


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it; exact numbers and the like become their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
