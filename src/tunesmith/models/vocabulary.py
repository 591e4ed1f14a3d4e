"""Rows of the embeddings, and of the head, for tokens that a model did not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def tables(model: Any) -> list[torch.nn.Parameter]:
    """Return what has a row, or a number, for each token; a tied table comes once."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    return list({id(table): table for table in found if table is not None}.values())


def add_rows(model: Any, first: int, pieces: Sequence[Sequence[int]]) -> int:
    """Give the tokens from ``first`` on rows of their own; return how many numbers that added.

    Each row is the mean of the rows of the old tokens that its token replaces, in embeddings and
    head alike; what was tied stays tied. Rows that lie there unused, as padding of the vocabulary,
    are taken before new ones are made.
    """
    before = sum(table.numel() for table in tables(model))
    needed = first + len(pieces)
    if needed > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng():
            model.resize_token_embeddings(needed, mean_resizing=False)
    with torch.no_grad():
        for table in tables(model):
            for at, ids in enumerate(pieces):
                table[first + at] = table[list(ids)].double().mean(0).to(table.dtype)
    return int(sum(table.numel() for table in tables(model)) - before)


@contextmanager
def old_rows(model: Any, first: int) -> Iterator[None]:
    """Take rows that ``add_rows`` adds in the block off again, and put unused ones back."""
    embeddings, head, config = (
        model.get_input_embeddings(),
        model.get_output_embeddings(),
        model.config.get_text_config(),
    )
    words, count = config.vocab_size, embeddings.num_embeddings
    # Not the parameter alone: more rows are put into the one that is there.
    kept = [(table, table.data, table.data[first:].clone()) for table in tables(model)]
    try:
        yield
    finally:
        for table, whole, unused in kept:
            whole[first:] = unused
            table.data = whole
        embeddings.num_embeddings = count
        model.set_input_embeddings(embeddings)
        model.set_output_embeddings(head)
        head.out_features = words
        config.vocab_size = model.vocab_size = words
