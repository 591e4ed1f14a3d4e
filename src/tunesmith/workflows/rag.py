"""``tunesmith eval --task raft``: the same questions with other documents in the prompt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import hash_json, write_json
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent, open_respondent, sampling_of
from tunesmith.workflows.questions import task_of
from tunesmith.workflows.rag_conditions import NEED_ORACLE, check_rag, conditions_of
from tunesmith.workflows.rag_losses import answer_losses
from tunesmith.workflows.rag_table import show_conditions

if TYPE_CHECKING:
    from tunesmith.data.raft.chunks import Chunk
    from tunesmith.data.raft.contexts import Condition, Dressed, Pool
    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.scores.base import Measured, TextLoss
    from tunesmith.generate.requests import Sampling
    from tunesmith.tasks.raft import RaftTask
    from tunesmith.types import Problem
    from tunesmith.workflows.evaluate import EvalResult

CONDITIONS = "conditions.json"
"""In the folder of the command: every condition with its figures, and the comparisons."""
HIT = (
    "A passage is a hit if it is the chunk that the question was made of, or nearly duplicates it, "
    "or comes from the same document and has an answer's words."
)
COMPARED = ("answer_em", "answer_f1")
NAMED = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions that every condition asks, with the chunk that answers each."""

    problems: list[Problem]
    oracles: Mapping[str, Chunk | None]


def evaluate_rag(options: EvalOptions) -> EvalResult:
    """Ask the questions under every condition; each makes a set of attempts of its own."""
    from tunesmith.tasks.raft import RaftTask
    from tunesmith.workflows.evaluate import check_choice, collect_from, plan_of

    check_rag(options)
    check_choice(options)
    task = task_of(options.model_copy(update={"columns": _columns(options)[0]}))
    assert isinstance(task, RaftTask)
    pool, asked, conditions = _questions(options, task)
    style = task.check_style(options.prompt or _style(task, asked.problems))
    sampling = sampling_of(options, task.max_new_tokens)
    respondent = open_respondent(options)
    fits = _room(respondent, options, sampling)
    name, folder = _named(options, style, conditions)
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, EvalResult] = {}
    told: dict[str, dict[str, Any]] = {}
    losses: dict[str, dict[str, TextLoss]] = {}
    for condition in conditions:
        alone = len(conditions) == 1
        own = name if alone else f"{name}-{condition.name}"
        place = folder if alone else folder / condition.name
        problems, short = _dress(task, asked, pool, condition, style, fits)
        # Stored beside each question, so that metrics and another grading know them.
        phrases = [options.abstain_phrases] if options.abstain_phrases else []
        variant = hash_json([[p.meta["documents"], p.meta["strict"], *phrases] for p in problems])
        plan = plan_of(options, task, problems, style, sampling, variant)
        found[condition.name] = collect_from(
            respondent, plan, task.grade, place, own, options.split
        )
        losses[condition.name] = answer_losses(respondent, plan)
        told[condition.name] = {"folder": str(place), "shortened": short}
    return _finish(folder, found, told, losses, len(pool.chunks))


def _questions(options: EvalOptions, task: RaftTask) -> tuple[Pool, Asked, list[Condition]]:
    """Read questions and documents, find each oracle, and leave out what no condition can ask."""
    from tunesmith.data.raft.contexts import Pool
    from tunesmith.workflows.evaluate import DEFAULT_QUESTIONS

    problems = task.problems(
        options.split,
        seed=options.question_seed,
        limit=options.limit or DEFAULT_QUESTIONS,
        source=options.dataset,
    )
    conditions = conditions_of(options)
    pool = Pool(_chunks(options, task), options.question_seed)
    console.say(f"Passages: {len(pool.chunks):,}.")
    oracles = {problem.id: pool.oracle(task.items[problem.id]) for problem in problems}
    contexts = {condition.context for condition in conditions}
    kept = problems
    if contexts & set(NEED_ORACLE):
        kept = _kept(kept, lambda p: oracles[p.id] is not None, "no passage holds the answer of")
    if "rows" in contexts:
        kept = _kept(kept, lambda p: bool(task.items[p.id].shown), "no documents are shown by")
    return pool, Asked(kept, oracles), conditions


def _kept(problems: list[Problem], good: Callable[[Problem], bool], fault: str) -> list[Problem]:
    kept = [problem for problem in problems if good(problem)]
    left = [problem for problem in problems if not good(problem)]
    if not kept:
        raise DataError(
            f"There is no question to ask: {fault} all {len(problems)}.",
            expected="the documents that the questions are about",
            hint="--documents FILES, or --context retrieved none",
        )
    if left:
        named = ", ".join(f"{p.meta['source']}:{p.meta.get('line') or p.id}" for p in left[:NAMED])
        more = " and others" if len(left) > NAMED else ""
        console.warn(
            f"{fault} {len(left)} of {len(problems)} questions, left out of every condition: "
            f"{named}{more}"
        )
    return kept


def _chunks(options: EvalOptions, task: RaftTask) -> list[Chunk]:
    """Return the passages: of ``--documents``, of the data set, or the texts that rows show."""
    from tunesmith.data.raft.chunks import chunk_documents
    from tunesmith.data.raft.contexts import chunks_of_items
    from tunesmith.data.raft.documents import read_documents
    from tunesmith.data.raft.passages import OVERLAP
    from tunesmith.workflows.raft import tell_reading

    library = task.library
    if options.documents:
        if library is not None and library.skipped:
            tell_reading(library)  # questions that could not be read, before its documents go
        library = read_documents(options.documents, _columns(options)[1])
    if library is not None:
        tell_reading(library)
        size = options.chunk_size
        return chunk_documents(library.documents, size, size // OVERLAP)
    if options.chunk_size != EvalOptions.model_fields["chunk_size"].default:
        raise UsageError(
            "--chunk-size does nothing here: the rows' own texts are the passages.",
            hint="--documents FILES, or leave it out",
        )
    chunks = chunks_of_items([*task.items.values()])
    if not chunks and any(c.context != "none" for c in conditions_of(options)):
        raise UsageError(
            "The rows show no documents and name none.", hint="--documents FILES or folders"
        )
    return chunks


def _columns(options: EvalOptions) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of fields of questions, and those of documents."""
    from tunesmith.data.raft.documents import FIELDS, TITLES

    if not options.documents:
        return options.columns, {}
    mine = {key: own for key, own in options.columns.items() if key in (*FIELDS, *TITLES)}
    return {key: own for key, own in options.columns.items() if key not in mine}, mine


def _style(task: RaftTask, problems: Sequence[Problem]) -> str:
    """Return how the rows answer, or plain where they do not show it."""
    styles = {task.items[problem.id].style for problem in problems}
    return "quoted" if styles == {"quoted"} else task.prompts[0]


def _room(
    respondent: Respondent, options: EvalOptions, sampling: Sampling
) -> Callable[[Problem], bool]:
    """Return what says whether a prompt leaves room for the answer; of servers nobody knows."""
    from tunesmith.types import Segment

    if respondent.local is None:
        return lambda _: True
    loaded, renderer = respondent.local
    limit = loaded.max_positions - min(sampling.max_new_tokens, loaded.max_positions // 4)
    head = (Segment("system", options.system),) if options.system else ()
    return lambda problem: len(renderer.prompt_ids((*head, *problem.prompt))) <= limit


def _named(options: EvalOptions, style: str, conditions: Sequence[Condition]) -> tuple[str, Path]:
    held = "" if options.weights == "full" else f"-{options.weights}"
    of = f"-{conditions[0].name}" if len(conditions) == 1 else ""
    how = "" if options.choice_by == "generate" else f"-{options.choice_by}"
    name = options.name or f"raft-{style}{of}{how}-{Path(options.model).name}{held}"
    return name, Path(options.output_dir) / name


def _dress(
    task: RaftTask,
    asked: Asked,
    pool: Pool,
    condition: Condition,
    style: str,
    fits: Callable[[Problem], bool],
) -> tuple[list[Problem], int]:
    """Return the problems with the documents of a condition, and of how many some were cut."""
    from tunesmith.data.raft.contexts import fewer

    made: list[Problem] = []
    cut = few = 0
    for problem in asked.problems:
        item, oracle = task.items[problem.id], asked.oracles[problem.id]
        shown: Dressed | None = pool.dress(item, oracle, condition)
        whole = shown
        while shown is not None:
            one = task.dressed(problem, shown, condition.name, style)
            if fits(one):
                made.append(one)
                break
            shown = fewer(shown, keep_hits=condition.context != "retrieved")
        else:
            raise UsageError(
                f"Not even one document of {problem.id!r} fits into the model's context with its "
                "question.",
                hint="a smaller --chunk-size with --documents, or a smaller --max-new-tokens",
            )
        assert whole is not None
        cut += len(shown.documents) < len(whole.documents)
        few += len(whole.documents) < whole.wanted
    if cut:
        console.warn(
            f"{condition.name}: of {cut} of {len(made)} questions the last documents do not fit "
            "into the model's context and are left out"
        )
    if few:
        console.say(f"{condition.name}: {few} of {len(made)} questions have fewer documents.")
    return made, cut


def _finish(
    folder: Path,
    found: Mapping[str, EvalResult],
    told: Mapping[str, dict[str, Any]],
    losses: Mapping[str, Mapping[str, TextLoss]],
    passages: int,
) -> EvalResult:
    """Score every condition, compare them with the first, show the table, write the JSON."""

    from tunesmith.evaluate.scores.base import measure, replies_of
    from tunesmith.evaluate.scores.rag import RAG
    from tunesmith.evaluate.scores.stored import METRICS, write_items

    measured: dict[str, dict[str, Measured]] = {}
    for name, result in found.items():
        replies = replies_of(result.results, losses[name])
        measured[name] = {metric.name: measure(metric, replies) for metric in RAG}
        write_items(result.folder, measured[name].values(), replies)
        figures = {key: one.to_json() for key, one in measured[name].items()}
        write_json(
            result.folder / METRICS, {"task": "raft", "replies": len(replies), "metrics": figures}
        )
        told[name].update(scores=result.summary.to_json(), metrics=figures)
    comparisons = _comparisons([*found.values()])
    show_conditions(measured, comparisons)
    first = next(iter(found.values()))
    written = {
        "conditions": dict(told),
        "comparisons": {key: one.to_json() for key, one in comparisons.items()},
        "passages": passages,
        "hit": HIT,
    }
    write_json(folder / CONDITIONS, {"task": "raft", **written})
    return replace(first, folder=folder, metrics=written)


def _comparisons(results: Sequence[EvalResult]) -> dict[str, Comparison]:
    """Return how each condition differs from the first, by exact match and by F1."""
    from tunesmith.evaluate.compare import adjusted, compare
    from tunesmith.evaluate.scores.stored import scored_by

    if len(results) < 2:
        return {}
    found = {
        metric: compare(
            [scored_by(one.results, one.folder, metric) for one in results], with_first=True
        )
        for metric in COMPARED
    }
    families = adjusted([comparison.pairs for comparison in found.values()])
    return {
        metric: replace(comparison, pairs=pairs)
        for (metric, comparison), pairs in zip(found.items(), families, strict=True)
    }
