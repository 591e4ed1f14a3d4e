"""Questions about documents as they are evaluated: rows of ``data raft``, pairs, data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.bytes_in import whole_text
from tunesmith.data.raft.answers import is_label, short_answer
from tunesmith.data.raft.documents import Library, Pair, read_documents, suffix_of
from tunesmith.data.raft.prompt import ANSWER, BEGIN_QUOTE, instruction
from tunesmith.data.raft.questions import occurrences
from tunesmith.data.readers import Row
from tunesmith.errors import DataError
from tunesmith.types import Origin

_DOCUMENT = re.compile(r"(?m)^Document \[(\d+)\]:[ \t]*")


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its right answers, and what is known of where they stand."""

    question: str
    golds: tuple[str, ...]
    origin: Origin
    output: str = ""
    """What the row teaches; nothing where it has questions and answers only."""
    oracle: str = ""
    """Text of the chunk that answers, where the row has it."""
    document: str = ""
    """Id of the document that answers, where it is known."""
    start: int | None = None
    """Where in the document the answer begins."""
    span: bool = True
    """Whether the answer is words of the document."""
    shown: tuple[str, ...] | None = None
    """The documents that the row itself shows, in its order."""
    asked: str = ""
    """The row's own prompt."""
    strict: bool = True
    """Whether its prompt asks to say so where the documents do not tell."""
    style: str = ""
    """plain or quoted, where the row shows which."""


def item_of(row: Row) -> Item:
    """Return the item of a row; ``DataError`` names its place.

    Known are the rows of ``data raft`` in both layouts, requirement 002's own (instruction with
    numbered documents, output, oracle_context) and question with answer or answers, perhaps with
    document (or document_id), oracle_context or context.
    """
    fields = row.fields
    asked = str(fields.get("instruction") or "")
    parsed = _parsed(asked)
    question = fields.get("question") or (parsed[0] if parsed else "")
    if not isinstance(question, str) or not question.strip():
        raise DataError(
            f"{row.origin}: no question (fields: {', '.join(fields)}).",
            expected="rows of tunesmith data raft, or question, answer and document or context",
            hint="--columns question=YOUR_QUESTION,answer=YOUR_ANSWER",
        )
    output = str(fields.get("cot_answer") or fields.get("output") or "")
    golds = _golds(fields, output)
    if not golds:
        raise DataError(
            f"{row.origin}: no answer (fields: {', '.join(fields)}).",
            expected="answer, or answers as a list",
            hint="--columns answer=YOUR_ANSWER",
        )
    context = fields.get("context")
    shown = _gorilla(context) if isinstance(context, Mapping) else parsed[1] if parsed else None
    oracle = fields.get("oracle_context") or (context if isinstance(context, str) else "")
    document = _first_of(fields, "document", "document_id")
    document = "" if document is None else document
    if not isinstance(oracle, str) or not isinstance(document, str | int):
        raise DataError(
            f"{row.origin}: oracle_context and document are no texts.",
            expected="the text that answers, and the id of its document",
        )
    known = fields.get("answer_in_document")
    labels = all(map(is_label, golds))
    span = known if isinstance(known, bool) else not labels and _in(golds, oracle or None)
    marked = BEGIN_QUOTE in output or ANSWER.strip() in output
    return Item(
        question=question.strip(),
        golds=golds,
        origin=row.origin,
        output=output,
        oracle=oracle,
        document=str(document),
        span=span,
        shown=shown,
        asked=asked if parsed else "",
        strict=_strict(asked, question, shown),
        style="" if not output else "quoted" if marked else "plain",
    )


def item_of_pair(pair: Pair) -> Item:
    """Return the item of a data set's question."""
    golds = pair.golds or (pair.answer,)
    return Item(
        question=pair.question,
        golds=golds,
        origin=pair.origin,
        document=pair.document,
        oracle=pair.context,
        start=pair.start,
        span=pair.span and not all(map(is_label, golds)),
    )


def data_set(source: str) -> Library | None:
    """Return a data set that brings documents and questions (SQuAD, PubMedQA, …); else None."""
    from tunesmith.data.raft.docqa import LAYOUTS, is_fairytales

    path = Path(source)
    if path.is_dir():
        return read_documents([source]) if is_fairytales(path) else None
    if not path.is_file() or suffix_of(path) != ".json":
        return None
    text = whole_text(path, None)
    try:
        content: Any = json.loads(text)
    except ValueError:
        try:  # JSON Lines under another name, as APIBench has it
            content = [json.loads(line) for line in text.split("\n") if line.strip()]
        except ValueError:
            return None
    return read_documents([source]) if any(fits(content) for fits, _ in LAYOUTS) else None


def _first_of(fields: Mapping[str, Any], *names: str) -> Any:
    """Return the first value that says something; 0 and false do."""
    values = (fields.get(name) for name in names)
    return next((value for value in values if value not in (None, "", [], {})), None)


def _golds(fields: Mapping[str, Any], output: str) -> tuple[str, ...]:
    found = _first_of(fields, "answers", "answer", "final_decision")
    if isinstance(found, Mapping):
        found = found.get("text")
    several = found if isinstance(found, list) else [found]
    texts = [str(one).strip() for one in several if isinstance(one, str | int | float)]
    golds = tuple(dict.fromkeys(text for text in texts if text))
    said = short_answer(output) if output and not golds else ""
    return golds or ((said,) if said else ())


def _in(golds: Sequence[str], text: str | None) -> bool:
    return text is None or any(occurrences(text, gold) for gold in golds)


def _parsed(asked: str) -> tuple[str, tuple[str, ...]] | None:
    """Return question and documents of a prompt that numbers them; None for any other."""
    head, mark, question = asked.rpartition("Question:")
    question = question.strip().removesuffix("Answer:").strip()
    if not mark or not question:
        return None
    begins: list[tuple[int, int]] = []
    for match in _DOCUMENT.finditer(head):
        # A document may hold such a line itself; only the next number begins one.
        if int(match[1]) == len(begins) + 1:
            begins.append(match.span())
    ends = [start for start, _ in begins[1:]] + [len(head)]
    texts = tuple(head[b:end].strip() for (_, b), end in zip(begins, ends, strict=True))
    return (question, texts) if texts else None


def _gorilla(context: Mapping[str, Any]) -> tuple[str, ...] | None:
    sentences = context.get("sentences")
    inner = sentences[0] if isinstance(sentences, list) and sentences else None
    return tuple(map(str, inner)) if isinstance(inner, list) else None


def _strict(asked: str, question: str, shown: Sequence[str] | None) -> bool:
    """Say whether a prompt asks to abstain; one of another make is taken to."""
    loose = {instruction(question, shown or (), s, strict=False) for s in ("plain", "quoted")}
    return asked not in loose
