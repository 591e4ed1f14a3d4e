"""``tunesmith data raft``: documents and questions into rows for retrieval-augmented tuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import Resolved, resolve
from tunesmith.config.schema_raft import RaftOptions
from tunesmith.errors import DataError, UsageError
from tunesmith.storage import storage_errors, write_json
from tunesmith.workflows import console
from tunesmith.workflows.idle import Need, refuse_idle
from tunesmith.workflows.raft_makers import question_maker
from tunesmith.workflows.targets import check_output

if TYPE_CHECKING:
    from tunesmith.data.raft.chunks import Chunk
    from tunesmith.data.raft.documents import Library
    from tunesmith.data.raft.questions import Asked
    from tunesmith.data.raft.retrieval import Retriever
    from tunesmith.data.raft.rows import RaftRow, RaftSettings

NEEDS: tuple[Need, ...] = (
    *(
        (name, "--ask address", lambda o: o.ask == "address")
        for name in RaftOptions.model_fields
        if name.startswith("address")
    ),
    ("model", "--ask model or --chunk-tokens", lambda o: o.ask == "model" or o.chunk_tokens),
    *(
        (name, "--ask model", lambda o: o.ask == "model")
        for name in ("chat_template", "dtype", "device")
    ),
    ("embedding_model", "--retriever embeddings", lambda o: o.retriever == "embeddings"),
    ("max_questions", "--ask templates, model or address", lambda o: o.ask != "given"),
)
"""Settings that say nothing without another one."""
NAMED = 5
"""Skipped files and unmatched questions that a message names; all are counted."""


@dataclass(frozen=True, slots=True)
class RaftResult:
    """What was made: the rows of each side as they were written, and all counts."""

    output: Path
    rows: dict[str, list[dict[str, Any]]]
    counts: dict[str, Any]


class RAFTDataGenerator:
    """RAFT rows from one file or folder, in Python: ``RAFTDataGenerator("data.txt").generate()``.

    Further settings are those of ``tunesmith data raft``; rows that are there are replaced.
    """

    def __init__(
        self,
        source_file: str,
        output_file: str = "raft_training_data.jsonl",
        chunk_size: int = 300,
        num_distractors: int = 3,
        distractor_probability: float = 0.5,
        **settings: Any,
    ) -> None:
        given = {
            "documents": [str(source_file)],
            "output": str(output_file),
            "chunk_size": chunk_size,
            "num_distractors": num_distractors,
            "distractor_probability": distractor_probability,
            "overwrite": True,
            **settings,
        }
        self.options = resolve(RaftOptions, given, origin="argument").options

    def generate(self) -> list[dict[str, Any]]:
        """Write the files and return the training rows."""
        return make_raft(self.options).rows["train"]


def command(resolved: Resolved[RaftOptions]) -> int:
    """Handle ``tunesmith data raft``."""
    make_raft(resolved.options)
    return 0


def make_raft(options: RaftOptions) -> RaftResult:
    """Read, cut, ask, split, build, check, write; every discard is counted and told."""
    from tunesmith.data.raft.checks import check_rows, statistics
    from tunesmith.data.raft.documents import FIELDS, TITLES, read_documents
    from tunesmith.data.raft.rows import build_rows, split_sides
    from tunesmith.data.writers import write_splits

    console.set_level(options.log_level)
    output = Path(options.output)
    _check_places(options, output)
    refuse_idle(options, NEEDS)
    settings = _settings(options)
    _check_columns(options)
    library = read_documents(
        options.documents, _present(options.columns, *FIELDS, *TITLES), options.encoding
    )
    tell_reading(library)
    chunks = _chunks(options, library)
    asked = _ask(options, library, chunks)
    if not asked.questions:
        reasons = "; ".join(f"{n} x {why}" for why, n in asked.discards.most_common(3))
        raise DataError(
            f"No question could be made of {len(chunks)} chunks"
            + (f" ({reasons})." if reasons else "."),
            expected="statements such as «X was founded in 1990», or questions of your own",
            hint="--questions FILE with question and answer, or --ask model",
        )
    held = split_sides(chunks, asked.questions, options.validation_split, options.seed)
    if options.validation_split and not held:
        console.warn("all questions come from one document, so none is held out")
    sides: dict[str, list[RaftRow]] = {}
    short: Counter[str] = Counter()
    by_id = {chunk.id: chunk for chunk in chunks}
    for split, inside in (("train", False), ("validation", True)):
        part = [chunk for chunk in chunks if (chunk.group in held) is inside]
        mine = [q for q in asked.questions if (by_id[q.chunk].group in held) is inside]
        built = build_rows(mine, part, settings, _retriever(options))
        short.update({f"{split}: {why}": n for why, n in built.short.items()})
        if built.rows or split == "train":
            sides[split] = built.rows
    faults = check_rows(sides)
    if faults:
        told = "; ".join(f"{n} x {why}" for why, n in faults.most_common())
        raise DataError(f"The rows break the rules of a RAFT set, and none was written: {told}.")
    rows = {split: _fields(options, made) for split, made in sides.items()}
    write_splits(output, rows)
    counts = {
        "documents": len(library.documents),
        "chunks": len(chunks),
        "skipped": library.skipped,
        "notes": library.notes,
        "questions": len(asked.questions),
        "discarded questions": dict(asked.discards.most_common()),
        "not matched": asked.named,
        "fewer distractors": dict(short.most_common()),
        "splits": statistics(sides, settings),
    }
    if options.statistics:
        write_json(options.statistics, counts)
    _tell(output, counts, short)
    return RaftResult(output, rows, counts)


def _check_places(options: RaftOptions, output: Path) -> None:
    """Refuse to write over what is read, and the counts over the rows."""
    from tunesmith.data.writers import split_path

    inputs = [*options.documents, *([options.questions] if options.questions else [])]
    check_output(output, inputs, "validation", overwrite=options.overwrite)
    for folder in map(Path, options.documents):
        with storage_errors(folder, "read"):
            inside = folder.is_dir()
        if inside and output.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"{str(output)!r} lies in {str(folder)!r}, where the next run would take it for "
                "a document.",
                expected="an output outside the documents",
                hint=f"--output {folder.resolve().parent / output.name}",
            )
    if options.statistics is None:
        return
    counts = Path(options.statistics).resolve()
    taken = [output, split_path(output, "validation"), *map(Path, inputs)]
    if any(counts == path.resolve() for path in taken):
        raise UsageError(
            f"--statistics {options.statistics} would overwrite the rows or what they are made of.",
            hint=f"--statistics {output.stem}-counts.json",
        )


def _settings(options: RaftOptions) -> RaftSettings:
    from tunesmith.data.raft.rows import RaftSettings

    share = options.distractor_probability if options.num_distractors else 0.0
    # Compared with a margin: 1 - 0.7 is more than 0.3 in binary.
    if 1 - options.oracle_share > share + 1e-9:
        console.warn(
            f"a row without distractors keeps its oracle, so the oracle is shown in "
            f"{1 - share:.0%} of the rows instead of {options.oracle_share:.0%}"
        )
    return RaftSettings(
        options.num_distractors,
        options.distractor_probability,
        options.oracle_share,
        options.abstain_share,
        options.mined_share,
        options.answer_style,
        options.seed,
    )


def _chunks(options: RaftOptions, library: Library) -> list[Chunk]:
    from tunesmith.data.raft.chunks import chunk_documents, count_words

    limit, measure = options.chunk_size, count_words
    if options.chunk_tokens is not None:
        from tunesmith.models.load import load_tokenizer

        tokenizer = load_tokenizer(options.model).tokenizer

        def measure(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        limit = options.chunk_tokens
    overlap = limit // 10 if options.chunk_overlap is None else options.chunk_overlap
    if overlap >= limit:
        raise UsageError(
            f"An overlap of {overlap} leaves nothing new in chunks of {limit}.",
            hint=f"--chunk-overlap {limit // 10}",
        )
    return chunk_documents(library.documents, limit, overlap, measure)


def _ask(options: RaftOptions, library: Library, chunks: Sequence[Chunk]) -> Asked:
    from tunesmith.data.raft.questions import from_model, from_pairs, from_templates, read_pairs

    pairs = library.pairs
    if options.questions:
        if pairs:
            console.warn(f"--questions replaces the {len(pairs):,} questions of the documents")
        pairs = read_pairs(
            options.questions,
            _present(options.columns, "question", "answer", "context"),
            options.encoding,
        )
    who = options.ask
    if who == "auto":
        who = "given" if pairs else "templates"
    if who == "given":
        if not pairs:
            raise UsageError(
                "--ask given, but no question was given.",
                hint="--questions FILE, or --ask templates",
            )
        asked = from_pairs(pairs, chunks)
    elif who == "templates":
        asked = from_templates(chunks, options.max_questions)
    else:
        asked = from_model(chunks, question_maker(options, who), options.max_questions)
    if options.questions and who != "given":
        console.warn(f"--questions is not used with --ask {who}")
    console.say(f"Questions: {len(asked.questions):,} ({who}).")
    return asked


def _present(columns: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: own for name, own in columns.items() if name in names}


def _check_columns(options: RaftOptions) -> None:
    from tunesmith.data.raft.documents import FIELDS, TITLES

    known = (*FIELDS, *TITLES, "question", "answer")
    unknown = [name for name in options.columns if name not in known]
    if unknown:
        raise UsageError(
            f"--columns names {', '.join(map(repr, unknown))}, which nothing here reads.",
            expected=", ".join(known),
            hint="--columns text=YOUR_FIELD",
        )


def _retriever(options: RaftOptions) -> Callable[[Sequence[str]], Retriever]:
    from tunesmith.data.raft.retrieval import Bm25, Embeddings

    if options.retriever == "bm25":
        return Bm25
    return lambda texts: Embeddings(texts, options.embedding_model)


def _fields(options: RaftOptions, rows: Sequence[RaftRow]) -> list[dict[str, Any]]:
    from tunesmith.data.raft.rows import as_fields, as_gorilla

    if options.layout == "gorilla":
        return [as_gorilla(row, number) for number, row in enumerate(rows)]
    return [as_fields(row) for row in rows]


def tell_reading(library: Library) -> None:
    """Say how many documents were read, and what was left out."""
    console.say(f"Documents: {len(library.documents):,}.")
    for note in library.notes:
        console.warn(note)
    if library.skipped:
        more = len(library.skipped) - NAMED
        console.warn(
            f"{len(library.skipped)} files or rows skipped: {'; '.join(library.skipped[:NAMED])}"
            + (f"; and {more} more" if more > 0 else "")
        )


def _tell(output: Path, counts: Mapping[str, Any], short: Counter[str]) -> None:
    """Show the table of statistics."""
    splits: dict[str, dict[str, Any]] = counts["splits"]
    lines = [[name, *(_shown(splits[s].get(name)) for s in splits)] for name in _PLAIN]
    shares = next(iter(splits.values()))["shares"]
    lines += [
        [f"{name} (wanted {wanted:.0%})", *(_shown(splits[s]["shares"][name][1]) for s in splits)]
        for name, (wanted, _) in shares.items()
    ]
    single = [n for n in next(iter(splits.values())) if n not in (*_PLAIN, _TOLD, "shares")]
    lines += [[name, *(_shown(splits[s].get(name)) for s in splits)] for name in single]
    console.table("RAFT rows", ["", *splits], lines)
    for split in splits:
        console.say(f"Questions of {split}: {_shown(splits[split][_TOLD])}.")
    dropped = {**counts["discarded questions"], **{f"{w} (rows)": n for w, n in short.items()}}
    if dropped:
        console.table(
            "Not as wanted", ["reason", "count"], [[w, f"{n:,}"] for w, n in dropped.items()]
        )
    if counts["not matched"]:
        named = counts["not matched"]
        more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
        console.warn(f"{len(named)} answers are in no chunk: {'; '.join(named[:NAMED])}{more}")
    console.say(f"Rows: {output}")


_PLAIN = ("rows", "documents")
_TOLD = "kinds of questions"
"""Too long for a cell."""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return (
        f"{value:.1%}" if isinstance(value, float) else f"{value:,}" if value is not None else "–"
    )
