"""Task types that only training needs: their rows come from files and nothing is graded.

Each names a kind of data; the settings that suit it stand in ``config/presets.py``.
"""

from __future__ import annotations

from tunesmith.tasks.base import Task


class PlainTask(Task):
    """A task whose rows are read from the user's data."""


class ChatTask(PlainTask):
    name = "chat"
    summary = "conversations of several turns"


class CodeTask(PlainTask):
    name = "code"
    summary = "source code, and code written to an instruction"


class InstructTask(PlainTask):
    name = "instruct"
    summary = "one instruction, perhaps with an input, and its response"


class DomainTask(PlainTask):
    name = "domain"
    summary = "plain text of a field, learnt as a whole"


class CustomTask(PlainTask):
    name = "custom"
    summary = "your own columns, named with --columns"
