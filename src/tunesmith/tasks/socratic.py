"""The ``socratic`` task: answer an instruction with the questions that lead to its answer.

A row is ``{"instruction": …, "output": ["…?", …]}`` (or one text, a list already written out);
GSM8K's Socratic form (``question ** step`` lines) is taken as it is. Questions are trained, and
asked for, as a numbered list.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.socratic import (
    FAULTS,
    find_faults,
    is_question,
    parse_list,
    render_list,
)
from tunesmith.data.words import words
from tunesmith.errors import DataError, UsageError
from tunesmith.grading.rouge import set_rouge_l
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Example, Origin, Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row

REQUEST = (
    "Do not answer what follows. Write a short numbered list of Socratic questions instead, from "
    "the first thing to find out to the last, that lead somebody to the answer by themselves. Do "
    "not give the answer away and do not ask the same twice."
)
WORKED = (
    (
        "A baker fills 6 trays with 12 rolls each and sells 47 of the rolls by noon. How many "
        "rolls are left?",
        (
            "How many rolls did the baker make on all the trays?",
            "What happens to the number of rolls when some of them are sold?",
            "How many rolls remain after the sales by noon?",
        ),
    ),
    (
        "Should a town close its centre to cars?",
        (
            "What do we mean by closing the centre: all cars, or with exceptions?",
            "What are we assuming about why people drive there now?",
            "What evidence is there from towns that have tried it?",
            "How would a shopkeeper and a resident see the matter differently?",
            "What would follow for people who cannot walk far?",
        ),
    ),
)
"""Instructions and lists of the ``asked`` prompt, written for it and in no data set."""


class SocraticTask(GradedTask):
    """Ask the questions that lead to an answer, without giving it."""

    name = "socratic"
    summary = "Socratic questions about an instruction, as a numbered list"
    prompts = ("direct", "asked")
    problems_called = "instructions with Socratic questions"

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return {"instruction", "output"} <= fields.keys() or {"question", "answer"} <= fields.keys()

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return the instructions of a file, or of one split of a folder, in order.

        A folder holds a file for each split (``train.jsonl``, ``test.jsonl``, …) or is a saved
        ``datasets`` folder. With ``limit`` that many are drawn by ``seed``.
        """
        if split not in self.splits:
            raise UsageError(
                f"The socratic task has no split {split!r}.", expected=", ".join(self.splits)
            )
        if source is None:
            raise UsageError(
                "The socratic task has no questions of its own.",
                expected="a file of rows with instruction and output",
                hint="--dataset rows.jsonl",
            )
        own = Path(source) / f"{split}.jsonl"
        found = _read(str(own) if own.is_file() else source, split)
        if limit is None or limit >= len(found):
            return found
        chosen = random.Random(f"socratic/{split}/{seed}").sample(range(len(found)), limit)
        return [found[place] for place in sorted(chosen)]

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the instruction alone, as it is trained, or with the request and two examples.

        ``asked`` is for models that were not tuned for this and would answer otherwise.
        """
        if self.check_style(style) == "direct":
            return problem.prompt
        turns = [
            (Segment("user", f"{REQUEST}\n\n{asked}"), Segment("assistant", render_list(questions)))
            for asked, questions in WORKED
        ]
        last = Segment("user", f"{REQUEST}\n\n{problem.prompt[-1].text}")
        return (*(segment for turn in turns for segment in turn), last)

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return the similarity of the list to the reference one, 0 where no question is in it.

        The score is the F1 of ROUGE-L between questions under the best one-to-one assignment: it
        asks for the same questions in any order, and for as many of them.
        """
        questions = parse_list(text)
        reference = [str(question) for question in problem.meta["questions"]]
        if not questions:
            return Verdict(0.0, None, "no list of questions")
        answer = render_list(questions)
        if not any(map(is_question, questions)):
            return Verdict(0.0, answer, f"none of the {len(questions)} items is a question")
        score = set_rouge_l([*map(words, questions)], [*map(words, reference)])
        reason = f"{len(questions)} questions for {len(reference)}, ROUGE-L F1 {score:.2f}"
        return Verdict(score, answer, reason)

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Grade for training: every item is a question, asked once, that gives nothing away."""
        questions = parse_list(text)
        if not questions:
            return Verdict(0.0, None, "no list of questions")
        answer = render_list(questions)
        gold = problem.meta.get("answer")
        for fault in find_faults(questions, problem.prompt[-1].text, gold=gold):
            if FAULTS[fault.kind]:
                return Verdict(0.0, answer, fault.kind)
        return Verdict(1.0, answer, "a valid list")

    def answer_example(self, problem: Problem) -> Example:
        """Return the instruction with the reference list."""
        answer = Segment("assistant", problem.reference, 1.0)
        source, line = problem.meta.get("source"), problem.meta.get("line")
        item = problem.meta.get("item") if source else problem.id
        origin = Origin(str(source or self.name), line, item)
        return Example((*problem.prompt, answer), origin)


def _read(source: str, split: str) -> list[Problem]:
    from tunesmith.data.readers import read_rows

    seen: Counter[str] = Counter()
    found = []
    for row in read_rows(source, split=split):
        made = _questions(row)
        instruction, questions = str(made["instruction"]).strip(), made["output"]
        # The same instruction twice stays two problems, so that no row is lost.
        digest = hashlib.sha256(instruction.encode()).hexdigest()[:16]
        seen[digest] += 1
        again = f"-{seen[digest]}" if seen[digest] > 1 else ""
        meta = {
            "questions": tuple(questions),
            "answer": made.get("answer") if isinstance(made.get("answer"), str) else None,
            "source": row.origin.source,
            "line": row.origin.line,
            "item": row.origin.item,
        }
        more = made.get("input")
        if isinstance(more, str) and more.strip():
            instruction += f"\n\n{more}"
        prompt = (Segment("user", instruction),)
        name = f"socratic-{digest}{again}"
        found.append(Problem(name, "socratic", prompt, render_list(questions), meta))
    return found


def _questions(row: Row) -> dict[str, Any]:
    from tunesmith.data.socratic_import import gsm8k_row, list_row

    made = list_row(row) if "instruction" in row.fields else gsm8k_row(row)
    if not any(map(is_question, made["output"])):
        raise DataError(
            f"{row.origin}: none of the {len(made['output'])} items is a question.",
            expected="at least one item that ends in a question mark",
            hint="tunesmith data socratic takes such rows out and lists them",
        )
    return made
