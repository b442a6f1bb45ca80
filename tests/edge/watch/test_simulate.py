"""The simulated fleet against a real broker: connections, several processes, and their ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.base.errors import UsageError
from edge.settings import Broker
from edge.watch.fleet import SimNode, SimulatedFleet
from edge.watch.players import Share
from edge.watch.simulate import build_parser, shares
from support.brokers import Mosquitto
from support.paths import ROOT
from support.patience import PATIENCE, wait_for
from support.screen import Terminal


def test_a_broker_that_comes_up_late_is_spoken_to_in_mqtt_5(
    mosquitto: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.stop()
    nodes = [SimNode(i, ["a", "b"], 10.0, 0, longest=0.1) for i in range(3)]
    fleet = SimulatedFleet(Broker(url=mosquitto.url, retry_max_seconds=1), nodes)
    for node in nodes:
        node.next_try = 0.0

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


@pytest.mark.process
@pytest.mark.broker
def test_what_is_told_after_a_process_died_is_true_of_the_others(
    mosquitto: Mosquitto, terminal: Terminal
) -> None:
    words = ("--nodes", 7, "--processes", 2, "--seconds", 600, "--no-recorder")
    process = simulation(mosquitto.url, *words, stderr=terminal.theirs)
    wait_for(terminal.shows("7 of 7 nodes up"), "all nodes up")
    os.kill(players(process)[0], signal.SIGKILL)
    wait_for(terminal.shows("3 of 3 nodes up"), "the other process's nodes alone")
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
    wait_for(terminal.shows("counting, 1 of 3 s"), "progress")
    wait_for(terminal.shows(r"waiting for a recorder, \d+ of 6000 s"), "the end of counting")
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
        wait_for(terminal.shows("counting, 1 of 6000 s; 0 of 3 nodes up"), "progress")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    assert "0 of 3 nodes up, 0 readings" in out
    assert process.returncode == 0, "nothing was made, and nothing is lost"


@pytest.mark.process
@pytest.mark.broker
def test_no_process_outlives_the_one_that_started_it(
    mosquitto: Mosquitto, terminal: Terminal
) -> None:
    words = ("--nodes", 4, "--processes", 2, "--seconds", 6000)
    process = simulation(mosquitto.url, *words, stderr=terminal.theirs)
    wait_for(terminal.shows("4 of 4 nodes up"), "all nodes up")
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
