"""The process that holds the tests: it asks the solver and compares between built-in types."""

from __future__ import annotations

import builtins
import copy
from typing import Any

from tunesmith.grading.sandbox import wire

RAISED = (
    "ArithmeticError", "AssertionError", "AttributeError", "BufferError", "EOFError", "IndexError",
    "KeyError", "LookupError", "NameError", "NotImplementedError", "OSError", "OverflowError",
    "RecursionError", "RuntimeError", "TypeError", "UnicodeError", "ValueError",
    "ZeroDivisionError", "Exception",
)  # fmt: skip
"""Exceptions of a program that tests may catch, by their own name or as the nearest of these that
they are a kind of. StopIteration is none: it would end a loop over checks as if all had passed."""


class Failed(BaseException):
    """The program cannot be tested further; no ``except Exception`` of a test may swallow it."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Solver:
    """The other process, as the tests see it."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self.calls = 0
        """Calls that were answered with a value."""
        self.failed: Failed | None = None
        """The first failure that ends a run, kept in case that a test swallows it."""

    def ask(self, kind: str, *parts: Any) -> Any:
        """Return the answer to a request; raises what the program raised, or ``Failed``."""
        if self.failed is not None:
            raise self.failed
        try:
            wire.send(self._requests, {"op": kind, "with": wire.encode([*parts], _refer)})
            reply = wire.receive(self._replies)
            if not isinstance(reply, dict):
                raise wire.Broken("no answer")
            if "error" not in reply:
                value = wire.decode(reply["value"], lambda number: _remote(self, number))
                self.calls += kind == "call"
                return value
        except wire.Broken as fault:
            kind = "ended" if str(fault) in ("ended", "nobody reads") else "error"
            raise self._fail(kind, f"the program's answer: {fault}") from None
        except (KeyError, RecursionError, MemoryError) as fault:
            text = f"the program's answer: {type(fault).__name__}"
            raise self._fail("error", text) from None
        kinds = [str(name)[:60] for name in reply["error"]][:50]
        name, text = kinds[0] if kinds else "", str(reply.get("text", ""))[:300]
        if name == "MemoryError":
            raise self._fail("memory", "MemoryError")
        near = next((kind for kind in kinds if kind in RAISED), None)
        if near is None:
            raise self._fail("error", f"{name}: {text}")
        raised = getattr(builtins, near)(text if near == name else f"{name}: {text}")
        raised.of_program = True
        raise raised

    def _fail(self, kind: str, detail: str) -> Failed:
        self.failed = Failed(kind, detail)
        return self.failed


class Remote:
    """An object of the program that is no plain data: to be called and handed back, not compared.

    Its attributes are the program's; nothing that decides a test can be asked of it.
    """

    __slots__ = ("_number", "_solver")
    __hash__ = object.__hash__
    _number: int
    _solver: Solver

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _solver_of(self).ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _solver_of(self).ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _solver_of(self).ask("set", self, name, value)

    def _opaque(self, *_: object) -> Any:
        raise _solver_of(self)._fail("error", "the program's answer is no plain data")

    __eq__ = __ne__ = __bool__ = __iter__ = __len__ = __lt__ = __gt__ = __le__ = __ge__ = _opaque
    __deepcopy__ = __copy__ = __reduce_ex__ = _opaque


def _solver_of(remote: Remote) -> Solver:
    found = object.__getattribute__(remote, "_solver")
    assert isinstance(found, Solver)
    return found


def _remote(solver: Solver, number: Any) -> Remote:
    if type(number) is not int:
        raise wire.Broken("no reference")
    made = object.__new__(Remote)
    object.__setattr__(made, "_solver", solver)
    object.__setattr__(made, "_number", number)
    return made


def _refer(value: Any) -> Any:
    if type(value) is Remote:
        return {"r": object.__getattribute__(value, "_number")}
    raise Failed("tests", f"a test passes a value that cannot be sent: {type(value).__name__}")


def judge(tests: dict[str, Any], requests: int, replies: int) -> dict[str, Any]:
    """Run the tests against the solver; return kind, detail and calls.

    ``tests`` holds ``preamble`` (source), ``names`` (of the program), ``setup`` and ``tests``
    (sources). A fault of the tests themselves has the kind ``tests``.
    """
    solver = Solver(requests, replies)
    space: dict[str, Any] = {"__name__": "tests", "copy": copy}
    try:
        exec(compile(tests["preamble"], "preamble", "exec", dont_inherit=True), space)
    except Exception as fault:
        return {"kind": "tests", "detail": f"{type(fault).__name__}: {fault}"[:300]}
    at = ""
    try:
        solver.ask("run")
        found = solver.ask("names", tests["names"])
        missing = [name for name in tests["needed"] if type(found.get(name)) is not Remote]
        if missing:
            return {"kind": "error", "detail": f"the program defines no function {missing[0]!r}"}
        space |= {name: found[name] for name in tests["names"] if name in found}
        for source in (tests["setup"], *tests["tests"]):
            at = source
            exec(compile(source, "tests", "exec", dont_inherit=True), space)
    except Failed as fault:
        return {"kind": fault.kind, "detail": fault.detail}
    except AssertionError as fault:
        if not getattr(fault, "of_program", False):
            return {"kind": "assertion", "detail": _place(fault, at)}
        return {"kind": "error", "detail": f"AssertionError: {fault} at {_place(fault, at)}"}
    except Exception as fault:
        own = _is_own(fault, tests["names"])
        return {
            "kind": "tests" if own else "error",
            "detail": f"{type(fault).__name__}: {fault} at {_place(fault, at)}",
        }
    if solver.failed is not None:
        return {"kind": solver.failed.kind, "detail": solver.failed.detail}
    if not solver.calls:
        return {"kind": "tests", "detail": "the tests never called the program"}
    return {"kind": "pass", "detail": "", "calls": solver.calls}


def _is_own(fault: Exception, names: list[str]) -> bool:
    """Say whether a fault is of the tests: a module, or a name that no program could give them."""
    if getattr(fault, "of_program", False):
        return False
    if isinstance(fault, NameError):
        return fault.name not in names
    return isinstance(fault, ImportError)


def _place(fault: BaseException, source: str) -> str:
    """Return the line of the tests that failed."""
    lines, number, trace = source.splitlines(), 0, fault.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests":
            number = trace.tb_lineno
        trace = trace.tb_next
    return lines[number - 1].strip()[:200] if 0 < number <= len(lines) else ""
