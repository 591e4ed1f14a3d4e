"""The pages: who gets in, how a run stands, what is new, what the form takes, what is compared."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hostile.texts import Reader
from studios import FORM, KEY, Pages, make_run, pages_over, write_config, write_records
from test_report import result
from tunesmith.config import flags
from tunesmith.config.load import resolve
from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import Interrupted, TrainingError, UsageError
from tunesmith.evaluate.records import save
from tunesmith.rundir import RunDir
from tunesmith.studio import form, jobs
from tunesmith.studio.runs import Runs, Tail

OPEN = ("/login",)
"""Where one gets in."""


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    make_run(tmp_path, "done", finished=True).close()
    return pages_over(tmp_path)


def routes(pages: Pages) -> list[tuple[str, str]]:
    found = [(r.path, method) for r in pages.app.router.routes for method in r.methods]
    assert len(found) >= 40
    return [(re.sub(r"{\w+(:\w+)?}", "done", path), method) for path, method in found]


def test_every_route_wants_the_key_or_a_cookie(pages: Pages) -> None:
    del pages.client.headers["Authorization"]
    cookies = ({}, {"Cookie": f"{pages.logins.cookie}=wrong"}, {"Cookie": pages.logins.cookie})
    for path, method in routes(pages):
        for headers in cookies:
            reply = pages.client.request(method, path, headers=headers, content=b"")
            assert (reply.status_code == 401) == (path not in OPEN), (path, method, headers)
    assert "Sign in" in pages.get("/", 401)
    assert "Sign in" in pages.get("/login")


def test_the_link_lets_in_once_and_the_key_as_often_as_one_likes(pages: Pages) -> None:
    del pages.client.headers["Authorization"]
    link = f"/login?token={pages.logins.token}"
    cookie = pages.client.get(link).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert pages.logins.cookie.endswith("8000")  # cookies know no ports
    assert "done" in pages.get("/")
    assert KEY not in pages.get("/")
    pages.client.cookies.clear()
    assert pages.client.get(link).status_code == 401
    pages.get("/", 401)
    for key, status in (("wrong", 401), ("", 401), (KEY, 200)):
        assert pages.client.post("/login", content=f"key={key}", headers=FORM).status_code == status
    pages.get("/")
    # A cookie alone is no leave to change anything: the request has to name its origin.
    plain = {"Content-Type": FORM["Content-Type"]}
    assert pages.client.post("/start", content="task=units", headers=plain).status_code == 401
    held = dict(pages.client.cookies)
    assert pages.post("/logout").status_code == 303
    pages.client.cookies.update(held)
    pages.get("/", 401)


def test_a_form_of_another_page_starts_nothing(pages: Pages, monkeypatch: Any) -> None:
    monkeypatch.setattr(jobs.Jobs, "start", lambda *_: pytest.fail("it was started"))
    other = pages_over(pages.parent).logins.form_token({"headers": []})
    for token in ("", "token=&", f"token={other}&"):
        for path in ("/start", "/stop", "/resume", "/chat/load", "/chat/unload", "/logout"):
            body = f"{token}task=units&run=done&model=x"
            reply = pages.client.post(path, content=body, headers=FORM)
            assert reply.status_code == 403, (path, token)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000"):
        reply = pages.client.post("/start", content="", headers={**FORM, "Origin": origin})
        assert reply.status_code == 403
    wrong = {**FORM, "Content-Type": "text/plain"}
    assert pages.client.post("/start", content="task=units", headers=wrong).status_code == 415


def test_no_page_has_a_script_of_its_own_or_loads_from_elsewhere(pages: Pages) -> None:
    for path in ("/", "/run/done", "/rows/done", "/start", "/compare", "/chat", "/login"):
        reply = pages.client.get(path, headers={"Accept": "text/html"})
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        script = re.search("script-src ([^;]*)", policy)
        assert script is None or script[1] == "'self'"
        assert "frame-ancestors 'none'" in policy
        # A browser sends «null» for the origin of a form where no referrer is allowed at all.
        assert reply.headers["referrer-policy"] == "same-origin"
        seen = Reader(reply.text)
        names = {name for _, attributes in seen.elements for name in attributes}
        assert not [name for name in names if name.startswith("on")]
        sources = re.findall(r"""(?:src|href|action)=["']([^"']*)""", reply.text)
        assert all(one.startswith(("/", "#", "data:,", "?")) for one in sources), sources
        assert re.findall("<script[^>]*>", reply.text) in (
            ['<script src="/studio.js" defer>'],
            [],
        )
    script = pages.get("/studio.js")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


def test_runs_stand_as_their_folders_say(tmp_path: Path) -> None:
    running = make_run(tmp_path, "on")
    make_run(tmp_path / "deep" / "er", "done", finished=True).close()
    make_run(tmp_path, "killed").close()
    for name, failure in (("failed", TrainingError("Too <b>hot.")), ("stopped", Interrupted("x"))):
        with pytest.raises(type(failure)), make_run(tmp_path, name):
            raise failure
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("a: file of somebody else\n")
    found = {run.name: run for run in Runs(tmp_path).all()}
    states = {name: run.state for name, run in found.items()}
    assert states == {
        "on": "running", "deep/er/done": "finished", "killed": "killed", "failed": "failed",
        "stopped": "stopped",
    }  # fmt: skip
    assert Runs(tmp_path).one("mine") is None
    assert found["failed"].said == "Too <b>hot."
    assert (found["on"].steps, found["on"].loss, found["on"].held_out) == (4, 0.5, 0.5)
    assert found["deep/er/done"].seconds == 65.0
    assert running.holder() is not None
    running.close()
    assert running.holder() is None
    # Whoever takes it up again removes what was said of its end.
    RunDir.create(tmp_path, "failed", resume=True).close()
    assert {run.name: run.state for run in Runs(tmp_path).all()}["failed"] == "killed"


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "train", "step": n, "loss": 1 / n}) + "\n" for n in range(1, 2000)]
    tail = Tail(file)
    tail.read()
    assert tail.records == []
    for end in (1000, 1001, 1500):
        file.with_suffix(".new").write_text("".join(lines[:end]))
        file.with_suffix(".new").replace(file)  # as training replaces it
        before = tail.bytes_read
        tail.read()
        assert [one["step"] for one in tail.records] == list(range(1, end + 1))
        new = sum(map(len, lines[{1000: 0, 1001: 1000, 1500: 1001}[end] : end]))
        assert tail.bytes_read - before == new
    with file.open("a") as grown:
        grown.write(lines[1500] + lines[1501][:10])  # a line that is being written
    tail.read()
    assert len(tail.records) == 1501
    with file.open("a") as grown:
        grown.write(lines[1501][10:])
    tail.read()
    assert len(tail.records) == 1502
    file.write_text("".join(lines[:3]).replace("train", "other"))  # gone back, or another run
    tail.read()
    assert [(one["kind"], one["step"]) for one in tail.records] == [
        ("other", 1), ("other", 2), ("other", 3),
    ]  # fmt: skip


def test_a_page_gets_the_parts_that_have_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path, "on")
    pages = pages_over(tmp_path)
    mark = re.search('data-mark="([^"]*)"', pages.get("/run/on"))
    assert mark
    seen = {"params": {"mark": mark[1]}}
    assert pages.client.get("/live/run/on", **seen).json()["parts"] == {}
    records = [{"kind": "train", "step": n, "loss": 1.0, "lr": 0.1} for n in range(1, 10)]
    write_records(run, records)
    news = pages.client.get("/live/run/on", **seen).json()
    assert set(news["parts"]) == {"head", "curves", "events"}
    points = re.search('c6" points="([^"]*)"', news["parts"]["curves"])
    assert points
    assert len(points[1].split()) == 9
    seen = {"params": {"mark": news["mark"]}}
    assert pages.client.get("/live/run/on", **seen).json()["parts"] == {}
    for odd in ("x", "a:b:c,", "head", "head:" * 1000):
        assert pages.client.get("/live/run/on", params={"mark": odd}).status_code == 200
    run.close()
    news = pages.client.get("/live/run/on", **seen).json()
    assert "killed" in news["parts"]["head"]


def test_names_lead_nowhere_but_to_runs(pages: Pages, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret.html"
    secret.write_text("the secret")
    (tmp_path / "done" / "report.html").symlink_to(secret)
    for path in ("..", "../..", "done/../done", "/etc", "done/eval", "", "done/", "x\0", "."):
        name = "".join(f"%{ord(letter):02x}" for letter in path)
        for page in ("run", "report", "rows", "live/run"):
            assert pages.client.get(f"/{page}/{name}").status_code in (404, 405), (page, name)
    assert "the secret" not in pages.get("/report/done", 404)
    pages.get("/compared?base=../secret&with=done", 404)
    pages.get("/job/%2e%2e", 404)


def test_a_report_is_shown_without_script_or_origin(pages: Pages) -> None:
    (pages.parent / "done" / "report.html").write_text("<script>steal()</script>")
    reply = pages.client.get("/report/done")
    policy = reply.headers["content-security-policy"]
    assert policy.endswith("; sandbox")
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert re.search(r'<iframe class="report" sandbox title', pages.get("/run/done"))


# The form


def test_the_form_has_every_setting_with_its_help(pages: Pages) -> None:
    page = pages.get("/start")
    named = re.findall(r'<(?:input|select|textarea) id="f-(\w+)"', page)
    assert sorted(named) == sorted({*FineTuningConfig.model_fields, "config"} - {"resume"})
    common, others = form.entries(form.Filled())
    every = [*common, *(one for _, some in others for one in some)]
    for one in every:
        if one.name != "config":
            about = FineTuningConfig.model_fields[one.name].description
            assert one.about == " ".join(str(about).split())
            assert one.default == flags.default(FineTuningConfig, one.name)


WRONG = {
    "lora_rank": "many", "task": "units2", "validation_split": "3", "columns": "prompt",
    "resume": "auto", "max_steps": "5", "minutes": "2", "report_to": "tensorboard\nnobody",
    "config": "no-such-preset",
}  # fmt: skip


def test_faults_stand_beside_their_fields_in_the_command_lines_words(pages: Pages) -> None:
    reply = pages.post("/start", **WRONG)
    assert reply.status_code == 422
    texts = Reader(reply.text).texts
    words = ["--lora-rank=many", "--task=units2", "--validation-split=3", "--columns=prompt",
             "--minutes=2", "--report-to=tensorboard", "--report-to=nobody",
             "--config=no-such-preset"]  # fmt: skip
    parsed = flags.parse(FineTuningConfig, words)
    with pytest.raises(UsageError) as told:
        resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults)
    sentences = told.value.found.split("\n")
    assert len(sentences) >= 5
    for sentence in sentences:
        assert sentence in texts, sentence
        name = re.match("--([a-z-]+)", sentence)
        assert name
        place = f'id="f-{name[1].replace("-", "_")}-fault"'
        after = reply.text.partition(place)[2]
        assert after.index(Reader(after[1:]).texts[0][:5]) < 40
    # What was typed is still there.
    assert 'name="lora_rank" value="many"' in reply.text
    assert "tensorboard\nnobody</textarea>" in reply.text
    both = pages.post("/start", max_steps="5", minutes="2")
    assert "cannot both be given" in both.text


ODD = {
    "dataset": "-rows.jsonl\n--help\na b.jsonl:0.3", "columns": "prompt=--x,completion={a, b}",
    "run_name": "; rm -rf $(x) `y`", "chat_template": "{% if 1 %}\n{{ x }}\n{% endif %}",
    "lora": "true", "packing": "false", "learning_rate": "1e-4", "gradient_checkpointing": "auto",
}  # fmt: skip


def test_what_is_typed_reaches_the_command_line_as_it_is(pages: Pages, monkeypatch: Any) -> None:
    started: list[Any] = []

    class Child:
        pid = 4711

        def __init__(self, words: Any, **settings: Any) -> None:
            started.append((words, settings))

        def poll(self) -> int | None:
            return None

    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    reply = pages.post("/start", **{name: text.replace("\n", "\r\n") for name, text in ODD.items()})
    assert reply.status_code == 303, reply.text
    [(words, settings)] = started
    assert words[:4] == [sys.executable, "-m", "tunesmith", "train"]
    assert not settings.get("shell")
    assert settings["stdin"] == subprocess.DEVNULL
    parsed = flags.parse(FineTuningConfig, words[4:])
    options = resolve(FineTuningConfig, parsed.given, faults=parsed.faults).options
    assert options.dataset == ["-rows.jsonl", "--help", "a b.jsonl:0.3"]
    assert options.columns == {"prompt": "--x", "completion": "{a, b}"}
    assert (options.run_name, options.chat_template) == (ODD["run_name"], ODD["chat_template"])
    assert (options.lora, options.packing, options.learning_rate) == (True, False, 1e-4)
    assert options.output_dir == str(pages.parent)
    again = form.like(options.model_dump(mode="json"))
    parsed = flags.parse(FineTuningConfig, again.arguments())
    same = resolve(FineTuningConfig, parsed.given, faults=parsed.faults).options
    assert same.model_dump(exclude={"output_dir"}) == options.model_dump(exclude={"output_dir"})


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_child_that_fails_says_why_and_the_next_server_knows_it(pages: Pages) -> None:
    reply = pages.post("/start", dataset="no-such-file.jsonl")
    where = reply.headers["location"]
    until(lambda: "exit code" in pages.get(where))
    assert "no-such-file.jsonl" in pages.client.get(f"/live{where}").json()["parts"]["job"]
    assert where in pages.get("/")
    assert "exit code" in pages_over(pages.parent).get(where)
    assert pages.post("/stop", job=where.rpartition("/")[2]).status_code == 409


HOLD = """
import signal, sys, time
from tunesmith.rundir import RunDir
with RunDir.create(sys.argv[1], "held") as run:
    run.write_config({"task": "units"})
    print("held", flush=True)
    signal.sigwait([signal.SIGTERM])
"""


def test_stop_asks_the_process_that_holds_the_run_and_no_other(pages: Pages) -> None:
    signal_mask = [sys.executable, "-c", "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, "
                   "[signal.SIGTERM]); exec(__import__('sys').argv.pop(1))"]  # fmt: skip
    words = [*signal_mask, HOLD, str(pages.parent)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert "Stop" in pages.get("/run/held")
        assert pages.post("/stop", run="held").status_code == 303
        assert child.wait(10) == 0
    until(lambda: pages.post("/stop", run="held").status_code == 409)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as innocent:
        # Its id stands in the file, as it would if the system had given it out again.
        (pages.parent / "held" / ".lock").write_text(f"{innocent.pid}\n")
        assert pages.post("/stop", run="held").status_code == 409
        assert innocent.poll() is None
        innocent.kill()
    assert innocent.returncode == -signal.SIGKILL


def test_resume_goes_on_with_the_very_run(pages: Pages, monkeypatch: Any) -> None:
    asked: list[Any] = []

    def start(self: Any, arguments: Any) -> Any:
        asked.append(arguments)
        raise UsageError("Not today.")

    monkeypatch.setattr(jobs.Jobs, "start", start)
    assert pages.post("/resume", run="done").status_code == 409  # it is finished
    make_run(pages.parent, "half", overwrite=True).close()
    assert pages.post("/resume", run="half").status_code == 409  # without a checkpoint
    (pages.parent / "half" / "checkpoints" / "checkpoint-step-2").mkdir(parents=True)
    assert "Resume" in pages.get("/run/half")
    reply = pages.post("/resume", run="half")
    assert (reply.status_code, "Not today." in reply.text) == (422, True)
    parsed = flags.parse(FineTuningConfig, asked[0])
    options = resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults).options
    assert (options.resume, options.overwrite, options.run_name) == ("auto", False, "half")
    assert Path(options.output_dir) == pages.parent
    write_config(RunDir(pages.parent / "half"), minutes=2.0, max_steps=40)
    pages.post("/resume", run="half")
    parsed = flags.parse(FineTuningConfig, asked[-1])
    options = resolve(FineTuningConfig, parsed.given, parsed.configs, faults=parsed.faults).options
    assert (options.minutes, options.max_steps) == (2.0, None)
    assert "max_steps" not in form.like(RunDir(pages.parent / "half").read_config()).values


# Comparing, rows, talking


def test_stored_sets_are_compared(pages: Pages) -> None:
    for name, scores in (("a", [0.0, 1.0, 0.0, 0.0]), ("b", [1.0, 1.0, 1.0, 0.0])):
        save(pages.parent / "done" / "eval" / name, result(name, scores, "units"), {})
    save(pages.parent / "unfinished", result("c", [1.0]))
    page = pages.get("/compare")
    assert page.count('type="radio"') == 2
    assert "unfinished" not in page
    page = pages.get("/compare?base=done/eval/a&with=done/eval/b&with=done/eval/a")
    source = re.search('<iframe class="report" sandbox title="Comparison" src="([^"]*)"', page)
    assert source
    found = pages.client.get(source[1].replace("&amp;", "&"))
    assert "b against a" in found.text
    assert found.headers["content-security-policy"].endswith("sandbox")
    # The tuned models of two runs are told apart by their runs.
    make_run(pages.parent, "other", finished=True).close()
    save(pages.parent / "other" / "eval" / "b", result("b", [1.0, 0.0, 0.0, 0.0], "units"), {})
    found = pages.client.get("/compared?base=done/eval/b&with=other/eval/b")
    assert "b (other) against b (done)" in found.text
    assert "Only one set" in pages.get("/compare?base=done/eval/a")


def test_rows_show_what_is_trained_on_page_by_page(pages: Pages, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = ({"instruction": f"Say {n} <b>", "output": f"{n} <i>!"} for n in range(50))
    rows.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    make_run(tmp_path, "mine", task="instruct", dataset=[str(rows)], max_length=256).close()
    for page, count in ((1, 20), (3, 5), (4, 0)):
        text = pages.get(f"/rows/mine?page={page}")
        assert text.count("<article") == count
        assert f"Page {page} of 3" in text
    seen = Reader(pages.get("/rows/mine"))
    assert sum(1 for tag, _ in seen.elements if tag == "mark") == 1 + 20
    assert not [tag for tag, _ in seen.elements if tag in ("b", "i")]
    assert any("<i>!" in text and "Say" not in text for text in seen.texts)
    rows.unlink()
    assert "rows.jsonl" in pages.get("/rows/mine")  # a sentence, no failure


def answers_stay_their_own(client: Any, said: Any, origin: Any) -> None:
    """Ask two copies of weights one by one and at the same time; the answers have to be equal."""

    def ask(model: str, words: int) -> str:
        turns = [{"role": "user", "content": "a cat " * words}]
        asked = {**said, "model": model, "messages": turns, "temperature": 0}
        reply = client.post("/v1/chat/completions", json=asked, headers=origin)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])

    asked = [(model, words) for words in range(1, 9) for model in ("tuned", "whole")]
    alone = [ask(*one) for one in asked]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert list(pool.map(lambda one: ask(*one), asked)) == alone


def test_base_and_tuned_are_loaded_together_and_answer_a_page(tmp_path: Path) -> None:
    from served import write_models

    write_models(tmp_path / "models")
    base = str(tmp_path / "models" / "base")
    parent = tmp_path / "runs"
    make_run(parent, "tuned", finished=True, model=base).close()
    (parent / "tuned" / "final_model").symlink_to(tmp_path / "models" / "one")
    whole = make_run(parent, "whole", finished=True, model=base)
    whole.close()
    whole.final_model.symlink_to(base)
    pages = pages_over(parent)
    try:
        assert "No model is loaded" in pages.get("/chat")
        assert pages.post("/chat/load").status_code == 422
        assert "nowhere" in pages.post("/chat/load", model="nowhere").text
        reply = pages.post("/chat/load", run="tuned")
        assert reply.headers["location"] == "/chat?left=base&right=tuned"
        assert list(pages.workers.voices) == ["tuned", "base"]
        assert pages.post("/chat/load", run="tuned").status_code == 303
        assert len(pages.workers.voices) == 2
        assert 'id="model-left"' in pages.get(reply.headers["location"])
        del pages.client.headers["Authorization"]
        pages.client.get(f"/login?token={pages.logins.token}")
        said = {"model": "tuned", "messages": [{"role": "user", "content": "a cat"}],
                "max_tokens": 4, "stream": True}  # fmt: skip
        client = pages.client
        origin = {"Origin": FORM["Origin"]}
        reply = client.post("/v1/chat/completions", json=said, headers=origin)
        assert reply.text.endswith("data: [DONE]\n\n")
        assert client.post("/v1/chat/completions", json=said).status_code == 401
        pages.post("/chat/load", run="whole")
        assert set(pages.workers.voices) > {"tuned", "base", "whole"}
        answers_stay_their_own(client, {**said, "stream": False, "max_tokens": 24}, origin)
        assert pages.post("/chat/unload", model="whole").status_code == 303
        assert "whole" not in pages.workers.voices
        said["model"] = "whole"
        reply = client.post("/v1/chat/completions", json=said, headers=origin)
        assert reply.status_code == 404
    finally:
        pages.workers.stop()


def test_without_a_key_nobody_signs_in_and_forms_still_need_their_page(tmp_path: Path) -> None:
    pages = pages_over(tmp_path, key=None)
    page = pages.get("/")
    assert "Sign out" not in page
    assert "There is no run" in page
    assert pages.client.post("/start", content="task=units", headers=FORM).status_code == 403
    assert pages.post("/start", task="nope").status_code == 422


def test_training_writes_its_metrics_for_whoever_watches_but_not_at_every_step(
    tmp_path: Path,
) -> None:
    from types import SimpleNamespace

    from tunesmith.workflows.metrics import Metrics

    config: Any = SimpleNamespace(logging_steps=1)
    run = RunDir(tmp_path)
    metrics = Metrics(config, run, [], Any, SimpleNamespace(device="cpu", is_main_process=True))
    seen = []
    for step in range(3):
        metrics._record({"kind": "train", "step": step})
        metrics._follow()
        seen.append(len(run.metrics.read_text().splitlines()))
        if step == 1:
            metrics._next = 0.0  # as a second later
    assert seen == [1, 1, 3]
