"""Clients that are slow or many: others are answered, and the broker is reached again."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from edge.base.clock import utc_now
from edge.health.prometheus import Metrics
from edge.watch import live_routes, patience, web
from edge.watch.rooms import Rooms
from edge.watch.web import PageAddress, Server
from support.brokers import Mosquitto, free_port
from support.fetch import get
from support.heard import counts, heard
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

HALF = b"GET /state HTTP/1.1\r\nHost: localhost\r\nX-A: "
MANY = 1100


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Let the test itself open enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A page with one room, whose clients have two seconds."""
    monkeypatch.setattr(web, "REQUEST_SECONDS", 2.0)
    monkeypatch.setattr(patience, "ANSWER_SECONDS", 4.0)
    # As in a page's life, several of its comments fall into the time in which an event must be taken.
    monkeypatch.setattr(live_routes, "QUIET_SECONDS", 1.0)
    rooms, where = Rooms(), PageAddress("127.0.0.1", free_port())
    rooms.hear(heard(counts(1, start=utc_now())), utc_now())
    server = Server(rooms, lambda: "", where)
    server.start()
    yield server
    server.close()


@pytest.fixture
def page(server: Server) -> int:
    """Its port."""
    return int(server.listeners[0].getsockname()[1])


def half_sent(port: int, stack: ExitStack, number: int, text: bytes = HALF) -> list[socket.socket]:
    made = []
    for _ in range(number):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
        with suppress(OSError):  # ended before it spoke
            client.sendall(text)
        made.append(client)
    return made


def closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.slow
def test_a_page_full_of_half_sent_requests_answers_at_once(page: int, descriptors: None) -> None:
    with ExitStack() as stack:
        clients = half_sent(page, stack, MANY)
        for _ in range(5):
            assert get(f"http://127.0.0.1:{page}/state")[0] == 200
        wait_for(lambda: all(map(closed, clients)), "all ended", every=0.2)
        assert get(f"http://127.0.0.1:{page}/")[0] == 200


@pytest.mark.slow
def test_a_header_that_comes_byte_by_byte_is_ended(page: int) -> None:
    with ExitStack() as stack:
        (client,) = half_sent(page, stack, 1)
        began = time.monotonic()
        with suppress(OSError):
            while not closed(client):
                assert time.monotonic() - began < PATIENCE
                client.setblocking(True)
                client.sendall(b"a")
                time.sleep(0.1)


@pytest.mark.slow
def test_who_takes_no_answer_is_ended(server: Server, page: int) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", page))
        ask = b"GET /plotly.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(ask)
        made = server.listeners[0].connections
        wait_for(lambda: made, "accepted")
        wait_for(lambda: not made or all(c.ended for c in made.values()), "ended")
        got = 0
        client.settimeout(PATIENCE)
        with suppress(ConnectionError):
            while part := client.recv(1 << 16):
                got += len(part)
        assert got < 3_000_000, "cut, though it never read"


@pytest.mark.slow
def test_event_streams_are_few_and_what_is_left_answers(
    page: int, monkeypatch: pytest.MonkeyPatch, descriptors: None
) -> None:
    ask = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        clients = half_sent(page, stack, live_routes.MOST_STREAMS, ask)
        for client in clients:
            assert b"200 OK" in client.recv(4096)
        code, headers, _ = get(f"http://127.0.0.1:{page}/events")
        assert (code, headers["retry-after"]) == (503, "10")
        assert get(f"http://127.0.0.1:{page}/state")[0] == 200
        time.sleep(6)
        assert not any(map(closed, clients)), "streams that are read live on"
    wait_for(lambda: b"200" in first_line(page, ask), "streams that are gone make room", every=0.5)


def first_line(port: int, ask: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(ask)
        return client.recv(20)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.slow
def test_the_nodes_metrics_answer_beside_half_sent_requests(descriptors: None) -> None:
    before = threads()  # what earlier tests of this process left
    metrics = Metrics(port := free_port())
    try:
        with ExitStack() as stack:
            clients = half_sent(port, stack, MANY)
            code, headers, text = get(f"http://127.0.0.1:{port}/metrics")
            assert code == 200
            assert b"edge_online 0.0" in text
            assert headers["content-type"].startswith("text/plain")
            wait_for(lambda: all(map(closed, clients)), "all ended", every=0.2)
            half_sent(port, stack, 1, b"A" * 100_000)
            assert get(f"http://127.0.0.1:{port}/metrics")[0] == 200
            assert get(f"http://127.0.0.1:{port}/other")[0] == 404
            assert threads() < before + 40, "no thread a client"
    finally:
        metrics.close()


@pytest.mark.broker
def test_a_recorder_reaches_its_broker_again_beside_half_sent_requests(
    mosquitto: Mosquitto, tmp_path: Path, descriptors: None
) -> None:
    port, log = free_port(), tmp_path / "watch.log"
    limits = (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with log.open("ab") as out, ExitStack() as stack:
        watch = subprocess.Popen(
            [sys.executable, "-m", "edge.watch.run", "--broker", mosquitto.url, "--record",
             tmp_path / "school.sqlite", "--web", str(port)],
            cwd=ROOT, stderr=out, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        )  # fmt: skip
        stack.callback(watch.kill)

        def broker_says(word: bytes) -> bool:
            with suppress(OSError):
                return word in get(f"http://127.0.0.1:{port}/state")[2]
            return False

        wait_for(lambda: broker_says(b'"broker": "connected'), log.read_text, every=0.2)
        half_sent(port, stack, MANY)
        mosquitto.stop()
        wait_for(lambda: not broker_says(b'"broker": "connected'), log.read_text, every=0.2)
        half_sent(port, stack, MANY)
        mosquitto.start()
        wait_for(lambda: broker_says(b'"broker": "connected'), log.read_text, every=0.2)
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(PATIENCE) == 0
    text = log.read_text()
    assert "Traceback" not in text
    assert len(text) < 5000
    assert text.count("the page ended") <= 3
