"""A dialogue in the terminal: its lines, its commands, its interruptions, what it lets through."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli import main
from tunesmith.config.schema_generate import ChatOptions
from tunesmith.generate.dialogue import Dialogue
from tunesmith.types import Segment
from tunesmith.workflows import chat, console
from tunesmith.workflows.chat_commands import COMMANDS, carry_out
from tunesmith.workflows.chat_session import Session
from tunesmith.workflows.terminal import Answers, one_line, visible

HOSTILE = "\x1b[2J\x1b]0;title\x07 [bold red]x[/bold red] :fire: \x9b1m \r\u202e \x7f"


class Terminal(io.StringIO):
    """Text that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    def run(*lines: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["chat", "--max-new-tokens", "8", *flags])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def opened() -> tuple[Any, Any]:
    from tunesmith.workflows.opening import open_model

    return open_model(ChatOptions())


@pytest.fixture
def session(opened: tuple[Any, Any]) -> Session:
    from tunesmith.generate.dialogue import Voice
    from tunesmith.generate.requests import Sampling

    return Session(ChatOptions(), opened[0], Dialogue(Voice.of(*opened), Sampling(8)), None)


def test_lines_of_a_pipe_are_turns(talk: Any) -> None:
    code, out, _ = talk("What is 3 + 4?", "", "And 5 + 6?", "/quit", "never asked")
    dialogue = Dialogue.open(max_new_tokens=8)
    answers = [dialogue.ask(question).text for question in ("What is 3 + 4?", "And 5 + 6?")]
    assert (code, out) == (0, "".join(f"{answer}\n" for answer in answers))


def test_a_mistake_ends_its_line_and_not_the_dialogue(talk: Any) -> None:
    code, out, err = talk("/rest", "/temperature warm", "/base", "y" * 9000, "What is 3 + 4?")
    assert code == 2
    assert len(out.splitlines()) == 1
    assert "line 1: There is no command /rest; did you mean /reset?" in err
    assert "line 2: 'warm' is no temperature" in err
    assert "line 3: Nothing says what" in err
    assert "line 4: This question is" in err
    assert "Traceback" not in err


def test_every_command_is_in_the_help(session: Session, capsys: Any) -> None:
    assert carry_out(session, "/help")
    text = capsys.readouterr().err
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"/{name}" in text for name in COMMANDS)
    assert carry_out(session, "/quit") is False


def test_settings_change_what_is_answered(session: Session) -> None:
    carry_out(session, "/temperature 0.5")
    carry_out(session, "/system be brief")
    assert session.dialogue.sampling.temperature == 0.5
    assert session.dialogue.system == "be brief"
    carry_out(session, "/system")
    assert session.dialogue.system == ""


def test_a_saved_dialogue_is_trained_on_and_goes_on(
    session: Session, tmp_path: Path, capsys: Any
) -> None:
    from tunesmith.data.formats import to_examples
    from tunesmith.data.readers import read_rows

    path = tmp_path / "chat.jsonl"
    session.dialogue.system = "be brief"
    session.ask("What is 3 + 4?")
    session.dialogue.turns[-1] = Segment("assistant", "7", 1.0)
    session.ask("What is 5 + 6?")
    session.dialogue.turns[-1] = Segment("assistant", "cut", 0.0)
    session.ask("Anything?")
    session.dialogue.turns[-1] = Segment("assistant", " ", 1.0)
    carry_out(session, f"/save {path}")
    assert "2 answers; 1 cut off, with weight 0" in " ".join(capsys.readouterr().err.split())
    layout, [example] = to_examples(read_rows(str(path)))
    assert layout.name == "messages"
    assert [(s.role, s.weight) for s in example.segments] == [
        ("system", 0.0), ("user", 0.0), ("assistant", 1.0), ("user", 0.0), ("assistant", 0.0),
    ]  # fmt: skip
    carry_out(session, f"/save {path}")  # its own file may be written again
    said = session.dialogue.turns[:4]
    carry_out(session, "/reset")
    carry_out(session, f"/load {path}")
    assert session.dialogue.turns == said
    assert session.dialogue.system == "be brief"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/save {here}/other.jsonl", "is there already"),
        ("/save {here}/other.txt", "is no .jsonl file"),
        ("/save {here}/new.jsonl", "no answer to save"),
        ("/load {here}/absent.jsonl", "There is no file"),
        ("/load {here}/other.jsonl", "other.jsonl:1: turn 1 has the role 'x'"),
        ("/load {here}/text.jsonl", "plain text is no dialogue"),
        ("/save", "/save wants FILE"),
        ("/undo", "nothing to take back"),
        ("/retry", "no answer to make again"),
        ("/undo twice", "/undo takes nothing"),
        ("/base maybe", "/base maybe means nothing"),
        ("/temperature -1", "temperature -1.0 is below 0"),
    ],
)
def test_mistakes_of_commands(line: str, said: str, talk: Any, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"messages": [{"role": "x", "content": "y"}]}\n')
    (tmp_path / "text.jsonl").write_text('{"text": "y"}\n')
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    code, out, err = talk(line.format(here=tmp_path))
    assert (code, out) == (2, "")
    assert said in err
    assert before == {path: path.read_text() for path in tmp_path.iterdir()}


def test_a_full_context_is_said(session: Session, capsys: Any) -> None:
    for number in range(6):
        session.ask(f"{number} " + "What is 3 + 4? " * 50)
    err = capsys.readouterr().err
    assert "context (2,048 tokens) was full" in err
    carry_out(session, "/tokens")
    assert "of 2,048 tokens" in capsys.readouterr().err


def test_one_interrupt_ends_the_answer_and_two_everything(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wanted = {"signals": 1}
    write = Answers.piece

    def piece(self: Answers, text: str) -> None:
        write(self, text)
        for _ in range(wanted["signals"]):
            os.kill(os.getpid(), signal.SIGINT)
        wanted["signals"] = 0

    monkeypatch.setattr(Answers, "piece", piece)
    session.dialogue.sampling = type(session.dialogue.sampling)(100)
    before = signal.getsignal(signal.SIGINT)
    with chat._interruptible(session):
        session.ask("What is 3 + 4?")
    assert "(stopped)" in capsys.readouterr().err
    assert session.dialogue.turns[-1].weight == 0.0
    assert signal.getsignal(signal.SIGINT) is before
    wanted["signals"] = 2
    with pytest.raises(KeyboardInterrupt), chat._interruptible(session):
        session.ask("What is 5 + 6?")
    assert signal.getsignal(signal.SIGINT) is before


def test_base_and_tuned_take_turns(session: Session, capsys: Any, monkeypatch: Any) -> None:
    from contextlib import nullcontext

    from tiny_models import tiny_model
    from tunesmith.models.load import LoadedModel
    from tunesmith.workflows import chat_session
    from tunesmith.workflows.voices import Base

    tuned = session.dialogue.voice
    other = LoadedModel(
        tiny_model("llama", vocab=642, max_position_embeddings=2048),
        session.loaded.tokenizer,
        session.loaded.ref,
        session.loaded.device,
        session.loaded.dtype,
    )
    opened = []

    def opening(*_: Any) -> Base:
        opened.append(1)
        return Base(other, tuned.renderer, nullcontext)

    monkeypatch.setattr(chat_session, "open_base", opening)
    carry_out(session, "/base")
    assert session.dialogue.voice is not tuned
    session.ask("What is 3 + 4?")
    carry_out(session, "/base")
    assert session.dialogue.voice is tuned
    carry_out(session, "/base both")
    capsys.readouterr()
    session.ask("What is 3 + 4?")
    out = capsys.readouterr().out
    assert out.startswith("base:\n")
    assert f"tuned:\n{session.dialogue.turns[-1].text}\n" in out
    assert len(session.dialogue.turns) == 4
    assert opened == [1]


def test_documents_are_shown_asked_and_cited(talk: Any, tmp_path: Path) -> None:
    (tmp_path / "mill.txt").write_text("The mill was founded in 1830 by Jutta Gerlach.")
    saved = tmp_path / "saved.jsonl"
    flags = ("--documents", str(tmp_path / "mill.txt"))
    code, out, err = talk("Who founded the mill?", f"/save {saved}", "/undo", flags=flags)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "[1] mill.txt: The mill was founded in 1830" in err
    assert "Taken back: Who founded the mill?" in err
    assert ("Found: «" in err) or ("stand in no passage" in err)
    [row] = map(json.loads, saved.read_text().splitlines())
    asked = row["messages"][0]["content"]
    assert asked.startswith("Use the following documents to answer the question.")
    assert "Document [1]: The mill was founded in 1830 by Jutta Gerlach." in asked
    assert asked.endswith("Question: Who founded the mill?")


def test_control_characters_become_visible() -> None:
    shown = visible(HOSTILE)
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\x7f"}
    assert shown.startswith("␛[2J␛]0;title␇ [bold red]x[/bold red] :fire: \\x9b1m ␍\\u202e ␡")
    assert visible("a\tb\nc é 漢 🔥") == "a\tb\nc é 漢 🔥"
    assert visible("\udcff") == "\\udcff"


def test_answers_are_obeyed_by_no_terminal(monkeypatch: Any) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    out = Answers()
    for letter in HOSTILE:
        out.piece(letter)
    out.end()
    assert terminal.getvalue() == visible(HOSTILE) + "\n"
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    out.beside((("base", HOSTILE), ("tuned", "[b]y[/b]")))
    text = terminal.getvalue()
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "[b]y[/b]" in text
    assert "[bold red]" in text


def test_a_pipe_gets_an_answer_as_it_is(capsys: Any) -> None:
    Answers().whole(HOSTILE)
    assert capsys.readouterr().out == HOSTILE + "\n"


def test_messages_hold_no_control_characters(capsys: Any) -> None:
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.title(HOSTILE)
    console.table(HOSTILE, [HOSTILE], [[HOSTILE]])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\x07" not in err
    assert "\x9b" not in err
    assert ":fire:" in err
    assert err.count("[bold red]x[/bold red]") >= 3


def test_a_long_text_is_one_line() -> None:
    assert one_line("a\n b", 20) == "a b"
    assert one_line("a" * 30, 10) == "a" * 8 + " …"
