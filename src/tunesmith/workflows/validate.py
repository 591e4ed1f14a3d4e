"""``tunesmith data validate``: every row accepted or refused, with its place and the reason."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from tunesmith.config.load import Resolved
from tunesmith.config.schema_data import ValidateOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.idle import Need, refuse_idle, refuse_idle_split
from tunesmith.workflows.targets import NothingLeftError, check_targets, write_kept

if TYPE_CHECKING:
    from tunesmith.data.overlap import OverlapIndex
    from tunesmith.data.render import Renderer
    from tunesmith.data.validate import Checker, Judgement
    from tunesmith.types import Origin

NEEDS: tuple[Need, ...] = (
    ("max_length", "--model", lambda options: options.model is not None),
    ("chat_template", "--model", lambda options: options.model is not None),
    ("overwrite", "--fix FILE", lambda options: options.fix is not None),
)
"""Settings that say nothing without another one."""
REPEATED = "exact duplicates left out"


class Read(Protocol):
    """Settings that say how a file is read."""

    columns: dict[str, str]
    encoding: str | None


def validate_words(dataset: str, options: Read, *more: str) -> str:
    """Return the command that judges every row of a file as ``options`` read it."""
    words = ["tunesmith", "data", "validate", dataset, *more]
    words += ["--encoding", options.encoding] if options.encoding else []
    if options.columns:
        words += ["--columns", ",".join(f"{one}={of}" for one, of in options.columns.items())]
    return shlex.join(words)


def command(resolved: Resolved[ValidateOptions]) -> int:
    """Handle ``tunesmith data validate``."""
    options = resolved.options
    judged = validate(options)
    if options.json_output:
        print(json.dumps([one.to_json() for one in judged], ensure_ascii=False, indent=2))
    refused = sum(one.refused for one in judged)
    whole = refused + sum(one.accepted for one in judged)
    broken = [one.source for one in judged if one.cut_short]
    if broken:
        console.warn(f"{', '.join(broken)} could not be read to the end")
    return DataError.exit_code if broken or refused > options.allow_refused * whole else 0


def validate(options: ValidateOptions) -> list[Judgement]:
    """Judge every source and print what was found."""
    from tunesmith.data.duplicates import DuplicateFinder
    from tunesmith.data.validate import Checker, Judgement

    if options.fix and len(options.dataset) > 1:
        raise UsageError("--fix takes one source at a time.", hint="run it once for each file")
    refuse_idle(options, NEEDS)
    if options.split != "train":
        refuse_idle_split(options.dataset, options.split, "--split")
    places: tuple[Path, Path] | None = None
    if options.fix:
        inputs = [*options.dataset, *([options.against] if options.against else [])]
        places = check_targets(
            inputs, options.fix, None, overwrite=options.overwrite, ending="-rejects"
        )
    renderer: Renderer | None = None
    limit = options.max_length or 0
    opened = [
        (source, _open(source, options, options.split, options.max_rows))
        for source in options.dataset
    ]
    if options.model is not None:
        from tunesmith.workflows.opening import open_renderer

        renderer, limit = open_renderer(options, options.model, options.max_length)
    judged, tests = [], _tests(options)
    for source, examples in opened:
        judgement = Judgement(source)
        judgement.layout = examples.layout.name if examples.layout else ""
        judgement.unused = examples.unused
        near = DuplicateFinder() if options.near_duplicates else None
        checker = Checker(judgement, renderer, limit, options.task, near, tests)
        if places:
            _fix(examples, checker, judgement, *places)
        else:
            for _ in _checked(examples, checker, judgement):
                pass
        _show(judgement, limit if renderer else None)
        judged.append(judgement)
    return judged


def _open(source: str, options: ValidateOptions, split: str, max_rows: int | None) -> Any:
    from tunesmith.data.formats import Examples
    from tunesmith.data.readers import scan

    found = scan(source, split=split, encoding=options.encoding)
    return Examples(islice(found, max_rows), options.columns)


def _checked(
    examples: Iterable[Any], checker: Checker, judgement: Judgement
) -> Iterator[tuple[Any, bool]]:
    """Yield every example and fault with whether it was accepted."""
    from tunesmith.data.readers import Fault

    with console.bar("reading", 0) as bar:
        item = None
        for item in examples:
            if isinstance(item, Fault):
                judgement.refuse(item)
                yield item, False
            else:
                fault = checker.check(item)
                yield (item, True) if fault is None else (fault, False)
            bar.advance(1, f"{judgement.refused} refused")
        if item is None:
            raise DataError(f"{judgement.source} holds no rows.", expected="at least one row")


def _fix(
    examples: Any, checker: Checker, judgement: Judgement, target: Path, rejects: Path
) -> None:
    """Write accepted rows, corrected, to ``target``, and every other one to ``rejects``."""
    from tunesmith.data.readers import Fault
    from tunesmith.data.validate import corrected
    from tunesmith.data.writers import example_fields, json_line

    def mended() -> Iterator[Any]:
        for item in examples:
            yield item if isinstance(item, Fault) else corrected(item, judgement.corrections)

    def kept(file: IO[bytes]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        def refuse(origin: Origin, reason: str) -> None:
            place = {"source": origin.source, "line": origin.line}
            file.write(json_line({**place, "reason": reason}))

        seen = _Repeats(mended(), checker, judgement, refuse)
        for item, accepted in _checked(seen, checker, judgement):
            if accepted:
                meta = {"meta": dict(item.meta)} if item.meta else {}
                yield item.origin, {**example_fields(item), **meta}
            else:
                refuse(item.origin, item.reason)
        if not judgement.accepted:
            raise NothingLeftError

    write_kept(target, rejects, kept)
    said = f"Corrected copy: {target} ({judgement.accepted:,} rows)."
    if not judgement.accepted:
        said = "No row is left for a corrected copy."
    if judgement.refused or judgement.corrections[REPEATED]:
        said += f" Rejects: {rejects}"
    else:
        rejects.unlink()
    console.say(said)


class _Repeats:
    """Passes examples on, leaving out exact repetitions of accepted ones, counted and named."""

    def __init__(
        self,
        items: Iterable[Any],
        checker: Checker,
        judgement: Judgement,
        refuse: Callable[[Origin, str], None],
    ) -> None:
        self._items, self._checker, self._judgement = items, checker, judgement
        self._refuse = refuse

    def __iter__(self) -> Iterator[Any]:
        from tunesmith.data.readers import Fault

        for item in self._items:
            if not isinstance(item, Fault) and self._checker.is_repeated(item):
                self._judgement.corrections[REPEATED] += 1
                self._refuse(item.origin, "an exact duplicate of an earlier row")
                continue
            yield item


def _tests(options: ValidateOptions) -> OverlapIndex | None:
    """Return the test questions that must not stand in the rows, ready to be looked for."""
    from tunesmith.data.overlap import OverlapIndex, question_of
    from tunesmith.data.readers import Fault

    if not options.against:
        return None
    questions = []
    # All of them, however few rows are looked at.
    for item in _open(options.against, options, "test", None):
        if isinstance(item, Fault):
            raise item.error()
        questions.append(question_of(item))
    if not questions:
        raise DataError(f"{options.against} holds no questions.", expected="at least one row")
    return OverlapIndex(questions)


def _short(places: list[str]) -> list[str]:
    """Return places without the name of their file, which stands above the table."""
    return [re.sub(r"^.*?:(?=\d)", "", place) for place in places]


def _show(judgement: Judgement, limit: int | None) -> None:
    """Print a summary: counts, reasons, warnings, lengths."""
    left_out = judgement.corrections[REPEATED]
    total = judgement.accepted + judgement.refused + left_out
    layout = f"read as {judgement.layout}" if judgement.layout else "none of them readable"
    console.title(f"{judgement.source}: {total:,} rows, {layout}")
    if judgement.unused:
        console.say(f"Fields that are not used: {', '.join(judgement.unused)}")
    repeated = f", left out as duplicates {left_out:,}" if left_out else ""
    console.say(f"Accepted {judgement.accepted:,}, refused {judgement.refused:,}{repeated}.")
    for heading, found in (("Refused", judgement.reasons), ("Odd", judgement.warnings)):
        if found:
            ranked = sorted(found.items(), key=lambda pair: -pair[1].count)
            rows = [[what, f"{k.count:,}", "\n".join(_short(k.places))] for what, k in ranked]
            console.table(heading, ["what", "rows", "first at line"], rows)
    for hint in dict.fromkeys(fault.hint for fault in judgement.faults if fault.hint):
        console.say(f"Try: {hint}")
    if judgement.corrections:
        rows = [[what, f"{count:,}"] for what, count in judgement.corrections.items()]
        console.table("Corrected", ["what", "times"], rows)
    lengths = judgement.tokens or judgement.lengths
    if not lengths.rows:
        return
    most = max(lengths.buckets.values())
    rows = [[name, f"{n:,}", ("█" * round(24 * n / most)).ljust(24)] for name, n in lengths.bars()]
    console.table(f"Length in {lengths.unit}", [lengths.unit, "rows", ""], rows)
    mean = lengths.total / lengths.rows
    over = f", {lengths.over:,} over {limit:,}" if limit and lengths.over else ""
    console.say(
        f"Mean {mean:,.0f}, longest {lengths.longest:,} {lengths.unit} "
        f"at {lengths.longest_at}{over}."
    )
