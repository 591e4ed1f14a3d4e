"""``tunesmith eval --against``: the same questions in other prompt styles, and the difference.

With ``--prompt socratic`` it says what answering sub-questions first brings.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent
from tunesmith.workflows.decompose import LOG

if TYPE_CHECKING:
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.evaluate.records import ResultSet
    from tunesmith.tasks.base import GradedTask
    from tunesmith.types import Problem
    from tunesmith.workflows.evaluate import EvalResult

AGAINST = "against.json"
"""In the folder of ``--prompt``: the comparison, and what each way has written."""
TEMPERATURE = 0.7
"""Of repeated attempts: greedy ones would be alike."""
MOST = 32
"""Attempts that as many tokens may buy, at most."""


def check_against(options: EvalOptions, task: GradedTask, style: str) -> None:
    """Refuse styles that there are none of, and settings that would do nothing."""
    from tunesmith.tasks.sub_questions import SOCRATIC

    if options.equal_tokens and not options.against:
        raise UsageError(
            "--equal-tokens does nothing without --against.", hint="--against cot --equal-tokens"
        )
    if not options.against:
        return
    for other in options.against:
        task.check_style(other)
        if other in (style, SOCRATIC):
            raise UsageError(
                f"--against {other} with --prompt {style}.",
                expected="another style, of which none writes sub-questions",
                hint=f"--prompt {SOCRATIC} --against {task.prompts[0]}",
            )
    if options.stop_when_clear:
        raise UsageError(
            "--stop-when-clear does not go with --against: all ways need the same questions.",
            hint="leave one of them out",
        )
    changed = [options.samples > 1, options.temperature > 0, options.choice_by != "generate"]
    if options.vote or (options.equal_tokens and any(changed)):
        flag = "--vote" if options.vote else "--equal-tokens"
        raise UsageError(
            f"{flag} does not go with these settings and --against.",
            expected="one greedy, generated attempt at each question",
            hint=f"leave {flag} out, or --samples, --temperature and --choice-by",
        )


def ask_against(
    options: EvalOptions,
    respondent: Respondent,
    plan: Plan,
    problems: list[Problem],
    result: EvalResult,
) -> EvalResult:
    """Ask the questions in the other styles too; stored, compared, and shown.

    ``problems`` are without sub-questions; ``plan`` is that of ``--prompt``.
    """
    from tunesmith.evaluate.compare import compare
    from tunesmith.workflows.compare import show
    from tunesmith.workflows.questions import examples_hash

    written = {plan.style: _written(result)}
    sets: list[ResultSet] = []
    for other in dict.fromkeys(options.against):
        own = replace(plan, problems=problems, style=other, variant=examples_hash(options))
        one = _ask(options, respondent, own, _name(options, plan, other))
        written[other] = _written(one)
        sets.append(one.results)
        times = _times(options, written, plan.style, other)
        if times > 1:
            sampling = replace(plan.sampling, temperature=TEMPERATURE)
            own = replace(own, samples=times, sampling=sampling)
            many = _ask(options, respondent, own, f"{_name(options, plan, other)}-x{times}")
            written[f"{other}, {times} times"] = _written(many) * times
            sets.append(_most_frequent(many))
    comparison = compare([*sets, result.results])
    show(comparison)
    _tell(written, plan.style)
    told = {
        "compared": comparison.to_json(),
        "tokens a question": written,
        "not controlled": _uncontrolled(options),
    }
    write_json(result.folder / AGAINST, told)
    return replace(result, metrics={"against": told})


def _ask(options: EvalOptions, respondent: Respondent, plan: Plan, name: str) -> EvalResult:
    from tunesmith.workflows.evaluate import collect_from

    folder = Path(options.output_dir) / name
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    return collect_from(respondent, plan, plan.task.grade, folder, name, options.split)


def _name(options: EvalOptions, plan: Plan, style: str) -> str:
    from tunesmith.workflows.evaluate import default_name

    return f"{options.name}-{style}" if options.name else default_name(options, plan.task, style)


def _written(result: EvalResult) -> float:
    """Return the mean tokens of an attempt, its sub-questions counted; 0 where nobody counts."""
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import load

    written = result.summary.mean_tokens or 0.0
    log = result.folder / LOG
    asked = summarise(load(log).attempts).mean_tokens if log.is_file() else 0.0
    return written + (asked or 0.0)


def _times(options: EvalOptions, written: dict[str, float], style: str, other: str) -> int:
    """Return how many attempts in the other style cost as many tokens as one of ``--prompt``."""
    if not options.equal_tokens:
        return 1
    if not written[other] or not written[style]:
        console.warn("nobody counts the tokens of these answers, so none are made equal")
        return 1
    times = min(MOST, round(written[style] / written[other]))
    if times < 2:
        console.say(f"{other} already writes about as many tokens as {style}, or more.")
    return times


def _most_frequent(many: EvalResult) -> ResultSet:
    """Store and return the most frequent answer of each question's attempts."""
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import save
    from tunesmith.evaluate.votes import voted

    one = voted(many.results, "majority")
    shutil.rmtree(many.folder / "majority", ignore_errors=True)
    save(many.folder / "majority", one, summarise(one.attempts).to_json())
    return one


def _tell(written: dict[str, float], style: str) -> None:
    told = "; ".join(f"{name} {count:.0f}" for name, count in written.items())
    console.say(f"Tokens written a question, sub-questions counted: {told}.")
    console.say(
        f"Held equal: questions, model, decoding, limit of tokens. Not: what {style} and the "
        "others write and read (worked examples differ)."
    )


def _uncontrolled(options: EvalOptions) -> list[str]:
    found = ["tokens of the prompt: each style has its own worked examples"]
    if not options.equal_tokens:
        found.append("tokens written: --equal-tokens repeats the other prompt to as many")
    return [*found, *(["the decomposer is another model"] if options.decomposer else [])]
