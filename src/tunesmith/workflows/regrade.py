"""``tunesmith regrade``: grade stored attempts again with today's grader, and show what changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_results import RegradeOptions
from tunesmith.errors import UsageError
from tunesmith.storage import whole_folder
from tunesmith.tasks.replies import REPLY_TASKS
from tunesmith.workflows import console
from tunesmith.workflows.contamination import rescore_clean
from tunesmith.workflows.evaluate import score_line

if TYPE_CHECKING:
    from tunesmith.evaluate.metrics import Summary
    from tunesmith.evaluate.records import ResultSet
    from tunesmith.evaluate.regraded import Changed
    from tunesmith.tasks.base import GradedTask
    from tunesmith.types import Problem, Verdict

SAMPLED = ".attempts.jsonl"
"""How the logs of ``tunesmith sample`` end, whose attempts are judged strictly."""
NAMED = 5
"""Changed verdicts that are shown; all of them are counted."""


@dataclass(frozen=True, slots=True)
class Regraded:
    """What grading again leaves: the new set, its summary, and every verdict that changed."""

    folder: Path
    results: ResultSet
    summary: Summary
    changed: tuple[Changed, ...]


def command(resolved: Resolved[RegradeOptions]) -> int:
    """Handle ``tunesmith regrade``; the counts go to stdout as JSON."""
    from tunesmith.evaluate.regraded import count_changes

    done = _regrade(resolved.options)
    counts = count_changes(done.changed)
    print(json.dumps({"folder": str(done.folder), "changed": counts, **done.summary.to_json()}))
    return 0


def regrade(options: RegradeOptions | None = None, **settings: Any) -> Regraded:
    """Grade stored attempts again; settings are those of ``tunesmith regrade``."""
    return _regrade(options or resolve(RegradeOptions, settings, origin="argument").options)


def _regrade(options: RegradeOptions) -> Regraded:
    from tunesmith.evaluate.following import following
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import ATTEMPTS, JUDGED_BY, VERIFIER, load, save
    from tunesmith.evaluate.regraded import changes, grader_version, regraded

    source = Path(options.results)
    source = source.parent if source.name == ATTEMPTS else source
    old = load(Path(options.results))
    target = Path(options.output or f"{source}-regraded")
    in_place = target.resolve() == source.resolve()
    if target.exists() and not options.overwrite:
        what = "holds the very attempts" if in_place else "is there already"
        raise UsageError(
            f"{str(target)!r} {what}.", hint="--output another, or --overwrite to replace it"
        )
    if target.exists() and not (target / ATTEMPTS).is_file():
        raise UsageError(f"{str(target)!r} holds no stored attempts; it is not replaced.")
    task = _task(old, options)
    strict = old.header.details.get(JUDGED_BY) == VERIFIER or source.name.endswith(SAMPLED)
    grader: Callable[[Problem, str], Verdict] = task.verify if strict else task.grade
    attempts = tuple(regraded(old, grader, task.graders))
    before, now = old.header.details.get("grader"), grader_version(old.header.task)
    name = old.header.name if in_place else f"{old.header.name}-regraded"
    details = {**old.header.details, "grader": now, "graded before by": before or "not recorded"}
    new = replace(old, header=replace(old.header, name=name, details=details), attempts=attempts)
    found = changes(old, new)
    summary = replace(summarise(new.attempts), following=following(new), **_kept(source))
    with whole_folder(target) as partial:
        if in_place:
            shutil.copytree(source, partial, dirs_exist_ok=True, ignore=_of_old_verdicts)
        save(partial, new, summary.to_json())
        rescore_clean(source, partial)
    _tell(old, found, summary, before == now)
    console.say(f"Regraded: {target}")
    return Regraded(target, new, summary, found)


def _of_old_verdicts(folder: str, names: list[str]) -> set[str]:
    """Return what of a set's folder follows from verdicts: votes, comparisons, the log itself."""
    from tunesmith.evaluate.records import ATTEMPTS

    files = {ATTEMPTS, "comparison.json", "against.json"}
    votes = {name for name in names if (Path(folder) / name / ATTEMPTS).is_file()}
    if votes:
        console.warn(f"made of the old verdicts, so left out: {', '.join(sorted(votes))}")
    return files & {*names} | votes


def _task(old: ResultSet, options: RegradeOptions) -> GradedTask:
    """Return the task that graded a set, ready to grade."""
    from tunesmith.tasks.base import QuestionSettings
    from tunesmith.tasks.registry import get_graded_task, get_reply_task

    settings = QuestionSettings(unsafe_exec=options.unsafe_exec)
    name = old.header.task
    task = (get_reply_task if name in REPLY_TASKS else get_graded_task)(name, settings)
    if ready := task.ready():
        console.say(ready)
    return task


def _kept(source: Path) -> dict[str, Any]:
    """Return what the old summary says that grading does not change, such as guessing's score."""
    from tunesmith.evaluate.records import SCORES

    try:
        found = json.loads((source / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("chance", "thinking_tokens", "unclosed")
    return {name: found[name] for name in names if isinstance(found.get(name), int | float)}


def _tell(old: ResultSet, found: tuple[Changed, ...], summary: Summary, same: bool) -> None:
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.regraded import count_changes
    from tunesmith.tasks.registry import score_called

    counts = count_changes(found)
    listed = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "none"
    console.say(f"Verdicts that changed, of {len(old.attempts)}: {listed}.")
    for one in found[:NAMED]:
        console.say(f"  {one.sentence()}")
    if len(found) > NAMED:
        console.say(f"  and {len(found) - NAMED} more")
    if same and found:
        console.warn("the grader's code is the same as when these attempts were graded first")
    called = score_called(old.header.task)
    console.say(f"Before: {score_line(summarise(old.attempts), called)}")
    console.say(f"Now:    {score_line(summary, called)}")
