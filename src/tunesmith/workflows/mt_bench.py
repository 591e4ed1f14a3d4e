"""``tunesmith eval --task mt_bench``: turns asked one after the other, answers kept for a judge."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent, open_respondent, sampling_of
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.tasks.mt_bench import MtBenchTask
    from tunesmith.types import Problem
    from tunesmith.workflows.evaluate import EvalResult

_IDLE = (
    "samples", "columns", "checker", "examples", "unsafe_exec", "vote", "choice_by", "decomposer",
    "against", "equal_tokens", "compare_with", "stop_when_clear", "clear_width", "contamination",
    "split",
)  # fmt: skip


def evaluate_turns(options: EvalOptions) -> EvalResult:
    """Ask every question turn by turn, the model's own answers in the context, and store them."""
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import ATTEMPTS, SCORES, load
    from tunesmith.tasks.mt_bench import MtBenchTask
    from tunesmith.workflows.evaluate import EvalResult, default_name

    _refuse_idle(options)
    task = MtBenchTask()
    style = task.check_style(options.prompt or task.prompts[0])
    problems = task.problems(
        options.split, seed=options.question_seed, limit=options.limit, source=options.dataset
    )
    sampling = sampling_of(options, task.max_new_tokens)
    respondent = open_respondent(options)
    name = options.name or default_name(options, task, style)
    folder = Path(options.output_dir) / name
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    # The turns decide it, not only the ids that a plan hashes.
    variant = repr([[turn.text for turn in problem.prompt] for problem in problems])
    plan = Plan(task, problems, style, sampling, 1, options.seed, options.system, variant=variant)
    _ask(respondent, plan, task, folder / ATTEMPTS, name, options.split)
    results = load(folder)
    summary = summarise(results.attempts)
    write_json(folder / SCORES, summary.to_json())
    last = sum(int(problem.meta["turn"]) == 1 for problem in problems)
    console.say(f"{name}: {len(results.attempts)} replies to {last} questions are stored.")
    console.say(f"Let them be judged: tunesmith judge {folder} --model JUDGE")
    return EvalResult(folder, results, summary)


def _refuse_idle(options: EvalOptions) -> None:
    known = type(options).model_fields
    for name in _IDLE:
        if getattr(options, name) != known[name].get_default(call_default_factory=True):
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing for the task mt_bench.",
                hint="leave it out",
            )
    if options.limit is None and options.question_seed != known["question_seed"].default:
        raise UsageError(
            "--question-seed does nothing without --limit: all questions are asked.",
            hint="--limit N, or leave it out",
        )


def _ask(
    respondent: Respondent, plan: Plan, task: MtBenchTask, path: Path, name: str, split: str
) -> None:
    """Make the attempts that are not stored yet, all of a turn before those of the next."""
    from tunesmith.evaluate.attempts import stream_attempts
    from tunesmith.evaluate.records import AttemptLog, load
    from tunesmith.workflows.evaluate import header_of, tell_stored

    header = header_of(respondent, plan, name, split)
    with AttemptLog(path, header, sync_every=respondent.sync_every) as log, stop_on_signals() as s:
        tell_stored(log, plan)
        said: dict[str, str] = {}
        if log.done:
            said = {attempt.problem_id: attempt.text for attempt in load(path).attempts}
        with console.bar(name, len(plan), len(log.done)) as bar:
            for turn in range(1, max(int(p.meta["turn"]) for p in plan.problems) + 1):
                asked = {p.id: p for p in _turn(task, plan, turn, said)}
                some = replace(plan, problems=[*asked.values()])
                done = frozenset(log.done)
                for attempt in stream_attempts(
                    respondent.backend, some, task.grade, done=done, should_stop=s
                ):
                    log.append(asked[attempt.problem_id], attempt)
                    said[attempt.problem_id] = attempt.text
                    bar.advance()
                if s():
                    break
        respondent.tell()
        if s():
            raise Interrupted(
                f"Stopped by a signal; {len(log.done)} of {len(plan)} replies are stored.",
                hint="the same command goes on from there",
            )


def _turn(task: MtBenchTask, plan: Plan, turn: int, said: dict[str, str]) -> list[Problem]:
    """Return the problems of a turn, with what the model has said to the turns before."""
    found = []
    for problem in plan.problems:
        if problem.meta["turn"] == turn:
            stem = problem.id.rpartition("-")[0]
            found.append(task.after(problem, [said[f"{stem}-{n}"] for n in range(1, turn)]))
    return found
