"""Data sets of documents with questions, known by their layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.raft.documents import Document, Library, Pair
from tunesmith.data.readers import read_rows
from tunesmith.errors import DataError
from tunesmith.types import Origin

STORIES, QUESTIONS = "section-stories", "questions"
"""The two folders of FairytaleQA."""


def adapted(content: Any, path: Path, library: Library) -> bool:
    """Add the documents and questions of a known data set; False if the layout is none of them."""
    for fits, add in LAYOUTS:
        if fits(content):
            try:
                add(content, path, library)
            except (KeyError, TypeError, AttributeError, IndexError) as failure:
                raise DataError(
                    f"{path} begins like {add.__name__.strip('_')} data, but an entry is not of "
                    f"that layout ({type(failure).__name__}: {failure}).",
                    expected=(add.__doc__ or "").split("\n", 1)[0],
                ) from None
            return True
    return False


def _is_squad(content: Any) -> bool:
    data = content.get("data") if isinstance(content, dict) else None
    return bool(
        isinstance(data, list) and data and isinstance(data[0], dict) and "paragraphs" in data[0]
    )


def _squad(content: Any, path: Path, library: Library) -> None:
    """SQuAD: {data: [{title, paragraphs: [{context, qas: [{question, answers}]}]}]}.

    A paragraph is a document; the paragraphs of an article form a group. Questions marked
    impossible have no answer and are listed as skipped.
    """
    for number, article in enumerate(content["data"], 1):
        title = str(article.get("title") or f"article {number}")
        for place, paragraph in enumerate(article["paragraphs"], 1):
            name = f"{title}/{place}"
            origin = Origin(str(path), None, name)
            spaced = title.replace("_", " ")
            text = str(paragraph["context"])
            library.documents.append(Document(name, spaced, text, origin, group=title))
            for asked in paragraph["qas"]:
                source = Origin(str(path), None, str(asked.get("id") or name))
                if not asked.get("answers"):
                    library.skipped.append(f"{source}: a question without an answer")
                    continue
                answer = asked["answers"][0]
                start = answer.get("answer_start")
                said = str(answer["text"])
                # The offset counts only if it points at the answer.
                if not isinstance(start, int) or text[start : start + len(said)] != said:
                    start = None
                question = str(asked["question"]).strip()
                golds = _several(one["text"] for one in asked["answers"])
                library.pairs.append(Pair(question, said, source, name, start=start, golds=golds))


def _is_pubmed(content: Any) -> bool:
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "QUESTION" in first and "CONTEXTS" in first


def _pubmed(content: Any, path: Path, library: Library) -> None:
    """PubMedQA: {id: {QUESTION, CONTEXTS, LONG_ANSWER, final_decision}}.

    The answer is yes, no or maybe; the long answer is its reason.
    """
    for name, entry in content.items():
        origin = Origin(str(path), None, str(name))
        text = "\n\n".join(str(part) for part in entry["CONTEXTS"])
        title = str(entry["QUESTION"]).strip()
        library.documents.append(Document(str(name), title, text, origin))
        reason = str(entry.get("LONG_ANSWER") or "").strip()
        answer = str(entry.get("final_decision") or reason).strip()
        if not answer:
            library.skipped.append(f"{origin}: a question without an answer")
            continue
        reason = reason if answer != reason else ""
        library.pairs.append(Pair(title, answer, origin, str(name), reason=reason, span=False))


def _is_apibench(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and {"api_data", "api_call", "code"} <= first.keys()


_ASKED = re.compile(r"['\"]?Instruction['\"]?\s*:\s*(.*?),?\s*['\"]?Output['\"]?\s*:", re.DOTALL)
_EXPLAINED = re.compile(r"['\"]explanation['\"]\s*:\s*(['\"])(.*?)\1\s*[,}]", re.DOTALL)


def _apibench(content: Any, path: Path, library: Library) -> None:
    """APIBench: rows of {code, api_call, provider, api_data}, the question inside ``code``.

    The entry of an API is the document, its call the answer. Entries of one API that differ form
    a group.
    """
    names: dict[str, str] = {}
    for number, row in enumerate(content, 1):
        origin = Origin(str(path), number)
        data: Mapping[str, Any] = row["api_data"]
        text = "\n".join(_lines(data))
        call = str(data["api_call"])
        if text not in names:
            names[text] = f"{data['functionality']}:{number}"
            title = f"{data['functionality']} ({data['domain']})"
            library.documents.append(Document(names[text], title, text, origin, group=call))
        asked = _ASKED.search(str(row["code"]))
        question = asked[1].strip().strip("'\"") if asked else ""
        if not question:
            library.skipped.append(f"{origin}: no question in the field 'code'")
            continue
        explained = _EXPLAINED.search(str(row["code"]))
        reason = explained[2].strip() if explained else ""
        library.pairs.append(Pair(question, call, origin, names[text], reason=reason))


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields of an API's entry as lines that read like its documentation."""
    for key, value in data.items():
        head = str(key).replace("_", " ")
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            yield f"{head}:"
            yield from (f"    {part.strip()}" for part in value)
        elif isinstance(value, Mapping | list):
            yield f"{head}: {_flat(value)}"
        else:
            yield f"{head}: {value}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_flat(inner) for inner in value)
    return str(value)


LAYOUTS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Path, Library], None]], ...] = (
    (_is_squad, _squad),
    (_is_pubmed, _pubmed),
    (_is_apibench, _apibench),
)


def is_fairytales(folder: Path) -> bool:
    """Say whether a folder has FairytaleQA's two parts."""
    return (folder / STORIES).is_dir() and (folder / QUESTIONS).is_dir()


def fairytales(folder: Path, library: Library) -> None:
    """Add FairytaleQA: a section is a document, a story a group.

    A question that needs several sections goes to the first of them, and need not be answered in
    its words.
    """
    for stories in sorted((folder / STORIES).rglob("*-story.csv")):
        name = stories.name.removesuffix("-story.csv")
        title = name.replace("-", " ")
        sections: dict[str, str] = {}
        for row in read_rows(str(stories)):
            number, text = row.fields.get("section"), row.fields.get("text")
            if not number or not text or not text.strip():
                library.skipped.append(f"{row.origin}: no section with a text")
                continue
            sections[number] = f"{name}/{number}"
            document = Document(sections[number], title, text, row.origin, group=name)
            library.documents.append(document)
        asked = folder / QUESTIONS / stories.parent.relative_to(folder / STORIES)
        file = asked / f"{name}-questions.csv"
        if not file.is_file():
            library.skipped.append(f"{stories}: no questions beside it ({file.name})")
            continue
        for row in read_rows(str(file)):
            place = str(row.fields.get("cor_section") or "").split(",")[0].strip()
            question, answer = row.fields.get("question"), row.fields.get("answer1")
            if not question or not answer or place not in sections:
                library.skipped.append(f"{row.origin}: no question, answer or section")
                continue
            golds = _several(row.fields.get(f"answer{number}") for number in range(1, 7))
            library.pairs.append(
                Pair(
                    question.strip(),
                    answer.strip(),
                    row.origin,
                    sections[place],
                    span=False,
                    golds=golds,
                )
            )


def _several(answers: Iterable[Any]) -> tuple[str, ...]:
    """Return distinct answers in their order, without empty ones."""
    texts = (str(one).strip() for one in answers if one is not None)
    return tuple(dict.fromkeys(text for text in texts if text))
