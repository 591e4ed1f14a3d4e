"""The tasks ``humaneval`` and ``mbpp``: write a Python function that passes tests.

HumanEval (Chen et al. 2021, arXiv 2107.03374): ``{"prompt", "entry_point", "canonical_solution",
"test"}``. MBPP (Austin et al. 2021, arXiv 2108.07732): ``{"text", "code", "test_list",
"test_setup_code", "challenge_test_list"}``; its setup code runs after the program, whose classes
it uses.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.grading.programs import Names, extracted, free_names, imports_of, parsed
from tunesmith.tasks.base import telling
from tunesmith.tasks.files import FileTask
from tunesmith.types import Problem, Segment, Verdict

if TYPE_CHECKING:
    from tunesmith.data.readers import Row
    from tunesmith.grading.sandbox.run import Checks, Mode

STUB = "    pass\n"
"""Makes a whole function of HumanEval's prompt, which ends in a docstring."""
THINK = "First say in a few sentences how you will do it. Then write the program."


class ProgramTask(FileTask):
    """Write a function; what counts is whether it passes the tests of its problem."""

    uses = ("columns", "unsafe_exec")
    problems_called = "programming problems with tests"
    max_new_tokens = 512

    def __init__(self) -> None:
        self._mode: Mode | None = None
        self._known: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._count = self._running = 0
        self._busy = self._since = 0.0

    @property
    def graders(self) -> int:
        """Programs that run at once: one a core."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    def ready(self) -> str:
        """Find out how programs are confined here, and say it; ``UsageError`` where not at all."""
        from tunesmith.grading.sandbox.run import described, mode_for

        if self._mode is None:
            self._mode = mode_for(unsafe=self.settings.unsafe_exec)
        return f"Programs run in {described(self._mode)}."

    def told(self) -> str:
        """Say how many programs were run and how fast; nothing before the first."""
        if not self._count:
            return ""
        return (
            f"Programs run: {self._count:,}, {self._count / max(self._busy, 1e-9):.1f} a "
            f"second, up to {self.graders} at once."
        )

    def messages(self, problem: Problem, style: str) -> tuple[Segment, ...]:
        """Return the request for a program, or for a few sentences and then the program."""
        if self.check_style(style) == "direct":
            return problem.prompt
        asked = problem.prompt[-1]
        return (*problem.prompt[:-1], Segment(asked.role, f"{asked.text}\n\n{THINK}"))

    def answer_text(self, problem: Problem) -> str:
        """Return the data set's own program, in a block."""
        return f"```python\n{problem.reference.strip()}\n```"

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Run the program of an answer against the problem's tests; the answer is the program."""
        return self._run(problem, text, strict=False)

    def judge_strictly(self, problem: Problem, text: str) -> Verdict:
        """Run it against the challenge tests too, where there are any."""
        return self._run(problem, text, strict=True)

    def hint(self, problem: Problem) -> str:
        """Tell the data set's own program."""
        return telling(f"This program passes:\n```python\n{problem.reference.strip()}\n```\n")

    def tests(self, problem: Problem, *, strict: bool = False) -> Checks:
        """Return what a program is held against."""
        from tunesmith.grading.sandbox.run import Checks

        held = problem.meta
        checks = [*held["checks"], *(held["challenges"] if strict else ())]
        return Checks(checks, held["names"], held["needed"], held["preamble"], held["setup"])

    def _run(self, problem: Problem, text: str, *, strict: bool) -> Verdict:
        from tunesmith.grading.sandbox.run import Kind, run

        self.ready()
        assert self._mode is not None
        program = extracted(text, str(problem.meta["context"]), problem.meta["needed"])
        if program is None:
            return Verdict(0.0, None, "no program")
        # One program is asked about again by selection and votes, and drawn again by the model.
        key = f"{problem.id}\0{strict and bool(problem.meta['challenges'])}\0{program}"
        digest = hashlib.sha256(key.encode(errors="replace")).hexdigest()
        if digest in self._known:
            return self._known[digest]
        self._clock(1)
        try:
            found = run(program, self.tests(problem, strict=strict), mode=self._mode)
        finally:
            self._clock(-1)
        reason = f"{found.kind}: {found.detail}" if found.detail else str(found.kind)
        if found.kind in (Kind.TESTS, Kind.NOT_STARTED):
            return Verdict(None, None, f"grader failed: {reason}")
        verdict = Verdict(float(found.kind is Kind.PASS), program, reason)
        self._known[digest] = verdict
        return verdict

    def _clock(self, change: int) -> None:
        """Count a program, and the time in which at least one runs."""
        now = time.perf_counter()
        with self._lock:
            if self._running:
                self._busy += now - self._since
            self._since = now
            self._running += change
            self._count += change < 0


class HumanEvalTask(ProgramTask):
    name = "humaneval"
    summary = "Python functions to complete, graded by their tests (HumanEval's layout)"
    wants = "a file of rows with prompt, entry_point, canonical_solution and test"
    example_source = "HumanEval.jsonl"

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return {"prompt", "entry_point", "test"} <= fields.keys()

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row."""
        head, entry, solution, test = (
            row.fields.get(name) for name in ("prompt", "entry_point", "canonical_solution", "test")
        )
        if not all(isinstance(part, str) and part for part in (head, entry, test)):
            raise DataError(
                f"{row.origin}: no prompt, entry_point and test (fields: {', '.join(row.fields)}).",
                expected='{"prompt": "def f(x): …", "entry_point": "f", "test": "def check(…)"}',
            )
        head, entry = str(head), str(entry)
        context = head.rstrip() + "\n" + STUB
        fault = parsed(context)[1] or parsed(str(test))[1]
        if fault:
            raise DataError(f"{row.origin}: the prompt or the test is no Python: {fault}.")
        meta = {
            "context": context,
            "preamble": context,
            "names": [entry],
            "needed": [entry],
            "setup": "",
            "checks": [f"{test}\n\ncheck({entry})\n"],
            "challenges": [],
        }
        asked = (
            "Complete this Python function. Answer with the whole function in a ```python block.\n"
            f"\n```python\n{head.strip()}\n```"
        )
        reference = head + solution if isinstance(solution, str) else ""
        identity = str(row.fields.get("task_id") or head)
        return Problem(f"{identity}/{head}", self.name, (Segment("user", asked),), reference, meta)


class MbppTask(ProgramTask):
    name = "mbpp"
    summary = "Python functions to a sentence and tests (MBPP's layout)"
    wants = "a file of rows with text, code and test_list"
    example_source = "mbpp.jsonl"

    @classmethod
    def reads(cls, fields: Mapping[str, Any]) -> bool:
        return "test_list" in fields and bool({"text", "prompt"} & fields.keys())

    def problem(self, row: Row) -> Problem:
        """Return the problem of a row; ``prompt`` is what the sanitised set calls ``text``."""
        wanted = row.fields.get("text", row.fields.get("prompt"))
        tests, code = row.fields.get("test_list"), str(row.fields.get("code") or "")
        if not isinstance(wanted, str) or not isinstance(tests, list) or not tests:
            raise DataError(
                f"{row.origin}: no text and test_list (fields: {', '.join(row.fields)}).",
                expected='{"text": "Write a function to …", "code": "…", "test_list": ["…"]}',
            )
        checks = [str(one).replace("\r\n", "\n") for one in tests]
        challenges = [str(one) for one in row.fields.get("challenge_test_list") or ()]
        setup = str(row.fields.get("test_setup_code") or "").replace("\r\n", "\n")
        imports = "\n".join(map(str, row.fields.get("test_imports") or ()))
        code = code.replace("\r\n", "\n")
        fault = next((f for one in (*checks, *challenges, setup) if (f := parsed(one)[1])), "")
        if fault:
            raise DataError(f"{row.origin}: a test is no Python: {fault}.")
        defined = Names.of(code).made
        used = free_names([setup, *checks, *challenges], defined)
        # Without a program to compare with, what tests call is all that an answer may define.
        names = [
            name for name in (used.all if code else used.called) if not code or name in defined
        ]
        called = [name for name in used.called if name in names]
        meta = {
            "context": "",
            # The modules that tests use are the real ones, never what a program calls so.
            "preamble": "\n".join([imports, *imports_of(code)]),
            "names": names,
            "needed": called[:1],
            "setup": setup,
            "checks": checks,
            "challenges": challenges,
        }
        shown = "\n".join(checks)
        asked = (
            f"{wanted.strip()}\nAnswer with Python in a ```python block. It has to pass these "
            f"tests:\n\n```python\n{shown}\n```"
        )
        identity = str(row.fields.get("task_id") or wanted)
        return Problem(f"{identity}/{wanted}", self.name, (Segment("user", asked),), code, meta)
