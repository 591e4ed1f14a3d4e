"""Loads an exported model with the library that its users load it with, and answers a request.

A process of its own, ``python -P reader.py CONSUMER PATH REQUEST ANSWER``, that imports nothing of
tunesmith: what it sees is what somebody else will see. REQUEST is JSON with ``prompts`` (a
conversation or a text each), ``sequences`` (token ids), ``window`` (how many last positions of a
sequence are wanted), ``tokens`` (of a greedy answer), ``texts`` (to be tokenised) and ``stop_ids``.
ANSWER.json says what came of it, ANSWER.safetensors holds the logits, window x words each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def transformers_model(path: str, request: dict[str, Any], *, peft: bool) -> tuple[Any, Any]:
    """Answer with ``AutoModelForCausalLM``, or with the adapter's base and PEFT on it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    if peft:
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(path).base_model_name_or_path
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, path)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    model.eval()
    said: dict[str, Any] = {"prompts": [], "answers": [], "texts": []}
    logits = {}
    neutral = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    with torch.inference_mode():
        for number, (prompt, ids) in enumerate(
            zip(request["prompts"], request["sequences"], strict=True)
        ):
            asked = asked_ids(tokenizer, prompt)
            said["prompts"].append(asked)
            found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            logits[str(number)] = found[-request["window"] :].float().contiguous().numpy()
            start = torch.tensor([asked])
            made = model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=request["tokens"],
                **neutral,
            )
            said["answers"].append(made[0, len(asked) :].tolist())
    said["texts"] = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in request["texts"]]
    ends = model.generation_config.eos_token_id
    said["ends"] = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return said, logits


def onnx_model(path: str, request: dict[str, Any]) -> tuple[Any, Any]:
    """Answer with ONNX Runtime on the processor: logits of padded pairs, answers one by one."""
    import numpy as np
    import onnxruntime
    from transformers import AutoTokenizer

    session = onnxruntime.InferenceSession(
        str(Path(path, "model.onnx")), providers=["CPUExecutionProvider"]
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    settings = json.loads(Path(path, "generation_config.json").read_text(encoding="utf-8"))
    ends = settings["eos_token_id"]

    def run(rows: list[list[int]]) -> Any:
        shape = (len(rows), max(map(len, rows)))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    said: dict[str, Any] = {"prompts": [], "answers": [], "ends": ends}
    logits, sequences = {}, request["sequences"]
    for first in range(0, len(sequences), 2):
        pair = sequences[first : first + 2]
        for number, (row, found) in enumerate(zip(pair, run(pair), strict=True)):
            window = found[: len(row)][-request["window"] :]
            logits[str(first + number)] = np.ascontiguousarray(window, np.float32)
    for prompt in request["prompts"]:
        asked = asked_ids(tokenizer, prompt)
        said["prompts"].append(asked)
        answer: list[int] = []
        while len(answer) < request["tokens"] and not (answer and answer[-1] in ends):
            answer.append(int(run([[*asked, *answer]])[0, -1].argmax()))
        said["answers"].append(answer)
    said["texts"] = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in request["texts"]]
    return said, logits


def asked_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """Return the tokens of a text or of a conversation."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return list(
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    )


def llama_cpp_model(path: str, request: dict[str, Any]) -> tuple[Any, Any]:
    """Answer with llama.cpp, on the processor, its store of keys and values in float32."""
    import llama_cpp
    import numpy as np
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    room = max(map(len, request["sequences"])) + request["tokens"] + 8
    model = llama_cpp.Llama(
        path, n_ctx=room, n_batch=512, logits_all=True, n_gpu_layers=0, type_k=0, type_v=0,
        verbose=False,
    )  # fmt: skip
    template = model.metadata.get("tokenizer.chat_template", "")
    vocabulary = llama_cpp.llama_model_get_vocab(model._model.model)
    begins = model.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    own = "tokenizer.ggml.bos_token_id" in model.metadata
    bos = piece(model, model.token_bos()) if own else ""
    form = Jinja2ChatFormatter(template, eos_token=piece(model, model.token_eos()), bos_token=bos)
    said: dict[str, Any] = {"prompts": [], "answers": [], "template": template}
    logits = {}
    for number, (prompt, ids) in enumerate(
        zip(request["prompts"], request["sequences"], strict=True)
    ):
        text = prompt if isinstance(prompt, str) else form(messages=prompt).prompt
        again = bool(bos) and text.startswith(bos)
        asked = model.tokenize(text.encode(), add_bos=begins and not again, special=True)
        said["prompts"].append(asked)
        model.reset()
        model.eval(ids)
        logits[str(number)] = np.array(model.scores[: len(ids)][-request["window"] :], np.float32)
        model.reset()
        model.eval(asked)
        answer: list[int] = []
        while len(answer) < request["tokens"]:
            token = int(np.argmax(model.scores[model.n_tokens - 1]))
            answer.append(token)
            if llama_cpp.llama_vocab_is_eog(vocabulary, token):
                break
            model.eval([token])
        said["answers"].append(answer)
    said["texts"] = [model.tokenize(t.encode(), add_bos=False) for t in request["texts"]]
    said["ends"] = [i for i in request["stop_ids"] if llama_cpp.llama_vocab_is_eog(vocabulary, i)]
    return said, logits


def piece(model: Any, token: int) -> str:
    """Return the text of a special token; nothing where there is none."""
    return model._model.token_get_text(token) if token >= 0 else ""


def main() -> None:
    """Answer one request."""
    consumer, path, asked, answer = sys.argv[1:]
    request = json.loads(Path(asked).read_text(encoding="utf-8"))
    if consumer == "llama.cpp":
        said, logits = llama_cpp_model(path, request)
    elif consumer == "onnxruntime":
        said, logits = onnx_model(path, request)
    else:
        said, logits = transformers_model(path, request, peft=consumer == "PEFT")
    from safetensors.numpy import save_file

    save_file(logits, f"{answer}.safetensors")
    Path(f"{answer}.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
