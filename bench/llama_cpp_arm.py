"""The llama.cpp side of ``bench_generate.py``, for a Python that has llama-cpp-python and gguf.

The same weights in float32 (or as ``--type`` says) are written as GGUF, and the same requests are
answered as llama.cpp's own parallel example does: the shared prefix is computed once and copied to
every sequence by reference, free sequences take the next request while the others go on, and each
step is one batch. Greedy; every request gets its number of tokens.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def write_model(
    weights: dict[str, np.ndarray], config: dict[str, Any], kind: str, to: Path
) -> None:
    """Write a Llama shape; a tokenizer of numbers alone, since prompts come as numbers."""
    writer = gguf.GGUFWriter(str(to), "llama")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, weight in weights.items():
        own, tensor = name.removesuffix(".weight"), weight
        if own.startswith("model.layers."):
            number, rest = own.removeprefix("model.layers.").split(".", 1)
            if rest.endswith(("q_proj", "k_proj")):
                # llama.cpp turns neighbouring pairs, where transformers turns two halves.
                count = heads if rest.endswith("q_proj") else groups
                split = tensor.reshape(count, 2, -1, tensor.shape[1])
                tensor = split.swapaxes(1, 2).reshape(tensor.shape)
            own = f"blk.{number}.{NAMES[rest]}"
        else:
            own = OUTER[own]
        tensor = np.ascontiguousarray(tensor)
        if tensor.ndim == 2 and kind != "f32":
            packed = gguf.quants.quantize(tensor, TYPES[kind])
            writer.add_tensor(f"{own}.weight", packed, raw_dtype=TYPES[kind])
        else:
            writer.add_tensor(f"{own}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Context:
    """A model with ``slots`` sequences over one unified store, and a batch to fill."""

    def __init__(self, path: Path, slots: int, places: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = places
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = slots + 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True
        settings.type_k = settings.type_v = 0  # float32, as the weights
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit("llama.cpp made no context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def run(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode (token, place, sequence, asked) in order; return the likeliest next tokens."""
        found: list[int] = []
        for start in range(0, len(tokens), 512):
            part, batch = tokens[start : start + 512], self.batch
            batch.n_tokens = len(part)
            for at, (token, place, sequence, asked) in enumerate(part):
                batch.token[at], batch.pos[at] = token, place
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence, asked
            if llama_cpp.llama_decode(self.context, batch):
                raise SystemExit("llama_decode failed: too few places")
            for at, (_, _, _, asked) in enumerate(part):
                if asked:
                    logits = llama_cpp.llama_get_logits_ith(self.context, at)
                    row = np.ctypeslib.as_array(
                        ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.words,)
                    )
                    found.append(int(row.argmax()))
        return found


def answer(context: Context, requests: list[dict[str, Any]], shared: int, slots: int) -> list[Any]:
    """Return the tokens of each request; ``shared`` tokens are every prompt's first."""
    head = requests[0]["prompt"][:shared]
    context.run([(token, at, 0, False) for at, token in enumerate(head)])
    made: list[list[int]] = [[] for _ in requests]
    waiting, free = list(range(len(requests)))[::-1], list(range(1, slots + 1))
    live: dict[int, int] = {}
    while waiting or live:
        tokens = [
            (made[number][-1], len(requests[number]["prompt"]) + len(made[number]) - 1, slot, True)
            for slot, number in live.items()
        ]
        order = list(live)
        while waiting and free and len(tokens) < 512:
            number, slot = waiting.pop(), free.pop()
            llama_cpp.llama_memory_seq_cp(context.memory, 0, slot, -1, -1)
            rest = requests[number]["prompt"][shared:]
            last = len(rest) - 1
            tokens += [(t, shared + at, slot, at == last) for at, t in enumerate(rest)]
            live[slot] = number
            order.append(slot)
        for slot, token in zip(order, context.run(tokens), strict=True):
            number = live[slot]
            made[number].append(token)
            if len(made[number]) == requests[number]["new"]:
                llama_cpp.llama_memory_seq_rm(context.memory, slot, -1, -1)
                del live[slot]
                free.append(slot)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with model.npz, config.json and requests.json")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--type", choices=TYPES, default="f32")
    arguments = parser.parse_args()
    folder = arguments.folder
    asked = json.loads((folder / "requests.json").read_text())
    path = folder / f"model-{arguments.type}.gguf"
    if not path.exists():
        config = json.loads((folder / "config.json").read_text())
        write_model(dict(np.load(folder / "model.npz")), config, arguments.type, path)
    requests = asked["requests"]
    longest = max(len(one["prompt"]) + one["new"] for one in requests)
    places = asked["shared"] + arguments.slots * (longest - asked["shared"]) + 512
    context = Context(path, arguments.slots, places, arguments.threads)
    began = time.perf_counter()
    made = answer(context, requests, asked["shared"], arguments.slots)
    seconds = time.perf_counter() - began
    print(json.dumps({"rate": sum(map(len, made)) / seconds, "tokens": made}))


if __name__ == "__main__":
    main()
