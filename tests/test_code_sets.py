"""HumanEval and MBPP as published: their own programs pass, programs with a fault do not."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mutations import mutants
from tunesmith.errors import UsageError
from tunesmith.tasks.programs import HumanEvalTask, MbppTask, ProgramTask
from tunesmith.types import Problem, Verdict

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "code"
MOST_SURVIVORS = 0.08
"""Some 6.5% of single faults change nothing that the published tests look at."""
SETS = {"HumanEval.jsonl": HumanEvalTask, "mbpp.jsonl": MbppTask}


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
    assert None not in [verdict.score for verdict in verdicts]
    assert len(survivors) <= MOST_SURVIVORS * len(asked)


def passes_plainly(task: ProgramTask, problem: Problem, program: str) -> bool:
    """Run a data set's own program, with one fault, the way that the data set means it."""
    tests = task.tests(problem, strict=True)
    source = "\n".join([tests.preamble, program, tests.setup, *tests.checks])
    done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, timeout=60)
    return done.returncode == 0


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
