"""The ``choice`` task: questions with options, in the layouts that such sets have.

ARC and CommonsenseQA (``question``, ``choices`` with ``text`` and ``label``, ``answerKey``), MMLU
(``question``, ``choices`` as a list, ``answer`` as a position), one flat (``question``, ``A``,
``B``, …, ``answer``), ``options`` as a list or by letter, and chats that list «A) …» lines with a
``gold`` letter. Options are asked, and answered, with letters from A on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.grading.arithmetic import equations
from tunesmith.grading.marked import LETTERS, bare, chosen
from tunesmith.tasks.base import telling
from tunesmith.tasks.files import FileTask
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row

CLOZE = "cloze"
_LINE = re.compile(r"^\(?([A-Z])\)\s+(\S.*)$", re.MULTILINE)

WORKED = (
    (
        "Which of these would float on water?",
        ("an iron nail", "a cork", "a brick", "a glass marble"),
        "A thing floats when it is lighter than the water it pushes aside. Iron, brick and glass "
        "are heavier than water, cork is lighter. So the answer is (B) a cork.",
    ),
    (
        "Mia left home at 7:40 and walked for 35 minutes. When did she arrive?",
        ("7:75", "8:05", "8:15"),
        "20 minutes after 7:40 it is 8:00, and 15 of the 35 minutes are left. That makes 8:15. So "
        "the answer is (C) 8:15.",
    ),
    (
        "What would somebody put on a letter before posting it?",
        ("a stamp", "a saddle", "a lid", "a ladder", "a wheel"),
        "The post asks to be paid for carrying a letter, and a stamp shows that it was. So the "
        "answer is (A) a stamp.",
    ),
)
"""Questions, options and answers of the ``cot`` prompt, written for it and in no data set."""


class ChoiceTask(FileTask):
    """Choose one of the options of a question."""

    name = "choice"
    summary = "multiple choice (ARC, CommonsenseQA, MMLU and flat layouts)"
    prompts = ("direct", "cot", CLOZE)
    problems_called = "questions with options"
    wants = "a file of rows with question, options and answer"
    example_source = "path/to/arc.jsonl"
    uses = ("columns",)
    max_new_tokens = 200

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        try:
            return _options(fields) is not None
        except ValueError:
            return True

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row in any of the layouts."""
        try:
            made = _options(row.fields)
        except ValueError as wrong:
            raise DataError(f"{row.origin}: {wrong}.", expected=_EXPECTED) from None
        if made is None:
            raise DataError(
                f"{row.origin}: no question with options (fields: {', '.join(row.fields)}).",
                expected=_EXPECTED,
                hint="--columns question=…,choices=…,answer=…",
            )
        question, options, gold = made
        meta = {"question": question, "options": list(options)}
        prompt = (Segment("user", listed(question, options)),)
        return Problem(prompt[0].text, self.name, prompt, LETTERS[gold], meta)

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the question with its options, or behind worked examples.

        ``cloze`` asks without options: then they are scored by likelihood, and never generated.
        """
        if self.check_style(style) == "direct":
            return problem.prompt
        if style == CLOZE:
            return (Segment("user", str(problem.meta["question"])),)
        turns = [(Segment("user", listed(q, o)), Segment("assistant", a)) for q, o, a in WORKED]
        return (*(segment for turn in turns for segment in turn), *problem.prompt)

    def continuations(self, problem: Problem, style: str) -> list[str]:
        """Return what each option is scored by: its letter and text, or its text for ``cloze``."""
        if style == "cot":  # an answer comes after the reasoning there
            return []
        options = [str(option) for option in problem.meta["options"]]
        return options if style == CLOZE else [spelt(at, text) for at, text in enumerate(options)]

    def answer_text(self, problem: Problem) -> str:
        """Return letter and text of the right option."""
        gold = LETTERS.index(problem.reference)
        return spelt(gold, str(problem.meta["options"][gold]))

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Compare the chosen option with the right one; two options named are wrong."""
        letter, reason = chosen(text, problem.meta["options"])
        if letter is None:
            return Verdict(0.0, None, reason)
        right = letter == problem.reference
        return Verdict(float(right), letter, f"{'right' if right else 'another option'}, {reason}")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Ask for the right option, and that no equation on the way is false."""
        verdict = self.judge(problem, text)
        if verdict.score == 1 and any(step.holds is False for step in equations(text)):
            return Verdict(0.0, verdict.answer, "a false equation")
        return verdict

    def hint(self, problem: Problem) -> str:
        """Tell the right option with its letter."""
        return telling(f"The correct choice is {self.answer_text(problem).rstrip('.')}.")

    def chance(self, problem: Problem) -> float | None:
        return 1 / len(problem.meta["options"])


_EXPECTED = (
    '{"question": "…", "choices": {"text": […], "label": […]}, "answerKey": "B"}, or choices as '
    "a list with answer as position, or A, B, C, … with answer"
)


def listed(question: str, options: Sequence[str]) -> str:
    """Return a question with its options below it, a line each."""
    lines = "\n".join(spelt(at, text) for at, text in enumerate(options))
    return f"{question}\n\n{lines}"


def spelt(at: int, text: str) -> str:
    """Return an option as it is asked and answered: ``(B) a cork``."""
    return f"({LETTERS[at]}) {text}"


def _options(fields: Mapping[str, Any]) -> tuple[str, list[str], int] | None:
    """Return question, options and the right one's place; None for a row of another layout.

    Raises ``ValueError`` for a row that has options, but not a right one among them.
    """
    if isinstance(fields.get("messages"), list) and "gold" in fields:
        return _listed_in_chat(fields)
    question = fields.get("question")
    if isinstance(question, Mapping):  # the form in which ARC itself is published, or nested whole
        inner = dict(question)
        inner.setdefault("question", inner.get("stem"))
        return _options({**fields, **inner})
    if not isinstance(question, str) or not question.strip():
        return None
    labels, texts = _labelled(fields)
    if not texts:
        return None
    if not 2 <= len(texts) <= len(LETTERS) or not all(bare(text) or text for text in texts):
        raise ValueError(f"{len(texts)} options")
    given = [fields[name] for name in _KEYS if fields.get(name) is not None]
    if not given:
        raise ValueError(f"no answer among the fields {', '.join(_KEYS)}")
    return question.strip(), texts, _place(given[0], labels, texts)


_KEYS = ("answerKey", "answer", "answer_idx", "label", "gold")


def _labelled(fields: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    found = fields.get("choices", fields.get("options"))
    if isinstance(found, Mapping) and isinstance(found.get("text"), Sequence):
        texts = [str(text) for text in found["text"]]
        labels = [str(one) for one in found.get("label") or LETTERS[: len(texts)]]
        if len(labels) != len(texts):
            raise ValueError(f"{len(texts)} options with {len(labels)} labels")
        return labels, texts
    if isinstance(found, Mapping):
        return [str(key) for key in found], [str(text) for text in found.values()]
    if isinstance(found, list) and all(isinstance(one, Mapping) for one in found):
        labels = [str(one.get("label", LETTERS[at % 26])) for at, one in enumerate(found)]
        return labels, [str(one.get("text", "")) for one in found]
    if isinstance(found, list):
        return list(LETTERS[: len(found)]), [str(text) for text in found]
    for known in (LETTERS, LETTERS.lower()):
        letters = [one for one in known if fields.get(one) is not None]
        if len(letters) > 1:
            return letters, [str(fields[one]) for one in letters]
    return [], []


def _place(answer: Any, labels: list[str], texts: list[str]) -> int:
    """Return which option an answer names: by its label, its position from 0, or its text."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        if str(answer) in labels:
            return labels.index(str(answer))
        return answer
    said = str(answer).strip()
    for known in (labels, [label.upper() for label in labels], texts, list(LETTERS[: len(texts)])):
        for written in (said, said.strip("()."), said.strip("().").upper()):
            if written in known:
                return known.index(written)
    if said.isdecimal() and int(said) < len(texts):
        return int(said)
    raise ValueError(f"the answer {said[:60]!r} is none of {', '.join(labels)}")


def _listed_in_chat(fields: Mapping[str, Any]) -> tuple[str, list[str], int] | None:
    turns = fields["messages"]
    asked = [t for t in turns if isinstance(t, Mapping) and t.get("role") == "user"]
    text = str(asked[-1].get("content", "")) if asked else ""
    lines = _LINE.findall(text)
    if len(lines) < 2:
        return None
    labels, texts = [label for label, _ in lines], [option.strip() for _, option in lines]
    question = text[: _LINE.search(text).start()].strip()  # type: ignore[union-attr]
    return question, texts, _place(fields["gold"], labels, texts)
