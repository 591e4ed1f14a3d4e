"""Whatever a run holds is shown as it is: no element is added, no letter is lost."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browser import Browser, find_browser
from hostile.texts import HOSTILE, PAYLOADS, Reader, as_shown
from studios import Pages, listening, make_run, pages_over, write_records
from test_report import result
from tunesmith.evaluate.records import save
from tunesmith.storage import write_json

PROGRAM = find_browser()
PLAIN = "plain"
SHARE = 60
"""One payload in so many in the default set, beside the fifteen hostile texts."""


def in_a_name(text: str) -> str:
    """Return a text as a folder may be called."""
    kept = text.encode("utf-8", "ignore").decode().replace("/", "∕").replace("\0", "")
    return kept.strip(". ")[:60] or "x"


def studio_of(parent: Path, text: str) -> tuple[Pages, str]:
    """Return a studio whose every text is ``text``, and the name of its run."""
    writable = text.encode("utf-8", "replace").decode()
    name = "run " + in_a_name(text)
    parent.mkdir(parents=True, exist_ok=True)
    rows = parent.parent / f"rows {in_a_name(text)}.jsonl"
    turn = {"instruction": text, "output": text}
    rows.write_text(f"{json.dumps(turn)}\n{json.dumps({**turn, 'instruction': 'Say it.'})}\n")
    settings = {"dataset": [str(rows)], "task": "instruct", "validation_split": 0.0}
    make_run(parent, "rows", **settings).close()
    with make_run(parent, name, steps=3) as run:
        run.config.write_text(run.config.read_text() + f"# {writable}\n", encoding="utf-8")
        records = [
            {"kind": "train", "step": 1, "loss": 1.0},
            {"kind": "spike", "step": 2, "text": text},
            {"kind": text, "step": 3},
        ]
        write_records(run, records)
        sample = {"origin": text, "prompt": text, "reference": text, "answer": text}
        lines = (json.dumps({**sample, "step": step}) + "\n" for step in range(7))
        run.samples.write_text("".join(lines))
        write_json(run.ended, {"how": "failed", "said": text})
        (run.checkpoints / "checkpoint-step-2").mkdir(parents=True)
    write_json(run.manifest, {"task": text, "model": text, "planned steps": 9})
    run.config.write_text(
        re.sub(r"(?m)^model: .*$", f"model: {json.dumps(text)}", run.config.read_text())
    )
    for which in ("a", "b"):
        save(parent / name / "eval" / which, result(which + text, [1.0, 0.0], text), {})
    job = {"id": "0" * 16, "words": ["tunesmith", text], "pid": 1, "began": 0.0, "code": 1}
    write_json(parent / ".studio" / f"{job['id']}.json", {**job, "folder": name, "ended": 1.0})
    log = parent / ".studio" / f"{job['id']}.log"
    log.write_text(f"\n{text}\n", errors="backslashreplace")
    return pages_over(parent), name


def shown_pages(pages: Pages, name: str, text: str) -> Iterator[tuple[str, str, int]]:
    """Yield each page: its kind, its HTML, and how often at least the text stands in it."""
    quoted = urllib.parse.quote(name)
    yield "runs", pages.get("/"), 1
    yield "run", pages.get(f"/run/{quoted}"), 12
    for kind, html in pages.client.get(f"/live/run/{quoted}").json()["parts"].items():
        yield f"live {kind}", html, {"head": 2, "samples": 7, "events": 3}.get(kind, 0)
    yield "job", pages.get(f"/job/{0:016}"), 1
    if text in (PLAIN, *PAYLOADS):  # what a tokenizer writes back letter by letter
        yield "rows", pages.get("/rows/rows"), 2
    yield "compare", pages.get("/compare"), 4
    form = {"lora_rank": text, "dataset": text, "columns": text, "chat_template": text}
    sent = {key: value.encode("utf-8", "replace").decode() for key, value in form.items()}
    yield "form", pages.post("/start", **sent).text, 0
    yield "start like", pages.get(f"/start?like={quoted}"), 0
    yield "wrong model", pages.post("/chat/load", model=sent["dataset"] or "x").text, 0


def check(parent: Path, text: str, benign: dict[str, Reader]) -> None:
    pages, name = studio_of(parent, text)
    # A number's place in the order of steps is of no interest here.
    for kind, html, least in shown_pages(pages, name, text):
        seen, wanted = Reader(html), benign[kind]
        html.encode()
        assert seen.others == wanted.others, kind
        assert seen.elements == wanted.elements, kind
        whole = "\x00".join(seen.texts)
        assert whole.count(as_shown(text).strip()) >= least, kind
        assert not re.search("[\0\x07\x1b\x85]", html), kind


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    parent = tmp_path_factory.mktemp("plain") / "runs"
    pages, name = studio_of(parent, PLAIN)
    return {kind: Reader(html) for kind, html, _ in shown_pages(pages, name, PLAIN)}


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), SHARE))
def test_a_share_of_hostile_texts_is_shown_as_it_is(
    tmp_path: Path, benign: dict[str, Reader], start: int
) -> None:
    check(tmp_path / "runs", PAYLOADS[start], benign)


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")
def test_a_browser_makes_no_element_of_any_of_them(tmp_path: Path) -> None:
    assert PROGRAM is not None
    assert len(PAYLOADS) >= 300
    counts: dict[str, set[int]] = {}
    with Browser(PROGRAM) as browser:
        for number, text in enumerate([PLAIN, *("\n".join(PAYLOADS[at::10]) for at in range(10))]):
            pages, name = studio_of(tmp_path / str(number) / "runs", text)
            with listening(pages) as address:
                browser._call("Network.setExtraHTTPHeaders", headers=pages.bearer)
                for path in ("/", f"/run/{urllib.parse.quote(name)}", "/rows/rows", "/compare"):
                    browser.open(address + path, 800)
                    browser.value(
                        "document.querySelectorAll('iframe').forEach(one => one.remove())"
                    )
                    found = browser.value("document.querySelectorAll('*').length")
                    if path != "/rows/rows":  # so long a row may be refused
                        counts.setdefault(path[:5], set()).add(found)
                    assert browser.value("document.scripts.length") == 1
                    assert browser.complaints == [], path
                    assert all(one.startswith(address) for one in browser.requested)
                    if path.startswith("/run/"):
                        whole = browser.value("document.body.textContent")
                        assert all(line in whole for line in text.split("\n"))
    assert {path: len(found) for path, found in counts.items()} == dict.fromkeys(counts, 1), counts


@pytest.mark.slow
@pytest.mark.parametrize("text", [*HOSTILE, *PAYLOADS])
def test_every_hostile_text_is_shown_as_it_is(
    tmp_path: Path, benign: dict[str, Reader], text: str
) -> None:
    check(tmp_path / "runs", text, benign)
