"""Memory that runs out while a trunk cache is filled: smaller parts, and the same bits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from injected import OUT_OF_MEMORY, at_forward, no_memory
from test_trunk import (
    PACKED,
    PADDED,
    PLAN,
    ROWS,
    closed,  # noqa: F401
    frozen_model,
    losses_of,
    start,
)
from tunesmith.train.decisions import Decisions
from tunesmith.train.loop import Settings, fit


def limited(model: Any, tokens: int) -> Any:
    """Let the lowest layer fail for more tokens at once than this."""

    def check(_: Any, given: tuple[Any, ...]) -> None:
        if given[0].shape[0] * given[0].shape[1] > tokens:
            raise OUT_OF_MEMORY["cuda"]()

    model.model.layers[0].register_forward_pre_hook(check)
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("settings", [PACKED, PADDED], ids=["packed", "padded"])
def test_a_trunk_for_which_memory_runs_out_is_run_in_smaller_parts(
    settings: Settings, tmp_path: Path
) -> None:
    plain, _ = losses_of(frozen_model(), settings, None)
    most = max(len(row.ids) for row in ROWS)  # what a row alone needs
    state, accelerator, cache = start(frozen_model(), settings, tmp_path / "c")
    limited(state.model, most + 2)
    found = [done.loss for done in fit(state, ROWS, PLAN, settings, accelerator, trunk=cache)]
    assert found == pytest.approx(plain, abs=2e-6)
    assert state.decisions.sizes
    assert cache is not None
    assert cache.computed == len(ROWS)


def test_a_value_of_a_larger_part_is_not_that_of_a_smaller_one(tmp_path: Path) -> None:
    state, accelerator, cache = start(frozen_model(), PACKED, tmp_path / "c")
    assert cache is not None
    for _ in fit(state, ROWS, PLAN, PACKED, accelerator, trunk=cache):
        pass
    cache = start(frozen_model(), PACKED, tmp_path / "c")[2]
    assert cache is not None
    smaller = Decisions(sizes={1: 24})
    kept = [cache._read(at, smaller) is not None for at in range(len(ROWS))]
    assert kept == [at in PLAN.step_rows(0) for at in range(len(ROWS))]
    assert all(cache._read(at, Decisions()) is not None for at in range(len(ROWS)))


@pytest.mark.parametrize("at", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_values_from_before_a_part_shrank_are_made_again(at: int, tmp_path: Path) -> None:
    """The trunk's pass fits and the layers above do not: the step is computed in smaller parts."""
    state, accelerator, cache = start(frozen_model(), PACKED, tmp_path / "c")
    with at_forward(state.model, {at}, no_memory()):
        losses = [done.loss for done in fit(state, ROWS, PLAN, PACKED, accelerator, trunk=cache)]
    assert state.decisions.sizes
    # Without the failure and without the file, as after a kill on another machine.
    again, accelerator, cache = start(frozen_model(), PACKED, tmp_path / "d")
    again.decisions = Decisions.from_json(state.decisions.to_json())
    replayed = [done.loss for done in fit(again, ROWS, PLAN, PACKED, accelerator, trunk=cache)]
    assert replayed == losses
    values = weights(again.model)
    assert all(torch.equal(value, values[name]) for name, value in weights(state.model).items())
