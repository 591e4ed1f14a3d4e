"""The table of tasks: one row each."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from tunesmith.errors import UsageError
from tunesmith.tasks.base import GradedTask, QuestionSettings, Task

if TYPE_CHECKING:
    from tunesmith.tasks.replies import ReplyTask

_TASKS = {
    "units": ("tunesmith.tasks.units", "UnitsTask"),
    "maths": ("tunesmith.tasks.maths", "MathsTask"),
    "choice": ("tunesmith.tasks.choice", "ChoiceTask"),
    "bbh": ("tunesmith.tasks.bbh", "BbhTask"),
    "countdown": ("tunesmith.tasks.countdown", "CountdownTask"),
    "qa": ("tunesmith.tasks.qa", "QaTask"),
    "raft": ("tunesmith.tasks.raft", "RaftTask"),
    "humaneval": ("tunesmith.tasks.programs", "HumanEvalTask"),
    "mbpp": ("tunesmith.tasks.programs", "MbppTask"),
    "socratic": ("tunesmith.tasks.socratic", "SocraticTask"),
    "ifeval": ("tunesmith.tasks.ifeval", "IfevalTask"),
    "chat": ("tunesmith.tasks.plain", "ChatTask"),
    "code": ("tunesmith.tasks.plain", "CodeTask"),
    "instruct": ("tunesmith.tasks.plain", "InstructTask"),
    "domain": ("tunesmith.tasks.plain", "DomainTask"),
    "custom": ("tunesmith.tasks.plain", "CustomTask"),
}
"""Name → (module, class); a module is imported when its task is asked for."""


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, the graded ones first."""
    return tuple(_TASKS)


def get_task(name: str) -> Task:
    """Return the task of this name, or say which ones there are and which was probably meant."""
    if name not in _TASKS:
        near = difflib.get_close_matches(name.lower(), _TASKS, n=1)
        raise UsageError(
            f"There is no task {name!r}.",
            expected=f"one of {', '.join(_TASKS)}",
            hint=f"--task {near[0] if near else 'custom'}",
        )
    module, cls = _TASKS[name]
    task = getattr(importlib.import_module(module), cls)()
    assert isinstance(task, Task)
    return task


def get_graded_task(name: str, settings: QuestionSettings | None = None) -> GradedTask:
    """Return a task whose answers can be graded; ``UsageError`` for one that is only trained.

    A setting that the task does not heed is a ``UsageError`` too: none does nothing.
    """
    task = get_task(name)
    if not isinstance(task, GradedTask):
        graded = [other for other in _TASKS if isinstance(get_task(other), GradedTask)]
        raise UsageError(
            f"The answers of task {name!r} cannot be graded.",
            expected=f"one of {', '.join(graded)}",
            hint=f"--task {graded[0]}, or tunesmith train --task {name} for its held-out loss",
        )
    if settings is not None:
        _heed(task, settings)
    return task


def get_reply_task(name: str, settings: QuestionSettings) -> ReplyTask:
    """Return the task of a name in ``REPLY_TASKS``, to reply to; metrics score what it says."""
    from tunesmith.tasks.replies import REPLY_TASKS

    task = REPLY_TASKS[name]()
    _heed(task, settings)
    return task


def score_called(name: str) -> str:
    """Return what the mean score of a task's attempts is, in percent; «right» of an unknown one."""
    from tunesmith.tasks.replies import REPLY_TASKS

    if name in REPLY_TASKS:
        return REPLY_TASKS[name].score_called
    task = get_task(name) if name in _TASKS else None
    return task.score_called if isinstance(task, GradedTask) else GradedTask.score_called


def _heed(task: GradedTask, settings: QuestionSettings) -> None:
    idle = [one for one in settings.given() if one not in task.uses]
    if idle:
        raise UsageError(
            f"--{idle[0].replace('_', '-')} does nothing for the task {task.name!r}.",
            expected=", ".join(f"--{one.replace('_', '-')}" for one in task.uses)
            or "no such setting",
            hint="leave it out",
        )
    task.settings = settings
