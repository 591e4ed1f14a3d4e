"""The page's template and style; every ``{{ … }}`` is escaped, no script is needed."""

# Markup and style keep lines of their own length:
# ruff: noqa: E501

from __future__ import annotations

from tunesmith.report.style import STYLE

MACROS = """
{% macro example_list(examples) %}
  {% for example in examples %}
  <details class="example"{% if loop.first %} open{% endif %}><summary dir="auto">{{ example.question|first_line }}</summary>
    <p class="question{% if example.question|first_line == example.question %} same{% endif %}" dir="auto">{{ example.question }}</p>
    <p class="soft small">{{ reference_called }}: <bdi class="kept">{{ example.reference }}</bdi></p>
    <div class="sides">
      <div><p class="side t0"><bdi>{{ example.before_name }}</bdi></p>
        <pre dir="auto" tabindex="0">{{ example.before or "(nothing)" }}</pre></div>
      <div><p class="side t1"><bdi>{{ example.after_name }}</bdi></p>
        <pre dir="auto" tabindex="0">{{ example.after or "(nothing)" }}</pre></div>
    </div>
  </details>
  {% endfor %}
{% endmacro %}
{% macro answer_list(found) %}
  <dl class="answers">{% for step, text in found %}<dt>step {{ step|count }}</dt><dd dir="auto">{{ text or "(nothing)" }}</dd>{% endfor %}</dl>
{% endmacro %}
{% macro examples(title, found, total) %}
  {% if found %}
  <h3>{{ title }} <span class="soft">({{ total|count }} in all{% if total > found|length %}, {{ found|length }} of them drawn by seed{% endif %})</span></h3>
  {{ example_list(found) }}
  {% endif %}
{% endmacro %}
{% macro table(t) %}
<div class="scroll" role="region" tabindex="0" aria-label="{{ t.title }}">
<table class="plain{% if not t.columns %} pair-list{% endif %}">
  <caption dir="auto">{{ t.title }}</caption>
  {% if t.columns|length %}<thead><tr>{% for column in t.columns %}<th scope="col"{% if t.long and loop.index0 >= t.long %} class="text"{% endif %}>{{ column }}</th>{% endfor %}</tr></thead>{% endif %}
  <tbody>{% for row in t.rows %}<tr>{% for cell in row %}{% if loop.first %}<th scope="row" dir="auto">{{ cell }}</th>{% else %}<td{% if t.long and loop.index0 >= t.long %} class="text" dir="auto"{% endif %}>{{ cell }}</td>{% endif %}{% endfor %}</tr>
  {% endfor %}</tbody>
</table>
</div>
{% if t.note %}<p class="soft small after">{{ t.note }}</p>{% endif %}
{% endmacro %}
{% macro plot(chart, heading=true) %}
<figure>
  <figcaption dir="auto">{{ chart.title }}</figcaption>
  <div class="plot">
    <div class="axis y" aria-hidden="true">{% for tick in chart.y_ticks %}<span style="top:{{ "%.2f"|format(tick.place) }}%">{{ tick.text }}</span>{% endfor %}</div>
    {{ chart.plot }}
    <div class="axis x" aria-hidden="true">{% for tick in chart.x_ticks %}<span style="left:{{ "%.2f"|format(tick.place) }}%">{{ tick.text }}</span>{% endfor %}</div>
  </div>
  <div class="legend">{% for colour, name, last in chart.legend %}<span><span class="key b{{ colour }}"></span><bdi>{{ name }}</bdi>
    <span class="soft">{{ last }}</span></span>{% endfor %}<span class="soft">by {{ chart.x_label }}</span></div>
  {% if chart.note %}<p class="soft small">{{ chart.note }}</p>{% endif %}
  {% if chart.rows %}
  <details class="figures"><summary>Figures</summary>
  <div class="scroll" role="region" tabindex="0" aria-label="{{ chart.title }}: figures"><table class="plain"><caption dir="auto">{{ chart.title }}</caption>
  <thead><tr>{% for column in chart.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
  <tbody>{% for row in chart.rows %}<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>{% endfor %}</tbody></table></div>
  </details>
  {% endif %}
</figure>
{% endmacro %}
{% macro forest(f, title) %}
<div class="scroll" role="region" tabindex="0" aria-label="{{ title }}">
<table class="pairs" role="table">
  <caption>{{ title }}</caption>
  <thead role="rowgroup"><tr role="row"><th scope="col">Measure</th><th scope="col">Difference</th><th scope="col"><span class="scale"><span>lower</span><span>0</span><span>higher</span></span></th>
    <th scope="col">95% interval</th><th scope="col" class="t0"><bdi>{{ f.first }}</bdi></th><th scope="col" class="t1"><bdi>{{ f.second }}</bdi></th></tr></thead>
  <tbody role="rowgroup">
  {% for row in f.rows %}
  <tr role="row">
    <th scope="row" role="rowheader"><bdi>{{ row.name }}</bdi>{% if row.better != "neither" %}<span class="small soft">{{ row.better }} is better</span>{% endif %}</th>
    <td role="cell" class="figure {{ row.tone }}">{{ row.text }}</td>
    <td role="cell" class="bar">{% if row.low is not none %}{{ difference_bar(row.difference, row.low, row.high, f.reach(row), row.name ~ ": " ~ row.text ~ ", 95% interval " ~ row.low|signed ~ " to " ~ row.high|signed) }}{% elif f.one_scale %}{{ difference_bar(row.difference, row.difference, row.difference, f.reach(row), row.name ~ ": " ~ row.text) }}{% endif %}</td>
    <td role="cell" class="nowrap" data-name="95% interval">{% if row.low is none %}–{% else %}{{ row.low|signed }} to {{ row.high|signed }}{% endif %}</td>
    <td role="cell" data-name="{{ f.first }}">{{ row.first }}</td>
    <td role="cell" data-name="{{ f.second }}">{{ row.second }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
</div>
{% if f.sentences %}<ul class="sentences">{% for line in f.sentences %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% endmacro %}
"""

_SCORES = """
{% if data.scores %}
<h2>Scores</h2>
<div class="scroll" role="region" tabindex="0" aria-label="Scores">
<table class="scores" role="table">
  <caption>{{ "Share of answers that are right" if data.called == "right" else "Score: " ~ data.called }}, with its 95% interval</caption>
  <thead role="rowgroup"><tr role="row"><th scope="col">Evaluation</th><th scope="col">{{ data.called }}</th><th scope="col"><span class="scale"><span>0%</span>
    <span>50%</span><span>100%</span></span></th><th scope="col">95% interval</th><th scope="col">Answered</th>
    <th scope="col">Problems</th><th scope="col">Tokens</th></tr></thead>
  <tbody role="rowgroup">
  {% for row in data.scores %}
  {% set s = row.summary %}
  {% set span = s.accuracy_interval.low|percent ~ " to " ~ s.accuracy_interval.high|percent %}
  <tr role="row">
    <th scope="row" role="rowheader"><span class="key b{{ colours[row.name] }}"></span><bdi>{{ row.name }}</bdi>{% if row.detail %}<bdi class="small soft">{{ row.detail }}</bdi>{% endif %}</th>
    {% if s.graded %}
    <td role="cell" class="figure">{{ s.accuracy|percent }}</td>
    <td role="cell" class="bar">{{ interval_bar(s.accuracy, s.accuracy_interval.low, s.accuracy_interval.high,
      row.name ~ ": " ~ s.accuracy|percent ~ ", 95% interval " ~ span, colours[row.name]) }}</td>
    <td role="cell" class="nowrap" data-name="95% interval">{{ span }}</td>
    <td role="cell" data-name="Answered">{{ s.answer_rate|percent }}</td>
    {% else %}
    <td role="cell" class="figure">–</td><td role="cell" class="bar"></td><td role="cell" data-name="95% interval">nothing graded</td><td role="cell" data-name="Answered">–</td>
    {% endif %}
    <td role="cell" data-name="Problems">{{ s.problems|count }}{% if s.ungraded %}
      <span class="small down">{{ s.ungraded|count }} ungraded</span>{% endif %}</td>
    <td role="cell" data-name="Mean tokens">{{ "–" if s.mean_tokens is none else "%.0f"|format(s.mean_tokens) }}</td>
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
<div class="scroll" role="region" tabindex="0" aria-label="Differences on the same problems">
<table class="pairs" role="table">
  <caption>Points that the second scores above the first, with the 95% interval</caption>
  <thead role="rowgroup"><tr role="row"><th scope="col">Pair</th><th scope="col">Points</th><th scope="col"><span class="scale"><span>−{{ (100 * reach)|round|int }}</span>
    <span>0</span><span>+{{ (100 * reach)|round|int }}</span></span></th><th scope="col">95% interval</th>
    <th scope="col">Gained / lost</th><th scope="col">p (Holm)</th><th scope="col">Detectable</th></tr></thead>
  <tbody role="rowgroup">
  {% for pair in data.pairs %}
  {% set span = pair.interval.low|points ~ " to " ~ pair.interval.high|points %}
  <tr role="row">
    <th scope="row" role="rowheader"><bdi>{{ pair.second }}</bdi><span class="small soft">against <bdi>{{ pair.first }}</bdi></span></th>
    <td role="cell" class="figure {{ ('up' if (pair.difference > 0) != lower else 'down') if pair.significant else '' }}">{{ pair.difference|points }}</td>
    <td role="cell" class="bar">{{ difference_bar(pair.difference, pair.interval.low, pair.interval.high, reach,
      pair.second ~ " against " ~ pair.first ~ ": " ~ pair.difference|points ~ " points, " ~ span) }}</td>
    <td role="cell" class="nowrap" data-name="95% interval">{{ span }}</td>
    <td role="cell" class="nowrap" data-name="Gained / lost">{{ pair.gained|count }} / {{ pair.lost|count }}</td>
    <td role="cell" class="nowrap" data-name="Adjusted p-value">{{ pair.p_holm|p }}</td>
    <td role="cell" data-name="Smallest detectable">{{ "–" if pair.detectable is none else "%.1f"|format(100 * pair.detectable) }}</td>
  </tr>
  {% endfor %}
  </tbody>
</table>
</div>
<ul class="sentences">
  {% for pair in data.pairs if pair.sentence() not in data.headline %}<li>{{ pair.sentence() }}</li>{% endfor %}
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
{% if data.seeds or data.spread %}
<h2>Seeds</h2>
{% for f in data.seeds %}{{ forest(f, "Points that the second scores above the first, over seeds and problems") }}{% endfor %}
{% for t in data.spread %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.groups %}
<h2>Groups</h2>
{% for t in data.groups %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.loss or data.losses %}
<h2>Held-out loss</h2>
{% if data.loss %}{{ forest(data.loss, "Nats per byte of the held-out rows") }}{% endif %}
{% if data.losses %}<ul class="sentences">{% for line in data.losses %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% endif %}
{% if data.metrics %}
<h2>Metrics</h2>
{% for t in data.metrics %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.forgetting %}
<h2>General ability</h2>
{{ forest(data.forgetting, "The same general suite before and after the training") }}
{% endif %}
"""

_REST = """
{% if charts %}
<h2>Training</h2>
<div class="charts">
{% for chart in charts %}{{ plot(chart) }}
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
<div class="scroll" role="region" tabindex="0" aria-label="{{ kind.kind }}">
<table class="rows"><caption class="heard">{{ kind.kind|capitalize }}</caption><thead><tr><th scope="col">Row</th><th scope="col">Loss in each pass</th></tr></thead><tbody>
{% for place, course in kind.rows %}<tr><th scope="row">{{ place }}</th><td>{{ course }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endfor %}
{% endif %}
{% if data.gained or data.lost or data.both_wrong %}
<h2>Examples</h2>
{{ examples(examples_called[0], data.gained, data.gained_total) }}
{{ examples(examples_called[1], data.lost, data.lost_total) }}
{{ examples(examples_called[2], data.both_wrong, data.both_wrong_total) }}
{% endif %}
{% if data.lengths or data.ends %}
<h2>How long the replies are, and why they end</h2>
{% if data.lengths %}{{ plot(data.lengths) }}{% endif %}
{% for t in data.ends %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.counts or data.sources %}
<h2>Data</h2>
{% for t in data.sources %}{{ table(t) }}{% endfor %}
<div class="counts">
{% for t in data.counts %}
<table><caption dir="auto">{{ t.title }}</caption><tbody>{% for label, value in t.rows.items() %}<tr><th scope="row">{{ label }}</th><td>{{ value|count }}</td></tr>{% endfor %}</tbody></table>
{% endfor %}
</div>
{% endif %}
{% if data.contamination or data.overlaps %}
<h2>Contamination</h2>
{% if data.contamination %}<ul class="sentences">{% for line in data.contamination %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% for t in data.overlaps %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.cost %}
<h2>Cost</h2>
{% for t in data.cost %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.settings %}
<h2>Settings</h2>
{% for t in data.settings %}{{ table(t) }}{% endfor %}
{% endif %}
{% if data.facts %}
<h2>Versions and hashes</h2>
<dl>{% for name, value in data.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endif %}
{% if data.commands %}
<div class="next"><h2>What to do next</h2>
<div class="commands">{% for command in data.commands %}<p>{{ command.why }}</p><pre tabindex="0">{{ command.line }}</pre>{% endfor %}</div></div>
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
    + MACROS
    + """
<main>
<p class="kicker">tunesmith report</p>
<h1 dir="auto">{{ data.title }}</h1>
{% if data.subtitle %}<p class="soft" dir="auto">{{ data.subtitle }}</p>{% endif %}
{% if data.status %}<div class="headline status" role="status"><p>{{ data.status }}</p></div>{% endif %}
{% if data.headline %}<div class="headline">{% if data.verdict in verdicts %}<p class="verdict {{ verdicts[data.verdict][1] }}">{{ verdicts[data.verdict][0] }}</p>{% endif %}{% for line in data.headline %}<p>{{ line }}</p>{% endfor %}</div>{% endif %}
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
