"""``tunesmith generate`` by address: as with weights of this machine, and none is asked twice."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from fake_openai import FakeServer
from test_remote import LIFE, quick, wait_for
from tunesmith.cli import main

__all__ = ["quick"]


class Terminal(io.StringIO):
    """What was written to a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of stdout; no fixture, since pytest would put its own back."""
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    return made


def command(fake: FakeServer, *more: str) -> list[str]:
    words = ["generate", "--model", "teacher", "--address", fake.address, "--connections", "8"]
    return [*words, *more]


def prompts(count: int) -> list[str]:
    Path("p.txt").write_text("".join(f"question {n}\n" for n in range(count)))
    return ["--prompts", "p.txt", "--output", "o.jsonl"]


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]


def test_a_prompt_is_answered_by_a_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-1")
    with FakeServer() as fake:
        more = ["--system", "Be brief.", "--api-key-env", "TEACHER_KEY", "--max-new-tokens", "9"]
        assert main(command(fake, "Why?", *more)) == 0
        out, err = capsys.readouterr()
        assert out == f"{fake.text}\n"
        assert f"Answers: {fake.address} 1." in err
        [asked] = fake.asked
        assert [turn["content"] for turn in asked.body["messages"]] == ["Be brief.", "Why?"]
        assert asked.body["max_tokens"] == 9
        assert asked.headers["authorization"] == "Bearer sk-1"
        given = {"model": "teacher", "address": [fake.address], "samples": 2}
        assert tunesmith.generate("Why?", **given) == [fake.text] * 2


def test_a_prompt_is_answered_without_torch() -> None:
    check = "from tunesmith.cli import main; import sys; main(sys.argv[1:]); "
    check += "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    with FakeServer() as fake:
        words = [sys.executable, "-c", check, *command(fake, "Why?")]
        done = subprocess.run(words, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{fake.text}\n"), done.stderr


def test_one_answer_grows_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    text = "So 😀 it is."

    def show(fake: FakeServer) -> None:
        wait_for(lambda: terminal.getvalue() == text[: len(text) // 2])
        fake.release.set()

    with FakeServer(lambda *_: "held", text=text) as fake:
        watch = threading.Thread(target=show, args=(fake,))
        watch.start()
        assert main(command(fake, "Why?")) == 0
        watch.join()
    assert terminal.getvalue() == f"{text}\n"


@pytest.mark.parametrize("how", ["break", "cut", "fault in stream"])
def test_an_answer_that_breaks_off_goes_on_where_it_was(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    with FakeServer(lambda _, before: "fine" if before else how) as fake:
        assert main(command(fake, "Why?")) == 0
        assert len(fake.asked) == 2
        assert terminal.getvalue() == f"{fake.text}\n"


def test_an_answer_that_is_another_one_after_a_break_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)

    def behave(_: str, before: int) -> str:
        if before:
            fake.text = "Another."
        return "fine" if before else "break"

    with FakeServer(behave) as fake:
        first = fake.text
        assert main(command(fake, "Why?")) == 0
    assert terminal.getvalue() == f"{first[: len(first) // 2]}\nAnother.\n"


def test_thinking_is_shown_in_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with FakeServer(lambda *_: "thinking", text="So it is.") as fake:
        assert main(command(fake, "Why?")) == 0
    assert terminal.getvalue() == "<think>\nLet me see.\n</think>\n\nSo it is.\n"


def test_rows_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        more = ["--samples", "2", "--temperature", "1", "--logprobs"]
        assert main(command(fake, *prompts(3), *more)) == 0
        assert len(fake.completed) == len(set(fake.completed)) == 6
    assert [row["prompt"] for row in rows()] == [f"question {n}" for n in range(3)]
    for row in rows():
        assert row["answers"] == [fake.text] * 2
        # Servers do not tell their tokens.
        assert row["logprobs"] == [[{"logprob": -0.5}]] * 2
        assert "tokens" not in row
    assert capsys.readouterr().out == ""
    assert not Path("o.jsonl.answers.jsonl").exists()


def test_log_probabilities_that_nobody_tells_are_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FakeServer(lambda *_: "json") as fake:
        assert main(command(fake, "Why?", "--logprobs")) == 0
    said = capsys.readouterr().err
    assert "told no log-probabilities" in said
    assert "Log-probability:" not in said


def test_a_failure_keeps_what_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*prompts(9), "--connections", "1"]
    with FakeServer(lambda q, _: "denied" if q.startswith("question 5") else "fine") as fake:
        assert main(command(fake, *words)) == 5
        assert len(fake.completed) == 5
    assert not Path("o.jsonl").exists()
    log = Path("o.jsonl.answers.jsonl")
    assert log.read_bytes().count(b"\n") == 6
    with FakeServer() as other:
        # Other prompts, or another model, are another file's.
        assert main(command(other, *words, "--system", "x")) == 7
        assert main([*command(other, *words), "--model", "another"]) == 7
        assert "--overwrite" in capsys.readouterr().err
        assert not other.asked
        assert main(command(other, *words)) == 0
        assert sorted(q.partition("#")[0] for q in other.completed) == [
            f"question {n}" for n in (5, 6, 7, 8)
        ]
        assert "5 of 9 answers are stored already" in capsys.readouterr().err
        assert len(rows()) == 9
        assert not log.exists()
        # All is done, so nothing is left to go on with.
        assert main(command(other, *words)) == 2
        assert main(command(other, *words, "--overwrite")) == 0
        assert len(other.completed) == 4 + 9


def test_overwriting_drops_answers_to_something_else() -> None:
    words = [*prompts(3), "--connections", "1"]
    with FakeServer(lambda q, _: "denied" if q.startswith("question 2") else "fine") as fake:
        assert main(command(fake, *words)) == 5
    with FakeServer() as other:
        assert main(command(other, *words, "--system", "x", "--overwrite")) == 0
        assert len(other.completed) == 3


def test_a_failure_without_an_output_says_how_to_keep_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FakeServer(lambda q, _: "denied" if q.startswith("question 1") else "fine") as fake:
        assert main(command(fake, *prompts(3)[:2])) == 5
    said = capsys.readouterr().err
    assert "--output FILE keeps" in said
    assert "the same command" not in said


def test_a_kill_and_a_signal_lose_nothing() -> None:
    words = [*prompts(40), "--connections", "2"]
    with FakeServer(delay=0.03) as fake:
        line = [sys.executable, "-c", LIFE, *command(fake, *words)]
        for number in (signal.SIGKILL, signal.SIGTERM):
            before = len(fake.completed)
            life = subprocess.Popen(line, stderr=subprocess.PIPE)
            wait_for(lambda b=before: len(fake.completed) >= b + 8)
            os.kill(life.pid, number)
            life.communicate()
            assert life.returncode == (130 if number == signal.SIGTERM else -number)
        assert main(command(fake, *words)) == 0
        # At the kill at most two were whole and not yet stored.
        assert 40 <= len(fake.completed) <= 40 + 3
        assert len(rows()) == 40


def test_answers_of_this_machine_go_on_too() -> None:
    words = ["generate", "--model", "tunesmith/tiny", "--max-new-tokens", "6", *prompts(4)]
    assert main(words) == 0
    wanted = rows()
    Path("o.jsonl").unlink()
    from tunesmith.workflows import answering

    append = answering.AnswerLog.append
    count = 0

    def broken(self: Any, answer: Any) -> None:
        nonlocal count
        if (count := count + 1) == 3:
            raise KeyboardInterrupt
        append(self, answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering.AnswerLog, "append", broken)
        assert main(words) == 130
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering.AnswerLog, "append", lambda s, a: (made.append(a), append(s, a)))
        assert main(words) == 0
    assert len(made) == 2
    assert rows() == wanted


def test_documents_are_shown_to_servers() -> None:
    Path("mill.txt").write_text("The mill was founded in 1830 by Jutta Gerlach.")
    with FakeServer(text="It was Jutta Gerlach.") as fake:
        more = ["Who founded the mill?", "--documents", "mill.txt", "--output", "o.jsonl"]
        assert main(command(fake, *more)) == 0
        assert "founded in 1830" in fake.asked[0].body["messages"][-1]["content"]
    assert rows()[0]["passages"][0]["document"] == "mill.txt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare-base"], "--compare-base needs weights that are loaded here"),
        (["--batch-size", "2"], "--batch-size does nothing with --address"),
        (["--chat-template", "plain"], "--chat-template does nothing with --address"),
        (["--backend", "transformers"], "--backend does nothing with --address"),
    ],
)
def test_what_cannot_go_with_an_address_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GONE, *words]) == 2
    assert said in capsys.readouterr().err


GONE = ["generate", "x", "--model", "m", "--address", "http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--connections", "3"], "--connections does nothing without --address"),
        (["--address-retries", "3"], "--address-retries does nothing without --address"),
        (["--backend", "vllm", "--compare-base"], "needs weights that are loaded here"),
    ],
)
def test_settings_of_servers_need_one(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", *words]) == 2
    assert re.search(re.escape(said), capsys.readouterr().err)


def test_transformers_answers_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "the cat", "--model", "tunesmith/tiny", "--max-new-tokens", "6"]
    assert main(words) == 0
    wanted = capsys.readouterr().out
    assert main([*words, "--backend", "transformers"]) == 0
    assert capsys.readouterr().out == wanted
