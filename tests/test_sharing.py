"""Rows that begin alike, computed together: the same losses and gradients as each by itself."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import ARCHITECTURES, tiny_model
from tunesmith.config.schema import FineTuningConfig
from tunesmith.models.adapters import recompute_activations
from tunesmith.models.attention import packed, positions
from tunesmith.models.packs import Group
from tunesmith.train import checkpoint, processes
from tunesmith.train.batches import Plan, epoch_order_by_prompt, make_plan, own_rows
from tunesmith.train.estimate import kept_bytes, largest, on_meta, probe
from tunesmith.train.loop import (
    Settings,
    State,
    Work,
    _backward,
    fit,
    make_optimizer,
    micro_batches,
)
from tunesmith.train.losses import lay_out, packed_rows, token_losses
from tunesmith.train.sharing import SHORTEST, Bundle, bundles, prompts_of
from tunesmith.types import Encoded, Origin
from tunesmith.workflows.setup import plan_steps

CPU = torch.device("cpu")
LONG = 1 << 20


def row(ids: list[int], trained_from: int, *also: int) -> Encoded:
    """Return a row whose tokens are trained from a place on, with weight 1, and at others, 0.5."""
    weights = tuple(
        1.0 if at >= trained_from else 0.5 if at in also else 0.0 for at in range(len(ids))
    )
    return Encoded(tuple(ids), weights, Origin("test"))


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(4, 300) for _ in range(count)]


def awkward_rows() -> list[Encoded]:
    """Return rows of all kinds: answers, a row that is a prefix, twins, weights in the prefix."""
    rng = random.Random(0)
    one, two = tokens(rng, 40), tokens(rng, SHORTEST)
    twin = one + tokens(rng, 6)
    return [
        row([*one, 5, *tokens(rng, 8)], 40),
        row(two + tokens(rng, 3), SHORTEST),
        row(one, 38, 7),
        row([*one, 6, *tokens(rng, 4)], 40, 7, 20),
        row(tokens(rng, 12), 5),
        row(twin, 40, 7),
        row(two + tokens(rng, 20), SHORTEST),
        row(twin, 42),
        row([*one, 9], 40),
    ]


def gradients(model, rows, found, scale: float = 1.0):
    model.zero_grad()
    pack = lay_out(rows, found)
    with packed_rows(model, pack):
        losses, weights, counts, _ = token_losses(model, pack, CPU)
        (losses * weights).sum().mul(scale).backward()
    parts = (losses * weights).detach().split(list(counts))
    order = [at for bundle in found for at in bundle.rows]
    sums = dict(zip(order, (float(part.sum()) for part in parts), strict=True))
    numbers = dict(zip(order, counts, strict=True))
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return sums, numbers, grads


def alone_gradients(model, rows):
    sums, numbers, total = {}, {}, {}
    for at, one in enumerate(rows):
        own, count, grads = gradients(model, [one], [Bundle(len(one.ids), (0,), (len(one.ids),))])
        sums[at], numbers[at] = own[0], count[0]
        for name, gradient in grads.items():
            total[name] = total.get(name, 0) + gradient
    return sums, numbers, total


def assert_equal(shared, alone) -> None:
    (sums, numbers, grads), (own_sums, own_numbers, own_grads) = shared, alone
    assert numbers == own_numbers
    assert sums == pytest.approx(own_sums, rel=1e-6)
    assert grads.keys() == own_grads.keys()
    apart = sum(float((grads[n] - g).double().square().sum()) for n, g in own_grads.items())
    whole = sum(float(g.double().square().sum()) for g in own_grads.values())
    # A few times 1e-7 is usual; where rows are a handful of tokens, rounding is more of it.
    assert apart**0.5 <= 2e-6 * whole**0.5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shared_rows_have_the_losses_and_gradients_that_they_have_alone(arch: str) -> None:
    model, rows = tiny_model(arch), awkward_rows()
    found = bundles(range(len(rows)), rows, LONG)
    assert [bundle.rows for bundle in found] == [(0, 2, 3, 5, 7, 8), (1, 6), (4,)]
    assert [bundle.prefix for bundle in found] == [40, SHORTEST, 12]
    assert_equal(gradients(model, rows, found), alone_gradients(model, rows))


def test_soft_caps_that_bite_hold_for_shared_rows_too() -> None:
    model, rows = tiny_model("gemma2", attn_logit_softcapping=0.05), awkward_rows()
    found = bundles(range(len(rows)), rows, LONG)
    assert_equal(gradients(model, rows, found), alone_gradients(model, rows))


def test_shared_rows_under_gradient_checkpointing() -> None:
    model, rows = tiny_model("mistral").train(), awkward_rows()
    plain = alone_gradients(model, rows)
    recompute_activations(model)
    assert_equal(gradients(model, rows, bundles(range(len(rows)), rows, LONG)), plain)


@st.composite
def trees(draw) -> list[list[int]]:
    """Draw rows that branch off one another anywhere; few tokens, so that twins are common."""
    rows = [draw(st.lists(st.integers(4, 6), min_size=1, max_size=60))]
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from(rows))
        kept = draw(st.integers(0, len(parent)))
        more = draw(st.lists(st.integers(4, 6), min_size=0 if kept else 1, max_size=20))
        rows.append(parent[:kept] + more)
    return rows


MODEL = tiny_model("gemma3", sliding_window=20)


@settings(max_examples=15, deadline=None)
@given(trees(), st.integers(0, 5), st.integers(40, 200))
def test_random_trees_of_rows(trees_: list[list[int]], seed: int, capacity: int) -> None:
    rng = random.Random(seed)
    rows = [
        Encoded(tuple(ids), (0.0, *(rng.choice((0.0, 0.5, 1.0)) for _ in ids[1:])), Origin("t"))
        for ids in [[3, 4, *ids] for ids in trees_]
    ]
    rows = [Encoded(r.ids, (0.0, 1.0, *r.weights[2:]), r.origin) for r in rows]
    found = bundles(range(len(rows)), rows, capacity)
    assert sorted(at for bundle in found for at in bundle.rows) == list(range(len(rows)))
    for bundle in found:
        begun = {rows[at].ids[: bundle.prefix] for at in bundle.rows}
        assert len(begun) == 1
        assert len(bundle.rows) == 1 or bundle.prefix >= SHORTEST
        assert len(bundle.rows) == 1 or bundle.group.tokens <= capacity
    assert_equal(gradients(MODEL, rows, found, 0.1), scaled(alone_gradients(MODEL, rows), 0.1))


def scaled(found, scale: float):
    return found[0], found[1], {name: gradient * scale for name, gradient in found[2].items()}


def test_a_group_is_cut_where_that_saves_most() -> None:
    rng = random.Random(1)
    system = tokens(rng, 40)
    prompts = [[*system, 10 + n, *tokens(rng, 100)] for n in range(3)]
    rows = [row([*p, 20 + n, *tokens(rng, 10)], len(p)) for n in range(4) for p in prompts]
    found = bundles(range(12), rows, LONG)
    assert [bundle.rows for bundle in found] == [(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)]
    assert {bundle.prefix for bundle in found} == {141}
    # Room for three rows of each; whole groups of four on request.
    cut = bundles(range(12), rows, 141 + 3 * 11)
    assert sorted(len(bundle.rows) for bundle in cut) == [1, 1, 1, 3, 3, 3]
    assert bundles(range(12), rows, 141 + 3 * 11, at_least=4) == found
    assert all(len(b.rows) == 1 for b in bundles(range(12), rows, 152))


def test_a_short_beginning_is_not_shared() -> None:
    rng = random.Random(2)
    for length, together in ((SHORTEST - 1, 1), (SHORTEST, 2)):
        begun = tokens(rng, length)
        rows = [row([*begun, n, 9], length) for n in (5, 6)]
        assert len(bundles((0, 1), rows, LONG)[0].rows) == together


def test_continuations_are_counted_by_position_from_their_prefix() -> None:
    placed = positions([Group(3, (2, 1)), 2], CPU)
    assert placed.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]


def test_a_continuation_sees_its_prefix_and_not_its_neighbour() -> None:
    model = tiny_model("llama")

    def states(ids: list[int]) -> torch.Tensor:
        groups = [Group(4, (2, 3))]
        with torch.no_grad(), packed(model, groups):
            return model(
                input_ids=torch.tensor([ids]),
                position_ids=positions(groups, CPU),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states[-1][0]

    before = states([5, 6, 7, 8, 9, 10, 11, 12, 13])
    sibling = states([5, 6, 7, 8, 20, 10, 11, 12, 13])
    assert torch.equal(before[[0, 1, 2, 3, 6, 7, 8]], sibling[[0, 1, 2, 3, 6, 7, 8]])
    prefix = states([20, 6, 7, 8, 9, 10, 11, 12, 13])
    assert (prefix != before).any(1).all()


# Steps and epochs ------------------------------------------------------------------------------


def prompt_rows(prompts: int = 5, answers: tuple[int, ...] = (3, 4, 8, 1, 2)) -> list[Encoded]:
    rng = random.Random(3)
    rows = []
    for number in range(prompts):
        prompt = tokens(rng, 36)
        rows += [row(prompt + tokens(rng, 6), 36) for _ in range(answers[number])]
    rng.shuffle(rows)
    return rows


def step_gradients(shared: str, process: int = 0, processes: int = 1, **more):
    model, rows = tiny_model("llama"), prompt_rows()
    given_ = Settings(1e-2, capacity=100, shared_prefix=shared, **more)
    alone = SimpleNamespace(
        process_index=process,
        num_processes=processes,
        device=CPU,
        no_sync=lambda _: torch.enable_grad(),
        autocast=torch.enable_grad,
        backward=lambda loss: loss.backward(),
        reduce=lambda value, _: value,
    )
    state = State(model, make_optimizer(model, given_))
    sizes = [len(r.ids) for r in rows]
    work = Work(rows, sizes, given_, alone, lambda: False, 0, None)
    loss, trained, _ = _backward(state, work, given_, range(18))
    return loss, trained, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_a_step_is_the_same_whether_its_rows_share_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.dist, "all_reduce", lambda _: None)
    loss, trained, grads = step_gradients("off")
    for shared, rows_at_once in (("auto", 4), ("grouped", 8)):
        found = step_gradients(shared, rows_a_micro_batch=rows_at_once)
        assert found[:2] == (pytest.approx(loss, rel=1e-6), trained)
        for name, gradient in grads.items():
            assert torch.allclose(found[2][name], gradient, rtol=1e-4, atol=1e-6), name
    halves = [step_gradients("grouped", process, 2) for process in (0, 1)]
    for name, gradient in grads.items():
        both = halves[0][2][name] + halves[1][2][name]
        assert torch.allclose(both, gradient, rtol=1e-4, atol=1e-6), name


def places(shared: str, **more) -> list[int]:
    rows = prompt_rows()
    sizes = [len(r.ids) for r in rows]
    given_ = Settings(1e-2, capacity=100, shared_prefix=shared, **more)
    batches = micro_batches(range(18), rows, sizes, given_)
    return [sum(bundle.group.tokens for bundle in found) for found in batches]


def test_sharing_keeps_to_the_capacity_unless_groups_are_asked_for() -> None:
    assert sum(places("off")) == 18 * 42
    assert max(places("auto")) <= 100
    assert sum(places("auto")) < 18 * 42 - 8 * 36
    assert max(places("grouped", rows_a_micro_batch=8)) == 96  # 48 and 48 by best fit
    assert sum(places("grouped", rows_a_micro_batch=8)) == 5 * 36 + 18 * 6
    assert sum(places("auto", neftune_alpha=5.0)) == 18 * 42  # noise is drawn row by row


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_an_epoch_by_prompt_holds_each_row_once_and_cuts_little(
    counts: list[int], size: int, seed: int, epoch: int
) -> None:
    rng = random.Random(seed)
    numbers = list(range(sum(counts)))
    rng.shuffle(numbers)
    begun = {
        n: at for at, count in enumerate(counts) for n in [numbers.pop() for _ in range(count)]
    }
    rows = [row([begun[n] + 10] * SHORTEST + [5], SHORTEST) for n in sorted(begun)]
    prompts = prompts_of(rows)
    assert sorted(map(len, prompts.members)) == sorted(counts)
    order = epoch_order_by_prompt(prompts, size, seed, epoch)
    assert sorted(order) == list(range(len(rows)))
    assert order == epoch_order_by_prompt(prompts_of(rows), size, seed, epoch)
    steps = [order[at : at + size] for at in range(0, len(order), size)]
    pieces = sum(len({begun[n] for n in step}) for step in steps)
    needed = sum(-(-count // size) for count in counts)
    # A step cuts one prompt at most, the last that comes into it.
    assert pieces <= needed + len(steps) - 1
    plan = make_plan(len(rows), size, 4, None, seed, prompts)
    first = epoch * plan.steps_an_epoch
    taken = [n for step in range(plan.steps_an_epoch) for n in plan.step_rows(first + step)]
    assert taken == order


def test_small_prompts_fill_what_large_ones_leave() -> None:
    counts = [7] * 10 + [1] * 10
    begun = [at for at, count in enumerate(counts) for _ in range(count)]
    rows = [row([number + 10] * SHORTEST + [5], SHORTEST) for number in begun]
    order = epoch_order_by_prompt(prompts_of(rows), 8, 0, 0)
    steps = [order[at : at + 8] for at in range(0, 80, 8)]
    cut = sum(len({begun[at] for at in step}) for step in steps) - len(counts)
    assert cut <= 2


def test_a_prompt_that_is_cut_cuts_no_other() -> None:
    begun = [0] + [1 + at // 8 for at in range(160)]
    rows = [row([number + 10] * SHORTEST + [5], SHORTEST) for number in begun]
    order = epoch_order_by_prompt(prompts_of(rows), 8, 0, 0)
    steps = [order[at : at + 8] for at in range(0, 161, 8)]
    assert sum(len({begun[at] for at in step}) for step in steps) <= 21 + 1


def test_prompts_of_equal_size_are_never_cut_and_the_order_changes() -> None:
    rows = [row([n + 10] * SHORTEST + [5], SHORTEST) for n in range(20) for _ in range(4)]
    plan = make_plan(len(rows), 8, 2, None, 0, prompts_of(rows))
    for step in range(20):
        assert len({at // 4 for at in plan.step_rows(step)}) == 2
    epochs = [[plan.step_rows(10 * epoch + step) for step in range(10)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]


def test_rows_without_a_prompt_are_prompts_of_their_own() -> None:
    rows = [row([5] * 40, 1), row([5] * 40, 1), row([5] * 40, 39), row([5] * 40, 39)]
    assert prompts_of(rows).members == ((0,), (1,), (2, 3))


def test_processes_take_neighbours_and_all_of_them() -> None:
    parts = [own_rows(range(7), process, 3) for process in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_resumed_run_by_prompt_ends_with_the_same_weights(tmp_path: Path) -> None:
    rows, given_ = prompt_rows(), Settings(1e-2, shared_prefix="grouped", rows_a_micro_batch=8)

    def begin(seed: int) -> State:
        model = tiny_model("llama", seed)
        return State(model, make_optimizer(model, given_))

    def steps(state: State):
        # A plan of its own, as a new process makes it.
        plan = make_plan(len(rows), 8, 2, None, 0, prompts_of(rows))
        return fit(state, rows, plan, given_, Accelerator(cpu=True))

    straight, killed, resumed = begin(0), begin(0), begin(1)
    assert len(list(steps(straight))) == 6
    running = steps(killed)
    for _ in range(4):
        next(running)
    path = checkpoint.save(tmp_path, killed, {})
    checkpoint.restore(path, resumed)
    assert len(list(steps(resumed))) == 2
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_probe_takes_the_rows_of_its_step() -> None:
    rows, given_ = prompt_rows(), Settings(1e-2, shared_prefix="grouped")
    plan = make_plan(len(rows), 8, 1, None, 0, prompts_of(rows))
    model = tiny_model("llama")
    state = State(model, make_optimizer(model, given_))
    [found] = probe(state, rows, plan, given_, Accelerator(cpu=True), [2])
    assert found.tokens == sum(len(rows[at].ids) for at in plan.step_rows(2)) == 2 * 42


def test_the_estimate_counts_shared_rows_once() -> None:
    rows = prompt_rows()
    sizes = [len(r.ids) for r in rows]
    plan = Plan(18, 18, 1, 0)
    given_ = Settings(1e-3, capacity=LONG)
    shape, _ = largest(rows, sizes, plan, given_, 1)
    assert shape.tokens == 5 * 36 + 18 * 6
    assert shape.trained == 18 * 6
    model = on_meta(tiny_model("mistral"), recompute=False)
    unshared, _ = largest(rows, sizes, plan, Settings(1e-3, capacity=LONG, shared_prefix="off"), 1)
    assert kept_bytes(model, shape) < 0.6 * kept_bytes(model, unshared)


def test_grouping_says_how_many_prompts_there_are_and_when_none_is_shared(capsys) -> None:
    config = FineTuningConfig(shared_prefix="grouped")
    rows = prompt_rows()
    plan = plan_steps(config, SimpleNamespace(rows=rows), 1)
    assert plan.prompts is not None
    said = capsys.readouterr().err
    assert "5 prompts" in said
    assert "in common" not in said
    plan_steps(config, SimpleNamespace(rows=rows[:1]), 1)
    assert "no two rows have a prompt in common" in capsys.readouterr().err
