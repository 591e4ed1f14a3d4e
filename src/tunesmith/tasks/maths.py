"""The ``maths`` task: word problems in the layout of GSM8K (Cobbe et al. 2021, arXiv 2110.14168).

A row is ``{"question": …, "answer": …}``; the answer works in steps, may hold calculator marks
such as ``<<48/2=24>>``, and ends in ``#### 72``. Training rows lose the marks and keep that
ending, which is also what the worked examples show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.grading.answers import extract_tagged, last_number, parse_number
from tunesmith.grading.arithmetic import ArithmeticRefused, equations, evaluate
from tunesmith.grading.typed import boxed, typed
from tunesmith.tasks import sub_questions
from tunesmith.tasks.files import FileTask
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row

MARKER = "####"
_SVAMP = (
    ("Body", "Question", "Equation", "Answer"),
    ("body", "question", "equation", "answer"),
)
_CALCULATION = re.compile(r"<<[^<>]*>>")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is)?\s*[:=]?\s+([^\n]*)", re.IGNORECASE)
_A_LINE = re.compile(r"^\s*A:\s*([^\n]*)", re.MULTILINE)

_TIMES = re.compile(r"(?<=[\d%)])\s*(?:[xX]|\bof\b)\s*(?=[\d$(])")
"""Multiplication as people write it: ``3 x 4``, ``2/3 of 18``, ``20% of 50``."""

_MIXED = re.compile(r"(-?\d{1,15})\s+(\d{1,15})/(\d{1,15})(?![\d/])")
_PERCENT = re.compile(r"\d\s*(?:%|per ?cent\b)", re.IGNORECASE)

WORKED = (
    (
        "A baker fills 6 trays with 12 rolls each and sells 47 of the rolls by noon. How many "
        "rolls are left?",
        "The baker makes 6 * 12 = 72 rolls.\n"
        "After 47 are sold, 72 - 47 = 25 rolls are left.\n#### 25",
    ),
    (
        "Mira saves $15 a week. After 8 weeks she spends a quarter of her savings on a lamp. How "
        "many dollars does she have then?",
        "In 8 weeks Mira saves 8 * 15 = 120 dollars.\n"
        "The lamp costs 120 / 4 = 30 dollars.\n"
        "She then has 120 - 30 = 90 dollars.\n#### 90",
    ),
    (
        "A train covers 240 kilometres in 3 hours. At the same speed, how far does it go in 5 "
        "hours and a half?",
        "Its speed is 240 / 3 = 80 kilometres an hour.\n"
        "In 5.5 hours it goes 80 * 5.5 = 440 kilometres.\n#### 440",
    ),
    (
        "Tickets cost $9 for adults and $5 for children. A class of 22 children comes with 3 "
        "adults and has a voucher worth $20. What do they pay?",
        "The children's tickets cost 22 * 5 = 110 dollars.\n"
        "The adults' tickets cost 3 * 9 = 27 dollars.\n"
        "Together that is 110 + 27 = 137 dollars.\n"
        "With the voucher they pay 137 - 20 = 117 dollars.\n#### 117",
    ),
)
"""Questions and worked answers of the ``cot`` prompt, written for it and in no data set."""
PLANS = (
    "Find how many rolls were made, then take away those that were sold.",
    "Find the savings after 8 weeks, take a quarter of them for the lamp, and see what is left.",
    "Find the speed from the first journey, then multiply it by the new time.",
    "Find what the children and the adults cost, add both, and take the voucher off.",
)
"""What the ``plan`` prompt has in front of each worked answer (Wang et al. 2023, 2305.04091)."""
SUB_QUESTIONS = (
    ("How many rolls does the baker make?", "How many of them are left?"),
    (
        "How many dollars does Mira save in 8 weeks?",
        "How many dollars does the lamp cost?",
        "How many dollars does she have then?",
    ),
    ("How far does the train go in an hour?", "How far does it go in 5.5 hours?"),
    (
        "What do the children's tickets cost?",
        "What do the adults' tickets cost?",
        "What do they cost together?",
        "What is left to pay with the voucher?",
    ),
)
"""One for each line of a worked answer but the last, for the ``socratic`` prompt."""


class MathsTask(FileTask):
    """Answer a word problem in steps, and with ``#### number`` at the end."""

    name = "maths"
    summary = "word problems with a number as the answer (GSM8K's layout)"
    prompts = ("direct", "cot", "plan", sub_questions.SOCRATIC)
    wants = "a file of rows with question and answer"
    example_source = "path/to/gsm8k"
    uses = ("columns",)
    max_new_tokens = 320

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return "question" in fields or any(names[0] in fields for names in _SVAMP)

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row in GSM8K's or SVAMP's layout."""
        made = _svamp(row) or _gsm8k(row)
        if made is None:
            raise DataError(
                f"{row.origin}: no question and answer (fields: {', '.join(row.fields)}).",
                expected='{"question": "…", "answer": "… #### 72"}, or SVAMP\'s Body, Question, '
                "Equation and Answer",
            )
        question, solution, reference = made
        prompt = (Segment("user", question.strip()),)
        meta: dict[str, Any] = {"solution": solution}
        if _PERCENT.search(final_answer(solution)[0] or ""):
            meta["percent"] = True
        return Problem(question, self.name, prompt, reference, meta)

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question alone, or behind worked examples as earlier turns of the chat.

        In the examples of ``plan`` a short plan comes first, and the steps after it.
        """
        if style in (sub_questions.ASK, sub_questions.SOCRATIC):
            return sub_questions.messages(_parts(), problem, style)
        if self.check_style(style) == "direct":
            return problem.prompt
        turns = [(Segment("user", q), Segment("assistant", a)) for q, a in WORKED]
        if style == "plan":
            turns = [
                (asked, Segment("assistant", f"Plan: {plan}\n{answer.text}"))
                for plan, (asked, answer) in zip(PLANS, turns, strict=True)
            ]
        return (*(segment for turn in turns for segment in turn), *problem.prompt)

    def judge(self, problem: Problem, text: str) -> Verdict:
        r"""Compare the final number with the gold one: equal or not, however it is written.

        The final number is looked for after the last ``####``, then in ``<answer>…</answer>`` and
        ``\boxed{…}``, after «the answer is», on a line that begins with ``A:``, and at last it is
        the last number of the text; the verdict's reason says which.
        """
        found, place = final_answer(text)
        value = None if found is None else _number(found)
        if found is None or value is None:
            return Verdict(0.0, None, "no number")
        right = value == Fraction(problem.reference) or _same_share(problem, value, found)
        return Verdict(float(right), found, f"{'equal' if right else 'different'}, {place}")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Grade for training: a marked final answer, equal, and every equation of the text true."""
        verdict = self.judge(problem, text)
        if verdict.score != 1:
            return verdict
        if verdict.reason.endswith(_LAST):
            return Verdict(0.0, verdict.answer, "the final answer is not marked")
        for equation in equations(_TIMES.sub(" * ", strip_calculations(typed(text)))):
            if equation.holds is not True:
                said = f"{equation.left.strip()} = {equation.right.strip()}"
                fault = "is false" if equation.holds is False else "cannot be checked"
                return Verdict(0.0, verdict.answer, f"{said} {fault}")
        return Verdict(1.0, verdict.answer, "equal, every equation holds")


def _parts() -> list[sub_questions.Parts]:
    """Return the worked examples with a sub-question for each line."""
    made = []
    for (question, answer), asked in zip(WORKED, SUB_QUESTIONS, strict=True):
        *lines, ending = answer.split("\n")
        steps = tuple(zip(asked, lines, strict=True))
        made.append(sub_questions.Parts(question, steps, ending))
    return made


_LAST = "the last number"


def final_answer(text: str) -> tuple[str | None, str]:
    """Return the final answer as it is written, and where it was found; None without a number."""
    text = strip_calculations(text)
    box = boxed(text)
    text = typed(text)
    places = (
        (f"after {MARKER}", text.rpartition(MARKER)[2] if MARKER in text else None),
        ("in <answer>", extract_tagged(text)),
        ("in \\boxed", None if box is None else typed(box)),
        ("after «the answer is»", _last(_ANSWER_IS, text)),
        ("after A:", _last(_A_LINE, text)),
    )
    for place, found in places:
        written = None if found is None else found.strip().partition("\n")[0].strip()
        if written and _number(written) is not None:
            return written, place
    number = last_number(text)
    return (None, "nowhere") if number is None else (_written(number), _LAST)


def gold_number(answer: str) -> str | None:
    """Return the final number of a gold answer so that ``Fraction`` reads exactly it back."""
    written, _ = final_answer(answer)
    number = None if written is None else _number(written)
    if number is None:
        return None
    text = _written(number)
    return text if Fraction(text) == number else str(number)


def strip_calculations(text: str) -> str:
    """Return a solution without calculator marks: ``2*3=<<2*3=6>>6`` becomes ``2*3=6``."""
    return _CALCULATION.sub("", text)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return str(found[-1]) if found else None


def _number(written: str) -> Fraction | None:
    """Read an answer such as ``$1,234.50.``, ``-$5``, ``**18** eggs`` or ``9 * 2 = 18``."""
    bare = re.sub(r"[$€£*]", "", typed(written).rpartition("=")[2]).strip()
    mixed = _MIXED.match(bare)
    if mixed:
        whole, top, bottom = (int(part) for part in mixed.groups())
        sign = -1 if bare.startswith("-") else 1
        return whole + sign * Fraction(top, bottom) if bottom else None
    return parse_number(bare)


def _same_share(problem: Problem, value: Fraction, written: str) -> bool:
    """Say whether one of answer and gold is the other as a percentage: 50% and 0.5."""
    percent = _PERCENT.search(written) is not None
    if percent is bool(problem.meta.get("percent")):
        return False
    return (value / 100 if percent else value * 100) == Fraction(problem.reference)


def _written(number: Fraction) -> str:
    exact = number.denominator == 1
    return str(number.numerator) if exact else f"{float(number):.12g}"


def _gsm8k(row: Row) -> tuple[str, str, str] | None:
    """Return question, solution and gold number; None for a row of another layout."""
    question, answer = row.fields.get("question"), row.fields.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    reference = gold_number(answer)
    if reference is None:
        raise DataError(
            f"{row.origin}: the answer holds no number.",
            expected="a solution that ends in «#### 72»",
        )
    return question, _with_ending(strip_calculations(answer).strip(), reference), reference


def _svamp(row: Row) -> tuple[str, str, str] | None:
    """Return the same of Body, Question, Equation and Answer (Patel et al. 2021)."""
    for body, asked, equation, answer in _SVAMP:
        parts, gold = [row.fields.get(body), row.fields.get(asked)], row.fields.get(answer)
        if not all(isinstance(part, str) for part in parts) or gold is None:
            continue
        reference = gold_number(str(gold))
        if reference is None:
            raise DataError(f"{row.origin}: the answer {gold!r} is no number.", expected="145.0")
        begin, question = (str(part).strip() for part in parts)
        if begin and begin[-1] not in ".!?":
            begin += "."
        steps = _worked(str(row.fields.get(equation) or ""), reference)
        return f"{begin} {question}".strip(), _with_ending(steps, reference), reference
    return None


def _worked(equation: str, reference: str) -> str:
    """Return ``( 8.0 - 3.0 )`` as the line ``8 - 3 = 5``; empty where it does not give the gold."""
    plain = re.sub(r"\b(\d+)\.0+(?!\d)", r"\1", equation).strip()
    try:
        if evaluate(plain) != Fraction(reference):
            return ""
    except ArithmeticRefused:
        return ""
    inner = plain[1:-1].strip() if plain.startswith("(") and plain.endswith(")") else plain
    bare = inner if inner.count("(") == inner.count(")") and "(" not in inner else plain
    return f"{bare} = {reference}"


def _with_ending(solution: str, reference: str) -> str:
    return solution if MARKER in solution else f"{solution}\n{MARKER} {reference}".lstrip()
