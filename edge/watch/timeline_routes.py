"""Where a page asks for its timeline, and where others have it as CSV."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.watch.database import StoreError
from edge.watch.feed import Made
from edge.watch.timelines import SPANS, Timelines

log = logging.getLogger(__name__)

HELD_SECONDS = 2.0  # as long a timeline serves all who ask for it
STORED_SECONDS = 60.0  # and one from the recorder's database
MOST_MADE = 64
LONGEST_CHANGE = 40  # characters
# For which nobody asks a database that gave no answer: each who does waits in a thread that the rest of
# the page needs.
AWAY_SECONDS = 10.0


def timeline_routes(drawn: Timelines, clock: Callable[[], float] = time.monotonic) -> list[Route]:
    """Make the routes of what `drawn` draws."""
    away_until, why = 0.0, ""

    def asked(span: str, draw: Callable[[], str]) -> str:
        """What is drawn. Raises StoreError, at once where the database just gave no answer."""
        nonlocal away_until, why
        if SPANS[span].stored and clock() < away_until:
            raise StoreError(why)
        try:
            return draw()
        except StoreError as error:
            away_until, why = clock() + AWAY_SECONDS, str(error)
            raise

    def text(key: str) -> str:
        span, place, after = key.split("\n")
        return asked(
            span,
            lambda: json.dumps(
                drawn.draw(span, place, after), allow_nan=False, separators=(",", ":")
            ),
        )

    held, stored = Made(text, HELD_SECONDS, MOST_MADE), Made(text, STORED_SECONDS, MOST_MADE)

    def answer(request: Request, make: Callable[[str, str], Response]) -> Response:
        place = request.query_params.get("place", "")
        span = request.query_params.get("span", "hours")
        if span not in drawn.spans:
            return Response("no such span\n", 404, media_type="text/plain")
        if not drawn.known(place):
            said = "no such room: 'place' is a site, or site/room/node as /state names it\n"
            return Response(said, 404, media_type="text/plain")
        try:
            return make(span, place)
        except StoreError as error:
            log.warning("%s; the page shows no stored time", error)
            return Response(
                "the database is away\n", 503, {"retry-after": f"{AWAY_SECONDS:.0f}"}, "text/plain"
            )

    def timeline(request: Request) -> Response:
        after = request.query_params.get("after", "")[:LONGEST_CHANGE].replace("\n", "")

        def make(span: str, place: str) -> Response:
            made = stored if SPANS[span].stored else held
            content = made.get("\n".join((span, place, after)))
            return Response(content, media_type="application/json")

        return answer(request, make)

    def table(request: Request) -> Response:
        def make(span: str, place: str) -> Response:
            name = f"{place.replace('/', '-') or 'all'}-{span}.csv"
            kept = {"content-disposition": f'attachment; filename="{name}"'}
            content = asked(span, lambda: drawn.csv(span, place))
            return Response(content, media_type="text/csv", headers=kept)

        return answer(request, make)

    return [Route("/timeline", timeline), Route("/timeline.csv", table)]
