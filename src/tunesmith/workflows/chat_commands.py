"""The commands of a dialogue in the terminal: ``/help`` and the others."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import DataError, UsageError
from tunesmith.workflows import console
from tunesmith.workflows.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.readers import Row
    from tunesmith.types import Segment
    from tunesmith.workflows.chat_session import Session, Who


@dataclass(frozen=True, slots=True)
class Command:
    """What a word with a slash does."""

    takes: str
    """Its argument, for people; in brackets if it may be left out."""
    summary: str
    act: Callable[[Session, str], bool | None]
    """Returns false to end the dialogue."""


def carry_out(session: Session, text: str) -> bool:
    """Carry out a command; return whether the dialogue goes on. ``UsageError`` for a mistake."""
    word, _, rest = text[1:].partition(" ")
    command, rest = COMMANDS.get(word), rest.strip()
    if command is None:
        close = difflib.get_close_matches(word, COMMANDS, 1)
        near = f"; did you mean /{close[0]}?" if close else "."
        raise UsageError(
            f"There is no command /{word}{near}",
            hint="/help, or // in front of a question that begins with a slash",
        )
    if rest and not command.takes:
        raise UsageError(f"/{word} takes nothing behind it.", hint=f"/{word}")
    if not rest and command.takes and not command.takes.startswith("["):
        raise UsageError(f"/{word} wants {command.takes}.", hint=f"/{word} {command.takes}")
    return command.act(session, rest) is not False


def _help(_session: Session, _rest: str) -> None:
    lines = [(f"/{name} {c.takes}".rstrip(), c.summary) for name, c in COMMANDS.items()]
    width = max(len(first) for first, _ in lines)
    console.say("\n".join(f"  {first:<{width}}  {summary}" for first, summary in lines))


def _reset(session: Session, _rest: str) -> None:
    session.dialogue.reset()
    session.forget_passages()
    console.say("The dialogue begins anew.")


def _undo(session: Session, _rest: str) -> None:
    asked = session.dialogue.undo()
    if asked is None:
        raise UsageError("There is nothing to take back.")
    session.forget_passages()
    asked = asked.rpartition("\n\nQuestion: ")[2] if session.shelf else asked
    console.say(f"Taken back: {one_line(asked, 60)}")


def _retry(session: Session, _rest: str) -> None:
    if session.dialogue.sampling.temperature == 0:
        console.say("At temperature 0 the answer is the same; /temperature 0.7 varies it.")
    session.retry()


def _system(session: Session, rest: str) -> None:
    session.dialogue.system = rest
    console.say("The system message is set." if rest else "There is no system message now.")


def _temperature(session: Session, rest: str) -> None:
    try:
        value = float(rest)
    except ValueError:
        raise UsageError(
            f"{rest!r} is no temperature.",
            expected="a number of at least 0",
            hint="/temperature 0.7",
        ) from None
    session.dialogue.sampling = replace(session.dialogue.sampling, temperature=value)
    console.say(f"Temperature {value:g}{'' if value else ': always the likeliest token'}.")


def _save(session: Session, rest: str) -> None:
    from tunesmith.data.writers import example_fields, write_rows
    from tunesmith.types import Example, Origin, Segment

    path = Path(rest)
    if path.suffix != ".jsonl":
        raise UsageError(f"{rest!r} is no .jsonl file.", hint=f"/save {path.stem or 'chat'}.jsonl")
    if path.exists() and path.resolve() not in session.saved:
        raise UsageError(f"{rest!r} is there already; it is not replaced.", hint="another name")
    kept, empty = _whole_exchanges(session.dialogue.turns)
    if not kept:
        raise UsageError("There is no answer to save yet.")
    system = session.dialogue.system
    head = (Segment("system", system),) if system else ()
    write_rows(path, [example_fields(Example((*head, *kept), Origin("chat")))])
    session.saved.add(path.resolve())
    answers = [turn for turn in kept if turn.role == "assistant"]
    cut = sum(not turn.weight for turn in answers)
    notes = [f"{cut} cut off, with weight 0 so that nothing is trained on it"] if cut else []
    notes += [f"{empty} empty, left out"] if empty else []
    console.say(f"Saved: {rest}, {_answers(len(answers))}" + "".join(f"; {n}" for n in notes) + ".")


def _whole_exchanges(turns: list[Segment]) -> tuple[list[Segment], int]:
    """Return turns without the questions whose answer is empty, which no row may hold."""
    kept: list[Segment] = []
    empty = 0
    for turn in turns:
        if turn.role == "assistant" and not turn.text.strip():
            kept.pop()
            empty += 1
        else:
            kept.append(turn)
    return kept, empty


def _load(session: Session, rest: str) -> None:
    from tunesmith.data.readers import read_rows

    rows = list(read_rows(rest))
    session.dialogue.take(_turns(rows[0]))
    session.forget_passages()
    more = f"; the other {len(rows) - 1} rows are not used" if len(rows) > 1 else ""
    answers = sum(turn.role == "assistant" for turn in session.dialogue.turns)
    console.say(f"Loaded: {rows[0].origin}, {_answers(answers)}{more}.")


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _turns(row: Row) -> Sequence[Segment]:
    """Return the turns of a row; a conversation may also be one that nothing is trained on."""
    from tunesmith.data.chats import RowFault, conversation
    from tunesmith.data.formats import to_examples
    from tunesmith.data.readers import Fault

    if "messages" in row.fields:
        try:
            return conversation(row.fields["messages"], "messages")
        except RowFault as wrong:
            raise Fault(row.origin, wrong.reason, wrong.expected).error() from None
    turns = to_examples([row])[1][0].segments
    if turns[0].role is None:
        raise DataError(f"{row.origin}: plain text is no dialogue.", expected="a row with messages")
    return turns


def _base(session: Session, rest: str) -> None:
    choices: tuple[Who, ...] = ("tuned", "base", "both")
    wanted: Who = "base" if session.who == "tuned" else "tuned"
    if rest:
        found = [one for one in choices if one == rest]
        if not found:
            raise UsageError(f"/base {rest} means nothing.", expected=", ".join(choices))
        wanted = found[0]
    session.switch(wanted)
    said = {
        "tuned": "The tuned model answers.",
        "base": "The base model answers.",
        "both": "Both answer; the dialogue goes on with the tuned model's answers.",
    }
    console.say(said[wanted])


def _tokens(session: Session, _rest: str) -> None:
    dialogue = session.dialogue
    used, all_of_them = dialogue.tokens(), dialogue.voice.positions
    hidden = sum(turn.role == "user" for turn in dialogue.turns[: dialogue.first])
    more = f" Left out so far: {hidden}." if hidden else ""
    console.say(
        f"{used:,} of {all_of_them:,} tokens ({used / all_of_them:.0%}); from {dialogue.room:,} on "
        f"the oldest exchanges are left out.{more}"
    )


def _quit(_session: Session, _rest: str) -> bool:
    return False


COMMANDS = {
    "help": Command("", "this list", _help),
    "reset": Command("", "forget what was said; the system message stays", _reset),
    "undo": Command("", "take the last question and its answer back", _undo),
    "retry": Command("", "answer the last question again", _retry),
    "system": Command("[TEXT]", "set the system message, or remove it", _system),
    "temperature": Command("X", "0 for the likeliest tokens, more for variety", _temperature),
    "save": Command("FILE", "write the dialogue as a row for train --task chat", _save),
    "load": Command("FILE", "go on from the first row of a file", _load),
    "base": Command("[WHO]", "let base, tuned or both answer; alone it switches", _base),
    "tokens": Command("", "how full the context is", _tokens),
    "quit": Command("", "leave, as Ctrl-D does", _quit),
}
