"""Whether a clock can be right, and what time servers say, asked over a real socket."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.base.clock import (
    EARLIEST,
    HELD_SECONDS,
    LATEST,
    SNTP_TO_UNIX,
    clock_synced,
    offset,
    parse_rfc3339,
    plausible,
)
from edge.base.errors import SettingsError, SourceError
from edge.base.strict_yaml import validate
from edge.settings import Settings
from support.examples import examples

Answer = Callable[[bytes], bytes | None]
TRUE = 1_900_000_000.0  # what the servers here say: 2030


def stamp(utc: float) -> bytes:
    seconds = int(utc // 1)
    return struct.pack("!II", (seconds + SNTP_TO_UNIX) % 2**32, int((utc - seconds) * 2**32))


def packet(question: bytes, utc: float = TRUE, first: int = 0x24, stratum: int = 2) -> bytes:
    head = bytes([first, stratum]) + bytes(14) + stamp(utc)
    return head + question[40:48] + stamp(utc) + stamp(utc)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], int]]:
    """A time server on loopback, with answers of the test's; returns its port."""
    wires: list[socket.socket] = []

    def start(answer: Answer) -> int:
        wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        wire.bind(("127.0.0.1", 0))
        wires.append(wire)

        def run() -> None:
            try:
                while True:
                    question, asker = wire.recvfrom(512)
                    if (found := answer(question)) is not None:
                        wire.sendto(found, asker)
            except OSError:
                return

        threading.Thread(target=run, daemon=True).start()
        return int(wire.getsockname()[1])

    yield start
    for wire in wires:
        wire.close()


def test_a_time_server_is_asked_and_the_difference_told(
    serve: Callable[[Answer], int],
) -> None:
    port = serve(packet)
    assert offset("127.0.0.1", port, utc=lambda: TRUE - 12.5) == pytest.approx(12.5, abs=1e-3)
    fifty_years = 50 * 365.25 * 86400
    for wrong in (-fifty_years, fifty_years):
        found = offset("127.0.0.1", port, utc=lambda wrong=wrong: TRUE + wrong)
        assert found == pytest.approx(-wrong, abs=1e-3)


def test_sntp_goes_on_after_its_seconds_wrap_in_2036(serve: Callable[[Answer], int]) -> None:
    late = 2_200_000_000.0  # 2039
    port = serve(lambda question: packet(question, late))
    assert offset("127.0.0.1", port, utc=lambda: late) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q: None, "gives no answer"),
        (lambda q: b"", "does not answer like a time server"),
        (lambda q: packet(q)[:47], "does not answer like a time server"),
        (lambda q: packet(bytes(48)), "does not answer like a time server"),
        (lambda q: packet(q, first=0xE4), "does not know the time itself"),
        (lambda q: packet(q, stratum=0), "does not know the time itself"),
    ],
)
def test_what_is_no_answer_is_one_line(
    serve: Callable[[Answer], int], answer: Answer, words: str
) -> None:
    with pytest.raises(SourceError, match=words):
        offset("127.0.0.1", serve(answer), timeout=0.2)


def test_a_closed_port_and_an_unknown_name_are_one_line() -> None:
    for server in ("127.0.0.1", "no-such-host.invalid"):
        with pytest.raises(SourceError, match="gives no answer"):
            offset(server, 1, timeout=0.2)


@settings(max_examples=examples(100))
@given(body=st.binary(min_size=24, max_size=80), tail=st.binary(max_size=40))
def test_no_bytes_do_more_than_a_number_or_one_line(body: bytes, tail: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", 0))
        wire.settimeout(5)

        def run() -> None:
            question, asker = wire.recvfrom(512)
            wire.sendto(body[:24] + question[40:48] + tail, asker)

        thread = threading.Thread(target=run)
        thread.start()
        with contextlib.suppress(SourceError):
            assert isinstance(offset("127.0.0.1", wire.getsockname()[1]), float)
        thread.join()


def test_a_time_is_read_by_none_of_pythons_slow_ways() -> None:
    """A recorder reads thousands a second; strptime, which is written in Python, took 7 µs for each."""
    called: list[str] = []
    sys.setprofile(lambda frame, event, arg: called.append(frame.f_code.co_filename))
    try:
        read = parse_rfc3339("2026-11-25T12:00:00.250Z")
    finally:
        sys.setprofile(None)
    assert read.timestamp() == 1795608000.25
    assert not [name for name in called if "strptime" in name or "calendar" in name]


def test_servers_are_names() -> None:
    assert validate(Settings, {"clock": {"servers": ["ntp.school.example"]}}, "x").clock.servers
    with pytest.raises(SettingsError, match="host names or addresses"):
        validate(Settings, {"clock": {"servers": ["http://x/"]}}, "node.yaml")


def test_plausible_is_from_the_release_to_twenty_years_later() -> None:
    assert plausible(EARLIEST)
    assert plausible(LATEST)
    assert not plausible(EARLIEST - 1)
    assert not plausible(LATEST + 1)


@pytest.mark.parametrize(("state", "said"), [(0, True), (4, True), (5, False)])
def test_the_kernel_says_whether_the_clock_is_set(state: int, said: bool, tmp_path: Path) -> None:
    assert clock_synced(lambda: state, tmp_path / "synchronized") is said


def test_where_the_kernel_may_not_be_asked_timesyncd_s_note_says_it(tmp_path: Path) -> None:
    """edge-run.service has ProtectClock=, by which adjtimex(2) gives EPERM."""
    noted = tmp_path / "timesync" / "synchronized"
    assert clock_synced(lambda: -1, noted) is None, "timesyncd does not run"
    noted.parent.mkdir()
    assert clock_synced(lambda: -1, noted) is False, "it runs and has heard no server"
    noted.touch()
    assert clock_synced(lambda: -1, noted) is True
    long_ago = time.time() - HELD_SECONDS - 60
    os.utime(noted, (long_ago, long_ago))
    assert clock_synced(lambda: -1, noted) is False, "no server for nine hours"
    assert clock_synced(lambda: 0, noted) is True, "the kernel knows better"
