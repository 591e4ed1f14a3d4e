"""Tasks whose answers have no one right form: a model replies, and metrics score the reply.

One question is made of each row: a conversation is asked up to its last trained turn of the
assistant, with the turns before it as the row has them; a plain text is begun and the model goes
on with it. The stored score of an attempt is its likeness to what the row says there.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.data.words import words
from tunesmith.errors import DataError, UsageError
from tunesmith.grading.overlap import code_of, edit_similarity
from tunesmith.grading.rouge import rouge_l
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Example, Problem, Segment, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.data.readers import Row

LONGEST_OPENING = 1000
"""Characters of a plain text that a model is shown at most."""
LONGEST_REST = 600
"""Characters behind them that are compared with what it writes."""


class ReplyTask(GradedTask):
    """Reply as the row does; the score is the likeness of both, in [0, 1]."""

    prompts = ("direct",)
    uses = ("columns",)
    problems_called = "rows to reply to"
    score_called = "alike (ROUGE-L)"
    takes_plain: ClassVar[bool] = True
    """Whether a row may be plain text, which is begun and gone on with."""

    def __init__(self) -> None:
        self._rows: dict[str, Example] = {}

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return a question for each row of a source; with ``limit`` so many, drawn by ``seed``.

        A folder holds a file for each split or is a saved ``datasets`` folder; a file is taken as
        a whole. ``DataError`` names a row that cannot be asked.
        """
        if source is None:
            raise UsageError(
                f"The task {self.name!r} has no rows of its own to reply to.",
                expected="held-out rows, laid out as for training",
                hint="--dataset heldout.jsonl",
            )
        if split not in self.splits:
            raise UsageError(
                f"The {self.name} task has no split {split!r}.", expected=", ".join(self.splits)
            )
        found = [self._problem(example) for example in self.examples(source, split)]
        seen: Counter[str] = Counter()
        problems = []
        for example, (prompt, reference) in found:
            said = "\x1f".join(f"{s.role}\x1e{s.text}" for s in prompt) + f"\x1f{reference}"
            digest = hashlib.sha256(said.encode()).hexdigest()[:16]
            seen[digest] += 1
            again = f"-{seen[digest]}" if seen[digest] > 1 else ""
            name = f"{self.name}-{digest}{again}"
            meta: dict[str, Any] = {"source": example.origin.source, "line": example.origin.line}
            if example.origin.item is not None:  # many rows on one line of a JSON list
                meta["item"] = example.origin.item
            plain = example.segments[0].role is None
            if plain and not example.segments[0].text.strip().endswith(reference):
                meta["cut"] = True
            self._rows[name] = example
            problems.append(Problem(name, self.name, prompt, reference, meta))
        if limit is None or limit >= len(problems):
            return problems
        chosen = random.Random(f"{self.name}/{split}/{seed}").sample(range(len(problems)), limit)
        return [problems[place] for place in sorted(chosen)]

    def examples(self, source: str, split: str) -> Iterator[Example]:
        """Yield the rows of a source as training reads them; ``DataError`` for a fault."""
        from tunesmith.data.formats import Examples
        from tunesmith.data.readers import Fault, read_rows

        own = Path(source) / f"{split}.jsonl"
        rows: Iterator[Row] = read_rows(str(own) if own.is_file() else source, split=split)
        for item in Examples(rows, self.settings.columns):
            if isinstance(item, Fault):
                raise item.error()
            yield item

    def _problem(self, example: Example) -> tuple[Example, tuple[tuple[Segment, ...], str]]:
        segments = example.segments
        if segments[0].role is None:
            if not self.takes_plain:
                raise DataError(
                    f"{example.origin}: plain text; nobody is asked anything there.",
                    expected="a conversation, or a prompt with its response",
                    hint="--task domain",
                )
            return example, self._cut(example)
        last = max(at for at, s in enumerate(segments) if s.role == "assistant" and s.weight)
        if not last:
            raise DataError(f"{example.origin}: the assistant speaks first, so nothing is asked.")
        prompt = tuple(Segment(s.role, s.text, 0.0, s.extra) for s in segments[:last])
        return example, (prompt, segments[last].text)

    def _cut(self, example: Example) -> tuple[tuple[Segment, ...], str]:
        """Return the opening of a plain text, at most half of it, and what follows."""
        text = example.segments[0].text.strip()
        opening, rest = self.split_text(text)
        if not opening.strip() or not rest.strip():
            raise DataError(
                f"{example.origin}: a text of {len(text)} characters cannot be cut in two.",
                expected="texts of at least two words",
            )
        return (Segment(None, opening),), rest

    def split_text(self, text: str) -> tuple[str, str]:
        """Return opening and rest, cut at the last space of the first half; spaces lead the rest.

        Tokenizers join a space to the word behind it, so the rest begins with it.
        """
        middle = min(len(text) // 2, LONGEST_OPENING)
        at = max(text.rfind(" ", 0, middle + 1), text.rfind("\n", 0, middle + 1))
        at = at if at > 0 else middle
        return text[:at], text[at : at + LONGEST_REST]

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the turns before the reply, as the row has them."""
        self.check_style(style)
        return problem.prompt

    def likeness(self, text: str, reference: str) -> float:
        """Return how alike reply and reference are: ROUGE-L on words."""
        return rouge_l(words(text), words(reference))

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return the likeness to the reference; an empty reply scores 0 and is no answer."""
        if not text.strip():
            return Verdict(0.0, None, "empty")
        text = compared(problem, text)
        score = self.likeness(text, problem.reference)
        return Verdict(score, text, f"{self.score_called} {score:.2f}")

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Return 1 only for the reference itself: nothing else is known to be right."""
        same = text.strip() == problem.reference.strip()
        return Verdict(float(same), text or None, "the reference" if same else "another text")

    def answer_example(self, problem: Problem) -> Example:
        """Return the row itself, whose loss is the held-out loss."""
        return self._rows[problem.id]


def compared(problem: Problem, text: str) -> str:
    """Return what of a reply is compared: no more than of a text whose end was cut off."""
    return text[: len(problem.reference)] if problem.meta.get("cut") else text


class ChatReplies(ReplyTask):
    name = "chat"
    summary = "the last reply of each conversation"
    takes_plain = False


class CodeReplies(ReplyTask):
    name = "code"
    summary = "code written to a prompt, or the second half of a piece of code"
    score_called = "alike (edit similarity)"

    def split_text(self, text: str) -> tuple[str, str]:
        """Return opening and rest, cut between two lines where there are several."""
        lines = text.splitlines(keepends=True)
        if len(lines) < 2:
            return super().split_text(text)
        opening, rest = lines[: len(lines) // 2], lines[len(lines) // 2 :]
        before = "".join(_within(opening[::-1], LONGEST_OPENING)[::-1])
        return before[-LONGEST_OPENING:], "".join(_within(rest, LONGEST_REST))[:LONGEST_REST]

    def likeness(self, text: str, reference: str) -> float:
        """Return the edit similarity of the code in both."""
        return edit_similarity(code_of(text), code_of(reference))


def _within(lines: list[str], most: int) -> list[str]:
    """Return the first lines that have so many characters together; the first one always."""
    sizes = itertools.accumulate(map(len, lines))
    return [line for at, (line, size) in enumerate(zip(lines, sizes, strict=True))
            if size <= most or not at]  # fmt: skip


class InstructReplies(ReplyTask):
    name = "instruct"
    summary = "the response to an instruction"
    takes_plain = False


class DomainReplies(ReplyTask):
    name = "domain"
    summary = "what follows on the opening of a text"
    max_new_tokens = 128


class CustomReplies(ReplyTask):
    name = "custom"
    summary = "the answers of your own columns"


REPLY_TASKS: Mapping[str, type[ReplyTask]] = {
    kind.name: kind
    for kind in (ChatReplies, CodeReplies, InstructReplies, DomainReplies, CustomReplies)
}
"""The tasks of requirement 003, by the name that training has them under."""
