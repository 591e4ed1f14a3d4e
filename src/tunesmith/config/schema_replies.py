"""Settings of replies that metrics score."""

from __future__ import annotations

from tunesmith.config.options import Options


class ReplyOptions(Options):
    """Replies"""

    test_dataset_path: str | None = None
    """Held-out rows, another name for --dataset; chat, code, instruct, domain and custom reply to
    the last turn of each, laid out as for training, and metrics score the replies."""
    terms: str | None = None
    """File of a field's terms, one a line, for the term recall of task domain."""
    terms_from: str | None = None
    """Training texts to find such terms in, in place of a list."""
