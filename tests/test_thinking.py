"""Thinking: what is trained of it, what is graded behind it, and how much of it there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tunesmith
from tiny_models import CHATML, tiny_model, tiny_tokenizer
from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer
from tunesmith.data.thinking import MASKED, ThinkingMode, is_thought, spans, without
from tunesmith.errors import DataError
from tunesmith.evaluate.thinking import measure_thinking
from tunesmith.grading.thinking import split_thinking
from tunesmith.types import Attempt, Example, Origin, Segment, StopReason

TEXT = "<think>\nTwo and two, hm – é.\n</think>\n\nThe answer is 4."


@pytest.mark.parametrize(
    ("text", "rest", "blocks"),
    [
        (TEXT, "The answer is 4.", 1),
        ("none at all ", "none at all ", 0),
        ("open before</think> then", "then", 1),
        ("<think>a</think> b <think>c</think> d", "b d", 2),
        ("b <think>never closed", "b", 1),
        ("<think></think>", "", 1),
        ("a</think>b</think>c", "b</think>c", 1),
    ],
)
def test_blocks_are_found_and_taken_out(text, rest, blocks):
    assert without(text) == rest
    assert len(spans(text)) == blocks


def example(text=TEXT, **extra):
    turns = (Segment("user", "2+2?"), Segment("assistant", text, 1.0, extra))
    return Example(turns, Origin("rows.jsonl", 7))


def trained_text(renderer, one, **settings):
    [row] = prepare([one], renderer, 512, **settings).rows
    kept = [i for i, weight in zip(row.ids, row.weights, strict=True) if weight]
    return renderer.decode(kept), row


def test_the_three_modes():
    renderer = Renderer(tiny_tokenizer())
    keep, strip, mask = (ThinkingMode(mode) for mode in ("keep", "strip", "mask"))
    whole, first = trained_text(renderer, keep(example()))
    assert whole == TEXT
    assert trained_text(renderer, strip(example()))[0] == "The answer is 4."
    rest, last = trained_text(renderer, mask(example()))
    assert rest.strip() == "The answer is 4."
    assert last.ids == first.ids
    assert "<think>" not in renderer.decode(trained_text(renderer, strip(example()))[1].ids)
    _, every = trained_text(renderer, mask(example()), answers_only=False)
    assert sum(not weight for weight in every.weights) > 20
    assert [m.thoughtful for m in (keep, strip, mask)] == [1, 2, 2]
    assert mask.told() == ("Thinking: 2 of 2 answers have a <think> block, kept, but not trained.")
    assert ThinkingMode("strip").told() == ""


def test_a_template_never_sees_the_mark():
    counting = CHATML.replace("m['content'] +", "m['content'] + (m | length | string) +")
    renderer = Renderer(tiny_tokenizer(counting))
    plain, masked = (
        renderer.encode(one, 512).rows[0] for one in (example(), ThinkingMode("mask")(example()))
    )
    assert plain.ids == masked.ids
    assert "is 4.2" in renderer.decode(plain.ids)


def test_a_block_in_the_middle_is_masked_alone():
    renderer = Renderer(tiny_tokenizer())
    text = "First. <think>hm</think> Then é 5."
    rest, _ = trained_text(renderer, ThinkingMode("mask")(example(text)))
    assert rest == "First.  Then é 5."


def test_tokens_that_hold_any_thinking_are_thought():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("<think>a</think>b")["input_ids"]
    thought = is_thought(ids, tokenizer.decode)
    assert thought == [True] * (len(ids) - 1) + [False]
    assert not any(is_thought(tokenizer("the cat")["input_ids"], tokenizer.decode))


def test_an_answer_that_is_nothing_but_thinking_is_named():
    for mode in ("strip", "mask"):
        with pytest.raises(DataError, match=r"rows\.jsonl:7: an answer is nothing but thinking"):
            ThinkingMode(mode)(example("<think>on and on"))
    counted = ThinkingMode("keep")
    assert counted(example("<think>on and on")).segments[1].text == "<think>on and on"
    assert "1 never close it" in counted.told()
    assert MASKED not in counted(example()).segments[1].extra


def test_what_is_graded_stands_behind_the_last_block():
    assert split_thinking("<think>a</think> b").answer == "b"
    assert split_thinking("a</think>b").answer == "b"
    assert split_thinking("<think>a</think>b<think>c").answer is None
    assert split_thinking(" b ").answer == " b "


def attempt(text, tokenizer):
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Attempt("p", 0, 0, text, ids, StopReason.STOP_TOKEN)


def test_tokens_of_thinking_are_counted():
    tokenizer = tiny_tokenizer()
    texts = [TEXT, "<think>never", "5", "x</think>5"]
    tokens, unclosed = measure_thinking([attempt(t, tokenizer) for t in texts], tokenizer.decode)
    parts = [TEXT.partition("</think>")[0] + "</think>", "<think>never", "", "x</think>"]
    wanted = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)
    assert tokens == wanted / 4
    assert unclosed == 0.25
    assert measure_thinking([attempt("5", tokenizer)], tokenizer.decode) == (None, None)


def test_a_run_counts_thinking_in_its_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"},
                      {"role": "assistant", "content": f"{n}.", "reasoning_content": "Hm."}]}
        for n in range(12)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    done = tunesmith.train(
        model="base", dataset="rows.jsonl", max_steps=1, thinking="mask", report_to="none",
        eval_samples=0, num_workers=1,
    )  # fmt: skip
    assert "12 of 12 answers have a <think> block, kept, but not trained" in capsys.readouterr().err
    counts = json.loads((done.run / "manifest.json").read_text())["counts"]["training"]
    assert counts["answers with thinking, kept, but not trained (held-out ones too)"] == 12
