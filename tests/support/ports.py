"""Ports of loopback that stay a test's own, also while nothing listens there yet, or not any more."""

from __future__ import annotations

import fcntl
import functools
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import BinaryIO

FIRST = 10_000
# From here on the kernel gives a port to every client, and to every server that asks for any.
KERNELS = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

_given: set[int] = set()


@functools.cache
def _book() -> BinaryIO:
    """A file in which each process that runs tests locks a byte a port, for as long as it lives."""
    return (Path(tempfile.gettempdir()) / f"edge-test-ports-{os.getuid()}").open("ab")


def free_port() -> int:
    """Return a port that nobody uses, and that no other process of tests is given meanwhile.

    A broker may be killed and come back to it, a client may find nobody there: with one of the kernel's
    own it would be somebody else's now and then."""
    assert KERNELS > FIRST, "no ports but the kernel's own: see net.ipv4.ip_local_port_range"
    while not reserve(port := random.SystemRandom().randrange(FIRST, KERNELS)):
        pass
    return port


def reserve(port: int) -> bool:
    """Take a port for this process; return whether nobody had it."""
    if port in _given:
        return False
    try:
        fcntl.lockf(_book(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        return False  # its lock, if it is ours, keeps it from nobody: it is in use
    _given.add(port)
    return True
