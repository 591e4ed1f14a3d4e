"""Every setting, once: YAML, command line, Python API and reference are made from these classes."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from tunesmith.config.options import Options as Options
from tunesmith.config.schema_backend import BackendOptions
from tunesmith.config.schema_proof import ProofOptions
from tunesmith.config.schema_rag import RagOptions
from tunesmith.config.schema_replies import ReplyOptions

TaskName = Literal[
    "chat", "code", "instruct", "domain", "custom", "units", "maths", "choice", "bbh", "countdown",
    "qa", "raft", "humaneval", "mbpp", "socratic", "ifeval",
]  # fmt: skip
TASKS: tuple[str, ...] = get_args(TaskName)
Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
    "trackio", "none",
]  # fmt: skip


def _switch(true: str, false: str) -> BeforeValidator:
    """Read a setting that is a switch elsewhere: true and false stand for two of its words."""
    words = {"true": true, "false": false}
    return BeforeValidator(lambda value: words.get(str(value).lower(), value))


Recomputed = Annotated[
    Literal["no", "full", "auto"] | Annotated[int, Field(ge=1)], _switch("full", "no")
]


class TokenizerOptions(Options):
    """Chat template"""

    chat_template: str = "auto"
    """auto (the model's own, else plain), plain, instruction, a Jinja file, or the template."""


class ModelOptions(TokenizerOptions):
    """Model"""

    model: str = "tunesmith/tiny"
    """Weights, an adapter, a run folder, a folder of runs, or a hub name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; auto is bfloat16 on a GPU that has it, float32 elsewhere."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


class OutputOptions(Options):
    """Output"""

    output_dir: str = "runs"
    """Folder that run folders lie in."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is shown on the terminal."""


class DataOptions(Options):
    """Data"""

    task: TaskName = "instruct"
    """Kind of work; it sets defaults and, for graded tasks, how answers are graded."""
    dataset: list[str] = Field(default_factory=list)
    """Files, folders, hub or set names; several are joined; by shares: a.jsonl:0.3 b.jsonl:0.7."""
    eval_dataset: str | None = None
    """Held-out rows from a source of their own."""
    dataset_train_split: str = "train"
    """Split of a saved folder or hub data set to train on."""
    dataset_test_split: str | None = None
    """Split of every source to hold out, such as validation."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields: prompt=Frage,completion=Antwort; also a.b or a template of {fields}."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8, such as windows-1252."""
    validation_split: float = Field(default=0.1, ge=0, lt=1)
    """Share held out (seeded, equal prompts on one side) when nothing else is."""
    max_rows: int | None = Field(default=None, ge=1)
    """Take only the first rows of each source."""
    streaming: bool = False
    """Keep rows on the disk while they are prepared: for sets that do not fit into memory."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of a row; plain text is cut into windows, long chats lose their oldest turns."""
    allow_refused: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that may be refused (too long, say) before the run stops."""
    assistant_only_loss: bool = True
    """Train on answers only; false trains on every token."""
    thinking: Literal["keep", "strip", "mask"] = "keep"
    """<think> blocks of answers: kept and trained, taken out, or kept without being trained."""
    num_workers: int | None = Field(default=None, ge=1)
    """Processes that tokenise; unset is one for each core where rows are many. Changes no token."""
    cache: bool = True
    """Keep tokenised rows for later runs; --no-cache does without."""
    cache_dir: str | None = None
    """Folder of the cache; $TUNESMITH_CACHE or ~/.cache/tunesmith if unset."""
    cache_gb: float = Field(default=20.0, gt=0)
    """Size of the cache, beyond which rows unused longest are removed."""
    packing: bool = True
    """Put several rows into one sequence, none seeing another; false pads."""


class TogetherOptions(Options):
    """Rows in one sequence"""

    shared_prefix: Literal["auto", "grouped", "off"] = "auto"
    """Compute what rows of a step begin with once: where they meet; grouped makes them meet, by
    prompt (steps of kindred rows); off never. Not with noise."""
    attention: Literal["auto", "segments", "varlen", "flash_attention_2", "sdpa", "eager"] = "auto"
    """segments: row by row; varlen: PyTorch's kernel for it (GPU); sdpa, eager: the model's own
    under one mask, slow; auto is varlen where it runs, else segments."""


class LoraOptions(Options):
    """LoRA"""

    lora: bool = False
    """Train a low-rank adapter and leave the weights as they are; goes on in one that is given."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale times rank; unset keeps the task's ratio to the rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    lora_target_modules: list[str] = Field(default_factory=list)
    """Names or endings of linear layers; all of them if unset."""
    lora_init: Literal["default", "pissa"] = "default"
    """pissa starts from the largest singular values; it wants a lower rate. Saved as plain LoRA."""
    use_rslora: bool = False
    """Scale by alpha over the root of the rank (rsLoRA): for high ranks."""
    use_dora: bool = False
    """Train the magnitude of each output apart from its direction (DoRA)."""
    lora_plus_ratio: float = Field(default=1.0, gt=0)
    """Rate of the adapter's B over that of its A (LoRA+), such as 16; 1 is plain LoRA."""
    load_in_4bit: bool = False
    """Hold the base in four bits (NF4, double quantisation: QLoRA); needs bitsandbytes."""
    load_in_8bit: bool = False
    """Hold the base in eight bits (int8); needs bitsandbytes."""
    freeze_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the bottom layers, and the embeddings, left as they are."""
    trunk_cache: Literal["auto", "on", "off"] = "auto"
    """Keep what frozen layers put out on the disk, so that later epochs skip them (no dropout)."""


class VocabularyOptions(Options):
    """Vocabulary"""

    new_tokens: int = Field(default=0, ge=0)
    """Tokens to add to a BPE tokenizer: those that save most tokens of the training texts."""
    new_tokens_warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps, at the beginning, in which only the rows of new tokens are trained."""


class OptimOptions(Options):
    """Optimisation"""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; unset is the task's, ten times that with LoRA."""
    num_epochs: float = Field(default=3, gt=0)
    """Passes over the rows."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps, instead of epochs."""
    minutes: float | None = Field(default=None, gt=0)
    """Time for the whole run: steps, at most the task's epochs, and if need be a cheaper method are
    chosen by measuring; instead of epochs or steps."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Rows of a micro-batch on one device."""
    gradient_accumulation_steps: int = Field(default=2, ge=1)
    """Micro-batches of a step."""
    optim: Literal["adamw", "adafactor", "adamw_8bit"] = "adamw"
    """adafactor takes next to no memory: try a rate of 1e-3; adamw_8bit needs bitsandbytes."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Rate of a layer over that of the layer above it, such as 0.9; embeddings lie lowest."""
    lr_scheduler_type: Literal["linear", "cosine", "cosine_with_restarts", "constant"] = "cosine"
    """Course of the learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of warm-up; more than a tenth of the run is cut, with a warning."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Warm-up as a share of the run, if no steps are given."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decay of weights at each step; never of norms and biases."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 leaves them."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings while training (NEFTune), such as 5; 0 is none."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast of the forward pass."""
    gradient_checkpointing: Recomputed = "no"
    """Layers computed again in the backward pass: no, full, their number, or auto for the fewest
    that fit into free memory. Less memory, slower; without a value it is full."""
    torch_compile: Annotated[Literal["off", "on"], _switch("on", "off")] = "off"
    """on compiles the layers, each by itself, for training steps; on a CPU, which needs a C++
    compiler for it, no gain was measured. Not with --gradient-checkpointing, DoRA, quantised
    weights, several processes or --minutes."""
    seed: int = 42
    """Decides order, dropout, adapters and splits."""


class RunOptions(OutputOptions):
    """Run"""

    run_name: str | None = None
    """Last part of the run folder; <task>_<dataset> if unset."""
    resume: str | None = None
    """Go on from the newest valid checkpoint (auto) or a named one."""
    overwrite: bool = False
    """Replace an existing run folder."""
    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When the held-out loss is taken while training."""
    eval_steps: int = Field(default=100, ge=1)
    """Steps between held-out losses."""
    save_steps: Annotated[int, Field(ge=1)] | Literal["epoch"] = 500
    """Steps between checkpoints, or epoch."""
    save_total_limit: int = Field(default=3, ge=2)
    """Checkpoints kept, the best one among them if the run is to end with it."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints of the lowest held-out losses that are saved and kept, however old."""
    load_best_model_at_end: bool = False
    """End with the model of the lowest held-out loss instead of the last one."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many held-out losses without a better one, and end with the best model."""
    nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """Where a loss or gradient is not finite: stop, skip the step, or also go back a checkpoint."""
    max_nonfinite_steps: int = Field(default=3, ge=1)
    """Steps that may be skipped for it before the run stops."""
    logging_steps: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""
    report_to: list[Tracker] = Field(default=["tensorboard"])
    """Where metrics go besides metrics.jsonl: trackers of accelerate, each installed by you."""
    eval_samples: int = Field(default=2, ge=0)
    """Held-out prompts that the model answers at each held-out loss, to be read; 0 for none."""
    stall_seconds: float = Field(default=900, gt=0)
    """With several processes: how long a micro-batch of one may take before all end."""
    rehearsal: bool | None = None
    """Compute the largest batches and longest answers once before step 1, to see that all fits;
    unset does so unless the run is resumed or so short that it would be over 3% of it. With several
    processes it is never done."""
    eval_questions: int = Field(default=200, ge=0)
    """Questions that base and tuned model both answer at the end, for graded tasks; 0 for none."""
    forgetting: bool = True
    """Take a small general suite before and after: texts by their loss, questions by which option
    is likeliest."""
    forgetting_file: str | None = None
    """Suite of your own in place of the built-in one: rows with text, or with question, choices and
    answer."""


class FineTuningConfig(
    RunOptions,
    OptimOptions,
    VocabularyOptions,
    LoraOptions,
    TogetherOptions,
    DataOptions,
    ModelOptions,
):
    """Everything that ``tunesmith train`` knows."""


class DrawOptions(Options):
    """Sampling"""

    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the likeliest tokens up to this probability."""
    top_k: int = Field(default=0, ge=0)
    """Keep this many tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Drop tokens below this share of the likeliest one."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; the task's own limit if unset."""
    seed: int = 0
    """Each attempt's seed follows from this one, the problem and the index."""


class SamplingOptions(DrawOptions):
    """Generation"""

    batch_size: int | None = Field(default=None, ge=1)
    """Rows generated at once; found from the memory if unset."""


class QuestionOptions(Options):
    """Questions"""

    task: TaskName = "units"
    """A graded task: units, maths, choice, bbh, countdown, qa, socratic, humaneval, mbpp or
    ifeval."""
    dataset: str | None = None
    """File of questions; units and countdown make their own."""
    limit: int | None = Field(default=None, ge=1)
    """Questions asked; 400 for evaluation and all for sampling if unset."""
    samples: int = Field(default=1, ge=1)
    """Attempts at each question."""
    question_seed: int = 0
    """Which questions are drawn, for tasks that make their own."""
    system: str = ""
    """System message in front of every question, in place of the task's own."""


class FileOptions(QuestionOptions):
    """Questions of a file"""

    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields of questions: question=Frage,answer=Antwort; also a.b or a template."""
    checker: str | None = None
    """How answers of task qa are checked, where a row does not say: exact (default), number,
    number:0.01, number:1%, contains, regex, choice or f1>=0.5."""
    examples: str | None = None
    """File of worked examples for --prompt cot of task bbh; unset takes cot-prompts/SUBTASK.txt."""
    unsafe_exec: bool = False
    """Run programs of tasks humaneval and mbpp even where they cannot be confined, with limits
    alone: they could read the user's files and, where root does not start them, kill the user's
    processes and forge their verdicts. Where they can be confined it changes nothing."""


class EvalOptions(
    OutputOptions,
    SamplingOptions,
    FileOptions,
    BackendOptions,
    ReplyOptions,
    RagOptions,
    ProofOptions,
    ModelOptions,
):
    """Everything that ``tunesmith eval`` knows."""

    task: Literal[TaskName, "mt_bench"] = "units"  # type: ignore[assignment]
    """A graded task: units, maths, choice, bbh, countdown, qa, raft, socratic, humaneval, mbpp or
    ifeval; chat, code, instruct, domain and custom, whose replies metrics score; or mt_bench,
    questions of several turns for tunesmith judge."""
    split: str = "test"
    """train, dev, test, or the task's further ones (units: ood; countdown: test-3, test-4)."""
    prompt: str | None = None
    """Prompt style: direct, cot, or the task's own (maths: plan; choice: cloze; units and maths:
    socratic, which answers sub-questions that a model writes first)."""
    decomposer: str | None = None
    """Model that writes the sub-questions of --prompt socratic; --model itself if unset."""
    against: list[str] = Field(default_factory=list)
    """Further prompt styles that the same questions are asked in; each makes a set of its own, and
    the paired differences are shown: --prompt socratic --against direct cot says what answering
    sub-questions first brings."""
    equal_tokens: bool = False
    """Also ask a style of --against as often as the tokens of --prompt pay for, at temperature 0.7,
    and take the most frequent answer."""
    vote: list[Literal["majority", "weighted", "best"]] = Field(default_factory=list)
    """One answer out of a question's --samples, stored as a set of its own: the most frequent
    (majority), the same weighted by each text's mean token probability, or that of the likeliest
    text (best)."""
    choice_by: Literal["generate", "likelihood", "likelihood-normalised"] = "generate"
    """How an option is chosen: by what the model writes, or by the log-probability of each option,
    summed or divided by its bytes (nothing is generated then)."""
    name: str | None = None
    """Name in tables and of the folder; made from task, prompt and model if unset."""
    overwrite: bool = False
    """Start over instead of going on with stored attempts."""


class SampleOptions(OutputOptions, SamplingOptions, FileOptions, BackendOptions, ModelOptions):
    """Everything that ``tunesmith sample`` knows."""

    split: str = "train"
    """Split that questions come from; never one that is tested on."""
    prompt: str = "cot"
    """Prompt style: direct or cot."""
    samples: int = Field(default=8, ge=1)
    """Attempts at each question."""
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy."""
    output: str
    """The selected rows (.jsonl, or .json for arrays of question, answer, reasoning)."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of attempts; those after the first ask only questions with too few verified ones."""
    enough: int | None = Field(default=None, ge=1)
    """Verified attempts from which on a question is asked no further; 4 if unset."""
    round_temperature: float | None = Field(default=None, ge=0)
    """Temperature of the last round, to which those between rise; the same in all if unset."""
    hint_last: bool = False
    """Tell the answer in the last round, where no attempt was verified; no row shows it."""
    max_paths: int = Field(default=4, ge=1)
    """Distinct verified paths kept for a question."""
    prefer: Literal["farthest", "short", "long"] = "farthest"
    """Which paths stay: those least alike in letters, those of the fewest tokens, or the most."""
    max_path_tokens: int | None = Field(default=None, ge=1)
    """Longest path that is kept, in tokens of the answer."""
    keep_gold: bool = False
    """Also keep the task's own row of each question, and no sampled path that equals it."""
    overwrite: bool = False
    """Start over instead of going on with the log of attempts."""
