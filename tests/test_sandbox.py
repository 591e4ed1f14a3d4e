"""What becomes of one program: verdicts, values, limits, and what confines it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tunesmith.errors import UsageError
from tunesmith.grading.sandbox import kernel
from tunesmith.grading.sandbox import run as sandbox
from tunesmith.grading.sandbox.run import Checks, Kind, Limits, described, mode_for, run

SHORT = Limits(cpu_seconds=1, wall_seconds=1.5)
try:
    MODE = mode_for(unsafe=False)
except UsageError as found:
    pytest.skip(f"programs cannot be confined here: {found.found}", allow_module_level=True)


def outcome(program: str, *checks: str, mode: sandbox.Mode = MODE, setup: str = ""):
    names = Checks(checks or ("assert f(1) == 2",), ["f", "A"], ["f"], setup=setup)
    return run(program, names, SHORT, mode=mode)


@pytest.mark.parametrize(
    ("program", "kind", "said"),
    [
        ("def f(x): return x + 1", Kind.PASS, ""),
        ("def f(x): return x", Kind.ASSERTION, "assert f(1) == 2"),
        ("def f(x): return 1 / 0", Kind.ERROR, "ZeroDivisionError"),
        ("def f(x", Kind.ERROR, "SyntaxError"),
        ("g = 1", Kind.ERROR, "no function 'f'"),
        ("f = 1", Kind.ERROR, "no function 'f'"),
        ("def f(x): raise SystemExit(0)", Kind.ERROR, "SystemExit"),
        ("import os\ndef f(x): os._exit(0)", Kind.ERROR, "exit code 0"),
        ("import os\ndef f(x): os.abort()", Kind.ERROR, "signal 6"),
        ("def f(x):\n while True: pass", Kind.TIMEOUT, "time is over"),
        ("import time\ndef f(x): time.sleep(9)", Kind.TIMEOUT, "time is over"),
        ("def f(x): return len(bytes(1 << 30))", Kind.MEMORY, "MemoryError"),
        ("def f(x):\n while True: print('x' * 9999)", Kind.OUTPUT, "bytes"),
        ("def f(x): return object()", Kind.ERROR, "no plain data"),
        ("def f(x): return 'x' * (9 << 20)", Kind.ERROR, "MiB"),
        ("def f(x): return input()", Kind.ERROR, "EOF"),
    ],
)
def test_each_end_of_a_program_has_its_verdict(program, kind, said):
    found = outcome(program)
    assert found.kind == kind
    assert said in found.detail


def test_tests_that_check_nothing_are_no_pass():
    assert outcome("def f(x): return 2", "assert True").kind is Kind.TESTS


@pytest.mark.parametrize("check", ["import nowhere\nassert f(1) == 2", "assert f(lambda: 1) == 2"])
def test_a_fault_of_the_tests_is_not_the_program_s(check):
    assert outcome("def f(x): return 2", check).kind is Kind.TESTS


def test_a_name_that_no_program_could_give_is_a_fault_of_the_tests():
    assert outcome("def f(x): return 2", "assert f(1) == two").kind is Kind.TESTS
    assert outcome("def f(x): return two").kind is Kind.ERROR
    assert outcome("def f(x): return 2", "assert f(1) == 2 and A()").kind is Kind.ERROR


@pytest.mark.parametrize(
    ("value", "check"),
    [
        ("range(3, 0, -1)", "assert f(1) == range(3, 0, -1) and 2 in f(1)"),
        ("__import__('collections').deque([1, [2]])", "assert list(f(1)) == [1, [2]]"),
        ("__import__('itertools').chain([1], [2])", "assert list(f(1)) == [1, 2]"),
        ("enumerate('ab')", "assert dict(f(1)) == {0: 'a', 1: 'b'}"),
    ],
)
def test_lazy_and_lined_up_values_are_plain_data(value, check):
    found = outcome(f"def f(x): return {value}", check)
    assert found.kind is Kind.PASS, found.detail


def test_an_exception_of_the_program_s_own_is_the_kind_that_it_inherits_from():
    check = "try:\n    f(1)\nexcept {}:\n    f(0)\nelse:\n    assert False"
    raising = "class Odd({}): pass\ndef f(x):\n    if x: raise Odd('no')"
    assert outcome(raising.format("ValueError"), check.format("ValueError")).kind is Kind.PASS
    assert outcome(raising.format("Exception"), check.format("Exception")).kind is Kind.PASS
    wrong = outcome(raising.format("KeyError"), check.format("ValueError"))
    assert wrong.kind is Kind.ERROR
    assert "Odd: " in wrong.detail
    assert outcome(raising.format("SystemExit"), check.format("Exception")).kind is Kind.ERROR


def test_a_process_that_cannot_be_confined_gives_no_verdict(monkeypatch):
    """A user that does not exist stands for root of a container that has a few users only."""
    monkeypatch.setattr(sandbox, "users", lambda: [-5, -5])
    found = outcome("def f(x): return x + 1")
    assert found.kind is Kind.NOT_STARTED
    assert "program ended itself" not in found.detail


def test_root_of_a_container_with_few_users_is_confined_like_any_user(monkeypatch):
    monkeypatch.setattr(sandbox, "_has_all_users", lambda: False)
    sandbox._possible.cache_clear()
    try:
        mode, why = sandbox._possible()
    finally:
        sandbox._possible.cache_clear()
    assert mode != "root"
    assert mode == "user" or why


def test_without_users_of_their_own_programs_are_said_to_be_able_to_forge(monkeypatch):
    monkeypatch.setattr(sandbox, "users", list)
    assert "forged" in described("none")
    monkeypatch.setattr(sandbox, "users", lambda: [1, 2])
    assert "forged" not in described("none")


def test_what_the_program_imports_is_its_own_fault():
    assert outcome("def f(x): import nowhere").kind is Kind.ERROR
    assert outcome("import nowhere\ndef f(x): return 2").kind is Kind.ERROR


def test_a_failure_that_a_test_swallows_is_no_pass():
    check = "f(0)\ntry:\n    f(1)\nexcept BaseException:\n    pass"
    program = "def f(x):\n    if x: raise SystemExit\n    return 0"
    assert outcome(program, check).kind is Kind.ERROR


def test_an_early_end_of_iteration_does_not_skip_checks():
    check = "f(0)\nassert all(map(f, [1, 2]))"
    program = "def f(x):\n    if x: raise StopIteration\n    return 0"
    assert outcome(program, check).kind is Kind.ERROR


@pytest.mark.parametrize(
    "value",
    ["None", "True", "-7", "10**40", "1.5", "float('inf')", "'é\\udc80'", "b'\\x00'",
     "(1, [2, {3}])", "{(1, 2): {'a': None}}", "frozenset({1})", "2 + 3j",
     "bytearray(b'x')", "int"],
)  # fmt: skip
def test_values_come_back_as_they_are(value):
    check = f"want = {value}\ngot = f(want)\nassert got == want and type(got) is type(want), got"
    assert outcome("def f(x): return x", check).kind is Kind.PASS


def test_lazy_values_are_iterators_and_exceptions_can_be_expected():
    check = "assert list(f(3)) == [0, 1, 2]\ntry: f(-1)\nexcept ValueError as e: said = str(e)\n"
    check += "assert said == 'no'"
    program = "def f(x):\n    if x < 0: raise ValueError('no')\n    return (n for n in range(x))"
    assert outcome(program, check).kind is Kind.PASS


def test_objects_of_the_program_can_be_made_changed_and_handed_back():
    program = "class A:\n    def __init__(self, v): self.v = v\ndef f(a): return a.v"
    found = outcome(program, "assert f(root) == 5", setup="root = A(1)\nroot.v = 5")
    assert found.kind is Kind.PASS


def test_the_expected_value_is_nowhere_in_the_program_s_process():
    program = (
        "import gc, sys\n"
        "def f(x):\n"
        "    return [str(o) for o in gc.get_objects() if str(731945 + x) in str(o)][:1]\n"
    )
    found = outcome(program, "assert f(1) == [], f(1)\n# 731946")
    assert found.kind is Kind.PASS


def test_programs_leave_no_file_for_the_next():
    program = "import os\ndef f(x):\n    open('a', 'w').write('x')\n    return os.listdir('.')"
    for _ in range(2):
        assert outcome(program, "assert f(1) == ['a']").kind is Kind.PASS


def test_a_program_sees_libraries_and_no_more():
    seen = "import os\ndef f(x): return sorted({*os.listdir('/')} & {'etc', 'home', 'proc', 'bin'})"
    assert outcome(seen, "assert f(1) == [], f(1)").kind is Kind.PASS


def test_a_program_cannot_become_the_master_of_namespaces():
    tried = "import ctypes\ndef f(x): return ctypes.CDLL(None).unshare(0x10000000)"
    assert outcome(tried, "assert f(1) == -1").kind is Kind.PASS


def test_what_is_in_force_is_told():
    found = outcome("def f(x): return 2")
    assert "no network" in found.isolation
    assert "without network" in described(MODE)
    assert "UNSAFE" in described("none")


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("def f(x): return x + 1", Kind.PASS),
        ("import os\ndef f(x): os._exit(0)", Kind.ERROR),
        ("import socket\ndef f(x): return socket.socket() and 2", Kind.ERROR),
        ("import os, time\nif not os.fork():\n os.setsid()\n time.sleep(60)\nf = 1", Kind.ERROR),
    ],
)
def test_limits_alone_still_judge_and_end_a_program(program, kind):
    begun = time.monotonic()
    assert outcome(program, mode="none").kind is kind
    assert time.monotonic() - begun < 5


def test_where_nothing_confines_programs_they_are_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "_possible", lambda: ("none", "unshare: not permitted"))
    with pytest.raises(UsageError, match="not permitted"):
        mode_for(unsafe=False)
    assert mode_for(unsafe=True) == "none"


def test_a_program_keeps_its_own_rules_of_compiling():
    """A name that an annotation uses has to exist, as in plain Python of this version."""
    assert outcome("def f(x: Nowhere): return x + 1").kind is Kind.ERROR
    later = "from __future__ import annotations\ndef f(x: Nowhere): return x + 1"
    assert outcome(later).kind is Kind.PASS


@pytest.mark.parametrize("call", ["shmget(1, 4096, 512)", "semget(1, 1, 512)", "msgget(1, 512)"])
def test_memory_that_no_limit_counts_is_refused(call):
    program = f"import ctypes\ndef f(x): return ctypes.CDLL(None).{call}"
    assert outcome(program, "assert f(1) == -1").kind is Kind.PASS


def test_a_killed_launcher_is_replaced():
    held = []
    for _ in range(4):
        assert outcome("def f(x): return 2").kind is Kind.PASS
        held.append(len(list(Path("/proc/self/fd").iterdir())))
        launcher = sandbox._launcher()
        launcher._process.kill()
        launcher._process.wait()
    assert held[1] == held[-1]


def tries(monkeypatch):
    """Return a list of what each try at a program came to."""
    once, made = sandbox._once, []
    monkeypatch.setattr(sandbox, "_once", lambda *given: made.append(once(*given)) or made[-1])
    return made


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "stands still"])
def test_a_program_that_was_not_begun_is_begun_by_another_launcher(ends, monkeypatch):
    outcome("def f(x): return 2")
    monkeypatch.setattr(sandbox, "_SLACK", 20.0 if ends else 0.4 - SHORT.wall_seconds)
    launcher, made = sandbox._launcher(), tries(monkeypatch)

    def go_on():
        sandbox._SLACK = 20.0  # of the second try
        if ends:
            launcher._process.kill()

    launcher._process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(0.2, go_on)
    timer.start()
    assert outcome("def f(x): return 2").kind is Kind.PASS
    timer.join()
    assert made[0] == (b"", b"")
    assert len(made) == 2
    assert sandbox._launcher() is not launcher


def test_a_program_that_was_begun_is_not_begun_again(monkeypatch):
    outcome("def f(x): return 2")
    monkeypatch.setattr(sandbox, "_SLACK", 0.2)
    launcher, made, stopped = sandbox._launcher()._process.pid, tries(monkeypatch), []

    def stop():
        [watcher] = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        os.kill(int(watcher), signal.SIGSTOP)
        stopped.append(int(watcher))

    timer = threading.Timer(0.5, stop)
    timer.start()
    found = outcome("import time\ndef f(x): time.sleep(9)")
    timer.join()
    os.kill(stopped[0], signal.SIGKILL)
    assert (found.kind, found.detail) == (Kind.NOT_STARTED, "the sandbox gave no answer: ")
    assert made == [(b" ", b"")]


def test_what_befalls_the_process_that_watches_is_told(monkeypatch):
    monkeypatch.setattr(sandbox, "asdict", lambda limits: {})
    found = outcome("def f(x): return 2")
    assert (found.kind, found.detail) == (Kind.NOT_STARTED, "KeyError: 'wall_seconds'")


def test_nothing_outlives_the_process_that_watches():
    """Whoever kills the watcher, a grader of the system's memory too, leaves nothing behind."""

    def below(pid: int) -> set[int]:
        """Every process below one: other tests have sandboxes of their own on this machine."""
        found = set()
        for place in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, place.read_text().split()):
                    found |= {child} | below(child)
        return found

    def alive(pid: int) -> bool:
        try:
            return bool(Path(f"/proc/{pid}/cmdline").read_text())  # a zombie's is empty
        except OSError:
            return False

    outcome("def f(x): return 2")
    others = below(os.getpid())
    said = []
    sleeping = "import time\ndef f(x): time.sleep(9)"
    thread = threading.Thread(target=lambda: said.append(outcome(sleeping)))
    # The watcher is a child of this thread's own launcher, which a new thread has not.
    thread.start()
    deadline = time.monotonic() + 1.2
    while len(below(os.getpid()) - others) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    new = sorted(below(os.getpid()) - others)
    assert len(new) >= 4  # launcher, watcher, tester, the program's world
    os.kill(new[1], signal.SIGKILL)
    thread.join()
    # It had begun, so it is not begun again.
    assert [one.detail for one in said] == ["the process that watches was killed by signal 9"]
    deadline = time.monotonic() + 2
    while sum(map(alive, new)) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sum(map(alive, new)) <= 1


def test_no_folder_of_a_virtual_environment_is_shown() -> None:
    if sys.prefix == sys.base_prefix:
        pytest.skip("no virtual environment")
    for path in kernel.standard_library():
        assert Path(path).is_relative_to(sys.base_prefix)
        assert not Path(path).is_relative_to(sys.prefix)
