"""The answers of a GRPO step: questions drawn, asked of the policy, graded, made into rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema_grpo import GrpoOptions
from tunesmith.errors import UsageError
from tunesmith.types import Attempt, Encoded, Origin, Problem, StopReason

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
    from tunesmith.tasks.base import GradedTask
    from tunesmith.train.batches import Plan
    from tunesmith.train.policy_step import Rollout

SHARE_SHOWN = 3
"""Questions that a sentence names."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The answers of one step, with what they were worth."""

    rollout: Rollout
    questions: tuple[int, ...]
    """Their numbers among the problems."""
    reward: float | None
    """Mean over graded answers; None where none could be graded."""
    silent: int
    """Questions whose answers were all worth the same, so that nothing is learnt from them."""
    ungraded: int
    """Answers that the grader failed on; they count as neither right nor wrong."""
    answer_tokens: float
    """Mean, the token that ends an answer included."""
    cut: float
    """Share of answers that reached the limit of tokens."""

    def to_json(self) -> dict[str, Any]:
        """Return what a line of metrics says of it."""
        return {
            "reward": self.reward,
            "no_signal": self.silent / len(self.questions),
            "ungraded": self.ungraded,
            "answer_tokens": round(self.answer_tokens, 2),
            "cut": round(self.cut, 5),
        }


class Rollouts:
    """Draws and grades the answers of any step; what comes of it depends on step and weights."""

    def __init__(
        self,
        options: GrpoOptions,
        task: GradedTask,
        problems: Sequence[Problem],
        plan: Plan,
        loaded: LoadedModel,
        renderer: Renderer,
    ) -> None:
        self._options, self._task, self._problems, self._plan = options, task, problems, plan
        self._loaded, self._renderer = loaded, renderer

    def draw(self, step: int, should_stop: Callable[[], bool]) -> Drawn:
        """Return the graded answers of a step, counted from 0, by the model as it is now.

        Raises ``Interrupted`` once ``should_stop`` is true.
        """
        from tunesmith.evaluate.attempts import Plan as Asking
        from tunesmith.evaluate.attempts import stream_attempts
        from tunesmith.generate.local import EngineBackend
        from tunesmith.generate.requests import Sampling
        from tunesmith.train.policy_step import stopped

        options, task = self._options, self._task
        numbers = tuple(self._plan.step_rows(step))
        problems = [self._problems[number] for number in numbers]
        asking = Asking(
            task,
            problems,
            style(options, task),
            Sampling(answer_limit(options, task), options.temperature),
            options.samples,
            step_seed(options.seed, step),
        )
        grader = task.verify if options.reward == "verify" else task.grade
        backend = EngineBackend(self._loaded.model, self._renderer, options.batch_size)
        stream = stream_attempts(backend, asking, grader, should_stop=should_stop)
        made = {(attempt.problem_id, attempt.index): attempt for attempt in stream}
        if should_stop():
            raise stopped(step)
        groups = [[made[p.id, index] for index in range(options.samples)] for p in problems]
        prompts = [self._renderer.prompt_ids(asking.messages(problem)) for problem in problems]
        return drawn(numbers, prompts, groups, self._renderer.stop_id, options.scale_rewards)


def drawn(
    numbers: Sequence[int],
    prompts: Sequence[tuple[int, ...]],
    groups: Sequence[Sequence[Attempt]],
    stop_id: int,
    scale: str = "group",
) -> Drawn:
    """Make rows of graded answers, each with its advantage over its question's other answers."""
    import torch

    from tunesmith.train.policy_gradient import advantages, has_signal
    from tunesmith.train.policy_step import Rollout

    scores = [[_score(attempt) for attempt in group] for group in groups]
    rewards = torch.tensor(scores, dtype=torch.float64)
    graded = rewards[~rewards.isnan()]
    rows = [
        row(prompt, attempt, stop_id)
        for prompt, group in zip(prompts, groups, strict=True)
        for attempt in group
    ]
    attempts = [attempt for group in groups for attempt in group]
    rollout = Rollout(rows, advantages(rewards, scale=scale == "group").flatten().tolist())
    return Drawn(
        rollout,
        tuple(numbers),
        float(graded.mean()) if len(graded) else None,
        int((~has_signal(rewards)).sum()),
        rewards.numel() - len(graded),
        rollout.tokens / len(rows),
        sum(attempt.stop is StopReason.LENGTH for attempt in attempts) / len(attempts),
    )


def row(prompt: tuple[int, ...], attempt: Attempt, stop_id: int) -> Encoded:
    """Return an attempt as it was drawn: the model's own tokens, and the stop token if it wrote it.

    The text is not tokenised anew, which might give other tokens than those that were drawn.
    """
    end = (stop_id,) if attempt.stop is StopReason.STOP_TOKEN else ()
    answer = (*attempt.tokens, *end)
    weights = (*(0.0 for _ in prompt), *(1.0 for _ in answer))
    origin = Origin("rollout", item=f"{attempt.problem_id}, answer {attempt.index}")
    return Encoded((*prompt, *answer), weights, origin)


def step_seed(seed: int, step: int) -> int:
    """Return the seed that a step's answers follow from."""
    key = f"grpo/{seed}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def style(options: GrpoOptions, task: GradedTask) -> str:
    """Return the prompt style of a run."""
    return task.check_style(options.prompt or task.prompts[0])


def answer_limit(options: GrpoOptions, task: GradedTask) -> int:
    """Return the tokens of the longest answer."""
    return options.max_new_tokens or task.max_new_tokens


def questions(options: GrpoOptions, task: GradedTask) -> tuple[list[Problem], list[Problem]]:
    """Return what is learnt from and what is held out, which may have no question in common."""
    seed, source = options.question_seed, options.dataset
    train = task.problems("train", seed=seed, limit=options.limit, source=source)
    if not options.eval_questions:
        return train, []
    held = task.problems("dev", seed=seed, limit=options.eval_questions, source=source)
    check_apart(train, held, "--eval-questions 0 measures nothing before and after")
    return train, held


def check_apart(train: Sequence[Problem], held: Sequence[Problem], hint: str = "") -> None:
    """Refuse held-out questions that are learnt from."""
    known = {tuple(segment.text for segment in problem.prompt) for problem in train}
    again = [p for p in held if tuple(segment.text for segment in p.prompt) in known]
    if again:
        named = ", ".join(problem.id for problem in again[:SHARE_SHOWN])
        raise UsageError(
            f"{len(again)} of {len(held)} held-out questions are among those to learn from "
            f"({named}{', …' if len(again) > SHARE_SHOWN else ''}): a rise on them would show "
            "nothing.",
            expected="a --dataset folder with a train and a dev file, or with a train file alone",
            hint=hint,
        )


def _score(attempt: Attempt) -> float:
    score = None if attempt.verdict is None else attempt.verdict.score
    return float("nan") if score is None else score
