"""``tunesmith eval``: ask a model a task's questions, grade the answers, store every attempt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import EvalOptions, SamplingOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.storage import write_json
from tunesmith.tasks.replies import REPLY_TASKS
from tunesmith.workflows import console
from tunesmith.workflows.against import ask_against, check_against
from tunesmith.workflows.asking import (
    Respondent,
    open_respondent,
    respondent_of,
    sampling_of,
)
from tunesmith.workflows.contamination import score_clean
from tunesmith.workflows.following import show_following
from tunesmith.workflows.questions import examples_hash, task_of
from tunesmith.workflows.rag_conditions import refuse_rag
from tunesmith.workflows.signals import stop_on_signals
from tunesmith.workflows.stopping import forget_stop, stop_rule, tell_compared, tell_stop
from tunesmith.workflows.votes import check_vote, vote

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.evaluate.metrics import Summary
    from tunesmith.evaluate.records import AttemptLog, ResultSet
    from tunesmith.evaluate.stopping import StopRule
    from tunesmith.generate.requests import Sampling
    from tunesmith.models.load import LoadedModel
    from tunesmith.tasks.base import GradedTask
    from tunesmith.types import Attempt, Problem, Verdict

DEFAULT_QUESTIONS = 400


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What an evaluation leaves: its folder, the stored set and the summary of it."""

    folder: Path
    results: ResultSet
    summary: Summary
    votes: Mapping[str, Summary] = field(default_factory=dict)
    """Kind of vote → what it scores."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What ``metrics.json`` holds, of a task whose replies metrics score."""
    contamination: Mapping[str, Any] = field(default_factory=dict)
    """What ``contamination.json`` holds, where training rows were named."""

    @property
    def stored(self) -> Path:
        """The log of attempts, or the file that stands for several sets in the folder."""
        from tunesmith.evaluate.records import ATTEMPTS
        from tunesmith.workflows.rag import CONDITIONS

        log = self.folder / ATTEMPTS
        return log if log.is_file() else self.folder / CONDITIONS


def command(resolved: Resolved[EvalOptions]) -> int:
    """Handle ``tunesmith eval``; the scores go to stdout as JSON."""
    result = _evaluate(resolved.options)
    votes = {how: summary.to_json() for how, summary in result.votes.items()}
    more: dict[str, Any] = {"votes": votes} if votes else {}
    more |= {"contamination": result.contamination} if result.contamination else {}
    if "conditions" in result.metrics:
        print(json.dumps({**result.metrics, **more}))
        return 0
    print(json.dumps({**result.summary.to_json(), **more, **result.metrics}))
    return 0


def evaluate(options: EvalOptions | None = None, **settings: Any) -> EvalResult:
    """Evaluate a model; settings are those of ``tunesmith eval``."""
    return _evaluate(options or resolve(EvalOptions, settings, origin="argument").options)


def _evaluate(options: EvalOptions) -> EvalResult:
    from tunesmith.tasks.sub_questions import SOCRATIC
    from tunesmith.workflows.decompose import check_decomposer, decompose

    console.set_level(options.log_level)
    options = options.model_copy(update={"dataset": options.dataset or options.test_dataset_path})
    if options.task != "raft":
        refuse_rag(options)
    if options.task in REPLY_TASKS:
        from tunesmith.workflows.replies import evaluate_replies

        return evaluate_replies(options)
    _check_terms(options)
    if options.task == "mt_bench":
        from tunesmith.workflows.mt_bench import evaluate_turns

        return evaluate_turns(options)
    if options.task == "raft":
        from tunesmith.workflows.rag import evaluate_rag

        return evaluate_rag(options)
    task = task_of(options)
    style = task.check_style(options.prompt or task.prompts[0])
    problems = task.problems(
        options.split,
        seed=options.question_seed,
        limit=options.limit or DEFAULT_QUESTIONS,
        source=options.dataset,
    )
    weighed = bool({"weighted", "best"} & {*options.vote})
    sampling = sampling_of(options, task.max_new_tokens, logprobs=weighed)
    if ready := task.ready():
        console.say(ready)
    check_vote(options)
    check_choice(options)
    check_decomposer(options, style)
    check_against(options, task, style)
    respondent = open_respondent(options)
    name = options.name or default_name(options, task, style)
    folder = Path(options.output_dir) / name
    watch = stop_rule(options, problems, name, folder)
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    variant = examples_hash(options)
    plain = problems
    if style == SOCRATIC:
        problems, variant = decompose(options, task, problems, folder, respondent)
    plan = plan_of(options, task, problems, style, sampling, variant)
    if watch is not None:
        plan = watch.planned(plan)
    result = collect_from(respondent, plan, task.grade, folder, name, options.split, watch)
    if options.compare_with is not None:
        tell_compared(options, result)
    if options.contamination:
        result = replace(result, contamination=score_clean(options, task, result))
    if options.against:
        return ask_against(options, respondent, plan, plain, result)
    if not options.vote:
        return result
    comparison = vote(options, result.results, folder)
    votes = {str(how): comparison.summaries[f"{name}-{how}"] for how in options.vote}
    return replace(result, votes=votes)


def default_name(options: EvalOptions, task: GradedTask, style: str) -> str:
    """Return what a set of attempts is called that nobody has named."""
    how = "" if options.choice_by == "generate" else f"-{options.choice_by}"
    held = "" if options.weights == "full" else f"-{options.weights}"
    return f"{task.name}-{style}{how}-{Path(options.model).name}{held}"


def _check_terms(options: EvalOptions) -> None:
    """Refuse terms that nobody looks for."""
    for name in ("terms", "terms_from"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing for the task {options.task!r}.",
                hint="leave it out, or --task domain",
            )


def check_choice(options: EvalOptions) -> None:
    """Refuse what does nothing where options are scored and nothing is generated."""
    if options.choice_by == "generate":
        return
    known = type(options).model_fields
    for name in (*SamplingOptions.model_fields, "samples"):
        if name != "seed" and getattr(options, name) != known[name].default:
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing with --choice-by {options.choice_by}: "
                "nothing is generated.",
                hint="leave it out",
            )
    if options.address or options.backend != "engine":
        asked = "--address" if options.address else f"--backend {options.backend}"
        raise UsageError(
            f"--choice-by {options.choice_by} scores options with local weights; {asked} only "
            "generates.",
            hint="--choice-by generate",
        )


def collect(
    loaded: LoadedModel,
    renderer: Renderer,
    plan: Plan,
    grader: Callable[[Problem, str], Verdict],
    folder: Path,
    name: str,
    split: str,
    max_slots: int | None = None,
) -> EvalResult:
    """Do what ``collect_from`` does, with a loaded model and the project's own engine."""
    respondent = respondent_of(loaded, renderer, max_slots)
    return collect_from(respondent, plan, grader, folder, name, split)


def collect_from(
    respondent: Respondent,
    plan: Plan,
    grader: Callable[[Problem, str], Verdict],
    folder: Path,
    name: str,
    split: str,
    watch: StopRule | None = None,
) -> EvalResult:
    """Make the attempts of a plan that are not stored yet, then summarise all of them.

    With ``watch`` they are made until its comparison is clear.
    """
    from tunesmith.evaluate.following import following
    from tunesmith.evaluate.metrics import summarise, ungraded_sentence
    from tunesmith.evaluate.records import ATTEMPTS, SCORES, STOP_RULE, AttemptLog, load
    from tunesmith.evaluate.thinking import measure_thinking

    by_id = {problem.id: problem for problem in plan.problems}
    header = header_of(respondent, plan, name, split)
    if watch is not None:
        header = replace(header, details={**header.details, STOP_RULE: watch.described()})
    path, sync = folder / ATTEMPTS, respondent.sync_every
    with AttemptLog(path, header, sync_every=sync) as log, stop_on_signals() as stop:
        tell_stored(log, plan)
        with console.bar(name, len(plan), len(log.done)) as bar:
            right, called = 0.0, plan.task.score_called
            ask = partial(
                _asked, respondent=respondent, grader=grader, done=frozenset(log.done), stop=stop
            )
            if watch is None:
                stream = ask(plan)
            else:
                stored = load(folder).attempts if log.done else ()
                forget_stop(folder)
                stream = watch.attempts(ask, plan, stored, stop)
            for made, attempt in enumerate(stream, 1):
                log.append(by_id[attempt.problem_id], attempt)
                right += (attempt.verdict.score or 0.0) if attempt.verdict else 0.0
                bar.advance(note=f"{100 * right / made:.0f}% {called}")
        respondent.tell()
        if told := plan.task.told():
            console.say(told)
        if stop():
            raise Interrupted(
                f"Stopped by a signal; {len(log.done)} of {len(plan)} attempts are stored.",
                hint="the same command goes on from there",
            )
    if watch is not None:
        tell_stop(watch, folder)
    results = load(folder)
    decode = respondent.renderer.decode if respondent.renderer else None
    tokens, unclosed = measure_thinking(results.attempts, decode)
    summary = replace(
        summarise(results.attempts),
        chance=_chance(plan),
        thinking_tokens=tokens,
        unclosed=unclosed,
        following=following(results),
    )
    write_json(folder / SCORES, summary.to_json())
    console.say(f"{name}: {score_line(summary, plan.task.score_called)}")
    if failed := ungraded_sentence(results.attempts):
        console.warn(f"{failed}; they are in no score")
    if summary.following is not None:
        show_following(summary.following)
    return EvalResult(folder, results, summary)


def _asked(
    plan: Plan,
    respondent: Respondent,
    grader: Callable[[Problem, str], Verdict],
    done: frozenset[tuple[str, int]],
    stop: Callable[[], bool],
) -> Iterator[Attempt]:
    """Yield the attempts of a plan that are not done yet, generated or chosen by likelihood."""
    from tunesmith.evaluate.attempts import GENERATE, stream_attempts

    if plan.choice_by == GENERATE:
        return stream_attempts(respondent.backend, plan, grader, done=done, should_stop=stop)
    if respondent.local is None:
        raise ValueError("options are scored with a loaded model")
    loaded, renderer = respondent.local
    from tunesmith.evaluate.choices import stream_choices  # loads torch, which servers need not

    return stream_choices(loaded, renderer, plan, grader, done=done, should_stop=stop)


def header_of(respondent: Respondent, plan: Plan, name: str, split: str) -> Any:
    """Return the header that says what decides these attempts."""
    from tunesmith.evaluate.attempts import GENERATE
    from tunesmith.evaluate.records import ROUNDS, Header, versions
    from tunesmith.evaluate.regraded import grader_version
    from tunesmith.storage import hash_json

    identity, details = respondent.facts()
    return Header(
        name=name,
        task=plan.task.name,
        split=split,
        prompt=plan.style,
        model=respondent.described,
        seed=plan.seed,
        samples=plan.samples,
        planned=len(plan),
        fingerprint=hash_json([plan.fingerprint(), *identity]),
        details={
            **details,
            "temperature": plan.sampling.temperature,
            **({"system": plan.system} if plan.system else {}),
            **({ROUNDS: asdict(plan.rounds)} if plan.rounds.count > 1 else {}),
            **({"choice by": plan.choice_by} if plan.choice_by != GENERATE else {}),
            "max_new_tokens": plan.sampling.max_new_tokens,
            "versions": versions(),
            "grader": grader_version(plan.task.name),
        },
    )


def tell_stored(log: AttemptLog, plan: Plan) -> None:
    """Say what of a plan is stored already, and what of a half-written attempt was cut."""
    if log.cut_bytes:
        console.warn(
            f"{str(log.path)!r} ended in a record that was not written to its end; its "
            f"{log.cut_bytes:,} bytes were cut, and the attempt is made again"
        )
    if log.done:
        planned = len(plan) if plan.rounds.count == 1 else f"at least {len(plan)}"
        console.say(f"{len(log.done)} of {planned} attempts are stored already.")


def score_line(summary: Summary, called: str = "right") -> str:
    """Say a summary in one line; ``called`` is what its score is."""
    ends = summary.accuracy_interval
    text = (
        f"{100 * summary.accuracy:.1f}% {called} (95% interval {100 * ends.low:.1f} to "
        f"{100 * ends.high:.1f}), {100 * summary.answer_rate:.1f}% answered, {summary.n} attempt"
        f"{'' if summary.n == 1 else 's'}"
    )
    if summary.thinking_tokens is not None:
        text += f", {summary.thinking_tokens:.0f} tokens of thinking on average"
    if summary.unclosed is not None:
        text += f" (thinking never closed in {100 * summary.unclosed:.1f}%)"
    text += f", chance {100 * summary.chance:.1f}%" if summary.chance is not None else ""
    return text + (f", {summary.ungraded} ungraded" if summary.ungraded else "")


def _chance(plan: Plan) -> float | None:
    """Return the mean score of guessing, None where it is not known of every problem."""
    found = [plan.task.chance(problem) for problem in plan.problems]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def plan_of(
    options: EvalOptions,
    task: GradedTask,
    problems: list[Problem],
    style: str,
    sampling: Sampling,
    variant: str,
) -> Plan:
    """Return what is asked by the settings; ``variant`` is what else decides the prompts."""
    from tunesmith.evaluate.attempts import Plan

    return Plan(
        task,
        problems,
        style,
        sampling,
        options.samples,
        options.seed,
        options.system,
        choice_by=options.choice_by,
        variant=variant,
    )


def greedy_plan(task: GradedTask, problems: list[Problem], style: str, seed: int) -> Plan:
    """Return the plan of one greedy attempt at each problem."""
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.generate.requests import Sampling

    return Plan(task, problems, style, Sampling(task.max_new_tokens), 1, seed)
