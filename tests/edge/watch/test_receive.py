"""The connection that hears every node: why it was lost."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from edge.settings import Broker
from edge.watch.receive import Receiver, SessionOptions
from support.patience import wait_for

CONNACK, SUBACK = b"\x20\x03\x00\x00\x00", b"\x90\x07\x00\x01\x00\x01\x01\x01\x01"


def broker_that_ends_with(last: bytes) -> tuple[str, socket.socket]:
    """A broker that takes everybody, sends `last` after the subscription, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    for answer in (CONNACK, SUBACK + last):
                        client.recv(4096)
                        client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"mqtt://127.0.0.1:{listener.getsockname()[1]}", listener


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "first"),
    [
        (b"\xe0\x02\x8e\x00", "another client with the same id took this one's place"),
        (b"", "lost again and again; where another client has the same id"),
    ],
)
def test_a_recorder_whose_client_id_another_has_is_told_so(last: bytes, first: str) -> None:
    url, listener = broker_that_ends_with(last)
    receiver = Receiver(
        Broker(url=url, protocol="5"), lambda *_: None, SessionOptions("same"), True
    )
    stop = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    said = f"away: {first}"
    wait_for(lambda: str(receiver.state).startswith(said), lambda: str(receiver.state))
    assert str(receiver.state).endswith("give each recorder a --client-id of its own")
    stop.set()
    thread.join()
    listener.close()
