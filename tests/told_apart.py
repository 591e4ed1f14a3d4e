"""Whether a fault can be noticed: program and mutant on many inputs like those of the tests.

The arguments with which the checks call a function are varied, keeping their shape. An input on
which the program itself fails, or is slow, is none that the question means.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence

INPUTS = 400
_CHILD = """
import ast, copy, json, random, resource, signal, sys, time

def varied(value, draw, letters):
    if isinstance(value, bool):
        return draw.random() < 0.5
    if isinstance(value, int):
        near = [value, value - 1, value + 1, value + draw.randint(-9, 9), draw.randint(0, 20)]
        one = draw.choice(near)
        return abs(one) if value >= 0 else one
    if isinstance(value, float):
        one = draw.choice([value, round(value + draw.uniform(-3, 3), 2), float(round(value))])
        return abs(one) if value >= 0 else one
    if isinstance(value, str):
        marks = list(value)
        for _ in range(draw.randint(0, 3)):
            at = draw.randint(0, len(marks))
            how = draw.randint(0, 2)
            marks[at:at + (how > 0)] = [draw.choice(letters)] if how < 2 else []
        if draw.random() < 0.2:
            draw.shuffle(marks)
        return "".join(marks)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [varied(one, draw, letters) for one in value]
        how = draw.random()
        if items and how < 0.2:
            items.pop(draw.randrange(len(items)))
        elif items and how < 0.4:
            items.insert(draw.randint(0, len(items)), varied(draw.choice(items), draw, letters))
        elif how < 0.55:
            draw.shuffle(items)
        elif items and how < 0.65:
            items = items + [copy.deepcopy(draw.choice(items))]
        return type(value)(items)
    if isinstance(value, dict):
        kept = [key for key in value if draw.random() < 0.8]
        return {key: varied(value[key], draw, letters) for key in kept}
    return value

def late(*_):
    raise TimeoutError

def outcome(function, given, seconds):
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            return repr(function(*copy.deepcopy(given)))[:10000]
        except BaseException as failure:
            return type(failure)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except TimeoutError:  # it came while another failure was being caught
        return TimeoutError

# Processor time: other processes on the machine change nothing.
signal.signal(signal.SIGVTALRM, late)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
end = time.process_time() + 10
job = json.load(sys.stdin)
spaces = []
for source in job["programs"]:
    space = {"__name__": "x"}
    exec(source, space)
    spaces.append(space)
draw = random.Random(0)
calls = [(name, ast.literal_eval(given)) for name, given in job["calls"]]
letters = sorted({mark for _, given in calls for mark in repr(given)}) or ["a"]
valid = 0
for number in range(job["inputs"]):
    if time.process_time() > end:
        print(json.dumps({"valid": valid, "call": None}))
        break
    name, given = calls[number % len(calls)]
    if number >= len(calls):
        given = [varied(one, draw, letters) for one in given]
    own = outcome(spaces[0][name], given, 0.1)
    if isinstance(own, type) or " at 0x" in own:
        continue
    valid += 1
    # What is a little slower is no other program.
    if outcome(spaces[1][name], given, 2.0) != own:
        print(json.dumps({"valid": valid, "call": f"{name}{tuple(given)!r}"[:300]}))
        break
else:
    print(json.dumps({"valid": valid, "call": None}))
"""


def calls_in(checks: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (function, its arguments as a literal) of the calls that stand in checks."""
    found = []
    for node in ast.walk(ast.parse("\n".join(checks))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            try:
                given = [ast.literal_eval(one) for one in node.args]
            except (ValueError, TypeError):
                continue
            name = names[0] if node.func.id == "candidate" else node.func.id
            if name in names and given:
                found.append((name, repr(given)))
    return found


def told_apart(
    program: str, mutant: str, calls: Sequence[tuple[str, str]], inputs: int = INPUTS
) -> tuple[int, str | None]:
    """Return on how many inputs both were run, and the call whose result tells them apart.

    None where none does; nothing was run where the checks call with no literals.
    """
    if not calls:
        return 0, None
    job = {"programs": [program, mutant], "calls": calls, "inputs": inputs}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CHILD],
        input=json.dumps(job), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"valid"')]
    if done.returncode or not lines:
        return 0, None
    said = json.loads(lines[-1])
    return said["valid"], said["call"]
