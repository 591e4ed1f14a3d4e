"""Every setting of a training run changes something that can be seen: no flag does nothing."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from test_workflows import write_rows
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.config.schema import (
    LoraOptions,
    OptimOptions,
    RunOptions,
    TogetherOptions,
    VocabularyOptions,
)
from tunesmith.models import compiled
from tunesmith.models.adapters import blocks
from tunesmith.train import loop, rehearsal
from tunesmith.workflows import train as workflow

# PyTorch looks there while it reads a layer's code, and does not warn anybody but us.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

LORA = {"lora": True, "lora_rank": 4}
OFTEN = {"eval_steps": 1}
ALIKE = {"dataset": "../alike.jsonl"}
THINKING = {"dataset": "../thinking.jsonl"}
UNITS = {"task": "units", "eval_questions": 1, "max_length": 200}

eight = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
TABLE: list[Any] = [
    ("task", "code", {}, "recomputes"),
    ("model", "../other", {}, "losses"),
    ("dataset", "../alike.jsonl", {}, "trained tokens"),
    ("dataset_test_split", "test", {"dataset": "../saved"}, "held out loss"),
    ("max_length", 24, {"dataset": "../texts.jsonl"}, "trained tokens"),
    ("lora", True, {}, "trained"),
    ("lora_rank", 8, LORA, "shapes"),
    ("lora_alpha", 64.0, LORA, "losses"),
    ("lora_dropout", 0.5, LORA, "losses"),
    ("lora_target_modules", ["q_proj"], LORA, "trained"),
    ("lora_init", "pissa", LORA, "losses"),
    ("use_rslora", True, LORA, "losses"),
    ("use_dora", True, LORA, "trained"),
    ("lora_plus_ratio", 8.0, LORA, "groups"),
    pytest.param("load_in_4bit", True, LORA, "losses", marks=eight),
    pytest.param("load_in_8bit", True, LORA, "losses", marks=eight),
    pytest.param("optim", "adamw_8bit", {}, "optimizer", marks=eight),
    ("freeze_ratio", 0.5, {}, "trained"),
    ("trunk_cache", "off", {"freeze_ratio": 0.5, "max_steps": 12}, "trunk"),
    ("new_tokens", 20, {}, "losses"),
    ("new_tokens_warmup", 0.5, {"new_tokens": 20}, "losses"),
    ("learning_rate", 0.02, {}, "groups"),
    ("num_epochs", 2, {}, "rows"),
    ("max_steps", 5, {}, "rows"),
    ("minutes", 5.0, {}, "rows"),
    ("per_device_train_batch_size", 2, {}, "rows"),
    ("per_device_train_batch_size", 1, {"packing": False}, "batches"),
    ("gradient_accumulation_steps", 2, {}, "rows"),
    ("optim", "adafactor", {}, "optimizer"),
    ("layer_lr_decay", 0.5, {}, "groups"),
    ("lr_scheduler_type", "linear", {}, "rates"),
    ("warmup_steps", 1, {"max_steps": 20}, "rates"),
    ("warmup_ratio", 0.5, {}, "rates"),
    ("weight_decay", 0.5, {}, "groups"),
    ("max_grad_norm", 0.01, {"optim": "adafactor"}, "losses"),
    ("neftune_alpha", 5.0, {}, "losses"),
    ("mixed_precision", "bf16", {}, "losses"),
    ("gradient_checkpointing", "full", {}, "recomputes"),
    ("gradient_checkpointing", 1, {}, "recomputes"),
    ("torch_compile", "on", {}, "compiled"),
    ("seed", 1, {}, "rows"),
    ("output_dir", "elsewhere", {}, "files"),
    ("run_name", "other", {}, "files"),
    ("eval_strategy", "no", OFTEN, "held out"),
    ("eval_strategy", "epoch", OFTEN, "held out"),
    ("eval_steps", 2, {}, "held out"),
    ("save_steps", 2, {}, "files"),
    ("save_total_limit", 2, {"save_steps": 1}, "files"),
    ("keep_best", 3, {"save_steps": 1, "eval_steps": 1, "save_total_limit": 2}, "files"),
    ("load_best_model_at_end", True, OFTEN, "files"),
    ("early_stopping_patience", 1, OFTEN, "files"),
    ("nonfinite", "rewind", {}, "files"),
    ("logging_steps", 1, {}, "lines"),
    ("report_to", "tensorboard", {}, "files"),
    ("eval_samples", 1, {}, "samples"),
    ("rehearsal", True, {}, "rehearsed"),
    ("eval_questions", 2, UNITS, "answers"),
    ("forgetting", False, {}, "files"),
    ("forgetting_file", "../texts.jsonl", {}, "general"),
    ("packing", False, {}, "batches"),
    ("assistant_only_loss", False, {}, "trained tokens"),
    ("thinking", "strip", THINKING, "trained tokens"),
    ("thinking", "mask", THINKING, "trained tokens"),
    ("validation_split", 0.3, {}, "rows"),
    ("attention", "eager", {}, "attention"),
    ("attention", "eager", {"packing": False}, "own attention"),
    ("shared_prefix", "grouped", ALIKE, "rows"),
    ("shared_prefix", "off", ALIKE, "places"),
    ("max_rows", 12, {}, "rows"),
]
"""A setting, another value, the settings that it acts among, and what changes."""

KINDS = (LoraOptions, VocabularyOptions, OptimOptions, RunOptions, TogetherOptions)

ELSEWHERE = {
    "resume": "test_workflows and test_methods: goes on to the same weights",
    "overwrite": "test_rundir: replaces the folder",
    "max_nonfinite_steps": "test_policy: when a run stops after all",
    "stall_seconds": "test_several_nightly: a process that stalls is named, and all end",
    "log_level": "test_cli: what is shown",
    "num_workers": "test_rows and test_cache: processes that tokenise, to the same tokens",
}
"""Settings that change what a second command does, or nothing of the run."""


def write_alike(path: str) -> None:
    """Write two answers to each of some questions that are long enough to be shared."""
    rows = (
        {"prompt": f"Please tell me what the sum of {n} and 1 is.", "completion": f"{how} {n + 1}."}
        for n in range(12)
        for how in ("It is", "That makes")
    )
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_thinking(path: str) -> None:
    """Write answers that each have a block of thinking in front."""
    rows = (
        {"prompt": f"What is {n} + 1?", "completion": f"<think>Let me see.</think>It is {n + 1}."}
        for n in range(24)
    )
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_saved(path: str) -> None:
    """Write a folder of three splits, as ``save_to_disk`` leaves it."""
    from datasets import Dataset, DatasetDict

    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    parts = {"train": rows[:16], "validation": rows[16:20], "test": rows[20:]}
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(path)


Observe = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def observe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observe]:
    """Return a function that trains and says what could be seen; a run is made once."""
    home = tmp_path_factory.mktemp("settings")
    seen: dict[str, dict[str, Any]] = {}
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("TUNESMITH_CACHE", str(home / "cache"))
        write_rows("rows.jsonl")
        write_alike("alike.jsonl")
        write_thinking("thinking.jsonl")
        tiny_model("llama").save_pretrained("base")
        tiny_tokenizer().save_pretrained("base")
        write_saved("saved")
        texts = (" ".join(f"{n} and {m} is {n + m}." for n in range(9)) for m in range(12))
        Path("texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        tiny_model("llama", seed=1).save_pretrained("other")
        tiny_tokenizer().save_pretrained("other")

        def once(settings: dict[str, Any]) -> dict[str, Any]:
            key = json.dumps(settings, sort_keys=True)
            if key not in seen:
                with pytest.MonkeyPatch.context() as inner:
                    inner.chdir(home)
                    seen[key] = run_and_look(settings, inner, Path(f"out{next(numbers)}"))
            return seen[key]

        yield once


def run_and_look(
    settings: dict[str, Any], patch: pytest.MonkeyPatch, folder: Path
) -> dict[str, Any]:
    found: dict[str, Any] = {"batches": [], "rows": [], "rates": [], "losses": []}
    found["trained tokens"], found["places"] = [], []
    found["attention"], found["rehearsed"] = set(), []
    patch.setattr(compiled, "BACKEND", "eager")
    make, fit, losses, pack, finish = (
        loop.make_optimizer,
        loop.fit,
        loop.token_losses,
        loop.packed_rows,
        workflow.finish,
    )

    def make_optimizer(model: Any, given: Any) -> Any:
        made = make(model, given)
        trained = {n: list(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        found["trained"], found["shapes"] = sorted(trained), sorted(trained.values())
        found["optimizer"] = type(made).__name__
        found["compiled"] = [one._compiled_call_impl is not None for one in blocks(model)]
        found["own attention"] = model.config._attn_implementation
        found["groups"] = [
            (g["initial_lr"], g["weight_decay"], len(g["params"])) for g in made.param_groups
        ]
        return made

    def all_steps(*given: Any, **more: Any) -> Iterator[Any]:
        found["trunk"] = more.get("trunk") is not None
        for done in fit(*given, **more):
            found["rows"].append(done.rows)
            found["rates"].append(done.learning_rate)
            found["losses"].append(done.loss)
            found["trained tokens"].append(done.trained_tokens)
            yield done

    def token_losses(model: Any, rows: Any, device: Any, *, packing: bool = True) -> Any:
        found["batches"].append((packing, len(rows.counts) if packing else len(rows)))
        found["places"].append(len(rows.ids) if packing else 0)
        return losses(model, rows, device, packing=packing)

    def packed_rows(model: Any, rows: Any, attention: str) -> Any:
        found["attention"].add(attention)
        return pack(model, rows, attention)

    def look(done: Any, before: Any) -> None:
        layers = blocks(done.loaded.model)
        found["recomputes"] = [layer.gradient_checkpointing for layer in layers]
        finish(done, before)

    def rehearse(part: Any, *given: Any) -> Any:
        found["rehearsed"].append(part.name)
        return rehearse_part(part, *given)

    rehearse_part = rehearsal.rehearse
    patch.setattr(rehearsal, "rehearse", rehearse)
    patch.setattr(loop, "make_optimizer", make_optimizer)
    patch.setattr(loop, "fit", all_steps)
    patch.setattr(loop, "token_losses", token_losses)
    patch.setattr(loop, "packed_rows", packed_rows)
    patch.setattr(workflow, "finish", look)
    folder.mkdir()
    patch.chdir(folder)
    common = {"dataset": "../rows.jsonl", "model": "../base", "max_steps": 4, "report_to": "none"}
    common |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    common |= {"learning_rate": 0.01, "log_level": "error", "num_workers": 1}
    if "num_epochs" in settings or "minutes" in settings:
        del common["max_steps"]
    run = tunesmith.train(**{**common, **settings}).run
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["lines"] = sum(r["kind"] == "train" for r in records)
    found["held out loss"] = [r["loss"] for r in records if r["kind"] == "eval"]
    found["held out"] = [r["step"] for r in records if r["kind"] == "eval"]
    files = {str(path) for path in run.rglob("*") if "events.out" not in path.name}
    found["files"] = sorted(files)
    found["samples"] = len((run / "samples.jsonl").read_text().splitlines())
    general = run / "eval" / "general" / "forgetting.json"
    found["general"] = json.loads(general.read_text()) if general.is_file() else {}
    answers = run / "eval" / "tuned" / "attempts.jsonl"
    found["answers"] = len(answers.read_text().splitlines()) if answers.is_file() else 0
    return found


@pytest.mark.parametrize(("name", "value", "among", "changes"), TABLE, ids=str)
def test_a_setting_changes_what_it_says(
    name: str, value: Any, among: dict[str, Any], changes: str, observe: Observe
) -> None:
    before, after = observe(among), observe({**among, name: value})
    assert before[changes] or changes == "rehearsed", f"nothing of {changes} was seen"
    assert before[changes] != after[changes], f"{name} changes no {changes}"


def test_the_table_is_complete() -> None:
    known = {n for kind in KINDS for n in kind.model_fields}
    tabled = {getattr(row, "values", row)[0] for row in TABLE}
    assert sorted(known - tabled - set(ELSEWHERE)) == []
    assert not tabled & set(ELSEWHERE)
