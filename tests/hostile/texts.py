"""Texts that would break out of a page: every way to end a context, with every kind of markup."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "--><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' style='color:red",
    "</pre></main><iframe src=//evil>",
    "{{ 7 * 7 }}{% raw %}{# x #}",
    "&lt;b&gt; &amp;amp; &#60;i&#62;",
    "a\0b\x1b[31m\x07\r\n\x85",
    "\u202egpj.exe\u202c \u2066x",
    "lone \ud800 surrogate",
    "]]><![CDATA[ <?xml ?> <!DOCTYPE x>",
    "<meta http-equiv=refresh content=0;url=//evil>",
    "javascript:alert(1)",
    "𝒰𝓃𝒾 日本 עברית",
]
BREAKS = (
    "",
    '"',
    "'",
    ">",
    "-->",
    "]]>",
    "</title>",
    "</style>",
    "</pre>",
    "</svg>",
    "\\",
    "`",
    "{{",
    "%}",
    "&",
)
TAGS = (
    "<script>alert({n})</script>", "<img src=x onerror=alert({n})>", "<svg/onload=alert({n})>",
    "<iframe srcdoc='<script>{n}</script>'>", "<a href=javascript:alert({n})>x</a>",
    "<body onload=alert({n})>", "<link rel=stylesheet href=//evil/{n}>", "<base href=//evil/{n}>",
    "<form action=//evil/{n}><button>", "<style>*{{background:url(//evil/{n})}}</style>",
    "<details open ontoggle=alert({n})>", "<math><mtext></mtext><script>{n}</script></math>",
    "<object data=//evil/{n}>", "<input autofocus onfocus=alert({n})>", "<!-- {n} <b>",
    "<plaintext>{n}", "<noscript><p title='</noscript><img src={n}>'>", "<textarea>{n}",
    "<table><td background=//evil/{n}>", "onmouseover=alert({n}) x=",
)  # fmt: skip
PAYLOADS = [
    before + tag.format(n=n) for n, (before, tag) in enumerate(itertools.product(BREAKS, TAGS))
]


class Reader(HTMLParser):
    """Collects the elements with their attributes' names, and all text outside the style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.attributes: list[str] = []
        self.others: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [value or "" for _, value in attrs]
        self._inside = tag

    def handle_endtag(self, tag):
        self.elements.append(("/" + tag, ()))
        self._inside = ""

    def handle_data(self, data):
        if self._inside != "style":
            self.texts.append(data)

    def handle_comment(self, data):
        self.others.append(data)

    handle_pi = unknown_decl = handle_comment


def as_shown(text: str) -> str:
    """Return what a page shows of a text: control characters as pictures, the rest as it is."""
    shown = text.replace("\r\n", "\n").encode("utf-8", "backslashreplace").decode()
    shown = re.sub("[\0-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), shown)
    return shown.replace("\x85", "\ufffd")
