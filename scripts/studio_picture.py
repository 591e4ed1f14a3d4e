"""Draw docs/images/studio.png: a finished run of the built-in model as the pages show it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import tunesmith  # noqa: E402
from browser import Browser, find_browser  # noqa: E402
from studios import listening, pages_over  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "studio.png"
LARGEST = 150_000


def main() -> int:
    """Train, look, and keep the picture if it is small."""
    program = find_browser()
    if program is None:
        print("There is no Chromium on this machine.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        settings = {"eval_steps": 20, "logging_steps": 2, "eval_questions": 100}
        tunesmith.train(
            task="units", max_steps=120, output_dir=str(runs), run_name="units", **settings
        )
        pages = pages_over(runs)
        with listening(pages) as address, Browser(program) as browser:
            browser._call("Network.setExtraHTTPHeaders", headers=pages.bearer)
            browser.open(f"{address}/run/units", 1100)
            PICTURE.parent.mkdir(exist_ok=True)
            browser.picture(PICTURE, height=880)
    size = PICTURE.stat().st_size
    print(f"{PICTURE.relative_to(ROOT)}: {size:,} bytes")
    return 0 if size < LARGEST else 1


if __name__ == "__main__":
    sys.exit(main())
