"""The page's style: one set of colours for light and one for dark, the rest written in them."""

# Rules keep lines of their own length:
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#fbfaf7",
    "card": "#ffffff",
    "wash": "#f2f0ea",
    "ink": "#1f2328",
    "soft": "#5a616b",
    "rule": "#e3e0d8",
    "accent": "#14609e",
    "good": "#17703f",
    "bad": "#a8321f",
    "c0": "#a4510a",
    "c1": "#14609e",
    "c2": "#5c4fc4",
    "c3": "#a02c6e",
    "c4": "#5a6a12",
    "c5": "#0f6b63",
    "c6": "#6a707a",
}
DARK: Mapping[str, str] = {
    "paper": "#15171a",
    "card": "#1c1f23",
    "wash": "#23272c",
    "ink": "#e8e6e1",
    "soft": "#a5abb3",
    "rule": "#363b41",
    "accent": "#6cb4f0",
    "good": "#5fce93",
    "bad": "#f3958a",
    "c0": "#f0a25e",
    "c1": "#6cb4f0",
    "c2": "#a8a3ff",
    "c3": "#f07fc0",
    "c4": "#c3d163",
    "c5": "#55c2b5",
    "c6": "#9aa1aa",
}
"""c0 is the base and c1 the tuned model wherever they are drawn: orange and blue, which people who
do not see red from green tell apart; c6 is what stands behind them."""
TEXTS = ("ink", "soft", "accent", "good", "bad", "c0", "c1", "c2", "c3", "c4", "c5")
"""Colours that text is written in."""
GROUNDS = ("paper", "card", "wash")
"""Colours that text is written on."""


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


_SERIES = [name for name in LIGHT if name[0] == "c" and name[1:].isdigit()]
_CLASSES = "\n".join(
    f".{name} {{ stroke: var(--{name}); }} .b{name[1:]} {{ background: var(--{name}); }} "
    f".f{name[1:]} {{ fill: var(--{name}); }}"
    for name in _SERIES
)

_RULES = """* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 400 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
bdi, td, th, li, p, pre, dd, dt, h1, figcaption, caption, summary { unicode-bidi: isolate; }
body { overflow-wrap: anywhere; }
h1, h2 { font-family: Charter, "Iowan Old Style", "Source Serif 4", Georgia, serif; line-height: 1.2; }
h1 { font-size: clamp(1.9rem, 1.2rem + 2.6vw, 2.9rem); margin: 0 0 .35rem; letter-spacing: -.015em; }
h2 { font-size: 1.4rem; margin: 3.2rem 0 .9rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
.kicker {
  margin: 0 0 .7rem; color: var(--accent); font-weight: 600; font-size: .8rem;
  letter-spacing: .09em; text-transform: uppercase;
}
.soft { color: var(--soft); }
.small { font-size: .875rem; }
.headline {
  margin: 1.6rem 0 0; padding: 1.1rem 1.3rem; background: var(--card);
  border: 1px solid var(--rule); border-left: 4px solid var(--accent); border-radius: .4rem;
}
.headline p { margin: 0; max-width: none; font-size: 1.125rem; line-height: 1.5; }
.headline p + p { margin-top: .6rem; font-size: 1rem; color: var(--soft); }
.notes { border-left-color: var(--bad); }
.status { border-left-color: var(--c1); }
.notes p { font-size: 1rem; }
ol.stages { list-style: none; margin: 0; padding: 0; counter-reset: stage; }
ol.stages li {
  counter-increment: stage; display: grid; grid-template-columns: 2rem 6.5rem 1fr auto;
  gap: .2rem .8rem; padding: .55rem 0; border-bottom: 1px solid var(--rule); align-items: baseline;
}
ol.stages li::before { content: counter(stage); color: var(--soft); text-align: right; }
.verb { font-weight: 600; color: var(--accent); }
.scroll { overflow-x: auto; }
.scroll + p, .sentences + p, .sentences + .scroll { margin-top: .8rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .6rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: middle; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); vertical-align: bottom; }
.scores td[data-name], .scores thead th:nth-child(n+3) { overflow-wrap: break-word; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { color: var(--ink); font-size: 1rem; vertical-align: middle; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .3rem; }
th:last-child, td:last-child { padding-right: 0; }
tbody th { font-weight: 600; min-width: 9rem; overflow-wrap: anywhere; }
td .small, th .small { display: block; font-weight: 400; }
td.figure { font-weight: 600; white-space: nowrap; }
td.nowrap { white-space: nowrap; }
td.bar { width: 28%; min-width: 10rem; }
td.bar svg, .scale { display: block; width: 100%; }
td.bar svg { height: 1.6rem; overflow: visible; }
.scale { display: flex; justify-content: space-between; font-weight: 400; }
svg line, svg polyline { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--rule); stroke-width: 1; }
.zero { stroke: var(--soft); stroke-width: 1; }
.reach { stroke: var(--ink); stroke-width: 3; stroke-linecap: round; opacity: .45; }
.dot { stroke: var(--ink); stroke-width: 11; stroke-linecap: round; }
.area { stroke: none; opacity: .18; }
.line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.up { color: var(--good); } .down { color: var(--bad); }
.sentences { margin: 1rem 0 0; padding: 0 0 0 1.1rem; }
.sentences li { margin-bottom: .35rem; max-width: 50rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .35rem; }
.plot { display: grid; grid-template-columns: 3.6rem 1fr; }
.plot svg { width: 100%; height: 12rem; display: block; overflow: visible; }
.axis { position: relative; font-size: .75rem; color: var(--soft); }
.axis span { position: absolute; white-space: nowrap; }
figure, .counts > *, .sides > * { min-width: 0; }
.y span { right: .6rem; transform: translateY(-50%); }
.x { grid-column: 2; height: 1.5rem; margin-top: .3rem; }
.x span { transform: translateX(-50%); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; margin: .1rem 0 0 3.6rem; }
.key { display: inline-block; width: .75rem; height: .2rem; border-radius: 1px; margin-right: .4rem; vertical-align: middle; }
.example { background: var(--card); border: 1px solid var(--rule); border-radius: .4rem; padding: 1rem 1.1rem; margin: 0 0 1rem; }
.example > summary { margin: 0; font-weight: 600; }
.example { margin-bottom: .6rem; }
.example[open] > summary { margin-bottom: .7rem; color: var(--ink); }
.same { display: none; }
.heard { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; white-space: nowrap; }
.side { margin: 0 0 .3rem; font-size: .85rem; font-weight: 600; }
.t0 { color: var(--c0); } .t1 { color: var(--c1); }
table.plain { font-size: .92rem; margin-bottom: 1rem; }
table.plain td { white-space: nowrap; }
table.plain thead th { overflow-wrap: break-word; }
table.plain td.text, table.plain th.text { text-align: left; }
table.plain td.text { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
table.plain tbody th { font-size: inherit; min-width: 11rem; }
table.pair-list { max-width: 36rem; }
th .key, .legend .key { height: .55rem; }
.headline p.verdict { font-weight: 700; margin-bottom: .2rem; font-size: 1.35rem; }
.headline p.verdict + p { font-size: 1.125rem; color: var(--ink); margin: 0; }
.question { font-weight: 600; white-space: pre-wrap; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .9rem; }
.sides h4 { margin: 0 0 .3rem; font-size: .85rem; }
pre {
  margin: 0; padding: .7rem .8rem; background: var(--wash); border-radius: .3rem;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto;
}
summary { cursor: pointer; color: var(--accent); margin: .4rem 0 1rem; overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: .2rem; }
.counts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1.2rem 2.5rem; }
.counts { align-items: start; margin-top: 1rem; }
.counts td, .counts th { padding: .35rem 0; }
.counts tbody th, .rows tbody th { font-weight: 400; font-size: inherit; }
.counts caption { color: var(--ink); font-size: 1rem; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: .35rem 1rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .82rem; }
dl.answers { grid-template-columns: 6rem 1fr; margin: .2rem 0 .5rem; }
dl.answers dd, .kept { white-space: pre-wrap; }
table.rows { margin-bottom: 1rem; }
table.rows td, table.rows th { padding: .35rem .6rem .35rem 0; overflow-wrap: anywhere; }
table.rows td:last-child { white-space: nowrap; }
.after { margin-top: 1rem; } .after + .scroll { margin-top: 1.8rem; }
.example summary { margin: .2rem 0; }
.commands p { margin: .9rem 0 .3rem; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--soft); font-size: .85rem; }
@media (max-width: 56rem) {
  th, td { padding: .6rem .35rem; }
  td.bar { width: 16%; min-width: 6rem; }
}
@media (max-width: 40rem) {
  main { padding-top: 1.8rem; }
  ol.stages li { grid-template-columns: 1.4rem 1fr auto; }
  ol.stages .what { grid-column: 2 / -1; }
  ol.stages li .what:empty { display: none; }
  .time { grid-row: 1; grid-column: 3; }
  table.scores, table.scores tbody, table.pairs, table.pairs tbody { display: block; }
  table.scores caption, table.pairs caption { display: block; }
  table.scores thead, table.pairs thead { display: none; }
  table.scores tr, table.pairs tr {
    display: grid; grid-template-columns: 1fr auto; gap: .1rem 1rem;
    padding: .9rem 0; border-bottom: 1px solid var(--rule);
  }
  table.scores :is(td, th), table.pairs :is(td, th) { border: 0; padding: 0; }
  table.scores tbody th, table.pairs tbody th { grid-column: 1; text-align: left; }
  table.scores td.figure, table.pairs td.figure { grid-column: 2; grid-row: 1; }
  table.scores td.bar, table.pairs td.bar { grid-column: 1 / -1; width: auto; padding: .3rem .4rem; }
  table.scores td[data-name], table.pairs td[data-name] { grid-column: 1 / -1; text-align: left; font-size: .875rem; color: var(--soft); }
  td[data-name]::before { content: attr(data-name) ": "; }
  table.plain tbody th { min-width: 6.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
"""

_PRINT = """
  main { max-width: none; padding: 0; }
  pre { max-height: none; overflow: visible; }
  h2, h3 { break-after: avoid; }
  figure, .example, tr, .headline { break-inside: avoid; }
  body { font-size: 10.5pt; }
  .scroll { overflow: visible; }
  .figures, .commands, .next { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { color: inherit; list-style: none; }
"""

STYLE = (
    f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
    f"{_RULES}{_CLASSES}\n"
    "@media print {\n  :root { color-scheme: light; "
    f"{_variables({**LIGHT, 'paper': '#fff', 'card': '#fff'})} }}{_PRINT}}}\n"
)
