"""The parity gate: an export, as its real consumer reads it, against the model that was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.render import Renderer
from tunesmith.errors import ModelError
from tunesmith.generate.reference import generate_one
from tunesmith.generate.requests import Request, Sampling
from tunesmith.models.load import LoadedModel
from tunesmith.types import Segment

ANSWER_TOKENS = 24
"""Of the greedy answers that are compared."""
WINDOW = 32
"""Last positions of a sequence whose logits are compared: the answer, and what stands before it."""
LONGEST = 512
"""Tokens of a prompt; longer ones are not asked."""
MINUTES = 20
"""A consumer that has said nothing after so many has failed."""
TEXTS = (
    "The quick brown fox, 12.5 km/h; isn't it?",
    "  two spaces,\ttabs\n\nand new lines \n",
    "Größe naïve café — «日本語» 🙂 ∑x²",
    "def f(x):\n    return x**2 + 1000000",
    "I'LL we've THEY'RE 3rd 2024-01-31 <b>&amp;</b>",
)
"""What every tokenizer has to cut alike."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How far an export may be from its model, for one type of weights."""

    logits: float
    """Largest difference of a logit, relative to the largest logit."""
    kl: float
    """Mean divergence of the next token's probabilities, in nats."""


# llama.cpp looks GELU up in a table of float16, whatever the type of the weights.
LIMITS = {
    "float32": Limit(1e-4, 1e-7),
    "float16": Limit(2e-2, 1e-4),
    "bfloat16": Limit(1e-1, 1e-2),
    "q8_0": Limit(1e-1, 1e-2),
    "float32 with tables": Limit(2e-3, 1e-5),
}


@dataclass(frozen=True, slots=True)
class Trained:
    """What the trained model says to the prompts: what every export is held against."""

    prompts: tuple[Any, ...]
    """Conversations as lists of role and content, or texts."""
    prompt_ids: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    """Greedy, with the stop token that ended them."""
    logits: tuple[torch.Tensor, ...]
    """Window x words, in float32, of each prompt with its answer."""
    texts: tuple[tuple[int, ...], ...]
    """The ids of ``TEXTS``."""
    stop_ids: tuple[int, ...]
    template: str
    origin: str
    """Where the prompts come from."""

    def request(self) -> dict[str, Any]:
        """Return what a consumer is asked."""
        return {
            "prompts": self.prompts,
            "sequences": [[*p, *a] for p, a in zip(self.prompt_ids, self.answers, strict=True)],
            "window": WINDOW,
            "tokens": ANSWER_TOKENS,
            "texts": TEXTS,
            "stop_ids": self.stop_ids,
        }


@dataclass(slots=True)
class Parity:
    """How far an export is from its model, by its consumer."""

    consumer: str
    kind: str
    """Type of the weights, which decides the limit."""
    positions: int
    largest: float
    """Largest difference of a logit."""
    relative: float
    """The same over the largest logit."""
    kl: float
    kl_largest: float
    top1: float
    """Share of the positions at which both hold the same token likeliest."""
    greedy: int
    """Greedy answers that are alike, token by token."""
    answers: int
    ties: int
    """Answers that part only where the trained model holds two tokens equally likely, within the
    largest difference."""
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Return whether nothing is over its limit."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, with the limits."""
        return {"verified": self.holds, **asdict(self), "limit": asdict(LIMITS[self.kind])}


@torch.inference_mode()
def ask_trained(
    loaded: LoadedModel, renderer: Renderer, prompts: Sequence[Sequence[Segment]], origin: str
) -> Trained:
    """Take greedy answers and logits of the trained model; prompts that are too long are left out.

    Raises ``ModelError`` where not one prompt remains.
    """
    model, device, positions = loaded.model, loaded.device, loaded.max_positions
    room = min(LONGEST, positions - ANSWER_TOKENS)
    kept, ids, answers, logits = [], [], [], []
    for number, prompt in enumerate(prompts):
        asked = renderer.prompt_ids(prompt)
        if not 0 < len(asked) <= room:
            continue
        request = Request(number, asked, Sampling(ANSWER_TOKENS))
        done = generate_one(model, request, renderer.decode, renderer.stop_ids)
        answer = list(done.tokens)
        found = model(input_ids=torch.tensor([[*asked, *answer]], device=device), use_cache=False)
        if len(answer) < ANSWER_TOKENS:
            # The reference leaves the stop token out; a consumer's answer ends with it.
            answer.append(int(found.logits[0, -1].argmax()))
            ended = torch.tensor([[*asked, *answer]], device=device)
            found = model(input_ids=ended, use_cache=False)
        kept.append(_spoken(prompt))
        ids.append(tuple(asked))
        answers.append(tuple(answer))
        logits.append(found.logits[0, -WINDOW:].float().cpu())
    if not kept:
        raise ModelError(f"No prompt fits into the {positions} positions of this model.")
    if not all(bool(torch.isfinite(one).all()) for one in logits):
        raise ModelError("The model's own logits are not finite, so nothing can be compared.")
    cut = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    stops, template = renderer.stop_ids, renderer.template
    return Trained(
        tuple(kept), tuple(ids), tuple(answers), tuple(logits), tuple(map(tuple, cut)), stops,
        template, origin,
    )  # fmt: skip


def _spoken(prompt: Sequence[Segment]) -> Any:
    if all(segment.role is None for segment in prompt):
        return "".join(segment.text for segment in prompt)
    return [{"role": segment.role, "content": segment.text} for segment in prompt]


def ask_consumer(consumer: str, path: Path, trained: Trained, kind: str) -> Parity:
    """Let a fresh process load an export with its consumer, and compare what it says.

    ``consumer`` is transformers, PEFT, onnxruntime or llama.cpp, ``path`` a folder or for the last
    a file,
    ``kind`` a key of ``LIMITS``. What the consumer cannot load is a fault, not an exception.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-parity-") as scratch:
        asked, answer = Path(scratch, "request.json"), Path(scratch, "answer")
        asked.write_text(json.dumps(trained.request()), encoding="utf-8")
        reader = str(Path(__file__).with_name("reader.py"))
        command = [sys.executable, "-P", reader, consumer, str(path), str(asked), str(answer)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60 * MINUTES,
                check=False,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        except subprocess.TimeoutExpired:
            return _failed(consumer, kind, f"no answer after {MINUTES} minutes")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return _failed(consumer, kind, f"it cannot be read: {lines[-1]}")
        from safetensors.torch import load_file

        said = json.loads(Path(f"{answer}.json").read_text(encoding="utf-8"))
        logits = load_file(f"{answer}.safetensors")
    return compare(consumer, kind, trained, said, [logits[str(n)] for n in range(len(logits))])


def _failed(consumer: str, kind: str, why: str) -> Parity:
    nothing = float("inf")
    return Parity(consumer, kind, 0, nothing, nothing, nothing, nothing, 0.0, 0, 0, 0, [why])


def compare(
    consumer: str,
    kind: str,
    trained: Trained,
    said: Mapping[str, Any],
    logits: Sequence[torch.Tensor],
) -> Parity:
    """Compare a consumer's logits (window x words each), answers and tokens with the model's."""
    if any(a.shape != b.shape for a, b in zip(trained.logits, logits, strict=True)):
        return _failed(consumer, kind, "it has another number of words than the model")
    ours, theirs = torch.cat(list(trained.logits)).double(), torch.cat(list(logits)).double()
    if not bool(torch.isfinite(theirs).all()):
        return _failed(consumer, kind, "its logits are not finite")
    largest = float((ours - theirs).abs().max())
    relative = largest / max(float(ours.abs().max()), 1e-30)
    first, second = ours.log_softmax(-1), theirs.log_softmax(-1)
    kl = (first.exp() * (first - second)).sum(-1).clamp(min=0)
    top1 = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    greedy = ties = 0
    for number, (own, other) in enumerate(zip(trained.answers, said["answers"], strict=True)):
        greedy += list(own) == other
        ties += list(own) != other and _tied(trained.logits[number], own, other, largest)
    found = Parity(
        consumer, kind, len(ours), largest, relative, float(kl.mean()), float(kl.max()), top1,
        greedy, len(trained.answers), ties,
    )  # fmt: skip
    found.faults = _faults(found, trained, said)
    return found


def _tied(logits: torch.Tensor, own: Sequence[int], other: Sequence[int], apart: float) -> bool:
    """Say whether two answers part where the model's own two logits differ by rounding only."""
    at = next((n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
    if at is None:
        return False
    # The last row of the window is what comes after the answer's last token.
    row = logits[len(logits) - 1 - len(own) + at]
    return float(row[own[at]] - row[other[at]]) <= 2 * apart


def _faults(found: Parity, trained: Trained, said: Mapping[str, Any]) -> list[str]:
    limit = LIMITS[found.kind]
    faults = []
    if found.relative > limit.logits:
        faults.append(
            f"logits differ by up to {found.relative:.1e} of the largest; {limit.logits:.0e} may be"
        )
    if found.kl > limit.kl:
        faults.append(f"the mean KL is {found.kl:.1e} nats; {limit.kl:.0e} may be")
    other = found.answers - found.greedy - found.ties
    if other:
        faults.append(f"{other} of {found.answers} greedy answers differ")
    prompts = [list(ids) for ids in trained.prompt_ids]
    wrong = sum(a != b for a, b in zip(prompts, said["prompts"], strict=True))
    if wrong:
        faults.append(f"{wrong} of {len(prompts)} prompts come out as other tokens")
    cut = [t for t, a, b in zip(TEXTS, trained.texts, said["texts"], strict=True) if list(a) != b]
    if cut:
        faults.append(f"{len(cut)} of {len(TEXTS)} texts are cut into other tokens: {cut[0]!r}")
    if missing := sorted(set(trained.stop_ids) - set(said["ends"])):
        faults.append(f"the tokens {missing} do not end an answer")
    if said.get("template", trained.template) != trained.template:
        faults.append("the chat template is another one")
    return faults
