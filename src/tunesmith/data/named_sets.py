"""Data sets that have a short name: where they lie, and how their rows become conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.hub import load_split
from tunesmith.data.readers import Row, read_rows
from tunesmith.errors import DataError
from tunesmith.types import Origin

Fields = Mapping[str, Any]
ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """One data set that people know by name."""

    name: str
    path: str
    """Name on the hub, or the file of a built-in set's training rows."""
    config: str | None = None
    """Which of the hub's configurations."""
    convert: Callable[[Fields], dict[str, Any]] | None = None
    """From the columns of the set to a known layout; None where they are one already."""
    builtin: bool = False

    def file(self, split: str = "train") -> Path:
        """Return the file of a split of a built-in set; ``DataError`` where it has none."""
        path = ASSETS / self.path
        if split != "train":
            path = path.with_stem(f"{path.stem}-{split}")
        if not path.is_file():
            raise DataError(f"The built-in set {self.name} has no {split} split.")
        return path

    def files(self) -> list[Path]:
        """Return the files of all splits of a built-in set."""
        first = self.file()
        return [first, *sorted(first.parent.glob(f"{first.stem}-*{first.suffix}"))]


def _chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def multiple_choice(row: Fields) -> dict[str, Any]:
    """Convert ARC and CommonsenseQA: question, choices (label, text), answerKey."""
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    key = row["answerKey"]
    if key not in labels:
        raise ValueError(f"the answer key {key!r} is none of {', '.join(labels)}")
    options = "\n".join(f"{a}) {text}" for a, text in zip(labels, texts, strict=True))
    answer = f"The answer is {key}) {texts[labels.index(key)]}"
    return _chat(f"{row['question']}\n\n{options}", answer, gold=key)


def reading(row: Fields) -> dict[str, Any]:
    """Convert SQuAD: title, context, question, answers (text)."""
    answers = row["answers"]["text"]
    if not answers:
        raise ValueError("the question has no answer")
    asked = f"{row['context']}\n\nQuestion: {row['question']}"
    return _chat(asked, answers[0], gold=answers[0])


def metamath(row: Fields) -> dict[str, Any]:
    """Convert MetaMathQA: query, response, type; the gold stands behind «The answer is:»."""
    gold = row["response"].rpartition("The answer is:")[2].strip()
    return _chat(row["query"], row["response"], gold=gold, category=row.get("type", ""))


def dolly(row: Fields) -> dict[str, Any]:
    """Convert Dolly: instruction, context, response, category."""
    context = row.get("context") or ""
    asked = f"{row['instruction']}\n\n{context}" if context.strip() else row["instruction"]
    return _chat(asked, row["response"], category=row.get("category", ""))


NAMED_SETS = (
    NamedSet("slimorca", "Open-Orca/SlimOrca-Dedup"),
    NamedSet("arc-challenge", "allenai/ai2_arc", "ARC-Challenge", multiple_choice),
    NamedSet("arc-easy", "allenai/ai2_arc", "ARC-Easy", multiple_choice),
    NamedSet("commonsenseqa", "tau/commonsense_qa", None, multiple_choice),
    NamedSet("gsm8k", "openai/gsm8k", "main"),
    NamedSet("gsm8k-socratic", "openai/gsm8k", "socratic"),
    NamedSet("metamathqa", "meta-math/MetaMathQA", None, metamath),
    NamedSet("squad", "rajpurkar/squad", None, reading),
    NamedSet("alpaca-instruct", "tatsu-lab/alpaca"),
    NamedSet("code-alpaca", "sahil2801/CodeAlpaca-20k"),
    NamedSet("dolly", "databricks/databricks-dolly-15k", None, dolly),
    NamedSet("openhermes", "teknium/OpenHermes-2.5"),
    NamedSet("tinystories", "roneneldan/TinyStories"),
    NamedSet("tunesmith/conversions", "teacher/conversions.jsonl", builtin=True),
    NamedSet("tunesmith/passages", "teacher/passages.jsonl", builtin=True),
    NamedSet("tunesmith/choices", "teacher/choices.jsonl", builtin=True),
    NamedSet("tunesmith/words", "teacher/words.jsonl", builtin=True),
    NamedSet("tunesmith/dialogues", "tasks/dialogues.jsonl", builtin=True),
    NamedSet("tunesmith/errands", "tasks/errands.jsonl", builtin=True),
    NamedSet("tunesmith/functions", "tasks/functions.jsonl", builtin=True),
    NamedSet("tunesmith/dairy", "tasks/dairy.jsonl", builtin=True),
    NamedSet("tunesmith/questions", "tasks/questions.jsonl", builtin=True),
)
"""Short names that ``--dataset`` and mixes take; a local file or folder of that name goes first."""

_BY_NAME = {
    # The full name on the hub finds its first entry too, so that its rows are converted as well.
    **{entry.path: entry for entry in reversed(NAMED_SETS) if not entry.builtin},
    **{entry.name: entry for entry in NAMED_SETS},
}


def find(name: str) -> NamedSet | None:
    """Return the set of a short name or of a full name on the hub, if it is in the table."""
    return _BY_NAME.get(name)


def open_named(entry: NamedSet, split: str) -> Iterator[Row]:
    """Yield the rows of a named set, converted; each says its place in the set itself."""
    if entry.builtin:
        name = entry.name if split == "train" else f"{entry.name}[{split}]"
        for row in read_rows(str(entry.file(split))):
            yield Row(row.fields, Origin(name, row.origin.line))
        return
    place = f"{entry.path}[{split}]"
    for number, fields in enumerate(
        load_split(entry.path, entry.config, split, called=entry.name), 1
    ):
        origin = Origin(place, number)
        yield Row(converted(entry, fields, origin), origin)


def converted(entry: NamedSet, fields: Fields, origin: Origin) -> dict[str, Any]:
    """Return a row in a known layout; ``DataError`` where it has not the columns of its set."""
    if entry.convert is None:
        return dict(fields)
    try:
        return entry.convert(fields)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as failure:
        said = f"no column {failure}" if isinstance(failure, KeyError) else str(failure)
        raise DataError(
            f"{origin}: no row as {entry.path} has them: {said}.",
            expected=f"the columns of {entry.path}; found: {', '.join(fields) or 'none'}",
        ) from None
