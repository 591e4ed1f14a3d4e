"""``tunesmith data socratic``: public or own Socratic data in, checked rows out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_socratic import SocraticOptions
from tunesmith.data.socratic import FAULTS, Fault, find_faults, question_type
from tunesmith.data.socratic_import import gsm8k_row, list_row, mathdial_row
from tunesmith.errors import DataError, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.targets import (
    NothingLeftError,
    check_targets,
    rows_or_faults,
    write_kept,
)

if TYPE_CHECKING:
    from tunesmith.data.readers import Row
    from tunesmith.types import Origin

FORMS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "gsm8k": gsm8k_row,
    "mathdial": mathdial_row,
    "list": list_row,
}
UNREADABLE = "unreadable"
NAMED = 3
"""Faults of a kind that the terminal names; the file of rejects has all that took something out."""


@dataclass(slots=True)
class SocraticResult:
    """What became of a set of Socratic rows."""

    output: Path
    rejects: Path | None
    """None when nothing was removed."""
    rows: int = 0
    kept: int = 0
    questions: int = 0
    """In kept rows."""
    faults: Counter[str] = field(default_factory=Counter)
    """Every fault found, by kind, whether it removed something or not."""
    removed_questions: int = 0
    removed_rows: Counter[str] = field(default_factory=Counter)
    """By the fault that decided; with ``kept`` they add up to all rows."""
    types: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    """Dialogues whose last student turn, which nobody answers, was left out."""
    wordless: int = 0
    """Turns of dialogues without a word, left out."""
    shown: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, text: str) -> None:
        """Count a fault and remember the first few of its kind."""
        self.faults[kind] += 1
        examples = self.shown.setdefault(kind, [])
        if len(examples) < NAMED:
            examples.append(text)

    def counts(self) -> dict[str, Any]:
        """Return all counts as JSON knows them."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "removed": dict(self.removed_rows),
            "questions": self.questions,
            "removed_questions": self.removed_questions,
            "faults": dict(self.faults),
            "types": dict(self.types),
            "moves": dict(self.moves),
            "unanswered_ends": self.unanswered,
            "turns_without_text": self.wordless,
        }


def command(resolved: Resolved[SocraticOptions]) -> int:
    """Handle ``tunesmith data socratic``; the counts go to stdout as JSON."""
    result = _convert(resolved.options)
    _show(result)
    if not result.kept:
        raise DataError(
            f"None of the {result.rows} rows is left, so no rows were written.",
            hint=f"read the reasons in {result.rejects}, or --faulty keep",
        )
    console.say(f"Rows: {result.output}")
    print(json.dumps(result.counts()))
    return 0


def convert_socratic(options: SocraticOptions | None = None, **settings: Any) -> SocraticResult:
    """Import and check Socratic data; settings are those of ``tunesmith data socratic``."""
    return _convert(options or resolve(SocraticOptions, settings, origin="argument").options)


def _convert(options: SocraticOptions) -> SocraticResult:
    if options.min_questions > options.max_questions:
        raise UsageError(
            f"No list has at least {options.min_questions} and at most "
            f"{options.max_questions} questions."
        )
    output, rejects = check_targets(
        options.dataset, options.output, options.rejects, overwrite=options.overwrite
    )
    result = SocraticResult(output, rejects)
    write_kept(output, rejects, lambda file: _rows(options, result, file))
    if not result.removed_rows and not result.removed_questions:
        rejects.unlink()
        result.rejects = None
    return result


def _rows(
    options: SocraticOptions, result: SocraticResult, rejects: IO[bytes]
) -> Iterator[tuple[Origin, dict[str, Any]]]:
    from tunesmith.data.readers import Fault as Unread
    from tunesmith.data.writers import json_line

    for source in options.dataset:
        mistake: DataError | None = None
        read = unreadable = 0
        rows = rows_or_faults(source, max_rows=options.max_rows, encoding=options.encoding)
        for row in rows:
            result.rows += 1
            read += 1
            place = {"source": row.origin.source, "line": row.origin.line}
            try:
                if isinstance(row, Unread):
                    raise row.error()
                made = FORMS[options.form](row)
            except DataError as found:
                mistake = mistake or found
                unreadable += 1
                reason = found.found.removeprefix(f"{row.origin}: ").removesuffix(".")
                result.note(UNREADABLE, f"{row.origin}: {reason}")
                result.removed_rows[UNREADABLE] += 1
                rejects.write(json_line({**place, "rule": UNREADABLE, "reason": reason}))
                continue
            removed = [] if "messages" in made else _judge(made, row, options, result)
            for entry in removed:
                rejects.write(json_line({**place, **entry}))
            if made.get("output") == []:
                continue
            _count(made, result)
            yield row.origin, made
        if mistake and read == unreadable:
            # Not bad rows among good ones: the whole source has another form.
            raise mistake
    if not result.kept:
        raise NothingLeftError


def _judge(
    made: dict[str, Any], row: Row, options: SocraticOptions, result: SocraticResult
) -> list[dict[str, Any]]:
    """Take the faulty questions out of a row, or empty it; return what was removed and why."""
    questions: list[str] = made["output"]
    answer = made.get("answer")
    faults = find_faults(
        questions,
        made["instruction"],
        gold=answer if isinstance(answer, str) else None,
        fewest=options.min_questions,
        most=options.max_questions,
    )
    for fault in faults:
        said = "" if fault.position is None else f" («{questions[fault.position]}»)"
        result.note(fault.kind, f"{row.origin}: {fault.reason}{said}")
    hard = [fault for fault in faults if FAULTS[fault.kind]]
    if options.faulty == "keep" or not hard:
        return []
    if options.faulty == "row" or len(questions) > options.max_questions:
        return _emptied(made, questions, hard[0], result)
    bad = {fault.position: fault for fault in reversed(hard) if fault.position is not None}
    kept = [at for at in range(len(questions)) if at not in bad]
    if len(kept) < options.min_questions:
        return _emptied(made, questions, hard[0], result)
    for name in ("output", "steps"):
        if isinstance(made.get(name), list) and len(made[name]) == len(questions):
            made[name] = [made[name][at] for at in kept]
    result.removed_questions += len(bad)
    return [
        {"rule": fault.kind, "reason": fault.reason, "question": questions[at]}
        for at, fault in sorted(bad.items())
    ]


def _emptied(
    made: dict[str, Any], questions: list[str], fault: Fault, result: SocraticResult
) -> list[dict[str, Any]]:
    made["output"] = []
    result.removed_rows[fault.kind] += 1
    what = {"instruction": made["instruction"], "output": questions}
    return [{"rule": fault.kind, "reason": fault.reason, "row": what}]


def _count(made: dict[str, Any], result: SocraticResult) -> None:
    result.kept += 1
    for question in made.get("output", ()):
        result.questions += 1
        result.types[question_type(question)] += 1
    meta = made.get("meta")
    if "messages" in made and isinstance(meta, dict):
        result.moves.update(move for moves in meta["moves"] for move in moves)
        result.unanswered += meta["unanswered_end"]
        result.wordless += meta["turns_without_text"]


def _show(result: SocraticResult) -> None:
    rows = [[kind, f"{number:,}"] for kind, number in result.faults.most_common()]
    if rows:
        console.table("Faults", ["kind", "found"], rows)
    for kind, texts in result.shown.items():
        for text in texts:
            console.say(f"  {kind}: {text}")
    for heading, counts in (("Types of questions", result.types), ("Teacher moves", result.moves)):
        total = sum(counts.values())
        if total:
            shares = [[k, f"{n:,}", f"{n / total:.1%}"] for k, n in counts.most_common()]
            console.table(heading, ["type", "number", "share"], shares)
    gone = ", ".join(f"{number} {kind}" for kind, number in result.removed_rows.items())
    console.say(
        f"{result.kept:,} of {result.rows:,} rows kept" + (f"; removed: {gone}." if gone else ".")
    )
    if result.removed_questions:
        console.say(f"{result.removed_questions:,} faulty questions were taken out of kept rows.")
    if result.unanswered:
        console.say(
            f"In {result.unanswered} dialogues the student's last turn, which nobody answers, was "
            "left out."
        )
    if result.wordless:
        console.say(f"{result.wordless} turns without text were left out.")
    if result.rejects is not None:
        console.say(f"What was removed, each with its reason: {result.rejects}")
