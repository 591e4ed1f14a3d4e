"""What a run will take, before it is started: memory by arithmetic, time by a few real steps.

The arithmetic runs the model's own code on the meta device, which has shapes and no numbers, and
adds up what autograd keeps for the backward pass. So it holds for every architecture, and what is
frozen, adapted or recomputed counts as it will.
"""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.models.adapters import blocks
from tunesmith.models.attention import packed, read_only_at
from tunesmith.models.memory import resident_bytes
from tunesmith.models.packs import Group
from tunesmith.models.quantize import parameter_bytes, plain_shells
from tunesmith.train.batches import Plan
from tunesmith.train.label_loss import label_losses
from tunesmith.train.largest import groups_of, largest_batches
from tunesmith.train.loop import Settings, State, fit
from tunesmith.train.losses import HELD_OUT_CAPACITY, head_places, lay_out, lengths, row_losses
from tunesmith.train.snapshot import untouched
from tunesmith.types import Encoded

MOMENTS = 2
"""Tensors of AdamW as large as the parameter, besides a step count of 4 bytes."""
EIGHT_BIT_FROM, EIGHT_BIT_BLOCK = 4096, 256
"""Numbers from which bitsandbytes keeps moments in eight bits, and those that share a scale."""
HELD_OUT_ROWS = 64
"""Held-out rows that are timed."""
SAMPLE_S = 0.002
"""How often a probe looks at the memory."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training step by part, on one device."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass of the largest micro-batch, the head apart."""
    head: int
    """Vocabulary head and loss, on trained tokens only if rows are packed."""
    accumulated: bool
    """Whether some step has several micro-batches, so that gradients wait beside activations."""
    block: int = 0
    """What one block keeps: the least that the end of a backward pass holds beside gradients."""

    @property
    def peak(self) -> int:
        """Return the most that is held at once, from the second step on."""
        forward = self.activations + self.head + (self.gradients if self.accumulated else 0)
        return self.parameters + self.optimizer + max(forward, self.gradients + self.block)


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch as the memory sees it."""

    groups: tuple[Group, ...]
    """How packed rows lie; a padded row is a group of its own, padding included."""
    trained: int
    """Places that the head is computed for."""
    packing: bool
    attention: str = "segments"

    @property
    def tokens(self) -> int:
        """Return its tokens, padding included."""
        return sum(group.tokens for group in self.groups)


@dataclass(frozen=True, slots=True)
class Probe:
    """One timed step."""

    step: int
    tokens: int
    seconds: float
    grown: int
    """Bytes by which the process, or the GPU's memory in use, had grown at most since before the
    first probe: what the allocator keeps between steps, and cannot use for others, adds up."""


def static_memory(model: Any, optim: str = "adamw") -> tuple[int, int, int]:
    """Return the bytes of parameters, of gradients and of the optimiser; works on meta too."""
    whole = parameter_bytes(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    if optim == "adafactor":
        kept = sum(_factored(p) * p.element_size() for p in trained)
    elif optim == "adamw_8bit":
        kept = sum(_eight_bit(p) for p in trained)
    else:
        kept = MOMENTS * gradients
    return whole, gradients, kept + 4 * len(trained)


def _factored(parameter: Any) -> int:
    """Return the numbers that Adafactor keeps of a parameter: a row and a column of a matrix."""
    if parameter.dim() < 2:
        return int(parameter.numel())
    return int(parameter.numel() // parameter.shape[-1] + parameter.numel() // parameter.shape[-2])


def _eight_bit(parameter: Any) -> int:
    """Return the bytes that eight-bit AdamW keeps of a parameter; small ones stay in 32 bits."""
    numbers = int(parameter.numel())
    if numbers < EIGHT_BIT_FROM:
        return 4 * MOMENTS * numbers
    return MOMENTS * (numbers + 4 * -(-numbers // EIGHT_BIT_BLOCK))


def on_meta(
    model: Any, *, recompute: bool | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """Return a copy of a model on the meta device; ``recompute`` turns checkpointing on or off.

    Quantised layers become plain ones of ``dtype``: they keep the same for the backward pass, but
    their own bytes are another number.
    """
    known: dict[int, Any] = dict(plain_shells(model, dtype))
    # The copy takes these for layers and tensors, so no weight is ever copied.
    for module in [module for module in model.modules() if id(module) not in known]:
        for buffer in module.buffers(recurse=False):
            known[id(buffer)] = buffer.to("meta")
        for weight in module.parameters(recurse=False):
            if id(weight) not in known:
                shell = torch.nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
                known[id(weight)] = shell
    shells = copy.deepcopy(model, known)
    # Autocast wraps the forward of the original; without it the numbers are an upper bound.
    shells.__dict__.pop("forward", None)
    for module in shells.modules():
        if recompute is not None and hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = recompute
    return shells


def held_out_seconds(
    model: Any, rows: Sequence[Encoded], accelerator: Any, attention: str = "segments"
) -> float:
    """Time the loss of some held-out rows and return what all of them would take."""
    if not rows:
        return 0.0
    some = [rows[at] for at in range(min(len(rows), HELD_OUT_ROWS))]
    began = time.perf_counter()
    row_losses(model, some, accelerator.device, HELD_OUT_CAPACITY, attention)
    share = sum(lengths(some)) / sum(lengths(rows))
    return (time.perf_counter() - began) / share


def step_tokens(sizes: Sequence[int], plan: Plan) -> list[int]:
    """Return the tokens of each step of the first epoch, which the later ones resemble."""
    steps = range(min(plan.total_steps, plan.steps_an_epoch))
    return [sum(sizes[at] for at in plan.step_rows(step)) for step in steps]


def largest(
    rows: Sequence[Encoded], sizes: Sequence[int], plan: Plan, settings: Settings, processes: int
) -> tuple[Shape, bool]:
    """Return the largest micro-batch of the plan's first epoch, and whether steps have several."""
    [most, *_], several = largest_batches(rows, sizes, plan, settings, processes)
    if settings.packing:
        trained = len(head_places(lay_out(rows, most)))
    else:
        places_of = [rows[at].weights[1:] for bundle in most for at in bundle.rows]
        trained = sum(1 for weights in places_of for weight in weights if weight)
    attention = settings.attention if settings.packing else "segments"
    return Shape(groups_of(most, settings), trained, settings.packing, attention), several


def memory(
    model: Any,
    shape: Shape,
    *,
    several: bool,
    recomputed: Any = None,
    optim: str = "adamw",
    held: int | None = None,
) -> Memory:
    """Add up the memory of training a model; both it and ``recomputed`` lie on the meta device.

    ``recomputed`` is the same model with some layers computed again, where that is on. ``held``
    are the bytes of the weights where the copies have another number, as those of quantised ones.
    """
    parameters, gradients, optimizer = static_memory(model, optim)
    parameters = parameters if held is None else held
    words = model.get_output_embeddings().weight.shape[0]
    size = next(model.parameters()).element_size()
    # Logits in float32, which become their gradient; the head may want that in its own type.
    logits = 4 * shape.trained * words
    head = logits + (size * shape.trained * words if size < 4 else 0)
    if not shape.packing:
        # Without packing the head runs on every position, and so does its gradient.
        head += 2 * size * shape.tokens * words
    kept = max(0, kept_bytes(model, shape) - logits)
    block = kept // len(blocks(model))
    if recomputed is not None:
        outside = max(0, kept_bytes(recomputed, shape) - logits)
        layers = sum(
            getattr(layer, "gradient_checkpointing", False) for layer in blocks(recomputed)
        )
        width = model.get_input_embeddings().weight.shape[1]
        # The input of each such block is kept, and one block at a time is computed again.
        again = (kept - outside) // max(1, layers)
        kept = min(kept, outside + layers * shape.tokens * width * size + again)
    return Memory(parameters, gradients, optimizer, kept, head, several, block)


def kept_bytes(model: Any, shape: Shape) -> int:
    """Return what autograd keeps of a forward pass on the meta device, parameters left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in own:
            kept[place] = tensor
        return tensor

    model.train()
    device = torch.device("meta")
    ids = torch.zeros(1, shape.tokens, dtype=torch.long, device=device)
    extra: dict[str, Any] = {}
    if shape.packing:
        extra["logits_to_keep"] = torch.zeros(shape.trained, dtype=torch.long, device=device)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with packed(model, shape.groups, shape.attention), hooks:
        if shape.packing:
            read_only_at(range(min(shape.trained, shape.tokens)))
        # A mask of ones keeps transformers from looking at numbers that the meta device has not.
        mask = torch.ones(1, shape.tokens, device=device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits.flatten(
            0, 1
        )
        places = torch.zeros(shape.trained, dtype=torch.long, device=device)
        losses = label_losses(logits[: shape.trained], places)
    total: int = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del losses, logits
    return total


def probe(
    state: State,
    rows: Sequence[Encoded],
    plan: Plan,
    settings: Settings,
    accelerator: Any,
    steps: Sequence[int],
    after: Callable[[State], None] | None = None,
) -> list[Probe]:
    """Take these steps of the plan for a look, and put everything back as it was.

    ``after`` is called with the state behind the last step, before that.
    Weights copied for that are not part of the growth that a probe reports. Where new tokens train
    alone at first, the steps are taken as later ones, unless there are none.
    """
    found = []
    if settings.new_rows is not None and settings.new_rows.steps < plan.total_steps:
        settings = replace(settings, new_rows=None)
    with untouched(state):
        first = held_bytes(accelerator.device)
        for step in steps:
            # A plan of one step whose rows are those of the wanted one.
            picked = [rows[at] for at in plan.step_rows(step)]
            alone = replace(
                plan, rows=len(picked), rows_a_step=len(picked), total_steps=1, prompts=None
            )
            lone = State(state.model, state.optimizer)
            before = held_bytes(accelerator.device) - first
            with watched(accelerator.device) as grown:
                [done] = fit(lone, picked, alone, settings, accelerator)
            found.append(Probe(step, done.tokens, done.seconds, before + grown[0]))
        if after is not None:
            after(lone)
    return found


def held_bytes(device: torch.device) -> int:
    """Return what this process holds now, or what is allocated on the GPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


@contextmanager
def watched(device: torch.device) -> Iterator[list[int]]:
    """Yield a list whose one number is, at the end, by how many bytes the memory grew at most."""
    grown = [0]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield grown
        grown[0] = torch.cuda.max_memory_allocated(device) - before
        return
    before, done = resident_bytes(), threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_S):
            grown[0] = max(grown[0], resident_bytes() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield grown
    finally:
        done.set()
        thread.join()
        grown[0] = max(grown[0], resident_bytes() - before)


def chosen_steps(tokens: Sequence[int], typical: int) -> list[int]:
    """Return the longest step, twice (the first warms up), and steps spread over the sizes."""
    order = sorted(range(len(tokens)), key=lambda step: (tokens[step], step))
    inner = [order[round((len(order) - 1) * (at + 0.5) / typical)] for at in range(typical)]
    return [order[-1], order[-1], *inner]


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of all steps, with the range that single probes would give."""

    seconds: float
    low: float
    high: float
    a_step: float
    tokens_per_s: float


def duration(probes: Sequence[Probe], tokens: Sequence[int], total_steps: int) -> Duration:
    """Scale the timed probes, the first left out, to all steps by their tokens."""
    timed = probes[1:]
    speeds = [probe.tokens / probe.seconds for probe in timed]
    speed = sum(probe.tokens for probe in timed) / sum(probe.seconds for probe in timed)
    a_step = statistics.fmean(tokens) / speed
    whole = statistics.fmean(tokens) * total_steps
    return Duration(total_steps * a_step, whole / max(speeds), whole / min(speeds), a_step, speed)
