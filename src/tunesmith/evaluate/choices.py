"""Choosing by likelihood: nothing is generated, the option that the model finds likeliest counts.

Its attempts go into the same log as generated ones: the text is the chosen option as it would have
been written, so it can be graded again, and the verdict's reason holds every option's score.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace

from tunesmith.data.render import Renderer
from tunesmith.errors import UsageError
from tunesmith.evaluate.attempts import Grader, Plan, graded
from tunesmith.generate.likelihood import Pair, log_likelihoods
from tunesmith.generate.requests import attempt_seed
from tunesmith.models.load import LoadedModel
from tunesmith.types import Attempt, Example, Origin, Problem, Segment, StopReason

TOGETHER = 32
"""Problems whose options are scored, and stored, at a time."""
NORMALISED = "likelihood-normalised"


def stream_choices(
    loaded: LoadedModel,
    renderer: Renderer,
    plan: Plan,
    grader: Grader,
    *,
    done: Container[tuple[str, int]] = (),
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Attempt]:
    """Yield one attempt at each problem that is not in ``done``."""
    waiting = [problem for problem in plan.problems if (problem.id, 0) not in done]
    for start in range(0, len(waiting), TOGETHER):
        if should_stop and should_stop():
            return
        several = waiting[start : start + TOGETHER]
        options = [_options(plan, problem) for problem in several]
        pairs = [
            pair_of(renderer, plan.messages(problem), option)
            for problem, listed in zip(several, options, strict=True)
            for option in listed
        ]
        scores = iter(log_likelihoods(loaded.model, pairs))
        for problem, listed in zip(several, options, strict=True):
            own = [next(scores) for _ in listed]
            yield _attempt(plan, problem, listed, own, grader)


def _options(plan: Plan, problem: Problem) -> list[str]:
    found = plan.task.continuations(problem, plan.style)
    if len(found) < 2:
        raise UsageError(
            f"The question {problem.id!r} of task {plan.task.name!r} has no options to score in "
            f"the style {plan.style!r}.",
            expected="a question with options, asked with --prompt direct (or cloze)",
            hint="--choice-by generate",
        )
    return found


def pair_of(renderer: Renderer, messages: Sequence[Segment], option: str) -> Pair:
    """Return prompt and option as a training row has them, without the end of the turn."""
    row = Example((*messages, Segment("assistant", option, 1.0)), Origin("an option"))
    [encoded] = renderer.encode(row, 1 << 30).rows
    begin = next(at for at, weight in enumerate(encoded.weights) if weight)
    end = len(encoded.ids) - (encoded.ids[-1] in renderer.stop_ids)
    return encoded.ids[:begin], encoded.ids[begin:end]


def _attempt(
    plan: Plan, problem: Problem, options: Sequence[str], scores: Sequence[float], grader: Grader
) -> Attempt:
    values = [
        score / len(option.encode()) if plan.choice_by == NORMALISED else score
        for score, option in zip(scores, options, strict=True)
    ]
    best = max(range(len(values)), key=values.__getitem__)
    verdict = graded(grader, problem, options[best])
    unit = "nats a byte" if plan.choice_by == NORMALISED else "nats"
    listed = ", ".join(f"{n}: {value:.4f}" for n, value in enumerate(values, 1))
    told = replace(verdict, reason=f"{verdict.reason}; {unit} by option: {listed}")
    seed = attempt_seed(plan.seed, problem.id, 0)
    return Attempt(problem.id, 0, seed, options[best], (), StopReason.SCORED, told)
