"""Answers from OpenAI-compatible servers that fail in every way: each question once, none lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from fake_openai import FAULTS, FakeServer, mixed, servers
from tunesmith.cli import main
from tunesmith.errors import ModelError, UsageError
from tunesmith.evaluate.records import load
from tunesmith.generate import remote
from tunesmith.generate.backends import Question
from tunesmith.generate.remote import RemoteBackend, seconds_of
from tunesmith.generate.replies import AFTER_THE_END_S, Answer, BrokenReply
from tunesmith.generate.requests import Completion, Sampling
from tunesmith.generate.servers import ServerSettings, check_address
from tunesmith.types import Segment, StopReason

LIMITS = ("max_tokens", "max_completion_tokens")
SECRET = "sk-very-secret-1234567890"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 0.02)
    for name in ("OPENAI_API_KEY", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def asked(count: int, **sampling: Any) -> list[Question]:
    how = Sampling(**{"max_new_tokens": 8, "temperature": 0.5, **sampling})
    return [Question(n, (Segment("user", f"question {n}"),), how, n) for n in range(count)]


def backend(*fakes: FakeServer, **settings: Any) -> RemoteBackend:
    addresses = tuple(fake.address for fake in fakes)
    given = {"timeout": 30.0, "connections": 8, "first_wait": 0.02, **settings}
    return RemoteBackend(ServerSettings(addresses, "teacher", **given))


def ask(fake: FakeServer, questions: Sequence[Question], **settings: Any) -> list[Completion]:
    return list(backend(fake, **settings).answers(questions))


def command(*fakes: FakeServer, name: str = "a", limit: int = 12, timeout: float = 30) -> list[str]:
    addresses = [word for fake in fakes for word in ("--address", fake.address)]
    return [
        *("eval", "--model", "teacher", *addresses, "--limit", str(limit), "--name", name),
        *("--address-timeout", str(timeout), "--log-level", "info"),
    ]


def wait_for(come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not come():
        assert time.monotonic() < deadline
        time.sleep(0.01)


MIXES = [*((fault,) for fault in FAULTS), FAULTS]


@pytest.mark.parametrize("faults", MIXES, ids="+".join)
def test_each_question_is_stored_once_and_nothing_finished_is_asked_again(
    faults: tuple[str, ...],
) -> None:
    with servers(mixed(faults, 1), mixed(faults, 2)) as fakes:
        # A machine that is busy elsewhere may be silent as well, so only a hang is cut short.
        words = command(*fakes, timeout=0.3 if "hang" in faults else 30)
        assert main(words) == 0
        stored = [a.problem_id for a in load("runs/a").attempts]
        completed = [question for fake in fakes for question in fake.completed]
        assert len(stored) == len(set(stored)) == 12
        assert len(completed) == len(set(completed)) == 12
        assert all(a.text == fakes[0].text for a in load("runs/a").attempts)
        if faults != ("slow",):
            assert sum(len(fake.asked) for fake in fakes) > 12
        # Nothing is missing, so nothing is asked.
        before = [len(fake.asked) for fake in fakes]
        assert main(words) == 0
        assert [len(fake.asked) for fake in fakes] == before


LIFE = "import sys; from tunesmith.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_killed_run_asks_only_for_what_is_missing() -> None:
    with FakeServer(delay=0.05) as fake, FakeServer() as other:
        words = [*command(fake, limit=40), "--connections", "2"]
        life = subprocess.Popen([sys.executable, "-c", LIFE, *words], stderr=subprocess.PIPE)
        wait_for(lambda: len(fake.completed) >= 10)
        life.kill()
        life.communicate()
        assert 10 <= len(fake.completed) < 40
        log = Path("runs/a/attempts.jsonl")
        stored = log.read_bytes().count(b"\n") - 1
        # Two were under way at once; a third may have begun where one was not written down yet.
        assert stored >= len(fake.completed) - 3
        # Another address, the same model: the log goes on.
        assert main(command(other, limit=40)) == 0
        assert len(other.completed) == 40 - stored
        results = load("runs/a")
        assert len(results.attempts) == len({a.problem_id for a in results.attempts}) == 40
        assert results.header.details["servers"] == [fake.address]
        assert main([*command(other, limit=40), "--model", "another"]) == 7


def test_a_signal_ends_it_within_a_second_and_keeps_what_is_whole() -> None:
    def behave(question: str, before: int) -> str:
        return "hang" if int(question.rsplit("#", 1)[1]) % 3 == 0 else "fine"

    with FakeServer(behave) as fake:
        sent: list[float] = []

        def stop() -> None:
            wait_for(lambda: len(fake.completed) >= 5)
            time.sleep(0.1)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop, daemon=True).start()
        code = main(command(fake))
        assert code == 130
        assert time.monotonic() - sent[0] < 1
        assert 0 < len(load("runs/a").attempts) == len(fake.completed) < 12


def test_a_stop_yields_what_is_whole_already() -> None:
    stopping = threading.Event()
    with FakeServer() as fake:
        stream = backend(fake).answers(asked(30), should_stop=stopping.is_set)
        first = next(stream)
        wait_for(lambda: len(fake.completed) == 30)
        time.sleep(0.1)
        stopping.set()
        assert len({first.key, *(done.key for done in stream)}) == 30


def test_leaving_a_stream_drops_its_requests() -> None:
    with FakeServer(lambda q, _: "fine" if q.endswith("#0") else "hang") as fake:
        stream = backend(fake).answers(asked(9))
        next(stream)
        began = time.monotonic()
        stream.close()
        assert time.monotonic() - began < 0.8
        wait_for(lambda: "asking" not in [thread.name for thread in threading.enumerate()])


def test_an_answer_is_handed_over_before_its_stream_ends() -> None:
    with FakeServer(lambda *_: "endless") as fake:
        began = time.monotonic()
        done = next(backend(fake).answers(asked(1)))
        assert done.text == fake.text
        assert time.monotonic() - began < AFTER_THE_END_S / 2


def test_what_is_posted() -> None:
    with FakeServer() as fake:
        [done] = ask(fake, asked(1))
        [one] = fake.asked
        assert one.target == "/v1/chat/completions"
        assert one.body == {
            "model": "teacher",
            "messages": [{"role": "user", "content": "question 0"}],
            "max_tokens": 8,
            "temperature": 0.5,
            "seed": 0,
            "n": 1,
            "stream": True,
        }
        assert "authorization" not in one.headers
        assert (done.tokens, done.logprobs, done.stop) == ((), (), StopReason.STOP_TOKEN)
        more = {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "stop": ("\n",), "logprobs": True}
        [done] = ask(fake, asked(1, **more))
        assert {name: fake.asked[1].body[name] for name in more} == {**more, "stop": ["\n"]}
        assert done.logprobs == (-0.5,)


def test_the_limit_goes_by_the_name_that_a_server_takes() -> None:
    with FakeServer(lambda *_: "renamed") as newer, FakeServer() as older:
        both = backend(newer, older, connections=2, retries=0)
        assert len(list(both.answers(asked(20)))) == 20
        refused = [one for one in newer.asked if "max_tokens" in one.body]
        # What was under way already is all that is refused.
        assert 1 <= len(refused) <= 2
        assert both.again == {"max_completion_tokens": len(refused)}
        assert [one.body["max_completion_tokens"] for one in newer.asked if one not in refused]
        assert not [one for one in newer.asked if len({*LIMITS} & {*one.body}) != 1]
        assert not [one for one in older.asked if "max_completion_tokens" in one.body]
        assert "max_completion_tokens" in both.summary()


@pytest.mark.parametrize(("how", "times"), [("too many", 1), ("both too many", 2)])
def test_a_limit_that_is_too_large_is_a_sentence(how: str, times: int) -> None:
    with FakeServer(lambda *_: how) as fake:
        with pytest.raises(ModelError, match="is too large"):
            ask(fake, asked(1))
        assert len(fake.asked) == times


def test_seeds_fit_every_server() -> None:
    with FakeServer() as fake:
        big = [Question(0, (Segment("user", "x"),), Sampling(8), (1 << 62) + 5)]
        ask(fake, big)
        assert fake.asked[0].body["seed"] == 5


@pytest.mark.parametrize(
    ("how", "stop"), [("long", StopReason.LENGTH), ("filtered", StopReason.FILTERED)]
)
def test_reasons_of_the_end(how: str, stop: StopReason) -> None:
    with FakeServer(lambda *_: how) as fake:
        assert [done.stop for done in ask(fake, asked(1))] == [stop]


def test_an_end_for_an_unknown_reason_is_no_answer() -> None:
    with FakeServer(lambda *_: "odd") as fake, pytest.raises(ModelError, match="ended for 'odd'"):
        ask(fake, asked(1), retries=1)


def test_text_that_looks_like_the_end_of_a_line_survives() -> None:
    text = "one\u2028two\x85three\u0000 \U0001f600 \ud83d end"
    with FakeServer(text=text) as fake:
        [done] = ask(fake, asked(1))
        assert done.text == text.replace("\ud83d", "\N{REPLACEMENT CHARACTER}")


def test_a_refusal_is_a_sentence_without_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    with FakeServer(lambda *_: "denied") as fake:
        assert main([*command(fake), "--api-key-env", "TEACHER_KEY"]) == 5
        assert fake.asked[0].headers["authorization"] == f"Bearer {SECRET}"
        said = capsys.readouterr().err
    assert "status 401, «no [31mkey Bearer … xxx" in said
    assert "--api-key-env" in said
    assert len(said) < 1000
    assert "\x1b" not in said
    kept = [path.read_text() for path in Path().rglob("*") if path.is_file()]
    assert kept
    assert not [text for text in [said, *kept] if SECRET in text]
    assert SECRET not in repr(ServerSettings((), "m", SECRET))


def test_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with FakeServer() as fake:
        assert main(command(fake, limit=1)) == 0
        assert fake.asked[0].headers["authorization"] == f"Bearer {SECRET}"
        assert main([*command(fake, name="b"), "--api-key-env", "NOT_THERE"]) == 2
        assert "NOT_THERE is not set" in capsys.readouterr().err
    words = ["eval", "--model", "m", "--address", "http://10.1.1.1/v1", "--address-retries", "0"]
    assert main([*words, "--api-key-env", "OPENAI_API_KEY"]) == 2
    assert "unencrypted" in capsys.readouterr().err
    settings = ServerSettings(("http://10.1.1.1/v1", "https://far.example/v1"), "m", SECRET)
    assert [one.key for one in RemoteBackend(settings)._servers.all] == ["", SECRET]


def test_redirects_are_not_followed() -> None:
    with (
        FakeServer() as other,
        FakeServer(lambda *_: "moved", text=f"{other.address}/chat/completions") as fake,
    ):
        with pytest.raises(ModelError, match=r"307.*redirects are not followed"):
            ask(fake, asked(1))
        assert not other.asked


def test_proxies_are_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer() as fake, FakeServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address.removesuffix("/v1"))
        assert main(command(fake, limit=1)) == 0
        assert not proxy.asked
        assert main([*command(fake, name="b", limit=1), "--address-proxy"]) == 0
        assert proxy.asked[0].target == f"{fake.address}/chat/completions"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("error", "status 500, «oh»"),
        ("busy", "status 429"),
        ("hang", "nothing came for 0.3 s"),
        ("break", "connection|RemoteProtocolError"),
        ("cut", "an answer that broke off"),
        ("garbage", "what is no JSON"),
        ("fault in stream", "out of memory"),
    ],
)
def test_patience_ends(how: str, said: str) -> None:
    with FakeServer(lambda *_: how) as fake:
        with pytest.raises(ModelError, match=f"2 tries.*({said})"):
            ask(fake, asked(1), retries=1, timeout=0.3 if how == "hang" else 30)
        assert len(fake.asked) == 2


def test_what_is_whole_comes_before_the_failure() -> None:
    with FakeServer(lambda q, _: "denied" if q.endswith("#5") else "fine") as fake:
        stream = backend(fake, connections=1).answers(asked(9))
        assert [next(stream).key for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ModelError, match="401"):
            next(stream)


def test_an_address_that_nobody_answers_is_given_up_early() -> None:
    gone = RemoteBackend(ServerSettings(("http://127.0.0.1:9/v1",), "m", first_wait=0.01))
    with pytest.raises(ModelError, match=r"4 tries.*ConnectError"):
        list(gone.answers(asked(1)))


def test_requests_are_spread() -> None:
    with FakeServer(delay=0.02) as one, FakeServer(delay=0.02) as two:
        both = backend(one, two, connections=4)
        assert len(list(both.answers(asked(20)))) == 20
        assert min(len(one.completed), len(two.completed)) >= 8
        assert re.fullmatch(r"Answers: \S+ \d+, \S+ \d+\.", both.summary())


def test_a_dead_server_does_not_draw_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 60.0)
    with FakeServer() as fake:
        addresses = ("http://127.0.0.1:9/v1", fake.address)
        settings = ServerSettings(addresses, "m", connections=4, first_wait=0.3)
        half_dead = RemoteBackend(settings)
        assert len(list(half_dead.answers(asked(40)))) == 40
        # It has nothing under way, ever.
        assert 0 < half_dead.again["connection"] <= 12


def test_connections_are_limited() -> None:
    with FakeServer(delay=0.02) as fake:
        ask(fake, asked(20), connections=3)
        assert fake.most_at_once == 3


def test_requests_per_minute_are_limited() -> None:
    with FakeServer() as fake:
        began = time.monotonic()
        ask(fake, asked(6), requests_per_minute=60 / 0.05)
        assert fake.asked[-1].time - began >= 5 * 0.05


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured_by_all(date: bool) -> None:
    wanted = formatdate(time.time() + 2, usegmt=True) if date else "0.4"
    busy = lambda q, before: "busy" if q.endswith("#0") and not before else "fine"  # noqa: E731
    with FakeServer(busy, retry_after=wanted) as fake:
        began = time.monotonic()
        ask(fake, asked(4), connections=1)
        # A date has whole seconds.
        assert fake.asked[1].time - began >= (0.9 if date else 0.4)


def test_a_very_long_retry_after_ends_the_run() -> None:
    with (
        FakeServer(lambda *_: "busy", retry_after="86400") as fake,
        pytest.raises(ModelError, match="no request for 86,400 s"),
    ):
        ask(fake, asked(1))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), (" 7 ", 7.0), ("", None), ("soon", None), ("-1", None), ("²", None)],
)
def test_seconds_of_retry_after(value: str, seconds: float | None) -> None:
    assert seconds_of(value) == seconds


def test_a_busy_server_that_answers_others_is_waited_for() -> None:
    def behave(question: str, before: int) -> str:
        return "busy" if question.endswith("#0") and before < 6 else "fine"

    with FakeServer(behave, delay=0.01, retry_after="0") as fake:
        assert len(ask(fake, asked(60), retries=2, connections=2)) == 60


def test_waits_double_and_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LONGEST_WAIT_S", 60.0)
    waits = RemoteBackend(ServerSettings(("http://127.0.0.1:9/v1",), "m"))._wait
    for turn, longest in ((1, 1.0), (2, 2.0), (5, 16.0), (40, 60.0)):
        assert longest / 2 <= waits(3, turn) <= longest
    assert waits(3, 4) == waits(3, 4) != waits(4, 4)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "here",
        "ftp://a/v1",
        "http://",
        "http://a:99999/v1",
        "http://a/v1?key=x",
        "http://a b/v1",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UsageError, match="no plain address"):
        check_address(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        check_address(f"http://me:{SECRET}@host/v1")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--connections", "3"], "--connections does nothing without --address"),
        (["--api-key-env", "A"], "--api-key-env does nothing without --address"),
        (["--address", "http://127.0.0.1:9/v1"], "needs --model"),
        (["--address", "http://127.0.0.1:9/v1", "--dtype", "float32"], "--dtype does nothing"),
        (["--address", "http://127.0.0.1:9/v1", "--backend", "vllm"], "--backend does nothing"),
    ],
)
@pytest.mark.parametrize("verb", [["eval"], ["sample", "--output", "o.jsonl"]])
def test_settings_that_would_do_nothing_are_refused(
    verb: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("how", ["likelihood", "likelihood-normalised"])
def test_options_are_not_scored_by_servers(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        assert main([*command(fake), "--choice-by", how]) == 2
        assert not fake.asked
    said = capsys.readouterr().err
    assert "scores options with local weights; --address only generates" in said


def test_sample_asks_servers_too(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        there = ["--address", fake.address, "--model", "teacher"]
        words = ["sample", *there, "--limit", "3", "--samples", "2", "--output", "o.jsonl"]
        words += ["--system", "Be brief."]
        assert main([*words, "--rounds", "2"]) == 0
        roles = {turn["role"] for turn in fake.asked[0].body["messages"]}
        assert "system" in roles
        said = capsys.readouterr().err
        assert f"Answers: {fake.address} " in said
        assert "tokens/s" not in said
        assert main([*words, "--max-path-tokens", "9"]) == 2
        assert main([*words, "--prefer", "short"]) == 2
    assert len(load("o.jsonl.attempts.jsonl").attempts) == 12


def test_a_server_answers_without_loading_torch() -> None:
    with FakeServer() as fake:
        code = (
            "import sys; from tunesmith.cli import main; code = main(sys.argv[1:]); "
            "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr); "
            "sys.exit(code or bool({'torch', 'transformers'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *command(fake, limit=2)], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr


RECIPE = """
name: small
stages:
  - sample: {name: paths, task: units, limit: 3, samples: 2, model: teacher, address: ADDRESS}
"""


def test_a_recipe_asks_a_server_once() -> None:
    from tunesmith.workflows.recipe import run

    with FakeServer() as one, FakeServer() as two:
        Path("small.yaml").write_text(RECIPE.replace("ADDRESS", f"[{one.address!r}]"))
        assert [record.ran for record in run("small.yaml", output_dir="runs")] == [True]
        # Another address is no other stage.
        Path("small.yaml").write_text(RECIPE.replace("ADDRESS", f"[{two.address!r}]"))
        assert [record.ran for record in run("small.yaml", output_dir="runs")] == [False]
        assert not two.asked


@pytest.mark.parametrize("value", ["-Infinity", "NaN", "null", '"0"'])
def test_a_log_probability_that_cannot_be_stored_breaks_a_reply(value: str) -> None:
    found = {"content": [{"logprob": json.loads(value)}]}
    said = {"choices": [{"delta": {}, "logprobs": found}]}
    with pytest.raises(BrokenReply, match="log-probability"):
        Answer().add(said, "delta")
