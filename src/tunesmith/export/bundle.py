"""What a deployment bundle has besides the model: card, licence, smoke test, Dockerfile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "NOTICE")
NO_LICENCE = "not stated by the base"
SMOKE_TEST = "smoke_test.py"
DOCKERFILE = """\
# Serves this folder with an OpenAI-compatible server. Written, not claimed: no container engine
# ran when this bundle was made. Build and start it here, for this machine alone and with a key:
#   docker build -t model . && docker run --rm --gpus all -p 127.0.0.1:8000:8000 \\
#     -e VLLM_API_KEY=your-key model
FROM vllm/vllm-openai:latest
COPY . /model
ENV HF_HUB_OFFLINE=1
ENTRYPOINT ["vllm", "serve", "/model", "--served-model-name", "model", "--host", "0.0.0.0"]
"""


@dataclass(frozen=True, slots=True)
class Story:
    """What the card says of where a model comes from; all of it is other people's text."""

    name: str
    base: str
    made: str
    licence: str
    scores: Sequence[Sequence[str]] = ()
    """Name, score, interval, number of questions."""
    sentences: Sequence[str] = ()
    sources: Sequence[Sequence[str]] = ()
    """Name, training rows, held-out rows, SHA-256."""
    notes: Sequence[str] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)


def add_bundle(folder: Path, story: Story, base: Path) -> None:
    """Write all that a bundle has besides the model into its folder, but for the manifest."""
    (folder / "README.md").write_text(card(story), encoding="utf-8")
    (folder / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(SMOKE_TEST), folder / SMOKE_TEST)
    for name in LICENCES:
        found = base / name
        # A link could bring in any file of this machine.
        if found.is_file() and not found.is_symlink():
            shutil.copyfile(found, folder / name)


def licence_of(base: Path) -> str:
    """Return the licence that a base's model card names, or that there is none to be found."""
    try:
        text = (base / "README.md").read_text(encoding="utf-8")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = yaml.safe_load(head.group(1)) if head else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return NO_LICENCE
    named = found.get("license") if isinstance(found, dict) else None
    several = named if isinstance(named, list) else [named]
    return ", ".join(one for one in several if isinstance(one, str) and one) or NO_LICENCE


def card(story: Story) -> str:
    """Return the model card as Markdown."""
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {json.dumps(story.base)}",
        f"license: {json.dumps(story.licence)}",
        "---",
        "",
        f"# {_plain(story.name)}",
        "",
        _plain(story.made),
        "",
        "## Use",
        "",
        "`python smoke_test.py \"A question\"` checks every file and prints an answer; it needs "
        "transformers and torch. The chat template lies in `chat_template.jinja` and is applied by "
        "`tokenizer.apply_chat_template`; answers end at the tokens of `generation_config.json`. "
        "The `Dockerfile` is written, not claimed: it was not run.",
        "",
        "## Scores",
        "",
    ]  # fmt: skip
    if story.scores:
        heads = ("model", "score", "95% interval", "questions")
        lines += [*_table(heads, story.scores), ""]
    lines += [f"- {_plain(sentence)}" for sentence in story.sentences]
    if not story.scores and not story.sentences:
        lines.append("None: this model comes from no run of tunesmith that was evaluated.")
    lines += ["", "## Licence", "", _plain(story.licence), "", "## Data", ""]
    if story.sources:
        lines += _table(("source", "training rows", "held out", "SHA-256"), story.sources)
    else:
        lines.append("Not recorded.")
    lines += ["", "## Origin", "", f"- Base: {_plain(story.base)}"]
    lines += [f"- SHA-256 of the {name}: {value}" for name, value in story.hashes.items()]
    lines += [f"- {_plain(note)}" for note in story.notes]
    lines += ["- Compared with the trained model: see `parity` in the export's manifest.json.", ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines]


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|!#])", r"\\\1", " ".join(str(text).split()))


def run_smoke_test(folder: Path, minutes: float = 20) -> str | None:
    """Run a bundle's smoke test as its user would; return what is wrong, if anything is."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(folder / SMOKE_TEST)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60 * minutes,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its smoke test does not end within {minutes:g} minutes"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or ["nothing said"]
    return f"its smoke test fails: {said[-1]}"


def story_of(
    name: str,
    base: str,
    licence: str,
    manifest: Mapping[str, Any],
    comparison: Mapping[str, Any],
    notes: Sequence[str],
    hashes: Mapping[str, str],
) -> Story:
    """Gather the card's text from what a run has written; both mappings may be empty."""
    task, steps = manifest.get("task"), manifest.get("steps")
    made = f"A language model, exported with tunesmith from {base}."
    if task:
        made = f"Fine-tuned with tunesmith from {base} (task {task}, {steps} steps)."
    scores = []
    for own, summary in _mapping(comparison, "summaries").items():
        if isinstance(summary, Mapping) and summary.get("accuracy") is not None:
            between = _mapping(summary, "accuracy_interval")
            low, high = (100 * float(between.get(end, 0)) for end in ("low", "high"))
            score = f"{100 * float(summary['accuracy']):.1f}%"
            scores.append((str(own), score, f"{low:.1f} to {high:.1f}", str(summary.get("graded"))))
    pairs = [pair for pair in comparison.get("pairs", ()) if isinstance(pair, Mapping)]
    sentences = [str(pair["sentence"]) for pair in pairs if "sentence" in pair]
    for key in ("losses", "forgetting", "contamination"):
        sentences += map(str, manifest.get(key) or ())
    sources = [
        (
            str(one.get("source")),
            str(one.get("rows")),
            str(one.get("held_out")),
            str(one.get("sha256") or "made by the task"),
        )
        for one in manifest.get("sources") or ()
        if isinstance(one, Mapping)
    ]
    return Story(name, base, made, licence, scores, sentences, sources, notes, hashes)


def without_scores(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's manifest as it holds for a checkpoint whose weights nobody has evaluated."""
    return {
        **manifest,
        "steps": f"at most {manifest.get('steps')}",
        "losses": ["This checkpoint was not evaluated: its run's scores are of the final model."],
        "forgetting": (),
        "contamination": (),
    }


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}
