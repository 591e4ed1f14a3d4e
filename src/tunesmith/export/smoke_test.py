"""Checks this folder and lets its model answer: ``python smoke_test.py ["A question"]``.

Needs transformers and torch, nothing else. Each file is compared with its SHA-256 in manifest.json
first. Exit code 0: all is well; 1: a file is missing or another one; 2: the model does not answer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

QUESTION = "How many metres are 12 kilometres?"


def damaged(folder: Path) -> list[str]:
    """Return what is wrong with the files that the manifest lists."""
    faults = []
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for entry in manifest["files"]:
        path = folder / entry["path"]
        if not path.is_file():
            faults.append(f"{entry['path']} is missing")
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry["sha256"]:
            faults.append(f"{entry['path']} is not the file that was exported")
    return faults


def answer(folder: Path, question: str) -> str:
    """Return the model's greedy answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    made = model.generate(**inputs, do_sample=False, max_new_tokens=64)
    new = made[0, inputs["input_ids"].shape[1] :]
    if not len(new):
        raise RuntimeError("the model wrote nothing")
    return str(tokenizer.decode(new, skip_special_tokens=True))


def main() -> int:
    """Check the files, ask the question, print the answer."""
    folder = Path(__file__).resolve().parent
    faults = damaged(folder)
    for fault in faults:
        print(f"DAMAGED: {fault}", file=sys.stderr)
    if faults:
        return 1
    try:
        print(answer(folder, " ".join(sys.argv[1:]) or QUESTION))
    except Exception as failure:  # whatever a library raises, the folder cannot be used as it is
        print(f"NO ANSWER: {type(failure).__name__}: {failure}", file=sys.stderr)
        return 2
    print("All files are as exported, and the model answers.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
