"""A stranger with a browser: starts a run, watches it, reads the report, compares, talks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from browser import Browser, find_browser
from studios import Pages, listening, make_run, pages_over
from test_report import result
from tunesmith.evaluate.records import save

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
]
POINTS = """Math.max(0, ...[...document.querySelectorAll('polyline')].map(
    one => one.getAttribute('points').split(' ').length))"""
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.right > innerWidth + 1 && !one.closest('.scroll, svg, .skip, details:not([open])');
}).map(one => one.tagName + '.' + one.className).slice(0, 5)
"""
CONTRAST = """
[...document.querySelectorAll('button, .badge, nav a')].map(one => getComputedStyle(one).color)
"""


class Stranger:
    """Fills in, clicks and waits."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, path: str) -> None:
        self.browser.open(self.address + path, 1200)

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            assert self.browser.value(
                f"(one => one && (one.value = {json.dumps(text)}, one.value))"
                f"(document.querySelector('[name={name}], #{name}'))"
            ) == text, name  # fmt: skip

    def click(self, what: str) -> None:
        assert self.browser.value(
            f"(one => one && (one.click(), true))(document.querySelector({json.dumps(what)}))"
        ), what

    def until(self, expression: str, true: Callable[[Any], bool] = bool, seconds: int = 90) -> Any:
        end = time.monotonic() + seconds
        while not true(found := self.browser.value(expression)):
            assert time.monotonic() < end, (expression, found, self.text()[-800:])
            time.sleep(0.1)
        return found

    def text(self) -> str:
        return str(self.browser.value("document.body.innerText"))

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.browser._call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )  # fmt: skip


@pytest.fixture
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM) as made:
        yield made


def start_and_follow(stranger: Stranger, name: str, rate: str) -> list[int]:
    """Start a run from the form; return the numbers of points that its curve has had."""
    stranger.open("/start")
    stranger.fill(
        task="units", max_steps="20", logging_steps="1", eval_steps="5", eval_questions="10",
        run_name=name, learning_rate=rate, forgetting="false", rehearsal="false",
    )  # fmt: skip
    stranger.click("main form button")
    stranger.until("location.pathname", lambda path: path == f"/run/{name}")
    seen: list[int] = []
    end = time.monotonic() + 120
    while stranger.browser.value("!document.querySelector('.badge.finished')"):
        assert time.monotonic() < end, stranger.text()[-800:]
        seen.append(stranger.browser.value(POINTS))
        time.sleep(0.2)
    stranger.until(POINTS, lambda count: count == 20)
    return [*dict.fromkeys(seen), 20]


def test_a_stranger_trains_watches_compares_and_talks(browser: Browser, tmp_path: Path) -> None:
    pages = pages_over(tmp_path / "runs")
    with listening(pages) as address:
        stranger = Stranger(browser, address)
        stranger.open(f"/login?token={pages.logins.token}")
        stranger.until("document.title", lambda title: "Runs" in str(title))
        grown = start_and_follow(stranger, "first", "3e-4")
        assert len(grown) >= 3
        assert grown == sorted(grown)
        assert "step 20" in stranger.text()
        stranger.until("document.querySelector('iframe.report') !== null")
        assert browser.complaints == []
        start_and_follow(stranger, "second", "1e-3")
        assert all(one.startswith((address, "data:")) for one in browser.requested)

        stranger.open("/report/first")
        assert "first" in stranger.text()
        stranger.open("/compare")
        stranger.click("[name=base][value='first/eval/tuned']")
        stranger.click("[name=with][value='second/eval/tuned']")
        stranger.click("main form button")
        stranger.until("document.querySelector('iframe.report') !== null")
        stranger.open(browser.value("document.querySelector('iframe').getAttribute('src')"))
        assert "tuned" in stranger.text()
        assert "Scores" in stranger.text()

        stranger.open("/chat?load=second")
        stranger.click("form[action='/chat/load'] button")
        stranger.until("document.getElementById('ask') !== null")
        stranger.fill(said="How many minutes are 90 seconds?")
        stranger.click("#send")
        said = "[...document.querySelectorAll('#turns pre')].map(one => one.textContent)"
        answers = stranger.until(
            f"document.getElementById('send').disabled ? [] : {said}", lambda found: len(found) == 2
        )
        assert all(answers)
        assert "<answer>" in answers[1]
        stranger.fill(temperature="2", tokens="1000", said="Go on and on.")
        stranger.click("#send")
        stranger.click("#stop")
        assert "(stopped)" in stranger.until(f"{said}.join('')", lambda t: "(stopped)" in t)
        stranger.until("!document.getElementById('send').disabled")
        stranger.fill(tokens="8", temperature="0", said="And now?")
        browser.value("document.getElementById('said').focus()")
        stranger.press("Enter", 13)
        stranger.until(f"{said}.length", lambda count: count == 6)
        stranger.until("!document.getElementById('send').disabled")
        assert browser.complaints == []
        stranger.click("#clear")
        assert browser.value(said) == []
        stranger.click("header form button")
        stranger.until("document.title", lambda title: "Sign in" in str(title))
        stranger.open("/")
        assert "Sign in" in stranger.text()


def many(tmp_path: Path) -> Pages:
    """Return a studio of long names and of every state."""
    parent = tmp_path / "runs"
    make_run(parent, "unbreakable" * 12, finished=True, model="long" * 60).close()
    make_run(parent, "killed").close()
    for which in ("a", "b"):
        name = which + "long" * 30
        save(parent / "killed" / "eval" / name, result(name, [1.0, 0.0], "units"), {})
    return pages_over(parent)


@pytest.mark.parametrize("width", [320, 390, 820, 1440])
def test_nothing_sticks_out_light_and_dark_differ(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    pages = many(tmp_path)
    paths = ["/", "/run/killed", f"/run/{'unbreakable' * 12}", "/rows/killed", "/start", "/compare",
             "/chat", "/nowhere", "/login"]  # fmt: skip
    with listening(pages) as address:
        browser._call(
            "Network.setExtraHTTPHeaders", headers={**pages.bearer, "Accept": "text/html"}
        )
        for path in paths:
            grounds = set()
            for dark in (False, True):
                browser.open(address + path, width, dark=dark)
                browser.value("document.querySelectorAll('details').forEach(one => one.open = 1)")
                assert browser.value("document.documentElement.scrollWidth") <= width, path
                assert browser.value(STICKING_OUT) == [], path
                grounds.add(browser.value("getComputedStyle(document.body).backgroundColor"))
            assert len(grounds) == 2


def test_everything_is_reached_by_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    pages = many(tmp_path)
    with listening(pages) as address:
        browser._call("Network.setExtraHTTPHeaders", headers=pages.bearer)
        stranger = Stranger(browser, address)
        stranger.open("/")
        reached = []
        for _ in range(12):
            stranger.press("Tab", 9)
            reached.append(browser.value("document.activeElement.textContent.trim().slice(0, 30)"))
        for wanted in ("Skip to the content", "Runs", "Start a run", "Chat", "Sign out", "killed"):
            assert wanted in reached, (wanted, reached)
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
