"""What a person sees of sampling: one line while it runs, tables at the end."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.types import Attempt
    from tunesmith.workflows.sample import SampleResult


class Pace:
    """What the attempts so far say, those that were stored before included, and how fast it is."""

    def __init__(
        self,
        plan: Plan,
        done: Collection[tuple[str, int]],
        verified: Collection[tuple[str, int]],
    ) -> None:
        from tunesmith.evaluate.sampled import Running

        self.made = 0
        """Attempts of this command itself."""
        self._running = Running(plan.samples)
        for problem_id, index in done:
            if not plan.rounds.hinted(index // plan.samples):
                self._running.add(problem_id, index, (problem_id, index) in verified)
        self._tokens = 0
        self._began = self._last = time.monotonic()

    def add(self, attempt: Attempt) -> None:
        """Count an attempt that was made just now."""
        self.made += 1
        self._tokens += len(attempt.tokens)
        self._last = time.monotonic()
        if not attempt.hinted:
            self._running.add(attempt.problem_id, attempt.index, attempt.verified)

    @property
    def tokens_per_second(self) -> float:
        """Return new tokens over the time up to the last attempt; 0 where none was made."""
        took = self._last - self._began
        return self._tokens / took if took > 0 else 0.0

    @property
    def seconds(self) -> float:
        """Return the time since the first prompt."""
        return time.monotonic() - self._began

    def note(self) -> str:
        """Return the figures so far in one line."""
        run = self._running
        parts = [f"{100 * run.verified / run.attempts:.0f}% verified" if run.attempts else ""]
        parts += [f"{run.solved} solved"]
        for k in sorted({1, run.samples}):
            share = run.pass_at(k)
            parts += [f"pass@{k} {100 * share:.0f}%" if share is not None else ""]
        parts += [f"{self.tokens_per_second:,.0f} tok/s"] if self._tokens else []
        return ", ".join(part for part in parts if part)


def tell(result: SampleResult) -> None:
    """Print the figures of a finished run, and what became of every attempt."""
    figures = result.figures
    console.table(
        "First attempts at each question",
        ["k", "verified pass@k", "right by majority@k"],
        [
            [str(k), f"{100 * share:.1f}%", f"{100 * figures.majority_at[k]:.1f}%"]
            for k, share in figures.pass_at.items()
        ],
    )
    console.table(
        "Questions by the share of their first attempts that is verified",
        ["share", "questions", "attempts", "verified", "kept"],
        [
            [d.solved, f"{d.problems:,}", f"{d.attempts:,}", f"{d.verified:,}", f"{d.kept:,}"]
            for d in figures.difficulty
        ],
    )
    console.table(
        "Attempts",
        ["what became of them", "attempts"],
        [
            [f"kept, for {result.solved} of {result.questions} questions", f"{result.rows:,}"],
            *([reason, f"{n:,}"] for reason, n in sorted(result.discards.items())),
            ["all", f"{result.attempts:,}"],
        ],
    )
    console.say(
        f"{figures.distinct_paths:.2f} distinct verified paths a question; "
        f"{100 * figures.answer_rate:.1f}% of the attempts hold an answer."
    )
    if figures.hinted:
        console.say(
            f"With the answer told: {figures.hinted:,} attempts, {figures.hinted_verified:,} "
            "verified; they enter no score."
        )
    if result.generated:
        # Servers do not tell their tokens.
        speed = f", {result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
        console.say(
            f"{result.generated:,} attempts made in {console.clock(result.seconds)}{speed}."
        )
    if not result.rows:
        console.warn("no path was verified, so no sampled row was written; try more --samples")
    gold = f" ({result.gold:,} gold ones among them)" if result.gold else ""
    console.say(f"Rows: {result.output}{gold}    All attempts: {result.log}")
