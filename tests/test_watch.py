"""What a run sees of its rows while it trains: accuracy, the ledger of rows, loss spikes."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from test_training import CPU, make_rows
from tiny_models import tiny_model
from tunesmith.train import checkpoint
from tunesmith.train.batches import Plan
from tunesmith.train.loop import Settings, State, fit, make_optimizer
from tunesmith.train.losses import row_scores
from tunesmith.train.row_ledger import FEWEST_ROWS, LEARNT, RowLedger
from tunesmith.train.spikes import DEVIATIONS, FEWEST, find_spike, worst_rows
from tunesmith.train.watch import RowSeen, Watch
from tunesmith.types import Encoded, Origin


def one_step(model, rows, more: Settings):
    state = State(model, make_optimizer(model, more))
    return next(fit(state, rows, Plan(len(rows), len(rows), 1, 0), more, Accelerator(cpu=True)))


@pytest.mark.parametrize(
    "more",
    [
        Settings(1e-3),
        Settings(1e-3, capacity=40),
        Settings(1e-3, packing=False, rows_a_micro_batch=3),
    ],
)
def test_a_step_sees_of_each_row_what_an_evaluation_would(more: Settings) -> None:
    model, rows = tiny_model("llama"), make_rows(7)
    scores = row_scores(model, rows, CPU, 64)
    done = one_step(model, rows, more)
    assert [seen.row for seen in done.seen] == list(done.rows)
    for seen in done.seen:
        score = scores[seen.row]
        assert seen.loss == pytest.approx(score.loss / score.weight, rel=1e-4)
        assert (seen.tokens, seen.right) == (score.tokens, score.right)
    assert done.accuracy == sum(s.right for s in scores) / sum(s.tokens for s in scores)
    total = sum(s.loss for s in scores) / sum(s.weight for s in scores)
    assert done.loss == pytest.approx(total, rel=1e-5)


def test_hits_and_worst_tokens_are_those_of_the_plain_forward() -> None:
    model = tiny_model("llama")
    rng = random.Random(3)
    ids = [rng.randrange(4, 300) for _ in range(12)]
    for _ in range(3):  # let some labels be right
        with torch.no_grad():
            ids[6:9] = model(torch.tensor([ids])).logits[0, 5:8].argmax(-1).tolist()
    row = Encoded(tuple(ids), (0.0,) * 5 + (1.0,) * 7, Origin("test"))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    losses = [-float(logits[at - 1, ids[at]]) for at in range(5, 12)]
    right = sum(int(logits[at - 1].argmax()) == ids[at] for at in range(5, 12))
    assert 0 < right < 7
    [seen] = one_step(model, [row], Settings(1e-3)).seen
    assert (seen.tokens, seen.right) == (7, right)
    order = sorted(range(7), key=lambda at: -losses[at])[:3]
    assert [at for at, _ in seen.worst] == order
    assert [nats for _, nats in seen.worst] == pytest.approx([losses[at] for at in order], rel=1e-4)


def test_processes_put_together_what_each_has_seen() -> None:
    model, rows = tiny_model("llama"), make_rows(5)
    alone = {seen.row: seen for seen in one_step(model, rows, Settings(1e-3)).seen}
    picked = list(range(5))
    sent: list[torch.Tensor] = []

    def of_process(process: int, reduce) -> tuple[float, tuple[RowSeen, ...]]:
        from tunesmith.train.losses import token_losses

        mine = picked[process::2]
        watch = Watch()
        with torch.no_grad():
            found = token_losses(tiny_model("llama"), [rows[at] for at in mine], CPU, packing=False)
        watch.add(mine, found)
        two = SimpleNamespace(num_processes=2, device=CPU, reduce=reduce)
        return watch.finish(torch.tensor(0.5, dtype=torch.float64), picked, two)

    of_process(0, lambda value, _: sent.append(value) or value)
    loss, seen = of_process(1, lambda value, _: value + sent[0])
    assert loss == 1.0
    for one in seen:
        assert (one.tokens, one.right) == (alone[one.row].tokens, alone[one.row].right)
        assert one.loss == pytest.approx(alone[one.row].loss, rel=1e-4)
        assert [at for at, _ in one.worst] == [at for at, _ in alone[one.row].worst]


# --- the ledger


def seen(row: int, loss: float, worst: float = 1.0) -> RowSeen:
    return RowSeen(row, loss, 5, 3, ((0, worst),))


def test_a_ledger_survives_its_file_and_goes_on(tmp_path) -> None:
    model, rows, more = tiny_model("llama"), make_rows(12), Settings(1e-2)
    plan = Plan(12, 4, 6, 3)

    def run(state: State, ledger: RowLedger, until: int) -> None:
        for done in fit(state, rows, plan, more, Accelerator(cpu=True)):
            ledger.add(done.step, done.seen)
            if done.step == until:
                return

    straight = RowLedger()
    run(State(model, make_optimizer(model, more)), straight, 6)
    model = tiny_model("llama")
    killed, state = RowLedger(), State(model, make_optimizer(model, more))
    run(state, killed, 3)
    path = checkpoint.save(tmp_path, state, {}, killed.tensors())
    assert checkpoint.verify(path) is None
    model = tiny_model("llama")
    state = State(model, make_optimizer(model, more))
    checkpoint.restore(path, state)
    kept = checkpoint.row_ledger(path)
    assert kept is not None
    resumed = RowLedger.from_tensors(kept)
    run(state, resumed, 6)
    assert len(resumed) == 24
    for name, column in straight.tensors().items():
        assert torch.equal(column, resumed.tensors()[name]), name


def test_a_damaged_ledger_is_a_broken_checkpoint(tmp_path) -> None:
    model = tiny_model("llama")
    ledger = RowLedger()
    ledger.add(1, [seen(0, 1.0)])
    state = State(model, make_optimizer(model, Settings(1e-2)))
    path = checkpoint.save(tmp_path, state, {}, ledger.tensors())
    raw = bytearray((path / checkpoint.ROWS).read_bytes())
    raw[-1] ^= 1
    (path / checkpoint.ROWS).write_bytes(raw)
    assert "rows.safetensors" in str(checkpoint.verify(path))


def test_rows_never_learnt_and_forgotten() -> None:
    courses = {
        0: (2.0, 1.5, 0.7),  # never under ln 2
        1: (2.0, 0.3, 0.2),  # learnt
        2: (2.0, 0.3, 1.0),  # forgotten
        3: (2.0, 0.6, 0.75),  # not twice as improbable as at best
        4: (3.0, 2.0, 1.9),
    }
    ledger = RowLedger()
    for step in range(3):
        ledger.add(step + 1, [seen(row, course[step]) for row, course in courses.items()])
    verdict = ledger.judge(6)
    assert verdict.never == (4, 0)
    assert verdict.forgotten == (2,)
    assert (verdict.judged, verdict.passes, verdict.suspects) == (5, 3, ())
    assert verdict.courses[2] == pytest.approx(courses[2], rel=1e-6)
    assert pytest.approx(0.6931, abs=1e-4) == LEARNT


def test_a_row_trained_once_is_not_judged() -> None:
    ledger = RowLedger()
    ledger.add(1, [seen(0, 5.0)])
    verdict = ledger.judge(1)
    assert (verdict.never, verdict.forgotten, verdict.judged) == ((), (), 0)
    assert RowLedger().judge(0).suspects == ()


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_row_that_the_others_do_not_explain_is_suspect(seed: int) -> None:
    rng = random.Random(seed)
    ledger, rows = RowLedger(), 64
    for step in range(1, 25):
        level = 6.0 / step  # everything is easier later on, which is no row's merit
        picked = [(step * 8 + at) % rows for at in range(8)]
        ledger.add(
            step,
            [seen(row, 1.0, level + rng.random() + 8.0 * (row == 7)) for row in picked],
        )
    assert ledger.judge(rows).suspects[:1] == (7,)
    few = RowLedger()
    for step in (1, 2):
        odd = [seen(at, 1.0, rng.random() + 50.0 * (at == 3)) for at in range(FEWEST_ROWS - 1)]
        few.add(step, odd)
    assert few.judge(FEWEST_ROWS - 1).suspects == ()
    once = RowLedger()
    once.add(1, [seen(at, 1.0, rng.random() + 50.0 * (at == 3)) for at in range(rows)])
    assert once.judge(rows).suspects == ()


def test_when_a_row_was_trained_makes_it_no_suspect() -> None:
    rng = random.Random(5)
    ledger = RowLedger()
    for step in range(1, 81):  # each row twice: the first ones come when nothing is known yet
        level = max(1.0, 12.0 - 2.0 * step)
        picked = [16 * ((step - 1) % 40) + at for at in range(16)]
        ledger.add(step, [seen(row, 1.0, level + rng.random()) for row in picked])
    assert ledger.judge(640).suspects == ()


# --- spikes


def test_a_spike_is_a_step_far_above_those_before() -> None:
    rng = random.Random(0)
    before = [1.0 + rng.gauss(0, 0.05) for _ in range(80)]
    assert find_spike(before, 1.15) is None
    spike = find_spike(before, 2.0)
    assert spike is not None
    assert spike.usual == pytest.approx(1.0, abs=0.03)
    assert spike.deviations > DEVIATIONS
    assert find_spike(before, 0.1) is None
    assert find_spike(before[: FEWEST - 1], 9.0) is None
    assert find_spike([1.0] * 40, 1.0) is None
    assert find_spike([float("nan")] * 40, 9.0) is None
    assert find_spike(before, float("nan")) is None


def test_earlier_spikes_do_not_hide_one() -> None:
    rng = random.Random(1)
    before = [1.0 + rng.gauss(0, 0.05) for _ in range(64)]
    before[::3] = [9.0] * len(before[::3])
    assert find_spike(before, 3.0) is not None


def test_the_rows_that_lifted_the_loss_come_first() -> None:
    rows = [
        RowSeen(0, 0.2, 100, 90, ()),
        RowSeen(1, 9.0, 10, 0, ()),
        RowSeen(2, 1.2, 4, 1, ()),
        RowSeen(3, 2.0, 200, 20, ()),
    ]
    assert [row.row for row in worst_rows(rows, 1.0)] == [3, 1, 2]
