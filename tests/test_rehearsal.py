"""The rehearsal: it leaves no trace, and a run that could not end fails before its first step."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import tunesmith
from test_estimate import make, make_rows
from test_quantised import needs_package
from test_workflows import in_a_folder, weights, write_rows  # noqa: F401
from tiny_models import tiny_model
from tunesmith.cli import main
from tunesmith.errors import TrainingError, UsageError
from tunesmith.models import memory
from tunesmith.models.adapters import add_lora
from tunesmith.tasks.registry import get_task
from tunesmith.train import largest, rehearsal
from tunesmith.train.batches import Plan
from tunesmith.train.estimate import static_memory
from tunesmith.train.largest import ALIKE, largest_batches, tokens_of
from tunesmith.train.loop import Settings, micro_batches
from tunesmith.train.sharing import Bundle
from tunesmith.types import Encoded, Origin
from tunesmith.workflows import rehearsal as workflow

CPU = torch.device("cpu")
PLAN = Plan(24, 8, 3, 0)
COMMAND = ["train", "--dataset", "rows.jsonl", "--max-steps", "3", "--report-to", "none"]


def parts_of(
    model: Any, settings: Settings, rows: list[Encoded] | None = None, plan: Plan = PLAN
) -> list[rehearsal.Part]:
    _, gradients, optimizer = static_memory(model)
    accelerator = Accelerator(cpu=True)
    kept = (optimizer, gradients)
    return rehearsal.training_parts(model, rows or make_rows(), plan, settings, accelerator, kept)


def everything(model: Any) -> list[Any]:
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [p.grad for p in model.parameters()],
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_a_part_leaves_no_trace(packing: bool) -> None:
    base = tiny_model("llama", attention_dropout=0.3)
    model = add_lora(base, rank=4, alpha=8, dropout=0.3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    before = everything(model)
    settings = Settings(1e-3, packing=packing, capacity=40, rows_a_micro_batch=3)
    parts = [*parts_of(model, settings), rehearsal.held_out_part(model, make_rows(), CPU, 0)]
    seen: list[int] = []
    for part in parts:
        rehearsal.rehearse(part, model, CPU)
        seen.append(part.tokens)
    after = everything(model)
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:] == after[1:]
    assert min(seen) > 20


def rows_of(sizes: list[int]) -> list[Encoded]:
    return [
        Encoded((at + 1,) * size, (0.0, *[1.0] * (size - 1)), Origin("test", at))
        for at, size in enumerate(sizes)
    ]


def test_the_most_tokens_and_the_longest_row_are_found() -> None:
    sizes = [10, 10, 10, 10, 25, 5, 5, 5]
    rows, whole = rows_of(sizes), Plan(8, 8, 1, 0)
    batches, several = largest_batches(rows, sizes, whole, Settings(1e-3, capacity=30))
    assert several
    assert [sorted(bundle.lengths[0] for bundle in found) for found in batches] == [[5, 25]]
    for longest, tokens in ((24, [40]), (39, [40, 39])):
        three, settings = [20, 20, longest], Settings(1e-3, capacity=40)
        two, _ = largest_batches(rows_of(three), three, Plan(3, 3, 1, 0), settings)
        assert [tokens_of(found, settings) for found in two] == tokens
    padded = Settings(1e-3, packing=False, rows_a_micro_batch=4)
    batches, _ = largest_batches(rows, sizes, whole, padded)
    assert len(batches) == 1
    assert tokens_of(batches[0], padded) == 4 * 25


def searched_everywhere(
    rows: list[Encoded], sizes: list[int], plan: Plan, settings: Settings
) -> tuple[list[list[Bundle]], bool]:
    """Return what ``largest_batches`` does, having laid out every step."""
    steps = range(min(plan.total_steps, plan.steps_an_epoch))
    found = [micro_batches(plan.step_rows(step), rows, sizes, settings) for step in steps]

    def key(batch: list[Bundle]) -> tuple[int, int]:
        return tokens_of(batch, settings), max(max(bundle.lengths) for bundle in batch)

    batches = [batch for some in found for batch in some]
    most, longest = max(batches, key=key), max(batches, key=lambda batch: key(batch)[::-1])
    alike = key(most)[1] >= ALIKE * key(longest)[1]
    return [most] if alike else [most, longest], any(len(some) > 1 for some in found)


@pytest.mark.parametrize("seed", range(12))
def test_steps_that_cannot_be_larger_are_left_out_without_a_difference(seed: int) -> None:
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(9) for _ in range(rng.randint(1, 60))) for _ in range(6)]
    rows = []
    for at in range(rng.randint(1, 60)):
        ids = rng.choice(prompts) + tuple(range(rng.choice((1, 5, 40))))
        rows.append(Encoded(ids, (0.0, *[1.0] * (len(ids) - 1)), Origin("test", at)))
    sizes = [len(row.ids) for row in rows]
    plan = Plan(len(rows), rng.randint(1, 9), rng.randint(1, 60), seed)
    for capacity in (40, 110, 400):
        for more in (
            *({"shared_prefix": shared} for shared in ("auto", "grouped", "off")),
            {"packing": False},
        ):
            settings = Settings(1e-3, capacity=capacity, rows_a_micro_batch=3, **more)
            expected = searched_everywhere(rows, sizes, plan, settings)
            assert largest_batches(rows, sizes, plan, settings) == expected


def test_a_small_step_of_several_micro_batches_is_seen() -> None:
    settings = Settings(1e-3, capacity=40, shared_prefix="off")
    for seed in range(8):
        sizes, plan = [39, 1, 25, 25], Plan(4, 2, 9, seed)
        expected = searched_everywhere(rows_of(sizes), sizes, plan, settings)
        assert largest_batches(rows_of(sizes), sizes, plan, settings) == expected


def test_few_steps_of_a_long_run_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = []

    def counted(mine: Any, *given: Any) -> Any:
        laid_out.append(len(mine))
        return micro_batches(mine, *given)

    monkeypatch.setattr(largest, "micro_batches", counted)
    rng = random.Random(0)
    sizes = [rng.randint(20, 400) for _ in range(20_000)]
    for settings in (Settings(1e-3, shared_prefix="off"), Settings(1e-3, packing=False)):
        laid_out.clear()
        largest_batches([], sizes, Plan(20_000, 8, 9999, 0), settings)
        assert 0 < len(laid_out) < 500


def test_what_rows_share_is_counted_once() -> None:
    prompt, settings = tuple(range(100, 140)), Settings(1e-3, capacity=64)
    rows = [Encoded((*prompt, at), (0.0,) * 40 + (1.0,), Origin("test", at)) for at in range(8)]
    [found], several = largest_batches(rows, [41] * 8, Plan(8, 8, 1, 0), settings)
    assert tokens_of(found, settings) == 48
    assert not several
    [part] = parts_of(make("full"), settings, rows, Plan(8, 8, 1, 0))
    assert part.size == "8 rows, 48 tokens"
    assert rehearsal.rehearse(part, make("full"), CPU).grown >= 0


def test_what_the_optimiser_takes_later_counts() -> None:
    model = make("full")
    [part] = parts_of(model, Settings(1e-3, capacity=4096))
    assert part.kept == static_memory(model)[2]
    rehearsal.rehearse(part, model, CPU, lambda _: part.kept + 10**9)
    with pytest.raises(TrainingError, match=r"largest training batch \(8 rows, ") as failure:
        rehearsal.rehearse(part, model, CPU, lambda _: part.kept - 1)
    assert "--gradient-checkpointing auto" in str(failure.value)
    assert "--no-rehearsal" in str(failure.value)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
)
def test_a_failed_allocation_becomes_a_sentence(failure: BaseException) -> None:
    def fail() -> None:
        raise failure

    model = make("full")
    part = rehearsal.Part("the held-out loss", "9 rows", 9, "--max-length", fail, 0)
    with pytest.raises(TrainingError, match=r"the held-out loss \(9 rows\) needs more than"):
        rehearsal.rehearse(part, model, CPU)


def test_other_failures_stay_what_they_are() -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not match")

    part = rehearsal.Part("", "", 0, "", fail, 0)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        rehearsal.rehearse(part, make("full"), CPU)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"lora": True, "lora_rank": 4, "lora_dropout": 0.2}, marks=pytest.mark.slow),
        {"lora": True, "lora_rank": 4, "lora_init": "pissa", "gradient_checkpointing": True},
        pytest.param({"freeze_ratio": 0.5, "neftune_alpha": 5.0}, marks=pytest.mark.slow),
        {"shared_prefix": "grouped"},
        pytest.param(
            {"lora": True, "lora_rank": 4, "load_in_4bit": True},
            marks=[needs_package, pytest.mark.slow],
        ),
    ],
    ids=str,
)
def test_weights_with_and_without_are_equal_to_the_bit(
    method: dict[str, Any],
) -> None:
    write_rows("rows.jsonl")
    for name, rehearsed in (("with", True), ("without", False)):
        tunesmith.train(
            dataset="rows.jsonl",
            max_steps=3,
            report_to="none",
            run_name=name,
            rehearsal=rehearsed,
            learning_rate=1e-3,
            **method,
        )
    one, other = weights("with"), weights("without")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_the_answers_of_the_end_are_rehearsed_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(type(get_task("units")), "max_new_tokens", 8)
    units = ["train", "--task", "units", "--max-rows", "60", "--max-steps", "1", "--lora"]
    units += ["--eval-questions", "1", "--report-to", "none"]
    assert main([*units, "--run-name", "with", "--rehearsal"]) == 0
    assert "the longest answers of the final evaluation (1 at once" in capsys.readouterr().err
    assert main([*units, "--run-name", "without", "--no-rehearsal"]) == 0
    assert "Rehearsed" not in capsys.readouterr().err
    answers = [Path(f"runs/{name}/eval/base/attempts.jsonl") for name in ("with", "without")]
    one, other = (path.read_text().splitlines() for path in answers)
    assert one == other


def test_a_run_without_the_memory_fails_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl")
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3_000_000)
    assert main([*COMMAND, "--rehearsal", "--run-name", "tight"]) == 6
    said = capsys.readouterr().err
    assert "This run could not end: the largest training batch (1 row, " in said
    assert "by arithmetic" in said
    assert not Path("runs/tight/checkpoints").exists()
    assert main([*COMMAND, "--no-rehearsal", "--run-name", "tight", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("more", "unit"), [((), "tokens"), (("--no-packing",), "rows")], ids=["packed", "padded"]
)
def test_a_run_whose_batches_fit_when_halved_is_not_refused(
    more: tuple[str, ...], unit: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_rows("rows.jsonl")
    line = [*COMMAND, *more, "--rehearsal", "--per-device-train-batch-size", "4"]
    assert main([*line, "--run-name", "roomy"]) == 0
    assert "shrink" not in capsys.readouterr().err
    real, tried = workflow._by_arithmetic, []

    def larger(opened: Any, plan: Plan, settings: Settings, accelerator: Any) -> int:
        tried.append(settings.capacity if settings.packing else settings.rows_a_micro_batch)
        return real(opened, plan, settings, accelerator) if len(tried) > 1 else 1 << 60

    monkeypatch.setattr(workflow, "_by_arithmetic", larger)
    assert main([*line, "--run-name", "tight"]) == 0
    said = capsys.readouterr().err
    assert len(tried) == 2
    assert tried[1] < tried[0]
    why = "the rehearsal found too little memory for larger ones"
    assert f"{why}, so micro-batches shrink to {tried[1]} {unit}" in said
    sizes = json.loads(Path("runs/tight/decisions.json").read_text())["sizes"]
    assert sizes == {"0": tried[1]}
    one, other = weights("roomy"), weights("tight")
    assert all(torch.allclose(value, other[name], atol=1e-5) for name, value in one.items())


def test_short_and_resumed_runs_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows("rows.jsonl")
    made: list[str] = []
    monkeypatch.setattr(
        rehearsal,
        "rehearse",
        lambda part, *_: made.append(part.name) or rehearsal.Rehearsed(part, 0),
    )
    monkeypatch.setattr(rehearsal, "SHARE", 0.5)
    assert main([*COMMAND, "--run-name", "long"]) == 0
    assert made == ["the largest training batch", "the largest batch of the held-out loss"]
    made.clear()
    assert main([*COMMAND, "--run-name", "long", "--resume"]) == 0
    assert made == []
    monkeypatch.setattr(rehearsal, "SHARE", 0.03)
    assert main([*COMMAND, "--run-name", "short"]) == 0
    assert made == []


def test_a_prompt_beyond_the_positions_is_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.generate.requests import Request, Sampling

    def too_long(*_: Any) -> list[Request]:
        return [Request("long", (5,) * 3000, Sampling(8))]

    monkeypatch.setattr(workflow, "_requests", too_long)
    with pytest.raises(UsageError, match="3000 tokens"):
        tunesmith.train(task="units", max_rows=40, max_steps=1, eval_questions=1, rehearsal=True)
