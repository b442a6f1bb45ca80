"""A page with buttons, what it asked nodes, and a browser's part of it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.base.clock import utc_now
from edge.base.errors import BrokerError
from edge.watch.command import Answer, Order, Outcome
from edge.watch.control import Control
from edge.watch.rooms import Rooms
from edge.watch.web import PageAddress, Server
from support.brokers import free_port
from support.heard import heard, raw
from support.patience import PATIENCE

PASSWORD = "plum-kettle-94-orbit"
NODES = ("north/room-1/cam", "north/room-2/cam", "south/room-1/cam")


@dataclass
class Reply:
    status: int
    content: dict[str, Any]
    cookie: str
    kind: str = ""


class Page:
    """A page with buttons, what it asked nodes, and a browser's part of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], Order]] = []
        self.fault: BrokerError | None = None
        self.wait: threading.Event | None = None
        self.now = 0.0
        self.port = free_port()
        rooms = Rooms()
        for node in NODES:
            rooms.hear(heard(raw("status", node)), utc_now())
        address = PageAddress("127.0.0.1", self.port, names=("rooms.school.example",))
        self.control = control = Control(
            PASSWORD,
            lambda: NODES,
            self._ask,
            names=address.names,
            clock=lambda: self.now,
        )
        self.server = Server(rooms, lambda: "connected", address, control=control)
        self.server.start()

    def _ask(self, nodes: Sequence[str], asked: Order) -> list[Answer]:
        self.asked.append((list(nodes), asked))
        if self.wait is not None:
            assert self.wait.wait(PATIENCE)
        if self.fault is not None:
            raise self.fault
        return [Answer(node, Outcome.DONE, f"{asked.name} was done") for node in nodes]

    def send(self, method: str, path: str, content: object = None, **headers: str | None) -> Reply:
        """As the page sends it; a header that is None is left out."""
        mine = {
            "Origin": f"http://127.0.0.1:{self.port}",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        sent = {name: value for name, value in mine.items() if value is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        connection.request(method, f"/control{path}", None if method == "GET" else body, sent)
        answer = connection.getresponse()
        text = answer.read()
        cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
        connection.close()
        found = json.loads(text) if text.startswith(b"{") else {}
        return Reply(answer.status, found, cookie, answer.getheader("content-type") or "")

    def unlock(self, password: str = PASSWORD, **headers: str | None) -> Reply:
        return self.send("POST", "/open", {"password": password, "who": "Ada"}, **headers)

    def command(self, reply: Reply, content: object = None, **headers: str | None) -> Reply:
        """A pause for ten minutes, with the cookie and token of who unlocked."""
        pause = {"command": "pause", "target": NODES[0], "amount": 10}
        own = {"Cookie": reply.cookie, "X_Control_Token": reply.content["token"], **headers}
        return self.send("POST", "/ask", pause if content is None else content, **own)
