"""Backend on vLLM, where it is installed; its samples are its own, its greedy answers may part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from tunesmith.data.render import Renderer
from tunesmith.errors import UsageError
from tunesmith.generate.backends import Question, Show, Stop
from tunesmith.generate.local import completion, rendered
from tunesmith.generate.requests import Completion, Request
from tunesmith.models.load import ModelRef
from tunesmith.types import StopReason

TOGETHER = 256
"""Requests handed over at a time; between two hands a stop is looked at."""


def require_vllm() -> None:
    """Raise ``UsageError`` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UsageError(
            "--backend vllm needs vLLM, which is not installed here.",
            expected="the extra of that name, on a machine that vLLM supports",
            hint="pip install 'tunesmith[vllm]'; or --backend engine",
        )


class VllmBackend:
    """Hands token ids to ``vllm.LLM``; written, not claimed: it was never run by its makers."""

    def __init__(self, ref: ModelRef, renderer: Renderer, dtype: str) -> None:
        require_vllm()
        if ref.adapter:
            raise UsageError(
                f"--backend vllm takes whole models; {ref.described} is an adapter.",
                hint="--backend engine",
            )
        from vllm import LLM

        self._model: Any = LLM(model=ref.path, dtype=dtype, skip_tokenizer_init=True)
        self._renderer = renderer

    def answers(
        self,
        questions: Sequence[Question],
        *,
        should_stop: Stop | None = None,
        show: Show | None = None,
    ) -> Iterator[Completion]:
        """Yield completions hand by hand, whole."""
        del show
        requests = rendered(questions, self._renderer)
        for start in range(0, len(requests), TOGETHER):
            if should_stop and should_stop():
                return
            some = requests[start : start + TOGETHER]
            prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in some]
            made = self._model.generate(prompts, list(map(self._params, some)), use_tqdm=False)
            for request, one in zip(some, made, strict=True):
                yield self._completion(request, one.outputs[0])

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams

        sampling = request.sampling
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            min_p=sampling.min_p,
            seed=request.seed,
            stop_token_ids=list(self._renderer.stop_ids),
            logprobs=0 if sampling.logprobs else None,
            detokenize=False,
        )

    def _completion(self, request: Request, output: Any) -> Completion:
        tokens = tuple(output.token_ids)
        ended = output.finish_reason == "stop"
        if ended and tokens and tokens[-1] in self._renderer.stop_ids:
            tokens = tokens[:-1]
        values = tuple(
            step[token].logprob for step, token in zip(output.logprobs or (), tokens, strict=False)
        )
        reason = StopReason.STOP_TOKEN if ended else StopReason.LENGTH
        return completion(request, tokens, reason, self._renderer, values)
