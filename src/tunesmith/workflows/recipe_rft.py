"""The recipe verb ``rft``: several rounds of rejection-sampling fine-tuning.

Round r samples with the model of round r-1 (the first with the base), pools the verified paths of
all rounds, trains from the base each time (ReST-EM, arXiv 2312.06585; with hints STaR, 2203.14465)
and is scored on held-out questions. It ends where that score falls, and keeps the best round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.config.load import Resolved, canonical, resolve
from tunesmith.config.schema import EvalOptions, FineTuningConfig, Options, SampleOptions
from tunesmith.config.schema_rft import RftOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import hash_json, write_json
from tunesmith.workflows import console
from tunesmith.workflows.questions import task_of
from tunesmith.workflows.recipe_file import Recipe, Stage
from tunesmith.workflows.resuming import going_on

if TYPE_CHECKING:
    from tunesmith.data.select import Pool, Selection
    from tunesmith.evaluate.records import ResultSet

O = TypeVar("O", bound=Options)  # noqa: E741

PATHS, ROWS, RECORD = "paths.jsonl", "rows.jsonl", "round.json"
"""In a round's folder: its own rows (and log of attempts), the pooled ones, what is done of it."""
HELD_OUT = "held-out"
SELECTION = ("max_paths", "prefer", "max_path_tokens", "keep_gold")
OF_SAMPLING = (
    "task", "dataset", "model", "address", "output", "output_dir", "overwrite", *SELECTION,
)  # fmt: skip
DECIDED = {
    "sample": OF_SAMPLING,
    "later": OF_SAMPLING,
    "train": ("task", "dataset", "model", "from", "output_dir", "run_name", "resume", "overwrite"),
    "eval": ("task", "dataset", "model", "address", "name", "output_dir", "overwrite"),
}
"""Settings that a part of the stage cannot have: the stage itself decides or has them."""
_WHY = {
    **dict.fromkeys(SELECTION, "has it in select"),
    "address": "asks the models that it trains here, which no server has (a teacher on servers: a "
    "sample stage, and a train stage on its rows)",
}
"""Setting → what the stage does instead, where it does not just decide it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings of a stage."""

    options: RftOptions
    origin: str
    """Place in the recipe, for messages."""

    def sample(self, number: int, model: str, folder: Path) -> SampleOptions:
        """Return how round ``number`` (from 1) samples."""
        own = dict(self.options.sample)
        own |= self.options.later if number > 1 else {}
        given = {**self._common(), **self.options.select, **own}
        given |= {"model": model, "output": str(folder / PATHS)}
        options = self._resolved(SampleOptions, given, "sample").options
        # The same seed would draw much the same answers from a model that has changed little.
        return options.model_copy(update={"seed": options.seed + number - 1})

    def train(self, model: str, folder: Path, **more: Any) -> Resolved[FineTuningConfig]:
        """Return how a round trains on its pooled rows."""
        given: dict[str, Any] = {"eval_questions": 0, **self.options.train}
        given |= {"task": self.options.task, "model": model, "dataset": [str(folder / ROWS)]}
        given |= {"output_dir": str(folder), "run_name": "model"}
        given |= more
        return self._resolved(FineTuningConfig, given, "train")

    def eval(self, number: int, model: str, folder: Path) -> EvalOptions:
        """Return how a round's model is scored."""
        given = {"split": "dev", **self._common(), **self.options.eval}
        given |= {"model": model, "name": f"round-{number}", "output_dir": str(folder / HELD_OUT)}
        return self._resolved(EvalOptions, given, "eval").options

    def _common(self) -> dict[str, Any]:
        return {"task": self.options.task, "dataset": self.options.dataset}

    def _resolved(self, kind: type[O], given: Mapping[str, Any], part: str) -> Resolved[O]:
        return resolve(kind, given, origin=f"{self.origin} {part}")


def settings_of(recipe: Recipe, stage: Stage) -> Settings:
    """Return a stage's settings; ``UsageError`` says what is wrong before anything is run."""
    origin = f"{recipe.path} stage {stage.name}"
    given: dict[str, Any] = {}
    for key, value in stage.settings.items():
        # An override may name what is inside a part that the recipe has not: sample.limit=10.
        part, dot, name = key.partition(".")
        if dot and part in DECIDED | {"select": ()}:
            given[part] = {**dict(given.get(part) or {}), name: value}
        elif key != "from":
            given[key] = value
    options = resolve(RftOptions, given, origin=origin).options
    faults = [
        f"{origin} {part}: {name} is not set there; the stage "
        + _WHY.get(canonical(str(name)), "itself decides it")
        for part, decided in DECIDED.items()
        for name in getattr(options, part)
        if canonical(str(name)) in decided
    ]
    faults += [
        f"{origin} select: {name} says nothing of the selection"
        for name in options.select
        if canonical(str(name)) not in SELECTION
    ]
    if faults:
        raise UsageError("\n".join(faults))
    settings = Settings(options, origin)
    nowhere = Path("round")
    asked = [settings.sample(number, "model", nowhere) for number in (1, 2)]
    settings.train("model", nowhere)
    held = settings.eval(1, "model", nowhere)
    if not held.split.startswith("dev"):
        raise UsageError(
            f"{origin} eval: the split {held.split!r} would decide which round is kept, and say "
            "too much of it afterwards.",
            expected="dev: questions that nothing else is measured on",
            hint="an eval stage behind this one, with the split test",
        )
    if any(not one.split.startswith("train") for one in asked):
        raise UsageError(f"{origin} sample: questions are learnt from.", expected="split: train")
    if asked[0].question_seed != asked[1].question_seed or asked[0].limit != asked[1].limit:
        raise UsageError(
            f"{origin} later: all rounds ask the same questions.", hint="limit under sample"
        )
    return settings


@dataclass(slots=True)
class _Rounds:
    """The rounds of a stage so far."""

    settings: Settings
    base: str
    folder: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    """Number of the best round, from 1."""
    sentences: list[str] = field(default_factory=list)

    def path(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def model(self, number: int) -> Path:
        return self.path(number) / "model" / "final_model"

    def go(self) -> Path:
        """Carry out what is missing; return the best round's model."""
        check_questions(self.settings)
        for number in range(1, self.settings.options.rounds + 1):
            done = _read(self.path(number) / RECORD)
            if "accuracy" in done:
                console.say(f"Round {number} is done already: {done['told']}.")
            elif not self._round(number, done):
                break
            self.records.append(_read(self.path(number) / RECORD))
            if self._falls(number):
                break
        self._write()
        return self.model(self.best)

    def _round(self, number: int, done: dict[str, Any]) -> bool:
        """Make one round; False where it would train the model of the round before again."""
        from tunesmith.workflows.evaluate import evaluate, score_line
        from tunesmith.workflows.train import run_training

        folder, file = self.path(number), self.path(number) / RECORD
        folder.mkdir(parents=True, exist_ok=True)
        if "rows" not in done:
            console.title(f"Round {number}: sampling with {self._who(number - 1)}")
            done = self._sample(number)
            if number > 1 and done["content"] == self.records[-1]["content"]:
                self._say(
                    f"Round {number} adds no path to those of the rounds before, so it would train "
                    "the same model again: no further round is made."
                )
                return False
            write_json(file, done)
        if "trained" not in done:
            console.title(f"Round {number}: training the base on {done['rows']:,} paths")
            more = going_on(folder / "model")
            run_training(self.settings.train(self.base, folder, **more))
            done |= {"trained": True}
            write_json(file, done)
        held = evaluate(self.settings.eval(number, str(self.model(number)), self.folder)).summary
        ends = held.accuracy_interval
        done |= {"accuracy": held.accuracy, "interval": [ends.low, ends.high]}
        write_json(file, done | {"told": f"{score_line(held)}, {done['rows']:,} rows"})
        return True

    def _sample(self, number: int) -> dict[str, Any]:
        """Ask the model of the round before, pool all rounds and write the rows of this one."""
        from tunesmith.workflows.sample import sample, write_rows

        model = self.base if number == 1 else str(self.model(number - 1))
        folder = self.path(number)
        sample(self.settings.sample(number, model, folder))
        chosen, pooled = self._pooled(number)
        rows = chosen.rows()
        if not rows:
            raise DataError(
                f"No path was verified in {number} round{'s' if number > 1 else ''}, so there is "
                "nothing to train on.",
                expected="a model that solves some questions, or hints",
                hint="sample: {samples: 32}, or {rounds: 2, hint_last: true}, or select: "
                "{keep_gold: true}",
            )
        write_rows(folder / ROWS, chosen, pooled)
        own = sum(
            row.attempt is not None and pooled.place(row.attempt.index)[0] == number for row in rows
        )
        console.say(
            f"Pool of {number} round{'s' if number > 1 else ''}: {len(rows):,} rows for "
            f"{chosen.solved:,} solved questions; {own:,} paths are of this round."
        )
        texts = [[segment.text for segment in row.example.segments] for row in rows]
        return {"rows": len(rows), "of this round": own, "content": hash_json(texts)}

    def _pooled(self, number: int) -> tuple[Selection, Pool]:
        from tunesmith.data.select import Rule, pool, select
        from tunesmith.evaluate.records import load

        options = self.settings.sample(number, "model", self.path(number))
        task = task_of(options)
        problems = task.problems(
            options.split, seed=options.question_seed, limit=options.limit, source=options.dataset
        )
        logs = (self.path(n) / f"{PATHS}.attempts.jsonl" for n in range(1, number + 1))
        pooled = pool(load(log).attempts for log in logs)
        rule = Rule(options.max_paths, options.prefer, options.max_path_tokens, options.keep_gold)
        by_id = {problem.id: problem for problem in problems}
        return select(by_id, pooled.attempts, task, rule), pooled

    def _falls(self, number: int) -> bool:
        """Tell a round's score beside the best one's; whether it is lower."""
        from tunesmith.evaluate.compare import compare

        if not self.best:
            self.best = number
            return False
        score = self.records[-1]["accuracy"] - self.records[self.best - 1]["accuracy"]
        pair = compare([self._held_out(self.best), self._held_out(number)]).pairs[0]
        if score < 0:
            self._say(
                f"The held-out score of round {number} is below that of round {self.best}: no "
                f"further round is made, and round {self.best} is kept. {pair.sentence()}"
            )
            return True
        self._say(f"Held out: {pair.sentence()}")
        if score > 0:
            self.best = number
        return False

    def _held_out(self, number: int) -> ResultSet:
        from tunesmith.evaluate.records import load

        return load(self.folder / HELD_OUT / f"round-{number}")

    def _who(self, number: int) -> str:
        return f"the model of round {number}" if number else "the base"

    def _say(self, sentence: str) -> None:
        self.sentences.append(sentence)
        console.say(sentence)

    def _write(self) -> None:
        """Write what the rounds came to, for people and for the report."""
        told = {f"round {n}": str(record["told"]) for n, record in enumerate(self.records, 1)}
        counts = {"rounds, on held-out questions": {**told, "kept": f"round {self.best}"}}
        write_json(self.folder / "manifest.json", {"counts": counts})
        rounds = {"best": self.best, "rounds": self.records, "sentences": self.sentences}
        write_json(self.folder / "rounds.json", rounds)
        console.say(f"Kept: round {self.best}, {told[f'round {self.best}']}.")


def make_rft(settings: Settings, base: str, folder: Path) -> Path:
    """Carry out a stage in its folder, or go on with one that was stopped there."""
    return _Rounds(settings, base, folder).go()


def check_questions(settings: Settings) -> None:
    """Refuse held-out questions that are learnt from."""
    from tunesmith.workflows.evaluate import DEFAULT_QUESTIONS
    from tunesmith.workflows.rollouts import check_apart

    asked = settings.sample(1, "model", Path("round"))
    held = settings.eval(1, "model", Path("round"))
    train = task_of(asked).problems(
        asked.split, seed=asked.question_seed, limit=asked.limit, source=asked.dataset
    )
    limit = held.limit or DEFAULT_QUESTIONS
    dev = task_of(held).problems(
        held.split, seed=held.question_seed, limit=limit, source=held.dataset
    )
    check_apart(train, dev)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
