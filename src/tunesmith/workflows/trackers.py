"""Where metrics go besides ``metrics.jsonl``: TensorBoard and the other trackers of accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.rundir import RunDir

PROJECT = "tunesmith"
"""What the trackers' project or experiment is called; the run inside it has the folder's name."""

PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "mlflow": "mlflow",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
"""accelerate's trackers and the packages that they need."""
_INSTALL = {"comet_ml": "comet-ml"}
_NAMES_A_RUN = {"wandb": "name", "comet_ml": "experiment_name", "swanlab": "experiment_name"}
"""The argument by which a tracker takes a run's name beside the project's."""


def chosen_trackers(asked: Sequence[str]) -> list[str]:
    """Return the trackers to use, each once; nothing for ``none``.

    Raises ``UsageError`` for ``none`` beside others, and for a tracker whose package is not
    installed; nothing is imported for it.
    """
    names = list(dict.fromkeys(asked))
    if "none" in names:
        if len(names) > 1:
            raise UsageError(
                f"--report-to {', '.join(names)}: none and a tracker cannot both be meant.",
                hint="leave one of them out",
            )
        return []
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(
                f"--report-to {name} needs the package {PACKAGES[name]}, which is not installed.",
                hint=f"pip install {_INSTALL.get(name, PACKAGES[name])}",
            )
    return names


class Trackers:
    """The trackers of a run, begun when made; only its main process has any."""

    def __init__(
        self, names: Sequence[str], run: RunDir, settings: Mapping[str, Any], *, first: int = 0
    ) -> None:
        """``settings`` are shown with the run, of which ``first`` steps are done already."""
        self._trackers = []
        for name in names:
            tracker = _make(name, run, first)
            tracker.start()
            if name != "tensorboard":  # its form of settings is a run of its own beside this one
                tracker.store_init_configuration(_flat(settings))
            self._trackers.append(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the numbers of one step."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """Let every tracker end its run; doing so twice does nothing."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            tracker.finish()


def _make(name: str, run: RunDir, first: int) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        # Steps that a kill took back are made again, and hide what was logged of them before.
        return kind(run.tensorboard.name, str(run.path), purge_step=first + 1 if first else None)
    more = {_NAMES_A_RUN[name]: run.path.name} if name in _NAMES_A_RUN else {}
    if kind.requires_logging_directory:
        return kind(PROJECT, str(run.path), **more)
    return kind(PROJECT, **more)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as trackers take them: numbers, truth values and texts."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in settings.items()
        if value not in (None, [], {})
    }
