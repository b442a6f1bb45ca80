"""`edge-watch --web`: a page of rooms and their timeline, live, asking no other host for anything.

Files of ours come from `page/`, the charts' script from the installed plotly package. On loopback it is
open to who sits there; elsewhere it wants a password, and a certificate or a proxy in front.
"""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import json
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.base.listen import Listener
from edge.base.schedule import find_zone
from edge.watch import view
from edge.watch.control import Control, no_control
from edge.watch.feed import Made
from edge.watch.guard import Guard, host_name
from edge.watch.history import History
from edge.watch.languages import choose, dress
from edge.watch.live_routes import live_routes, takes_gzip
from edge.watch.openapi import document
from edge.watch.password import require_strong
from edge.watch.patience import Patience
from edge.watch.rooms import Rooms
from edge.watch.schools import EVENT_SECONDS, MOST_OPENED, Watchers
from edge.watch.timeline_routes import timeline_routes
from edge.watch.timelines import Timelines

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
SCRIPTS = (
    *("page.js", "rooms.js", "schools.js", "timeline.js", "colours.js", "make.js", "words.js"),
)
START_SECONDS = 10.0
MOST_CONNECTIONS = 256
REQUEST_SECONDS = 10.0  # for a TLS handshake and a whole request
HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where the page is served, and who may see it. password: None on loopback alone; names: by which
    it is asked for too, such as a proxy's."""

    host: str
    port: int
    password: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    names: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}/"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host's name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(
    text: str,
    password: str | None,
    certificate: Path | None = None,
    key: Path | None = None,
    names: Sequence[str] = (),
) -> PageAddress:
    """Read HOST:PORT. Raises UsageError, also where the page would be open to others, by no password or
    one that is soon guessed."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--web must be HOST:PORT, such as 127.0.0.1:8080, not '{text}'")
    if (certificate is None) != (key is None):
        raise UsageError("--web-certificate and --web-key go together")
    if password == "":
        raise UsageError("the file of --web-password-file has an empty first line")
    if not is_loopback(host) and password is None:
        raise UsageError(
            f"--web {text} is open to everybody who reaches {host}: give --web-password-file (user "
            f"'school'), or stay on 127.0.0.1 behind a proxy that asks for one"
        )
    if password is not None:
        require_strong(password)
    return PageAddress(host, int(port), password, certificate, key, tuple(map(_name, names)))


def _name(text: str) -> str:
    """Check a name of --web-host. Raises UsageError."""
    name = text.lower().strip("[]").rstrip(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if not HOST_NAME.fullmatch(name):
            raise UsageError(
                f"--web-host must be a name without port, such as rooms.school.example, not '{text}'"
            ) from None
    return name


def application(
    rooms: Rooms,
    broker: Callable[[], str],
    address: PageAddress,
    stop: threading.Event,
    listeners: Sequence[Listener] = (),
    clock: Callable[[], datetime] = utc_now,
    control: Control | None = None,
    timelines: Timelines | None = None,
    zone: str = "UTC",
) -> Starlette:
    """Make the page's application. broker: describes the connection to it; stop: ends what streams;
    listeners: through which it is reached; control: its buttons; zone: in which it writes moments."""
    script = charts_script()
    drawn = timelines or Timelines(rooms, clock, find_zone(zone))

    def file(name: str, kind: str) -> Callable[[Request], Response]:
        return lambda request: Response((PAGE / name).read_bytes(), media_type=kind)

    def index(request: Request) -> Response:
        language = choose(request.headers.get("accept-language", ""))
        facts = {"zone": zone, "spans": drawn.spans, "mostOpened": MOST_OPENED}
        headers = {"content-language": language, "vary": "accept-language"}
        return Response(dress(PAGE, language, facts), media_type="text/html", headers=headers)

    def plotly(request: Request) -> Response:
        kept = {"cache-control": "private, max-age=86400", "vary": "accept-encoding"}
        if not takes_gzip(request):
            return Response(gzip.decompress(script), media_type="text/javascript", headers=kept)
        kept["content-encoding"] = "gzip"
        return Response(script, media_type="text/javascript", headers=kept)

    now = Made(
        lambda _: json.dumps(view.state(rooms, broker(), clock()), allow_nan=False),
        EVENT_SECONDS,
        1,
    )

    def state(request: Request) -> Response:
        return Response(now.get(), media_type="application/json")

    def openapi(request: Request) -> Response:
        return JSONResponse(document(drawn.spans, control is not None))

    @asynccontextmanager
    async def sweeping(app: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(1.0)
                for listener in listeners:
                    listener.sweep()

        task = asyncio.get_running_loop().create_task(sweep())
        yield
        task.cancel()

    return Starlette(
        lifespan=sweeping,
        routes=[
            Route("/", index),
            *(Route(f"/{name}", file(name, "text/javascript")) for name in SCRIPTS),
            Route("/page.css", file("page.css", "text/css")),
            Route("/plotly.js", plotly),
            Route("/state", state),
            *live_routes(Watchers(rooms, broker, clock), stop),
            *timeline_routes(drawn),
            Route("/openapi.json", openapi),
            Route("/control.js", file("control.js", "text/javascript")),
            Route("/control.css", file("control.css", "text/css")),
            *(control.routes() if control else no_control()),
        ],
        middleware=[
            Middleware(Patience, listeners=listeners),
            Middleware(
                Guard,
                password=address.password,
                names=page_names(address),
                tls=address.certificate is not None,
            ),
            Middleware(GZipMiddleware, minimum_size=1000),
        ],
    )


@cache
def charts_script() -> bytes:
    """Return plotly's script, compressed by gzip: half a second's work, done once a process."""
    return gzip.compress(get_plotlyjs().encode(), 6)


def page_names(address: PageAddress) -> frozenset[str] | None:
    """Return the names by which the page may be asked for, None for any. Without them a page of another
    site could read this one through a name of its own that resolves to loopback (DNS rebinding); beyond
    loopback a password is demanded instead."""
    if not (is_loopback(address.host) or address.names):
        return None
    return frozenset(
        {"localhost", "127.0.0.1", "::1", host_name(address.host), address.host, *address.names}
    )


def open_listeners(address: PageAddress) -> list[Listener]:
    """Listen at every address that the host's name has. Raises OSError."""
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    made: list[Listener] = []
    try:
        for family, *_, where in dict.fromkeys(found):
            most = MOST_CONNECTIONS
            made.append(
                Listener.open(
                    family, (str(where[0]), int(where[1])), "the page", most, REQUEST_SECONDS
                )
            )
    except OSError:
        for listener in made:
            listener.close()
        raise
    return made


class Server:
    """The page in a thread of its own."""

    def __init__(
        self,
        rooms: Rooms,
        broker: Callable[[], str],
        address: PageAddress,
        clock: Callable[[], datetime] = utc_now,
        control: Control | None = None,
        zone: str = "UTC",
        history: History | None = None,
    ) -> None:
        """broker: describes the connection to it; control: the page's buttons; zone: in which it writes
        moments; history: of the recorder, for days and weeks. Raises EdgeError where the address cannot
        be had."""
        self._address, self._stop = address, threading.Event()
        try:
            self.listeners = open_listeners(address)
        except OSError as error:
            raise self._unserved() from error
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(
                    rooms,
                    broker,
                    address,
                    self._stop,
                    self.listeners,
                    clock,
                    control,
                    Timelines(rooms, clock, find_zone(zone), history),
                    zone,
                ),
                # What accepts through the listener, and tells a client's own address.
                loop="asyncio",
                http="h11",
                ws="none",
                proxy_headers=False,
                lifespan="on",
                server_header=False,
                log_level="error",
                backlog=128,
                ssl_certfile=address.certificate,
                ssl_keyfile=address.key,
                timeout_graceful_shutdown=3,
            )
        )
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)

    def _unserved(self) -> EdgeError:
        return EdgeError(
            f"the page cannot be served at {self._address.url}: the port is taken, or the address or "
            f"certificate is not this machine's; give another to --web"
        )

    def _run(self) -> None:
        try:
            self._server.run(list(self.listeners))
        except (SystemExit, OSError) as error:
            # uvicorn's answer to a file that is not a certificate; see `start`.
            log.debug("the page ended: %s", error)
        finally:  # by the thread that serves them alone
            for listener in self.listeners:
                listener.close()

    def start(self) -> None:
        """Serve; returns once the page answers. Raises EdgeError where the address cannot be served."""
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.close()
                raise self._unserved()
            time.sleep(0.02)

    def close(self) -> None:
        self._stop.set()
        self._server.should_exit = True
        self._thread.join(timeout=5.0)
