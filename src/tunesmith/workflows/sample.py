"""``tunesmith sample``: many attempts at each question, and the verified paths among them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import SampleOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.grading.answers import extract_tagged, parse_number
from tunesmith.storage import write_json, write_text
from tunesmith.workflows import console
from tunesmith.workflows.evaluate import header_of
from tunesmith.workflows.opening import open_model
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from tunesmith.data.select import Selection
    from tunesmith.types import Attempt


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What sampling leaves: the selected rows, the log of all attempts, the counts."""

    output: Path
    log: Path
    attempts: int
    rows: int
    solved: int
    questions: int
    discards: dict[str, int]


def command(resolved: Resolved[SampleOptions]) -> int:
    """Handle ``tunesmith sample``."""
    _sample(resolved.options)
    return 0


def sample(options: SampleOptions | None = None, **settings: Any) -> SampleResult:
    """Sample, verify and select; settings are those of ``tunesmith sample``."""
    return _sample(options or resolve(SampleOptions, settings, origin="argument").options)


def _sample(options: SampleOptions) -> SampleResult:
    from tunesmith.data.select import select
    from tunesmith.evaluate.attempts import Plan, stream_attempts
    from tunesmith.evaluate.records import AttemptLog, load
    from tunesmith.generate.requests import Sampling
    from tunesmith.tasks.registry import get_graded_task

    console.set_level(options.log_level)
    output = Path(options.output)
    if output.suffix not in (".jsonl", ".json"):
        raise UsageError(
            f"--output {options.output!r} ends in neither .jsonl nor .json.",
            hint=f"--output {output.with_suffix('.jsonl')}",
        )
    log_path = output.with_name(output.name + ".attempts.jsonl")
    if options.overwrite:
        log_path.unlink(missing_ok=True)
    task = get_graded_task(options.task)
    task.check_style(options.prompt)
    problems = task.problems(
        options.split, seed=options.question_seed, limit=options.limit, source=options.dataset
    )
    limit = options.max_new_tokens or task.max_new_tokens
    sampling = Sampling(limit, options.temperature, options.top_p, options.top_k, options.min_p)
    plan = Plan(
        task, problems, options.prompt, sampling, options.samples, options.seed, options.system
    )
    by_id = {problem.id: problem for problem in problems}
    loaded, renderer = open_model(options)
    header = header_of(loaded, renderer, plan, output.stem, options.split)
    with AttemptLog(log_path, header, sync_every=50) as log, stop_on_signals() as stop:
        if log.done:
            console.say(f"{len(log.done)} of {len(plan)} attempts are stored already.")
        with console.bar("sampling", len(plan)) as bar:
            bar.advance(len(log.done))
            verified = 0.0
            stream = stream_attempts(
                loaded,
                renderer,
                plan,
                task.verify,
                done=frozenset(log.done),
                max_slots=options.batch_size,
                should_stop=stop,
            )
            for made, attempt in enumerate(stream, 1):
                log.append(by_id[attempt.problem_id], attempt)
                verified += (attempt.verdict.score or 0.0) if attempt.verdict else 0.0
                bar.advance(note=f"{100 * verified / made:.0f}% verified")
        if stop():
            raise Interrupted(
                f"Stopped by a signal; {len(log.done)} of {len(plan)} attempts are stored.",
                hint="the same command goes on from there",
            )
    attempts = load(log_path).attempts
    chosen = select(by_id, attempts, task, options.max_paths)
    _write(output, chosen)
    result = SampleResult(
        output,
        log_path,
        len(attempts),
        len(chosen.kept),
        chosen.solved,
        len(problems),
        dict(chosen.discards),
    )
    _tell(result, attempts)
    return result


def _write(output: Path, chosen: Selection) -> None:
    if output.suffix == ".json":
        # Requirement 001's layout: an array of [question, answer, reasoning].
        rows = []
        for kept in chosen.kept:
            found = extract_tagged(kept.attempt.text)
            value = parse_number(found) if found is not None else None
            answer = float(value) if value is not None else kept.problem.reference
            rows.append([kept.problem.prompt[-1].text, answer, kept.attempt.text])
        write_json(output, rows)
        return
    lines = []
    for kept in chosen.kept:
        turns = [{"role": s.role, "content": s.text} for s in kept.example.segments]
        row = {"messages": turns, "problem": kept.problem.id, "attempt": kept.attempt.index}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))


def _tell(result: SampleResult, attempts: tuple[Attempt, ...]) -> None:
    from tunesmith.evaluate.statistics import pass_at_k

    tries: dict[str, list[bool]] = {}
    for attempt in attempts:
        right = attempt.verdict is not None and attempt.verdict.score == 1.0
        tries.setdefault(attempt.problem_id, []).append(right)
    ks = [k for k in (1, 4, 8, 16) if k <= max(map(len, tries.values()))]
    for k in ks:
        shares = [pass_at_k(len(t), sum(t), k) for t in tries.values() if len(t) >= k]
        console.say(f"  verified pass@{k}: {100 * sum(shares) / len(shares):.1f}%")
    console.table(
        "Attempts",
        ["what became of them", "attempts"],
        [
            [f"kept, for {result.solved} of {result.questions} questions", f"{result.rows:,}"],
            *([reason, f"{n:,}"] for reason, n in sorted(result.discards.items())),
            ["all", f"{result.attempts:,}"],
        ],
    )
    if not result.rows:
        console.warn("no path was verified, so the data set is empty; try more --samples")
    console.say(f"Rows: {result.output}    All attempts: {result.log}")
