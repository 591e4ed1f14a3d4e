"""``tunesmith eval --prompt socratic``: a model writes sub-questions, then one answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.storage import hash_json
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent, open_respondent
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from tunesmith.tasks.base import GradedTask
    from tunesmith.types import Problem

LOG = "sub-questions.jsonl"
"""In the evaluation's folder: what the decomposer wrote, a log of attempts like any other."""


def check_decomposer(options: EvalOptions, style: str) -> None:
    """Refuse a decomposer that nobody asks."""
    from tunesmith.tasks.sub_questions import SOCRATIC

    if options.decomposer is not None and style != SOCRATIC:
        raise UsageError(
            f"--decomposer does nothing with --prompt {style}: no sub-questions are written.",
            hint=f"--prompt {SOCRATIC}",
        )


def decompose(
    options: EvalOptions,
    task: GradedTask,
    problems: Sequence[Problem],
    folder: Path,
    respondent: Respondent,
) -> tuple[list[Problem], str]:
    """Return the problems with their sub-questions, and a hash of these.

    They are written greedily, once for each problem, by ``--decomposer`` or the model itself
    (``respondent``), and stored, so that a stopped evaluation goes on with the same ones.
    """
    from tunesmith.data.socratic import parse_list
    from tunesmith.evaluate.attempts import Plan, stream_attempts
    from tunesmith.evaluate.records import AttemptLog, load
    from tunesmith.generate.requests import Sampling
    from tunesmith.tasks.sub_questions import ASK, QUESTIONS, judge_list
    from tunesmith.workflows.evaluate import header_of, tell_stored

    if options.decomposer is not None:
        other = options.model_copy(update={"model": options.decomposer})
        respondent = open_respondent(other)
    plan = Plan(task, problems, ASK, Sampling(task.max_new_tokens), 1, options.seed)
    header = header_of(respondent, plan, LOG.removesuffix(".jsonl"), options.split)
    by_id = {problem.id: problem for problem in problems}
    with (
        AttemptLog(folder / LOG, header, sync_every=respondent.sync_every) as log,
        stop_on_signals() as stop,
    ):
        tell_stored(log, plan)
        with console.bar("sub-questions", len(plan), len(log.done)) as bar:
            stream = stream_attempts(
                respondent.backend,
                plan,
                judge_list,
                done=frozenset(log.done),
                should_stop=stop,
            )
            for attempt in stream:
                log.append(by_id[attempt.problem_id], attempt)
                bar.advance()
        if stop():
            raise Interrupted(
                f"Stopped by a signal; {len(log.done)} of {len(plan)} lists of sub-questions are "
                "stored.",
                hint="the same command goes on from there",
            )
    lists = {a.problem_id: parse_list(a.text) for a in load(folder / LOG).attempts}
    empty = sum(not found for found in lists.values())
    counts = [len(found) for found in lists.values()]
    console.say(f"{sum(counts) / len(counts):.1f} sub-questions a question, on average.")
    if empty:
        console.warn(
            f"for {empty} of {len(lists)} questions no list of sub-questions could be read; there "
            "the question itself is the only one"
        )
    asked = [replace(p, meta={**p.meta, QUESTIONS: tuple(lists[p.id])}) for p in problems]
    return asked, hash_json(lists)
