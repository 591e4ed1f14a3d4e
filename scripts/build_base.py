"""Remake the built-in base model from its seed: corpus, tokenizer, weights, model card.

    python scripts/build_base.py --output src/tunesmith/assets/tiny

The number of steps is fixed, so the same machine gives the same weights. It stops early on
purpose: a base that already converts everything leaves nothing to show.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from base_corpus import Document, documents

BOS, END = "<|start|>", "<|end|>"
ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
    "message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
SEED, WINDOW, BATCH, POSITIONS, VOCABULARY = 20, 512, 8, 2048, 640
RATE, WARMUP = 3e-3, 100
STEPS, SCHEDULE = 1000, 1600
"""Steps taken, and the length of the learning-rate schedule that they are cut from."""


def render(document: Document) -> str:
    """Return a document as text with its markers."""
    if not document.turns:
        return BOS + document.text + END
    return BOS + "".join(f"<|{role}|>\n{text}{END}\n" for role, text in document.turns)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which each digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"</?answer>"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, END, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = itertools.islice(documents(SEED), 4000)
    texts = [d.text or "\n".join(text for _, text in d.turns) for d in sample]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<answer>", "</answer>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    fast.model_max_length = POSITIONS
    return fast


def batches(tokenizer: PreTrainedTokenizerFast):
    """Yield windows of tokens, [batch, window + 1], documents joined one after another."""
    stream: list[int] = []
    source = documents(SEED + 1)
    need = BATCH * (WINDOW + 1)
    while True:
        while len(stream) < need:
            texts = [render(d) for d in itertools.islice(source, 256)]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                stream += ids
        yield torch.tensor(stream[:need]).view(BATCH, WINDOW + 1)
        del stream[:need]


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model of about 1.7 million parameters."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--total-steps", type=int, default=SCHEDULE)
    parser.add_argument("--snapshots", type=int, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = train_tokenizer()
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    total = arguments.total_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP, max(0.1, 1 - 0.9 * s / total))
    )
    began, loss_value = time.time(), 0.0
    for step, window in zip(range(1, arguments.steps + 1), batches(tokenizer), strict=False):
        logits = model(input_ids=window[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        loss_value = loss.item()
        if step % 50 == 0:
            rate = step * BATCH * WINDOW / (time.time() - began)
            print(f"step {step}  loss {loss_value:.4f}  {rate:.0f} tokens/s", flush=True)
        if step in arguments.snapshots:
            save(model, tokenizer, arguments.output / f"step-{step}", step, loss_value)
    save(model, tokenizer, arguments.output, arguments.steps, loss_value)
    return 0


def save(model, tokenizer, folder: Path, steps: int, loss: float) -> None:
    """Write weights, tokenizer and the card."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    facts = {"steps": steps, "tokens": steps * BATCH * WINDOW, "seed": SEED, "loss": round(loss, 4)}
    parameters = sum(p.numel() for p in model.parameters())
    card = CARD.format(facts=json.dumps(facts), parameters=f"{parameters:,}", digest=digest)
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# tunesmith/tiny

A Llama-architecture base model of {parameters} parameters with its own byte-level tokenizer (one token a digit)
and chat template. It exists so that `tunesmith demo` and the tests have something real to train, offline.

**Made by** `scripts/build_base.py`, from nothing, on text that `scripts/base_corpus.py` generates: facts on
units, arithmetic worked line by line, everyday prose and dialogue, chats about unit conversions in three answer
styles. No other text was used. Run: `{facts}`. The (number, factor) pairs of the `train`, `dev` and `test` splits
of the `units` task never occur in that text. What does occur are products of one digit inside worked answers
(`53 * 0.1`), which may coincide with a held-out pair whose factor is a power of ten: the split is by what is asked.

**Stopped early on purpose**, so that training has something to gain. **Limits:** it knows nothing besides the
above, mostly gets arithmetic wrong when asked directly, and is of no use outside demonstrations and tests.

sha256 of `model.safetensors`: `{digest}`
"""


if __name__ == "__main__":
    sys.exit(main())
