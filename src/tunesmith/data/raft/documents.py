"""Documents from files and folders: text, Markdown, HTML, PDF and rows of tables.

Data sets that bring questions of their own (SQuAD, PubMedQA, FairytaleQA, APIBench) are known by
their layout; see ``docqa``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.bytes_in import whole_bytes, whole_text
from tunesmith.data.columns import renamed
from tunesmith.data.readers import Row, missing, read_rows
from tunesmith.errors import DataError
from tunesmith.storage import storage_errors
from tunesmith.types import Origin

TEXTS = (".txt", ".md", ".html", ".htm", ".pdf")
TABLES = (".jsonl", ".json", ".csv", ".parquet")
FIELDS = ("text", "content", "body", "context", "passage")
"""Names of the field that holds a row's document, in the order in which they are looked for."""
TITLES = ("title", "name", "heading")


@dataclass(frozen=True, slots=True)
class Document:
    """One text to ask about."""

    id: str
    """Unique in its set and the same on every machine: the path inside what was read, the row."""
    title: str
    text: str
    origin: Origin
    group: str = ""
    """Documents of one group (the sections of a story) stay on one side of a split."""

    @property
    def side(self) -> str:
        """Return what decides the side of a split that the document is on."""
        return self.group or self.id


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with its answer, and the document it belongs to where that is known."""

    question: str
    answer: str
    origin: Origin
    document: str = ""
    context: str = ""
    """Text that the answer lies in, or nothing."""
    start: int | None = None
    """Where in the document the answer begins."""
    reason: str = ""
    """An explanation that comes with the answer."""
    span: bool = True
    """Whether the answer has to be words of the document; «yes» does not."""
    golds: tuple[str, ...] = ()
    """All right answers, where there are several; the answer is the first."""


@dataclass(slots=True)
class Library:
    """What was read: documents, questions that came with them, and all that was left out."""

    documents: list[Document] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Files and rows that gave no document, each with its reason."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing of those that did."""


BUILT_IN = "tunesmith/village"
"""The documents that come with the package, made by scripts/village_documents.py."""
VILLAGE = Path(__file__).parent.parent.parent / "assets" / "village"


def read_documents(
    sources: Iterable[str],
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> Library:
    """Read every source, a file or a folder (recursive, sorted), into one library.

    Files of an unknown kind inside a folder are listed in ``skipped``; a named file that cannot
    be read is a ``DataError``, and so is a set without a single document. Of documents with equal
    text the first is kept.
    """
    library = Library()
    for source in sources:
        path = VILLAGE if source == BUILT_IN else Path(source)
        with storage_errors(path, "read"):
            inside = path.is_dir()
        if inside:
            _folder(path, columns or {}, encoding, library)
        else:
            _file(path, path.name, columns or {}, encoding, library)
    _drop_copies(library)
    if not library.documents:
        named = "; ".join(library.skipped[:3]) or "there is no file in it"
        raise DataError(
            f"{', '.join(sources)}: no document was found ({named}).",
            expected=f"files that end in {', '.join((*TEXTS, *TABLES))}, each also .gz",
        )
    return library


def _folder(
    folder: Path, columns: Mapping[str, str], encoding: str | None, library: Library
) -> None:
    from tunesmith.data.raft.docqa import fairytales, is_fairytales

    if is_fairytales(folder):
        fairytales(folder, library)
        return
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            continue
        if any(part.startswith(".") for part in Path(name).parts):
            library.skipped.append(f"{name}: hidden")
        elif suffix_of(path) not in (*TEXTS, *TABLES):
            library.skipped.append(f"{name}: {suffix_of(path) or 'no suffix'} is not read")
        else:
            _file(path, name, columns, encoding, library)


def suffix_of(path: Path) -> str:
    """Return the suffix that says the format, .gz taken off."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return Path(name).suffix.lower()


def _file(
    path: Path, name: str, columns: Mapping[str, str], encoding: str | None, library: Library
) -> None:
    suffix = suffix_of(path)
    if not path.exists():
        raise missing(path)
    if suffix in TABLES:
        _table(path, name, columns, encoding, library)
        return
    if suffix not in TEXTS:
        raise DataError(
            f"{path} has no known format ({suffix or 'no suffix'}).",
            expected=", ".join((*TEXTS, *TABLES)) + ", each also .gz, or a folder of them",
        )
    if suffix == ".pdf":
        texts = [_pdf(path, name, library)]
    elif suffix in (".html", ".htm"):
        texts = [_html(whole_text(path, encoding))]
    else:
        texts = _marked(whole_text(path, encoding), suffix)
    for number, (title, text) in enumerate(texts, 1):
        whole = name if len(texts) == 1 else f"{name}:{number}"
        if not text.strip():
            library.skipped.append(f"{whole}: no text")
            continue
        library.documents.append(Document(whole, title or _stem(path), text, Origin(str(path))))


def _stem(path: Path) -> str:
    return re.sub(r"[_-]+", " ", path.name.split(".")[0]).strip()


def _marked(text: str, suffix: str) -> list[tuple[str, str]]:
    """Return the documents of a text file, separated by a line ``<|endoftext|>``."""
    texts = [part.strip("\n") for part in re.split(r"(?m)^\s*<\|endoftext\|>\s*$", text)]
    found = []
    for part in texts if len(texts) == 1 else [part for part in texts if part.strip()]:
        heading = re.match(r"\s*# +([^\n]+)", part) if suffix == ".md" else None
        found.append((heading[1].strip() if heading else "", part))
    return found


def _html(markup: str) -> tuple[str, str]:
    """Return title and text of a page; scripts, styles and navigation are no text."""
    import bs4

    page = bs4.BeautifulSoup(markup, "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for tag in page(["script", "style", "noscript", "template", "nav", "head", "title"]):
        tag.decompose()
    for line in page("br"):
        line.replace_with("\n")
    for block in page(_BLOCKS):
        block.insert_before("\n\n")
        block.insert_after("\n\n")
    lines = [" ".join(line.split()) for line in page.get_text().splitlines()]
    return title, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


_BLOCKS = [
    *("p", "div", "section", "article", "header", "footer", "main", "aside", "blockquote", "pre"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "li", "tr", "dt", "dd", "table", "figcaption"),
]


def _pdf(path: Path, name: str, library: Library) -> tuple[str, str]:
    """Return title and text of a PDF; pages without text are counted in the notes."""
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    raw = whole_bytes(path)
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(
                f"{path} is encrypted.",
                expected="a PDF that opens without a password",
                hint=f"qpdf --decrypt --password=… {path.name} open-{path.name}",
            )
        pages = [page.extract_text() or "" for page in reader.pages]
        title = str((reader.metadata or {}).get("/Title") or "").strip()
    except DataError:
        raise
    except Exception as failure:  # a broken file meets pypdf at any depth
        raise DataError(
            f"{path} is no readable PDF: {type(failure).__name__}: {failure}",
            expected="a whole PDF file with a text layer",
        ) from None
    empty = [str(number) for number, page in enumerate(pages, 1) if not page.strip()]
    if empty:
        shown = ", ".join(empty[:10]) + (" …" if len(empty) > 10 else "")
        library.notes.append(f"{name}: {len(empty)} of {len(pages)} pages have no text ({shown})")
    joined = "\n".join(page.strip() for page in pages if page.strip())
    # A word that was hyphenated at the end of a line is one word.
    return title, re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", joined)


def _table(
    path: Path, name: str, columns: Mapping[str, str], encoding: str | None, library: Library
) -> None:
    from tunesmith.data.raft.docqa import adapted

    if suffix_of(path) == ".json":
        try:
            content: Any = json.loads(whole_text(path, encoding))
        except ValueError:
            content = None  # JSON Lines under another name, or a fault that read_rows names
        if adapted(content, path, library):
            return
    rows = [renamed(row, columns) for row in read_rows(str(path), encoding=encoding)]
    if adapted([row.fields for row in rows], path, library):
        return
    wanted = field_of(rows[0])
    for number, row in enumerate(rows, 1):
        text = row.fields.get(wanted)
        if not isinstance(text, str) or not text.strip():
            kind = "empty" if text is None or text == "" else type(text).__name__
            library.skipped.append(f"{row.origin}: the field {wanted!r} is {kind}")
            continue
        title = next((str(row.fields[t]) for t in TITLES if row.fields.get(t)), _stem(path))
        library.documents.append(Document(f"{name}:{number}", title, text, row.origin))


def field_of(row: Row) -> str:
    """Return the field of a row that holds its document."""
    for wanted in FIELDS:
        if wanted in row.fields:
            return wanted
    raise DataError(
        f"{row.origin}: no field holds a document; the fields are "
        f"{', '.join(map(str, row.fields)) or 'none'}.",
        expected=f"one of {', '.join(FIELDS)}",
        hint="--columns text=YOUR_FIELD",
    )


def _drop_copies(library: Library) -> None:
    """Keep one of several documents with the same words; its questions stay with the first."""
    first: dict[str, str] = {}
    ids: set[str] = set()
    moved: dict[str, str] = {}
    kept = []
    for document in library.documents:
        if document.id in ids:
            raise DataError(
                f"Two documents have the name {document.id!r}.",
                hint="give one folder that holds both files",
            )
        ids.add(document.id)
        words = " ".join(document.text.split())
        if words in first:
            moved[document.id] = first[words]
            library.skipped.append(f"{document.id}: the same text as {first[words]}")
        else:
            first[words] = document.id
            kept.append(document)
    library.documents = kept
    library.pairs = [
        pair if pair.document not in moved else _moved(pair, moved[pair.document])
        for pair in library.pairs
    ]


def _moved(pair: Pair, document: str) -> Pair:
    return replace(pair, document=document, start=None)
