"""Rules that read a rate off a sweep, judged by the held-out loss of short runs over a grid.

For each setting: one sweep as ``tunesmith find-lr`` makes it, and a run at every rate of the grid
(cosine, a tenth of warm-up). A rule's regret is the held-out loss at its rate, interpolated in the
logarithm of the rate, above the best of the grid. Outside the grid the nearest end counts.
Everything is stored, so that a further rule costs nothing: ``--read`` leaves out the runs.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).parent.parent.parent / "shared"
GRID = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def settings(shared: Path) -> dict[str, dict[str, Any]]:
    """Return the settings that are tried, by name."""
    files = sorted(map(str, (shared / "data/t0_per_template").glob("*.jsonl")))
    t0 = {"task": "instruct", "dataset": files, "max_rows": 12}
    gsm = {"task": "maths", "dataset": [str(shared / "data/gsm8k/train.jsonl")], "max_rows": 400}
    rows = {"units": {"task": "units"}, "t0": t0, "gsm8k": gsm}
    models = {"built-in": "tunesmith/tiny", "260K": str(shared / "models/stories260K")}
    return {
        f"{model} {data} {how}": {**given, "model": path, "lora": how == "lora"}
        for data, given in rows.items()
        for model, path in models.items()
        for how in ("full", "lora")
    }


def measure(given: dict[str, Any], steps: int, sweep_steps: int) -> dict[str, Any]:
    """Sweep, then train at every rate of the grid; return losses."""
    import torch

    from tunesmith.config.load import resolve
    from tunesmith.config.schema_before import FindRateOptions
    from tunesmith.errors import DivergedError
    from tunesmith.train.find_rate import rates, sweep
    from tunesmith.train.loop import Settings, State, fit, make_optimizer
    from tunesmith.train.losses import row_losses
    from tunesmith.train.snapshot import untouched
    from tunesmith.workflows.setup import (
        loop_settings,
        make_accelerator,
        make_trainable,
        open_training,
        plan_steps,
    )

    common = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    common |= {"max_length": 512, "max_steps": steps, "log_level": "error", "device": "cpu"}
    common |= {"warmup_ratio": 0.1, "allow_refused": 0.5, "lr_steps": sweep_steps}
    resolved = resolve(FindRateOptions, {**common, **given}, origin="argument")
    opened = open_training(resolved)
    accelerator = make_accelerator(opened.config, opened.loaded)
    plan = plan_steps(opened.config, opened.rows, 1)
    chosen = loop_settings(opened.config, plan, opened.rows, opened.loaded)
    model = make_trainable(opened.config, opened.loaded, accelerator)
    rows, held = (
        opened.rows.rows,
        [opened.held.rows[at] for at in range(min(60, len(opened.held.rows)))],
    )

    def held_out() -> float:
        sums = row_losses(model, held, torch.device("cpu"), 2048)
        return sum(s for s, _ in sums) / sum(w for _, w in sums)

    state = State(model, make_optimizer(model, chosen))
    swept = rates(1e-6, 1.0, sweep_steps)
    found = sweep(state, rows, plan, chosen, accelerator, swept)
    curve: dict[str, float] = {}
    for rate in GRID:
        asked = Settings(**{**asdict(chosen), "learning_rate": rate})
        state = State(model, make_optimizer(model, asked))
        with untouched(state):
            try:
                list(fit(state, rows, plan, asked, accelerator))
                curve[repr(rate)] = held_out()
            except DivergedError:
                curve[repr(rate)] = math.inf
    return {"sweep": asdict(found), "grid": curve, "untrained": held_out(), "rows": len(rows)}


def readings(stored: dict[str, Any]) -> dict[str, float]:
    """Return the rate of every rule for one sweep; what needs a divergence goes without it."""
    from tunesmith.train.find_rate import Sweep, read

    sweep = Sweep(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    found = read(sweep)
    if found.steepest is None or found.lowest is None:
        return {}
    cap = found.cap or math.inf
    smoothed = np.array(sweep.smoothed[:-1] if sweep.diverged else sweep.smoothed)
    at_least = sweep.rates[int(smoothed.argmin())]
    rules = {"steepest fall, capped (before)": min(found.steepest, cap)}
    rules["10 x steepest fall, capped"] = min(10 * found.steepest, cap)
    rules["√(steepest x minimum)"] = math.sqrt(found.steepest * at_least)
    rules["√(steepest x cap)"] = math.sqrt(found.steepest * min(cap, at_least))
    for part in (2, 3, 4, 5, 10):
        rules[f"minimum of the mean / {part}, capped"] = min(at_least / part, cap)
    for part in (1, 1.5, 2, 3, 4, 10):
        rules[f"lowest level / {part}, capped"] = min(found.lowest / part, cap)
    for part in (10, 30, 100):
        rules[f"divergence / {part}"] = 10 * cap / part if sweep.diverged else at_least / 5
    return rules


def regret(rate: float, grid: dict[str, float]) -> float:
    """Return by how many nats a rate is worse than the best of the grid."""
    known = sorted((math.log10(float(r)), loss) for r, loss in grid.items())
    worst = max(loss for _, loss in known if math.isfinite(loss))
    xs, ys = zip(*[(x, y if math.isfinite(y) else 2 * worst) for x, y in known], strict=True)
    return float(np.interp(math.log10(rate), xs, ys)) - min(ys)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, default=Path("find_rate.json"))
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sweep-steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--read", action="store_true")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    stored = json.loads(given.store.read_text()) if given.store.is_file() else {}
    for name, setting in settings(given.shared).items():
        wanted = not given.only or all(word in name for word in given.only)
        if not given.read and wanted and name not in stored:
            stored[name] = measure(setting, given.steps, given.sweep_steps)
            partial = given.store.with_suffix(".partial")
            partial.write_text(json.dumps(stored))
            partial.replace(given.store)
            print(name, stored[name]["grid"], flush=True)
    table: dict[str, list[float]] = {}
    for name, found in stored.items():
        print(
            f"\n{name}: untrained {found['untrained']:.3f}, best {min(found['grid'].values()):.3f}"
        )
        print("  ", {rate: round(loss, 3) for rate, loss in found["grid"].items()})
        for rule, rate in readings(found["sweep"]).items():
            table.setdefault(rule, []).append(regret(rate, found["grid"]))
            print(f"  {rule:32} {rate:8.2g} {table[rule][-1]:+.3f}")
    print(f"\n{'rule':32} settings   mean  worst")
    for rule, regrets in sorted(table.items(), key=lambda item: np.mean(item[1])):
        print(f"{rule:32} {len(regrets):8} {np.mean(regrets):6.3f} {max(regrets):6.3f}")


if __name__ == "__main__":
    main()
