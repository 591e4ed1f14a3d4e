"""Metrics of answers from documents: the answer, the retriever, quotes, abstention.

What they look at besides the text stands in the stored question: the documents that were shown,
which of them hold the answer (``hits``), and whether the prompt asked to say so where none does.
A hit is the oracle, a near duplicate of it, or a passage of its document with an answer's words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tunesmith.data.raft.answers import abstains, cited, quotes, short_answer, stands_in
from tunesmith.evaluate.scores.base import Metric, Parts, Replies, Reply, Values
from tunesmith.tasks.raft import best_f1, golds_of, is_exact, phrases_of


def _of_each(value: Callable[[Reply], float | bool | None]) -> Callable[[Replies], Values]:
    """Return the function of a whole set, with the formula that stands in the docstring."""

    def each(replies: Replies) -> Values:
        found = (value(reply) for reply in replies)
        return [None if one is None else float(one) for one in found]

    each.__doc__ = value.__doc__
    return each


def _documents(reply: Reply) -> list[str]:
    return [str(text) for text in reply.meta.get("documents", ())]


def _hits(reply: Reply) -> list[int]:
    return [int(number) for number in reply.meta.get("hits", ())]


def _asked_to_abstain(reply: Reply) -> bool:
    return bool(reply.meta.get("strict"))


def _abstains(reply: Reply) -> bool:
    return abstains(reply.text, phrases_of(reply.meta))


def answer_em(reply: Reply) -> bool:
    """1 where the short answer equals a right one under SQuAD's normalisation, else 0.

    The largest over all right answers. An abstention is never right here.
    """
    golds = golds_of(reply.meta)
    return is_exact(reply.text, golds)


def answer_f1(reply: Reply) -> float:
    """F1 of the short answer's words with a right one's (Rajpurkar et al. 2016), the largest."""
    golds = golds_of(reply.meta)
    return 1.0 if is_exact(reply.text, golds) else best_f1(short_answer(reply.text, golds), golds)


def right_or_abstains(reply: Reply) -> bool | None:
    """1 for the right answer where a shown document holds it, and for abstaining where none does.

    SQuAD 2.0's rule (Rajpurkar et al. 2018). Prompts that do not ask to abstain are out.
    """
    if not _asked_to_abstain(reply):
        return None
    return answer_em(reply) if _hits(reply) else _abstains(reply)


def recall_at_k(reply: Reply) -> bool | None:
    """1 where one of the k passages that the retriever found is a hit, else 0."""
    return bool(_hits(reply)) if _retrieved(reply) else None


def reciprocal_rank(reply: Reply) -> float | None:
    """1 / rank of the first hit among the first 50 passages of the retriever; 0 without one."""
    rank = reply.meta.get("rank")
    return (1 / int(rank) if rank else 0.0) if _retrieved(reply) else None


def quoting(reply: Reply) -> bool | None:
    """1 for an answer with a quote between the marks, else 0; without documents it is out."""
    return bool(quotes(reply.text)) if _documents(reply) else None


def quote_validity(reply: Reply) -> float | None:
    """Share of an answer's quotes that stand in a shown document letter for letter.

    White space is folded; an empty or unclosed quote is none of any. Answers without quotes, and
    without documents, are out.
    """
    found, documents = quotes(reply.text), _documents(reply)
    if not found or not documents:
        return None
    return sum(any(stands_in(one, text) for text in documents) for one in found) / len(found)


def cites_oracle(reply: Reply) -> bool | None:
    """1 where the first document that an answer names, or else quotes, holds the answer, else 0.

    Answers that were shown no such document are out.
    """
    hits = _hits(reply)
    return (cited(reply.text, _documents(reply)) in hits) if hits else None


def abstaining(reply: Reply) -> bool | None:
    """1 for an answer that says that the documents do not tell, else 0."""
    return _abstains(reply) if _asked_to_abstain(reply) else None


def abstention_precision(reply: Reply) -> bool | None:
    """Of the answers that abstain, 1 where no shown document holds the answer, else 0."""
    return not _hits(reply) if _asked_to_abstain(reply) and _abstains(reply) else None


def abstention_recall(reply: Reply) -> bool | None:
    """Of the questions whose answer no shown document holds, 1 where the model abstains, else 0."""
    return _abstains(reply) if _asked_to_abstain(reply) and not _hits(reply) else None


def answer_loss(replies: Replies) -> Parts:
    """Loss of the right answer behind its mark in nats, over its UTF-8 bytes.

    Nothing is generated for it, so it also tells models apart that never write the answer. A
    reasoning is not in front of it.
    """
    return [None if one.loss is None else (one.loss.loss, one.loss.bytes) for one in replies]


def _retrieved(reply: Reply) -> bool:
    return str(reply.meta.get("context", "")).startswith("retrieved")


def _metric(name: str, title: str, value: Callable[[Reply], Any], *, paired: bool = True) -> Metric:
    better: Any = "neither" if value in (quoting, abstaining) else "higher"
    return Metric(
        name, title, better, 0, 1, each=_of_each(value), paired=paired, of_text=value in GOLD
    )


GOLD = (answer_em, answer_f1)
"""Those that the right answers themselves can be measured by."""
RAG = (
    _metric("answer_em", "exact match", answer_em),
    _metric("answer_f1", "F1", answer_f1),
    _metric("right_or_abstains", "right or abstains", right_or_abstains),
    _metric("recall_at_k", "recall@k", recall_at_k, paired=False),
    _metric("reciprocal_rank", "MRR", reciprocal_rank, paired=False),
    _metric("quoting", "quotes", quoting, paired=False),
    _metric("quote_validity", "quote validity", quote_validity),
    _metric("cites_oracle", "cites the oracle", cites_oracle),
    _metric("abstaining", "abstains", abstaining, paired=False),
    _metric("abstention_precision", "abstention precision", abstention_precision),
    _metric("abstention_recall", "abstention recall", abstention_recall),
    Metric(
        "answer_loss", "loss of the answer", "lower", 0, math.inf, parts=answer_loss, of_text=False
    ),
)
