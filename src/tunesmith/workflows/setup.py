"""What training, the rate finder and the estimate open alike: rows, model, plan, settings."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved
from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.cache import RowCache, default_folder
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.errors import UsageError
from tunesmith.rundir import RunDir
from tunesmith.workflows import console, method
from tunesmith.workflows.attention import choose_attention
from tunesmith.workflows.compiling import check_compiled
from tunesmith.workflows.launched import Way, processes, reshards
from tunesmith.workflows.method import check_freezing, check_method, settle_adapter
from tunesmith.workflows.new_tokens import Vocabulary, check_new_tokens, compare_on, grow
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.progress import check_held_out, check_looks, wants_looks
from tunesmith.workflows.quantised import asked_bits, check_quantised
from tunesmith.workflows.rows import Data, gather, split_shares
from tunesmith.workflows.safety import check_precision, check_safety

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
    from tunesmith.train.batches import Plan
    from tunesmith.train.loop import Settings
    from tunesmith.train.new_rows import NewRows


@dataclass(slots=True)
class Opened:
    """Everything that a run is made of before its first step."""

    config: FineTuningConfig
    data: Data
    loaded: LoadedModel
    renderer: Renderer
    rows: Prepared
    held: Prepared
    vocabulary: Vocabulary | None = None


def open_training(resolved: Resolved[Any]) -> Opened:
    """Gather the data, load the model and make the rows, saying what was found."""
    from tunesmith.tasks.registry import get_task

    config: FineTuningConfig = resolved.options
    console.set_level(config.log_level)
    check_method(resolved)
    check_safety(resolved)
    check_quantised(config)
    check_new_tokens(config)
    changed = [[name, value, source] for name, value, source in resolved.describe()]
    console.table("Settings that differ from the defaults", ["setting", "value", "from"], changed)
    data = gather(config, get_task(config.task))
    loaded, renderer = open_model(config, trainable=True, bits=asked_bits(config))
    check_precision(config, loaded)
    config = settle_adapter(config, resolved.sources, loaded)
    check_quantised(config)  # again, now that an adapter has said what it is
    check_compiled(config)
    check_freezing(config, loaded)
    if config.max_length > loaded.max_positions:
        chosen = resolved.sources.get("max_length", "default")
        if chosen == "default" or chosen.startswith("task"):
            config = config.model_copy(update={"max_length": loaded.max_positions})
            console.say(f"Rows have at most {config.max_length} tokens, this model's positions.")
    if config.max_length > loaded.max_positions:
        raise UsageError(
            f"--max-length {config.max_length} is more than the {loaded.max_positions} positions "
            "of this model.",
            hint=f"--max-length {loaded.max_positions}",
        )
    vocabulary = None
    if config.new_tokens:
        run = RunDir(Path(config.output_dir) / (config.run_name or run_name(config)))
        vocabulary, renderer = grow(config, data, loaded, renderer, run)
    rows = _prepare(data.train, renderer, config)
    held = _prepare(data.held_out, renderer, config) if data.held_out else Prepared()
    check_held_out(config, held.rows)
    if wants_looks(config):
        plan = plan_steps(config, rows, processes(), quiet=True)
        check_looks(config, resolved.sources, plan.total_steps, plan.steps_an_epoch)
    if vocabulary is not None and held.rows:
        compare_on(vocabulary, _prepare(data.held_out, vocabulary.renderer, config), held, loaded)
    _show_first(rows, renderer)
    return Opened(config, data, loaded, renderer, rows, held, vocabulary)


def make_accelerator(config: FineTuningConfig, loaded: LoadedModel) -> Any:
    """Return the accelerator of a run."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # It remembers the precision of an earlier run in this process, and refuses another one.
    AcceleratorState._reset_state()
    return Accelerator(cpu=loaded.device.type == "cpu", mixed_precision=config.mixed_precision)


def plan_steps(
    config: FineTuningConfig, rows: Prepared, processes: int, *, quiet: bool = False
) -> Plan:
    """Plan every step of a run; what is worth knowing of it is said unless ``quiet``."""
    from tunesmith.train.batches import make_plan
    from tunesmith.train.sharing import prompts_of

    size = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    prompts = prompts_of(rows.rows) if config.shared_prefix == "grouped" else None
    if prompts is not None and not quiet:
        console.say(f"Rows of one prompt meet in a step: {len(prompts.members):,} prompts.")
        if len(prompts.members) == len(rows.rows):
            console.warn("no two rows have a prompt in common, so none are computed together")
    return make_plan(
        len(rows.rows), size, config.num_epochs, config.max_steps, config.seed, prompts
    )


def loop_settings(
    config: FineTuningConfig,
    plan: Plan,
    rows: Prepared,
    loaded: LoadedModel,
    *,
    quiet: bool = False,
) -> Settings:
    """Return the settings of the loop; warm-up that is cut is said unless ``quiet``."""
    from tunesmith.train.batches import packed_capacity
    from tunesmith.train.loop import Settings
    from tunesmith.train.schedule import warmup_steps

    warmup, cut = warmup_steps(config.warmup_steps, config.warmup_ratio, plan.total_steps)
    if cut and not quiet:
        console.warn(
            f"{config.warmup_steps} warm-up steps are over a tenth of the "
            f"{plan.total_steps} planned; cut to {warmup}"
        )
    loaded.attention = choose_attention(config, loaded, quiet=quiet)
    longest = max(rows.lengths())
    hidden = loaded.model.get_input_embeddings().weight.shape[1]
    return Settings(
        config.learning_rate or 2e-5,
        config.lr_scheduler_type,
        warmup,
        config.weight_decay,
        config.max_grad_norm,
        config.packing,
        packed_capacity(longest, hidden, loaded.device.type),
        config.per_device_train_batch_size,
        lora_plus_ratio=config.lora_plus_ratio,
        layer_lr_decay=config.layer_lr_decay,
        optim=config.optim,
        neftune_alpha=config.neftune_alpha,
        new_rows=_new_rows(config, plan, loaded, quiet=quiet),
        shared_prefix=config.shared_prefix,
        attention=loaded.attention,
    )


def _new_rows(
    config: FineTuningConfig, plan: Plan, loaded: LoadedModel, *, quiet: bool
) -> NewRows | None:
    from tunesmith.train.new_rows import NewRows

    new = loaded.new_tokens
    if new is None:
        return None
    steps = math.ceil(config.new_tokens_warmup * plan.total_steps)
    if not quiet:
        console.say(f"Only the rows of new tokens are trained in the first {steps} steps.")
    return NewRows(new.first, len(new), steps)


def make_trainable(
    config: FineTuningConfig, loaded: LoadedModel, accelerator: Any, way: Way = "copies"
) -> Any:
    """Add the adapter, freeze, and return what this process trains: the model, or a shard of it.

    With shards ``loaded.model`` is a whole copy in the main process and None in the others.
    """
    console.say(f"Trained: {method.make_trainable(config, loaded)}.")
    if way == "shards":
        from tunesmith.train.sharded import shard

        loaded.model.to("cpu")
        whole = copy.deepcopy(loaded.model) if accelerator.is_main_process else None
        model, loaded.model = shard(loaded.model, accelerator, reshard=reshards()), whole
        return model
    # Evaluation mode only means that no wrapper is put around it; the loop sums the gradients.
    loaded.model = accelerator.prepare_model(loaded.model, evaluation_mode=True)
    return loaded.model


def _prepare(examples: Sequence[Any], renderer: Renderer, config: FineTuningConfig) -> Prepared:
    cache = None
    if config.cache:
        folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_folder()
        cache = RowCache(folder, int(config.cache_gb * 1e9))
    try:
        prepared = prepare(
            examples,
            renderer,
            config.max_length,
            answers_only=config.assistant_only_loss,
            allow_refused=config.allow_refused,
            cache=cache,
            workers=config.num_workers,
        )
    finally:
        for note in cache.notes if cache is not None else ():
            console.warn(note)
    for reason in prepared.refused:
        console.warn(f"left out: {reason}")
    if prepared.cut_turns:
        console.warn(f"{prepared.cut_turns} oldest turns were cut from long chats")
    return prepared


def run_name(config: FineTuningConfig) -> str:
    """Return the run's name if none was given."""
    if not config.dataset:
        return f"{config.task}_generated"
    name = Path(split_shares(config.dataset)[0][0]).name
    for suffix in (".gz", ".jsonl", ".json", ".csv", ".parquet", ".txt", ".md"):
        name = name.removesuffix(suffix)
    return f"{config.task}_{name}"


def _show_first(rows: Prepared, renderer: Renderer) -> None:
    from tunesmith.data.show import marked

    console.say(
        f"Rows: {len(rows.rows)} of {rows.examples} examples, {rows.tokens:,} tokens, "
        f"{rows.trained_tokens:,} of them trained ({rows.made()}). "
        "The first one, trained parts in ⟦ ⟧:"
    )
    console.say(marked(rows.rows[0], renderer, limit=600))
