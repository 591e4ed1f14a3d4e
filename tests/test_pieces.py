"""Answers shown as they grow: the pieces are the text, and stop strings are found in time."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.generate.engine import Engine
from tunesmith.generate.requests import Request, Sampling
from tunesmith.generate.text import Pieces, cut_at_stop

TOKENIZER = tiny_tokenizer()
IDS = st.lists(st.integers(0, 299), max_size=30)
TEXTS = st.text(st.sampled_from("ab c\n.é漢🙂"), max_size=40)


def decode(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True))


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


@given(st.one_of(IDS, TEXTS.map(ids_of)), st.lists(TEXTS.filter(bool), max_size=2))
def test_pieces_joined_are_the_text(ids: list[int], stop: list[str]) -> None:
    pieces = Pieces(decode, stop)
    shown = [pieces.add(ids[:end]) for end in range(1, len(ids) + 1)]
    text = decode(ids)
    assert "".join(shown) + pieces.rest(text) == text


@given(TEXTS, TEXTS.filter(bool))
def test_nothing_of_a_stop_string_is_shown(text: str, stop: str) -> None:
    ids = ids_of(text)
    pieces, shown = Pieces(decode, [stop]), ""
    for end in range(1, len(ids) + 1):
        cut = cut_at_stop(decode, ids[:end], [stop])
        found = decode(ids[:end]).find(stop)
        assert (cut is None) is (found < 0)
        if cut is not None:
            assert cut == decode(ids[:end])[:found]
            assert cut.startswith(shown)
            assert shown + pieces.rest(cut) == cut
            return
        shown += pieces.add(ids[:end])
    assert stop not in decode(ids)


def test_a_tail_is_enough_to_find_a_stop_string() -> None:
    seen: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return decode(ids)

    ids = ids_of("the cat sat on the mat. " * 100)
    assert cut_at_stop(counted, ids, ["dog", "\n\n"]) is None
    assert max(seen) < 100
    assert cut_at_stop(counted, [*ids, *ids_of(" a dog")], ["dog"]) == decode(ids) + " a "


def test_the_engine_shows_each_answer_whole() -> None:
    shown: dict[object, str] = {}

    def show(key: object, piece: str) -> None:
        shown[key] = shown.get(key, "") + piece

    prompts = [tuple(ids_of(f"the cat {n} ")) for n in range(3)]
    sampling = Sampling(20, temperature=1.0, stop=("a",))
    requests = [Request(n, ids, sampling, seed=n) for n, ids in enumerate(prompts)]
    made = Engine(tiny_model("llama"), decode, {3}).run(requests, show=show)
    assert {done.key: done.text for done in made if done.text} == shown
