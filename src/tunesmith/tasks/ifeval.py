"""The ``ifeval`` task: instructions with constraints that a program can check (arXiv 2311.07911).

A row is ``{"prompt": …, "instruction_id_list": ["punctuation:no_comma", …], "kwargs": [{…}, …]}``,
the public layout, and a person's own rows are the same. There is no gold answer: a text is right if
it follows every constraint as it stands. A row that is trained has an ``answer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.grading.constraints.checks import (
    Constraint,
    ConstraintFault,
    read_constraints,
    stored_constraints,
)
from tunesmith.grading.constraints.language import check_detector
from tunesmith.tasks.files import FileTask
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row


class IfevalTask(FileTask):
    """Do what a prompt asks under constraints on words, length, form and language."""

    name = "ifeval"
    summary = "instructions with verifiable constraints, IFEval's 25 kinds"
    problems_called = "prompts with constraints"
    wants = "a file of rows with prompt, instruction_id_list and kwargs"
    example_source = "input_data.jsonl"
    prompts = ("direct",)
    uses = ("columns",)
    max_new_tokens = 1024

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return {"prompt", "instruction_id_list"} <= fields.keys()

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row, whose reference is its constraints as text."""
        asked = row.fields.get("prompt")
        if not isinstance(asked, str) or not asked.strip():
            raise DataError(
                f"{row.origin}: no prompt (fields: {', '.join(row.fields)}).",
                expected='{"prompt": "…", "instruction_id_list": ["…"], "kwargs": [{}]}',
                hint="--columns prompt=YOUR_PROMPT",
            )
        try:
            found = read_constraints(
                row.fields.get("instruction_id_list"), row.fields.get("kwargs")
            )
        except ConstraintFault as fault:
            raise DataError(f"{row.origin}: {fault}.", expected=fault.expected) from None
        if any(constraint.tells_language for constraint in found):
            check_detector()
        answer = row.fields.get("answer")
        trained = answer if isinstance(answer, str) and answer.strip() else None
        meta = {
            "constraints": [{"kind": one.kind, "kwargs": dict(one.parameters)} for one in found],
            **({} if trained is None else {"solution": trained}),
        }
        prompt = (Segment("user", asked.strip()),)
        return Problem(asked, self.name, prompt, "; ".join(map(str, found)), meta)

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the prompt alone."""
        self.check_style(style)
        return problem.prompt

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return 1 if all constraints are followed strictly, else 0, and say which are not."""
        if not text.strip():
            return Verdict(0.0, None, "no answer")
        constraints = stored_constraints(problem.meta)
        broken = [constraint for constraint in constraints if not constraint.strict(text)]
        said = f"follows {len(constraints) - len(broken)} of {len(constraints)}"
        if broken:
            said += f", not {', '.join(map(_told(text), broken))}"
        return Verdict(float(not broken), text.strip(), said)

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Return ``judge``'s verdict: it is strict already."""
        return self.judge(problem, text)

    def answer_text(self, problem: Problem) -> str:
        """Return the row's own answer; ``DataError`` for a row without one."""
        if "solution" not in problem.meta:
            place = f"{problem.meta.get('source', problem.id)}:{problem.meta.get('line', '')}"
            raise DataError(
                f"{place.rstrip(':')}: the row has no answer that could be trained.",
                expected='a field "answer" with a text that follows the constraints',
                hint="tunesmith sample --task ifeval makes rows of answers that follow all of them",
            )
        return super().answer_text(problem)

    def hint(self, problem: Problem) -> None:
        """Tell nothing: there is no gold answer, and the prompt has the constraints already."""
        del problem


def _told(text: str) -> Any:
    def tell(constraint: Constraint) -> str:
        return f"{constraint.kind} (only loosely)" if constraint.loose(text) else constraint.kind

    return tell
