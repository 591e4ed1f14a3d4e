"""``tunesmith sample``: many attempts at each question, and the verified paths among them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema import SampleOptions
from tunesmith.errors import Interrupted, UsageError
from tunesmith.grading.answers import extract_tagged, parse_number
from tunesmith.storage import write_json, write_text
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent, open_respondent, sampling_of
from tunesmith.workflows.evaluate import header_of, tell_stored
from tunesmith.workflows.questions import examples_hash, task_of
from tunesmith.workflows.sample_report import Pace, tell
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunesmith.data.select import Pool, Selection
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.evaluate.records import AttemptLog
    from tunesmith.evaluate.rounds import Rounds
    from tunesmith.evaluate.sampled import Sampled


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What sampling leaves: the selected rows, the log of all attempts, counts and figures."""

    output: Path
    log: Path
    attempts: int
    rows: int
    """Sampled paths that became rows."""
    solved: int
    """Questions with at least one path that could be kept."""
    questions: int
    discards: dict[str, int]
    """Reason → attempts; with ``rows`` they add up to ``attempts``."""
    gold: int
    """Gold rows among those written, with ``keep_gold``."""
    figures: Sampled
    """pass@k, majority@k, yield by difficulty, distinct paths, answer rate, hinted attempts."""
    generated: int
    """Attempts that this command made itself; the others were stored."""
    tokens_per_second: float
    """Of those attempts, grading included; 0 where none was made."""
    seconds: float
    """From the first prompt to the selected rows."""


def command(resolved: Resolved[SampleOptions]) -> int:
    """Handle ``tunesmith sample``."""
    _sample(resolved.options)
    return 0


def sample(options: SampleOptions | None = None, **settings: Any) -> SampleResult:
    """Sample, verify and select; settings are those of ``tunesmith sample``."""
    return _sample(options or resolve(SampleOptions, settings, origin="argument").options)


def _sample(options: SampleOptions) -> SampleResult:
    from tunesmith.data.select import Rule, select
    from tunesmith.evaluate.records import JUDGED_BY, VERIFIER, AttemptLog, load
    from tunesmith.evaluate.sampled import sampled

    console.set_level(options.log_level)
    output = Path(options.output)
    if output.suffix not in (".jsonl", ".json"):
        raise UsageError(
            f"--output {options.output!r} ends in neither .jsonl nor .json.",
            hint=f"--output {output.with_suffix('.jsonl')}",
        )
    _refuse_tokens(options)
    log_path = output.with_name(output.name + ".attempts.jsonl")
    plan = _plan(options)
    by_id = {problem.id: problem for problem in plan.problems}
    respondent = open_respondent(options)
    if options.overwrite:
        log_path.unlink(missing_ok=True)
    header = header_of(respondent, plan, output.stem, options.split)
    header = replace(header, details={**header.details, JUDGED_BY: VERIFIER})
    sync = respondent.sync_every
    with AttemptLog(log_path, header, sync_every=sync) as log, stop_on_signals() as stop:
        tell_stored(log, plan)
        pace = _ask(respondent, plan, log, stop)
    attempts = load(log_path).attempts
    rule = Rule(options.max_paths, options.prefer, options.max_path_tokens, options.keep_gold)
    chosen = select(by_id, attempts, plan.task, rule)
    write_rows(output, chosen)
    result = SampleResult(
        output,
        log_path,
        len(attempts),
        len(chosen.kept),
        chosen.solved,
        len(plan.problems),
        dict(chosen.discards),
        len(chosen.gold),
        sampled(by_id, attempts, plan.samples, plan.task, chosen),
        pace.made,
        pace.tokens_per_second,
        pace.seconds,
    )
    tell(result)
    return result


def _plan(options: SampleOptions) -> Plan:
    """Return what is asked; faults of the settings are found before the model is loaded."""
    from tunesmith.evaluate.attempts import Plan
    from tunesmith.evaluate.rounds import with_hint

    rounds = _rounds(options)
    task = task_of(options)
    task.check_style(options.prompt)
    if ready := task.ready():
        console.say(ready)
    problems = task.problems(
        options.split, seed=options.question_seed, limit=options.limit, source=options.dataset
    )
    if rounds.hint_last:
        for problem in problems:
            with_hint(task, problem, problem.prompt[-1])
    sampling = sampling_of(options, task.max_new_tokens)
    return Plan(
        task,
        problems,
        options.prompt,
        sampling,
        options.samples,
        options.seed,
        options.system,
        rounds,
        variant=examples_hash(options),
    )


def _rounds(options: SampleOptions) -> Rounds:
    from tunesmith.evaluate.rounds import ONE_ROUND, Rounds

    if options.rounds > 1:
        enough = options.enough or ONE_ROUND.enough
        return Rounds(options.rounds, enough, options.round_temperature, options.hint_last)
    given = {
        "--enough": options.enough is not None,
        "--round-temperature": options.round_temperature is not None,
        "--hint-last": options.hint_last,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(
            f"{name} says what the rounds after the first do, and there is only one.",
            expected="at least two rounds",
            hint="--rounds 2",
        )
    return ONE_ROUND


def _refuse_tokens(options: SampleOptions) -> None:
    """Refuse to select by tokens, which servers do not tell."""
    given = {
        "--max-path-tokens": options.max_path_tokens is not None,
        f"--prefer {options.prefer}": options.prefer != "farthest",
    }
    for name in (name for name, is_given in given.items() if options.address and is_given):
        raise UsageError(
            f"{name} counts tokens, which the servers of --address do not tell.",
            hint="leave it out; --max-new-tokens limits answers",
        )


def _ask(respondent: Respondent, plan: Plan, log: AttemptLog, stop: Callable[[], bool]) -> Pace:
    """Make what is missing of every round, one after the other, and store it."""
    from tunesmith.evaluate.attempts import stream_attempts

    by_id = {problem.id: problem for problem in plan.problems}
    pace = Pace(plan, log.done, log.verified)
    for number in range(plan.rounds.count):
        asked = plan.asked(number, log.verified)
        total = len(asked) * plan.samples
        stored = sum((p.id, index) in log.done for p, indices in asked for index in indices)
        if number:
            told = ", with the answer told" if plan.rounds.hinted(number) else ""
            console.say(f"Round {number + 1}: {len(asked)} questions, {total} attempts{told}.")
        several = f" {number + 1}/{plan.rounds.count}" if plan.rounds.count > 1 else ""
        with console.bar(f"sampling{several}", total, stored, two_lines=True) as bar:
            stream = stream_attempts(
                respondent.backend,
                plan,
                plan.task.verify,
                number=number,
                verified=frozenset(log.verified),
                done=frozenset(log.done),
                should_stop=stop,
            )
            for attempt in stream:
                log.append(by_id[attempt.problem_id], attempt)
                pace.add(attempt)
                bar.advance(note=pace.note())
        if stop():
            respondent.tell()
            raise Interrupted(
                f"Stopped by a signal; {len(log.done)} attempts are stored, {total} belong to "
                f"round {number + 1}.",
                hint="the same command goes on from there",
            )
    respondent.tell()
    if told := plan.task.told():
        console.say(told)
    return pace


def write_rows(output: Path, chosen: Selection, pooled: Pool | None = None) -> None:
    """Write selected rows; those of a pool name the round that their attempt belongs to."""
    if output.suffix == ".json":
        # Requirement 001's layout: an array of [question, answer, reasoning].
        rows = []
        for row in chosen.rows():
            text = row.example.segments[-1].text
            found = extract_tagged(text)
            value = parse_number(found) if found is not None else None
            answer = float(value) if value is not None else row.problem.reference
            rows.append([row.problem.prompt[-1].text, answer, text])
        write_json(output, rows)
        return
    lines = []
    for row in chosen.rows():
        turns = [{"role": s.role, "content": s.text} for s in row.example.segments]
        index = None if row.attempt is None else row.attempt.index
        record: dict[str, Any] = {"messages": turns, "problem": row.problem.id, "attempt": index}
        if pooled is not None and index is not None:
            record["round"], record["attempt"] = pooled.place(index)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))
