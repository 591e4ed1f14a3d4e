"""Public Socratic data as rows: sub-questions of worked solutions, and tutoring dialogues."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers import Row
from tunesmith.data.socratic import parse_list
from tunesmith.errors import DataError

STEP = "**"
FINAL = "####"
TURN = "|EOM|"
_CALCULATION = re.compile(r"<<[^<>]*>>")
_SPOKEN = re.compile(r"\s*(?P<speaker>[^:|\n]{1,40}):\s*(?P<text>.*)", re.DOTALL)
_MOVE = re.compile(r"\(\s*(?P<move>[a-z][a-z _-]*)\s*\)\s*")
_TEACHER = "teacher"


def gsm8k_row(row: Row) -> dict[str, Any]:
    """Return a worked solution in GSM8K's Socratic form as instruction and list of questions.

    The answer has lines ``question ** step`` and ends in ``#### final``; steps lose their
    calculator marks (``<<2*3=6>>``) and are kept beside the questions.
    """
    instruction, answer = _text(row, "question"), _text(row, "answer")
    questions, steps, final = [], [], None
    for line in answer.strip().split("\n"):
        # A step may hold two stars of its own (a power), so only the first ones divide.
        question, divided, step = line.partition(STEP)
        if line.startswith(FINAL):
            final = line.removeprefix(FINAL).strip()
        elif divided and question.strip():
            questions.append(question.strip())
            steps.append(_CALCULATION.sub("", step).strip())
        elif line.strip():
            raise DataError(
                f"{row.origin}: the line {line[:60]!r} of the answer is no «question ** step».",
                expected="lines «question ** step» and at the end «#### 72»",
                hint="--form list for rows of instruction and output",
            )
    if final is None or not questions:
        missing = f"«{FINAL} …» at its end" if questions else f"line «question {STEP} step»"
        raise DataError(f"{row.origin}: the answer has no {missing}.")
    return {"instruction": instruction, "output": questions, "answer": final, "steps": steps}


def list_row(row: Row) -> dict[str, Any]:
    """Return a row of instruction and output with its output as a list of questions."""
    instruction, output = _text(row, "instruction"), row.fields.get("output")
    if isinstance(output, str):
        questions = parse_list(output)
    elif isinstance(output, list) and all(isinstance(item, str) for item in output):
        questions = [" ".join(item.split()) for item in output if item.strip()]
    else:
        kind = "missing" if output is None else "no text and no list of texts"
        raise DataError(
            f"{row.origin}: the field 'output' is {kind}.",
            expected='a list of questions, or one text such as "1. Why …?"',
        )
    return {**row.fields, "instruction": instruction, "output": questions}


def mathdial_row(row: Row) -> dict[str, Any]:
    """Return a tutoring dialogue as a conversation in which the teacher is the assistant.

    Turns are joined by ``|EOM|`` and begin with the speaker's name; the teacher's begin with a
    move in brackets. The conversation opens with the problem and the student's own solution;
    turns of the same speaker in a row become one; turns without text and what follows the
    teacher's last turn are left out. ``meta`` keeps the moves of each assistant turn.
    """
    question, spoken = _text(row, "question"), _text(row, "conversation")
    attempt = row.fields.get("student_incorrect_solution")
    opening = question.strip()
    if isinstance(attempt, str) and attempt.strip():
        opening += f"\n\nMy solution:\n{attempt.strip()}"
    messages = [{"role": "user", "content": opening}]
    moves: list[list[str]] = []
    names, wordless = _students(row.fields), 0
    for number, turn in enumerate(spoken.split(TURN), 1):
        match = _SPOKEN.fullmatch(turn)
        speaker = match["speaker"].strip().casefold() if match else ""
        if match is None or (speaker != _TEACHER and speaker not in names):
            raise DataError(
                f"{row.origin}: turn {number} does not say who speaks: {turn.strip()[:40]!r}.",
                expected="Teacher: …, Student: …, or the student's name",
            )
        text, move = match["text"].strip(), None
        if speaker == _TEACHER:
            said = _MOVE.match(text)
            move, text = (said["move"].strip(), text[said.end() :]) if said else (None, text)
        if not text:
            wordless += 1
        else:
            _append(messages, moves, "assistant" if speaker == _TEACHER else "user", text, move)
    unanswered = messages[-1]["role"] == "user"
    if unanswered:
        messages.pop()
    if len(messages) < 2:
        raise DataError(f"{row.origin}: the teacher says nothing.")
    meta: dict[str, Any] = {"moves": moves, "unanswered_end": unanswered}
    meta["turns_without_text"] = wordless
    meta |= {k: row.fields[k] for k in ("qid", "ground_truth") if k in row.fields}
    return {"messages": messages, "meta": meta}


def _append(
    messages: list[dict[str, str]], moves: list[list[str]], role: str, text: str, move: str | None
) -> None:
    if messages[-1]["role"] == role:
        messages[-1]["content"] += f"\n{text}"
    else:
        messages.append({"role": role, "content": text})
        if role == "assistant":
            moves.append([])
    if role == "assistant" and move is not None:
        moves[-1].append(move)


def _students(fields: Mapping[str, Any]) -> frozenset[str]:
    """Return what the student may be called: the first word of the profile is the name."""
    profile = fields.get("student_profile")
    name = profile.split()[:1] if isinstance(profile, str) else []
    return frozenset({"student", *(word.strip(",.'").casefold() for word in name)})


def _text(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if isinstance(value, str) and value.strip():
        return value
    kind = (
        "missing" if value is None else "empty" if isinstance(value, str) else type(value).__name__
    )
    raise DataError(
        f"{row.origin}: the field {field!r} is {kind}.",
        expected=f"text (the fields are {', '.join(row.fields)})",
        hint="--form gsm8k, mathdial or list, whichever fits the file",
    )
