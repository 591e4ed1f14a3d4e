"""The one way in for models: local folders, adapters, runs, the built-in base, hub names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.hub import unreachable
from tunesmith.data.new_tokens import NewTokens
from tunesmith.errors import ModelError, UsageError
from tunesmith.models.device import choose_device, choose_dtype
from tunesmith.models.folder import check_folder, read_json
from tunesmith.models.int8_weights import Int8Weights, hold_in_int8
from tunesmith.models.memory import use_huge_pages
from tunesmith.models.quantize import Quantised, look_at, quantisation_config
from tunesmith.models.switching import beside

BUILT_IN = "tunesmith/tiny"
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a model lies: the weights, and an adapter on top of them if there is one."""

    path: str
    """A folder, or a hub name."""
    adapter: str | None
    described: str
    """How it was found, for people."""

    @property
    def name(self) -> str:
        """Return a name that finds it again, from any folder."""
        found = Path(self.adapter or self.path)
        if found == ASSETS / "tiny":
            return BUILT_IN
        return str(found.resolve()) if found.exists() else str(found)


@dataclass(slots=True)
class LoadedModel:
    """A model ready to train or to generate, with its tokenizer."""

    model: Any
    tokenizer: Any
    ref: ModelRef
    device: torch.device
    dtype: torch.dtype
    attention: str = "segments"
    """How packed rows attend: the first argument after the groups of ``attention.packed``."""
    taken_out: dict[str, torch.Tensor] = field(default_factory=dict)
    """The matrices that PiSSA took out of the weights, by the names that they are saved under."""
    new_tokens: NewTokens | None = None
    """Tokens that ``tokenizer`` has and the base had not; their rows come with the training."""
    quantised: Quantised | None = None
    """What of the weights bitsandbytes holds in four or eight bits."""
    int8: Int8Weights | None = None
    """What of the weights is held in eight bits for generating only."""
    unused: tuple[str, ...] = ()
    """Weights of the folder that the architecture has no place for."""

    @property
    def described(self) -> str:
        """Return how the model was found, and that its weights are not what was found there."""
        return self.ref.described + (", weights in int8" if self.int8 else "")

    @property
    def max_positions(self) -> int:
        """Return the longest sequence that the model takes, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 20)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Return every token that the model's generation config ends a text with."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        return () if eos is None else tuple(eos) if isinstance(eos, Sequence) else (int(eos),)


def resolve_model(name: str) -> ModelRef:
    """Find a model by the name that a person gave, without loading it.

    A run folder stands for its ``final_model``; a folder of runs for its newest finished run.
    """
    path = Path(name)
    # An adapter names its base by the folder, also where that is the built-in one.
    if name == BUILT_IN or path == ASSETS / "tiny":
        return ModelRef(str(ASSETS / "tiny"), None, "the built-in base model")
    try:
        there = path.exists()
    except OSError:  # a name that is too long, say
        there = False
    if not there:
        if HUB_NAME.fullmatch(name):
            return ModelRef(name, None, f"hub model {name}")
        raise ModelError(
            f"There is no model {name!r}.",
            expected=f"a model folder, a run folder, {BUILT_IN} or a hub name",
            hint=f"--model {BUILT_IN}",
        )
    if path.is_file():
        raise ModelError(f"{name} is a file.", expected="the folder that the model lies in")
    if (path / "adapter_config.json").is_file():
        return _adapter(path)
    if (path / "config.json").is_file():
        return ModelRef(str(path), None, str(path))
    if (path / "final_model").is_dir():
        found = resolve_model(str(path / "final_model"))
        return ModelRef(found.path, found.adapter, f"the final model of run {path}")
    runs = [p for p in path.iterdir() if (p / "final_model").is_dir()]
    if runs:
        newest = max(runs, key=lambda p: (p / "final_model").stat().st_mtime_ns)
        return resolve_model(str(newest))
    raise ModelError(
        f"{name} holds no model: neither config.json nor adapter_config.json lies in it.",
        expected="a Hugging Face model folder, an adapter, or a finished run",
        hint=f"ls {name}",
    )


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trainable: bool = False,
    bits: str | None = None,
    int8: bool = False,
    adapters: Mapping[str, str] | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer; nothing but safetensors is read and no foreign code is run.

    ``dtype`` auto is bfloat16 on a GPU that has it and float32 elsewhere. An adapter is put on its
    base; ``trainable`` lets training go on in it. ``bits`` is 4bit or 8bit for a base that is
    quantised while it is loaded, which needs bitsandbytes. ``int8`` holds the weights in eight bits
    without it, for a model that only generates. ``adapters`` are folders of further ones, put on
    the same weights beside each other under their names (``models.switching`` chooses among them).
    """
    use_huge_pages()
    ref = resolve_model(name)
    chosen = choose_device(device)
    wanted = choose_dtype(dtype, chosen)
    check_folders(ref)
    _check_network(ref)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    extra: dict[str, Any] = {}
    if int8:
        _check_int8(ref, wanted, train=trainable or bits is not None)
    if bits:
        # Quantised weights are made where they stay.
        config = quantisation_config(bits, wanted)
        extra = {"quantization_config": config, "device_map": {"": chosen}}
    try:
        extra |= {"use_safetensors": True, "trust_remote_code": False}
        stored = _stored_type(ref, wanted) if int8 else wanted
        model, about = AutoModelForCausalLM.from_pretrained(
            ref.path, dtype=stored, output_loading_info=True, **extra
        )
        _check_missing(about["missing_keys"], ref)
        if any(b.is_floating_point() and b.dtype == stored != wanted for b in model.buffers()):
            # Numbers that the model computes by itself were rounded to the narrower type, too.
            model = AutoModelForCausalLM.from_pretrained(ref.path, dtype=wanted, **extra)
        tokenizer = _tokenizer(AutoTokenizer, ref)
    except ModelError:
        raise
    except Exception as failure:  # transformers raises many kinds, all of them about this folder
        reason = str(failure).strip().splitlines()[0] if str(failure).strip() else repr(failure)
        raise ModelError(
            f"{ref.described} cannot be loaded: {reason}",
            expected="a causal language model that transformers knows, in safetensors",
        ) from None
    quantised = look_at(model, bits, wanted) if bits else None
    if ref.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, ref.adapter, is_trainable=trainable)
    if adapters:
        model = beside(model, adapters)
    if not bits:
        model.to(chosen)
    held = hold_in_int8(model, wanted) if int8 else None
    model.eval()
    unused = tuple(sorted(about["unexpected_keys"]))
    return LoadedModel(
        model, tokenizer, ref, chosen, wanted, quantised=quantised, int8=held, unused=unused
    )


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A model's tokenizer without its weights."""

    tokenizer: Any
    described: str
    max_positions: int | None
    """The longest sequence of its model, where a config.json says so."""
    eos_ids: tuple[int, ...]


def load_tokenizer(name: str) -> LoadedTokenizer:
    """Load a tokenizer from a model, an adapter, a run, or a folder that holds nothing else."""
    path = Path(name)
    bare = (path / "tokenizer.json").is_file() and not (path / "config.json").is_file()
    if bare and not (path / "adapter_config.json").is_file():
        ref = ModelRef(str(path), None, f"tokenizer {path}")
        check_folder(path)
    else:
        ref = resolve_model(name)
        _check_network(ref)
        for folder in filter(None, (ref.adapter, ref.path)):
            if folder != str(ASSETS / "tiny") and Path(folder).is_dir():
                check_folder(Path(folder))
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = _tokenizer(AutoTokenizer, ref)
    except Exception as failure:  # transformers raises many kinds, all of them about this folder
        reason = str(failure).strip().splitlines()[0] if str(failure).strip() else repr(failure)
        raise ModelError(
            f"The tokenizer of {ref.described} cannot be loaded: {reason}",
            expected="tokenizer.json and tokenizer_config.json",
        ) from None
    positions, eos = None, None
    if (Path(ref.path) / "config.json").is_file():
        positions = read_json(Path(ref.path) / "config.json").get("max_position_embeddings")
    if (Path(ref.path) / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(ref.path).eos_token_id
    ids = () if eos is None else tuple(eos) if isinstance(eos, Sequence) else (int(eos),)
    return LoadedTokenizer(tokenizer, ref.described, positions, ids)


def _tokenizer(auto: Any, ref: ModelRef) -> Any:
    own = ref.adapter if ref.adapter and (Path(ref.adapter) / "tokenizer.json").is_file() else None
    return auto.from_pretrained(own or ref.path, trust_remote_code=False)


def _adapter(path: Path) -> ModelRef:
    config = read_json(path / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path}/adapter_config.json names no base model.")
    found = resolve_model(base)
    return ModelRef(found.path, str(path), f"adapter {path} on {found.described}")


def check_folders(ref: ModelRef) -> None:
    """Say in a sentence what is wrong with local folders before anything is allocated."""
    if ref.adapter:
        check_folder(Path(ref.adapter))
    folder = Path(ref.path)
    if folder == ASSETS / "tiny":
        return
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        # A hub's model that lies in the cache is a foreign folder like any other.
        cached = try_to_load_from_cache(ref.path, "config.json")
        if isinstance(cached, str):
            check_folder(Path(cached).parent)
        return
    check_folder(folder)
    _check_weights(folder)


def _check_weights(folder: Path) -> None:
    """Refuse a folder without weights that are read, without a tokenizer, or with own code."""
    config = read_json(folder / "config.json")
    if "auto_map" in config and not _is_known(config.get("model_type")):
        raise ModelError(f"{folder} wants to run its own code, which is never done.")
    if not list(folder.glob("*.safetensors")):
        pickled = [p for kind in ("bin", "pt", "pth") for p in sorted(folder.glob(f"*.{kind}"))]
        again = "save it again with save_pretrained, which writes safetensors"
        raise ModelError(
            f"{folder} holds no safetensors weights"
            + (f", only {pickled[0].name}, a pickle." if pickled else "."),
            expected="model.safetensors",
            hint=f"tunesmith convert {folder} --output DIR" if pickled else again,
        )
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(
            f"{folder} holds no tokenizer.",
            expected="tokenizer.json and tokenizer_config.json beside the weights",
            hint="copy the tokenizer of the model it was made from into that folder",
        )


def _check_missing(names: Collection[str], ref: ModelRef) -> None:
    """Refuse weights that are not all there; the library would make up the others at random."""
    if names:
        some = ", ".join(sorted(names)[:3])
        raise ModelError(
            f"The weights in {ref.path} lack {len(names):,} of this architecture's: {some}.",
            expected="all weights that config.json speaks of",
            hint="download the folder again",
        )


def _is_known(model_type: object) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _check_int8(ref: ModelRef, dtype: torch.dtype, *, train: bool) -> None:
    """Refuse what weights in int8 do not go with, before anything is loaded."""
    if train:
        raise UsageError(
            "Weights in int8 cannot be trained, nor quantised once more.",
            expected="a model that only generates",
        )
    if dtype == torch.float16:
        raise UsageError(
            "Weights in int8 do not go with float16: sums of their products may pass its largest "
            "number.",
            hint="--dtype bfloat16, or float32",
        )
    config = Path(ref.path) / "config.json"
    if config.is_file() and read_json(config).get("quantization_config"):
        raise ModelError(
            f"{ref.path} was quantised when it was saved, so int8 would round it again.",
            hint="--weights full, or the model before it was quantised",
        )


def _stored_type(ref: ModelRef, wanted: torch.dtype) -> torch.dtype:
    """Return the type to load weights in that become int8 matrix by matrix: that of their file.

    What lies in a file in this type is mapped from it and takes no memory of its own. ``wanted``
    where it is narrower, where a file has several types or cannot be seen, and for an adapter that
    brings whole modules, which would be rounded to the narrower type.
    """
    from safetensors import safe_open

    files = sorted(Path(ref.path).glob("*.safetensors"))
    brings = ("modules_to_save", "trainable_token_indices")
    own = read_json(Path(ref.adapter) / "adapter_config.json") if ref.adapter else {}
    if any(own.get(b) for b in brings):
        return wanted
    found = set()
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    narrow = found == {"BF16"} and wanted == torch.float32
    return torch.bfloat16 if narrow else wanted


def _check_network(ref: ModelRef) -> None:
    """Say at once that a hub name cannot be fetched."""
    from huggingface_hub import try_to_load_from_cache

    if Path(ref.path).is_dir() or isinstance(try_to_load_from_cache(ref.path, "config.json"), str):
        return
    reason = unreachable()
    if reason is not None:
        raise ModelError(
            f"{ref.path!r} is neither a local folder nor in the hub's cache, and {reason}.",
            expected="a local folder, or a machine with a network",
            hint=f"--model {BUILT_IN}, or the path of a downloaded model",
        )
