"""Slow and many clients, on real sockets: they are ended, and others are answered."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from edge.base.listen import LOG_SECONDS, Connection, Listener


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def listener(clock: list[float]) -> Iterator[Listener]:
    made = Listener.open(
        socket.AF_INET, ("127.0.0.1", 0), "the page", 8, 10.0, clock=lambda: clock[0]
    )
    made.setblocking(True)
    yield made
    made.close()


def connect(listener: Listener, stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(listener.getsockname()[:2]))


def accepted(listener: Listener, stack: ExitStack) -> Connection:
    connect(listener, stack)
    made = listener.accept()[0]
    assert isinstance(made, Connection)
    return stack.enter_context(made)


def full(listener: Listener, clock: list[float], stack: ExitStack) -> list[Connection]:
    """As many as it takes, one after the other; the first waits longest."""
    made = []
    for _ in range(listener.most):
        made.append(accepted(listener, stack))
        clock[0] += 0.1
    return made


def test_a_connection_without_a_request_is_ended_in_time(
    listener: Listener, clock: list[float]
) -> None:
    with ExitStack() as stack:
        client = connect(listener, stack)
        made, _ = listener.accept()
        listener.sweep()
        clock[0] += 9
        listener.sweep()
        made.sendall(b"x")
        assert client.recv(1) == b"x"
        clock[0] += 2
        listener.sweep()
        assert client.recv(1) == b"", "ended"
        made.close()
        listener.sweep()
        assert listener.connections == {}


def test_an_answer_has_a_time_of_its_own(listener: Listener, clock: list[float]) -> None:
    with ExitStack() as stack:
        made = accepted(listener, stack)
        listener.begin(made, 60.0)
        clock[0] += 59
        listener.sweep()
        assert not made.ended
        listener.rest(made)
        clock[0] += 11
        listener.sweep()
        assert made.ended


def test_who_waits_longest_goes_first_and_who_is_answered_stays(
    listener: Listener, clock: list[float]
) -> None:
    with ExitStack() as stack:
        made = full(listener, clock, stack)
        listener.begin(made[0], 60.0)
        connect(listener, stack)
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert not made[0].ended
        assert made[1].ended
        made[1].close()
        assert isinstance(listener.accept()[0], Connection)


def test_the_last_to_come_stays_however_often_the_loop_asks(
    listener: Listener, clock: list[float]
) -> None:
    """asyncio accepts again before it has closed what was ended."""
    with ExitStack() as stack:
        made = full(listener, clock, stack)
        connect(listener, stack)
        for _ in range(5):
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert sum(one.ended for one in made) == listener.most // 2
        assert not made[-1].ended


def test_above_the_bound_with_all_answered_one_is_refused_in_one_line(
    listener: Listener, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        for _ in range(listener.most):
            listener.begin(accepted(listener, stack), 1e6)
        for _ in range(50):
            client = connect(listener, stack)
            with pytest.raises(BlockingIOError):
                listener.accept()
            assert client.recv(1) == b""
        with caplog.at_level(logging.WARNING):
            for _ in range(20):
                listener.sweep()
                clock[0] += 1
        assert [r.getMessage() for r in caplog.records] == [
            "the page ended 0 slow connections and refused 50 above 8"
        ]
        clock[0] += LOG_SECONDS


def test_without_a_descriptor_left_a_client_is_turned_away_and_nothing_spins(
    listener: Listener,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        client = connect(listener, stack)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with suppress(OSError):
            while True:
                stack.enter_context(Path("/dev/null").open())
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert client.recv(1) == b""


def test_a_spare_descriptor_that_somebody_else_took_is_not_closed(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        connect(listener, stack)
        opened: list[int] = []

        def taken(*_: object, **__: object) -> int:
            """Another thread opens what was free for a moment."""
            opened.append(os.dup(0))
            raise OSError(errno.EMFILE, "Too many open files")

        def full(_: object) -> tuple[socket.socket, object]:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", taken)
            patch.setattr(socket.socket, "accept", full)
            for _ in range(2):
                with pytest.raises(BlockingIOError):
                    listener.accept()
        listener.close()
        for handle in opened:
            os.close(handle)  # raises OSError where the listener closed it


def test_the_bound_leaves_descriptors_for_the_broker() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        made = Listener.open(socket.AF_INET, ("127.0.0.1", 0), "x", 256, 10.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert made.most == 100
    made.close()
