"""The six ways of answering of Orca 2 (arXiv 2311.11045), and which task is taught by which."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.data.mixture import rank
from tunesmith.errors import UsageError

PairedTest = Callable[[int, int], float]
"""From the numbers of items gained and lost to a two-sided p-value."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way of answering, and how a teacher is asked for it."""

    name: str
    instruction: str
    """System message of the teacher; erased from what the student sees."""


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "direct",
            "Give the final answer straight away and nothing else: no introduction, no reasons, "
            "no closing remark.",
        ),
        Strategy(
            "extract-then-generate",
            "First pick out of the given text the passages that bear on the question, word for "
            "word. Then write the answer from these passages alone.",
        ),
        Strategy(
            "explain-then-answer",
            "Begin with a short explanation of what speaks for and against the possible answers. "
            "When the explanation is complete, state the answer in its last sentence.",
        ),
        Strategy(
            "recall-then-generate",
            "Before you answer, call to mind the facts that the question depends on and write "
            "them down. Then give an answer that follows from these facts.",
        ),
        Strategy(
            "step-by-step",
            "Work through the problem in small numbered steps. Each step does one thing and shows "
            "its result, and the result of the last step is the answer.",
        ),
        Strategy(
            "recall-reason-generate",
            "Note what you know about the subject of the question. Reason from these notes, one "
            "inference after another, to a conclusion. End with the answer that the conclusion "
            "supports.",
        ),
    )
}
"""From the shortest answers to the longest: between equals the earlier one is taken."""

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(words), name)
    for words, name in (
        (r"math|gsm|arith|algebra|calculat|equation|units?\b|word.?problem", "step-by-step"),
        (
            r"squad|quoref|adversarial.?qa|drop\b|extract|reading|comprehension|paragraph|passage",
            "extract-then-generate",
        ),
        (r"multi.?hop|hotpot|complex|deduc|puzzle|logic|plan", "recall-reason-generate"),
        (r"trivia|fact|knowledge|science|\barc\b|wiki|quartz|history", "recall-then-generate"),
        (
            r"common.?sense|entail|nli\b|paraphrase|paws|moral|sentiment|opinion|judge",
            "explain-then-answer",
        ),
        (r"classif|dbpedia|categor|topic|label|title|common.?gen|translat|spell", "direct"),
    )
)
"""Words in the name of a category or source; the first rule that matches decides."""


def known(name: str) -> Strategy:
    """Return a strategy by its name."""
    if name not in STRATEGIES:
        raise UsageError(f"There is no strategy {name!r}.", expected=", ".join(STRATEGIES))
    return STRATEGIES[name]


def by_rule(source: str, category: str) -> str | None:
    """Return the strategy that the words of a category, else of a source's name, speak for."""
    for text in (category, source):
        plain = re.sub(r"[_\W]+", " ", text.casefold())
        for pattern, name in _RULES:
            if pattern.search(plain):
                return name
    return None


_ASKED = (
    (re.compile(r"step.by.step|steps\b"), "step-by-step"),
    (re.compile(r"\bexplain|justif|reasons? for"), "explain-then-answer"),
    (re.compile(r"\brecall|remember|background knowledge"), "recall-then-generate"),
    (re.compile(r"\bextract|quote|cite|from the (text|passage|context)"), "extract-then-generate"),
    (re.compile(r"only the (final )?answer|no explanation|without expla|briefly"), "direct"),
)


def by_instruction(instruction: str) -> str | None:
    """Return the strategy that a teacher's own instruction asks for, if its words say so."""
    for strategy in STRATEGIES.values():
        if strategy.instruction == instruction:
            return strategy.name
    text = instruction.casefold()
    return next((name for pattern, name in _ASKED if pattern.search(text)), None)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which strategy a category is taught by, in the order in which reasons count."""

    default: str | None = None
    mapping: Mapping[str, str | None] = field(default_factory=dict)
    """Category or source → strategy, as a person decided; None is no strategy."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """Category → strategy that the student did best with."""
    rules: bool = True

    def of(self, source: str, category: str) -> str | None:
        """Return the strategy of a row, or None for none."""
        for name in (category, source):
            if name in self.mapping:
                return self.mapping[name]
        for name in (category, source):
            if name in self.measured:
                return self.measured[name]
        found = by_rule(source, category) if self.rules else None
        return found or self.default


@dataclass(frozen=True, slots=True)
class Choice:
    """The strategy chosen for one category, and the figures behind it."""

    category: str
    strategy: str
    best: str
    """Highest measured accuracy; another one was chosen where it is no clearer than chance."""
    accuracies: Mapping[str, float]
    items: int
    p: float | None
    """Of the best against the chosen one; None where they are the same."""

    def sentence(self) -> str:
        """Say what was chosen and why."""
        figures = ", ".join(f"{name} {100 * a:.1f}%" for name, a in self.accuracies.items())
        text = f"{self.category}: {self.strategy} ({figures}; {self.items} items"
        if self.p is None:
            return f"{text})"
        return f"{text}; {self.best} is not significantly better, p = {self.p:.2g})"


Scores = Mapping[str, float]
"""Item → score of one run."""


def choose(
    runs: Mapping[str, Scores],
    categories: Mapping[str, str],
    paired_test: PairedTest,
    *,
    items: Collection[str] | None = None,
    alpha: float = 0.05,
) -> dict[str, Choice]:
    """Return for each category the shortest strategy that the best one does not clearly beat.

    ``runs`` are the scores of one student asked with each strategy; only items that every run
    graded count (of ``items``, where given). The best is tested against every shorter strategy on
    the same items, at ``alpha`` divided by the number of these tests (Bonferroni).
    """
    ordered = [name for name in STRATEGIES if name in runs]
    shared = _shared(runs, items)
    chosen: dict[str, Choice] = {}
    for category in sorted({categories[item] for item in shared}):
        own = [item for item in shared if categories[item] == category]
        means = {name: sum(runs[name][item] for item in own) / len(own) for name in ordered}
        # max takes the first among equals, which is the shortest.
        best = max(ordered, key=means.__getitem__)
        shorter = ordered[: ordered.index(best)]
        strategy, p = best, None
        for name in shorter:
            value = paired_test(*_discordant(runs[name], runs[best], own))
            if value >= alpha / len(shorter):
                strategy, p = name, value
                break
        chosen[category] = Choice(category, strategy, best, means, len(own), p)
    return chosen


@dataclass(frozen=True, slots=True)
class AgainstOne:
    """The assignment against one strategy for everything, on the same items."""

    single: str
    items: int
    assigned_accuracy: float
    single_accuracy: float
    gained: int
    """Items that only the assigned strategy has right (or scores higher on)."""
    lost: int
    p: float

    def sentence(self) -> str:
        """Say what the comparison shows."""
        change = 100 * (self.assigned_accuracy - self.single_accuracy)
        return (
            f"A strategy for each category scores {change:+.1f} points against {self.single} for "
            f"all ({self.gained} gained, {self.lost} lost, of {self.items} held-out items; "
            f"p = {self.p:.2g})"
        )


def against_single(
    assigned: Mapping[str, str],
    runs: Mapping[str, Scores],
    categories: Mapping[str, str],
    paired_test: PairedTest,
    items: Collection[str],
) -> list[AgainstOne]:
    """Compare an assignment with each single strategy, paired on items it was not chosen on."""
    shared = [item for item in _shared(runs, items) if categories[item] in assigned]
    mixed = {item: runs[assigned[categories[item]]][item] for item in shared}
    found = []
    for name in STRATEGIES:
        if name not in runs or not shared:
            continue
        gained, lost = _discordant(runs[name], mixed, shared)
        found.append(
            AgainstOne(
                name,
                len(shared),
                sum(mixed.values()) / len(shared),
                sum(runs[name][item] for item in shared) / len(shared),
                gained,
                lost,
                paired_test(gained, lost),
            )
        )
    return found


def halves(items: Collection[str], seed: int) -> tuple[list[str], list[str]]:
    """Split items into two halves, one to choose on and one to judge the choice on."""
    ordered = sorted(items, key=lambda item: rank(seed, "", item, "strategies"))
    middle = (len(ordered) + 1) // 2
    return ordered[:middle], ordered[middle:]


def _shared(runs: Mapping[str, Scores], items: Collection[str] | None) -> list[str]:
    """Return the items that every run has a score for, sorted."""
    for name in runs:
        known(name)
    sets = [set(scores) for scores in runs.values()]
    if items is not None:
        sets.append(set(items))
    return sorted(set.intersection(*sets)) if sets else []


def _discordant(first: Scores, second: Scores, items: Sequence[str]) -> tuple[int, int]:
    """Return (gained, lost): on how many items the second scores higher, and lower."""
    gained = sum(second[item] > first[item] for item in items)
    lost = sum(second[item] < first[item] for item in items)
    return gained, lost
