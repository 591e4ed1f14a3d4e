"""Model folders that are not what they seem: each spoils a sound one, and names its refusal.

python tests/hostile/folders.py FOLDER     writes them all, to be looked at
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "HOSTILE_CANARY"
"""Variable with the path of a file that must not come to be."""
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FLOOD = "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"
SWELL = (
    "{% set n = namespace(t='x') %}{% for a in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}"
)
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
POWER = "{{ 9 ** (9 ** (9 ** 9)) }}"
MACRO = (
    "{% macro f(n) %}{% for i in range(9) %}{{ f(n - 1) if n else '' }}{% endfor %}{% endmacro %}"
    "{{ f(12) }}"
)

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One hostile folder."""

    name: str
    spoil: Spoil
    """Changes a sound folder into it."""
    reason: str
    """A pattern of what the refusal says."""
    adapter: bool = False
    """Whether it is one of an adapter."""
    slow: bool = False
    """Whether it is refused by a limit of time that has to pass."""


def change(file: str, **keys: Any) -> Spoil:
    """Return what sets keys of a JSON file."""

    def spoil(folder: Path) -> None:
        path = folder / file
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**found, **keys}))

    return spoil


def config(**keys: Any) -> Spoil:
    return change("config.json", **keys)


def write(file: str, text: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return spoil


def grow(file: str, size: int) -> Spoil:
    """Return what makes a file large without taking any disk."""

    def spoil(folder: Path) -> None:
        (folder / file).touch()
        os.truncate(folder / file, size)

    return spoil


def link(file: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder.parent / "secret").write_text("secret")
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return spoil


def instead(file: str, make: Callable[[Path], object]) -> Spoil:
    """Return what puts something that is no file into a file's place."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return spoil


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        one.bind(path.name)
        os.chdir(here)


class Command:
    """A pickle that makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch "${CANARY}"',)


def pickled(file: str, gone: str = "model.safetensors") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / gone).unlink()
        (folder / file).write_bytes(pickle.dumps({"a": Command()}))

    return spoil


def header(change_it: Callable[[dict[str, Any]], object], cut: int = 0, more: int = 0) -> Spoil:
    """Return what changes the header of the weights, or the length of their file."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        found = json.loads(raw[8 : 8 + length])
        change_it(found)
        head = json.dumps(found).encode()
        data = raw[8 + length :] + bytes(more)
        path.write_bytes(struct.pack("<Q", len(head)) + head + data[: len(data) - cut])

    return spoil


def first(found: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in found.items() if name != "__metadata__")


def put(**keys: Any) -> Spoil:
    """Return what lies about the first tensor."""
    return header(lambda found: first(found).update(keys))


def upon(found: dict[str, Any]) -> None:
    """Let the second tensor lie upon the first, by its own size."""
    entries = [entry for name, entry in found.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: entry["data_offsets"][0])
    same = next(e for e in entries[1:] if e["shape"] == entries[-1]["shape"])
    same["data_offsets"] = entries[-1]["data_offsets"]


def raw_weights(raw: bytes) -> Spoil:
    return write("model.safetensors", raw)


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    del found["model.layers.1.mlp.up_proj.weight"]
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def index(**names: Any) -> Spoil:
    return change("model.safetensors.index.json", weight_map={**names})


def tokenizer(change_it: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        found = json.loads((folder / "tokenizer.json").read_text())
        change_it(found)
        (folder / "tokenizer.json").write_text(json.dumps(found))

    return spoil


def replacing(letter: str, times: int, again: int = 1) -> Spoil:
    """Return what makes a letter of a text into very many, in so many steps."""
    step = {"type": "Replace", "pattern": {"String": letter}, "content": letter * times}
    return tokenizer(
        lambda found: found.update(normalizer={"type": "Sequence", "normalizers": [step] * again})
    )


def merges(count: int) -> Spoil:
    def spoil(folder: Path) -> None:
        tokenizer(lambda found: found["model"].update(merges="MANY"))(folder)
        many = ", ".join(f'["a", "b{n}"]' for n in range(count))
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace('"MANY"', f"[{many}]"))

    return spoil


def splitting(pattern: str) -> Spoil:
    split = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return tokenizer(lambda found: found.update(pre_tokenizer=split))


def template(text: str, file: str = "chat_template.jinja") -> Spoil:
    return write(file, text)


def terabytes(folder: Path) -> None:
    """Write weights of 15 TiB that a sparse file holds indeed."""
    size = 15 << 40
    head = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    os.truncate(path, 8 + len(head) + size)


def many_files(folder: Path) -> None:
    for number in range(10_001):
        os.mknod(folder / f"{number}.txt")


PAD = {
    "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "<s>",
}  # fmt: skip
DEEP = "[" * 100_000 + "]" * 100_000
ADDED = {str(n): {"content": f"<{n}>", "special": True} for n in range(400, 60_400)}
CASES = (
    # Pickles, and code by other names.
    Case("pickle", pickled("pytorch_model.bin"), "only pytorch_model.bin, a pickle"),
    Case("pickle-pt", pickled("model.pt"), "only model.pt, a pickle"),
    Case("pickle-pth", pickled("consolidated.00.pth"), r"only consolidated.00.pth, a pickle"),
    Case("pickle-by-another-name", raw_weights(pickle.dumps({"a": Command()})), "a header of"),
    Case(
        "pickle-of-an-adapter", pickled("adapter_model.bin", "adapter_model.safetensors"),
        "only adapter_model.bin, a pickle", adapter=True,
    ),
    Case(
        "own-code", config(model_type="evil", auto_map={"AutoConfig": "evil.Config"}),
        "wants to run its own code",
    ),
    Case(
        "own-code-without-a-type", config(model_type=None, auto_map={"AutoModel": "evil.Model"}),
        "wants to run its own code",
    ),
    Case("unknown-type", config(model_type="../evil"), "cannot be loaded"),
    Case("kernels-of-a-hub", config(attn_implementation="evil/kernel"), "code from elsewhere"),
    Case("kernels-inside", config(_attn_implementation="evil/kernel:run"), "code from elsewhere"),
    Case("experts-of-a-hub", config(experts_implementation="evil/moe"), "code from elsewhere"),
    Case("imports-a-module", change(
        "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil"
    ), "imports a module by its name", adapter=True),
    Case("imports-a-library", change(
        "adapter_config.json", auto_mapping={"parent_library": "os", "base_model_class": "system"}
    ), "wants to import 'os'", adapter=True),
    Case("template-escape", template(ESCAPE), "tries to leave its sandbox"),
    Case("template-escape-in-the-config", change(
        "tokenizer_config.json", chat_template=ESCAPE
    ), "tries to leave its sandbox"),
    # Paths.
    Case("link-of-the-template", link("chat_template.jinja", "../secret"), "leads out of its"),
    Case("link-of-the-config", link("config.json", "/etc/passwd"), "leads out of its folder"),
    Case("link-of-the-weights", link("model.safetensors", "/dev/zero"), "leads out of its folder"),
    Case("link-of-something-else", link("LICENSE", "../secret"), "leads out of its folder"),
    Case("link-to-nothing", link("merges.txt", "nowhere"), "leads nowhere"),
    Case("link-to-itself", link("vocab.json", "vocab.json"), "leads nowhere"),
    Case("link-of-a-folder", link("more", "../.."), "leads out of its folder"),
    Case("link-below", link(
        "additional_chat_templates/a.jinja", "../../secret"
    ), "leads out of its folder"),
    Case("index-outside", index(a="../secret"), "names '../secret', which lies outside"),
    Case("index-absolute", index(a="/etc/passwd"), "names '/etc/passwd', which lies outside"),
    Case("index-backslash", index(a="..\\secret"), "which lies outside of its folder"),
    Case("index-zero-byte", index(a="model\0.safetensors"), "which lies outside of its folder"),
    Case("index-of-numbers", index(a=7), "names 7, which is not there"),
    Case("index-of-what-is-missing", index(a="b.safetensors"), "which is not there"),
    Case("index-without-a-map", write(
        "model.safetensors.index.json", '{"weight_map": ["../secret"]}'
    ), "has no weight_map"),
    Case("index-of-a-pickle", change(
        "pytorch_model.bin.index.json", weight_map={"a": "../../secret"}
    ), "which lies outside of its folder"),
    Case("weights-outside", config(transformers_weights="../secret"), "outside of its folder"),
    Case("words-outside", change(
        "tokenizer_config.json", tokenizer_file="/etc/passwd"
    ), "tokenizer_file is '/etc/passwd'"),
    Case("vocabulary-outside", change(
        "tokenizer_config.json", vocab_file="../secret"
    ), "vocab_file is '../secret'"),
    Case("adapter-link", link("adapter_model.safetensors", "../secret"), "leads out of", True),
    Case("too-many-files", many_files, "holds over 10,000 files"),
    # What is no file.
    Case("pipe-as-weights", instead("model.safetensors", os.mkfifo), "is no file"),
    Case("pipe-as-template", instead("chat_template.jinja", os.mkfifo), "is no file"),
    Case("pipe-as-tokenizer", instead("tokenizer.json", os.mkfifo), "is no file"),
    Case("socket-as-words", instead("tokenizer_config.json", listen), "is no file"),
    Case("folder-as-weights", instead("model.safetensors", Path.mkdir), "is no file"),
    Case("folder-as-index", instead("model.safetensors.index.json", Path.mkdir), "is no file"),
    # Sizes of files.
    Case("config-of-a-terabyte", grow("config.json", 1 << 40), "1,099,511,627,776 bytes"),
    Case("tokenizer-of-a-gigabyte", grow("tokenizer.json", 1 << 30), "1,073,741,824 bytes"),
    Case("template-of-a-gigabyte", grow("chat_template.jinja", 1 << 30), "1,073,741,824 bytes"),
    Case("words-of-a-gigabyte", grow("tokenizer_config.json", 1 << 30), "1,073,741,824 bytes"),
    Case("merges-of-a-gigabyte", grow("merges.txt", 1 << 30), "1,073,741,824 bytes"),
    Case("adapter-of-a-gigabyte", grow("adapter_config.json", 1 << 30), "bytes", True),
    # JSON.
    Case("config-empty", write("config.json", ""), "cannot be read"),
    Case("config-of-a-list", write("config.json", "[]"), "holds no JSON object"),
    Case("config-deep", write("config.json", '{"a": ' + DEEP + "}"), "nested too deeply"),
    Case("words-deep", write("tokenizer_config.json", DEEP), "nested too deeply"),
    Case("config-no-text", write("config.json", b"\xff\xfe{}"), "cannot be read"),
    Case("config-not-finite", config(rope_theta=float("nan")), "not finite"),
    Case("config-infinite", write("config.json", '{"rms_norm_eps": 1e999}'), "not finite"),
    Case("number-of-digits", write(
        "config.json", '{"seed": ' + "9" * 4000 + "}"
    ), "a number of 4000 digits"),
    Case("stops-that-are-none", change(
        "generation_config.json", eos_token_id="system"
    ), "eos_token_id is 'system'"),
    # Claims of a configuration.
    Case("a-million-blocks", config(num_hidden_layers=10**6), "num_hidden_layers is 1,000,000"),
    Case("no-blocks", config(num_hidden_layers=0), "num_hidden_layers is '0'"),
    Case("blocks-below-none", config(num_hidden_layers=-1), "num_hidden_layers is '-1'"),
    Case("blocks-in-words", config(num_hidden_layers="2; rm"), "num_hidden_layers is '2; rm'"),
    Case("wide", config(hidden_size=2**40), "hidden_size is 1,099,511,627,776"),
    Case("wide-within", config(intermediate_size=2**30), "intermediate_size is 1,073,741,824"),
    Case("many-words", config(vocab_size=2**31), "vocab_size is 2,147,483,648"),
    Case("many-heads", config(num_attention_heads=10**9), "num_attention_heads is 1,000,000,000"),
    Case("no-heads", config(num_attention_heads=0), "num_attention_heads is '0'"),
    Case("half-a-head", config(num_key_value_heads=0.5), "num_key_value_heads is '0.5'"),
    Case("many-positions", config(max_position_embeddings=10**12), "max_position_embeddings is"),
    Case("a-square-of-positions", config(
        model_type="gpt2", n_positions=10**6
    ), "n_positions is 1,000,000"),
    Case("many-labels", config(num_labels=10**9), "num_labels is 1,000,000,000"),
    Case("wide-inside", config(
        text_config={"hidden_size": 10**9}
    ), "hidden_size is 1,000,000,000"),
    Case("another-model", config(model_type="gpt2"), "lack .* of this architecture's"),
    Case("type-of-numbers", config(dtype="load"), "dtype is 'load'"),
    Case("old-type-of-numbers", config(torch_dtype="__dict__"), "torch_dtype is '__dict__'"),
    Case("rank-of-a-billion", change("adapter_config.json", r=10**9), "claims a rank of", True),
    Case("rank-of-one-layer", change(
        "adapter_config.json", rank_pattern={"q_proj": 10**9}
    ), "claims a rank of", adapter=True),
    Case("blocks-again", change(
        "adapter_config.json", layer_replication=[[0, 10**6]]
    ), "makes more layers", adapter=True),
    # Headers of weights.
    Case("weights-empty", raw_weights(b""), "claims a header of"),
    Case("weights-of-one-byte", raw_weights(b"{"), "claims a header of"),
    Case("header-longer-than-all", raw_weights(b"\xff" * 64), "claims a header of"),
    Case("header-of-a-gigabyte", raw_weights(
        struct.pack("<Q", 1 << 30) + b"{}"
    ), "claims a header of"),
    Case("header-no-json", raw_weights(struct.pack("<Q", 4) + b"evil"), "is no JSON"),
    Case("header-of-a-list", raw_weights(struct.pack("<Q", 2) + b"[]"), "is no JSON object"),
    Case("header-deep", raw_weights(
        struct.pack("<Q", len(DEEP)) + DEEP.encode()
    ), "is no JSON"),
    Case("shape-of-a-terabyte", put(shape=[2**20, 2**20]), "claims 4,398,046,511,104 bytes"),
    Case("shape-that-overflows", put(shape=[2**62, 2**62]), "claims .* bytes for"),
    Case("shape-below-none", put(shape=[-1, -1]), "does not say type, shape and place"),
    Case("shape-in-words", put(shape="all"), "does not say type, shape and place"),
    Case("type-unknown", put(dtype="EVIL"), "does not say type, shape and place"),
    Case("place-outside", put(data_offsets=[0, 2**40]), "claims .* bytes for"),
    Case("place-backwards", put(data_offsets=[64, 0]), "claims .* bytes for"),
    Case("places-upon-one-another", header(upon), "lie upon one another, or apart"),
    Case("weights-cut", header(lambda found: None, cut=64), "claims .* bytes for"),
    Case("weights-with-more", header(lambda found: None, more=64), "tells of"),
    Case("weights-of-terabytes", terabytes, "GiB; all memory of this machine is"),
    Case("weights-missing-one", drop_tensor, "lack 1 of this architecture's"),
    # Tokenizers.
    Case("tokenizer-missing", lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    Case("tokenizer-empty", write("tokenizer.json", "{}"), "tokenizer.json cannot be used"),
    Case("a-million-merges", merges(10**6), "bytes for 304 words"),
    Case("merges-of-no-words", merges(10**4), "tokenizer.json cannot be used"),
    Case("many-added-tokens", change(
        "tokenizer_config.json", added_tokens_decoder=ADDED
    ), "adds 60,000 tokens"),
    Case("text-of-megabytes", replacing("a", 10**6), "a hundred tokens of a letter"),
    Case("text-that-doubles", replacing("a", 2, 60), "a hundred tokens of a letter", slow=True),
    Case("words-that-backtrack", splitting("(a|a|aa)+$b"), "json (cannot|takes)", slow=True),
    Case("tokens-to-fill", tokenizer(
        lambda found: found.update(padding=PAD)
    ), "a hundred tokens of a letter"),
    # Templates and patterns that do not end.
    Case("template-loop", template(LOOP), "chat template of .* takes over", slow=True),
    Case("template-flood", template(FLOOD), "chat template of .* takes over"),
    Case("template-swell", template(SWELL), "chat template of .* takes over"),
    Case("template-power", template(POWER), "chat template of .* takes over", slow=True),
    Case("template-macro", template(MACRO), "chat template of .* takes over", slow=True),
    Case("template-of-several", change("tokenizer_config.json", chat_template=[
        {"name": "default", "template": "x"}, {"name": "tool_use", "template": LOOP},
    ]), "chat template of .* takes over", slow=True),
    Case("template-beside", template(
        LOOP, "additional_chat_templates/tools.jinja"
    ), "chat template of .* takes over", slow=True),
    Case("template-of-old", change(
        "chat_template.json", chat_template=LOOP
    ), "chat template of .* takes over", slow=True),
    Case("pattern-that-backtracks", change(
        "adapter_config.json", target_modules=r"((\w|\.)+)+#"
    ), "A pattern for modules", adapter=True, slow=True),
    Case("pattern-of-ranks", change(
        "adapter_config.json", rank_pattern={r"((\w|\.)+)+#": 4}
    ), "A pattern for modules", adapter=True, slow=True),
)  # fmt: skip


def make(case: Case, base: Path, adapter: Path, folder: Path) -> Path:
    """Write a case's folder beside a base's and an adapter's, and return it."""
    shutil.copytree(adapter if case.adapter else base, folder / "model")
    case.spoil(folder / "model")
    return folder / "model"


def main() -> None:
    """Write every case below a folder."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from test_hostile_folders import sound

    target = Path(sys.argv[1])
    base, adapter = sound(target)
    for case in CASES:
        (target / case.name).mkdir()
        print(make(case, base, adapter, target / case.name), case.reason)


if __name__ == "__main__":
    main()
