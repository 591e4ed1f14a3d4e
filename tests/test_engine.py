"""The engine equals sequential generation, whatever shares the batch with a request."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.errors import UsageError
from tunesmith.generate import engine as engine_module
from tunesmith.generate import packed_head
from tunesmith.generate import sampling as sampling_module
from tunesmith.generate.cache import Remembered
from tunesmith.generate.engine import Engine
from tunesmith.generate.reference import generate_one
from tunesmith.generate.requests import Request, Sampling, attempt_seed
from tunesmith.generate.sampling import choose, filtered, uniform
from tunesmith.generate.scheduler import shared_prefix
from tunesmith.types import StopReason

STOP = {3}


def decode(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def make_requests(count: int, *, prefix: int = 20, seed: int = 1) -> list[Request]:
    rng = random.Random(seed)
    head = [rng.randrange(4, 300) for _ in range(prefix)]
    requests = []
    for number in range(count):
        tail = [rng.randrange(4, 300) for _ in range(rng.randint(1, 9))]
        for index in range(2):
            sampling = Sampling(rng.randint(4, 16), temperature=float(index), top_p=0.9)
            seed_ = attempt_seed(1, str(number), index)
            requests.append(Request((number, index), tuple(head + tail), sampling, seed_))
    return requests


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_engine_equals_sequential_generation(arch: str) -> None:
    model = tiny_model(arch)
    requests = make_requests(5)
    made = {c.key: c for c in Engine(model, decode, STOP, max_slots=4).run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    assert model.config._attn_implementation == "sdpa" or arch.startswith("gemma")


def test_neighbours_order_and_slots_change_nothing() -> None:
    model = tiny_model("llama")
    requests = make_requests(6)
    alone = {}
    for request in requests:
        alone.update({c.key: c for c in Engine(model, decode, STOP).run([request])})
    shuffled = requests[::-1]
    for slots, batch in ((3, requests), (5, shuffled), (64, requests)):
        assert alone == {c.key: c for c in Engine(model, decode, STOP, max_slots=slots).run(batch)}


def test_prompts_without_a_common_prefix() -> None:
    model = tiny_model("llama")
    requests = make_requests(4, prefix=0)
    made = {c.key: c for c in Engine(model, decode, STOP, max_slots=3).run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}


def test_stop_strings_cut_the_text() -> None:
    model = tiny_model("llama")
    request = make_requests(1)[0]
    [free] = Engine(model, decode, STOP).run([request])
    word = f"{free.tokens[2]}"
    stopped = Request(request.key, request.prompt_ids, Sampling(16, stop=(word,)))
    [cut] = Engine(model, decode, STOP).run([stopped])
    assert cut.stop is StopReason.STOP_STRING
    assert word not in cut.text
    assert free.text.startswith(cut.text)
    assert cut == generate_one(model, stopped, decode, STOP)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_chunks_of_a_prompt_change_nothing(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(arch)
    requests = make_requests(5)
    whole = {c.key: c for c in Engine(model, decode, STOP).run(requests)}
    monkeypatch.setattr(engine_module, "CHUNK", 3)
    assert whole == {c.key: c for c in Engine(model, decode, STOP, max_slots=4).run(requests)}


def test_a_reordered_head_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    head = model.get_output_embeddings()
    requests = make_requests(5)
    plain = {c.key: c for c in Engine(model, decode, STOP).run(requests)}
    seen = []
    inner = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(packed_head, "LEAST", 0)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda *a: seen.append(1) or inner(*a)
    )
    assert plain == {c.key: c for c in Engine(model, decode, STOP).run(requests)}
    assert seen
    assert "forward" not in head.__dict__


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_logprobs_are_those_of_the_model(arch: str) -> None:
    model = tiny_model(arch)
    asked = [
        Request(r.key, r.prompt_ids, Sampling(9, r.sampling.temperature, logprobs=True), r.seed)
        for r in make_requests(3)
    ]
    for done in list(Engine(model, decode, STOP, max_slots=4).run(asked)):
        [request] = [r for r in asked if r.key == done.key]
        ids = torch.tensor([[*request.prompt_ids, *done.tokens]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(request.prompt_ids) - 1 :]
        wanted = [float(logits[at].log_softmax(-1)[t]) for at, t in enumerate(done.tokens)]
        assert done.logprobs == pytest.approx(wanted, abs=1e-5)
        assert len(done.logprobs) == len(done.tokens)
        alone = generate_one(model, request, decode, STOP)
        assert alone.logprobs == pytest.approx(done.logprobs, abs=1e-5)


def test_a_dialogue_computes_only_what_is_new() -> None:
    model = tiny_model("llama")
    engine = Engine(model, decode, STOP, remember_bytes=1 << 20)
    ids: tuple[int, ...] = tuple(range(5, 40))
    for turn in range(4):
        request = Request(turn, ids, Sampling(6))
        before = engine.prefilled
        [done] = engine.run([request])
        # The last token of an answer was chosen but never ran; then come the two new ones.
        assert engine.prefilled - before == (len(ids) if turn == 0 else 3)
        assert done == generate_one(model, request, decode, STOP)
        ids = (*ids, *done.tokens, 7 + turn, 9)
    [other] = engine.run([Request("other", (*ids[:20], 77, 78, 79), Sampling(6))])
    assert other == generate_one(
        model, Request("other", (*ids[:20], 77, 78, 79), Sampling(6)), decode, STOP
    )


def test_what_is_remembered_stays_within_its_bytes() -> None:
    def layers(tokens: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return {0: (torch.zeros(1, tokens, 4), torch.zeros(1, tokens, 4))}  # 32 bytes a token

    kept = Remembered(32 * 10)
    kept.add((1, 2, 3), layers(3))
    kept.add((5, 6, 7), layers(3))
    assert kept.find((1, 2, 9))[0] == 2
    kept.add((8, 8, 8, 8, 8), layers(5))
    assert kept.find((5, 6))[0] == 0  # the least used is gone
    assert kept.find((1, 2, 3, 4))[0] == 3
    kept.add((1, 2, 3, 4), layers(4))
    assert kept.find((1, 2, 3, 4))[0] == 4
    kept.add((4,) * 11, layers(11))
    assert kept.find((1, 2))[0] == 0
    assert kept.find((4, 4))[0] == 0


def test_a_cancelled_request_ends_and_the_others_go_on() -> None:
    model = tiny_model("llama")
    requests = make_requests(4)
    plain = {c.key: c for c in Engine(model, decode, ()).run(requests)}
    engine = Engine(model, decode, (), max_slots=3)
    gone = {requests[0].key, requests[-1].key}  # one that runs and one that waits
    found = {}

    def show(key: object, piece: str) -> None:
        for one in gone - found.keys():
            engine.cancel(one)

    for done in engine.run(requests, show=show):
        assert done.key not in found
        found[done.key] = done
    assert found.keys() == plain.keys()
    assert found[requests[-1].key].tokens == ()
    for key, done in found.items():
        if key in gone:
            assert done.stop is StopReason.CANCELLED
            assert plain[key].tokens[: len(done.tokens)] == done.tokens
        else:
            assert done == plain[key]


def test_cancellation_yields_nothing_more() -> None:
    model = tiny_model("llama")
    assert list(Engine(model, decode, STOP).run(make_requests(2), should_stop=lambda: True)) == []


def test_a_prompt_that_fills_the_model_is_refused() -> None:
    request = Request("long", tuple([5] * 256), Sampling(4))
    with pytest.raises(UsageError, match="'x' has an empty prompt"):
        list(Engine(tiny_model("llama"), decode, STOP).run([Request("x", (), Sampling(4))]))
    with pytest.raises(UsageError, match="256 tokens"):
        list(Engine(tiny_model("llama"), decode, STOP).run([request]))


def test_a_limit_past_the_positions_ends_there() -> None:
    request = Request("x", tuple([5] * 250), Sampling(50))
    [done] = Engine(tiny_model("llama"), decode, ()).run([request])
    assert done.stop is StopReason.LENGTH
    assert len(done.tokens) == 6


@given(st.integers(0, 2**62), st.integers(0, 5000))
def test_uniform_is_a_function_of_seed_and_step(seed: int, step: int) -> None:
    one = uniform(torch.tensor([seed]), torch.tensor([step]))
    among = uniform(torch.tensor([7, seed, 9]), torch.tensor([1, step, 3]))
    assert 0 < float(one) < 1
    assert float(among[1]) == float(one)


@given(
    st.floats(0.1, 3),
    st.just(1.0) | st.floats(0.05, 1),
    st.integers(0, 12),
    st.just(0.0) | st.floats(0, 0.5),
    st.integers(0, 10_000),
)
def test_filters_keep_the_likeliest(
    temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 10, generator=generator)
    kept, tokens = filtered(logits, Sampling(1, temperature, top_p, top_k, min_p))
    for row in range(2):
        found = dict(zip(tokens[row].tolist(), kept[row].tolist(), strict=True))
        wanted = kept_by_hand(logits[row].tolist(), temperature, top_p, top_k, min_p)
        assert {token for token, p in found.items() if p > 0} == set(wanted)
        assert all(abs(found[token] - p) < 1e-5 for token, p in wanted.items())


def kept_by_hand(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> dict[int, float]:
    """Return what may be drawn and how likely, by the definitions, one token after the other."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    weights = [math.exp((logits[token] - max(logits)) / temperature) for token in order]
    shares = [weight / sum(weights) for weight in weights]
    left = [n for n in range(len(order)) if top_p >= 1 or sum(shares[:n]) < top_p]
    left = [n for n in left if shares[n] >= min_p * shares[0]]
    total = sum(shares[n] for n in left)
    return {order[n]: shares[n] / total for n in left}


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.999}])
def test_a_target_above_the_rounded_sum_draws_a_possible_token(settings: dict) -> None:
    logits = torch.full((1, 50_000), 0.0)
    logits[0, 40_000:] = float("-inf")
    sampling = Sampling(1, 1.0, **settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling_module, "uniform", lambda *_: torch.tensor([1.5]).double())
        seed = torch.zeros(1, dtype=torch.int64)
        assert int(choose(logits, [sampling], seed, seed)[0]) < 40_000


def test_soft_capped_scores_are_those_of_the_model() -> None:
    model = tiny_model("gemma2", attn_logit_softcapping=0.05)
    requests = make_requests(3)
    made = {c.key: c for c in Engine(model, decode, STOP).run(requests)}
    assert made == {r.key: generate_one(model, r, decode, STOP) for r in requests}
    uncapped = tiny_model("gemma2", attn_logit_softcapping=None)
    assert made != {c.key: c for c in Engine(uncapped, decode, STOP).run(requests)}


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    seeds = torch.tensor([attempt_seed(0, "x", index) for index in range(20_000)])
    chosen = choose(logits, [Sampling(1, 1.0)] * 20_000, seeds, torch.zeros_like(seeds))
    counts = chosen.bincount(minlength=3).double()
    expected = torch.tensor([0.5, 0.3, 0.2]) * 20_000
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 13.8  # 0.1% point at two degrees of freedom


def test_shared_prefix_leaves_each_prompt_a_token() -> None:
    same = tuple(range(30))
    assert shared_prefix([same, same]) == 29
    assert shared_prefix([same, (*same[:20], 99)]) == 20
    assert shared_prefix([same, same[:5]]) == 0
    assert shared_prefix([same]) == 0
