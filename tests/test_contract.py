"""The guards of the token contract, each met by what it is there for."""

from __future__ import annotations

import dataclasses

import pytest

from tiny_models import CHATML, tiny_tokenizer
from tunesmith.data.prepare import check_row, prepare
from tunesmith.data.render import Rendered, Renderer
from tunesmith.errors import ContractError
from tunesmith.types import Encoded, Example, Origin, Segment

TURNS = (Segment("user", "How many?"), Segment("assistant", "three", 1.0))
EXAMPLE = Example(TURNS, Origin("chats.jsonl", 7))
SHOUTS = CHATML.replace("m['content']", "m['content'] | upper")


def test_a_template_that_rewrites_an_answer_of_the_prompt_is_refused() -> None:
    renderer = Renderer(tiny_tokenizer(SHOUTS))
    with pytest.raises(ContractError, match="changes the text of an assistant turn"):
        renderer.prompt_ids((*TURNS, Segment("user", "And you?")))


def test_the_stop_token_is_the_one_behind_the_answer_and_not_always_eos() -> None:
    tokenizer = tiny_tokenizer(eos="<|endoftext|>")
    assert tokenizer.eos_token == "<|endoftext|>"
    renderer = Renderer(tokenizer)
    [row] = renderer.encode(EXAMPLE, 200).rows
    assert renderer.decode_raw([row.ids[-1]]) == "<|im_end|>"
    assert row.weights[-1] == 1.0
    assert tokenizer.eos_token_id in renderer.stop_ids


def test_every_row_is_held_to_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(tiny_tokenizer())
    [row] = renderer.encode(EXAMPLE, 200).rows
    assert list(prepare([EXAMPLE], renderer, 200).rows) == [row]
    untrained = dataclasses.replace(row, weights=(0.0,) * len(row.ids))
    encode = lambda *_, **__: [Rendered((untrained,))]  # noqa: E731
    monkeypatch.setattr(renderer, "encode_all", encode)
    with pytest.raises(ContractError, match=r"chats\.jsonl:7: no token of the row is trained"):
        prepare([EXAMPLE], renderer, 200)


def test_a_row_begins_with_exactly_one_bos() -> None:
    renderer = Renderer(tiny_tokenizer("{{ bos_token }}" + CHATML))
    renderer._wants_bos = True
    [row] = renderer.encode(EXAMPLE, 200).rows
    check_row(row, EXAMPLE, renderer)
    bos = renderer.bos_id
    assert bos is not None
    for ids in (row.ids[1:], (bos, *row.ids)):
        weights = (0.0,) * (len(ids) - len(row.weights)) + row.weights[-len(ids) :]
        with pytest.raises(ContractError, match="exactly one BOS"):
            check_row(Encoded(ids, weights, row.origin), EXAMPLE, renderer)
