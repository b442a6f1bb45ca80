"""What time it is, whether that can be true, and what the school's time servers say.

Durations never come from here: they are monotonic. Setting the clock is the system's work.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from edge.base.errors import SourceError

# Of this release: no true clock is before it, and none twenty years after.
EARLIEST = datetime(2026, 11, 1, tzinfo=timezone.utc).timestamp()
LATEST = EARLIEST + 20 * 365.25 * 86400

TIME_ERROR = 5
NOTED = Path("/run/systemd/timesync/synchronized")
# After so long without a correction the kernel trusts its clock no more: 500 ppm make 16 s of it.
HELD_SECONDS = 32_000.0

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

# fromisoformat alone also reads other forms, and with each version of Python more of them.
RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")

SNTP_PORT = 123
SNTP_TO_UNIX = 2_208_988_800  # seconds from 1900 to 1970
ERA = 2**32  # SNTP's seconds wrap in 2036
CLIENT_4 = 0x23  # no warning, version 4, mode client
SERVER, UNSYNCHRONISED = 4, 3


def utc_now() -> datetime:
    """Read the system's clock, as a moment that knows its zone."""
    return datetime.now(timezone.utc)


def rfc3339(utc: float) -> str:
    """Format UTC seconds with milliseconds and Z (RFC 3339), on both sides of 1970 and beyond what
    time_t can print."""
    try:
        moment = EPOCH + timedelta(milliseconds=round(utc * 1000))
    except OverflowError:
        moment = EPOCH
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


@functools.lru_cache(maxsize=4096)
def parse_rfc3339(text: str) -> datetime:
    """Read what `rfc3339` wrote; raises ValueError."""
    # A recorder reads thousands a second, most of them twice: strptime takes 7 µs, this less than one.
    if RFC3339.fullmatch(text) is None:
        raise ValueError(f"time {text!r} does not match 2026-11-25T12:00:00.000Z")
    return datetime.fromisoformat(f"{text[:-1]}+00:00")  # Python 3.10 reads no Z


def plausible(utc: float) -> bool:
    """Whether a clock (UTC seconds) can be right: a board without a battery starts in 1970."""
    return EARLIEST <= utc <= LATEST


@functools.cache
def _libc() -> ctypes.CDLL:
    # To open it anew takes ten times as long as to ask it, and every message asks.
    return ctypes.CDLL(None, use_errno=True)


def _kernel_state() -> int:
    try:
        # struct timex is 208 bytes on 64-bit Linux; modes = 0 only reads.
        return int(_libc().adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return -1


def clock_synced(kernel: Callable[[], int] = _kernel_state, noted: Path = NOTED) -> bool | None:
    """Whether the clock is disciplined, by the kernel (adjtimex(2): not TIME_ERROR) or, where a sandbox
    forbids to ask it (ProtectClock=), by what systemd-timesyncd notes; None if unknown.

    noted: the file that it touches at each correction, in a folder that is there while it runs.
    """
    if (state := kernel()) >= 0:
        return state != TIME_ERROR
    try:
        return abs(time.time() - noted.stat().st_mtime) <= HELD_SECONDS
    except OSError:
        return False if noted.parent.is_dir() else None


def offset(
    server: str,
    port: int = SNTP_PORT,
    timeout: float = 2.0,
    utc: Callable[[], float] = time.time,
) -> float:
    """Seconds by which this clock is behind a time server's (negative: ahead), by one SNTP question
    (RFC 4330). Raises SourceError where it gives no answer that can be used."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(server, port, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(family, kind, proto) as wire:
            wire.settimeout(timeout)
            wire.connect(address)  # answers of others are not heard
            # Random, so that only who saw the question can answer it.
            asked, mark = utc(), os.urandom(8)
            wire.send(bytes([CLIENT_4]) + bytes(39) + mark)
            packet = wire.recv(512)
            heard = utc()
    except OSError as error:
        raise SourceError(
            f"time server {server} gives no answer ({error.strerror or error}); check the name and "
            f"that UDP port {port} is open"
        ) from error
    if len(packet) < 48 or packet[0] & 7 != SERVER or packet[24:32] != mark:
        raise SourceError(f"{server} does not answer like a time server; give another")
    if packet[0] >> 6 == UNSYNCHRONISED or not 0 < packet[1] < 16:
        raise SourceError(f"time server {server} does not know the time itself")
    received, sent = (_unix(packet[at : at + 8]) for at in (32, 40))
    return ((received - asked) + (sent - heard)) / 2


def _unix(stamp: bytes) -> float:
    """SNTP's 64 bits as Unix time, in the era (136 years) of the release."""
    seconds, part = struct.unpack("!II", stamp)
    unix = float(seconds - SNTP_TO_UNIX)
    while unix < EARLIEST - ERA / 2:
        unix += ERA
    return unix + float(part) / ERA
