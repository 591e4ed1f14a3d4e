"""The page's template and style; every ``{{ … }}`` is escaped, no script is needed."""

# Markup and style keep lines of their own length:
# ruff: noqa: E501

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1f2328; --soft: #5c636e; --rule: #e3e0d8;
  --accent: #0f6b63; --good: #1a7f4b; --bad: #b3382c; --wash: #f2f0ea;
  --c0: #0f6b63; --c1: #c8641b; --c2: #5b5bd6; --c3: #b0307a; --c4: #6f7d1c; --c5: #2d6fb0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1c1f23; --ink: #e8e6e1; --soft: #a2a8b0; --rule: #33373d;
    --accent: #55c2b5; --good: #5fce93; --bad: #f08a7d; --wash: #23272c;
    --c0: #55c2b5; --c1: #f0a25e; --c2: #9d9dff; --c3: #f07fc0; --c4: #c3d163; --c5: #7db8f0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 400 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
bdi, td, th, li, p, pre, dd, dt, h1, figcaption { unicode-bidi: isolate; overflow-wrap: break-word; }
p, li, dd, pre { overflow-wrap: anywhere; }
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
.scroll + p, .sentences + p { margin-top: .8rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .6rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: middle; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td:first-child { font-weight: 600; min-width: 10rem; overflow-wrap: anywhere; }
td .small { display: block; font-weight: 400; }
td.figure { font-weight: 600; white-space: nowrap; }
td.nowrap { white-space: nowrap; }
td.bar { width: 28%; min-width: 10rem; }
td.bar svg, .scale { display: block; width: 100%; }
td.bar svg { height: 1.6rem; overflow: visible; }
.scale { display: flex; justify-content: space-between; font-weight: 400; }
svg line, svg polyline { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--rule); stroke-width: 1; }
.zero { stroke: var(--soft); stroke-width: 1; }
.reach { stroke: var(--accent); stroke-width: 4; stroke-linecap: round; opacity: .4; }
.dot { stroke: var(--accent); stroke-width: 11; stroke-linecap: round; }
.line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.b0 { background: var(--c0); } .b1 { background: var(--c1); } .b2 { background: var(--c2); }
.b3 { background: var(--c3); } .b4 { background: var(--c4); } .b5 { background: var(--c5); }
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
.y span { right: .6rem; transform: translateY(-50%); }
.x { grid-column: 2; height: 1.5rem; margin-top: .3rem; }
.x span { transform: translateX(-50%); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; margin: .1rem 0 0 3.6rem; }
.key { display: inline-block; width: .75rem; height: .2rem; border-radius: 1px; margin-right: .4rem; vertical-align: middle; }
.example { background: var(--card); border: 1px solid var(--rule); border-radius: .4rem; padding: 1rem 1.1rem; margin: 0 0 1rem; }
.question { font-weight: 600; white-space: pre-wrap; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .9rem; }
.sides h4 { margin: 0 0 .3rem; font-size: .85rem; }
pre {
  margin: 0; padding: .7rem .8rem; background: var(--wash); border-radius: .3rem;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto;
}
summary { cursor: pointer; color: var(--accent); margin: .4rem 0 1rem; }
.counts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1.2rem 2.5rem; }
.counts h3 { margin-top: 0; }
.counts td { padding: .35rem 0; font-weight: 400; }
dl { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: .35rem 1rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .82rem; }
dl.answers { grid-template-columns: 6rem 1fr; margin: .2rem 0 .5rem; }
dl.answers dd, .kept { white-space: pre-wrap; }
table.rows { margin-bottom: 1rem; }
table.rows td { padding: .35rem 0; font-weight: 400; overflow-wrap: anywhere; }
table.rows td:last-child { white-space: nowrap; }
.after { margin-top: 1rem; }
.example summary { margin: .2rem 0; }
.commands p { margin: .9rem 0 .3rem; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) {
  main { padding-top: 1.8rem; }
  ol.stages li { grid-template-columns: 1.4rem 1fr auto; }
  ol.stages .what { grid-column: 2 / -1; }
  ol.stages li .what:empty { display: none; }
  .time { grid-row: 1; grid-column: 3; }
  table.scores, table.scores tbody, table.pairs, table.pairs tbody { display: block; }
  table.scores thead, table.pairs thead { display: none; }
  table.scores tr, table.pairs tr {
    display: grid; grid-template-columns: 1fr auto; gap: .1rem 1rem;
    padding: .9rem 0; border-bottom: 1px solid var(--rule);
  }
  table.scores td, table.pairs td { border: 0; padding: 0; }
  table.scores td:first-child, table.pairs td:first-child { grid-column: 1; text-align: left; }
  table.scores td.figure, table.pairs td.figure { grid-column: 2; grid-row: 1; }
  table.scores td.bar, table.pairs td.bar { grid-column: 1 / -1; width: auto; padding: .3rem .4rem; }
  table.scores td[data-name], table.pairs td[data-name] { grid-column: 1 / -1; text-align: left; font-size: .875rem; color: var(--soft); }
  td[data-name]::before { content: attr(data-name) ": "; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print {
  :root {
    --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #ccc; --wash: #f4f4f4;
    --accent: #0f6b63; --good: #1a7f4b; --bad: #b3382c;
  }
  main { max-width: none; padding: 0; }
  pre { max-height: none; overflow: visible; }
  h2, h3 { break-after: avoid; }
  figure, .example, tr, .headline { break-inside: avoid; }
  body { font-size: 10.5pt; }
}
"""

_MACROS = """
{% macro example_list(examples) %}
  {% for example in examples %}
  <article class="example">
    <p class="question" dir="auto">{{ example.question }}</p>
    <p class="soft small">Gold answer: <bdi>{{ example.reference }}</bdi></p>
    <div class="sides">
      <div><h4 class="soft"><bdi>{{ example.before_name }}</bdi></h4>
        <pre dir="auto">{{ example.before or "(nothing)" }}</pre></div>
      <div><h4 class="soft"><bdi>{{ example.after_name }}</bdi></h4>
        <pre dir="auto">{{ example.after or "(nothing)" }}</pre></div>
    </div>
  </article>
  {% endfor %}
{% endmacro %}
{% macro answer_list(found) %}
  <dl class="answers">{% for step, text in found %}<dt>step {{ step|count }}</dt><dd dir="auto">{{ text or "(nothing)" }}</dd>{% endfor %}</dl>
{% endmacro %}
{% macro examples(title, found, total) %}
  <h3>{{ title }}{% if total %} <span class="soft">({{ total|count }} in all)</span>{% endif %}</h3>
  {{ example_list(found[:shown]) }}
  {% if found|length > shown %}
  <details><summary>{{ found|length - shown }} more</summary>{{ example_list(found[shown:]) }}</details>
  {% endif %}
{% endmacro %}
"""

_SCORES = """
{% if data.scores %}
<h2>Scores</h2>
<div class="scroll">
<table class="scores">
  <thead><tr><th>Evaluation</th><th>Accuracy</th><th><span class="scale"><span>0%</span>
    <span>50%</span><span>100%</span></span></th><th>95% interval</th><th>Answered</th>
    <th>Problems</th><th>Tokens</th></tr></thead>
  <tbody>
  {% for row in data.scores %}
  {% set s = row.summary %}
  {% set span = s.accuracy_interval.low|percent ~ " to " ~ s.accuracy_interval.high|percent %}
  <tr>
    <td><bdi>{{ row.name }}</bdi>{% if row.detail %}<bdi class="small soft">{{ row.detail }}</bdi>{% endif %}</td>
    <td class="figure">{{ s.accuracy|percent }}</td>
    <td class="bar">{{ interval_bar(s.accuracy, s.accuracy_interval.low, s.accuracy_interval.high,
      row.name ~ ": " ~ s.accuracy|percent ~ ", 95% interval " ~ span) }}</td>
    <td class="nowrap" data-name="95% interval">{{ span }}</td>
    <td data-name="Answered">{{ s.answer_rate|percent }}</td>
    <td data-name="Problems">{{ s.problems|count }}{% if s.ungraded %}
      <span class="small down">{{ s.ungraded|count }} ungraded</span>{% endif %}</td>
    <td data-name="Mean tokens">{{ "–" if s.mean_tokens is none else "%.0f"|format(s.mean_tokens) }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
</div>
<p class="soft small">Intervals by {{ data.scores|map(attribute="summary")|map(attribute="interval_method")|unique|join("; ") }}.
An answer that cannot be read counts as wrong; only a grader's own failure is «ungraded» and left out.</p>
{% endif %}
{% if data.pairs %}
<h2>Differences on the same problems</h2>
<div class="scroll">
<table class="pairs">
  <thead><tr><th>Pair</th><th>Points</th><th><span class="scale"><span>−{{ (100 * reach)|round|int }}</span>
    <span>0</span><span>+{{ (100 * reach)|round|int }}</span></span></th><th>95% interval</th>
    <th>Gained / lost</th><th>p (Holm)</th><th>Detectable</th></tr></thead>
  <tbody>
  {% for pair in data.pairs %}
  {% set span = pair.interval.low|points ~ " to " ~ pair.interval.high|points %}
  <tr>
    <td><bdi>{{ pair.second }}</bdi><span class="small soft">against <bdi>{{ pair.first }}</bdi></span></td>
    <td class="figure {{ ('up' if pair.difference > 0 else 'down') if pair.significant else '' }}">{{ pair.difference|points }}</td>
    <td class="bar">{{ difference_bar(pair.difference, pair.interval.low, pair.interval.high, reach,
      pair.second ~ " against " ~ pair.first ~ ": " ~ pair.difference|points ~ " points, " ~ span) }}</td>
    <td class="nowrap" data-name="95% interval">{{ span }}</td>
    <td class="nowrap" data-name="Gained / lost">{{ pair.gained|count }} / {{ pair.lost|count }}</td>
    <td class="nowrap" data-name="Adjusted p-value">{{ pair.p_holm|p }}</td>
    <td data-name="Smallest detectable">{{ "–" if pair.detectable is none else "%.1f"|format(100 * pair.detectable) }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
</div>
<ul class="sentences">
  {% for pair in data.pairs %}<li>{{ pair.sentence() }}</li>{% endfor %}
  {% for pair in data.pairs if pair.missing.values()|sum or pair.ungraded %}
  <li class="soft">{{ pair.first }} and {{ pair.second }}: {{ pair.ungraded|count }} shared problems
    left out as ungraded{% for name, n in pair.missing.items() if n %}; {{ n|count }} missing from
    {{ name }} ({{ pair.missing_ids[name]|join(", ") }}{{ ", …" if n > pair.missing_ids[name]|length }})
    {%- endfor %}.</li>
  {% endfor %}
</ul>
<p class="soft small">Each pair is tested on identical problems:
{{ data.pairs|map(attribute="test")|unique|join("; ") }}; intervals by
{{ data.pairs|map(attribute="interval_method")|unique|join("; ") }}; p-values adjusted for all
pairs of one comparison (Holm). «Detectable» is the smallest true difference, in points, that this many problems show with
80% power.</p>
{% endif %}
{% if data.losses %}
<h2>Held-out loss</h2>
<ul class="sentences">{% for line in data.losses %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
"""

_REST = """
{% if charts %}
<h2>Training</h2>
<div class="charts">
{% for chart in charts %}
<figure>
  <figcaption dir="auto">{{ chart.title }}</figcaption>
  <div class="plot">
    <div class="axis y">{% for tick in chart.y_ticks %}<span style="top:{{ "%.2f"|format(tick.place) }}%">{{ tick.text }}</span>{% endfor %}</div>
    {{ chart.plot }}
    <div class="axis x">{% for tick in chart.x_ticks %}<span style="left:{{ "%.2f"|format(tick.place) }}%">{{ tick.text }}</span>{% endfor %}</div>
  </div>
  <div class="legend">{% for colour, name, last in chart.legend %}<span><span class="key b{{ colour }}"></span><bdi>{{ name }}</bdi>
    <span class="soft">{{ last }}</span></span>{% endfor %}<span class="soft">by {{ chart.x_label }}</span></div>
  {% if chart.note %}<p class="soft small">{{ chart.note }}</p>{% endif %}
</figure>
{% endfor %}
</div>
{% for line in data.course %}<p class="soft small after">{{ line }}</p>{% endfor %}
{% endif %}
{% if data.spikes %}
<h2>Loss spikes</h2>
<ul class="sentences">{% for line in data.spikes %}<li>{{ line }}</li>{% endfor %}</ul>
{% if data.spikes_total > data.spikes|length %}<p class="soft small">The first {{ data.spikes|length }} of {{ data.spikes_total|count }}; all are in metrics.jsonl.</p>{% endif %}
{% endif %}
{% if data.samples %}
<h2>Answers on the way</h2>
{% for sample in data.samples %}
{% set cut = sample.answers|length > answers + 1 %}
<article class="example">
  <p class="question" dir="auto">{{ sample.prompt }}</p>
  <p class="soft small">The row's own answer: <bdi class="kept">{{ sample.reference }}</bdi></p>
  {{ answer_list(sample.answers[:1] if cut else sample.answers) }}
  {% if cut %}
  <details><summary>{{ sample.answers|length - answers }} between</summary>{{ answer_list(sample.answers[1:-(answers - 1)]) }}</details>
  {{ answer_list(sample.answers[-(answers - 1):]) }}
  {% endif %}
</article>
{% endfor %}
{% endif %}
{% if data.row_lists %}
<h2>Rows to look at</h2>
{% for kind in data.row_lists %}
<section>
<h3>{{ kind.kind|capitalize }} <span class="soft">({{ kind.total|count }} in all{% if kind.total > kind.rows|length %}, {{ kind.rows|length }} shown, more in rows.json{% endif %})</span></h3>
<p class="soft small">{{ kind.about }}</p>
<table class="rows"><thead><tr><th>Row</th><th>Loss in each pass</th></tr></thead><tbody>
{% for place, course in kind.rows %}<tr><td>{{ place }}</td><td>{{ course }}</td></tr>
{% endfor %}
</tbody></table>
</section>
{% endfor %}
{% endif %}
{% if data.gained or data.lost %}
<h2>Examples</h2>
{% if data.gained %}{{ examples("Wrong before, right now", data.gained, data.gained_total) }}{% endif %}
{% if data.lost %}{{ examples("Right before, wrong now", data.lost, data.lost_total) }}{% endif %}
{% endif %}
{% if data.counts or data.contamination %}
<h2>Data</h2>
<div class="counts">
{% for table in data.counts %}
<section>
  <h3 dir="auto">{{ table.title }}</h3>
  <table><tbody>{% for label, value in table.rows.items() %}<tr><td>{{ label }}</td><td>{{ value|count }}</td></tr>{% endfor %}</tbody></table>
</section>
{% endfor %}
</div>
{% if data.contamination %}
<h3>Training rows against test questions</h3>
<ul class="sentences">{% for line in data.contamination %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{% endif %}
{% if data.facts %}
<h2>Versions and hashes</h2>
<dl>{% for name, value in data.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endif %}
{% if data.commands %}
<h2>What to do next</h2>
<div class="commands">{% for command in data.commands %}<p>{{ command.why }}</p><pre>{{ command.line }}</pre>{% endfor %}</div>
{% endif %}
"""

TEMPLATE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
{% if data.refresh %}<meta http-equiv="refresh" content="{{ data.refresh|int }}">
{% endif %}
<title>{{ data.title }} · tunesmith</title>
<style>"""
    + STYLE
    + """</style>
</head>
<body>
"""
    + _MACROS
    + """
<main>
<p class="kicker">tunesmith report</p>
<h1 dir="auto">{{ data.title }}</h1>
{% if data.subtitle %}<p class="soft" dir="auto">{{ data.subtitle }}</p>{% endif %}
{% if data.status %}<div class="headline status" role="status"><p>{{ data.status }}</p></div>{% endif %}
{% if data.headline %}<div class="headline">{% for line in data.headline %}<p>{{ line }}</p>{% endfor %}</div>{% endif %}
{% if data.notes %}<div class="headline notes">{% for line in data.notes %}<p>{{ line }}</p>{% endfor %}</div>{% endif %}
"""
    + _SCORES
    + """
{% if data.stages %}
<h2>What was done</h2>
<ol class="stages">
{% for stage in data.stages %}<li><span class="verb">{{ stage.verb }}</span><span class="what"><bdi><strong>{{ stage.name }}</strong></bdi>
  <span class="soft">{{ stage.text }}</span></span><span class="time soft small">{{ stage.seconds|duration }}</span></li>{% endfor %}
</ol>
{% endif %}
"""
    + _REST
    + """
<footer>Made by tunesmith. This page loads nothing from elsewhere and runs no script; every stored
answer can be graded again.</footer>
</main>
</body>
</html>
"""
)
