"""The end of a training run: final model, base against tuned, contamination, report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.data.overlap import find_overlaps
from tunesmith.data.prepare import Prepared
from tunesmith.rundir import RunDir, hash_tree, write_json, write_text
from tunesmith.storage import whole_folder
from tunesmith.tasks.base import GradedTask
from tunesmith.workflows import console
from tunesmith.workflows.contamination import (
    clean_json,
    clean_sentences,
    compare_clean,
    overlap_sentence,
    store_clean,
)
from tunesmith.workflows.forgetting import ask_general, compare_general
from tunesmith.workflows.lineage import overlaps_found, sources_of
from tunesmith.workflows.new_tokens import Vocabulary
from tunesmith.workflows.new_tokens import losses as vocabulary_losses
from tunesmith.workflows.rows import Data

if TYPE_CHECKING:
    from tunesmith.data.overlap import Overlap
    from tunesmith.data.render import Renderer
    from tunesmith.evaluate.losses import RowLoss
    from tunesmith.models.load import LoadedModel
    from tunesmith.types import Encoded


@dataclass(frozen=True, slots=True)
class Finished:
    """A run whose last step is done."""

    config: FineTuningConfig
    data: Data
    loaded: LoadedModel
    renderer: Renderer
    rows: Prepared
    held: Prepared
    run: RunDir
    steps: int
    held_loss: float | None
    best: float | None
    seconds: float
    planned_steps: int
    """More than ``steps`` if the run stopped early."""
    notes: Sequence[str]
    """What else there is to say about how it ended."""
    peak_bytes: int
    """Most memory held until the last step: of the process, or allocated on the GPU."""
    steps_here: int
    """Steps that this process made; fewer than ``steps`` after a resume."""
    vocabulary: Vocabulary | None = None


def baseline(
    loaded: LoadedModel,
    renderer: Renderer,
    data: Data,
    held: Prepared,
    run: RunDir,
    config: FineTuningConfig,
    vocabulary: Vocabulary | None = None,
) -> list[RowLoss]:
    """Measure the model before training: held-out losses, and the answers to the questions.

    Where it is to have new tokens, the base is measured with its own.
    """
    words = renderer if vocabulary is None else vocabulary.renderer
    ask_general(loaded, words, run, config, "base", texts=vocabulary is None)
    if vocabulary is not None:
        _ask(loaded, vocabulary.renderer, data, run, config, "base")
        return vocabulary_losses(loaded, vocabulary.before, vocabulary.tokenizer)
    losses = byte_losses(loaded, renderer, held) if held.rows else []
    _ask(loaded, renderer, data, run, config, "base")
    return losses


def byte_losses(loaded: LoadedModel, renderer: Renderer, held: Prepared) -> list[RowLoss]:
    """Return each held-out row's loss in nats and the bytes that its trained tokens spell."""
    from tunesmith.evaluate.losses import RowLoss
    from tunesmith.train.losses import HELD_OUT_CAPACITY, row_losses

    sums = row_losses(loaded.model, held.rows, loaded.device, HELD_OUT_CAPACITY, loaded.attention)
    return [
        RowLoss(str(number), loss, trained_bytes(row, renderer), str(document))
        for number, (row, document, (loss, _)) in enumerate(
            zip(held.rows, held.documents, sums, strict=True)
        )
    ]


def finish(done: Finished, before: Sequence[RowLoss]) -> None:
    """Save the model and write down what the run changed, with the evidence."""
    from tunesmith.evaluate.losses import compare_losses
    from tunesmith.evaluate.records import versions
    from tunesmith.workflows.report import write_report

    save_model(done.loaded, done.renderer, done.run.final_model)
    sentences: list[str] = list(done.notes)
    losses: list[str] = []
    loss: dict[str, Any] = {}
    if before:
        if done.vocabulary is None:
            after = byte_losses(done.loaded, done.renderer, done.held)
        else:
            after = vocabulary_losses(done.loaded, done.vocabulary.after, done.loaded.tokenizer)
        compared = compare_losses(before, after)
        losses.append(compared.sentence())
        loss = {"loss": compared.to_json()}
        sentences += losses
        if done.best is not None and done.held_loss is not None and done.best < done.held_loss:
            sentences.append(
                f"The lowest held-out loss was {done.best:.4f} nats per token (best_model), the "
                f"last one {done.held_loss:.4f} (final_model)."
            )
    if done.steps_here:
        # A finished run that learns on has answers of the model that it was.
        shutil.rmtree(done.run.eval / "tuned", ignore_errors=True)
    _ask(done.loaded, done.renderer, done.data, done.run, done.config, "tuned")
    found = find_overlaps(done.data.train, done.data.questions) if done.data.questions else []
    contamination = _contamination(done, found)
    sentences += compare_stored(done.run)
    same = done.vocabulary is None
    ask_general(done.loaded, done.renderer, done.run, done.config, "tuned", texts=same)
    forgetting = compare_general(done.run)
    sentences += forgetting
    manifest: dict[str, Any] = {
        "task": done.config.task,
        "model": done.loaded.ref.described,
        "base": done.loaded.ref.name,
        "steps": done.steps,
        "planned steps": done.planned_steps,
        "stopped early": done.steps < done.planned_steps,
        "seconds": round(done.seconds, 1),
        "measured": {
            "peak_bytes": done.peak_bytes,
            "seconds": round(done.seconds, 3),
            "steps": done.steps_here,
            "device": str(done.loaded.device),
        },
        "versions": versions(),
        "hashes": {
            "final_model": hash_tree(done.run.final_model),
            "template": done.renderer.fingerprint,
        },
        "counts": {
            "training": {**done.rows.counts(), **done.data.thinking},
            "held out": {**done.held.counts(), "also in training, left out": done.data.repeated},
        },
        "losses": losses,
        **loss,
        "forgetting": forgetting,
        "sources": sources_of(done.config, done.data),
        "contamination": contamination,
        "overlaps": overlaps_found(found),
        "finished": True,
    }
    write_text(done.run.final_model / "README.md", _card(done, sentences, contamination))
    manifest["hashes"]["final_model"] = hash_tree(done.run.final_model)
    done.run.write_manifest(manifest)
    page = write_report(done.run.path)
    for sentence in (*sentences, *contamination):
        console.say(sentence)
    console.say(f"Model: {done.run.final_model}\nReport: {page}")
    console.say(f"Next: tunesmith generate --model {done.run.path} --prompt '…'")


def save_model(loaded: LoadedModel, renderer: Renderer, folder: Path) -> None:
    """Write a model folder in one move: safetensors, tokenizer, the one template, stop tokens."""
    from tunesmith.models.adapters import save_as_plain_lora

    with whole_folder(folder) as partial:
        loaded.tokenizer.chat_template = renderer.template
        loaded.model.generation_config.eos_token_id = list(renderer.stop_ids)
        loaded.model.save_pretrained(partial, **_adapter_only(loaded.model))
        if loaded.taken_out:
            save_as_plain_lora(partial, loaded.taken_out)
        loaded.tokenizer.save_pretrained(partial)
        loaded.model.generation_config.save_pretrained(partial)


def _adapter_only(model: Any) -> dict[str, Any]:
    """Return what keeps PEFT from saving the embeddings along with an adapter."""
    return {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}


def _ask(
    loaded: LoadedModel,
    renderer: Renderer,
    data: Data,
    run: RunDir,
    config: FineTuningConfig,
    name: str,
) -> None:
    """Let the model answer the run's questions; answers stored before a stop are not made again."""
    from tunesmith.tasks.registry import get_task
    from tunesmith.workflows.evaluate import collect, greedy_plan

    task = get_task(config.task)
    if not isinstance(task, GradedTask) or not data.questions or not config.eval_questions:
        return
    plan = greedy_plan(task, data.questions, task.prompts[0], 0)
    collect(loaded, renderer, plan, task.grade, run.eval / name, name, "held out")


def compare_stored(run: RunDir) -> list[str]:
    """Compare the stored answers of base and tuned model, if there are both; say what is found."""
    from tunesmith.evaluate.compare import compare
    from tunesmith.evaluate.records import load

    folders = [run.eval / name for name in ("base", "tuned")]
    if not all((folder / "attempts.jsonl").is_file() for folder in folders):
        return []
    comparison = compare([load(folder) for folder in folders])
    clean = compare_clean([load(folder) for folder in folders], folders)
    write_json(run.eval / "comparison.json", {**comparison.to_json(), **clean_json(clean)})
    return [*(pair.sentence() for pair in comparison.pairs), *clean_sentences(clean)]


def _contamination(done: Finished, found: Sequence[Overlap]) -> list[str]:
    """Say which test questions the training rows hold, and score both models without them."""
    if not done.data.questions:
        return []
    sentences = [overlap_sentence(found, len(done.data.questions))]
    for name in ("base", "tuned"):
        folder = done.run.eval / name
        if (folder / "attempts.jsonl").is_file():
            scored = store_clean(folder, found, ["the rows of this run"])
            sentences += [f"{name}: {scored['sentence']}"] if found else []
    return sentences


def trained_bytes(row: Encoded, renderer: Renderer) -> int:
    """Return how many UTF-8 bytes the trained tokens of a row spell, at least 1."""
    trained = [i for i, weight in zip(row.ids, row.weights, strict=True) if weight]
    return max(1, len(renderer.decode(trained).encode()))


def _on_quantised(loaded: LoadedModel) -> list[str]:
    if loaded.quantised is None:
        return []
    return [
        f"The adapter was trained on its base quantised to {loaded.quantised.name}, and every "
        "figure here was taken on that. It loads on the base as it is, too, with slightly other "
        "losses.",
        "",
    ]


def _card(done: Finished, sentences: Sequence[str], contamination: Sequence[str]) -> str:
    data = ", ".join(done.config.dataset) or "rows that the task generates"
    return card(
        done.run,
        f"Fine-tuned with tunesmith from {done.loaded.ref.described} on {data} "
        f"(task {done.config.task}, {done.steps} steps).",
        (*sentences, *contamination),
        _on_quantised(done.loaded),
    )


def card(run: RunDir, made: str, sentences: Sequence[str], besides: Sequence[str] = ()) -> str:
    """Return the README of a final model: how it was made, then what there is to say of it."""
    lines = [
        "---",
        "library_name: transformers",
        "---",
        "",
        f"# {run.path.name}",
        "",
        made,
        "",
        *besides,
        *(f"- {sentence}" for sentence in sentences),
        "",
        "The settings lie in `config.yaml` of the run, the evidence in its `report.html`.",
        "",
    ]
    return "\n".join(lines)
