"""The few frozen types that flow through every layer; nothing heavy is imported here."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Meta = Mapping[str, Any]


class StopReason(enum.StrEnum):
    """Why a generation ended."""

    STOP_TOKEN = "stop_token"
    """The model wrote one of its end-of-turn or end-of-text tokens."""
    STOP_STRING = "stop_string"
    """The text reached a stop string; the string itself is cut off."""
    LENGTH = "length"
    """The token limit was reached first."""
    CANCELLED = "cancelled"
    """The caller gave up on it."""
    SCORED = "scored"
    """Nothing was generated: given options were scored by their likelihood."""
    FILTERED = "filtered"
    """A server's content filter cut it off."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text with one speaker and one loss weight.

    ``role`` is ``system``, ``user``, ``assistant`` or ``tool``; ``None`` marks plain text that no
    chat template touches. ``weight`` multiplies the loss of each of its tokens: 0 is context.
    ``extra`` carries what a template may want besides (``tool_calls``, ``name``, …).
    """

    role: str | None
    text: str
    weight: float = 0.0
    extra: Meta = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from, so that every message about it can name the place."""

    source: str
    """A file path, a data set name, or the log of attempts."""
    line: int | None = None
    """1-based line (text files) or row (columnar files)."""
    item: str | None = None
    """Problem id and attempt index, when the row was sampled."""

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return place if self.item is None else f"{place} ({self.item})"


@dataclass(frozen=True, slots=True)
class Example:
    """One training row before tokenisation: a conversation or a plain text."""

    segments: tuple[Segment, ...]
    origin: Origin
    meta: Meta = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised training row.

    ``weights[i]`` is the loss weight of predicting ``ids[i]`` from the tokens before it; both have
    the same length and ``weights[0]`` is 0. The one shift is made in ``train.losses``.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    origin: Origin

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.weights):
            raise ValueError(f"{len(self.ids)} ids but {len(self.weights)} weights ({self.origin})")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing computed in two ways: how far apart they came out, and how far they may be."""

    name: str
    compared: str
    difference: float | None
    """None where the check could not be made; ``note`` says why."""
    limit: float
    note: str = ""

    @property
    def holds(self) -> bool:
        """Return whether it holds, as far as it could be checked."""
        return self.difference is None or self.difference <= self.limit


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with the answer it is graded against."""

    id: str
    """Stable: the same question has the same id on every machine."""
    task: str
    prompt: tuple[Segment, ...]
    """What the model is asked, without worked examples; every weight is 0."""
    reference: str
    """The gold answer as text."""
    meta: Meta = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader says of one attempt.

    ``score`` lies in [0, 1]; ``None`` means that the grader itself failed: ungraded is not wrong.
    ``answer`` is the extracted answer, ``None`` when nothing parsed (which is wrong, score 0).
    """

    score: float | None
    answer: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One generation for one problem: the unit that evaluation, sampling and selection share."""

    problem_id: str
    index: int
    """Which of the k attempts at this problem, from 0."""
    seed: int
    text: str
    tokens: tuple[int, ...]
    stop: StopReason
    verdict: Verdict | None = None
    hinted: bool = False
    """Made after the gold answer was told; in no score, and never in pass@k."""
    logprob: float | None = None
    """Summed over its tokens, in nats, under the model itself; None where nobody asked for it."""

    @property
    def verified(self) -> bool:
        """Whether its verdict is a full score and the text came to its own end."""
        full = self.verdict is not None and self.verdict.score == 1.0
        return full and self.stop not in (StopReason.LENGTH, StopReason.FILTERED)
