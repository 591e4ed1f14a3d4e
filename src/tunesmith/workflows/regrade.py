"""``tunesmith regrade``: grade stored attempts again with today's grader, and show what changed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_results import RegradeOptions
from tunesmith.errors import TunesmithError, UsageError
from tunesmith.storage import whole_folder, write_json
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
COMPARISON = "comparison.json"
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
    from tunesmith.evaluate.records import ATTEMPTS, held

    source = Path(options.results)
    source = source.parent if source.name == ATTEMPTS else source
    target = Path(options.output or f"{source}-regraded")
    with held(target):
        done = _replaced(options, source, target)
    if target.resolve() == source.resolve():
        _compare_again(target, done.results.name)
    return done


def _replaced(options: RegradeOptions, source: Path, target: Path) -> Regraded:
    from tunesmith.evaluate.following import following
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import ATTEMPTS, JUDGED_BY, VERIFIER, load, save, without_stop
    from tunesmith.evaluate.regraded import changes, grader_version, regraded

    old = load(Path(options.results))
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
    graders = {"grader": now, "graded before by": before or "not recorded"}
    details = {**without_stop(old.header), **graders}
    new = replace(old, header=replace(old.header, name=name, details=details), attempts=attempts)
    found = changes(old, new)
    summary = replace(summarise(new.attempts), following=following(new), **_kept(source))
    with whole_folder(target) as partial:
        if in_place:
            shutil.copytree(source, partial, dirs_exist_ok=True, ignore=_of_old_verdicts)
        save(partial, new, summary.to_json())
        _count_stopped(old, partial)
        rescore_clean(source, partial)
    _tell(old, found, summary, before == now)
    console.say(f"Regraded: {target}")
    return Regraded(target, new, summary, found)


def _count_stopped(old: ResultSet, folder: Path) -> None:
    """Write down how many were asked of a set that was stopped when clear, and no more of that.

    Whether the difference is clear by the new verdicts is what ``tunesmith compare`` says.
    """
    from tunesmith.evaluate.records import STOPPED

    counts = ("questions", "of", "attempts", "against")
    if stopped := old.header.details.get(STOPPED):
        kept = {name: stopped[name] for name in counts if name in stopped}
        write_json(folder / f"{STOPPED}.json", kept)


def _compare_again(folder: Path, name: str) -> None:
    """Make the comparison of a run anew whose set was regraded in its place, or drop it."""
    from tunesmith.rundir import RunDir
    from tunesmith.workflows.finish import compare_stored

    file = folder.parent / COMPARISON
    try:
        if name not in json.loads(file.read_text(encoding="utf-8"))["summaries"]:
            return
    except (OSError, ValueError, KeyError, TypeError):
        return
    file.unlink()
    run = RunDir(folder.resolve().parent.parent)
    said = []
    if run.eval == folder.resolve().parent:
        with contextlib.suppress(TunesmithError):  # such as a set that is not finished
            said = compare_stored(run)
    for sentence in said:
        console.say(sentence)
    made = "made anew" if said else "dropped; tunesmith compare makes one of the new verdicts"
    console.warn(f"{file} was made of the old verdicts and is {made}")
    if (run.final_model / "README.md").is_file():
        console.warn(f"{run.final_model / 'README.md'} still tells what the old verdicts showed")


def _of_old_verdicts(folder: str, names: list[str]) -> set[str]:
    """Return what of a set's folder follows from verdicts: votes, comparisons, the log itself."""
    from tunesmith.evaluate.records import ATTEMPTS, STOPPED

    files = {ATTEMPTS, COMPARISON, "against.json", f"{STOPPED}.json"}
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
