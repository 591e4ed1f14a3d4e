"""``tunesmith demo``: the built-in recipe, and what it showed."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tunesmith.config.load import Resolved
from tunesmith.config.schema_results import DemoOptions
from tunesmith.workflows import console
from tunesmith.workflows.recipe import run

RECIPE = Path(__file__).parent.parent / "assets" / "demo.yaml"
TELLING = {
    "compare": [
        ("base-direct", "base-cot"),
        ("base-direct", "sft-test"),
        ("sft-test", "rft-test"),
        ("base-direct", "rft-test"),
    ],
    "compare-ood": [("sft-ood", "rft-ood"), ("base-direct-ood", "rft-ood")],
}
"""The pairs of each comparison that the last lines speak of."""


def command(resolved: Resolved[DemoOptions]) -> int:
    """Handle ``tunesmith demo``."""
    from tunesmith.evaluate.compare import Comparison

    options = resolved.options
    began = time.monotonic()
    seed = f"eval.question_seed={options.test_seed}"
    records = {r.stage.name: r for r in run(RECIPE, [seed], output_dir=options.output_dir)}
    console.title("What was gained")
    for name, telling in TELLING.items():
        stored = json.loads(records[name].output.read_text(encoding="utf-8"))
        for pair in Comparison.from_json(stored).pairs:
            if (pair.first, pair.second) in telling:
                console.say(f"- {pair.sentence()}")
    folder = records["report"].folder.parent
    console.say(f"\nTook {(time.monotonic() - began) / 60:.1f} minutes.")
    console.say(f"Report:  {folder / 'report.html'}")
    console.say(f"Try it:  tunesmith generate --model {folder / 'rft'} \\")
    console.say('           --prompt "How many feet are there in 6.2 meters?"')
    console.say("Your model: tunesmith run recipes/demo.yaml model=path/or/hub-name")
    console.say("Your data:  tunesmith train --task instruct --model M --dataset rows.jsonl --lora")
    return 0
