"""The ``bbh`` task: BIG-bench Hard (Suzgun et al. 2022, arXiv 2210.09261), a file for each subtask.

A file is ``{"canary": …, "examples": [{"input": …, "target": …}]}``. The published worked examples
(``cot-prompts/<subtask>.txt`` beside it) make the ``cot`` prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, UsageError
from tunesmith.grading.answers import parse_number
from tunesmith.grading.arithmetic import equations
from tunesmith.grading.marked import LAST_LINE, bare, chosen, final_words
from tunesmith.grading.typed import typed
from tunesmith.tasks.base import telling
from tunesmith.tasks.files import FileTask
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row

FOLDER = "cot-prompts"
_OPTION = re.compile(r"^\(([A-Z])\)[ \t]*(.+)$", re.MULTILINE)
_WORD_OPTION = re.compile(r"^- (.+)$", re.MULTILINE)
_LETTER = re.compile(r"\(([A-Z])\)")
_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")
_PAIR = re.compile(r"^Q:[ \t]*(.*?)\nA:[ \t]*(.*?)(?=\n\s*\nQ:|\s*\Z)", re.DOTALL | re.MULTILINE)
_EITHER = (("yes", "no"), ("true", "false"), ("valid", "invalid"))


class BbhTask(FileTask):
    """Answer a question of BIG-bench Hard, whose target is a letter, a word, a number or a list."""

    name = "bbh"
    summary = "BIG-bench Hard, one file a subtask, with its published worked examples"
    problems_called = "questions with targets"
    wants = "a file with examples of input and target"
    example_source = "bbh/navigate.json"
    uses = ("columns", "examples")
    max_new_tokens = 400

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return {"input", "target"} <= fields.keys()

    def problem(self, row: Row) -> Problem:
        """Return the problem of one example of a subtask."""
        asked, target = row.fields.get("input"), row.fields.get("target")
        if not isinstance(asked, str) or target is None or not str(target).strip():
            raise DataError(
                f"{row.origin}: no input and target (fields: {', '.join(row.fields)}).",
                expected='{"input": "…", "target": "(B)"}',
            )
        file = Path(row.origin.source)
        meta: dict[str, Any] = {"subtask": file.stem}
        if examples := self._examples_of(file):
            meta["examples"] = str(examples)
        prompt = (Segment("user", asked.strip()),)
        return Problem(f"{file.stem}/{asked}", self.name, prompt, str(target).strip(), meta)

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question alone, or behind the published worked examples of its subtask."""
        if self.check_style(style) == "direct":
            return problem.prompt
        file = problem.meta.get("examples")
        if file is None:
            raise UsageError(
                f"There are no worked examples for the subtask {problem.meta.get('subtask')!r}.",
                expected=f"the file {FOLDER}/{problem.meta.get('subtask')}.txt beside its own",
                hint="--examples FILE, or --prompt direct",
            )
        return (*worked_turns(str(file)), *problem.prompt)

    def answer_text(self, problem: Problem) -> str:
        """Return the target."""
        return problem.reference

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare what stands after «the answer is», or else on the last line, with the target.

        Case, spaces and a full stop at the end do not count; letters of options, lists and numbers
        are equal however they are written.
        """
        target = problem.reference
        if _LETTER.fullmatch(target):
            letter, reason = chosen(text, _options(problem))
            right = letter is not None and f"({letter})" == target
            return Verdict(float(right), letter, reason)
        found = final_words(text)
        if found is None:
            return Verdict(0.0, None, "no answer")
        written, place = found
        return Verdict(float(_equal(written, target)), written, place)

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Ask for a marked answer (or nothing but one), equal, and no false equation."""
        verdict = self.judge(problem, text)
        if verdict.score != 1:
            return verdict
        if verdict.reason == LAST_LINE and len(text.strip().splitlines()) > 1:
            return Verdict(0.0, verdict.answer, "the final answer is not marked")
        if any(step.holds is False for step in equations(typed(text))):
            return Verdict(0.0, verdict.answer, "a false equation")
        return verdict

    def hint(self, problem: Problem) -> str:
        """Tell the target: a letter as a choice, anything else as the answer."""
        what = "correct choice" if _LETTER.fullmatch(problem.reference) else "answer"
        return telling(f"The {what} is {problem.reference.rstrip('.')}.")

    def chance(self, problem: Problem) -> float | None:
        """Return one over the number of options, or of the words of a yes-or-no question."""
        options = _options(problem) or _WORD_OPTION.findall(problem.prompt[-1].text)
        if options:
            return 1 / len(options)
        return 0.5 if any(bare(problem.reference) in pair for pair in _EITHER) else None

    def continuations(self, problem: Problem, style: str) -> list[str]:
        """Return the letters of a question's options, or the words that it offers."""
        if style != "direct":
            return []
        letters = [f"({letter})" for letter, _ in _OPTION.findall(problem.prompt[-1].text)]
        return letters or _WORD_OPTION.findall(problem.prompt[-1].text)

    def _of_folder(self, folder: Path, split: str) -> list[Problem]:
        """Take the files of all subtasks, unless the folder has splits."""
        files = sorted(folder.glob("*.json"))
        if not files or any((folder / f"{one}.json").is_file() for one in self.splits):
            return super()._of_folder(folder, split)
        return [problem for file in files for problem in self.read(str(file))]

    def _examples_of(self, file: Path) -> Path | None:
        if self.settings.examples:
            return Path(self.settings.examples)
        beside = file.parent / FOLDER / f"{file.stem}.txt"
        return beside if beside.is_file() else None


@lru_cache(maxsize=64)
def worked_turns(file: str) -> tuple[Segment, ...]:
    """Return the questions and answers of a file of worked examples as turns of a chat.

    What stands in front of the first question (but for the canary) begins the first turn.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise DataError(
            f"The worked examples {file!r} cannot be read: {failure}.",
            expected="a text file of blocks «Q: …», «A: …»",
        ) from None
    text = text.rpartition("\n-----\n")[2].replace("\r\n", "\n")
    pairs = _PAIR.findall(text)
    if not pairs:
        raise DataError(
            f"{file}: there is no worked example.", expected="blocks «Q: …», «A: …», a line between"
        )
    task = text[: text.index("Q:")].strip()
    turns: list[Segment] = []
    for number, (question, answer) in enumerate(pairs):
        asked = f"{task}\n\n{question.strip()}" if task and not number else question.strip()
        turns += [Segment("user", asked), Segment("assistant", answer.strip())]
    return tuple(turns)


def _options(problem: Problem) -> list[str]:
    return [text for _, text in _OPTION.findall(problem.prompt[-1].text)]


def _equal(written: str, target: str) -> bool:
    if not re.search(r"\w", target):  # nothing but brackets: marks around it count
        return "".join(written.split()) == "".join(target.split())
    ours, theirs = bare(written), bare(target)
    if ours == theirs:
        return True
    if _NUMBER.fullmatch(target):
        number = parse_number(ours.rpartition("=")[2])
        return number is not None and number == parse_number(target)
    if any(theirs in pair for pair in _EITHER):
        return re.split(r"\W+", ours, maxsplit=1)[0] == theirs
    return re.split(r"[\s,;]+", ours) == re.split(r"[\s,;]+", theirs)
