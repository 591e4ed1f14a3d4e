"""The end of a GRPO run: final model, held-out answers before and after, card, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema_grpo import GrpoOptions
from tunesmith.rundir import RunDir, hash_tree, write_text
from tunesmith.workflows import console
from tunesmith.workflows.evaluate import collect
from tunesmith.workflows.finish import card, compare_stored, save_model
from tunesmith.workflows.rollouts import answer_limit, style

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
    from tunesmith.tasks.base import GradedTask
    from tunesmith.types import Problem

SPAN = 10
"""The first and the last of so many parts of a run are compared in a sentence."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """A run whose last step is done."""

    options: GrpoOptions
    task: GradedTask
    loaded: LoadedModel
    renderer: Renderer
    held: list[Problem]
    run: RunDir
    records: Sequence[Mapping[str, Any]]
    """One for each step."""
    seconds: float
    steps_here: int
    """Steps that this process made; fewer than all after a resume."""
    peak_bytes: int
    notes: Sequence[str]


def ask(
    loaded: LoadedModel,
    renderer: Renderer,
    task: GradedTask,
    held: list[Problem],
    options: GrpoOptions,
    run: RunDir,
    name: str,
) -> float | None:
    """Let the model answer the held-out questions greedily; return the share that is right.

    Answers that are stored already are not made again. None without questions.
    """
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.generate.requests import Sampling

    if not held:
        return None
    plan = Plan(task, held, style(options, task), Sampling(answer_limit(options, task)), 1, 0)
    grader, slots = task.grade, options.batch_size
    done = collect(loaded, renderer, plan, grader, run.eval / name, name, "dev", slots)
    return done.summary.accuracy


def finish(learnt: Learnt) -> tuple[float | None, float | None]:
    """Save the model and write down what the run changed; return the scores before and after."""
    from tunesmith.evaluate.records import versions
    from tunesmith.workflows.report import write_report

    options, run, loaded = learnt.options, learnt.run, learnt.loaded
    save_model(loaded, learnt.renderer, run.final_model)
    parts = (learnt.task, learnt.held, options, run)
    after = ask(loaded, learnt.renderer, *parts, "tuned")
    before = _before(run) if learnt.held else None
    sentences = [*learnt.notes, *rewards(learnt.records), *compare_stored(run)]
    apart = (
        [f"None of the {len(learnt.held)} held-out questions is among those learnt from."]
        if learnt.held
        else []
    )
    made = (
        f"Trained with tunesmith from {loaded.ref.described} by GRPO on its own answers to the "
        f"{options.task} task ({len(learnt.records)} steps of {options.questions_per_step} "
        f"questions, {options.samples} answers each, reward: {options.reward})."
    )
    write_text(run.final_model / "README.md", card(run, made, (*sentences, *apart)))
    steps = len(learnt.records)
    run.write_manifest(
        {
            "task": options.task,
            "model": loaded.ref.described,
            "base": loaded.ref.name,
            "steps": steps,
            "planned steps": options.max_steps,
            "stopped early": False,
            "seconds": round(learnt.seconds, 1),
            "measured": {
                "peak_bytes": learnt.peak_bytes,
                "seconds": round(learnt.seconds, 3),
                "steps": learnt.steps_here,
            },
            "versions": versions(),
            "hashes": {
                "final_model": hash_tree(run.final_model),
                "template": learnt.renderer.fingerprint,
            },
            "counts": {"answers": _counts(learnt)},
            "contamination": apart,
            "finished": True,
        }
    )
    page = write_report(run.path)
    for sentence in (*sentences, *apart):
        console.say(sentence)
    console.say(f"Model: {run.final_model}\nReport: {page}")
    console.say(f"Next: tunesmith eval --model {run.path} --prompt {style(options, learnt.task)}")
    return before, after


def rewards(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how the reward went, and how much of the run there was nothing to learn from."""
    known = [record["reward"] for record in records if record["reward"] is not None]
    if not known:
        return ["No answer could be graded, so nothing was learnt."]
    part = max(1, len(known) // SPAN)
    first, last = sum(known[:part]) / part, sum(known[-part:]) / part
    silent = sum(record["no_signal"] for record in records) / len(records)
    idle = sum(1 for record in records if not record["updates"])
    which = "step" if part == 1 else f"{part} steps"
    said = [
        f"The mean reward was {first:.3f} in the first {which} and {last:.3f} in the last; "
        f"{100 * silent:.0f}% of questions were answered alike every time and taught nothing."
    ]
    if idle:
        said.append(f"{idle} of {len(records)} steps made no update for want of such a difference.")
    ungraded = sum(record["ungraded"] for record in records)
    if ungraded:
        said.append(f"The grader failed on {ungraded} answers, which counted as nothing.")
    return said


def _before(run: RunDir) -> float | None:
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import load

    return summarise(load(run.eval / "base").attempts).accuracy


def _counts(learnt: Learnt) -> dict[str, int]:
    size, records = learnt.options.samples, learnt.records
    asked = learnt.options.questions_per_step
    return {
        "steps": len(records),
        "steps without an update": sum(1 for record in records if not record["updates"]),
        "answers to a question": size,
        "questions a step": asked,
        "ungraded answers": sum(record["ungraded"] for record in records),
    }
