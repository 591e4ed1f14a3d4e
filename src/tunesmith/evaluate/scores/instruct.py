"""Metrics of a response against the row's own: words in common, and whether it came to an end.

Constraints that can be checked (instruction adherence) are a metric of their own and get a row in
``table.py`` under that name.
"""

from __future__ import annotations

import importlib.util

from tunesmith.data.words import words
from tunesmith.evaluate.scores.base import Metric, Replies, Values
from tunesmith.grading import rouge
from tunesmith.grading.overlap import squad_f1, squad_normalised
from tunesmith.types import StopReason


def exact_match(replies: Replies) -> Values:
    """1 where reply and reference are equal under SQuAD's normalisation, else 0.

    Lower case, without punctuation, articles and doubled spaces (Rajpurkar et al. 2016).
    """
    return [
        float(squad_normalised(reply.text) == squad_normalised(reply.reference))
        for reply in replies
    ]


def token_f1(replies: Replies) -> Values:
    """F1 of the words in common under SQuAD's normalisation (Rajpurkar et al. 2016)."""
    return [squad_f1(reply.text, reply.reference) for reply in replies]


def rouge_l(replies: Replies) -> Values:
    """ROUGE-L: F1 of the longest common subsequence of words, 2·LCS / (m + n) (Lin 2004).

    The words are those of ``data.words``, so that scripts without spaces have some, too.
    """
    return [rouge.rouge_l(words(reply.text), words(reply.reference)) for reply in replies]


def chrf(replies: Replies) -> Values:
    """chrF2 of character n-grams, n 1 to 6, by sacrebleu, divided by 100 (Popović 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return [
        float(scorer.sentence_score(reply.text, [reply.reference]).score) / 100 for reply in replies
    ]


def has_chrf() -> bool:
    """Say whether the library for chrF is installed."""
    return importlib.util.find_spec("sacrebleu") is not None


def task_completion(replies: Replies) -> Values:
    """1 for a reply that ends by itself and holds something, else 0.

    Cut at the limit of tokens, filtered or empty, it is not complete.
    """
    own = (StopReason.STOP_TOKEN, StopReason.STOP_STRING)
    return [float(reply.stop in own and bool(reply.text.strip())) for reply in replies]


COMPLETION = (
    Metric("task_completion", "ended, not empty", "higher", 0, 1, each=task_completion),
)  # fmt: skip
EXACT = (
    Metric("exact_match", "exact match", "higher", 0, 1, each=exact_match, paired=True),
    Metric("token_f1", "token F1", "higher", 0, 1, each=token_f1, paired=True),
)
QUALITY = (
    Metric("rouge_l", "ROUGE-L", "higher", 0, 1, each=rouge_l, paired=True),
    Metric("chrf", "chrF", "higher", 0, 1, each=chrf, paired=True),
)
