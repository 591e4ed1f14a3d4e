"""The text of the recipe that ``tunesmith init`` writes: settings, and beside each what it is."""

from __future__ import annotations

import json
import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.presets import LORA_RATE, OWN_LORA_RATE, TASK_DEFAULTS
from tunesmith.config.schema_start import InitOptions
from tunesmith.tasks.replies import REPLY_TASKS
from tunesmith.workflows.task_choice import Choice
from tunesmith.workflows.validate import validate_words

if TYPE_CHECKING:
    from tunesmith.data.validate import Lengths

SHARE = 0.1
"""Held out, unless that would be too few rows."""
ENOUGH = 50
"""Held-out rows from which on a tenth is enough."""
MOST = 0.3
"""Share that is held out at most."""
ASKED = 400
"""Questions that an evaluation asks at most, as ``tunesmith eval`` does."""
STEP_OF_LENGTH = 64
STAGES = ("rows", "before", "tuned", "after", "compare", "report")
"""What the stages are called."""
UNMEASURED = "no model was named, so lengths were counted in words"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was counted in the rows."""

    read_as: str
    usable: int
    """Examples that can be trained on."""
    unreadable: int
    """Rows that no layout, or not the task, can read."""
    refused: int
    """Rows that break the token contract of the model."""
    prompts: int
    """Different prompts, or texts."""
    lengths: Lengths
    limit: int | None
    """Tokens that a row may have, where a model was named."""
    odd: Sequence[tuple[str, int, str]]
    """What was odd, how often, and where first."""
    plain: bool


def recipe_text(options: InitOptions, choice: Choice, found: Measured) -> str:
    """Return the whole recipe."""
    parts = [
        *_head(options, choice, found),
        f"name: {_name(options.dataset)}",
        "# Weights, an adapter, a run or a hub name; for a single run another one:",
        f"#   tunesmith run {options.output} model=path/or/hub-name",
        f"model: {_text(options.model or 'tunesmith/tiny')}",
        "stages:",
        *_data(options, choice, found),
        *_eval("before", "model", choice, "The untrained model on the held-out rows."),
        *_train(choice, found),
        *_eval("after", "tuned", choice, "The same rows, asked of the tuned model."),
        "  # Paired tests and intervals on the same rows (docs/proof.md).",
        "  - compare: {of: [before, after]}",
        "  # One page with losses, scores, examples and lineage.",
        "  - report: {}",
        "",
    ]
    return "\n".join(parts)


def _head(options: InitOptions, choice: Choice, found: Measured) -> list[str]:
    lengths, unit = found.lengths, found.lengths.unit
    mean = lengths.total / lengths.rows if lengths.rows else 0
    texts = "texts" if found.plain else "prompts"
    told = [
        f"Written by tunesmith init from {options.dataset}; relative paths count from the folder "
        "that the recipe is run in.",
        f"Found: {found.usable:,} usable rows, {found.prompts:,} different {texts}, read as "
        f"{found.read_as}.",
        f"Length: {mean:,.0f} {unit} on average, {lengths.longest:,} at most "
        f"({UNMEASURED if found.limit is None else 'template included'}).",
        f"Task: {choice.task}, because {choice.why}.",
    ]
    if found.unreadable or found.refused:
        told.append(
            f"Refused: {found.unreadable:,} rows that cannot be read, {found.refused:,} that the "
            f"model cannot take; {validate_words(options.dataset, options)} names each of them."
        )
    told += [f"Odd: {count:,} x {what} (first {place})." for what, count, place in found.odd]
    return [line for one in told for line in _note(one, 0)]


def _data(options: InitOptions, choice: Choice, found: Measured) -> list[str]:
    share, rows = _share(found), found.prompts
    dataset = options.dataset
    if dataset.partition("/")[0] in STAGES and Path(dataset).exists():
        dataset = f"./{dataset}"  # else it would be taken for the stage of that name
    keys: dict[str, Any] = {"dataset": dataset, "task": choice.task}
    keys |= {"columns": dict(options.columns)} if options.columns else {}
    keys |= {"encoding": options.encoding} if options.encoding else {}
    keys |= {"split": options.split} if options.split != "train" else {}
    keys |= {"validation": share}
    said = f"{share:.0%} of {rows:,} different prompts, about {round(share * rows):,}"
    if found.plain:
        said = f"{share:.0%} of {rows:,} texts" if rows > 1 else f"the last {share:.0%} of the text"
    comment = _note(
        f"Held out before anything is trained; equal prompts stay on one side. Here: {said}. Few "
        "held-out rows show large differences only."
    )
    if found.unreadable:
        whole = found.unreadable + found.usable
        keys["allow_refused"] = math.ceil(1000 * found.unreadable / whole) / 1000
        comment += _note(f"allow_refused: {found.unreadable:,} rows cannot be read; 0 would stop.")
    return [*comment, "  - data:", "      name: rows", f"      split: {_flow(keys)}"]


def _eval(name: str, model: str, choice: Choice, said: str) -> list[str]:
    keys: dict[str, Any] = {"name": name, "model": model, "task": choice.task, "dataset": "rows"}
    score = "how alike its replies are to the rows'" if choice.task in REPLY_TASKS else "its grade"
    told = f"{said} The score is {score} (docs/metrics_guide.md)."
    return [*_note(told), f"  - eval: {_flow({**keys, 'limit': ASKED})}"]


def _train(choice: Choice, found: Measured) -> list[str]:
    task = TASK_DEFAULTS[choice.task]
    batch, sums = task["per_device_train_batch_size"], task["gradient_accumulation_steps"]
    rate = task["learning_rate"] * (1 if choice.task in OWN_LORA_RATE else LORA_RATE)
    trained = max(1, round((1 - _share(found)) * found.usable))
    steps = math.ceil(trained / (batch * sums)) * task["num_epochs"]
    length, why = _length(found, task["max_length"])
    values: list[tuple[str, Any, str]] = [
        ("name", "tuned", ""),
        ("from", "model", "the name on top"),
        ("task", choice.task, "sets all that is not said here"),
        ("data", ["rows"], "its held-out rows come with it"),
        ("lora", {"rank": task["lora_rank"]}, "an adapter; without it: full tuning"),
        ("learning_rate", float(f"{rate:g}"), "the task's; find-lr tries others"),
        ("num_epochs", task["num_epochs"], f"about {steps:,.0f} steps of {batch} x {sums} rows"),
        ("per_device_train_batch_size", batch, "halve it where memory is short,"),
        ("gradient_accumulation_steps", sums, "and double this: the same step"),
        ("max_length", length, why),
        ("eval_questions", 0, "the stages around it ask"),
        ("seed", 42, "order, adapter, dropout"),
    ]
    if found.refused:
        whole = found.refused + found.usable
        share = math.ceil(1000 * found.refused / whole) / 1000
        values.append(("allow_refused", share, "see «Refused» above"))
    told = "Every row is checked against the token contract before the first step."
    lines = [*_note(told), "  - train:"]
    for key, value, comment in values:
        line = f"      {key}: {_flow(value)}"
        lines.append(f"{line:<38}  # {comment}" if comment else line)
    return lines


def _length(found: Measured, usual: int) -> tuple[int, str]:
    """Return the tokens that a row may have: what the longest needs, within the model's limit."""
    if found.limit is None:
        return usual, "tokens; not measured without --model"
    if found.plain:
        return min(usual, found.limit), "tokens of a window of the text"
    needed = math.ceil(max(8, found.lengths.longest) / STEP_OF_LENGTH) * STEP_OF_LENGTH
    length = min(needed, found.limit)
    return length, f"tokens; the longest row has {found.lengths.longest:,}"


def _share(found: Measured) -> float:
    """Return the share to hold out: a tenth, or more of few rows."""
    if found.prompts <= 1:
        return SHARE
    return round(min(MOST, max(SHARE, ENOUGH / found.prompts)), 2)


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(str(k))}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(entry) for entry in value) + "]"
    if isinstance(value, float):
        return f"{value:f}".rstrip("0").rstrip(".") if value >= 1e-6 else repr(value)
    return _text(value) if isinstance(value, str) else str(value)


def _text(value: str) -> str:
    """Return text as YAML: bare where that is the same, else in quotes."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value)
    words = value.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return value if plain and not words else json.dumps(value, ensure_ascii=False)


def _name(dataset: str) -> str:
    """Return the name of a run after its file, of letters that any system takes."""
    stem = unicodedata.normalize("NFKD", Path(dataset).name.split(".")[0])
    plain = stem.encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-") or "recipe"


def _note(text: str, indent: int = 2) -> list[str]:
    """Return a comment in lines of 80 columns, whatever stood in the file that it tells of."""
    lead = " " * indent + "# "
    return textwrap.wrap(
        " ".join(text.split()), 80, initial_indent=lead, subsequent_indent=f"{lead}  ",
        break_on_hyphens=False,
    )  # fmt: skip
