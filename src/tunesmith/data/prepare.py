"""From examples to tokenised rows: rendering under the token contract, and the held-out split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tunesmith.data.render import Renderer
from tunesmith.errors import ContractError
from tunesmith.types import Encoded, Example

PARTS = 20
"""Pieces that the held-out end of a single document is measured in, at most."""
NAMED = 5
"""Refused rows that a message names; all are counted."""


@dataclass(slots=True)
class Prepared:
    """Tokenised rows and what became of the examples."""

    rows: list[Encoded] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    """For each row the number of the example it came from."""
    refused: list[str] = field(default_factory=list)
    cut_turns: int = 0
    examples: int = 0

    @property
    def tokens(self) -> int:
        """Return all tokens."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """Return the tokens whose loss counts."""
        return sum(1 for row in self.rows for weight in row.weights if weight)

    def counts(self) -> dict[str, int]:
        """Return what the report shows."""
        return {
            "examples": self.examples,
            "rows": len(self.rows),
            "refused": len(self.refused),
            "turns cut from long chats": self.cut_turns,
            "tokens": self.tokens,
            "trained tokens": self.trained_tokens,
        }


def prepare(
    examples: Sequence[Example],
    renderer: Renderer,
    max_length: int,
    *,
    answers_only: bool = True,
    allow_refused: float = 0.0,
) -> Prepared:
    """Render every example and hold each row to the token contract.

    Raises ``ContractError`` when a row breaks it, or when more than ``allow_refused`` of the
    examples cannot be rendered (too long, or lost by the template).
    """
    prepared = Prepared(examples=len(examples))
    for number, example in enumerate(examples):
        rendered = renderer.encode(example, max_length, answers_only=answers_only)
        if rendered.refused:
            prepared.refused.append(f"{example.origin}: {rendered.refused}")
            continue
        prepared.cut_turns += rendered.cut_turns
        for row in rendered.rows:
            if answers_only:
                check_row(row, example, renderer)
            prepared.rows.append(row)
            prepared.documents.append(number)
    if len(prepared.refused) > allow_refused * len(examples):
        shown = "\n".join(f"  {reason}" for reason in prepared.refused[:NAMED])
        more = len(prepared.refused) - NAMED
        raise ContractError(
            f"{len(prepared.refused)} of {len(examples)} rows cannot be trained on:\n{shown}"
            + (f"\n  and {more} more" if more > 0 else ""),
            hint="a larger --max-length, or --allow-refused 0.05 to go on without them",
        )
    if not prepared.rows:
        raise ContractError("No row is left to train on.")
    return prepared


def check_row(row: Encoded, example: Example, renderer: Renderer) -> None:
    """Hold one row to the token contract; raises ``ContractError`` naming its place."""
    trained = [i for i, weight in zip(row.ids, row.weights, strict=True) if weight]
    if not trained:
        raise ContractError(f"{row.origin}: no token of the row is trained.")
    if example.segments[0].role is None:
        return
    if trained[-1] not in renderer.stop_ids:
        raise ContractError(
            f"{row.origin}: the last trained token does not end the turn, so it is never learnt."
        )
    bos = renderer.bos_id
    if bos is not None and (row.ids[0] != bos or row.ids[1:2] == (bos,)):
        raise ContractError(f"{row.origin}: the row does not begin with exactly one BOS token.")
    text = renderer.decode(trained)
    answers = [s.text for s in example.segments if s.role == "assistant" and s.weight]
    if any(_squeezed(answer) in _squeezed(text) for answer in answers):
        return
    raise ContractError(
        f"{row.origin}: the trained tokens do not spell an answer of the row: {text[:80]!r}."
    )


def split_holdout(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into (training, held-out); examples with the same prompt stay on one side.

    The side follows from a hash of seed and prompt, so another file order changes nothing. At
    least one example is held out if there are two with different prompts.
    """
    keyed = sorted({prompt_key(example) for example in examples}, key=lambda k: _rank(k, seed))
    wanted = min(max(1, round(share * len(keyed))), len(keyed) - 1) if share else 0
    held = set(keyed[:wanted])
    inside = [example for example in examples if prompt_key(example) not in held]
    outside = [example for example in examples if prompt_key(example) in held]
    return inside, outside


def split_document(document: Example, share: float) -> tuple[list[Example], list[Example]]:
    """Split one plain text into (its beginning, parts of its end), cut between paragraphs.

    The end is the held-out share; it comes in up to ``PARTS`` pieces of whole paragraphs, so that
    an interval has several items to draw from. Lines serve where there are no paragraphs; a text
    of one line stays whole.
    """
    text = document.segments[0].text
    breaks = [m.end() for m in re.finditer(r"\n[ \t]*\n\s*", text)] or [
        m.end() for m in re.finditer(r"\n", text)
    ]
    breaks = [at for at in breaks if at < len(text)]
    if not breaks or not share:
        return [document], []
    wanted = len(text) * (1 - share)
    begin = min(breaks, key=lambda at: abs(at - wanted))
    cuts, step = [begin], (len(text) - begin) / PARTS
    for at in breaks:
        if at - cuts[-1] >= step:
            cuts.append(at)
    ends = [*cuts[1:], len(text)]
    parts = [_piece(document, start, end) for start, end in zip(cuts, ends, strict=True)]
    return [_piece(document, 0, begin)], parts


def _piece(document: Example, start: int, end: int) -> Example:
    [segment] = document.segments
    line = (document.origin.line or 1) + segment.text.count("\n", 0, start)
    piece = replace(segment, text=segment.text[start:end])
    return replace(document, segments=(piece,), origin=replace(document.origin, line=line))


def prompt_key(example: Example) -> str:
    """Return what makes two examples one item: their context, spaces and case folded."""
    asked = [segment.text for segment in example.segments if segment.role != "assistant"]
    return _squeezed(" ".join(asked)).casefold()


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()


def _squeezed(text: str) -> str:
    return " ".join(text.split())
