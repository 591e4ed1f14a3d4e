"""Rendering: the report's look and escaping, and a policy that runs no script but our own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from tunesmith.report.page import environment
from tunesmith.report.style import STYLE
from tunesmith.report.template import MACROS

if TYPE_CHECKING:
    import jinja2

ASSETS = Path(__file__).parent.parent / "assets" / "studio"
PARTS = {
    "runs": "runs(found, jobs, parent)",
    "head": "run_head(run, token)",
    "curves": "curves(charts)",
    "samples": "samples(samples)",
    "events": "events(events, log)",
}
"""Parts of pages that are sent again while they change, each a macro."""
_COMMON = "default-src 'none'; base-uri 'none'; "
POLICY = (
    f"{_COMMON}script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; form-action 'self'; frame-src 'self'; "
    "frame-ancestors 'none'"
)
"""Of our pages; charts place their labels by style attributes, which run nothing."""
SIGN_IN_POLICY = (
    f"{_COMMON}style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"
)
"""Of the page that asks for the key: it brings its style along and has no script."""
REPORT_POLICY = (
    f"{_COMMON}style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
"""Of a report, which may be anybody's file: no script, no form, no cookie, no origin."""


def page(name: str, values: Mapping[str, Any], status: int = 200) -> Response:
    """Return a page."""
    return _answer(part(name, values), POLICY, status)


def sign_in_page(values: Mapping[str, Any], status: int) -> Response:
    """Return the page that asks for the key."""
    return _answer(part("sign_in.html", {**values, "style": style()}), SIGN_IN_POLICY, status)


def report_page(html: str) -> Response:
    """Return a report, to be shown in a frame or alone."""
    return _answer(html, REPORT_POLICY, 200)


def part(name: str, values: Mapping[str, Any]) -> str:
    """Return a page or a part of one as HTML."""
    return _environment().get_template(name).render(values)


def style() -> str:
    """Return the stylesheet: the report's, and what only these pages have."""
    return STYLE + _text("studio.css")


def script() -> str:
    """Return the one script."""
    return _text("studio.js")


def _wrapped() -> dict[str, str]:
    head = '{% import "parts.html" as parts %}'
    return {f"part_{name}": f"{head}{{{{ parts.{call} }}}}" for name, call in PARTS.items()}


def _answer(html: str, policy: str, status: int) -> Response:
    headers = {
        "content-security-policy": policy,
        # A form has to say where it comes from, and no other server is to learn of it.
        "referrer-policy": "same-origin",
        "x-frame-options": "SAMEORIGIN" if policy is REPORT_POLICY else "DENY",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
    return HTMLResponse(html, status, headers)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    made = environment(
        jinja2.ChoiceLoader(
            [
                jinja2.DictLoader({"report_macros.html": MACROS, **_wrapped()}),
                jinja2.FunctionLoader(lambda name: _text(name) if name in _PAGES else None),
            ]
        )
    )
    made.filters["trusted"] = Markup  # our own stylesheet alone
    made.filters["ago"] = ago
    made.filters["figure"] = lambda value: "–" if value is None else f"{value:.4g}"
    return made


_PAGES = frozenset(
    f"{name}.html"
    for name in (
        "document", "layout", "parts", "runs", "run", "report_frame", "rows", "start", "job",
        "job_state", "compare", "chat", "problem", "sign_in",
    )
)  # fmt: skip


def ago(when: float) -> str:
    """Return how long ago something was: «just now», «5 min ago», or the day."""
    seconds = time.time() - when
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{datetime.fromtimestamp(when).astimezone():%Y-%m-%d %H:%M}"


@cache
def _text(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
