"""The rehearsal of a run: its largest batches and longest answers, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.tasks.base import GradedTask
from tunesmith.workflows import console
from tunesmith.workflows.setup import Opened
from tunesmith.workflows.trial import as_trained

if TYPE_CHECKING:
    from tunesmith.generate.requests import Request
    from tunesmith.train.batches import Plan
    from tunesmith.train.loop import Settings, State
    from tunesmith.train.rehearsal import Part, Rehearsed

DECODED = 3
"""Tokens that each answer of the rehearsal gets: room is made for the whole of it before."""


def rehearse_run(opened: Opened, plan: Plan, settings: Settings, accelerator: Any) -> int | None:
    """Compute what is largest of a run once; ``OutOfMemoryError`` if the run could not end.

    Returns the size of the micro-batches that fit, in tokens or padded rows, where those of the
    settings do not; else None.
    Without ``--rehearsal`` a run goes without it if it is resumed, or so short that the rehearsal
    would be more than 3% of its tokens. Several processes always go without: what one of them
    needs says little of the others.
    """
    import time

    from tunesmith.models.memory import free_bytes
    from tunesmith.train import rehearsal
    from tunesmith.train.estimate import static_memory
    from tunesmith.train.largest import largest_batches, tokens_of
    from tunesmith.train.losses import HELD_OUT_CAPACITY, lengths

    config, rows, device = opened.config, opened.rows.rows, accelerator.device
    if config.rehearsal is False or (config.rehearsal is None and config.resume is not None):
        return None
    if accelerator.num_processes > 1:
        return None
    began = time.perf_counter()
    sizes = lengths(rows)
    batches, _ = largest_batches(rows, sizes, plan, settings)
    costs = sum(tokens_of(found, settings) for found in batches)
    # A held-out loss is a third of the work: no backward pass.
    costs += min(HELD_OUT_CAPACITY, opened.held.tokens) // 3
    run = sum(sizes) * plan.total_steps / plan.steps_an_epoch
    if config.rehearsal is None and costs > rehearsal.SHARE * run:
        console.debug(f"no rehearsal: it would be {costs / run:.0%} of this short run")
        return None
    with as_trained(config, opened.loaded) as model:
        _, gradients, optimizer = static_memory(model, config.optim)
        kept = (optimizer, gradients)
        found, size = _largest_that_fit(opened, plan, settings, accelerator, kept)
        parts = []
        if opened.held.rows:
            held = opened.held.rows
            way = settings.attention
            parts.append(rehearsal.held_out_part(model, held, device, optimizer, way))
        asked = _longest_answers(opened, config, optimizer)
        parts += [asked] if asked is not None else []
        found += [rehearsal.rehearse(part, model, device) for part in parts]
    most = max(found, key=lambda one: one.grown + one.part.kept)
    console.say(
        f"Rehearsed in {time.perf_counter() - began:.1f} s: "
        + ", ".join(f"{one.part.name} ({one.part.size})" for one in found)
        + f". At most {(most.grown + most.part.kept) / 1e9:.2f} GB beside the weights, of "
        f"{free_bytes(device) / 1e9:.2f} GB free."
    )
    return size


def _largest_that_fit(
    opened: Opened,
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    kept: tuple[int, int],
) -> tuple[list[Rehearsed], int | None]:
    """Rehearse the largest training batches, halved as often as a step would be in the run."""
    from tunesmith.errors import OutOfMemoryError
    from tunesmith.models.memory import free_bytes, give_back
    from tunesmith.train import rehearsal
    from tunesmith.train.largest import largest_batches
    from tunesmith.train.losses import lengths
    from tunesmith.train.shrink import halved, sized

    rows, model, device = opened.rows.rows, opened.loaded.model, accelerator.device
    size: int | None = None
    while True:
        shaped = sized(settings, size)
        parts = rehearsal.training_parts(model, rows, plan, shaped, accelerator, kept)
        try:
            if device.type == "cpu":
                needs = _by_arithmetic(opened, plan, shaped, accelerator)
                rehearsal.refuse_by_arithmetic(parts[0], needs, free_bytes(device), device)
            return [rehearsal.rehearse(part, model, device) for part in parts], size
        except OutOfMemoryError:
            batches, _ = largest_batches(rows, lengths(rows), plan, shaped)
            size = halved(shaped, batches)
            if size is None:
                raise
        give_back(device)


def begin_smaller(state: State, size: int | None, settings: Settings) -> None:
    """Let a run begin with the micro-batches that its rehearsal found to fit, and say so."""
    if size is not None:
        unit = "tokens" if settings.packing else "rows"
        why = "the rehearsal found too little memory for larger ones"
        state.decisions.shrink(state.step, size, f"{size} {unit}", why)


def _by_arithmetic(opened: Opened, plan: Plan, settings: Settings, accelerator: Any) -> int:
    """Return the bytes of a step beside the parameters, counted without a pass."""
    from tunesmith.workflows.footprint import training_memory

    memory = training_memory(opened, plan, settings, accelerator)
    return memory.peak - memory.parameters


def _longest_answers(opened: Opened, config: FineTuningConfig, optimizer: int) -> Part | None:
    """Return the longest prompts of the final evaluation, answered for a few tokens, as a part."""
    from tunesmith.generate.engine import MOST_SLOTS, Engine
    from tunesmith.tasks.registry import get_task
    from tunesmith.train.rehearsal import Part

    task = get_task(config.task)
    questions = opened.data.questions
    if not isinstance(task, GradedTask) or not questions or not config.eval_questions:
        return None
    requests = sorted(_requests(opened, task), key=lambda one: -len(one.prompt_ids))[:MOST_SLOTS]
    longest, limit = len(requests[0].prompt_ids), requests[0].sampling.max_new_tokens
    room = opened.loaded.max_positions - longest
    if 0 < room < limit:
        console.warn(
            f"the longest prompt of the final evaluation has {longest} tokens, so its answer ends "
            f"after {room} instead of {limit}"
        )

    def make() -> None:
        engine = Engine(opened.loaded.model, opened.renderer.decode, opened.renderer.stop_ids)
        looked = iter(range(DECODED))
        list(engine.run(requests, should_stop=lambda: next(looked, None) is None))

    tokens = sum(len(one.prompt_ids) for one in requests)
    return Part(
        "the longest answers of the final evaluation",
        f"{len(requests)} at once, prompts of up to {longest:,} and answers of up to {limit:,} "
        "tokens",
        tokens,
        f"fewer --eval-questions than {len(questions)}, or 0 for none",
        make,
        optimizer,
    )


def _requests(opened: Opened, task: GradedTask) -> list[Request]:
    from tunesmith.generate.requests import Request
    from tunesmith.workflows.evaluate import greedy_plan

    plan = greedy_plan(task, opened.data.questions, task.prompts[0], 0)
    return [
        Request(problem.id, opened.renderer.prompt_ids(plan.messages(problem)), plan.sampling, 0)
        for problem in plan.problems
    ]
