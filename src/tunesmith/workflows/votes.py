"""``tunesmith eval --vote``: what several samples say together, beside one sample and greedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config.schema import EvalOptions
from tunesmith.errors import TunesmithError, UsageError
from tunesmith.storage import write_json

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.records import ResultSet

COMPARISON = "comparison.json"
SAME = ("weights", "template", "system", "max_new_tokens")
"""Details of a header that a greedy set has to share to be of the same model and prompt."""


def check_vote(options: EvalOptions) -> None:
    """Refuse a vote that could say nothing."""
    if not options.vote:
        return
    if options.samples < 2:
        raise UsageError(
            "--vote needs several attempts at each question.",
            expected="--samples of at least 2",
            hint="--samples 8 --temperature 0.7",
        )
    if options.temperature == 0:
        raise UsageError(
            "--vote with --temperature 0: all attempts at a question would be alike.",
            hint="--temperature 0.7",
        )


def vote(options: EvalOptions, result: ResultSet, folder: Path) -> Comparison:
    """Store a set of its own for each kind of vote below ``folder``, and compare them.

    The baselines are greedy answers of the same model to the same prompts, where a set of them
    lies beside ``folder``, and the mean of the samples: what one sample is worth.
    """
    from tunesmith.evaluate.compare import compare
    from tunesmith.evaluate.metrics import summarise
    from tunesmith.evaluate.records import save
    from tunesmith.evaluate.votes import voted
    from tunesmith.workflows.compare import show

    sets = [*_greedy_beside(result, folder), result]
    for how in dict.fromkeys(options.vote):
        one = voted(result, how)
        shutil.rmtree(folder / how, ignore_errors=True)
        save(folder / how, one, summarise(one.attempts).to_json())
        sets.append(one)
    comparison = compare(sets)
    write_json(folder / COMPARISON, comparison.to_json())
    show(comparison)
    return comparison


def _greedy_beside(result: ResultSet, folder: Path) -> list[ResultSet]:
    """Return the first finished greedy set of the same model, prompt and questions, if any."""
    from tunesmith.evaluate.records import ATTEMPTS, load

    own = result.header
    for file in sorted(folder.parent.glob(f"*/{ATTEMPTS}")):
        if file.parent == folder:
            continue
        try:
            other = load(file)
        except TunesmithError:
            continue
        head = other.header
        alike = (head.task, head.split, head.prompt) == (own.task, own.split, own.prompt)
        alike = alike and all(head.details.get(key) == own.details.get(key) for key in SAME)
        alike = alike and other.problems.keys() == result.problems.keys()
        greedy = head.samples == 1 and head.details.get("temperature") == 0
        generated = "choice by" not in head.details
        if alike and greedy and generated and not other.missing and head.name != own.name:
            return [other]
    return []
