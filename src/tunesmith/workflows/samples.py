"""What the model answers on the way: a few held-out prompts at every evaluation, to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config.load import ARGUMENT, FLAG
from tunesmith.errors import UsageError
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.config.schema import FineTuningConfig
    from tunesmith.data.prepare import Prepared
    from tunesmith.data.render import Renderer
    from tunesmith.models.load import LoadedModel
    from tunesmith.rundir import RunDir
    from tunesmith.workflows.rows import Data

LONGEST = 64
"""Tokens of an answer: enough to see what it is like, and soon made."""
OPENING = 32
"""Tokens of a plain text that the model is to go on from."""


def check_samples(config: FineTuningConfig, sources: Mapping[str, str], held: Prepared) -> None:
    """Refuse samples that somebody asked for where no prompt is held out."""
    asked = sources.get("eval_samples") in (FLAG, ARGUMENT)
    if asked and config.eval_samples and not held.rows:
        raise UsageError(
            f"--eval-samples {config.eval_samples}: this run holds no rows out to be answered.",
            hint="--validation-split 0.1, or --eval-dataset",
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One held-out prompt."""

    origin: str
    prompt: str
    reference: str
    """The row's own answer."""
    ids: tuple[int, ...]


class Samples:
    """Greedy answers of the model as it is; nothing random is drawn and no weight is touched."""

    def __init__(
        self,
        config: FineTuningConfig,
        data: Data,
        held: Prepared,
        loaded: LoadedModel,
        renderer: Renderer,
        run: RunDir,
    ) -> None:
        self._wanted = config.eval_samples if held.rows else 0
        self._data, self._held, self._loaded, self._renderer = data, held, loaded, renderer
        self._run = run
        self._asked: list[Asked] | None = None
        self.records: list[dict[str, Any]] = []
        """The lines of ``samples.jsonl``."""

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"samples": self.records}

    def restore(self, extra: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has kept."""
        self.records = extra.get("samples", [])

    def take(self, step: int) -> None:
        """Let the model answer after this step.

        A failure is said, and no more samples are taken: they are not worth a run.
        """
        from tunesmith.generate.engine import Engine
        from tunesmith.generate.requests import Request, Sampling

        if not self._wanted:
            return
        if self._asked is None:
            self._asked = list(self._choose())
        requests = [Request(n, one.ids, Sampling(LONGEST)) for n, one in enumerate(self._asked)]
        engine = Engine(self._loaded.model, self._renderer.decode, self._renderer.stop_ids)
        try:
            done = {answer.key: answer for answer in engine.run(requests)}
        except Exception as failure:
            # Memory that is short, too: a single answer did not fit, and training may go on.
            console.warn(f"no samples are taken in this run: {type(failure).__name__}: {failure}")
            self._wanted = 0
            return
        self.records = [record for record in self.records if record["step"] != step]
        for number, one in enumerate(self._asked):
            answer = done[number]
            record = {"step": step, "origin": one.origin, "prompt": one.prompt}
            record |= {"reference": one.reference, "answer": answer.text, "stop": answer.stop.value}
            self.records.append(record)

    def write(self) -> None:
        """Write the answers so far down."""
        from tunesmith.storage import write_text

        if self.records:
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
            write_text(self._run.samples, "".join(lines))

    def _choose(self) -> Iterator[Asked]:
        """Yield the first held-out prompts that leave room for an answer."""
        chosen, seen = 0, set()
        for row, document in zip(self._held.rows, self._held.documents, strict=True):
            if chosen == self._wanted:
                return
            if document in seen:
                continue
            seen.add(document)
            example = self._data.held_out[document]
            first = next(
                (at for at, s in enumerate(example.segments) if s.role == "assistant" and s.weight),
                0,
            )
            if example.segments[0].role is None:
                opening = row.ids[: min(OPENING, len(row.ids) // 2)]
                rest = row.ids[len(opening) : len(opening) + LONGEST]
                prompt, ids = self._renderer.decode(opening), tuple(opening)
                reference = self._renderer.decode(rest)
            elif first:
                before = example.segments[:first]
                ids = self._renderer.prompt_ids(before)
                prompt = "\n".join(segment.text for segment in before)
                reference = example.segments[first].text
            else:
                continue
            if 0 < len(ids) < self._loaded.max_positions:
                chosen += 1
                yield Asked(str(example.origin), prompt, reference, ids)
