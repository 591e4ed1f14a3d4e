"""HumanEval and MBPP as published: their own programs pass, programs with a fault do not."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mutations import instructions, mutants
from told_apart import calls_in, told_apart
from tunesmith.errors import UsageError
from tunesmith.tasks.programs import HumanEvalTask, MbppTask, ProgramTask
from tunesmith.types import Problem, Verdict

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "code"
SETS = {"HumanEval.jsonl": HumanEvalTask, "mbpp.jsonl": MbppTask}
MOST_SURVIVORS = {"HumanEval.jsonl": 0.08, "mbpp.jsonl": 0.15}
"""Of all single faults: 6.0% and 13.1% change nothing that the published tests look at.

MBPP has three assertions a program, which look at few of its branches and constants.
"""
MOST_DRAWN = 0.08
"""Of one fault a program, its kind drawn first."""


def opened(name: str) -> tuple[ProgramTask, list[Problem]]:
    if not (DATA / name).is_file():
        pytest.skip("the data is not here")
    task = SETS[name]()
    try:
        task.ready()
    except UsageError as found:
        pytest.skip(found.found)
    return task, task.read(str(DATA / name))


def graded(task: ProgramTask, asked: list[tuple[Problem, str]]) -> list[Verdict]:
    with ThreadPoolExecutor(task.graders) as pool:
        made = [*pool.map(lambda one: task.verify(one[0], f"```python\n{one[1]}\n```"), asked)]
    print(task.told())
    return made


def unscored(asked: Sequence[Any], verdicts: list[Verdict]) -> list[Any]:
    """Return the programs that were not graded, each with its reason."""
    pairs = zip(asked, verdicts, strict=True)
    return [(one, verdict.reason) for one, verdict in pairs if verdict.score is None]


def own_programs_pass(name: str, every: int) -> None:
    task, problems = opened(name)
    chosen = problems[::every]
    verdicts = graded(task, [(problem, problem.reference) for problem in chosen])
    wrong = [
        (p.meta["line"], v.reason) for p, v in zip(chosen, verdicts, strict=True) if not v.score
    ]
    assert wrong == []


def faults_fail(name: str, count: int) -> None:
    """One fault a program: its kind is drawn first, then its place; the survivors are listed.

    A survivor has to pass in a bare interpreter too: then the tests let it through, not we.
    """
    task, problems = opened(name)
    draw = random.Random(0)
    asked, named = [], []
    for problem in problems[:count] if count else problems:
        made: dict[str, list[tuple[str, str]]] = {}
        for what, program in mutants(problem.reference):
            made.setdefault(what.partition(",")[0], []).append((what, program))
        if made:
            what, program = draw.choice(made[draw.choice(sorted(made))])
            asked.append((problem, program))
            named.append(f"{name}:{problem.meta['line']} {what}")
    verdicts = graded(task, asked)
    survivors = []
    for (problem, program), what, verdict in zip(asked, named, verdicts, strict=True):
        if verdict.score:
            survivors.append(what)
            assert passes_plainly(task, problem, program), what
    print(f"{name}: {len(asked) - len(survivors)} of {len(asked)} programs with a fault fail")
    print("\n".join(survivors))
    assert not unscored(named, verdicts)
    assert len(survivors) <= MOST_DRAWN * len(asked)


def every_fault(name: str) -> None:
    """Grade all single faults of all programs; say the rates, and what each survivor is.

    A survivor that no varied input tells apart from the program is, as far as that shows, the same
    program; one that some input does is a gap in the data set's own tests. Both count as survivors.
    """
    task, problems = opened(name)
    made = [
        (problem, f"{name}:{problem.meta['line']}", f"{number} {what}", program)
        for problem in problems
        for number, (what, program) in enumerate(mutants(problem.reference))
    ]
    verdicts = graded(task, [(problem, program) for problem, _, _, program in made])
    assert not unscored([one[1:3] for one in made], verdicts)
    kinds: dict[str, Counter[bool]] = {}
    programs: dict[str, Counter[bool]] = {}
    survivors = []
    for one, verdict in zip(made, verdicts, strict=True):
        lives = bool(verdict.score)
        kind = one[2].partition(" ")[2].partition(",")[0]
        kinds.setdefault(kind, Counter())[lives] += 1
        programs.setdefault(one[1], Counter())[lives] += 1
        survivors += [one] if lives else []
    total = len(made)
    print(f"{name}: {total - len(survivors):,} of {total:,} faults fail ", end="")
    print(f"({1 - len(survivors) / total:.2%})")
    for kind, found in sorted(kinds.items()):
        print(
            f"  {kind}: {found[False]:,} of {found.total():,} ({found[False] / found.total():.1%})"
        )
    whole = sum(not found[True] for found in programs.values())
    print(f"  programs of which every fault fails: {whole:,} of {len(programs):,}")
    apart = Counter()
    for problem, place, what, program in survivors:
        assert passes_plainly(task, problem, program), (place, what)
        tests = task.tests(problem, strict=True)
        calls = calls_in(tests.checks, tests.needed)
        both = (f"{tests.preamble}\n{one}" for one in (problem.reference, program))
        valid, call = told_apart(*both, calls)
        told = "an input tells them apart" if call else "no input tells them apart"
        told = told if valid else "not tried"
        apart[told] += 1
        found = programs[place]
        print(f"  {place} {what}; {found[True]} of {found.total()} live; {told} ({valid}): {call}")
    print(f"  survivors: {dict(apart)}")
    assert len(survivors) <= MOST_SURVIVORS[name] * total


def passes_plainly(task: ProgramTask, problem: Problem, program: str) -> bool:
    """Run a data set's own program, with one fault, the way that the data set means it."""
    tests = task.tests(problem, strict=True)
    source = "\n".join([tests.preamble, program, tests.setup, *tests.checks])
    done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, timeout=60)
    return done.returncode == 0


def test_a_mutant_that_is_the_same_program_is_no_fault():
    found = [program for _, program in mutants("def f(x):\n    while 1:\n        return x + 1\n")]
    assert "while 2" not in "".join(found)
    assert any("x - 1" in one for one in found)
    assert any("x + 2" in one for one in found)
    assert instructions("x = 2 * 3") == instructions("x = 6  # as it is")
    assert instructions("def f():\n    return 1") != instructions("def f():\n    return True")


def test_an_input_like_those_of_the_tests_tells_a_fault_apart():
    program = "def f(xs):\n    best = 0\n    for x in xs: best = max(best, x)\n    return best"
    calls = calls_in(["assert f([1, 2, 3]) == 3", "assert f(given) == 2", "g(1)"], ["f"])
    assert calls == [("f", "[[1, 2, 3]]")]
    assert calls_in(["def check(candidate):\n    assert candidate(1, 'a') == 2"], ["f"]) == [
        ("f", "[1, 'a']")
    ]
    valid, call = told_apart(program, program.replace("= 0", "= 3"), calls, 200)
    assert call.startswith("f(")
    assert 0 < valid < 200
    same = program.replace("max(best, x)", "max(x, best)")
    assert told_apart(program, same, calls, 60) == (60, None)
    endless = program.replace("    return best", "    while best > 3: pass\n    return best")
    assert told_apart(program, endless, calls, 60)[1]
    assert told_apart(program, program, [], 60) == (0, None)


@pytest.mark.parametrize("name", SETS)
def test_some_own_programs_pass(name):
    own_programs_pass(name, 16)


def test_the_setup_code_runs_after_the_program():
    task, problems = opened("mbpp.jsonl")
    [tree] = [p for p in problems if p.meta["setup"]]
    assert "Node" in tree.meta["names"]
    [verdict] = graded(task, [(tree, tree.reference)])
    assert verdict.score == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_all_own_programs_pass(name):
    own_programs_pass(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_programs_with_a_fault_fail(name):
    faults_fail(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_fault_fails_but_few(name):
    every_fault(name)
