"""How likely a model finds the right answer behind its mark, whatever it writes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent

if TYPE_CHECKING:
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.evaluate.scores.base import TextLoss
    from tunesmith.generate.likelihood import Pair
    from tunesmith.types import Problem


def answer_losses(respondent: Respondent, plan: Plan) -> dict[str, TextLoss]:
    """Return the loss of each question's first right answer, by problem id; none from servers.

    It stands behind the mark of its style, without any reasoning, or alone where no document is
    shown. Answers that leave the model's positions are left out.
    """
    if respondent.local is None:
        return {}
    from tunesmith.evaluate.scores.base import TextLoss
    from tunesmith.generate.likelihood import log_likelihoods

    loaded, _ = respondent.local
    found: list[tuple[Problem, Pair]] = []
    for problem in plan.problems:
        prompt, answer = _pair(respondent, plan, problem)
        if len(prompt) + len(answer) <= loaded.max_positions:
            found.append((problem, (prompt, answer)))
    if len(found) < len(plan.problems):
        console.warn(
            f"the answers of {len(plan.problems) - len(found)} questions do not fit and have no "
            "loss"
        )
    scores = log_likelihoods(loaded.model, [pair for _, pair in found])
    return {
        problem.id: TextLoss(
            -score, len(answer), len(answer), 0, len(problem.reference.encode("utf-8"))
        )
        for (problem, (_, answer)), score in zip(found, scores, strict=True)
    }


def _pair(respondent: Respondent, plan: Plan, problem: Problem) -> Pair:
    """Return the tokens before the answer, its mark among them, and those of the answer."""
    from tunesmith.data.raft.prompt import ANSWER, BASED
    from tunesmith.evaluate.choices import pair_of

    assert respondent.renderer is not None
    messages = plan.messages(problem)
    lead = "" if not problem.meta["documents"] else ANSWER if plan.style == "quoted" else BASED
    prompt, whole = pair_of(respondent.renderer, messages, f"{lead}{problem.reference}")
    if not lead:
        return prompt, whole
    _, mark = pair_of(respondent.renderer, messages, lead.rstrip())
    at = _common(mark, whole)
    return (*prompt, *whole[:at]), whole[at:]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with; at least one of the other is left."""
    equal = 0
    while equal < min(len(one), len(other) - 1) and one[equal] == other[equal]:
        equal += 1
    return equal
