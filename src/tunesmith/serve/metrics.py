"""Counters of the server, in the text form that Prometheus reads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping

BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends, in seconds."""
COUNTED = {
    "requests_total": "Requests by route and status.",
    "prompt_tokens_total": "Tokens of prompts that were taken in.",
    "generated_tokens_total": "Tokens of answers that were made.",
    "cancelled_total": "Requests whose client left before the end.",
    "dropped_connections_total": "Connections that were closed for being too slow or too many.",
    "request_log_failures_total": "Answers that could not be written to the request log.",
}
TIMED = {
    "request_seconds": "Time of a generation request, until the last byte is handed over.",
    "first_token_seconds": "Time until the first piece of an answer.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What has happened so far; safe to be told by several threads."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Prepare; ``gauges`` are asked for their value when the text is made."""
        self._gauges = dict(gauges)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._buckets = {name: [0] * (len(BUCKETS) + 1) for name in TIMED}
        self._sums = dict.fromkeys(TIMED, 0.0)

    def add(self, name: str, by: float = 1, **labels: str) -> None:
        """Count; names are those of ``COUNTED``."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += by  # type: ignore[assignment]

    def took(self, name: str, seconds: float) -> None:
        """Note a time; names are those of ``TIMED``."""
        place = next((n for n, end in enumerate(BUCKETS) if seconds <= end), len(BUCKETS))
        with self._lock:
            self._buckets[name][place] += 1
            self._sums[name] += seconds

    def value(self, name: str, **labels: str) -> float:
        """Return a counter, summed over labels that are not named."""
        wanted = set(labels.items())
        with self._lock:
            return sum(
                count
                for (one, own), count in self._counts.items()
                if one == name and wanted <= set(own)
            )

    def text(self) -> str:
        """Return everything as Prometheus reads it."""
        lines: list[str] = []
        for name, (meaning, ask) in self._gauges.items():
            lines += _head(name, meaning, "gauge")
            lines.append(f"tunesmith_{name} {ask():g}")
        with self._lock:
            for name, meaning in COUNTED.items():
                lines += _head(name, meaning, "counter")
                own = sorted((ls, n) for (one, ls), n in self._counts.items() if one == name)
                lines += [f"tunesmith_{name}{_labels(ls)} {n:g}" for ls, n in own or [((), 0)]]
            for name, meaning in TIMED.items():
                lines += _head(name, meaning, "histogram")
                total = 0
                for end, count in zip(
                    (*map(str, BUCKETS), "+Inf"), self._buckets[name], strict=True
                ):
                    total += count
                    lines.append(f'tunesmith_{name}_bucket{{le="{end}"}} {total}')
                lines.append(f"tunesmith_{name}_sum {self._sums[name]:g}")
                lines.append(f"tunesmith_{name}_count {total}")
        return "\n".join(lines) + "\n"


def _head(name: str, meaning: str, kind: str) -> list[str]:
    return [f"# HELP tunesmith_{name} {meaning}", f"# TYPE tunesmith_{name} {kind}"]


def _labels(labels: Labels) -> str:
    """Return labels as text; their values are the server's own words, never a client's."""
    inner = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""
