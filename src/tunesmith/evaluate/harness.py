"""The engine as a model of lm-evaluation-harness: ``--model tunesmith``.

    python -m tunesmith.evaluate.harness --model_args pretrained=runs/NAME --tasks arc_easy

is ``lm_eval`` with this model registered, and chosen where ``--model`` names no other. Token by
token it asks what the harness's own ``hf`` model asks, so both give the same numbers; local weights
of tunesmith (runs, adapters, int8) are loaded as everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.render import Renderer
from tunesmith.errors import TunesmithError, UsageError
from tunesmith.generate.requests import Request, Sampling, attempt_seed
from tunesmith.types import Segment

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    raise UsageError(
        f"lm-evaluation-harness cannot be used: {missing}.",
        expected="lm_eval 0.4.13 or later",
        hint="pip install 'tunesmith[lm-eval]'",
    ) from None

NAME = "tunesmith"
MAX_GEN_TOKS = 256
"""Longest answer where a task does not say; the harness's own default."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_IDLE = ("do_sample", "until", "max_gen_toks")

Scorable = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts of a request (None for a part of a longer one), and the ids of both."""


@register_model(NAME)
class TunesmithLM(TemplateLM):  # type: ignore[misc]
    """Local weights with the project's engine and likelihood scorer."""

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str = "auto",
        device: str | None = None,
        weights: str = "full",
        chat_template: str = "auto",
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Load a model; ``batch_size`` is how many rows are generated at once, auto from memory.

        ``UsageError`` for settings that say nothing here.
        """
        from tunesmith.models.load import load

        super().__init__()
        if weights not in ("full", "int8"):
            raise UsageError(f"weights={weights} is not known.", expected="full or int8")
        loaded = load(pretrained, dtype=dtype, device=device or "auto", int8=weights == "int8")
        self._loaded = loaded
        self._device = loaded.device
        self._renderer = Renderer(loaded.tokenizer, chat_template, loaded.eos_ids)
        self._max_length = max_length
        self._slots = _slots(batch_size, max_batch_size)
        self._seed = seed
        self.tokenizer = loaded.tokenizer
        if max_length is not None and not 1 <= max_length <= loaded.max_positions:
            raise UsageError(
                f"max_length={max_length} does not fit the model.",
                expected=f"1 to {loaded.max_positions:,} tokens",
            )

    @property
    def max_length(self) -> int:
        """Return the longest sequence, in tokens."""
        return self._max_length or int(self._loaded.max_positions)

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that stands before a text without context: BOS, or else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Return what decides tokens, for the harness's caches."""
        return self._renderer.identity or self._renderer.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_settings: Any
    ) -> list[int]:
        """Return the ids of a text, with a BOS where the tokenizer adds one and none is there."""
        if add_special_tokens is None and has_bos_prefix(
            string, self.tokenizer.decode(self.prefix_token_id)
        ):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **given))

    def _loglikelihood_tokens(
        self, requests: Sequence[Scorable], **_settings: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness; contexts that are too long lose their beginning."""
        from tunesmith.generate.likelihood import score

        pairs = []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UsageError(
                    f"A continuation of {len(continuation)} tokens is longer than the model's "
                    f"{self.max_length}."
                )
            # The last token is foretold only, so one more than the positions may be scored.
            left = self.max_length + 1 - len(continuation)
            pairs.append((context[-left:], continuation))
        found = [(one.logprob, one.greedy) for one in score(self._loaded.model, pairs)]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows where one is longer than allowed."""
        del disable_tqdm
        windows: list[Scorable] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, continuation = make_disjoint_window(pair)
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return the text of each request up to its first stop string."""
        from tunesmith.generate.engine import Engine

        del disable_tqdm
        asked, stops = [], []
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        for number, (context, settings) in enumerate(request.args for request in requests):
            sampling, until = _sampling(settings, end)
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise UsageError(
                    f"max_gen_toks {sampling.max_new_tokens} leaves no room for a prompt in "
                    f"{self.max_length} tokens.",
                    hint="--gen_kwargs max_gen_toks=…",
                )
            ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
            seed = attempt_seed(self._seed, context, number)
            asked.append(Request(number, tuple(ids), sampling, seed))
            stops.append(until)
        # Raw, since a stop string may be a special token.
        engine = Engine(
            self._loaded.model,
            self._renderer.decode_raw,
            {self.eot_token_id, *self._loaded.eos_ids},
            max_slots=self._slots,
        )
        texts = [""] * len(asked)
        for done in engine.run(asked):
            text = self.tokenizer.decode(list(done.tokens), skip_special_tokens=True)
            text = postprocess_generated_text(text, stops[done.key], None)
            texts[done.key] = text
            self.cache_hook.add_partial("generate_until", requests[done.key].args, text)
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text that our renderer makes of a conversation."""
        turns = [Segment(turn["role"], turn["content"]) for turn in chat_history]
        return self._renderer.prompt_text(turns, goes_on=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's text; a name of one among several is not known here."""
        if isinstance(chat_template, str):
            raise UsageError(
                f"There is no template by the name {chat_template!r}.",
                hint="--model_args pretrained=…,chat_template=FILE with --apply_chat_template",
            )
        return str(self._renderer.template) if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness stores of the model."""
        return {
            "model_num_parameters": self._loaded.model.num_parameters(),
            "model_dtype": str(self._loaded.dtype),
            "model_described": self._loaded.described,
        }


def _slots(batch_size: int | str | None, most: int | None) -> int | None:
    """Return how many rows are generated at once at most; None: from the memory."""
    if batch_size is None or str(batch_size).startswith("auto"):
        return most
    return int(batch_size)


def _sampling(settings: Mapping[str, Any], end: str) -> tuple[Sampling, list[str]]:
    """Return how an answer is drawn, and what ends it; ``UsageError`` for what we cannot do."""
    given = normalize_gen_kwargs(dict(settings), MAX_GEN_TOKS)
    unknown = sorted(set(given) - {*_SAMPLING, *_IDLE})
    if unknown:
        raise UsageError(
            f"The engine knows no {unknown[0]} (generation_kwargs).",
            expected=", ".join(("until", "max_gen_toks", "do_sample", *_SAMPLING)),
        )
    until = handle_stop_sequences(given.get("until"), end)
    if "" in until:
        raise UsageError("An empty stop string (until) would end every answer at once.")
    drawn = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    if not given["do_sample"]:
        drawn = {}
    elif not drawn.get("temperature"):
        drawn["temperature"] = 1.0
    return Sampling(int(given["max_gen_toks"]), stop=tuple(until), **drawn), until


def main() -> int:
    """Run ``lm_eval`` with this model, which is also taken where ``--model`` names none."""
    from lm_eval.__main__ import cli_evaluate

    words = sys.argv[1:]
    other = words[:1] and words[0] in ("ls", "validate")
    flags = {word.partition("=")[0] for word in words}
    named = flags & {"--model", "-M", "--config", "-C"}
    if len(words) > 1 and not other and not named:
        sys.argv += ["--model", NAME]
    try:
        cli_evaluate()
    except TunesmithError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return mistake.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
