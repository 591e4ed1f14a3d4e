"""The ``maths`` task: word problems in the layout of GSM8K (Cobbe et al. 2021, arXiv 2110.14168).

A row is ``{"question": …, "answer": …}``; the answer works in steps, may hold calculator marks
such as ``<<48/2=24>>``, and ends in ``#### 72``. Training rows lose the marks and keep that
ending, which is also what the worked examples show.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.grading.answers import extract_tagged, last_number, parse_number
from tunesmith.grading.arithmetic import equations
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Example, Origin, Problem, Segment, Verdict

MARKER = "####"
DEV_SHARE = 10
"""Where a folder has no dev file, one question in this many of its train file is the dev split."""
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
_CALCULATION = re.compile(r"<<[^<>]*>>")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is)?\s*[:=]?\s+([^\n]*)", re.IGNORECASE)
_A_LINE = re.compile(r"^\s*A:\s*([^\n]*)", re.MULTILINE)

_TIMES = re.compile(r"(?<=[\d%)])\s*(?:[xX]|\bof\b)\s*(?=[\d$(])")
"""Multiplication as people write it: ``3 x 4``, ``2/3 of 18``, ``20% of 50``."""

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


class MathsTask(GradedTask):
    """Answer a word problem in steps, and with ``#### number`` at the end."""

    name = "maths"
    summary = "word problems with a number as the answer (GSM8K's layout)"
    max_new_tokens = 320

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return "question" in fields

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return the problems of a file, or of one split of a folder, in the order of the file.

        A folder holds a file for each split (``train.jsonl``, ``test.jsonl``, …). Where there is
        none for ``dev``, a tenth of the train questions, chosen by their text, is the dev split
        and is left out of ``train``; the same holds for a saved ``datasets`` folder and a hub
        name. A file is taken as a whole, whatever the split. With ``limit`` that many problems
        are drawn by ``seed``.
        """
        if split not in self.splits:
            raise UsageError(
                f"The maths task has no split {split!r}.", expected=", ".join(self.splits)
            )
        if source is None:
            raise UsageError(
                "The maths task has no questions of its own.",
                expected="a file of rows with question and answer, or a folder with train.jsonl "
                "and test.jsonl",
                hint="--dataset path/to/gsm8k",
            )
        path = Path(source)
        if path.is_file():
            found = _read(source)
        elif path.is_dir() and not _is_saved_dataset(path):
            found = _of_folder(path, split)
        else:
            found = _of_dataset(source, split)
        if not found:
            raise DataError(
                f"{source!r} has no questions for the {split} split.", expected="at least one row"
            )
        if limit is None or limit >= len(found):
            return found
        chosen = random.Random(f"maths/{split}/{seed}").sample(range(len(found)), limit)
        return [found[place] for place in sorted(chosen)]

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question alone, or behind worked examples as earlier turns of the chat."""
        if self.check_style(style) == "direct":
            return problem.prompt
        turns = [(Segment("user", q), Segment("assistant", a)) for q, a in WORKED]
        return (*(segment for turn in turns for segment in turn), *problem.prompt)

    def grade(self, problem: Problem, text: str) -> Verdict:
        """Compare the final number with the gold one: equal or not, however it is written.

        The final number is looked for after the last ``####``, then in ``<answer>…</answer>``,
        after «the answer is», on a line that begins with ``A:``, and at last it is the last
        number of the text; the verdict's reason says which.
        """
        found, place = final_answer(text)
        value = None if found is None else _number(found)
        if found is None or value is None:
            return Verdict(0.0, None, "no number")
        right = value == Fraction(problem.reference)
        return Verdict(float(right), found, f"{'equal' if right else 'different'}, {place}")

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Grade for training: a marked final answer, equal, and every equation of the text true."""
        verdict = self.grade(problem, text)
        if verdict.score != 1:
            return verdict
        if verdict.reason.endswith(_LAST):
            return Verdict(0.0, verdict.answer, "the final answer is not marked")
        for equation in equations(_TIMES.sub(" * ", strip_calculations(text))):
            if equation.holds is not True:
                said = f"{equation.left.strip()} = {equation.right.strip()}"
                fault = "is false" if equation.holds is False else "cannot be checked"
                return Verdict(0.0, verdict.answer, f"{said} {fault}")
        return Verdict(1.0, verdict.answer, "equal, every equation holds")

    def answer_example(self, problem: Problem) -> Example:
        """Return the question with the gold solution, without calculator marks."""
        answer = Segment("assistant", str(problem.meta["solution"]), 1.0)
        source, line = problem.meta.get("source"), problem.meta.get("line")
        origin = Origin(str(source or self.name), line, None if source else problem.id)
        return Example((*problem.prompt, answer), origin)


_LAST = "the last number"


def final_answer(text: str) -> tuple[str | None, str]:
    """Return the final answer as it is written, and where it was found; None without a number."""
    text = strip_calculations(text)
    places = (
        (f"after {MARKER}", text.rpartition(MARKER)[2] if MARKER in text else None),
        ("in <answer>", extract_tagged(text)),
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
    bare = re.sub(r"[$€£*]", "", written.rpartition("=")[2]).strip()
    return parse_number(bare)


def _written(number: Fraction) -> str:
    exact = number.denominator == 1
    return str(number.numerator) if exact else f"{float(number):.12g}"


def _of_folder(folder: Path, split: str) -> list[Problem]:
    own = _split_file(folder, split)
    if split != "dev" and own is None:
        raise DataError(
            f"The folder {str(folder)!r} has no file for the {split} split.",
            expected=f"{split}.jsonl",
            hint="name one file instead of the folder",
        )
    if split == "test" or (own is not None and _split_file(folder, "dev") is not None):
        assert own is not None
        return _read(str(own))
    train = _split_file(folder, "train")
    if train is None:
        raise DataError(
            f"The folder {str(folder)!r} has neither a dev nor a train file.",
            expected="dev.jsonl or train.jsonl",
        )
    return _part(_read(str(train)), split)


def _of_dataset(source: str, split: str) -> list[Problem]:
    if split == "test":
        return _read(source, split)
    return _part(_read(source, "train"), split)


def _is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _part(problems: list[Problem], split: str) -> list[Problem]:
    return [problem for problem in problems if _is_dev(problem) is (split == "dev")]


def _split_file(folder: Path, split: str) -> Path | None:
    names = ("dev", "validation") if split == "dev" else (split,)
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def _is_dev(problem: Problem) -> bool:
    digest = hashlib.sha256(problem.prompt[0].text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % DEV_SHARE == 0


def _read(source: str, split: str = "train") -> list[Problem]:
    from tunesmith.data.readers import read_rows

    seen: Counter[str] = Counter()
    found = []
    for row in read_rows(source, split=split):
        question, answer = row.fields.get("question"), row.fields.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise DataError(
                f"{row.origin}: no question and answer (fields: {', '.join(row.fields)}).",
                expected='{"question": "…", "answer": "… #### 72"}',
            )
        reference = gold_number(answer)
        if reference is None:
            raise DataError(
                f"{row.origin}: the answer holds no number.",
                expected="a solution that ends in «#### 72»",
            )
        # The same question twice stays two problems, so that no row is lost.
        digest = hashlib.sha256(question.encode()).hexdigest()[:16]
        seen[digest] += 1
        again = f"-{seen[digest]}" if seen[digest] > 1 else ""
        solution = _with_ending(strip_calculations(answer).strip(), reference)
        meta = {"solution": solution, "source": row.origin.source, "line": row.origin.line}
        prompt = (Segment("user", question.strip()),)
        found.append(Problem(f"maths-{digest}{again}", "maths", prompt, reference, meta))
    return found


def _with_ending(solution: str, reference: str) -> str:
    return solution if MARKER in solution else f"{solution}\n{MARKER} {reference}"
