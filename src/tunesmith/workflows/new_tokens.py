"""A run with new tokens: mined or taken up again, and measured against the base by bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.prepare import Prepared
from tunesmith.errors import CheckpointError, UsageError
from tunesmith.rundir import RunDir, write_json
from tunesmith.workflows import console
from tunesmith.workflows.rows import Data

if TYPE_CHECKING:
    from tunesmith.data.new_tokens import NewTokens
    from tunesmith.data.render import Renderer
    from tunesmith.evaluate.losses import RowLoss
    from tunesmith.models.load import LoadedModel
    from tunesmith.types import Example

MINED = 50_000_000
"""Characters that tokens are looked for in; of longer texts every second, third, … row is taken."""
SHOWN = 6


@dataclass(slots=True)
class Vocabulary:
    """A run's new tokens, and its base as it was before them."""

    tokens: NewTokens
    tokenizer: Any
    """The base's own, as is ``renderer``."""
    renderer: Renderer
    sentence: str
    before: Prepared = field(default_factory=Prepared)
    """The held-out rows in the base's tokens, as far as both sides score the same bytes."""
    after: Prepared = field(default_factory=Prepared)
    """The same in the new tokens."""


def check_new_tokens(config: FineTuningConfig) -> None:
    """Refuse new tokens where their rows would not be trained, or not be saved."""
    if not config.new_tokens:
        return
    if config.lora:
        raise UsageError(
            "--new-tokens cannot be given with --lora: an adapter has no place for rows that its "
            "base lacks, so it would not load on it.",
            hint="leave --lora out, or train new tokens first and an adapter on the result",
        )
    if config.freeze_ratio:
        raise UsageError(
            "--new-tokens cannot be given with --freeze-ratio: the embeddings would be frozen, and "
            "the new rows with them.",
            hint="leave --freeze-ratio out",
        )


def grow(
    config: FineTuningConfig, data: Data, loaded: LoadedModel, renderer: Renderer, run: RunDir
) -> tuple[Vocabulary, Renderer]:
    """Give ``loaded`` a longer tokenizer: with the run's tokens on resume, else with mined ones.

    Returns what there is to know of them, and the renderer for the longer tokenizer. The rows of
    the model come when it is made trainable, so that the base can be measured first.
    """
    from tunesmith.data.new_tokens import check_template, extended, mine, tokens_and_bytes
    from tunesmith.data.render import Renderer

    if config.resume is not None:
        new = _stored(run, config.new_tokens)
    else:
        new = mine(renderer, loaded.tokenizer, _texts(data.train), config.new_tokens)
    if not new.merges:
        raise UsageError(
            "No two neighbouring tokens of the training texts are frequent enough for a new one.",
            hint="more text, or leave --new-tokens out",
        )
    if len(new) < config.new_tokens:
        console.warn(f"only {len(new)} new tokens were found; all other pairs are too rare")
    longer = extended(loaded.tokenizer, new)
    after = Renderer(longer, renderer.template, loaded.eos_ids)
    check_template(renderer, after, loaded.tokenizer, longer)
    texts = list(_texts(data.held_out)) or list(islice(_texts(data.train), 1000))
    (old, size), (fresh, _) = (tokens_and_bytes(t, texts) for t in (loaded.tokenizer, longer))
    place = "held-out" if data.held_out else "training"
    sentence = (
        f"{len(new)} new tokens (merges of BPE, behind those of the base): {place} text has "
        f"{old / size:.4f} tokens a byte without them and {fresh / size:.4f} with them, "
        f"{1 - fresh / old:.1%} fewer."
    )
    shown = ", ".join(repr(longer.decode([new.first + at])) for at in range(min(SHOWN, len(new))))
    console.say(f"{sentence} The first: {shown}.")
    found = Vocabulary(new, loaded.tokenizer, renderer, sentence)
    loaded.tokenizer, loaded.new_tokens = longer, new
    return found, after


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    size = sum(len(segment.text) for example in examples for segment in example.segments)
    for example in islice(examples, 0, None, 1 + size // MINED):
        yield from (segment.text for segment in example.segments)


def store(run: RunDir, new: NewTokens | None) -> None:
    """Keep a run's new tokens in its folder, for the resume."""
    if new is not None:
        write_json(run.new_tokens, new.to_json())


def _stored(run: RunDir, asked: int) -> NewTokens:
    from tunesmith.data.new_tokens import NewTokens

    try:
        new = NewTokens.from_json(json.loads(run.new_tokens.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{run.path} has no readable {run.new_tokens.name}, so its tokens are not known.",
            hint="the same command with --overwrite instead of --resume",
        ) from None
    if len(new) > asked:
        raise CheckpointError(
            f"{run.path} was begun with {len(new)} new tokens, not with {asked}.",
            hint="the same --new-tokens as before",
        )
    return new


def check_resumed(stored: Any, new: NewTokens | None) -> None:
    """Raise ``CheckpointError`` if a checkpoint was made with other new tokens than this run's."""
    if stored != (None if new is None else new.to_json()):
        raise CheckpointError(
            "The checkpoint was made with other new tokens than those of the run's folder.",
            hint="the same command with --overwrite instead of --resume",
        )


def compare_on(found: Vocabulary, before: Prepared, held: Prepared, loaded: LoadedModel) -> None:
    """Settle on which held-out rows the base and the tuned model are compared, each in its own."""
    from tunesmith.data.new_tokens import token_bytes
    from tunesmith.evaluate.aligned import aligned

    if not held.rows:
        return
    spells = (token_bytes(found.tokenizer), token_bytes(loaded.tokenizer))
    found.before, found.after = aligned(before, held, spells)
    lost = len({*held.documents, *before.documents}) - found.after.examples
    if lost:
        console.warn(
            f"{lost} held-out examples are left out of the comparison: base and tuned tokenizer do "
            "not score the same text of them"
        )


def losses(loaded: LoadedModel, held: Prepared, tokenizer: Any) -> list[RowLoss]:
    """Return the loss in nats and the bytes of each held-out document, in a tokenizer's tokens."""
    from tunesmith.data.new_tokens import token_bytes
    from tunesmith.evaluate.aligned import document_losses
    from tunesmith.train.losses import HELD_OUT_CAPACITY, row_losses

    if not held.rows:
        return []
    sums = row_losses(loaded.model, held.rows, loaded.device, HELD_OUT_CAPACITY)
    return document_losses(sums, held, token_bytes(tokenizer))
