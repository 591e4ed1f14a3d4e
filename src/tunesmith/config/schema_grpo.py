"""Settings of ``tunesmith grpo``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.schema import ModelOptions, OutputOptions, TaskName


class GrpoOptions(OutputOptions, ModelOptions):
    """Everything that ``tunesmith grpo`` knows."""

    task: TaskName = "units"
    """A graded task, such as units or maths."""
    dataset: str | None = None
    """Questions to learn from: a folder with a train and a dev split; units makes its own."""
    limit: int | None = Field(default=None, ge=1)
    """Questions drawn from the train split; all of them (units: 400) if unset."""
    question_seed: int = 0
    """Which questions are drawn, for tasks that make their own."""
    prompt: str | None = None
    """Prompt style to learn and to be measured in: direct or cot; the task's first if unset."""
    max_steps: int = Field(default=100, ge=1)
    """Steps: questions drawn, answered, graded and learnt from."""
    questions_per_step: int = Field(default=16, ge=1)
    """Questions of a step; all of them have had their turn before one comes again."""
    samples: int = Field(default=8, ge=2)
    """Answers to each question of a step, which are compared with each other."""
    temperature: float = Field(default=1.0, gt=0)
    """At which answers are drawn, and their probabilities taken."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; the task's own limit if unset."""
    batch_size: int | None = Field(default=None, ge=1)
    """Answers generated at once; found from the memory if unset."""
    reward: Literal["verify", "grade"] = "verify"
    """What an answer is worth: the task's strict check, or the rule that scores are taken by."""
    scale_rewards: Literal["group", "none"] = "group"
    """Divide an answer's advantage by the standard deviation of its question's rewards, or not."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """How far below 1 a token's ratio of new to old probability may go and still teach."""
    clip_high: float = Field(default=0.2, ge=0)
    """How far above 1 it may go; more than --clip-low, such as 0.28, keeps answers various."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the model before training, such as 0.04; 0 is none."""
    inner_steps: int = Field(default=1, ge=1)
    """Updates on the same answers; with one, nothing is ever clipped."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; 1e-5 if unset, ten times that with LoRA."""
    lr_scheduler_type: Literal["linear", "cosine", "cosine_with_restarts", "constant"] = "constant"
    """Course of the learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of warm-up; more than a tenth of the run is cut, with a warning."""
    optim: Literal["adamw", "adafactor"] = "adamw"
    """adafactor takes next to no memory: try a higher rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of weights at each update; never of norms and biases."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 leaves them."""
    lora: bool = False
    """Train a low-rank adapter and leave the weights as they are; goes on in one that is given."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale times rank; twice the rank if unset."""
    lora_target_modules: list[str] = Field(default_factory=list)
    """Names or endings of linear layers; all of them if unset."""
    seed: int = 42
    """Decides the order of questions, every answer and the adapter."""
    run_name: str | None = None
    """Last part of the run folder; <task>_grpo if unset."""
    resume: str | None = None
    """Go on from the newest valid checkpoint (auto) or a named one."""
    overwrite: bool = False
    """Replace an existing run folder."""
    save_steps: int = Field(default=25, ge=1)
    """Steps between checkpoints."""
    save_total_limit: int = Field(default=3, ge=2)
    """Checkpoints kept."""
    eval_questions: int = Field(default=200, ge=0)
    """Questions of the dev split that the model answers before and after; 0 for none."""
