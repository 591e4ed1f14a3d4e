"""Build the guides of docs/*.md into a static site: make docs. A dead internal link fails it.

Nothing is loaded from elsewhere: one style sheet, no script, no font, no picture.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
import markdown
from markdown.extensions.toc import TocExtension

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "docs"
TARGET = ROOT / "build" / "docs"
TITLE = "tunesmith"
LINK = re.compile(r'(?:href|src)="([^"]*)"')
INLINE = re.compile(r"(?<!<pre>)<code>(.*?)</code>", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
ANCHOR = re.compile(r'\bid="([^"]+)"')

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}{% if title != site %} – {{ site }}{% endif %}</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<nav aria-label="Guides">
<ul>
{% for name, entry in pages %}<li><a href="{{ name }}.html"{% if name == own %} aria-current="page"{% endif %}>{{ entry }}</a></li>
{% endfor %}</ul>
</nav>
<main>
{{ body }}
</main>
</body>
</html>
"""
STYLE = """\
:root { color-scheme: light dark; --line: #8884; --shade: #8881; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; display: flex; flex-wrap: wrap; gap: 2rem;
  font: 1rem/1.55 system-ui, sans-serif; }
nav { flex: 0 0 12rem; } nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: 0.3rem 0; } [aria-current] { font-weight: bold; text-decoration: none; }
@media (max-width: 48rem) { nav { flex-basis: 100%; } nav li { display: inline; margin: 0 0.6rem 0 0; } }
main { flex: 1 1 32rem; min-width: 0; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.2rem; }
pre, table { overflow-x: auto; } pre { background: var(--shade); padding: 0.8rem; }
code { font-family: ui-monospace, monospace; font-size: 0.92em; }
code span { white-space: nowrap; }
table { display: block; border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: 0.3rem 0.6rem; text-align: left;
  vertical-align: top; }
"""


class DeadLinkError(Exception):
    """One or more links lead nowhere; the text names each with its page."""


def slug(heading: str, separator: str) -> str:
    """Return the anchor of a heading as code hosts make it, so that one link serves both."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", separator)


def build(source: Path, target: Path) -> list[Path]:
    """Write a page for each guide and return them; ``DeadLinkError`` before anything is written."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(source.glob("*.md"))}
    bodies = {name: _body(text) for name, text in texts.items()}
    if dead := dead_links(bodies):
        raise DeadLinkError("\n".join(dead))
    titles = {name: _title(text, name) for name, text in texts.items()}
    order = sorted(titles, key=lambda name: (name != "index", titles[name].lower()))
    shown = [(name, titles[name]) for name in order]
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.html"):
        old.unlink()
    (target / "style.css").write_text(STYLE, encoding="utf-8")
    made = []
    for name, body in bodies.items():
        page = target / f"{name}.html"
        page.write_text(
            template.render(
                title=titles[name],
                site=TITLE,
                pages=shown,
                own=name,
                body=jinja2.filters.Markup(body),
            ),
            encoding="utf-8",
        )
        made.append(page)
    return made


def _body(text: str) -> str:
    """Return a guide as HTML; links to other guides lead to their pages."""
    extensions = ["tables", "fenced_code", "sane_lists", TocExtension(slugify=slug)]
    html = markdown.markdown(_loosened(text), extensions=extensions, output_format="html")
    # A browser would end a line behind the two dashes of a flag.
    html = INLINE.sub(lambda code: FLAG.sub(r"<span>\g<0></span>", code.group()), html)
    return re.sub(r'href="([\w.-]+)\.md(#[^"]*)?"', r'href="\1.html\2"', html)


def _loosened(text: str) -> str:
    """Put an empty line between a paragraph and its list, which code hosts do without."""
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        starts = re.match(r"(?:[-*]|\d+\.) ", line)
        before = lines[-1] if lines else ""
        inside = re.match(r"(?:[-*]|\d+\.) |\s", before)
        if starts and not fenced and before.strip() and not inside:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _title(text: str, name: str) -> str:
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found.group(1) if found else name


def dead_links(bodies: dict[str, str]) -> list[str]:
    """Return a sentence for every link inside the site that leads to no page, or to no heading."""
    anchors = {name: set(ANCHOR.findall(body)) for name, body in bodies.items()}
    found = []
    for name, body in bodies.items():
        for link in LINK.findall(body):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            page = unquote(parts.path)
            goal = page.removesuffix(".html") if page else name
            if goal not in bodies or (page and not page.endswith(".html")):
                found.append(f"docs/{name}.md: there is no page {link!r}")
            elif parts.fragment and parts.fragment not in anchors[goal]:
                found.append(f"docs/{name}.md: there is no heading {link!r}")
    return found


def main(arguments: list[str]) -> int:
    """Build the site, into another folder where one is named."""
    target = Path(arguments[0]) if arguments else TARGET
    try:
        made = build(SOURCE, target)
    except DeadLinkError as dead:
        print(dead, file=sys.stderr)
        return 1
    print(f"{len(made)} pages: {target / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
