"""The page's buttons: commands to nodes, for those who know a second password.

What changes anything is a POST of JSON from the page itself: its Origin is checked, a cookie that no
other site's request carries (SameSite=Strict), and a token that only this page can read. All is logged:
who, from where, what, which node, what it answered.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge.base.errors import EdgeError, UsageError
from edge.base.setting_types import default_state
from edge.delivery.commands import NAMES, Name
from edge.delivery.credentials import read_password
from edge.delivery.protocol import MEMORY_FILE
from edge.watch.command import Answer, Caller, Order, check_target, matches, order
from edge.watch.guard import host_name
from edge.watch.lines import SHORT, printable
from edge.watch.options import broker_settings
from edge.watch.password import Budget, require_strong

if TYPE_CHECKING:
    from edge.watch.rooms import Rooms

log = logging.getLogger(__name__)

COOKIE = "control"
OPEN_SECONDS = 900.0  # without a command: then the password is asked for again
MOST_OPEN = 100
MOST_AT_ONCE = 4  # commands on their way, each with a connection of its own
LARGEST_BYTES = 4096
Ask = Callable[[Sequence[str], Order], Sequence[Answer]]


@dataclass(slots=True)
class Session:
    """Of one browser. token: against requests that another site makes; until: of our own clock."""

    token: str
    who: str
    until: float


class Refusal(Exception):
    """What a request gets that is not served: an HTTP status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Control:
    """Who may command, and what they ask for."""

    def __init__(
        self,
        password: str,
        nodes: Callable[[], Sequence[str]],
        ask: Ask,
        tls: bool = False,
        names: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """nodes: which there are; ask: asks them and waits for their answers, and raises EdgeError
        where it cannot; names: by which a proxy is asked for the page."""
        self._key = os.urandom(32)
        self._expected = self._digest(password)
        self._nodes, self._ask, self._clock = nodes, ask, clock
        self._names = frozenset(names)
        self._cookie = f"; Path=/control; HttpOnly; SameSite=Strict{'; Secure' if tls else ''}"
        self._guesses, self._pace = Budget(clock), Budget(clock)
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._busy = threading.BoundedSemaphore(MOST_AT_ONCE)

    def _digest(self, text: str) -> bytes:
        # JSON may hold half of a sign ("\ud800"), which is a wrong password like any other.
        return hmac.digest(self._key, text.encode(errors="surrogatepass"), hashlib.sha256)

    def routes(self) -> list[Route]:
        return [
            Route("/control", self._answering(self._look), methods=["GET"]),
            Route("/control/open", self._answering(self._unlock), methods=["POST"]),
            Route("/control/close", self._answering(self._lock), methods=["POST"]),
            Route("/control/ask", self._answering(self._command), methods=["POST"]),
        ]

    def _answering(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> JSONResponse:
            try:
                found = await handler(request)
            except Refusal as refusal:
                return JSONResponse({"error": str(refusal)}, refusal.status)
            return found if isinstance(found, JSONResponse) else JSONResponse(found)

        return answer

    async def _look(self, request: Request) -> dict[str, Any]:
        session = self._session(request)
        if session is None:
            return {"offered": True, "open": False}
        return self._shown(session)

    def _shown(self, session: Session) -> dict[str, Any]:
        nodes = sorted(self._nodes())
        return {"offered": True, "open": True, "token": session.token, "nodes": nodes}

    def _session(self, request: Request) -> Session | None:
        """The browser's own, where it is still open."""
        key = request.cookies.get(COOKIE, "")
        session = self._open.get(key)
        if session is None or session.until < self._clock():
            self._open.pop(key, None)
            return None
        return session

    def _check_origin(self, request: Request) -> None:
        """Refuse what another site's page, or a form, sends."""
        try:
            origin = urlsplit(request.headers.get("origin", "")).netloc
        except ValueError:  # a bracket that is never closed
            origin = ""
        host = request.headers.get("host", "")
        # A proxy may ask for the page by another name than the browser's.
        ours = origin.lower() == host.lower() or host_name(origin) in self._names
        site = request.headers.get("sec-fetch-site", "same-origin")
        if not origin or not ours or site != "same-origin":
            log.warning("control refused another origin address=%s", _address(request))
            raise Refusal(403, "only this page itself may command; a proxy's name: --web-host")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise Refusal(415, "wants JSON")

    async def _posted(self, request: Request) -> dict[str, Any]:
        """The JSON object of a POST that the page itself made. Raises Refusal."""
        self._check_origin(request)
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > LARGEST_BYTES:
                raise Refusal(413, "too large")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refusal(400, "wants a JSON object")
        return found

    async def _unlock(self, request: Request) -> JSONResponse:
        posted, address = await self._posted(request), _address(request)
        password, who = posted.get("password"), posted.get("who")
        if not isinstance(password, str) or not isinstance(who, str) or not who.strip():
            raise Refusal(400, "give your name, for the log, and the password")
        name = printable(who.strip(), 60)
        # Before the password is looked at, so that the answer tells nothing of it.
        if not self._guesses.allowed(address):
            raise Refusal(429, "too many wrong passwords from this address; wait two seconds")
        if not hmac.compare_digest(self._digest(password), self._expected):
            self._guesses.spend(address)
            log.warning("control wrong password who=%r address=%s", name, address)
            raise Refusal(403, "this is not the password for commands")
        key = secrets.token_urlsafe(32)
        session = Session(secrets.token_urlsafe(32), name, self._clock() + OPEN_SECONDS)
        self._open[key] = session
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        log.info("control opened who=%r address=%s", name, address)
        answer = JSONResponse(self._shown(session))
        answer.headers["set-cookie"] = f"{COOKIE}={key}{self._cookie}"
        return answer

    def _known(self, request: Request) -> Session:
        """The session of a POST, by cookie and token. Raises Refusal."""
        session = self._session(request)
        if session is None:
            raise Refusal(401, "locked; give the password for commands")
        given = request.headers.get("x-control-token", "").encode()
        if not hmac.compare_digest(given, session.token.encode()):
            raise Refusal(403, "the token is not this page's; load it again")
        return session

    async def _lock(self, request: Request) -> JSONResponse:
        self._check_origin(request)
        session = self._known(request)
        self._open.pop(request.cookies[COOKIE], None)
        log.info("control closed who=%r address=%s", session.who, _address(request))
        answer = JSONResponse({"offered": True, "open": False})
        answer.headers["set-cookie"] = f"{COOKIE}={self._cookie}; Max-Age=0"
        return answer

    async def _command(self, request: Request) -> dict[str, Any]:
        posted = await self._posted(request)
        session, address = self._known(request), _address(request)
        asked, nodes = self._meant(posted)
        if not self._pace.allowed(address):
            raise Refusal(429, "too many commands from this address; wait two seconds")
        self._pace.spend(address)
        session.until = self._clock() + OPEN_SECONDS
        if not self._busy.acquire(blocking=False):
            raise Refusal(503, "other commands wait for their answers; try again")
        try:
            answers = await run_in_threadpool(self._ask, nodes, asked)
        except EdgeError as error:
            log.warning(
                "control %s %s nodes=%s who=%r address=%s failed: %s",
                asked.name, asked.arguments, ",".join(nodes), session.who, address, error,
            )  # fmt: skip
            raise Refusal(502, f"nothing is known to be done: {printable(error, SHORT)}") from error
        finally:
            self._busy.release()
        for answer in answers:
            log.info(
                "control %s %s node=%s who=%r address=%s %s: %s",
                asked.name, asked.arguments, answer.node, session.who, address,
                answer.outcome.value, answer.text,
            )  # fmt: skip
        found = [
            {"node": a.node, "outcome": a.outcome.value, "text": printable(a.text, SHORT)}
            for a in answers
        ]
        return {"answers": found}

    def _meant(self, posted: dict[str, Any]) -> tuple[Order, list[str]]:
        """Which command, and to which of the nodes that the page knows. Raises Refusal."""
        name, target, amount = (posted.get(key) for key in ("command", "target", "amount"))
        number = amount is None or (
            isinstance(amount, int | float) and not isinstance(amount, bool)
        )
        known: Name | None = next((known for known in NAMES if known == name), None)
        if known is None or not isinstance(target, str) or not number:
            raise Refusal(400, "wants command, target and amount")
        try:
            asked, pattern = order(known, amount), check_target(target)
        except UsageError as error:
            raise Refusal(400, str(error)) from error
        nodes = sorted(node for node in self._nodes() if matches(pattern, node))
        if not nodes:
            raise Refusal(404, "no such room")
        return asked, nodes


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def open_control(
    args: argparse.Namespace, rooms: Rooms, page: str | None, tls: bool, names: Sequence[str]
) -> Control | None:
    """Make the page's buttons; None where there is no password for them. page: its own password; tls,
    names: as of `Control`. Raises UsageError."""
    option = "--control-password-file"
    password = read_password(args.control_password_file, option)
    if password is None:
        return None
    require_strong(password, option)
    if password == page:
        raise UsageError(f"{option} and --web-password-file hold the same password; give another")
    settings, memory = broker_settings(args), default_state() / MEMORY_FILE

    def ask(nodes: Sequence[str], asked: Order) -> list[Answer]:
        with Caller(settings, memory) as caller:
            return caller.ask(nodes, asked)

    def nodes() -> list[str]:
        return [room.node for room in rooms.snapshot()]

    return Control(password, nodes, ask, tls, names)


def no_control() -> list[Route]:
    """What the page gets that asks for buttons where there are none."""

    async def look(request: Request) -> JSONResponse:
        return JSONResponse({"offered": False})

    return [Route("/control", look, methods=["GET"])]
