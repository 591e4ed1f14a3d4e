"""Tasks whose questions are rows of the user's files: splits, folders, identities, one place."""

from __future__ import annotations

import abc
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.errors import DataError, UsageError
from tunesmith.tasks.base import GradedTask
from tunesmith.types import Example, Origin, Problem, Segment

if TYPE_CHECKING:
    from tunesmith.data.readers import Row

DEV_SHARE = 10
"""Where a folder has no dev file, one question in this many of its train file is the dev split."""
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".tsv")


LONGEST_MARK = 80
"""Letters of a field that may say to which document or kind a row belongs."""


class FileTask(GradedTask):
    """A graded task that reads its problems from a file, a folder or a data set."""

    wants: ClassVar[str] = "a file of rows with question and answer"
    """What a source is, for the message of somebody who has named none."""
    example_source: ClassVar[str] = "rows.jsonl"

    @abc.abstractmethod
    def problem(self, row: Row) -> Problem:
        """Return the problem of a row, its id a prefix only; ``DataError`` names its place."""

    def answer_text(self, problem: Problem) -> str:
        """Return the answer that is trained."""
        return str(problem.meta["solution"])

    def problems(
        self, split: str, *, seed: int = 0, limit: int | None = None, source: str | None = None
    ) -> list[Problem]:
        """Return the problems of a file, or of one split of a folder, in the order of the file.

        A folder holds a file for each split (``train.jsonl``, ``test.jsonl``, …). Where there is
        none for ``dev``, a tenth of the train questions, chosen by their text, is the dev split
        and is left out of ``train``; the same holds for a saved ``datasets`` folder and a hub
        name. A file is taken as a whole, whatever the split. With ``limit`` that many problems
        are drawn by ``seed``.
        """
        if split not in self.splits:
            raise UsageError(
                f"The {self.name} task has no split {split!r}.", expected=", ".join(self.splits)
            )
        if source is None:
            raise UsageError(
                f"The {self.name} task has no questions of its own.",
                expected=f"{self.wants}, or a folder with train.jsonl and test.jsonl",
                hint=f"--dataset {self.example_source}",
            )
        found = self._of_source(source, split)
        if not found:
            raise DataError(
                f"{source!r} has no questions for the {split} split.", expected="at least one row"
            )
        if limit is None or limit >= len(found):
            return found
        chosen = random.Random(f"{self.name}/{split}/{seed}").sample(range(len(found)), limit)
        return [found[place] for place in sorted(chosen)]

    def answer_example(self, problem: Problem) -> Example:
        """Return the question with the gold answer."""
        answer = Segment("assistant", self.answer_text(problem), 1.0)
        source, line = problem.meta.get("source"), problem.meta.get("line")
        item = problem.meta.get("item") if source else problem.id
        origin = Origin(str(source or self.name), line, item)
        return Example((*problem.prompt, answer), origin)

    def read(self, source: str, split: str = "train") -> list[Problem]:
        """Return the problems of a source, each with an id of its own."""
        return list(self._numbered(source, split))

    def _numbered(self, source: str, split: str) -> Iterator[Problem]:
        from tunesmith.data.columns import renamed
        from tunesmith.data.readers import read_rows

        seen: Counter[str] = Counter()
        for row in read_rows(source, split=split):
            made = self.problem(renamed(row, self.settings.columns))
            # The same question twice stays two problems, so that no row is lost.
            digest = hashlib.sha256(made.id.encode()).hexdigest()[:16]
            seen[digest] += 1
            again = f"-{seen[digest]}" if seen[digest] > 1 else ""
            place: dict[str, Any] = {"source": row.origin.source, "line": row.origin.line}
            if row.origin.item is not None:  # many rows on one line of a JSON list
                place["item"] = row.origin.item
            said = {made.reference, *(segment.text for segment in made.prompt)}
            if own := {k: v for k, v in row.fields.items() if _is_mark(v) and v not in said}:
                place["fields"] = own
            meta = {**made.meta, **place}
            yield replace(made, id=f"{self.name}-{digest}{again}", meta=meta)

    def _of_source(self, source: str, split: str) -> list[Problem]:
        path = Path(source)
        if path.is_file():
            return self.read(source)
        if path.is_dir() and not _is_saved_dataset(path):
            return self._of_folder(path, split)
        if split == "test":
            return self.read(source, split)
        return _part(self.read(source, "train"), split)

    def _of_folder(self, folder: Path, split: str) -> list[Problem]:
        own = _split_file(folder, split)
        if split != "dev" and own is None:
            raise DataError(
                f"The folder {str(folder)!r} has no file for the {split} split.",
                expected=f"{split}.jsonl",
                hint="name one file instead of the folder",
            )
        if split == "test" or (own is not None and _split_file(folder, "dev") is not None):
            assert own is not None
            return self.read(str(own))
        train = _split_file(folder, "train")
        if train is None:
            raise DataError(
                f"The folder {str(folder)!r} has neither a dev nor a train file.",
                expected="dev.jsonl or train.jsonl",
            )
        return _part(self.read(str(train)), split)


def _is_mark(value: object) -> bool:
    """Whether a field may say to which document or kind a row belongs: it is short."""
    return isinstance(value, int) or (isinstance(value, str) and 0 < len(value) <= LONGEST_MARK)


def _is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _part(problems: list[Problem], split: str) -> list[Problem]:
    return [problem for problem in problems if _is_dev(problem) is (split == "dev")]


def _split_file(folder: Path, split: str) -> Path | None:
    names = ("dev", "validation") if split == "dev" else (split,)
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def _is_dev(problem: Problem) -> bool:
    digest = hashlib.sha256(problem.prompt[0].text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % DEV_SHARE == 0
