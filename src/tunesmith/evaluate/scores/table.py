"""Which task has which metrics, under the names that requirement 003 gives them.

To add a metric: a function in its family's module, a row there, its place here, and a row in the
table of ``tests/test_scores.py``, without which the tests fail.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.evaluate.scores import chat, code, instruct
from tunesmith.evaluate.scores.base import Metric
from tunesmith.evaluate.scores.domain import term_metrics
from tunesmith.evaluate.scores.general import GENERAL

Named = tuple[tuple[str, tuple[Metric, ...]], ...]
"""Names of requirement 003, each with what is measured under it here."""

COMPLETION = ("task completion rate", instruct.COMPLETION)
GENERAL_PURPOSE = ("general-purpose metrics", GENERAL)


def metrics_of(
    task: str, terms: Sequence[str] = (), *, chrf: bool = True, parsers: bool = True
) -> Named:
    """Return the metrics of a task; ``terms`` are those of a field.

    ``chrf`` and ``parsers`` say whether the libraries for it are installed.
    """
    quality = instruct.QUALITY if chrf else instruct.QUALITY[:1]
    families: dict[str, Named] = {
        "chat": (
            ("response diversity", chat.DIVERSITY),
            ("turn coherence", chat.COHERENCE),
            ("conversation flow", chat.FLOW),
            COMPLETION,
            ("response quality", quality),
        ),
        "code": (
            ("syntax validity", code.SYNTAX if parsers else ()),
            ("code completion accuracy", code.ACCURACY),
            ("pattern consistency", code.PATTERN),
        ),
        "instruct": (COMPLETION, ("response quality", (*instruct.EXACT, *quality))),
        "domain": (
            ("domain vocabulary", term_metrics(terms)),
            ("response quality", quality),
        ),
        "custom": (COMPLETION, ("response quality", (*instruct.EXACT, *quality))),
    }
    named = (*families[task], GENERAL_PURPOSE)
    return tuple((name, metrics) for name, metrics in named if metrics)
