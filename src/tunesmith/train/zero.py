"""DeepSpeed's ZeRO, stages 1 and 2: whole weights in each process, a part of the optimiser.

DeepSpeed sees the trained weights and the backward pass alone. Its engine is given no batch, no
schedule and no micro-batches to count: losses are divided here, and the update is made once loss
and gradient norm have been looked at.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, cast

import torch

from tunesmith.errors import TrainingError
from tunesmith.train.processes import needing_others

PIECE = 1 << 26
"""Gradients that are summed over processes at once, at most; DeepSpeed holds room for as many."""


class _Trained(torch.nn.Module):  # type: ignore[misc]
    """The trained weights as a module of their own; it passes a loss on as it is."""

    def __init__(self, parameters: list[Any]) -> None:
        super().__init__()
        self.trained = torch.nn.ParameterList(parameters)

    def forward(self, loss: torch.Tensor) -> torch.Tensor:
        return loss


class Zero:
    """An optimiser that DeepSpeed shares out over the processes, with the loop's few calls.

    ``param_groups`` and ``state`` are those of this process's part: flat float32 tensors, whatever
    the precision of the weights is.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, stage: int, max_grad_norm: float, accelerator: Any
    ) -> None:
        """Share out ``optimizer``, which has made no step; clip to ``max_grad_norm``, 0 not at all.

        Every process must call it. ``TrainingError`` where weights are trained in several
        precisions, or in bfloat16 by stage 1, for which DeepSpeed has an optimiser apart.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
        if len(dtypes) > 1:
            raise TrainingError(
                f"DeepSpeed was not made to train weights of {' and '.join(sorted(dtypes))} at "
                "once.",
                hint="--dtype float32, or recipes/accelerate/ddp.yaml",
            )
        if stage == 1 and dtypes == {"bfloat16"}:
            raise TrainingError(
                "Stage 1 of DeepSpeed was not made to train weights of bfloat16 here.",
                hint="zero_stage: 2 in the file for accelerate, or --dtype float32",
            )
        self._processes = int(accelerator.num_processes)
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Its call is one that PyTorch has given another name.
        warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into", FutureWarning)
        self._engine: Any = deepspeed.initialize(
            model=_Trained(parameters),
            optimizer=optimizer,
            config=_settings(parameters, stage, max_grad_norm, self._processes),
            dist_init_required=False,
        )[0]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups, each with this process's part of its weights."""
        return cast("list[dict[str, Any]]", self._engine.optimizer.param_groups)

    @property
    def state(self) -> dict[Any, Any]:
        """Return what the optimiser keeps of this process's part."""
        return cast("dict[Any, Any]", self._engine.optimizer.state)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add a micro-batch's gradients; all processes make as many of these calls in a step.

        ``last`` is the last one of the step, after which the gradients are sums over all
        processes.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over processes, and the loss was divided for a sum.
        passed = self._engine(loss * self._processes)
        self._engine.backward(passed, scale_wrt_gas=False)

    def norm(self) -> float:
        """Return the norm of the whole gradient, infinite where a part is not finite."""
        with needing_others("the norm of the gradients"):
            return float(self._engine.optimizer.scaled_global_norm())

    def step(self) -> None:
        """Clip, update this process's part, and fetch the others'."""
        with needing_others("the update"):
            self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, also those that are summed already."""
        inner = self._engine.optimizer
        inner.zero_grad(set_to_none=set_to_none)
        for group in range(len(inner.bit16_groups)):
            inner.averaged_gradients[group] = None  # of bfloat16 weights the next step would add


def _settings(
    parameters: list[Any], stage: int, max_grad_norm: float, processes: int
) -> dict[str, Any]:
    largest = sum(p.numel() for p in parameters)
    return {
        # Rows are counted here; these two say no more than that nothing is to be divided.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": processes,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": parameters[0].dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": min(largest, PIECE),
            "allgather_bucket_size": min(largest, PIECE),
            "overlap_comm": False,  # one order of sums, whatever is ready first
        },
    }
