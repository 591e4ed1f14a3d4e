"""How far a judge agrees with a person's labels: accuracy, Cohen's kappa, confusion table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.readers import read_rows
from tunesmith.errors import DataError
from tunesmith.evaluate.judge_prompts import HIGHEST, LOWEST, TIE
from tunesmith.evaluate.statistics import Interval, wilson

WINNERS = ("a", TIE, "b")
RATINGS = tuple(str(number) for number in range(int(LOWEST), int(HIGHEST) + 1))


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against labels, on the items that have both."""

    n: int
    unjudged: int
    """Labels of items that the judge gave no verdict on."""
    unknown: int
    """Labels of items that are in no set."""
    accuracy: float
    accuracy_interval: Interval
    """95%, Wilson."""
    always: float
    """What always saying the most frequent label would have brought."""
    kappa: float | None
    """None where chance alone agrees fully."""
    kappa_kind: str
    confusion: Mapping[str, Mapping[str, int]]
    """Label → what the judge said → how often."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)

    def sentence(self) -> str:
        """Say in words how far both agree."""
        ends = self.accuracy_interval
        kappa = "no kappa" if self.kappa is None else f"{self.kappa_kind} {self.kappa:.2f}"
        return (
            f"The judge agrees with {100 * self.accuracy:.1f}% of {self.n} labels (95% interval "
            f"{100 * ends.low:.1f} to {100 * ends.high:.1f}; {kappa}); always the most frequent "
            f"label would with {100 * self.always:.1f}%."
        )


def read_labels(path: str, *, rating: bool) -> dict[str, str]:
    """Return the label of each item: a, b or tie, or the nearest whole rating from 1 to 10.

    ``DataError`` names a row without ``id``, with another label, or an id that has two.
    """
    field = "score" if rating else "winner"
    expected = f"id and {field}: " + ("a number from 1 to 10" if rating else "a, b or tie")
    found: dict[str, str] = {}
    for row in read_rows(path):
        name, said = row.fields.get("id"), row.fields.get(field)
        label = _rating(said) if rating else _winner(said)
        if name is None or isinstance(name, bool | list | dict) or label is None:
            raise DataError(f"{row.origin}: no label ({field} is {said!r}).", expected=expected)
        if found.setdefault(str(name), label) != label:
            raise DataError(
                f"{row.origin}: {str(name)!r} has two different labels.", expected="one for each id"
            )
    return found


def _winner(said: Any) -> str | None:
    label = said.strip().lower() if isinstance(said, str) else None
    return label if label in WINNERS else None


def _rating(said: Any) -> str | None:
    if isinstance(said, bool):
        return None
    try:
        value = float(said)
    except (TypeError, ValueError):
        return None
    return nearest(value) if LOWEST <= value <= HIGHEST else None


def nearest(value: float) -> str:
    """Return a rating as the nearest whole one, halves upwards."""
    return str(int(value + 0.5))


def check_known(labels: Mapping[str, str], items: Collection[str]) -> None:
    """Raise ``DataError`` where no label belongs to any of these items."""
    if not labels.keys() & set(items):
        some = f", such as {min(items)!r}" if items else ""
        raise DataError(
            f"None of the {len(labels)} labels belongs to an item that is judged.",
            expected=f"ids of problems as the stored attempts have them{some}",
        )


def agreement(
    labels: Mapping[str, str], said: Mapping[str, str | None], *, rating: bool
) -> Agreement:
    """Compare labels with what the judge said of each item (None: no verdict).

    Kappa is Cohen's (1960) for winners; for ratings, which are ordered, the one with quadratic
    weights (Cohen 1968). ``DataError`` where no item has both.
    """
    check_known(labels, said)
    known = {name: label for name, label in labels.items() if name in said}
    pairs = [(label, one) for name, label in known.items() if (one := said[name]) is not None]
    if not pairs:
        raise DataError(
            f"The judge gave no verdict on any of the {len(known)} items that have a label.",
            expected="an answer that ends in its verdict",
            hint="another judge, or a larger --max-new-tokens",
        )
    kinds = RATINGS if rating else WINNERS
    seen = [kind for kind in kinds if not rating or any(kind in pair for pair in pairs)]
    same = sum(one == other for one, other in pairs)
    table = Counter(pairs)
    return Agreement(
        n=len(pairs),
        unjudged=len(known) - len(pairs),
        unknown=len(labels) - len(known),
        accuracy=same / len(pairs),
        accuracy_interval=wilson(same, len(pairs)),
        always=max(Counter(label for label, _ in pairs).values()) / len(pairs),
        kappa=kappa(pairs, kinds, quadratic=rating),
        kappa_kind="quadratically weighted kappa" if rating else "Cohen's kappa",
        confusion={label: {one: table[label, one] for one in seen} for label in seen},
    )


def kappa(
    pairs: Sequence[tuple[str, str]], kinds: Sequence[str], *, quadratic: bool = False
) -> float | None:
    """Return ``1 − observed / expected`` disagreement of two raters; None where none is expected.

    Without weights every disagreement counts 1, so that it is ``(po − pe) / (1 − pe)`` (Cohen
    1960, Educational and Psychological Measurement 20:37); quadratic ones count the squared
    distance of the two kinds (Cohen 1968, Psychological Bulletin 70:213). The expected one is that
    of two raters with the same margins who know nothing of each other.
    """
    place = {kind: at for at, kind in enumerate(kinds)}

    def weight(one: str, other: str) -> int:
        return (place[one] - place[other]) ** 2 if quadratic else int(one != other)

    n = len(pairs)
    ours, theirs = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    expected = sum(
        weight(one, other) * ours[one] * theirs[other] for one in ours for other in theirs
    )
    observed = sum(weight(one, other) for one, other in pairs)
    return 1 - n * observed / expected if expected else None
