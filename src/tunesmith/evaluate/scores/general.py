"""What is measured of every task: losses of the held-out rows, and how long replies are."""

from __future__ import annotations

import math

from tunesmith.data.words import words
from tunesmith.evaluate.scores.base import Metric, Parts, Replies, Values


def loss(replies: Replies) -> Parts:
    """Loss of the row's trained tokens in nats, weighted: sum of weight · loss / sum of weights.

    Each token is predicted from those before it; the one shift is that of training.
    """
    found = (reply.loss for reply in replies)
    return [None if one is None else (one.loss, one.weight) for one in found]


def loss_per_byte(replies: Replies) -> Parts:
    """Sum of the losses in nats over the UTF-8 bytes that the trained tokens spell.

    Unlike a loss per token it can be compared between tokenizers.
    """
    found = (reply.loss for reply in replies)
    return [None if one is None else (one.loss, float(one.bytes)) for one in found]


def perplexity(replies: Replies) -> Parts:
    """exp of the loss per token."""
    return loss(replies)


def byte_perplexity(replies: Replies) -> Parts:
    """exp of the loss per byte."""
    return loss_per_byte(replies)


def token_accuracy(replies: Replies) -> Parts:
    """Share of the row's trained tokens that the model finds likeliest."""
    found = (reply.loss for reply in replies)
    return [None if one is None else (float(one.right), float(one.tokens)) for one in found]


def reply_tokens(replies: Replies) -> Values:
    """Tokens of a reply, thinking included; nothing where nobody counted them."""
    return [None if reply.tokens is None else float(reply.tokens) for reply in replies]


def length_ratio(replies: Replies) -> Parts:
    """Words of the replies over words of the references."""
    return [(float(len(words(r.text))), float(len(words(r.reference)))) for r in replies]


def _exp(nats: float) -> float:
    # Beyond, a number has no place for it; a table says as much with 1e+300.
    return math.exp(min(nats, 690.0))


GENERAL = (
    Metric("loss", "loss, nats a token", "lower", 0, math.inf, parts=loss, of_text=False),
    Metric("loss_per_byte", "loss, nats a byte", "lower", 0, math.inf, parts=loss_per_byte,
           of_text=False),
    Metric("perplexity", "perplexity, token", "lower", 1, math.inf, parts=perplexity,
           outer=_exp, of_text=False),
    Metric("byte_perplexity", "perplexity, byte", "lower", 1, math.inf, parts=byte_perplexity,
           outer=_exp, of_text=False),
    Metric("token_accuracy", "token accuracy", "higher", 0, 1, parts=token_accuracy,
           of_text=False),
    Metric("reply_tokens", "tokens of a reply", "neither", 0, math.inf, each=reply_tokens,
           of_text=False),
    Metric("length_ratio", "length / reference", "neither", 0, math.inf, parts=length_ratio),
)  # fmt: skip
