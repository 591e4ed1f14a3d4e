"""Tokenising many examples at once gives what tokenising text by text gives, id for id."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slow_render import SlowRenderer
from test_render import BOS_CHATML, THINKING
from tiny_models import CHATML, tiny_tokenizer
from tunesmith.data import word_tokens as words
from tunesmith.data.render import Renderer
from tunesmith.data.templates import Template
from tunesmith.data.word_tokens import PATTERNS, TextTokens, cuts_at_spaces
from tunesmith.errors import ContractError
from tunesmith.types import Example, Origin, Segment

DEAF = CHATML.replace("m['content']", "('' if m['role'] == 'system' else m['content'])")
LOUD = CHATML.replace("m['content']", "(m['content'] | upper)")
TEMPLATES = [CHATML, BOS_CHATML, THINKING, DEAF, LOUD, "plain", "instruction"]
ODD = ["<think>a b</think> c", " ", "\n", "\t x  y", "<|im_end|>", "2 + 2 = 4", "é 語 ́", "don't"]
TEXTS = st.one_of(st.text(max_size=25), st.sampled_from(ODD), st.text(" ab\n<1é", max_size=12))


THOUGHT = Example(
    tuple(
        Segment(role, text, float(role == "assistant"))
        for role, text in [
            ("user", "a?"),
            ("assistant", "<think>b c</think>d"),
            ("user", "e?"),
            ("assistant", "<think>f</think>g h"),
        ]
    ),
    Origin("thought", 1),
)


@st.composite
def chats(draw: Any) -> Example:
    if draw(st.integers(0, 9)) == 0:
        return Example((Segment(None, draw(TEXTS), 1.0),), Origin("t", 1))
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "tool", "assistant"]), max_size=6))
    roles = [*(["system"] if draw(st.booleans()) else []), "user", *roles, "assistant"]
    segments = []
    for role in roles:
        weight = draw(st.sampled_from([1.0, 0.0, 0.5])) if role == "assistant" else 0.0
        extra = draw(st.sampled_from([{}, {}, {"name": "x"}, {"reasoning_content": "r s"}]))
        segments.append(Segment(role, draw(TEXTS), weight, extra))
    return Example(tuple(segments), Origin("c", 2))


def outcome(do: Any) -> Any:
    """Return what a call returns, or the sentence that it raises."""
    try:
        return do()
    except ContractError as failure:
        return failure.found


def assert_same(tokenizer: Any, renderer: Renderer, examples: list[Example], limit: int) -> None:
    slow = SlowRenderer(tokenizer, renderer)
    for answers_only in (True, False):
        fast = renderer.encode_all(examples, limit, answers_only=answers_only)
        for one, example in zip(fast, examples, strict=True):
            found = one.found if isinstance(one, ContractError) else one
            wanted = outcome(lambda e=example: slow.encode(e, limit, answers_only=answers_only))  # noqa: B023
            assert found == wanted
            alone = outcome(lambda e=example: renderer.encode(e, limit, answers_only=answers_only))  # noqa: B023
            assert alone == wanted
    for example in examples:
        messages = example.segments[:-1]
        if messages and all(s.role for s in messages):
            fast_prompt = outcome(lambda m=messages: renderer.prompt_ids(m))
            assert fast_prompt == outcome(lambda m=messages: slow.prompt_ids(m))


@pytest.mark.parametrize("template", TEMPLATES)
@given(examples=st.lists(chats(), min_size=1, max_size=5), limit=st.sampled_from([20, 60, 400]))
@settings(max_examples=25, deadline=None)
def test_batches_equal_the_slow_way(template: str, examples: list[Example], limit: int) -> None:
    tokenizer = tiny_tokenizer()
    assert_same(tokenizer, Renderer(tokenizer, template), [*examples, THOUGHT], limit)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_batches_equal_the_slow_way_on_real_rows(shared: Path, seed: int) -> None:
    from transformers import AutoTokenizer

    folder = shared / "data"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizers" / "smollm2")
    for path in sorted((folder / "chat_templates").glob("*.jinja")):
        renderer = Renderer(tokenizer, str(path))
        assert renderer._texts.by_word
        assert_same(tokenizer, renderer, real_rows(folder)[seed::40], 300)


def real_rows(folder: Path) -> list[Example]:
    """Return conversations with tools, of many turns, and single questions."""
    found = []
    names = {"human": "user", "gpt": "assistant", "function_call": "assistant"}
    for name in ("glaive_toolcall_en.json", "fastchat_dummy_conversation.json"):
        for row in json.loads((folder / "chat" / name).read_text(encoding="utf-8"))[:60]:
            turns = [(names.get(t["from"], "tool"), t["value"], {}) for t in row["conversations"]]
            found.append(turns)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None]}}}
    found.append([("user", "do it", {}), ("assistant", "so", {"tool_calls": [call]})])
    for line in (folder / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:60]:
        row = json.loads(line)
        found.append([("user", row["question"], {}), ("assistant", row["answer"], {})])
    return [
        Example(
            tuple(Segment(r, t, float(r == "assistant"), e) for r, t, e in turns), Origin("x", at)
        )
        for at, turns in enumerate(found)
    ]


def byte_level(pattern: str | None, **normal: Any) -> Any:
    """Return a byte-level tokenizer that cuts its texts by a pattern, trained on a few words."""
    backend = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, last])
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, last])
    backend.normalizer = normal.get("normalizer")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|x|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the cat sat on the mat", "  how many\n\n  are 12 345", "it's don't ... !!! a b c d"]
    # Runs of white space are tokens of their own, so a cut inside one shows.
    words += ["a \n", "a \n\n", "a\n\n\n", "a  ", "a\n ", " \t ", "a\r\n"] * 20
    backend.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")
    for token in normal.get("added", []):
        fast.add_tokens([token])
    return fast


CUTTERS = [byte_level(pattern) for pattern in [None, *sorted(PATTERNS)]]
CUTTERS += [byte_level(sorted(PATTERNS)[0], normalizer=normalizers.NFC())]
CUTTERS += [byte_level(None, added=["ab."])]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.text("ab1 \n\t'.́é\u180e\u2003\x1c\x85", max_size=30),
            st.sampled_from(
                [
                    "<|x|> a",
                    "a <|x|>",
                    "the cat  sat",
                    " \u180e a",
                    "it's 12 a",
                    "a\nb.\nc",
                    "\na\n\nb\n",
                ]
            ),
        ),
        max_size=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_words_tokenise_as_texts_do(texts: list[str]) -> None:
    for tokenizer in CUTTERS:
        fast = TextTokens(tokenizer)
        assert fast.by_word
        wanted = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        assert fast.all(texts) == wanted
        assert fast.all(texts) == wanted


@given(st.lists(st.text("abZ 1\n!\"(.,'-_<|x>", max_size=20), max_size=8))
@settings(max_examples=500, deadline=None)
def test_words_with_punctuation_tokenise_as_texts_do(texts: list[str]) -> None:
    texts = [*texts, "a \nb", "a  b", "a\n b", "a\n\n\nb", "ab. a", "(ab.) ab.\nb"]
    for tokenizer in CUTTERS:
        wanted = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert TextTokens(tokenizer).all(texts) == wanted


def test_only_proven_tokenizers_are_cut_at_spaces() -> None:
    assert cuts_at_spaces(tiny_tokenizer())
    pattern = sorted(PATTERNS)[0]
    assert not cuts_at_spaces(byte_level(r"\w+ \w+|.+"))
    assert not cuts_at_spaces(byte_level(pattern, normalizer=normalizers.NFKC()))
    assert not cuts_at_spaces(byte_level(pattern, added=["two words"]))
    assert not cuts_at_spaces(byte_level(pattern, added=[AddedToken("<m>", lstrip=True)]))
    assert not cuts_at_spaces(byte_level(pattern, added=[AddedToken("m", single_word=True)]))
    metaspace = Tokenizer(models.BPE())
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not cuts_at_spaces(PreTrainedTokenizerFast(tokenizer_object=metaspace))
    prefixed = tiny_tokenizer()
    prefixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not cuts_at_spaces(prefixed)


def test_an_unproven_tokenizer_equals_the_slow_way(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    renderer = Renderer(tokenizer)
    assert not renderer._texts.by_word
    assert_same(tokenizer, renderer, real_rows(shared / "data")[::30], 400)


def test_words_are_forgotten_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "REMEMBERED", 3)
    tokenizer = tiny_tokenizer()
    fast = TextTokens(tokenizer)
    for at in range(20):
        text = f"a{at} b{at} {'long' * 30}"
        assert fast.all([text]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len(fast._known) < 10
    assert len(fast._stems) < 10
    assert not [word for word in (*fast._known, *fast._stems) if len(word) > words.LONGEST]


def test_messages_with_more_than_content_go_the_whole_way() -> None:
    # transformers renames reasoning fields before a template sees them.
    template = "{% for m in messages %}{{ m['reasoning_content'] }}{{ m['content'] }}{% endfor %}"
    made = Template(tiny_tokenizer(), template)
    turn = {"role": "assistant", "content": "b", "thinking": "a"}
    assert made.render([turn], prompt=False) == "ab"


def test_a_tokenizer_with_its_own_way_to_render_is_asked() -> None:
    tokenizer = tiny_tokenizer()

    class Own(type(tokenizer)):  # type: ignore[misc]
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            return "own"

    tokenizer.__class__ = Own
    assert Template(tokenizer, CHATML).render([{"role": "user", "content": "a"}], prompt=False) == (
        "own"
    )


def test_a_renderer_travels_to_another_process_as_it_is() -> None:
    renderer = Renderer(tiny_tokenizer(), THINKING, [5])
    copy = pickle.loads(pickle.dumps(renderer))
    assert copy.fingerprint == renderer.fingerprint
    chat = Example((Segment("user", "a b"), Segment("assistant", "c d", 1.0)), Origin("t"))
    assert copy.encode(chat, 99) == renderer.encode(chat, 99)
