"""The trunk cache: the same losses and gradients, what it refuses, and resumes to the bit."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from test_training import gradients, make_rows
from tiny_models import ALL_BY_NIGHT, ARCHITECTURES, tiny_model
from tunesmith.errors import StorageError
from tunesmith.models.adapters import add_lora, freeze_bottom, recompute_activations
from tunesmith.models.trunk import caught, find_trunk, replaced
from tunesmith.train import checkpoint
from tunesmith.train.batches import Plan
from tunesmith.train.decisions import Decisions
from tunesmith.train.loop import Settings, State, fit, make_optimizer
from tunesmith.train.losses import packed_rows, token_losses
from tunesmith.train.trunk_cache import NoTrunkError, TrunkCache, look, size_in_bytes
from tunesmith.types import Encoded

CPU = torch.device("cpu")
ROWS = make_rows(20)
PLAN = Plan(rows=20, rows_a_step=8, total_steps=8, seed=3)
"""Three epochs, less a step."""
SLOW = pytest.mark.slow
PACKED = Settings(1e-2, warmup=2, capacity=64)
PADDED = Settings(1e-2, warmup=2, packing=False, rows_a_micro_batch=3)


def frozen_model(arch: str = "llama", ratio: float = 0.5, **config: Any) -> Any:
    layers = "n_layer" if arch == "gpt2" else "num_hidden_layers"
    model = tiny_model(arch, **{layers: 4, **config})
    freeze_bottom(model, ratio)
    return model


OPEN: list[TrunkCache] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for cache in OPEN:
        cache.close()
    OPEN.clear()


def cpu(precision: str = "no") -> Accelerator:
    AcceleratorState._reset_state()
    return Accelerator(cpu=True, mixed_precision=precision)


def start(
    model: Any, settings: Settings, path: Path | None, accelerator: Any = None
) -> tuple[State, Any, TrunkCache | None]:
    accelerator = accelerator or cpu()
    state = State(accelerator.prepare_model(model), make_optimizer(model, settings))
    if path is None:
        return state, accelerator, None
    found = look(state.model, ROWS, PLAN, settings, accelerator)
    cache = TrunkCache(path, state.model, ROWS, PLAN, settings, accelerator, found)
    OPEN.append(cache)
    return state, accelerator, cache


def losses_of(
    model: Any, settings: Settings, path: Path | None, precision: str = "no"
) -> tuple[list[float], TrunkCache | None]:
    state, accelerator, cache = start(model, settings, path, cpu(precision))
    steps = fit(state, ROWS, PLAN, settings, accelerator, trunk=cache)
    found = [done.loss for done in steps]
    if cache is not None:
        cache.close()
    return found, cache


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_upper_layers_alone_give_the_same_loss_and_gradients(arch: str, packing: bool) -> None:
    model, rows = frozen_model(arch), make_rows(5)
    loss, whole = gradients(model, rows, packing=packing)
    trunk = find_trunk(model)
    assert len(trunk.layers) == 2
    context = packed_rows(model, rows) if packing else torch.enable_grad()
    with torch.no_grad(), caught(trunk) as found, context:
        token_losses(model, rows, CPU, packing=packing)
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_: ran.append(1))
        for layer in trunk.layers
        for module in layer.children()
    ]
    with replaced(trunk, found[0]):
        again, above = gradients(model, rows, packing=packing)
    for hook in hooks:
        hook.remove()
    assert not ran
    assert again == pytest.approx(loss, abs=1e-6)
    assert above.keys() == whole.keys()
    assert all(torch.allclose(above[name], whole[name], atol=1e-6) for name in whole)
    assert gradients(model, rows, packing=packing)[0] == loss


@pytest.mark.parametrize("packing", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize("arch", ALL_BY_NIGHT)
def test_a_cached_run_has_the_losses_of_an_uncached_one(
    arch: str, packing: bool, tmp_path: Path
) -> None:
    settings = PACKED if packing else PADDED
    plain, _ = losses_of(frozen_model(arch), settings, None)
    cached, cache = losses_of(frozen_model(arch), settings, tmp_path / "c")
    assert cached == pytest.approx(plain, abs=2e-6)
    assert cache is not None
    assert cache.computed == len(ROWS)


def with_lora(model: Any) -> Any:
    adapted = add_lora(model, rank=4, alpha=8)
    freeze_bottom(adapted, 0.5)
    return adapted


def recomputing(model: Any) -> Any:
    recompute_activations(model)
    return model


@pytest.mark.parametrize(
    ("change", "precision", "within"),
    [
        pytest.param(with_lora, "no", 1e-6, marks=SLOW),
        (recomputing, "no", 1e-6),
        pytest.param(lambda model: recomputing(with_lora(model)), "no", 1e-6, marks=SLOW),
        (lambda model: model, "bf16", 5e-3),
        (lambda model: recomputing(with_lora(model)), "bf16", 5e-3),
        (lambda model: model.to(torch.bfloat16), "no", 5e-2),
    ],
    ids=["lora", "recomputed", "both", "bf16 autocast", "all three", "bf16 weights"],
)
def test_methods_of_training_go_with_it(
    change: Callable[[Any], Any], precision: str, within: float, tmp_path: Path
) -> None:
    plain, _ = losses_of(change(frozen_model()), PACKED, None, precision)
    cached, cache = losses_of(change(frozen_model()), PACKED, tmp_path / "c", precision)
    assert cached == pytest.approx(plain, abs=within)
    assert cache is not None
    assert cache.computed == len(ROWS)


def test_all_layers_may_be_frozen_below_a_head_of_its_own(tmp_path: Path) -> None:
    plain, _ = losses_of(frozen_model(ratio=1.0), PACKED, None)
    cached, _ = losses_of(frozen_model(ratio=1.0), PACKED, tmp_path / "c")
    assert cached == pytest.approx(plain, abs=1e-6)
    assert plain[-1] != plain[0]


def test_frozen_layers_have_no_dropout_and_the_others_have_it(tmp_path: Path) -> None:
    model = frozen_model(attention_dropout=0.5)
    state, accelerator, cache = start(model, PACKED, tmp_path / "c")
    assert cache is not None
    modes: list[tuple[bool, bool]] = []
    layers = model.model.layers
    below = layers[0].mlp.register_forward_hook(lambda m, *_: modes.append((False, m.training)))
    above = layers[3].mlp.register_forward_hook(lambda m, *_: modes.append((True, m.training)))
    for _ in fit(state, ROWS, PLAN, PACKED, accelerator, trunk=cache):
        pass
    below.remove()
    above.remove()
    assert set(modes) == {(False, False), (True, True)}
    assert all(module.training for module in model.modules())
    # The noise of the upper layers is that of the step, whether or not the trunk ran in it.
    again, _ = losses_of(frozen_model(attention_dropout=0.5), PACKED, tmp_path / "c")
    fresh, _ = losses_of(frozen_model(attention_dropout=0.5), PACKED, tmp_path / "d")
    assert again == fresh


@pytest.mark.parametrize(
    ("packing", "damage"),
    [
        (True, "none"),
        (True, "gone"),
        pytest.param(True, "flipped", marks=SLOW),
        pytest.param(False, "none", marks=SLOW),
        (False, "flipped"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits_whatever_became_of_the_file(
    damage: str, packing: bool, tmp_path: Path
) -> None:
    settings = PACKED if packing else PADDED

    def made() -> Any:
        adapted = add_lora(tiny_model("llama", num_hidden_layers=4, attention_dropout=0.2), rank=4,
                           alpha=8, dropout=0.2, seed=5)  # fmt: skip
        freeze_bottom(adapted, 0.5)
        return adapted

    straight, accelerator, cache = start(made(), settings, tmp_path / "straight")
    losses = [d.loss for d in fit(straight, ROWS, PLAN, settings, accelerator, trunk=cache)]
    path = tmp_path / "c"
    # Saved after step 1, in the first epoch, or 4, in the second; killed one step later.
    resumed: list[float] = []
    for stop in (1, 4, PLAN.total_steps):
        state, accelerator, cache = start(made(), settings, path)
        assert cache is not None
        saved, _ = checkpoint.latest(tmp_path)
        if saved is not None:
            checkpoint.restore(saved, state)
        del resumed[state.step :]
        for done in fit(state, ROWS, PLAN, settings, accelerator, trunk=cache):
            resumed.append(done.loss)
            if done.step == stop:
                checkpoint.save(tmp_path, state, {})
            if done.step > stop:
                break
        cache.close()
        if stop != PLAN.total_steps:
            spoil(path, damage)
    assert resumed == losses
    values = dict(straight.model.named_parameters())
    assert all(torch.equal(p, values[n]) for n, p in state.model.named_parameters())
    assert cache.computed == (0 if damage == "none" else 20)


@pytest.mark.parametrize("damage", ["none", "gone", "flipped", "cut", "head", "other", "zeros"])
def test_a_damaged_file_gives_the_value_or_nothing(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "c"
    state, accelerator, cache = start(frozen_model(), PACKED, path)
    assert cache is not None
    for _ in fit(state, ROWS, Plan(20, 8, 3, 3), PACKED, accelerator, trunk=cache):
        pass
    values = [cache._read(at, Decisions()) for at in range(20)]
    assert all(value is not None for value in values)
    spoil(path, damage)
    _, _, again = start(frozen_model(), PACKED, path)
    assert again is not None
    read = [again._read(at, Decisions()) for at in range(20)]
    kept = [at for at in range(20) if read[at] is not None]
    assert all(torch.equal(read[at], values[at]) for at in kept)  # type: ignore[arg-type]
    assert len(kept) == (20 if damage == "none" else 0)


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    values = 8192  # behind head and checksums, each a page here
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        for at in range(values, len(content), 256):
            content[at] ^= 4
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "head":
        content[20] ^= 1
    elif damage == "other":
        content[values:] = bytes(reversed(content[values:]))
    elif damage == "zeros":
        content[values:] = bytes(len(content) - values)
    if damage != "gone":
        path.write_bytes(content)


def test_every_flipped_bit_of_a_value_is_found(tmp_path: Path) -> None:
    state, accelerator, cache = start(frozen_model(), PACKED, tmp_path / "c")
    assert cache is not None
    plan = Plan(20, 8, 3, 3)
    for _ in fit(state, ROWS, plan, PACKED, accelerator, trunk=cache):
        pass
    content = (tmp_path / "c").read_bytes()
    at = min(range(20), key=lambda row: len(ROWS[row].ids))
    begin, end = cache._starts[at], cache._starts[at + 1]
    assert cache._read(at, Decisions()) is not None
    places = [*range(begin, end, 7), *range(4096 + 16 * at, 4096 + 16 * at + 16)]
    with (tmp_path / "c").open("r+b", buffering=0) as file:
        for place in places:
            for content_there in (content[place] ^ (1 << place % 8), content[place]):
                file.seek(place)
                file.write(bytes([content_there]))
                known = cache._read(at, Decisions()) is not None
                assert known is (content_there == content[place]), place


def test_a_value_of_an_equal_row_is_not_that_of_another(tmp_path: Path) -> None:
    rows = [ROWS[0], *ROWS[:19]]
    state, accelerator, _ = start(frozen_model(), PACKED, None)
    found = look(state.model, rows, PLAN, PACKED, accelerator)
    cache = TrunkCache(tmp_path / "c", state.model, rows, PLAN, PACKED, accelerator, found)
    OPEN.append(cache)
    for _ in fit(state, rows, Plan(20, 8, 3, 3), PACKED, accelerator, trunk=cache):
        pass
    content = bytearray((tmp_path / "c").read_bytes())
    content[4096 + 16 : 4096 + 32] = content[4096 : 4096 + 16]
    first, second, end = cache._starts[:3]
    content[second:end] = content[first:second]
    (tmp_path / "c").write_bytes(content)
    assert [at for at in range(20) if cache._read(at, Decisions()) is None] == [1]


def feed_upwards(model: Any) -> None:
    kept: list[torch.Tensor] = []
    layers = model.model.layers
    layers[0].register_forward_hook(lambda _, __, output: kept.append(output))
    layers[3].register_forward_pre_hook(lambda _, given: (given[0] + kept[-1], *given[1:]))


def share(model: Any) -> None:
    model.config.num_kv_shared_layers = 1


def train_embeddings(model: Any) -> None:
    model.get_input_embeddings().weight.requires_grad_(True)


def train_all(model: Any) -> None:
    model.requires_grad_(True)


def need_the_trunk(model: Any) -> None:
    seen: dict[str, torch.Tensor] = {}
    layers = model.model.layers
    layers[0].mlp.register_forward_hook(lambda *_: seen.update(left=torch.zeros(())))

    def take(*_: Any) -> None:
        seen.pop("left")

    layers[3].register_forward_pre_hook(take)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (feed_upwards, "use more than the layer below hands on"),
        (need_the_trunk, "do not run alone .KeyError: 'left'"),
        (share, "keys and values of earlier ones"),
        (train_embeddings, "embed_tokens.weight is trained and changes"),
        (train_all, "something is trained in every layer"),
    ],
)
def test_what_would_change_the_trunk_is_refused(change: Callable[[Any], None], reason: str) -> None:
    model = frozen_model()
    change(model)
    with pytest.raises(NoTrunkError, match=reason):
        look(model, ROWS, PLAN, PACKED, cpu())


def test_an_adapter_above_the_trunk_makes_it_larger() -> None:
    model = add_lora(tiny_model("llama", num_hidden_layers=4), rank=4, alpha=8,
                     targets=["model.layers.3.self_attn.q_proj"])  # fmt: skip
    assert len(look(model, ROWS, PLAN, PACKED, cpu()).trunk.layers) == 3


def test_other_weights_batches_or_rows_do_not_take_the_old_values(tmp_path: Path) -> None:
    def other() -> Any:
        model = frozen_model()
        model.model.layers[0].mlp.up_proj.weight.data += 0.01
        return model

    def computed(model: Any, settings: Settings = PACKED) -> int:
        _, cache = losses_of(model, settings, tmp_path / "c")
        assert cache is not None
        return cache.computed

    assert computed(frozen_model()) == 20
    assert computed(frozen_model()) == 0
    assert computed(other()) == 20
    assert computed(other(), Settings(1e-2, capacity=128)) == 20
    assert computed(frozen_model()) == 20
    turned = Encoded(ROWS[5].ids[::-1], ROWS[5].weights, ROWS[5].origin)
    rows = [*ROWS[:5], turned, *ROWS[6:]]
    state, accelerator, _ = start(frozen_model(), PACKED, None)
    found = look(state.model, rows, PLAN, PACKED, accelerator)
    cache = TrunkCache(tmp_path / "c", state.model, rows, PLAN, PACKED, accelerator, found)
    OPEN.append(cache)
    assert [at for at in range(20) if cache._read(at, Decisions()) is None] == [5]


def test_a_full_disk_stops_with_a_sentence_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = losses_of(frozen_model(), PACKED, tmp_path / "whole")
    state, accelerator, cache = start(frozen_model(), PACKED, tmp_path / "c")
    assert cache is not None
    write = TrunkCache._write
    room = iter([True] * 20)

    def full(self: TrunkCache, place: int, content: Any) -> None:
        if not next(room, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, place, content)

    monkeypatch.setattr(TrunkCache, "_write", full)
    steps = fit(state, ROWS, PLAN, PACKED, accelerator, trunk=cache)
    next(steps)
    checkpoint.save(tmp_path, state, {})
    with pytest.raises(StorageError, match=r"the disk is full \([0-9,]+ bytes are needed"):
        next(steps)
    monkeypatch.undo()
    cache.close()
    assert state.step == 1
    saved, _ = checkpoint.latest(tmp_path)
    assert saved is not None
    state, accelerator, cache = start(frozen_model(), PACKED, tmp_path / "c")
    checkpoint.restore(saved, state)
    rest = [done.loss for done in fit(state, ROWS, PLAN, PACKED, accelerator, trunk=cache)]
    assert rest == whole[1:]


def test_a_disk_without_room_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="the disk is full"):
        start(frozen_model(), PACKED, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_file_system_that_reserves_nothing_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", unable, raising=False)
    _, cache = losses_of(frozen_model(), PACKED, tmp_path / "c")
    assert cache is not None
    assert cache.computed == 20


def test_the_size_is_the_one_that_was_said(tmp_path: Path) -> None:
    model = frozen_model()
    found = look(model, ROWS, PLAN, PACKED, cpu())
    sizes = [len(row.ids) for row in ROWS]
    losses_of(model, PACKED, tmp_path / "c")
    assert (tmp_path / "c").stat().st_size == size_in_bytes(found, sizes)
    assert size_in_bytes(found, sizes) - sum(sizes) * 32 * 4 < 3 * 4096


def test_layers_that_return_tuples_do_too() -> None:
    """Some versions of transformers have blocks that return tuples."""

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            for layer in self.layers:
                plain = layer.forward
                layer.forward = lambda x, plain=plain: (plain(x), None)
            self.layers[:2].requires_grad_(False)
            self.config = SimpleNamespace()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x, _ = layer(x)
            return x

    model = Wrapped()
    x = torch.randn(1, 3, 4)
    trunk = find_trunk(model)
    with torch.no_grad(), caught(trunk) as found:
        model(x)
    with replaced(trunk, found[0]):
        assert torch.equal(model(torch.zeros_like(x)), model(x))
        above = model(x)
    assert torch.equal(above, model(x))
    assert not torch.equal(model(torch.zeros_like(x)), model(x))
