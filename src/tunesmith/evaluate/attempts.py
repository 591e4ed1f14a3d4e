"""The one stream of attempts: evaluation counts it, rejection sampling selects from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.render import Renderer
from tunesmith.generate.engine import Engine
from tunesmith.generate.requests import Request, Sampling, attempt_seed
from tunesmith.models.load import LoadedModel
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Attempt, Problem, Segment, Verdict

Grader = Callable[[Problem, str], Verdict]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of one model: everything that decides the attempts besides its weights."""

    task: GradedTask
    problems: Sequence[Problem]
    style: str
    """Prompt style, one of ``task.prompts``."""
    sampling: Sampling
    samples: int
    """Attempts at each problem."""
    seed: int
    """The run's seed; each attempt's own follows from it, the problem's id and the index."""
    system: str = ""
    """System message in front of every question, in place of the task's own."""

    def messages(self, problem: Problem) -> tuple[Segment, ...]:
        """Return the whole prompt of a problem."""
        asked = self.task.messages(problem, self.style)
        if not self.system:
            return asked
        rest = tuple(segment for segment in asked if segment.role != "system")
        return (Segment("system", self.system), *rest)

    def __len__(self) -> int:
        return len(self.problems) * self.samples

    def fingerprint(self) -> str:
        """Return a hash of the plan, so that a log is continued only by the plan it began with."""
        parts = [self.task.name, self.style, repr(self.sampling), str(self.samples), str(self.seed)]
        parts += [problem.id for problem in self.problems]
        parts += [f"system: {self.system}"] if self.system else []
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def stream_attempts(
    loaded: LoadedModel,
    renderer: Renderer,
    plan: Plan,
    grader: Grader,
    *,
    done: Container[tuple[str, int]] = (),
    max_slots: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Attempt]:
    """Yield each attempt as soon as it is finished and graded; those in ``done`` are not made.

    A grader that raises leaves its attempt ungraded (score ``None``) and the stream goes on:
    the grader's failure is not the model's.
    """
    by_id = {problem.id: problem for problem in plan.problems}
    requests = []
    for problem in plan.problems:
        wanted = [index for index in range(plan.samples) if (problem.id, index) not in done]
        if not wanted:
            continue
        prompt = renderer.prompt_ids(plan.messages(problem))
        for index in wanted:
            seed = attempt_seed(plan.seed, problem.id, index)
            requests.append(Request((problem.id, index), prompt, plan.sampling, seed))
    engine = Engine(loaded.model, renderer.decode, renderer.stop_ids, max_slots=max_slots)
    seeds = {request.key: request.seed for request in requests}
    for completion in engine.run(requests, should_stop=should_stop):
        problem_id, index = completion.key
        yield Attempt(
            problem_id,
            index,
            seeds[completion.key],
            completion.text,
            completion.tokens,
            completion.stop,
            graded(grader, by_id[problem_id], completion.text),
        )


def graded(grader: Grader, problem: Problem, text: str) -> Verdict:
    """Return the grader's verdict, or an ungraded one that says how the grader failed."""
    try:
        return grader(problem, text)
    except Exception as failure:  # whatever a grader does, it must not end a long run
        return Verdict(None, None, f"grader failed: {type(failure).__name__}: {failure}")
