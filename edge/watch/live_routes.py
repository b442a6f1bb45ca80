"""Where a page asks for the rooms: once, or as they change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edge.watch.feed import Feed, Squeeze
from edge.watch.schools import EVENT_SECONDS, Watchers

QUIET_SECONDS = 15.0
MOST_STREAMS = 100


def takes_gzip(request: Request) -> bool:
    """Tell whether who asks reads what gzip compressed."""
    return "gzip" in request.headers.get("accept-encoding", "")


def live_routes(watchers: Watchers, stop: threading.Event) -> list[Route]:
    """Make the routes of what `watchers` makes. stop: ends what streams."""
    streams = 0

    def asked(request: Request) -> Feed:
        return watchers.feed(request.query_params.getlist("open"))

    def snapshot(request: Request) -> Response:
        return Response(asked(request).since(None)[1][0], media_type="application/json")

    async def events(request: Request) -> Response:
        nonlocal streams
        if streams >= MOST_STREAMS:
            return Response("too many watch\n", 503, {"retry-after": "10"}, "text/plain")

        async def stream() -> AsyncIterator[bytes]:
            nonlocal streams
            number: int | None = None
            squeeze, quiet = Squeeze(takes_gzip(request)), 0.0
            streams += 1
            try:
                feed = await run_in_threadpool(asked, request)
                while not (stop.is_set() or await request.is_disconnected()):
                    number, texts = await run_in_threadpool(feed.since, number)
                    quiet = 0.0 if texts else quiet + EVENT_SECONDS
                    if texts:
                        yield squeeze.event("".join(f"data: {text}\n\n" for text in texts))
                    elif quiet >= QUIET_SECONDS:
                        # A comment keeps proxies from closing what is quiet.
                        yield squeeze.event(": quiet\n\n")
                        quiet = 0.0
                    await asyncio.sleep(EVENT_SECONDS)
            finally:
                streams -= 1

        headers = {"vary": "accept-encoding", "x-accel-buffering": "no"}
        if takes_gzip(request):
            headers["content-encoding"] = "gzip"
        if request.method == "HEAD":  # a stream of nothing would take one's place, without end
            return Response(None, 200, headers, "text/event-stream")
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    return [Route("/snapshot", snapshot), Route("/events", events)]
