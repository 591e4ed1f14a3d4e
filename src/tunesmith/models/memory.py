"""How PyTorch asks the system for memory on a CPU."""

from __future__ import annotations

import os


def use_huge_pages() -> None:
    """Let PyTorch put large CPU tensors on huge pages, where the system offers them (Linux).

    Activations of some megabytes are freed and taken anew in every layer; with pages of 4 KiB
    their page faults cost a tenth of a training step (see ``bench/LOG.md``). PyTorch reads the
    variable at its first allocation; a value that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
