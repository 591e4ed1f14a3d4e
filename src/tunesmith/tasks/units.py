"""The ``units`` task of requirement 001: unit conversion, with questions, prompts and graders."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from functools import cache

from tunesmith.errors import UsageError
from tunesmith.grading.answers import extract_tagged, parse_number
from tunesmith.grading.arithmetic import equations
from tunesmith.tasks import sub_questions
from tunesmith.tasks import units_questions as uq
from tunesmith.tasks.base import GradedTask
from tunesmith.tasks.units_table import Conversion, plural, singular
from tunesmith.types import Example, Origin, Problem, Segment, Verdict

EXAMPLES = 2
"""Worked examples in the ``cot`` prompt."""
INSTRUCTION = "Work step by step."
TOLERANCE = Fraction(5, 100)
STRICT_TOLERANCE = Fraction(1, 1000)


class UnitsTask(GradedTask):
    """Convert a quantity from one unit into another and answer in ``<answer>…</answer>``."""

    name = "units"
    summary = "unit conversion with generated questions (imperial, metric, time, speed, data)"
    splits = uq.SPLITS
    generates = True
    prompts = ("direct", "cot", sub_questions.SOCRATIC)
    context = (
        "requirement 001 expects of another, larger model on questions of its own: worked "
        "examples 0 to 40%, fine-tuned 40 to 60%, rejection sampling 60 to 70%, at best 80%; "
        "one public solution reached 60%, 71% and 77 to 83%"
    )
    max_new_tokens = 160

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return distinct questions of a split, drawn by ``seed``; 400 unless ``limit`` says so."""
        if source is not None:
            raise UsageError(
                f"The units task makes its own questions and reads no file ({source!r}).",
                hint="leave --dataset out, or use --task maths for a file of questions",
            )
        if split not in uq.SPLITS:
            raise UsageError(
                f"The units task has no split {split!r}.", expected=", ".join(uq.SPLITS)
            )
        wanted = 400 if limit is None else limit
        rng = random.Random(f"units/{split}/{seed}")
        found: dict[str, Problem] = {}
        repeats = 0
        # A last question that is still unseen is missed so often once in 150 times.
        while len(found) < wanted and repeats < 5 * len(found) + 200:
            problem = _draw(rng, split)
            repeats = repeats + 1 if problem.id in found else 0
            found.setdefault(problem.id, problem)
        if len(found) == wanted:
            return list(found.values())
        raise UsageError(
            f"The {split} split of units has no {wanted} different questions; {len(found)} found.",
            hint=f"--limit {len(found)}",
        )

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question alone, or behind worked examples as earlier turns of the chat."""
        if style in (sub_questions.ASK, sub_questions.SOCRATIC):
            return sub_questions.messages(_worked_parts(), problem, style)
        if self.check_style(style) == "direct":
            return problem.prompt
        return (*_worked_turns(), *problem.prompt)

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Grade by requirement 001: both rounded to 3 decimals, less than 5% of the gold apart.

        A gold that rounds to zero can never pass that rule; then the answer must round to zero.
        """
        found = extract_tagged(text)
        value = None if found is None else parse_number(found)
        if value is None:
            return Verdict(0.0, None, "no number in <answer>…</answer>")
        answer, reference = round(value, 3), round(Fraction(problem.reference), 3)
        near = abs(answer - reference) < TOLERANCE * abs(reference)
        right = near if reference else answer == 0
        return Verdict(float(right), found, "within 5%" if right else "more than 5% off")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Grade for training: within 0.1% of the gold, with equations, all of them true."""
        found = extract_tagged(text)
        value = None if found is None else parse_number(found)
        if value is None:
            return Verdict(0.0, None, "no answer")
        reference = Fraction(problem.reference)
        if abs(value - reference) > STRICT_TOLERANCE * abs(reference):
            return Verdict(0.0, found, "wrong answer")
        steps = equations(text)
        if not steps:
            return Verdict(0.0, found, "no equation")
        if not all(step.holds for step in steps):
            return Verdict(0.0, found, "a false equation")
        return Verdict(1.0, found, "verified")

    def hint(self, problem: Problem) -> str:
        """Tell the answer to 4 significant digits, in the form that is asked for."""
        answer = uq.rounded(Decimal(problem.reference))
        return f"(The result is <answer>{answer}</answer>. Show the calculation that gives it.)"

    def answer_example(self, problem: Problem) -> Example:
        """Return the row that teaches the bare answer, to 4 significant digits."""
        answer = uq.rounded(Decimal(problem.reference))
        text = f"<answer>{answer}</answer>"
        segments = (*problem.prompt, Segment("assistant", text, 1.0))
        return Example(segments, Origin("units", item=problem.id))


def _draw(rng: random.Random, split: str) -> Problem:
    number, conversion = uq.draw(rng, split)
    identity = f"units/{split}/{uq.plain(number)}/{conversion.source}/{conversion.target}"
    # The wording follows from the pair: one id is one question, whatever the seed.
    wordings = uq.UNSEEN_WORDINGS if split == "ood" else uq.WORDINGS
    wording = random.Random(identity).choice(wordings)
    text = uq.question(number, conversion, wording)
    return Problem(
        identity,
        "units",
        (Segment("user", text),),
        f"{uq.gold(number, conversion):f}",
        {
            "split": split,
            "number": uq.plain(number),
            "factor": conversion.exact,
            "source": conversion.source,
            "target": conversion.target,
            "family": conversion.family,
        },
    )


@cache
def _worked_examples() -> tuple[tuple[Decimal, Conversion, str], ...]:
    """Return number, conversion and question of fixed examples, from the training split only."""
    rng = random.Random("units/worked examples")
    found: dict[str, tuple[Decimal, Conversion, str]] = {}
    while len(found) < EXAMPLES:
        number, conversion = uq.draw(rng, "train")
        steps = len(uq.shown_factor(conversion).as_tuple().digits)
        if conversion.family in found or steps < 2:
            continue
        question = uq.question(number, conversion, uq.WORDINGS[len(found)])
        found[conversion.family] = (number, conversion, question)
    return tuple(found.values())


@cache
def _worked_turns() -> tuple[Segment, ...]:
    """Return the instruction and the worked examples as turns of a chat."""
    turns = [Segment("system", INSTRUCTION)]
    for number, conversion, question in _worked_examples():
        turns.append(Segment("user", question))
        turns.append(Segment("assistant", uq.worked(number, conversion)))
    return tuple(turns)


@cache
def _worked_parts() -> tuple[sub_questions.Parts, ...]:
    """Return the same examples in two sub-questions each: the factor, and the product."""
    made = []
    for number, conversion, question in _worked_examples():
        factor = uq.shown_factor(conversion)
        lines, total = uq.product_lines(number, factor)
        asked = f"How many {plural(conversion.target)} is 1 {singular(conversion.source)}?"
        product = f"What is {uq.plain(number)} * {uq.plain(factor)}?"
        steps = ((asked, uq.fact(conversion)), (product, "\n".join(lines)))
        ending = f"<answer>{uq.plain(total)}</answer>"
        made.append(sub_questions.Parts(question, steps, ending))
    return tuple(made)
