"""``tunesmith data show``: rows as the model will see them, trained tokens marked."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from tunesmith.config.load import Resolved
from tunesmith.config.schema_data import ShowOptions
from tunesmith.errors import DataError
from tunesmith.workflows import console
from tunesmith.workflows.idle import refuse_idle_split
from tunesmith.workflows.opening import open_renderer


def command(resolved: Resolved[ShowOptions]) -> int:
    """Handle ``tunesmith data show``."""
    from tunesmith.data.formats import to_examples
    from tunesmith.data.readers import read_rows
    from tunesmith.data.show import marked, spans, summary
    from tunesmith.data.thinking import ThinkingMode
    from tunesmith.workflows.rows import tell_thinking

    options = resolved.options
    if options.split != "train":
        refuse_idle_split(options.dataset, options.split, "--split")
    # Files first: a mistyped name should not wait for a tokenizer.
    found = [
        (
            source,
            *to_examples(
                read_rows(
                    source, split=options.split, max_rows=options.rows, encoding=options.encoding
                ),
                options.columns,
            ),
        )
        for source in options.dataset
    ]
    renderer, limit = open_renderer(options, options.model, options.max_length)
    color = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
    out = Console(force_terminal=color, no_color=not color, highlight=False, soft_wrap=True)
    kept, thinking = 0, ThinkingMode(options.thinking)
    for source, layout, examples in found:
        console.say(f"{source}: {layout.name}, shown as task {options.task} would train on it.")
        for example in examples:
            rendered = renderer.encode(thinking(example), limit)
            if rendered.refused:
                out.print(Text(f"{example.origin}: refused, {rendered.refused}"))
            kept += len(rendered.rows)
            for row in rendered.rows:
                out.print(Text(summary(row), style="bold"))
                if color:
                    parts = [
                        (t, "black on green" if on else "dim") for t, on in spans(row, renderer)
                    ]
                    out.print(Text.assemble(*parts))
                else:
                    out.print(Text(marked(row, renderer)))
    tell_thinking(thinking)
    return 0 if kept else DataError.exit_code
