"""The page that compares stored sets of answers."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tunesmith.errors import TunesmithError
from tunesmith.evaluate.records import ATTEMPTS, read_header
from tunesmith.serve.faults import Fault
from tunesmith.studio import pages
from tunesmith.studio.frame import Frame, told, unquoted
from tunesmith.studio.runs import Runs

MOST_SETS = 20
"""Sets of answers in one comparison."""


class ComparePages:
    """Compares the sets that lie in runs or beside them."""

    def __init__(
        self, frame: Frame, parent: Path, runs: Runs, compared: Callable[[Sequence[Path]], str]
    ) -> None:
        """Prepare; ``compared`` makes the page of stored sets, the baseline first."""
        self.runs = runs
        self._frame, self._parent, self._compared = frame, parent, compared
        self._last: tuple[object, str] = (None, "")
        """The comparison that was made last, and of what."""

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        get = ["GET"]
        return [
            Route("/compare", self.compare, methods=get),
            Route("/compared", self.compared, methods=get),
        ]

    def compare(self, request: Request) -> Response:
        """Show the stored sets of answers, and the comparison of those that were chosen."""
        asked = request.query_params
        base, chosen = unquoted(asked.get("base", "")), list(map(unquoted, asked.getlist("with")))
        chosen = [one for one in chosen if one != base]
        known = self.runs.sets()
        values = {
            "sets": [set_ for place, path in known.items() if (set_ := _set(place, path))],
            "base": base,
            "chosen": chosen,
            "parent": str(self._parent),
            "fault": "",
            "shown": "",
        }
        if base and not chosen:
            values["fault"] = "Only one set was chosen.\nExpected: at least one other to hold it to"
        elif base:
            pairs = [("base", base), *(("with", one) for one in chosen)]
            try:
                self._comparison(base, chosen)
                values["shown"] = urllib.parse.urlencode(
                    [(name, urllib.parse.quote(place)) for name, place in pairs]
                )
            except TunesmithError as mistake:
                values["fault"] = str(mistake)
        return self._frame.page(request, "compare.html", values, "/compare")

    def compared(self, request: Request) -> Response:
        """Show the page that ``tunesmith compare --report`` makes."""
        asked = request.query_params
        try:
            html = self._comparison(
                unquoted(asked.get("base", "")), list(map(unquoted, asked.getlist("with")))
            )
        except TunesmithError as mistake:
            raise told(mistake) from None
        return pages.report_page(html)

    def _comparison(self, base: str, chosen: Sequence[str]) -> str:
        known = self.runs.sets()
        places = list(dict.fromkeys([base, *chosen]))[:MOST_SETS]
        if any(place not in known for place in places):
            raise Fault(404, "There is no such set of answers.", code="not_found")
        paths = [known[place] for place in places]
        key = tuple((str(path), (path / ATTEMPTS).stat().st_mtime_ns) for path in paths)
        if self._last[0] != key:  # the page asks, and then the frame in it
            self._last = (key, self._compared(paths))
        return self._last[1]


def _set(place: str, path: Path) -> dict[str, Any] | None:
    """Return what is known of a finished set of answers."""
    header = read_header(path)
    if header is None:
        return None
    return {
        "place": place,
        "name": header.name,
        "task": header.task,
        "prompt": header.prompt,
        "planned": header.planned,
    }
