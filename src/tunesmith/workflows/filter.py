"""``tunesmith data filter``: rows in, the good ones out, every other one with its reason."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_filter import FilterOptions
from tunesmith.data.duplicates import DuplicateFinder
from tunesmith.data.filters import (
    Removal,
    Rule,
    count_words,
    first_removal,
    length_rule,
    quality_rules,
)
from tunesmith.data.overlap import OverlapIndex, question_of
from tunesmith.data.readers import Fault
from tunesmith.errors import DataError, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.idle import Need, refuse_idle, refuse_idle_split
from tunesmith.workflows.targets import (
    NothingLeftError,
    check_targets,
    rows_or_faults,
    write_kept,
)

if TYPE_CHECKING:
    from tunesmith.data.readers import Row
    from tunesmith.types import Example, Origin

UNREADABLE = "unreadable"
SHARED = 80
"""Characters of a test question that a reason quotes."""
NAMED = 3
"""Removed rows that the terminal names for each rule; the file of rejects holds all."""


@dataclass(slots=True)
class FilterResult:
    """What a filter made of a data set."""

    output: Path
    rejects: Path | None
    """None when nothing was removed."""
    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    """Rows by rule; with ``kept`` they add up to all rows read."""
    shown: dict[str, list[Removal]] = field(default_factory=dict)

    def count(self, removal: Removal) -> None:
        """Count a removed row and remember the first few of its rule."""
        self.removed[removal.rule] += 1
        examples = self.shown.setdefault(removal.rule, [])
        if len(examples) < NAMED:
            examples.append(removal)


def command(resolved: Resolved[FilterOptions]) -> int:
    """Handle ``tunesmith data filter``; the counts go to stdout as JSON."""
    result = _filter(resolved.options)
    total = result.kept + sum(result.removed.values())
    rows = [[rule, f"{n:,}", f"{n / total:.1%}"] for rule, n in result.removed.most_common()]
    rows.append(["kept", f"{result.kept:,}", f"{result.kept / total:.1%}"])
    console.table(f"{total:,} rows", ["rule", "rows", "share"], rows)
    for removals in result.shown.values():
        for removal in removals:
            console.say(f"  {removal.origin}: {removal.rule}: {removal.reason}")
    if result.rejects is not None:
        console.say(f"Removed rows, each with its reason: {result.rejects}")
    if not result.kept:
        raise DataError(
            "No row is left, so nothing was written"
            + (f" but {str(result.rejects)!r}." if result.rejects else "."),
            hint=f"read the reasons in {result.rejects}",
        )
    console.say(f"Kept rows: {result.output}")
    print(json.dumps({"rows": total, "kept": result.kept, "removed": dict(result.removed)}))
    return 0


def filter_rows(options: FilterOptions | None = None, **settings: Any) -> FilterResult:
    """Filter a data set; settings are those of ``tunesmith data filter``."""
    return _filter(options or resolve(FilterOptions, settings, origin="argument").options)


NEEDS: tuple[Need, ...] = (
    ("similarity", "--duplicates near", lambda options: options.duplicates == "near"),
    ("ignore_numbers", "--duplicates near", lambda options: options.duplicates == "near"),
    ("overlap_words", "--against FILE", lambda options: bool(options.against)),
    ("model", "--min-tokens or --max-tokens", lambda o: bool(o.min_tokens or o.max_tokens)),
)
"""Settings that say nothing without another one."""


def _filter(options: FilterOptions) -> FilterResult:
    refuse_idle(options, NEEDS)
    if options.split != "train":
        refuse_idle_split(options.dataset, options.split, "--split")
    output, rejects = check_targets(
        [*options.dataset, *options.against],
        options.output,
        options.rejects,
        overwrite=options.overwrite,
    )
    sieve = _Sieve(options)
    result = FilterResult(output, rejects)
    write_kept(output, rejects, lambda file: _kept(options, sieve, result, file))
    if not result.removed:
        rejects.unlink()
        result.rejects = None
    return result


class _Sieve:
    """Everything that the settings hold against a row, in the order in which it is asked.

    Duplicates come last: a row that is removed for another reason must not be the one kept.
    """

    def __init__(self, options: FilterOptions) -> None:
        self.columns = options.columns
        self.mistake: DataError | None = None
        """What the first unreadable row of a source lacks."""
        self.rules: dict[str, Rule] = {}
        answers = options.length_of == "answer"
        for unit, count, least, most in (
            ("words", count_words, options.min_words, options.max_words),
            ("characters", len, options.min_characters, options.max_characters),
            ("tokens", _token_counter(options), options.min_tokens, options.max_tokens),
        ):
            if least is not None or most is not None:
                rule = length_rule(unit, count, least, most, answers_only=answers)
                self.rules[f"length in {unit}"] = rule
        wanted = list(options.rules)
        if "none" in wanted and len(wanted) > 1:
            raise UsageError("--rules none stands alone.", hint="--rules none")
        self.rules |= quality_rules([name for name in wanted if name != "none"])
        self.test = _questions(options)
        self.finder = None
        if options.duplicates != "none":
            self.finder = DuplicateFinder(
                near=options.duplicates == "near",
                threshold=options.similarity,
                ignore_numbers=options.ignore_numbers,
            )

    def judge(self, row: Row | Fault) -> Removal | None:
        """Return why a row goes, None where it stays."""
        from tunesmith.data.formats import to_examples

        try:
            if isinstance(row, Fault):
                raise row.error()
            _, examples = to_examples([row], self.columns)
        except DataError as mistake:
            self.mistake = self.mistake or mistake
            said = mistake.found.removeprefix(f"{row.origin}: ").removesuffix(".")
            return Removal(row.origin, UNREADABLE, said)
        for example in examples:
            removal = first_removal(example, self.rules) or self._overlap(example)
            if removal is not None:
                return removal
        # A row of several examples repeats others only as a whole.
        repeated = [self._duplicate(example) for example in examples]
        return repeated[0] if all(repeated) else None

    def _overlap(self, example: Example) -> Removal | None:
        overlaps = self.test.match(example) if self.test else []
        if not overlaps:
            return None
        first = overlaps[0]
        more = f" and {len(overlaps) - 1} more" if len(overlaps) > 1 else ""
        shared = textwrap.shorten(first.shared, SHARED, placeholder=" …")
        reason = f"the test question {first.place}{more}: «{shared}»"
        return Removal(example.origin, f"contamination ({first.kind})", reason)

    def _duplicate(self, example: Example) -> Removal | None:
        found = self.finder.check(example) if self.finder else None
        if found is None:
            return None
        return Removal(example.origin, f"{found.kind} duplicate", found.reason())


def _token_counter(options: FilterOptions) -> Callable[[str], int]:
    """Return what counts tokens; ``UsageError`` where they are asked for without a model."""
    if options.min_tokens is None and options.max_tokens is None:
        return len
    if options.model is None:
        raise UsageError(
            "--min-tokens and --max-tokens need a model whose tokens they count.",
            hint="--model tunesmith/tiny",
        )
    from tunesmith.models.load import load_tokenizer

    tokenizer = load_tokenizer(options.model).tokenizer
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _questions(options: FilterOptions) -> OverlapIndex | None:
    from tunesmith.data.formats import to_examples
    from tunesmith.data.readers import read_rows

    found = []
    for source in options.against:
        _, examples = to_examples(
            list(read_rows(source, split="test", encoding=options.encoding)), options.columns
        )
        found += [question_of(example) for example in examples]
        console.say(f"{source}: {len(examples)} test questions.")
    return OverlapIndex(found, options.overlap_words) if found else None


def _kept(
    options: FilterOptions, sieve: _Sieve, result: FilterResult, rejects: IO[bytes]
) -> Iterator[tuple[Origin, dict[str, Any]]]:
    """Yield place and fields of rows that stay; write the others with their reason."""
    from tunesmith.data.readers import Row
    from tunesmith.data.writers import json_line

    for source in options.dataset:
        read = unreadable = 0
        found = rows_or_faults(
            source, split=options.split, max_rows=options.max_rows, encoding=options.encoding
        )
        for row in found:
            removal = sieve.judge(row)
            read += 1
            if removal is None and isinstance(row, Row):
                result.kept += 1
                yield row.origin, row.fields
                continue
            assert removal is not None
            unreadable += removal.rule == UNREADABLE
            result.count(removal)
            place = {"source": row.origin.source, "line": row.origin.line}
            said = {"rule": removal.rule, "reason": removal.reason}
            held = {"row": row.fields} if isinstance(row, Row) else {}
            rejects.write(json_line({**place, **said, **held}))
        if read == unreadable and sieve.mistake:
            # Not bad rows among good ones: the whole source has a layout that is not known.
            raise sieve.mistake
        sieve.mistake = None
    if not result.kept:
        raise NothingLeftError
