"""The token contract: what a training row must hold, for every kind of template."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import CHATML, tiny_tokenizer
from tunesmith.data.prepare import check_row, prepare, split_document, split_holdout
from tunesmith.data.render import Renderer
from tunesmith.errors import ContractError, UsageError
from tunesmith.types import Encoded, Example, Origin, Segment

CHAT = (
    Segment("system", "Be brief."),
    Segment("user", "How many?"),
    Segment("assistant", "Three of them.", 1.0),
    Segment("user", "And you?"),
    Segment("assistant", "Four.", 1.0),
)
# Strips what was thought in earlier turns, as reasoning models' templates do.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BOS_CHATML = "{{ bos_token }}" + CHATML


def example(*segments: Segment) -> Example:
    return Example(segments or CHAT, Origin("chats.jsonl", 7))


def trained_text(renderer: Renderer, row: Encoded) -> str:
    return renderer.decode_raw([i for i, w in zip(row.ids, row.weights, strict=True) if w])


@pytest.mark.parametrize("template", ["auto", "plain", "instruction", BOS_CHATML])
def test_prompt_tokens_begin_the_training_row(template: str) -> None:
    renderer = Renderer(tiny_tokenizer(), template)
    [row] = renderer.encode(example(), 200).rows
    for turn in (2, 4):
        prompt = renderer.prompt_ids(CHAT[:turn])
        assert row.ids[: len(prompt)] == prompt
        assert row.weights[len(prompt)] == 1.0
    assert trained_text(renderer, row) == "Three of them.<|im_end|>Four.<|im_end|>"
    assert row.ids[-1] == renderer.stop_id


def test_a_template_that_rewrites_earlier_turns_gives_a_row_a_turn() -> None:
    renderer = Renderer(tiny_tokenizer(THINKING))
    turns = (
        Segment("user", "a?"),
        Segment("assistant", "<think>hm</think>A", 1.0),
        Segment("user", "b?"),
        Segment("assistant", "<think>so</think>B", 1.0),
    )
    rows = renderer.encode(example(*turns), 200).rows
    assert [trained_text(renderer, row) for row in rows] == [
        "<think>hm</think>A<|im_end|>",
        "<think>so</think>B<|im_end|>",
    ]
    prompt = renderer.prompt_ids(turns[:3])
    assert rows[1].ids[: len(prompt)] == prompt


def test_pad_equal_to_eos_leaves_the_stop_token_trained() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    [row] = Renderer(tokenizer).encode(example(), 200).rows
    assert row.ids[-1] == tokenizer.eos_token_id
    assert row.weights[-1] == 1.0


def test_a_template_without_terminator_gets_one() -> None:
    bare = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    renderer = Renderer(tiny_tokenizer(bare))
    [row] = renderer.encode(example(), 200).rows
    assert trained_text(renderer, row) == "Three of them.<|im_end|>Four.<|im_end|>"
    prompt = renderer.prompt_ids(CHAT[:4])
    assert row.ids[: len(prompt)] == prompt


def test_a_template_that_loses_a_message_refuses_the_row() -> None:
    deaf = CHATML.replace("m['content']", "('' if m['role'] == 'system' else m['content'])")
    rendered = Renderer(tiny_tokenizer(deaf)).encode(example(), 200)
    assert rendered.rows == ()
    assert rendered.refused == "the template loses turn 1 (system)"


def test_a_template_that_raises_gives_its_reason() -> None:
    strict = "{{ raise_exception('no system role here') }}"
    with pytest.raises(ContractError, match="no system role here"):
        Renderer(tiny_tokenizer(strict))


def test_all_tokens_are_trained_when_asked() -> None:
    renderer = Renderer(tiny_tokenizer())
    [row] = renderer.encode(example(), 200, answers_only=False).rows
    assert set(row.weights[1:]) == {1.0}
    assert row.weights[0] == 0.0


def test_long_chats_lose_their_oldest_turns_and_never_the_answer() -> None:
    renderer = Renderer(tiny_tokenizer())
    whole = len(renderer.encode(example(), 200).rows[0].ids)
    rendered = renderer.encode(example(), whole - 1)
    assert rendered.cut_turns == 2
    text = renderer.decode_raw(rendered.rows[0].ids)
    assert "Be brief." in text
    assert "How many?" not in text
    assert trained_text(renderer, rendered.rows[0]) == "Four.<|im_end|>"
    assert renderer.encode(example(), 10).refused is not None


def test_exactly_one_bos() -> None:
    renderer = Renderer(tiny_tokenizer(BOS_CHATML))
    [row] = renderer.encode(example(), 200).rows
    assert row.ids[0] == 0
    assert row.ids[1] != 0
    with pytest.raises(ContractError, match="both add a BOS"):
        Renderer(tiny_tokenizer("{{ bos_token }}" + BOS_CHATML)).encode(example(), 200)


@given(st.text(max_size=80), st.integers(2, 20))
def test_windows_train_each_token_once(text: str, limit: int) -> None:
    renderer = Renderer(tiny_tokenizer())
    rows = renderer.encode(Example((Segment(None, text, 1.0),), Origin("t")), limit).rows
    spelled = [rows[0].ids[0]] + [i for row in rows for i in row.ids[1:]]
    assert renderer.decode(spelled[:-1]) == text or len(spelled) == 1
    assert all(len(row.ids) <= limit for row in rows)
    assert sum(1 for row in rows for weight in row.weights if weight) == len(spelled) - 1


def test_contract_is_checked_row_by_row() -> None:
    renderer = Renderer(tiny_tokenizer())
    [row] = renderer.encode(example(), 200).rows
    check_row(row, example(), renderer)
    masked = dataclasses.replace(row, weights=(0.0,) * len(row.ids))
    with pytest.raises(ContractError, match=r"chats.jsonl:7: no token"):
        check_row(masked, example(), renderer)
    endless = Encoded(row.ids[:-1], row.weights[:-1], row.origin)
    with pytest.raises(ContractError, match="does not end the turn"):
        check_row(endless, example(), renderer)
    prompt_only = Encoded(row.ids, (*(1.0 - w for w in row.weights[:-1]), 1.0), row.origin)
    with pytest.raises(ContractError, match="do not spell"):
        check_row(prompt_only, example(), renderer)


def test_refused_rows_are_counted_and_named() -> None:
    renderer = Renderer(tiny_tokenizer())
    short = example(Segment("user", "a?"), Segment("assistant", "b", 1.0))
    with pytest.raises(ContractError, match=r"1 of 2 rows(.|\n)*chats.jsonl:7"):
        prepare([short, example()], renderer, 24)
    prepared = prepare([short, example()], renderer, 24, allow_refused=0.5)
    assert len(prepared.rows) == 1
    assert prepared.counts()["refused"] == 1


@given(st.integers(0, 5), st.floats(0.05, 0.9))
def test_holdout_keeps_equal_prompts_together(seed: int, share: float) -> None:
    rows = [
        example(Segment("user", f"q{n % 10}"), Segment("assistant", str(n), 1.0)) for n in range(30)
    ]
    inside, outside = split_holdout(rows, share, seed)
    assert len(inside) + len(outside) == 30
    assert outside
    asked = [{e.segments[0].text for e in side} for side in (inside, outside)]
    assert not asked[0] & asked[1]
    assert split_holdout(rows[::-1], share, seed)[1] == outside[::-1]


def test_unknown_template_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        Renderer(tiny_tokenizer(), "chatlm")


@pytest.mark.parametrize(
    "name",
    [
        "chatml",
        "gemma",
        "llama3",
        "llama3_2",
        "mistral_v1",
        "phi3",
        "qwen2_5",
        "qwen2_5_training",
    ],
)
def test_real_templates_with_a_real_tokenizer(shared, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "tokenizers" / "smollm2")
    template = shared / "data" / "chat_templates" / f"{name}.jinja"
    renderer = Renderer(tokenizer, str(template))
    chat = CHAT[1:]
    rendered = renderer.encode(example(*chat), 500)
    assert rendered.refused is None
    for row in rendered.rows:
        check_row(row, example(*chat), renderer)
    last = rendered.rows[-1]
    prompt = renderer.prompt_ids(chat[:3])
    assert last.ids[: len(prompt)] == prompt


def test_a_tokenizer_that_puts_a_space_in_front(shared) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    renderer = Renderer(tokenizer)
    [row] = renderer.encode(example(), 500).rows
    text = renderer.decode_raw(row.ids)
    assert "Assistant:\nThree of them.</s>" in text
    assert row.ids[: len(renderer.prompt_ids(CHAT[:4]))] == renderer.prompt_ids(CHAT[:4])


@given(
    st.lists(st.text("ab \n", min_size=1, max_size=30), min_size=1, max_size=40),
    st.sampled_from(["\n\n", "\n", "\n \n"]),
    st.floats(0.05, 0.5),
)
def test_a_single_document_is_cut_between_paragraphs_and_nothing_is_lost(parts, between, share):
    text = between.join(parts)
    document = Example((Segment(None, text, 1.0),), Origin("book.txt", 3))
    [inside], outside = split_document(document, share)
    assert inside.segments[0].text + "".join(p.segments[0].text for p in outside) == text
    for part in outside:
        line = text.split("\n")[part.origin.line - 3]
        assert part.segments[0].text
        assert line.endswith(part.segments[0].text.split("\n")[0])


def test_the_held_out_end_of_a_document_has_its_share_and_its_line_numbers():
    lines = [f"Paragraph {n}." for n in range(100)]
    document = Example((Segment(None, "\n\n".join(lines), 1.0),), Origin("book.txt", 1))
    [_], outside = split_document(document, 0.1)
    assert len(outside) == 10
    assert outside[0].segments[0].text.startswith("Paragraph 90.")
    assert [part.origin.line for part in outside] == [2 * n + 1 for n in range(90, 100)]
