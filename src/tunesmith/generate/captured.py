"""A decode step whose kernels are recorded once and launched together: CUDA graphs.

A step of a small model takes longer to launch than to compute. A graph computes on fixed buffers
and fixed shapes, so there is one for each pair of rows and reach, both rounded up: rows to a power
of two, reach to ``BLOCK``. Rows beyond the active ones write into free slots, whose places are
written again before anything reads them.

A recorded step has to give what the model gives, on other inputs than those of the recording;
where it does not, or the model cannot be recorded, the steps go on as they were.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tunesmith.generate.cache import Store
from tunesmith.models.memory import is_out_of_memory

BLOCK = 256
"""Own tokens by which the reach of a graph grows."""
WORTH = 4
"""Steps of a shape that are made before it is recorded: recording takes several of them."""
APART = 1e-2
"""By how much a recorded step may differ from the model's: relative, and in logits."""

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Token ids [B, 1] and positions [B, 1] → logits [B, V] of the store's first B rows."""
Capture = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""Records a step; returns what launches it again and the tensor that then holds its result."""


def cuda_graphs() -> Capture:
    """Return what records steps as CUDA graphs, all of which use one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up at first is not recorded
            step()
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            made = step()
        return graph.replay, made

    return capture


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A step of one shape, its inputs and its result."""

    ids: torch.Tensor
    starts: torch.Tensor
    logits: torch.Tensor
    replay: Callable[[], None]


class CapturedSteps:
    """Decode steps over one store, recorded as their shapes come up again."""

    def __init__(self, store: Store, forward: Forward, capture: Capture) -> None:
        self._store, self._forward, self._capture = store, forward, capture
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._met: Counter[tuple[int, int]] = Counter()
        self.replayed = 0
        """Steps that were launched from a recording."""
        self.given_up = ""
        """Why nothing is recorded any more."""

    def __call__(self, ids: torch.Tensor, starts: torch.Tensor, reach: int) -> torch.Tensor | None:
        """Return logits [n, V] for the last tokens [n, 1] of the first n rows, or None.

        ``starts`` are the own tokens that each row holds [n], both on the model's device; after the
        step no row holds more than ``reach``. None where the caller has to run the model itself.
        """
        if self.given_up:
            return None
        rows = len(ids)
        shape = (
            min(1 << (rows - 1).bit_length(), self._store.slots),
            min(-(-reach // BLOCK) * BLOCK, self._store.room),
        )
        recorded = self._recorded.get(shape)
        if recorded is None:
            self._met[shape] += 1
            if self._met[shape] <= WORTH:
                return None
            recorded = self._record(*shape, ids, starts)
            if recorded is None:
                return None
        _set(recorded, ids, starts)
        recorded.replay()
        self.replayed += 1
        return recorded.logits[:rows]

    def _record(
        self, rows: int, reach: int, ids: torch.Tensor, starts: torch.Tensor
    ) -> _Recorded | None:
        """Record a shape; None, and nothing is recorded from then on, where that goes wrong."""
        fixed_ids, fixed_starts = ids.new_zeros(rows, 1), starts.new_zeros(rows)
        store = self._store

        def step() -> torch.Tensor:
            store.begin(None, fixed_starts, 1, reach)
            return self._forward(fixed_ids, store.prefix_length + fixed_starts[:, None])

        fixed_ids[: len(ids)], fixed_starts[: len(ids)] = ids, starts
        try:
            replay, logits = self._capture(step)
        except RuntimeError as failure:
            if is_out_of_memory(failure):
                raise
            self._give_up(f"the model's step cannot be recorded ({str(failure).splitlines()[0]})")
            return None
        recorded = _Recorded(fixed_ids, fixed_starts, logits, replay)
        # Other tokens, one place further: what they write there is written again in its turn.
        _set(recorded, ids - 1, (starts + 1).clamp_max(reach - 1))
        expected = step().clone()
        replay()
        if not torch.allclose(logits, expected, rtol=APART, atol=APART, equal_nan=True):
            self._give_up("the recorded step gives other logits than the model")
            return None
        self._recorded[rows, reach] = recorded
        return recorded

    def _give_up(self, why: str) -> None:
        self.given_up = why
        self._recorded.clear()
        warnings.warn(f"CUDA graphs are not used, which is slower: {why}", stacklevel=2)


def _set(recorded: _Recorded, ids: torch.Tensor, starts: torch.Tensor) -> None:
    """Put the inputs of a step into its buffers; rows beyond them begin a free slot."""
    rows = len(ids)
    recorded.ids[:rows] = ids.clamp_min(0)
    recorded.ids[rows:] = 0
    recorded.starts[:rows] = starts
    recorded.starts[rows:] = 0


def recording(device: torch.device) -> Capture | None:
    """Return what records steps on this device, or None where nothing does."""
    return cuda_graphs() if device.type == "cuda" else None
