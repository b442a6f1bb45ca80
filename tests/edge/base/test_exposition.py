"""Figures whose server ends while it still answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge.base.exposition import ExpositionServer
from support.patience import PATIENCE, wait_for
from support.ports import free_port

pytest.importorskip("prometheus_client", reason="needs the extra metrics: prometheus-client serves")


class Slow:
    """Gives its figures once a test lets it."""

    def __init__(self) -> None:
        self.asked, self.given = threading.Event(), threading.Event()

    def collect(self) -> Iterator[Any]:
        self.asked.set()
        self.given.wait(PATIENCE)
        return iter(())


def test_an_end_that_does_not_wait_for_an_answer_leaves_the_rest_to_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It closed the listening socket beside its thread, which then died of that."""
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_value))
    monkeypatch.setattr("edge.base.exposition.CLOSE_SECONDS", 0.1)
    figures, port = Slow(), free_port()
    server = ExpositionServer("127.0.0.1", port, figures, "--metrics")
    serving = next(thread for thread in threading.enumerate() if thread.name == "metrics")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert figures.asked.wait(PATIENCE)
        server.close()
        assert serving.is_alive()
        figures.given.set()
        wait_for(lambda: not serving.is_alive(), "the end of the thread")
    assert died == []
    with socket.socket() as knock:
        assert knock.connect_ex(("127.0.0.1", port)) != 0, "nobody listens any more"
