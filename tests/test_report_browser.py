"""The page as a browser shows it: nothing sticks out, nothing is loaded, text stays text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, find_browser
from hostile.texts import HOSTILE
from test_report import everything
from tunesmith.report.page import render

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")
WIDTHS = (360, 800, 1280)
STICKING_OUT = """
[...document.querySelectorAll('main *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.right > innerWidth + 1 && !one.closest('.scroll') && !one.closest('svg');
}).map(one => one.tagName + '.' + one.className).slice(0, 5)
"""
CLIPPED = """
[...document.querySelectorAll('.legend span, figcaption, td.figure, .headline p')].filter(one =>
  one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflow !== 'visible'
).length
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a usual page, one of texts without a place to break, and one of hostile texts."""
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "usual": "plain words",
        "long": "unbreakable" * 30,
        "hostile": " ".join(HOSTILE),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(render(everything(text)), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["usual", "long", "hostile"])
def test_nothing_sticks_out_of_the_page(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(STICKING_OUT) == []
    assert browser.value(CLIPPED) == 0


def test_a_page_asks_for_nothing_and_hostile_text_makes_no_element(
    browser: Browser, pages: dict[str, Path]
) -> None:
    counts = {}
    for name, page in pages.items():
        browser.open(page, 800)
        assert browser.requested == [page.as_uri()], name
        assert browser.complaints == [], name
        counts[name] = browser.value("document.querySelectorAll('*').length")
        assert (
            browser.value("document.querySelectorAll('script, img, iframe, form, a').length") == 0
        )
    assert counts["hostile"] == counts["usual"]
    assert "<script>alert(1)</script>" in browser.value("document.body.textContent")


def test_dark_and_light_differ_and_print_is_light(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(pages["usual"], 800)
    light = browser.value(ground)
    browser.open(pages["usual"], 800, dark=True)
    assert browser.value(ground) != light
    browser._call("Emulation.setEmulatedMedia", media="print", features=[
        {"name": "prefers-color-scheme", "value": "dark"}
    ])  # fmt: skip
    assert browser.value(ground) == "rgb(255, 255, 255)"
    assert browser.pdf(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
