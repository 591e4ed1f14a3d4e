"""The one stream of attempts: evaluation counts it, rejection sampling selects from it."""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from tunesmith.evaluate.rounds import ONE_ROUND, Rounds, with_hint
from tunesmith.generate.backends import Backend, Question
from tunesmith.generate.requests import Completion, Sampling, attempt_seed
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Attempt, Problem, Segment, Verdict

Grader = Callable[[Problem, str], Verdict]
GENERATE = "generate"
Item = TypeVar("Item")
Result = TypeVar("Result")


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
    rounds: Rounds = ONE_ROUND
    choice_by: str = GENERATE
    """generate, or by which likelihood options are chosen."""
    variant: str = ""
    """What else decides the prompts, such as a file of worked examples."""

    def messages(self, problem: Problem, *, hinted: bool = False) -> tuple[Segment, ...]:
        """Return the whole prompt of a problem; hinted, its last turn also tells the answer."""
        asked = self.task.messages(problem, self.style)
        if self.system:
            rest = tuple(segment for segment in asked if segment.role != "system")
            asked = (Segment("system", self.system), *rest)
        return (*asked[:-1], with_hint(self.task, problem, asked[-1])) if hinted else asked

    def asked(
        self, number: int, verified: Collection[tuple[str, int]]
    ) -> list[tuple[Problem, range]]:
        """Return what round ``number`` (from 0) asks: problems, and the indices of attempts.

        It follows from what the rounds before have verified, ``(problem id, index)``, and from
        nothing else, so a stopped run goes on with the very same attempts.
        """
        indices = range(number * self.samples, (number + 1) * self.samples)
        if not number:
            return [(problem, indices) for problem in self.problems]
        counts = Counter(problem_id for problem_id, index in verified if index < indices.start)
        # A hinted path stands in for one that nobody found, so a solved problem needs none.
        enough = 1 if self.rounds.hinted(number) else self.rounds.enough
        return [(problem, indices) for problem in self.problems if counts[problem.id] < enough]

    def __len__(self) -> int:
        """Return how many attempts the first round has; the further ones depend on verdicts."""
        return len(self.problems) * self.samples

    def fingerprint(self) -> str:
        """Return a hash of the plan, so that a log is continued only by the plan it began with."""
        how = _described(self.sampling)
        parts = [self.task.name, self.style, how, str(self.samples), str(self.seed)]
        parts += [problem.id for problem in self.problems]
        parts += [f"system: {self.system}"] if self.system else []
        parts += [repr(self.rounds)] if self.rounds != ONE_ROUND else []
        parts += [f"choice: {self.choice_by}"] if self.choice_by != GENERATE else []
        parts += [f"variant: {self.variant}"] if self.variant else []
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _described(sampling: Sampling) -> str:
    """Return the settings that decide an answer, as they stand in the logs begun so far.

    Log-probabilities are only told, so asking for them must not orphan a log.
    """
    parts = (entry.name for entry in fields(sampling) if entry.name != "logprobs")
    return f"Sampling({', '.join(f'{name}={getattr(sampling, name)!r}' for name in parts)})"


def stream_attempts(
    backend: Backend,
    plan: Plan,
    grader: Grader,
    *,
    number: int = 0,
    verified: Collection[tuple[str, int]] = (),
    done: Container[tuple[str, int]] = (),
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Attempt]:
    """Yield each attempt of a round as soon as it is graded; those in ``done`` are not made.

    ``number`` is the round from 0, ``verified`` what the rounds before it have verified.
    A grader that raises leaves its attempt ungraded (score ``None``) and the stream goes on:
    the grader's failure is not the model's.
    """
    by_id = {problem.id: problem for problem in plan.problems}
    questions = []
    hinted = plan.rounds.hinted(number)
    sampling = plan.rounds.sampling(plan.sampling, number)
    for problem, indices in plan.asked(number, verified):
        wanted = [index for index in indices if (problem.id, index) not in done]
        if not wanted:
            continue
        messages = plan.messages(problem, hinted=hinted)
        for index in wanted:
            seed = attempt_seed(plan.seed, problem.id, index)
            questions.append(Question((problem.id, index), messages, sampling, seed))
    seeds = {question.key: question.seed for question in questions}
    answers = backend.answers(questions, should_stop=should_stop)

    def judge(completion: Completion) -> Verdict:
        return graded(grader, by_id[completion.key[0]], completion.text)

    for completion, verdict in in_order(answers, judge, plan.task.graders):
        problem_id, index = completion.key
        yield Attempt(
            problem_id,
            index,
            seeds[completion.key],
            completion.text,
            completion.tokens,
            completion.stop,
            verdict,
            hinted,
            math.fsum(completion.logprobs) if completion.logprobs else None,
        )


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in the order of the items, ``workers`` of them at once.

    With several workers the items are asked for ahead, so that making and grading them overlap.
    What was taken is yielded even where the items break off with an error.
    """
    if workers == 1:
        yield from ((item, work(item)) for item in items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, "grader")
    try:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                while waiting and (waiting[0][1].done() or len(waiting) > 8 * workers):
                    first, result = waiting.popleft()
                    yield first, result.result()
        finally:
            ending = isinstance(sys.exception(), GeneratorExit | KeyboardInterrupt)
            while waiting and not ending:
                first, result = waiting.popleft()
                yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def graded(grader: Grader, problem: Problem, text: str) -> Verdict:
    """Return the grader's verdict, or an ungraded one that says how the grader failed."""
    try:
        return grader(problem, text)
    except Exception as failure:  # whatever a grader does, it must not end a long run
        return Verdict(None, None, f"grader failed: {type(failure).__name__}: {failure}")
