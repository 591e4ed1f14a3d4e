"""The ``countdown`` task: reach a target from given numbers, each used at most once.

Problems are generated; each is a pure function of (split, seed, index). A set of numbers with its
target belongs to one of train, dev and test by its hash, so that splits share none. The endings
``-3`` and ``-4`` of a split name take its problems of so many numbers only; without one, both.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from fractions import Fraction

from tunesmith.errors import UsageError
from tunesmith.grading.answers import extract_tagged
from tunesmith.grading.arithmetic import ArithmeticRefused, equations, evaluate, numbers_of
from tunesmith.grading.marked import bare, final_words
from tunesmith.grading.typed import typed
from tunesmith.tasks.base import GradedTask, telling
from tunesmith.types import Example, Origin, Problem, Segment, Verdict

LARGEST_NUMBER = 25
SMALLEST_TARGET, LARGEST_TARGET = 10, 100
SIZES = (3, 4)
_FAMILIES = ("train", "dev", "test")
_TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])")
_EXPRESSION = re.compile(r"[\d\s.,+\-*/×÷·−()=]+")

WORKED = (
    (
        (3, 7, 11),
        40,
        "11 * 3 = 33 is below 40 by 7, and 7 is there.\n11 * 3 = 33\n33 + 7 = 40\n"
        "<answer>11 * 3 + 7</answer>",
    ),
    (
        (2, 5, 9, 18),
        45,
        "5 * 9 = 45 already; 2 and 18 need not be used.\n5 * 9 = 45\n<answer>5 * 9</answer>",
    ),
    (
        (4, 6, 10, 13),
        21,
        "13 + 10 = 23 is too much by 2. 6 - 4 = 2 can be taken away.\n13 + 10 = 23\n6 - 4 = 2\n"
        "23 - 2 = 21\n<answer>13 + 10 - (6 - 4)</answer>",
    ),
)
"""Numbers, target and answer of the ``cot`` prompt; none of them is in any split."""


class CountdownTask(GradedTask):
    """Write an expression over given numbers that equals a target."""

    name = "countdown"
    summary = "reach a target from given numbers (generated; 3 or 4 of them)"
    splits = tuple(f"{family}{size}" for size in ("", "-3", "-4") for family in _FAMILIES)
    generates = True
    max_new_tokens = 200

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return distinct problems of a split, drawn by ``seed``; 400 unless ``limit`` says so."""
        if source is not None:
            raise UsageError(
                f"The countdown task makes its own questions and reads no file ({source!r}).",
                hint="leave --dataset out",
            )
        if split not in self.splits:
            raise UsageError(
                f"The countdown task has no split {split!r}.", expected=", ".join(self.splits)
            )
        wanted = 400 if limit is None else limit
        found: dict[str, Problem] = {}
        for index in range(20 * wanted):
            if len(found) == wanted:
                break
            problem = draw(split, seed, index)
            found.setdefault(problem.id, problem)
        if len(found) < wanted:
            raise UsageError(
                f"The {split} split of countdown has no {wanted} different questions; "
                f"{len(found)} found.",
                hint=f"--limit {len(found)}",
            )
        return list(found.values())

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question alone, or behind worked examples as earlier turns of the chat."""
        if self.check_style(style) == "direct":
            return problem.prompt
        turns = [
            (Segment("user", question(numbers, target)), Segment("assistant", answer))
            for numbers, target, answer in WORKED
        ]
        return (*(segment for turn in turns for segment in turn), *problem.prompt)

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Evaluate the written expression: given numbers only, each at most as often, exact."""
        written = _written(text)
        if written is None:
            return Verdict(0.0, None, "no expression")
        try:
            value, used = evaluate(written), numbers_of(written)
        except ArithmeticRefused as refusal:
            return Verdict(0.0, None, f"no expression: {refusal}")
        if re.search(r"(?:^|[-+*/(])\s*[-+]", written):
            return Verdict(0.0, written, "a sign in front of a number")
        given = Counter(Fraction(number) for number in problem.meta["numbers"])
        over = Counter(used) - given
        if over:
            number = next(iter(over))
            fault = "more often than given" if number in given else "not given"
            return Verdict(0.0, written, f"a number that is {fault}")
        if value != int(problem.reference):
            return Verdict(0.0, written, "another value")
        return Verdict(1.0, written, "reaches the target")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Ask besides that every equation of the text holds."""
        verdict = self.judge(problem, text)
        if verdict.score != 1:
            return verdict
        if not all(step.holds for step in equations(_TIMES.sub(" * ", typed(text)))):
            return Verdict(0.0, verdict.answer, "a false equation")
        return verdict

    def answer_example(self, problem: Problem) -> Example:
        """Return the row that teaches the steps of one solution and its expression."""
        lines = [*problem.meta["steps"], f"<answer>{problem.meta['solution']}</answer>"]
        segments = (*problem.prompt, Segment("assistant", "\n".join(lines), 1.0))
        return Example(segments, Origin(self.name, item=problem.id))

    def hint(self, problem: Problem) -> str:
        """Tell an expression: the target stands in the question already."""
        return telling(f"One way is {problem.meta['solution']}.")


def question(numbers: tuple[int, ...], target: int) -> str:
    """Return the question as it is asked: so short that two of them share no long run of words."""
    listed = ", ".join(map(str, numbers))
    return f"Make {target} from {listed} with +, -, * or /, each number at most once."


def draw(split: str, seed: int, index: int) -> Problem:
    """Return one problem; nothing but its arguments decides which."""
    family, _, size = split.partition("-")
    rng = random.Random(f"countdown/{split}/{seed}/{index}")
    while True:
        much = int(size) if size else rng.choice(SIZES)
        numbers = tuple(sorted(rng.randint(1, LARGEST_NUMBER) for _ in range(much)))
        solution = _combine(rng, numbers)
        if solution is None:
            continue
        expression, steps, target = solution
        if not SMALLEST_TARGET <= target <= LARGEST_TARGET or target in numbers:
            continue
        if family_of(numbers, target) != family:
            continue
        return _problem(numbers, target, expression, steps)


def family_of(numbers: tuple[int, ...], target: int) -> str | None:
    """Return the split family of sorted numbers and a target; None for a worked example's."""
    if any((tuple(sorted(shown)), aim) == (numbers, target) for shown, aim, _ in WORKED):
        return None
    digest = hashlib.sha256(f"{numbers}->{target}".encode()).digest()
    return ("dev", "test", *["train"] * 8)[int.from_bytes(digest[:8], "big") % 10]


def _problem(numbers: tuple[int, ...], target: int, expression: str, steps: list[str]) -> Problem:
    identity = f"countdown/{'-'.join(map(str, numbers))}/{target}"
    # The order shown follows from the numbers: one id is one question, whatever the seed.
    shown = list(numbers)
    random.Random(identity).shuffle(shown)
    meta = {"numbers": list(numbers), "solution": expression, "steps": steps}
    prompt = (Segment("user", question(tuple(shown), target)),)
    return Problem(identity, "countdown", prompt, str(target), meta)


def _combine(rng: random.Random, numbers: tuple[int, ...]) -> tuple[str, list[str], int] | None:
    """Join numbers at random to one value, whole and positive on the way; None where it fails."""
    pool = [(number, str(number), False) for number in numbers]
    steps: list[str] = []
    while len(pool) > 1:
        left, right = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        sign = rng.choice("+-**/")
        (a, first, joined), (b, second, joined_too) = left, right
        if (sign == "-" and a <= b) or (sign == "/" and (b == 1 or a % b)):
            return None
        if sign == "*" and 1 in (a, b):
            return None
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
        steps.append(f"{a} {sign} {b} = {value}")
        first, second = (f"({t})" if j else t for t, j in ((first, joined), (second, joined_too)))
        pool.append((value, f"{first} {sign} {second}", True))
    return pool[0][1], steps, pool[0][0]


def _written(text: str) -> str | None:
    """Return the expression that a text ends with, without «= target» behind it."""
    found = extract_tagged(text)
    if found is None:
        words = final_words(text)
        found = words[0] if words else ""
    plain = _TIMES.sub(" * ", typed(found)).partition("=")[0].strip().rstrip(".").strip("$ ")
    if not bare(plain) or not _EXPRESSION.fullmatch(plain):
        return None
    return plain
