"""``tunesmith eval`` of a task without right answers: reply to held-out rows, score the replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import write_json
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.evaluate.records import ResultSet
    from tunesmith.evaluate.scores.base import Measured, Reply, TextLoss
    from tunesmith.evaluate.scores.table import Named
    from tunesmith.tasks.replies import ReplyTask
    from tunesmith.types import Encoded, Problem
    from tunesmith.workflows.asking import Respondent
    from tunesmith.workflows.evaluate import EvalResult

NAMED = 3
"""Rows that a message names; all of them are counted."""


def evaluate_replies(options: EvalOptions) -> EvalResult:
    """Reply to the rows, store the replies as attempts, and measure them."""
    import shutil

    from tunesmith.evaluate.attempts import Plan
    from tunesmith.tasks.base import QuestionSettings
    from tunesmith.tasks.registry import get_reply_task
    from tunesmith.workflows.asking import open_respondent, sampling_of
    from tunesmith.workflows.evaluate import DEFAULT_QUESTIONS, collect_from

    settings = QuestionSettings(
        options.columns, options.checker, options.examples, options.unsafe_exec
    )
    task = get_reply_task(options.task, settings)
    style = task.check_style(options.prompt or task.prompts[0])
    _refuse_idle(options)
    terms = _terms(options, task)
    problems = task.problems(
        options.split,
        seed=options.question_seed,
        limit=options.limit or DEFAULT_QUESTIONS,
        source=options.dataset,
    )
    if options.limit is None and len(problems) == DEFAULT_QUESTIONS:
        console.say(
            f"Rows: {len(problems)} at most are replied to, drawn by seed; --limit for more."
        )
    respondent = open_respondent(options)
    problems = _askable(problems, respondent, options)
    sampling = sampling_of(options, task.max_new_tokens)
    held = "" if options.weights == "full" else f"-{options.weights}"
    name = options.name or f"{task.name}-{style}-{Path(options.model).name}{held}"
    folder = Path(options.output_dir) / name
    if options.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    plan = Plan(task, problems, style, sampling, options.samples, options.seed, options.system)
    result = collect_from(respondent, plan, task.grade, folder, name, options.split)
    losses = _losses(task, problems, respondent)
    return replace(result, metrics=_score(task, result.results, losses, terms, folder))


def _refuse_idle(options: EvalOptions) -> None:
    """Refuse settings that say something only where answers are right or wrong."""
    known = type(options).model_fields
    idle = ("vote", "choice_by", "decomposer", "against", "equal_tokens", "compare_with")
    for name in (*idle, "stop_when_clear", "clear_width", "contamination"):
        if getattr(options, name) != known[name].get_default(call_default_factory=True):
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing for the task {options.task!r}, whose "
                "replies are neither right nor wrong.",
                hint="leave it out",
            )
    if options.task != "domain" and (options.terms or options.terms_from):
        given = "--terms" if options.terms else "--terms-from"
        raise UsageError(
            f"{given} does nothing for the task {options.task!r}.",
            hint="leave it out, or --task domain",
        )


def _terms(options: EvalOptions, task: ReplyTask) -> Sequence[str]:
    """Return the terms of the field, from a list or mined in training texts; none without both."""
    from tunesmith.data.words import words
    from tunesmith.evaluate.scores.domain import mine_terms

    if options.terms is not None:
        try:
            lines = Path(options.terms).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as failure:
            raise DataError(
                f"The terms {options.terms!r} cannot be read: {failure}.",
                expected="a text file in UTF-8 with a term on each line",
            ) from None
        terms = tuple(dict.fromkeys(line.strip() for line in lines if words(line)))
    elif options.terms_from is not None:
        texts = (
            " ".join(segment.text for segment in example.segments if segment.weight)
            for example in task.examples(options.terms_from, "train")
        )
        terms = mine_terms(texts)
    else:
        return ()
    source = options.terms or options.terms_from
    if not terms:
        raise DataError(
            f"There are no terms in {source!r}.",
            expected="a list of terms, or at least four training texts that share rarer words",
        )
    console.say(f"Terms: {len(terms):,} from {source}, such as {', '.join(terms[:5])}.")
    return terms


def _askable(
    problems: list[Problem], respondent: Respondent, options: EvalOptions
) -> list[Problem]:
    """Return the questions that the model has room for; the others are counted and named."""
    if respondent.renderer is None and any(p.prompt[0].role is None for p in problems):
        raise UsageError(
            "Plain text can only be gone on with by local weights; servers answer turns.",
            hint="leave --address out, or give rows with prompt and completion",
        )
    if respondent.local is None:
        return problems
    loaded, renderer = respondent.local
    asked = [
        problem for problem in problems
        if len(renderer.prompt_ids(_with_system(problem, options))) < loaded.max_positions
    ]  # fmt: skip
    if len(asked) < len(problems):
        kept = {problem.id for problem in asked}
        left = [problem for problem in problems if problem.id not in kept]
        named = ", ".join(_place(problem) for problem in left[:NAMED])
        console.warn(
            f"{len(left)} of {len(problems)} rows leave no room for a reply in the model's "
            f"{loaded.max_positions:,} positions and are left out: {named}"
            f"{' and others' if len(left) > NAMED else ''}"
        )
    if not asked:
        raise DataError("No row leaves room for a reply.", expected="shorter conversations")
    return asked


def _with_system(problem: Problem, options: EvalOptions) -> Any:
    from tunesmith.types import Segment

    if not options.system:
        return problem.prompt
    if problem.prompt[0].role is None:
        raise UsageError("--system does nothing where plain text is gone on with.")
    rest = tuple(segment for segment in problem.prompt if segment.role != "system")
    return (Segment("system", options.system), *rest)


def _place(problem: Problem) -> str:
    return f"{problem.meta['source']}:{problem.meta['line']}"


def _losses(
    task: ReplyTask, problems: Sequence[Problem], respondent: Respondent
) -> dict[str, TextLoss]:
    """Return the loss of each row's trained tokens, as training takes it on held-out rows."""
    if respondent.local is None:
        console.say("Losses are left out: they need local weights.")
        return {}
    from tunesmith.evaluate.scores.base import TextLoss
    from tunesmith.train.losses import HELD_OUT_CAPACITY, row_scores
    from tunesmith.workflows.finish import trained_bytes
    from tunesmith.workflows.opening import DEFAULT_LENGTH

    loaded, renderer = respondent.local
    limit = min(DEFAULT_LENGTH, loaded.max_positions)
    rows: list[Encoded] = []
    owners: list[str] = []
    refused: list[str] = []
    cut = 0
    for problem in problems:
        made = renderer.encode(task.answer_example(problem), limit)
        cut += made.cut_turns
        refused += [] if made.rows else [f"{_place(problem)} ({made.refused})"]
        rows += made.rows
        owners += [problem.id] * len(made.rows)
    if cut:
        console.warn(f"{cut} oldest turns do not fit and are left out of the losses")
    if refused:
        console.warn(
            f"{len(refused)} rows have no loss, for they do not fit: {', '.join(refused[:NAMED])}"
        )
    scores = row_scores(loaded.model, rows, loaded.device, HELD_OUT_CAPACITY, loaded.attention)
    found: dict[str, TextLoss] = {}
    for row, owner, one in zip(rows, owners, scores, strict=True):
        was = found.get(owner, TextLoss(0.0, 0.0, 0, 0, 0))
        found[owner] = TextLoss(
            was.loss + one.loss,
            was.weight + one.weight,
            was.tokens + one.tokens,
            was.right + one.right,
            was.bytes + trained_bytes(row, renderer),
        )
    return found


def _score(
    task: ReplyTask,
    results: ResultSet,
    losses: Mapping[str, TextLoss],
    terms: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """Measure the replies, show the table, and write ``metrics.json`` and ``items.json``."""
    from tunesmith.evaluate.scores.base import measure, replies_of
    from tunesmith.evaluate.scores.instruct import has_chrf
    from tunesmith.evaluate.scores.stored import METRICS, write_items
    from tunesmith.evaluate.scores.table import metrics_of
    from tunesmith.grading.syntax import has_parsers

    replies = replies_of(results, losses)
    named = metrics_of(task.name, terms, chrf=has_chrf(), parsers=has_parsers())
    found = {metric.name: measure(metric, replies) for _, metrics in named for metric in metrics}
    notes = _notes(task, named, found, terms, len(replies))
    _show(results, named, found, replies, notes)
    write_items(folder, found.values(), replies)
    written: dict[str, Any] = {
        "metrics": {name: one.to_json() for name, one in found.items()},
        "names": {name: [metric.name for metric in metrics] for name, metrics in named},
        "notes": notes,
    }
    write_json(folder / METRICS, {"task": task.name, "replies": len(replies), **written})
    return written


def _notes(
    task: ReplyTask,
    named: Named,
    found: Mapping[str, Measured],
    terms: Sequence[str],
    replies: int,
) -> list[str]:
    """Return what there is to say of the figures; first those that are not to be trusted."""
    notes = []
    for metric in (metric for _, metrics in named for metric in metrics):
        one = found[metric.name]
        if 0 < one.n < replies:
            notes.append(f"{metric.title} says something of {one.n} of {replies} replies.")
        if metric.paired and metric.name != "turn_coherence" and one.reference not in (None, 1.0):
            notes.append(
                f"{metric.title} gives the references themselves {one.reference:.3f}, not 1: do "
                "not trust it on these rows."
            )
    if task.name != "code" and "chrf" not in found:
        notes.append("chrF is left out: it needs sacrebleu (pip install 'tunesmith[eval]').")
    if task.name == "code" and "syntax_validity" not in found:
        notes.append(
            "Whether code parses is left out: it needs tree-sitter (pip install 'tunesmith[code]')."
        )
    if task.name == "domain" and not terms:
        notes.append("Term recall is left out: give --terms FILE or --terms-from TRAINING.")
    return notes


def _show(
    results: ResultSet,
    named: Named,
    found: Mapping[str, Measured],
    replies: Sequence[Reply],
    notes: Sequence[str],
) -> None:
    rows: list[list[str]] = []
    for name, metrics in named:
        rows.append([name, "", "", "", ""])
        for metric in metrics:
            one = found[metric.name]
            sign = {"higher": "↑", "lower": "↓", "neither": " "}[one.better]
            rows.append(
                [
                    f" {sign} {one.title}",
                    _figure(one.value),
                    f"{_figure(one.interval.low)} to {_figure(one.interval.high)}"
                    if one.interval
                    else "–",
                    _figure(one.shuffled) if metric.paired else "",
                    _figure(one.reference) if metric.of_text else "",
                ]
            )
    console.table(
        f"{results.name}: {len(replies)} replies",
        ["↑ or ↓ is better", "", "95% interval", "shuffled", "rows'"],
        rows,
    )
    console.say("shuffled: the same replies at other rows (chance); rows': the rows' own texts.")
    stops: dict[str, int] = {}
    for reply in replies:
        stops[reply.stop.value] = stops.get(reply.stop.value, 0) + 1
    ends = ", ".join(f"{n} by {why.replace('_', ' ')}" for why, n in sorted(stops.items()))
    console.say(f"Ends: {ends}.")
    for note in notes:
        console.say(note)


def _figure(value: float | None) -> str:
    """Return a number in at most six signs: 0.123, 12.3, 37.7k, 1e+30; a dash for none."""
    if value is None:
        return "–"
    for end, unit, letter in ((10, 1, ""), (1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < end:
            return f"{value / unit:.{3 if end == 10 else 1}f}{letter}"
    return f"{value:.0e}"
