"""Forgetting: a general suite asked before and after a training, on the same rows."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import ContractError, TunesmithError, UsageError
from tunesmith.rundir import RunDir, write_json
from tunesmith.workflows import console

if TYPE_CHECKING:
    from tunesmith.data.render import Renderer
    from tunesmith.evaluate.general import Suite
    from tunesmith.models.load import LoadedModel
    from tunesmith.types import Encoded

FOLDER = "general"
"""Folder in a run's ``eval``; it holds a set for the base and one for the tuned model."""
TEXTS = "texts.json"
TEXT = "text-"
"""What the names of texts begin with."""
FOUND = "forgetting.json"
CAPACITY = 1024
"""Tokens of one forward: the suite's rows are short, and a model's own attention under one mask
takes time and memory by the square of them."""
NOT_FINITE = "The loss of general texts is not finite."


def check_forgetting(config: FineTuningConfig) -> None:
    """Refuse a suite that cannot be read, or that nobody would look at, before anything is run."""
    from tunesmith.evaluate.general import read_suite

    if config.forgetting_file is None:
        return
    if not config.forgetting:
        raise UsageError(
            "--forgetting-file does nothing with --no-forgetting.",
            hint="leave one of them out",
        )
    read_suite(config.forgetting_file)


def ask_general(
    loaded: LoadedModel,
    renderer: Renderer,
    run: RunDir,
    config: FineTuningConfig,
    name: str,
    *,
    texts: bool = True,
) -> None:
    """Take the suite's losses with the model as it is now and store them under this name.

    ``texts`` is False where base and tuned model have different tokens: then only questions are
    asked. A failure is said and costs no run.
    """
    from tunesmith.evaluate.general import answered, read_suite
    from tunesmith.evaluate.records import save

    folder = run.eval / FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    (run.eval / FOLDER / FOUND).unlink(missing_ok=True)  # of an earlier suite, or of none now
    if not config.forgetting:
        return
    suite = read_suite(config.forgetting_file)
    try:
        losses, scores = _measured(loaded, renderer, suite, texts=texts)
    except TunesmithError as failure:
        console.warn(f"general ability is not measured: {failure.found}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    # JSON knows no NaN.
    finite = [[key, loss if math.isfinite(loss) else None, size] for key, loss, size in losses]
    write_json(folder / TEXTS, finite)
    save(folder, answered(suite.questions, scores, name, loaded.ref.described))


def _measured(
    loaded: LoadedModel, renderer: Renderer, suite: Suite, *, texts: bool
) -> tuple[list[list[Any]], dict[str, list[float]]]:
    """Return [name, nats, bytes] of each text, and the scores of each question's options.

    What does not fit into the model's positions is left out.
    """
    from tunesmith.train.losses import row_losses
    from tunesmith.workflows.finish import trained_bytes
    from tunesmith.workflows.opening import DEFAULT_LENGTH

    wanted = [(f"{TEXT}{n}", text) for n, text in enumerate(suite.texts if texts else ())]
    wanted += [(q.id, option) for q in suite.questions for option in suite.options(q)]
    limit = min(DEFAULT_LENGTH, loaded.max_positions)
    made = renderer.encode_all([example for _, example in wanted], limit)
    rows: list[Encoded] = []
    places: list[tuple[str, list[int]]] = []
    for (key, _), one in zip(wanted, made, strict=True):
        own = () if isinstance(one, ContractError) else one.rows
        places.append((key, list(range(len(rows), len(rows) + len(own)))))
        rows += own
    if not rows:
        return [], {}
    parts = (loaded.device, CAPACITY, loaded.attention)
    sums = [loss for loss, _ in row_losses(loaded.model, rows, *parts)]
    losses: list[list[Any]] = []
    scores: dict[str, list[float]] = {}
    left: set[str] = set()
    for key, where in places:
        total = sum(sums[at] for at in where)
        if not key.startswith(TEXT):
            scores.setdefault(key, []).append(-total)
            left |= set() if where else {key}
        elif where:
            size = sum(trained_bytes(rows[at], renderer) for at in where)
            losses.append([key, total, size])
    return losses, {key: ones for key, ones in scores.items() if key not in left}


def compare_general(run: RunDir) -> list[str]:
    """Compare what was stored of base and tuned model; write it down and say it in a sentence."""
    from tunesmith.evaluate.compare import compare
    from tunesmith.evaluate.general import by_kind, sentence
    from tunesmith.evaluate.losses import compare_losses
    from tunesmith.evaluate.records import load

    folders = [run.eval / FOLDER / name for name in ("base", "tuned")]
    if not all((folder / TEXTS).is_file() for folder in folders):
        return []
    first, second = (load(folder) for folder in folders)
    before, after = (_texts(folder) for folder in folders)
    finite = all(math.isfinite(row.loss) for row in (*before, *after))
    loss = compare_losses(before, after) if before and after and finite else None
    shared = first.problems.keys() & second.problems.keys()
    comparison = compare([first, second]) if shared else None
    said = " ".join(filter(None, (sentence(loss, comparison), "" if finite else NOT_FINITE)))
    found = {
        "sentence": said,
        "loss": None if loss is None else loss.to_json(),
        "comparison": None if comparison is None else comparison.to_json(),
        "kinds": by_kind(first, second),
    }
    write_json(run.eval / FOLDER / FOUND, found)
    return [said] if said else []


def _texts(folder: Path) -> list[Any]:
    from tunesmith.evaluate.losses import RowLoss

    stored = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
    return [
        RowLoss(key, math.nan if loss is None else float(loss), int(size))
        for key, loss, size in stored
    ]
