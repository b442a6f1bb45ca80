"""The simulated fleet against a real broker: connections, several processes, and their ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.base.errors import UsageError
from edge.delivery.messages import PREFIX, Ack, as_dict, dumps
from edge.settings import Broker, Tls
from edge.watch.fleet import SimNode, SimulatedFleet
from edge.watch.players import Players, Share
from edge.watch.simulate import Told, build_parser, shares
from fakes.broker import StubBroker
from support.brokers import Mosquitto, certificates
from support.paths import ROOT
from support.patience import PATIENCE, wait_for
from support.screen import Terminal


def test_a_broker_that_comes_up_late_is_spoken_to_in_mqtt_5(
    mosquitto: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.stop()
    nodes = [SimNode(i, ["a", "b"], 10.0, 0, longest=0.1) for i in range(3)]
    for node in nodes:
        node.next_try = 0.0
    fleet = SimulatedFleet(Broker(url=mosquitto.url, retry_max_seconds=1), nodes)

    def refused() -> bool:
        fleet.turn()
        return str(fleet.reason) == "away: nothing listens there"

    wait_for(refused, "an attempt that failed")
    mosquitto.start()

    def all_up() -> bool:
        fleet.turn()
        return all(node.up for node in nodes)

    wait_for(all_up, "all nodes up")
    versions = {node.client.protocol for node in nodes if node.client is not None}
    fleet.close()
    assert versions == {5}
    assert "3.1.1" not in caplog.text


def turned(fleet: SimulatedFleet, done: Callable[[], bool]) -> Callable[[], bool]:
    """A condition that has the fleet do something each time it is asked for."""

    def look() -> bool:
        fleet.turn()
        return done()

    return look


def test_a_connection_that_breaks_while_a_node_speaks_is_noticed_at_once_and_made_anew() -> None:
    """Its descriptor is the next connection's: who waits for it still would take that one's place."""
    with StubBroker() as broker:
        nodes = [SimNode(i, ["a", "b"], 0.1, 0, longest=0.1) for i in range(2)]
        for node in nodes:
            node.next_try = 0.0
        fleet = SimulatedFleet(Broker(url=broker.url, retry_max_seconds=1), nodes)
        wait_for(turned(fleet, lambda: all(n.subscriptions.granted for n in nodes)), "both up")
        for node in nodes:
            assert node.client is not None
            node.client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

        def lost() -> bool:
            fleet.live(time.monotonic())
            return fleet.losses == 2

        wait_for(lost, "readings that cannot be sent, without a look at what comes in")
        assert [node.client for node in nodes] == [None, None]
        wait_for(turned(fleet, lambda: all(n.subscriptions.granted for n in nodes)), "both again")
        wait_for(turned(fleet, lambda: not any(n.outbox.pending_count() for n in nodes)), "sent")
        fleet.close()


@pytest.mark.process
def test_what_tls_has_deciphered_already_is_read_too(tmp_path: Path) -> None:
    """Other brokers than mosquitto put several packets into one record: then no socket is readable."""
    certificates(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "broker.pem", tmp_path / "broker.key")
    node = SimNode(0, ["a", "b"], 3600, 0, longest=0.1)
    node.next_try = 0.0
    ack = Ack(node=node.path, log=node.outbox.log_id, seq=0)
    topic, content = f"{PREFIX}/{node.path}/ack".encode(), dumps(as_dict(ack)).encode()
    publish = len(topic).to_bytes(2, "big") + topic + content
    length = bytes([len(publish) % 128 | 128, len(publish) // 128])

    def answer() -> None:
        with listener.accept()[0] as raw, server.wrap_socket(raw, server_side=True) as peer:
            peer.recv(1000)
            peer.sendall(b"\x20\x02\x00\x00" + b"\x30" + length + publish)
            over.wait(PATIENCE)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()
        threading.Thread(target=answer, daemon=True).start()
        url = f"mqtts://127.0.0.1:{listener.getsockname()[1]}"
        settings = Broker(url=url, protocol="3.1.1", tls=Tls(ca=tmp_path / "ca.pem"))
        fleet = SimulatedFleet(settings, [node])
        wait_for(turned(fleet, lambda: node.up), "CONNACK")
        assert node.outbox.stored == 0, "the ack that came with it"
        over.set()
        fleet.close()


def test_all_nodes_close_their_windows_at_the_same_moment() -> None:
    """As real ones do, by UTC: what a broker and a recorder must take comes in bursts."""
    nodes = [SimNode(i, ["a", "b"], 10.0, seed, 0.1) for i, seed in ((1, 3), (2, 4))]
    for now, utc in ((0.0, 1000.0), (7.0, 1007.0), (9.99, 1009.99), (70.0, 1070.02)):
        moments = {round(utc - now + node.next_picture(now, utc), 6) for node in nodes}
        assert len(moments) == 1
        (moment,) = moments
        assert utc < moment <= utc + 5.0
        assert round(moment % 5.0, 6) == 0.05, "behind the end of a window, or in its middle"


def simulation(url: str, *words: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge.watch.run", "simulate", "--broker", url]
    return subprocess.Popen(
        [*command, "--window", "0.5", *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "300"},
    )  # fmt: skip


def players(parent: subprocess.Popen[str]) -> list[int]:
    """The processes that play nodes; not multiprocessing's own."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    return [
        int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def lost(out: str) -> bool:
    """Whether what the last line says was made is told as lost, of a simulation no recorder answered.

    A window that ends between the first look at the clock and the first attempt to connect is a
    reading."""
    made = int(out.split(" readings")[0].split()[-1])
    assert made == 0 or f" {made} not stored by a recorder" in out
    return made > 0


@pytest.mark.process
@pytest.mark.broker
def test_what_is_told_after_a_process_died_is_true_of_the_others(
    mosquitto: Mosquitto, terminal: Terminal
) -> None:
    words = ("--nodes", 7, "--processes", 2, "--seconds", 600, "--no-recorder")
    process = simulation(mosquitto.url, *words, stderr=terminal.theirs)
    wait_for(terminal.shows("7/7 nodes up"), "all nodes up")
    os.kill(players(process)[0], signal.SIGKILL)
    wait_for(terminal.shows("3/3 nodes up"), "the other process's nodes alone")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    died, last = out.splitlines()
    assert "process 1 was killed by signal 9: its 4 nodes are gone and in no figure" in died
    assert "3 of 3 nodes up" in last
    final = "1 of 2 processes died; the figures are of the 3 nodes of the others alone"
    assert terminal.shows(final)()


@pytest.mark.process
@pytest.mark.broker
def test_sigterm_ends_a_simulation_that_waits_for_a_recorder(
    mosquitto: Mosquitto, terminal: Terminal
) -> None:
    words = ("--nodes", 4, "--processes", 2, "--seconds", 3, "--wait", 6000)
    process = simulation(mosquitto.url, *words, stderr=terminal.theirs)
    wait_for(terminal.shows(r"counting \d/3 s"), "progress")
    wait_for(terminal.shows(r"waiting \d+/6000 s"), "the end of counting")
    children = players(process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = out.splitlines()
    left = int(line.split(" not stored by a recorder")[0].split()[-1])
    assert left > 0
    assert terminal.shows(
        f"{left} readings are not acknowledged by a recorder when it was stopped"
    )()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


@pytest.mark.process
@pytest.mark.broker
def test_sigterm_ends_a_simulation_whose_broker_does_not_answer(terminal: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        words = ("--nodes", 3, "--seconds", 6000, "--window", 3600)
        process = simulation(url, *words, stderr=terminal.theirs)
        wait_for(terminal.shows(r"counting [1-9]\d*/6000 s: 0/3 nodes up"), "progress")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    assert "0 of 3 nodes up" in out
    assert process.returncode == lost(out)


@pytest.mark.process
def test_sigterm_ends_a_simulation_whose_broker_takes_no_connection(terminal: Terminal) -> None:
    """As behind a firewall that drops what comes: each process waits within an attempt to connect."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        url = f"mqtt://127.0.0.1:{full.getsockname()[1]}"
        words = ("--nodes", 4, "--processes", 2, "--seconds", 6000)
        process = simulation(url, *words, stderr=terminal.theirs)
        wait_for(terminal.shows(r"counting [1-9]\d*/6000 s: 0/4 nodes up"), "progress")
        children = players(process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    assert len(out.splitlines()) == 1, "nothing died"
    assert "0 of 4 nodes up" in out
    assert process.returncode == lost(out)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


class Fleet(Players):
    """Figures of a simulation that is not run."""

    def __init__(self, nodes: int, **figures: int) -> None:
        self._nodes, self._figures = nodes, figures

    @property
    def nodes(self) -> int:
        return self._nodes

    def total(self, name: str) -> int:
        return self._figures[name]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_a_terminals_line_is_cut_between_figures_and_never_wraps(
    columns: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    fleet = Fleet(10000, up=9999, made=119988, waiting=1234, losses=20001, unstored=10512)
    with os.fdopen(os.dup(terminal.theirs), "w") as out:
        told = Told(fleet, True, sys.stdout, out)
        for doing in ("counting", "waiting"):
            told.progress(doing, 118.0, 240.0)
        told.progress("making nodes", 0, 0)
    terminal.shows("")()
    *lines, making = terminal.text.split("\r\x1b[K")[1:]
    assert making.startswith("making nodes: 9999/10000 nodes up"[: columns - 1])
    for line in lines:
        assert len(line) < columns
        assert columns < 80 or "119988 readings, 10512 not stored" in line
        assert columns < 40 or line.endswith((" up", " readings", " stored", " broker", " lost"))
    assert columns < 200 or "1234 not at the broker, 20001 connections lost" in lines[0]


@pytest.mark.process
@pytest.mark.broker
def test_no_process_outlives_the_one_that_started_it(
    mosquitto: Mosquitto, terminal: Terminal
) -> None:
    words = ("--nodes", 4, "--processes", 2, "--seconds", 6000)
    process = simulation(mosquitto.url, *words, stderr=terminal.theirs)
    wait_for(terminal.shows("4/4 nodes up"), "all nodes up")
    children = players(process)
    assert len(children) == 2
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in children), "the end of both")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def parsed(*words: str) -> list[Share]:
    return shares(build_parser().parse_args(["--nodes", "1100", *words]))


def test_the_nodes_are_divided_and_each_is_played_once() -> None:
    parts = parsed("--processes", "3", "--site", "north-2", "--protocol", "3.1.1")
    rooms = [room for part in parts for room in part.rooms]
    assert sorted(rooms) == list(range(1100))
    assert {len(part.rooms) for part in parts} == {366, 367}
    assert {part.settings.protocol for part in parts} == {"3.1.1"}
    node = SimNode(7, ["a", "b"], 10.0, 0, 0.1, parts[0].site)
    assert node.status("online").topic == "edge/v1/north-2/room-0007/node-1/status"
    assert 1 <= len(parsed()) <= 3, "one for 500 nodes, where there are cores"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--processes", "0"), "--processes must be 1 to 64"),
        (("--nodes", "2", "--processes", "3"), "not above --nodes"),
        (("--site", "North"), "--site may hold only a-z"),
        (("--site", "a/b"), "--site may hold only a-z"),
        (("--nodes", "0"), "--nodes must be"),
        (("--broker", "-"), "--broker must be an address"),
    ],
)
def test_what_cannot_be_played_is_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parsed(*words)


def test_a_process_that_may_have_too_few_connections_is_told_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.watch.simulate.allow_connections", lambda: 1000)
    with pytest.raises(UsageError, match="a process may have 936 connections here"):
        parsed("--processes", "1")


def test_a_socket_that_took_the_number_of_a_closed_one_is_the_new_nodes() -> None:
    """What a write finds closed is closed at once, and looked after a moment later."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # connections wait, nobody answers
        settings = Broker(url=f"mqtt://127.0.0.1:{server.getsockname()[1]}")
        first, second = (SimNode(number, ["happy", "sad"], 10.0, 0, 5.0) for number in (1, 2))
        fleet = SimulatedFleet(settings, [first, second])
        fleet._connect(first, 0.0)
        assert first.client is not None
        number = first.descriptor
        first.client.socket().close()  # type: ignore[union-attr]
        fleet._connect(second, 0.0)
        assert (first.client, first.descriptor, second.descriptor) == (None, None, number)
        fleet.close()
