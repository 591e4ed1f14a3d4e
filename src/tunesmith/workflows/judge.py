"""``tunesmith judge``: a model judges stored replies; every judgement is stored as it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_judge import JudgeOptions
from tunesmith.errors import Interrupted
from tunesmith.storage import hash_json, write_json
from tunesmith.workflows import console
from tunesmith.workflows.asking import Respondent, open_respondent
from tunesmith.workflows.signals import stop_on_signals

if TYPE_CHECKING:
    from tunesmith.evaluate.agreement import Agreement
    from tunesmith.evaluate.judging import Item, Pairwise, Rated
    from tunesmith.evaluate.records import Header, ResultSet
    from tunesmith.generate.backends import Question
    from tunesmith.types import Attempt, Verdict

JUDGEMENTS = "judgements.jsonl"
FIGURES = "judge.json"


def command(resolved: Resolved[JudgeOptions]) -> int:
    """Handle ``tunesmith judge``; the figures go to stdout as JSON."""
    print(json.dumps(_judge(resolved.options)))
    return 0


def judge(results: Sequence[str], model: str, **settings: Any) -> dict[str, Any]:
    """Judge two stored sets against each other, or grade one; return what ``judge.json`` holds.

    ``model`` is the judge; further settings are those of ``tunesmith judge``.
    """
    given = {"results": [*results], "model": model, **settings}
    return _judge(resolve(JudgeOptions, given, origin="argument").options)


def _judge(options: JudgeOptions) -> dict[str, Any]:
    from tunesmith.evaluate.agreement import check_known, read_labels
    from tunesmith.evaluate.judge_prompts import PAIR, RATING
    from tunesmith.evaluate.judging import items_of, questions_of, verdicts_of
    from tunesmith.evaluate.records import load

    console.set_level(options.log_level)
    sets = [load(Path(path)) for path in options.results]
    items = items_of(sets)
    rating = len(sets) == 1
    labels = None if options.labels is None else read_labels(options.labels, rating=rating)
    if labels is not None:
        check_known(labels, {item.id for item in items})
    if not rating:
        _tell_missing(sets, items)
    questions = questions_of(items, options.max_new_tokens)
    respondent = open_respondent(options)
    names = [one.name for one in sets]
    name = options.name or "-".join(["judge", *names, Path(options.model).name])
    folder = Path(options.output_dir) / name
    if options.overwrite:
        # Nothing else: the folder may be that of the very replies.
        for made in (JUDGEMENTS, FIGURES):
            (folder / made).unlink(missing_ok=True)
    version = RATING if rating else PAIR
    header = _header(respondent, questions, sets, name, version, options.max_new_tokens)
    attempts = _collect(respondent, questions, header, folder, rating=rating)
    verdicts = verdicts_of(items, attempts, rating=rating)
    figures: dict[str, Any] = {
        "judge": respondent.described,
        "prompt": version,
        "sets": names,
        "judgements": len(questions),
    }
    figures |= _rated(items, verdicts, names[0]) if rating else _pairs(items, verdicts, names)
    if labels is not None:
        figures["agreement"] = _agreement(items, verdicts, labels, rating=rating).to_json()
    _tell_ungraded(verdicts)
    write_json(folder / FIGURES, figures)
    return figures


def _header(
    respondent: Respondent,
    questions: Sequence[Question],
    sets: Sequence[ResultSet],
    name: str,
    version: str,
    max_new_tokens: int,
) -> Header:
    """Return what decides the judgements; all that the judge is asked is hashed into it."""
    from tunesmith.evaluate.judging import TASK
    from tunesmith.evaluate.records import Header, versions

    identity, details = respondent.facts()
    asked = [
        [repr(question.key), *((one.role, one.text) for one in question.messages)]
        for question in questions
    ]
    return Header(
        name=name,
        task=TASK,
        split=sets[0].header.split,
        prompt=version,
        model=respondent.described,
        seed=0,
        planned=len(questions),
        fingerprint=hash_json([version, max_new_tokens, asked, *identity]),
        details={
            **details,
            "sets": [one.name for one in sets],
            "judged": [one.header.fingerprint for one in sets],
            "temperature": 0.0,
            "max_new_tokens": max_new_tokens,
            "versions": versions(),
        },
    )


def _collect(
    respondent: Respondent,
    questions: Sequence[Question],
    header: Header,
    folder: Path,
    *,
    rating: bool,
) -> Sequence[Attempt]:
    """Make the judgements that are not stored yet; return all of them."""
    from tunesmith.evaluate.judging import stream_judgements
    from tunesmith.evaluate.records import AttemptLog, load

    path = folder / JUDGEMENTS
    with AttemptLog(path, header, sync_every=respondent.sync_every) as log:
        if log.cut_bytes:
            console.warn(
                f"{str(path)!r} ended in a record that was not written to its end; its "
                f"{log.cut_bytes:,} bytes were cut, and the judgement is made again"
            )
        if log.done:
            console.say(f"{len(log.done)} of {len(questions)} judgements are stored already.")
        with stop_on_signals() as stop, console.bar("judging", len(questions), len(log.done)) as b:
            stream = stream_judgements(
                respondent.backend,
                questions,
                rating=rating,
                done=frozenset(log.done),
                should_stop=stop,
            )
            for problem, attempt in stream:
                log.append(problem, attempt)
                b.advance()
        respondent.tell()
        if stop():
            raise Interrupted(
                f"Stopped by a signal; {len(log.done)} of {len(questions)} judgements are stored.",
                hint="the same command goes on from there",
            )
    return load(path).attempts


def _tell_missing(sets: Sequence[ResultSet], items: Sequence[Item]) -> None:
    for one in sets:
        left = len(one.first_round().attempts) - len(items)
        if left:
            console.warn(f"{left} attempts of {one.name} are in no pair: the other set lacks them")


def _pairs(
    items: Sequence[Item], verdicts: Mapping[tuple[str, int], Verdict], names: Sequence[str]
) -> dict[str, Any]:
    """Show and return what a judge says of two sets."""
    from tunesmith.evaluate.judging import grouped, pairwise, plain

    first, second = names
    whole = pairwise(items, verdicts)
    console.say(whole.sentence(first, second))
    console.say(f"The two orders disagree in {whole.split.text()} of the pairs: counted as ties.")
    console.say(
        f"Position: whoever stands first wins both orders in {whole.first_place.text()}, whoever "
        f"stands second in {whole.second_place.text()}."
    )
    console.say(f"Length: the longer reply wins {whole.longer.text()} of {whole.longer.n} decided.")
    groups = {group: pairwise(some, verdicts) for group, some in grouped(items).items()}
    if groups:
        _table(
            f"{second} against {first}",
            ["wins (ties as half)", "95% interval", "pairs"],
            {group: _win_row(one) for group, one in groups.items()},
        )
    return {
        "pairwise": {**plain(whole), "sentence": whole.sentence(first, second)},
        "groups": {group: plain(one) for group, one in groups.items()},
    }


def _win_row(one: Pairwise) -> list[str]:
    ends, share = one.win_rate.interval, one.win_rate.share
    won = "–" if share is None else f"{100 * share:.1f}%"
    return [won, f"{100 * ends.low:.1f} to {100 * ends.high:.1f}", f"{one.items - one.ungraded}"]


def _rated(
    items: Sequence[Item], verdicts: Mapping[tuple[str, int], Verdict], name: str
) -> dict[str, Any]:
    """Show and return the ratings of one set."""
    from tunesmith.evaluate.judging import grouped, plain, rated

    whole = rated(items, verdicts)
    console.say(f"{name} is rated {whole.text()}, {whole.items - whole.ungraded} replies.")
    groups = {group: rated(some, verdicts) for group, some in grouped(items).items()}
    if groups:
        rows = {group: _rating_row(one) for group, one in groups.items()}
        _table(name, ["rating", "95% interval", "replies"], rows)
    return {"rating": plain(whole), "groups": {group: plain(one) for group, one in groups.items()}}


def _rating_row(one: Rated) -> list[str]:
    ends = f"{one.interval.low:.2f} to {one.interval.high:.2f}" if one.interval else "–"
    mean = "–" if one.mean is None else f"{one.mean:.2f}"
    return [mean, ends, f"{one.items - one.ungraded}"]


def _table(heading: str, columns: list[str], rows: Mapping[str, list[str]]) -> None:
    console.table(heading, ["", *columns], [[name, *row] for name, row in rows.items()])


def _agreement(
    items: Sequence[Item],
    verdicts: Mapping[tuple[str, int], Verdict],
    labels: Mapping[str, str],
    *,
    rating: bool,
) -> Agreement:
    """Show and return how far the judge agrees with the labels."""
    from tunesmith.evaluate.agreement import agreement, nearest
    from tunesmith.evaluate.judging import winners_of

    said: dict[str, str | None]
    if rating:
        answers = {item.id: verdicts[item.id, 0].answer for item in items}
        said = {name: None if one is None else nearest(float(one)) for name, one in answers.items()}
    else:
        said = winners_of(items, verdicts)
    found = agreement(labels, said, rating=rating)
    console.say(found.sentence())
    if found.unknown:
        console.warn(f"{found.unknown} labels belong to no item that was judged")
    console.table(
        "Your labels (rows) and the judge (columns)",
        ["", *found.confusion],
        [[label, *map(str, row.values())] for label, row in found.confusion.items()],
    )
    return found


def _tell_ungraded(verdicts: Mapping[tuple[str, int], Verdict]) -> None:
    from collections import Counter

    why = Counter(one.reason for one in verdicts.values() if one.score is None)
    if why:
        told = "; ".join(f"{reason}: {count}" for reason, count in why.most_common())
        console.warn(f"{why.total()} of {len(verdicts)} answers of the judge are ungraded ({told})")
