"""``make docs``: the guides as a static site without dead links, and nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("markdown")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_guide_becomes_a_page_that_the_index_names(site: ModuleType, tmp_path: Path) -> None:
    assert site.main([str(tmp_path / "site")]) == 0
    guides = {path.stem for path in (ROOT / "docs").glob("*.md")}
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert set(pages) == guides
    index = re.search(r"<main>(.*)</main>", pages["index"], re.DOTALL)
    assert index
    for name in guides - {"index"}:
        assert f'href="{name}.html"' in index.group(1), name
    for name, page in pages.items():
        assert "<h1" in page, name
        assert ".md" not in " ".join(site.LINK.findall(page)), name
        loaded = re.findall(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="([^"]*)"', page)
        assert loaded == ["style.css"], name
    assert "@import" not in (tmp_path / "site" / "style.css").read_text()
    assert "url(" not in (tmp_path / "site" / "style.css").read_text()


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("nowhere.md", "docs/a.md: there is no page 'nowhere.html'"),
        ("b.md#nothing", "docs/a.md: there is no heading 'b.html#nothing'"),
        ("#nothing", "docs/a.md: there is no heading '#nothing'"),
        ("../README.md", "docs/a.md: there is no page '../README.md'"),
        ("picture.png", "docs/a.md: there is no page 'picture.png'"),
    ],
)
def test_a_dead_link_fails(site: ModuleType, link: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"# A\n\n[there]({link})\n")
    (tmp_path / "b.md").write_text("# B\n\n## A heading, here\n")
    with pytest.raises(site.DeadLinkError, match=re.escape(said)):
        site.build(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_links_to_headings_lists_and_code(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# A\n\nSee [it](b.md#a-heading-here):\n- one\n- two\n\n```\n- no list\n```\n"
    )
    (tmp_path / "b.md").write_text("# B\n\n## A heading, here\n\n[back](a.md)\n")
    site.build(tmp_path, tmp_path / "site")
    page = (tmp_path / "site" / "a.html").read_text()
    assert 'href="b.html#a-heading-here"' in page
    assert page.count("<li>one</li>") == 1
    assert "<code>- no list" in page


def test_a_page_that_is_gone_is_gone_from_the_site(site: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n")
    site.build(tmp_path, tmp_path / "site")
    (tmp_path / "b.md").unlink()
    site.build(tmp_path, tmp_path / "site")
    assert {path.name for path in (tmp_path / "site").glob("*.html")} == {"a.html"}


def test_no_line_ends_within_a_flag(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n`--no-x y` or `a--b`\n\n```\n--in-a-block\n```\n")
    [page] = site.build(tmp_path, tmp_path / "site")
    html = page.read_text()
    assert "<code><span>--no-x</span> y</code> or <code>a--b</code>" in html
    assert "<span>--in-a-block" not in html
