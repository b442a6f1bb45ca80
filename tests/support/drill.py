"""What a drill with kills runs on (one broker, bridged ones, a cluster), and what it counts."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from edge.watch.database import parse_address
from edge.watch.tables import COUNTS, LOGS
from support.brokers import Mosquitto, free_port
from support.district import Schools
from support.patience import PATIENCE

KEEPING = (
    "allow_anonymous true\npersistence true\npersistence_location {}/\nmax_queued_messages 0\n"
)


def tally(url: str) -> tuple[int, int, int]:
    """Readings stored, those that a log lacks, and windows of a node that stand twice."""
    engine = sa.create_engine(parse_address(url))
    with engine.connect() as db:
        count = sa.func.count()
        stored = db.execute(sa.select(count).select_from(COUNTS)).scalar_one()
        lacking = db.execute(sa.select(sa.func.sum(LOGS.c.highest - LOGS.c.whole))).scalar_one()
        window = (COUNTS.c.node, COUNTS.c.start)
        doubled = sa.select(COUNTS.c.node).group_by(*window).having(count > 1).subquery()
        twice = db.execute(sa.select(count).select_from(doubled)).scalar_one()
    engine.dispose()
    return int(stored), int(lacking), int(twice)


def plain(url: str, words: tuple[object, ...], *more: str) -> list[str]:
    """edge-watch's command line without TLS. more: further addresses."""
    addresses = [word for address in (url, *more) for word in ("--broker", address)]
    return [str(word) for word in (sys.executable, "-m", "edge.watch.run", *words, *addresses)]


class One:
    """One mosquitto, whose queues are on disk."""

    members = 1

    def __init__(self, folder: Path) -> None:
        self._broker = Mosquitto(folder, KEEPING.format(folder))

    def nodes(self, *words: object) -> list[str]:
        return plain(self._broker.url, words)

    def recorder(self, *words: object) -> list[str]:
        return plain(self._broker.url, words)

    def kill(self, rng: random.Random) -> None:
        """SIGKILL a member, and start it again after a second."""
        self._broker.stop(signal.SIGKILL)
        time.sleep(1.0)
        self._broker.start()

    def close(self) -> None:
        self._broker.stop()


class Bridged:
    """Nodes at a school's mosquitto, bridged to the district's with the recorders; mutual TLS."""

    members = 2

    def __init__(self, folder: Path) -> None:
        self._schools = Schools(folder, ["north"])

    def nodes(self, *words: object) -> list[str]:
        return self._schools.command("north", "tester", *words, "--site", "north")

    def recorder(self, *words: object) -> list[str]:
        return self._schools.command("district", "server", *words)

    def kill(self, rng: random.Random) -> None:
        """SIGKILL one of the two, and start it again after a second."""
        broker = rng.choice((self._schools.schools["north"], self._schools.district))
        broker.stop(signal.SIGKILL)
        time.sleep(1.0)
        broker.start()

    def close(self) -> None:
        self._schools.__exit__(None, None, None)


MEMBER = """\
server_name: n{number}
listen: 127.0.0.1:{client}
jetstream {{ store_dir: "{folder}" }}
cluster {{ name: district, listen: 127.0.0.1:{route}, routes: [{routes}] }}
mqtt {{ listen: 127.0.0.1:{mqtt} }}
"""


class Cluster:
    """Three NATS servers of one cluster; every client knows all three."""

    members = 3

    def __init__(self, folder: Path) -> None:
        program = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("needs nats-server (Debian: apt-get install nats-server)")
        routes = [free_port() for _ in range(3)]
        names = ", ".join(f"nats-route://127.0.0.1:{port}" for port in routes)
        self._ports = [free_port() for _ in range(3)]
        self._folder, self._commands = folder, []
        for number, (route, mqtt) in enumerate(zip(routes, self._ports, strict=True)):
            config = folder / f"n{number}.conf"
            config.write_text(
                MEMBER.format(number=number, client=free_port(), folder=folder / f"n{number}",
                              route=route, routes=names, mqtt=mqtt)
            )  # fmt: skip
            self._commands.append(
                [program, "-c", str(config), "-l", str(folder / f"n{number}.log")]
            )
        self._processes = [subprocess.Popen(command) for command in self._commands]
        self._urls = [f"mqtt://127.0.0.1:{port}" for port in self._ports]
        deadline = time.monotonic() + PATIENCE
        while any(self._closed(port) for port in self._ports) and time.monotonic() < deadline:
            time.sleep(0.1)

    @staticmethod
    def _closed(port: int) -> bool:
        with socket.socket() as knock:
            return knock.connect_ex(("127.0.0.1", port)) != 0

    def nodes(self, *words: object) -> list[str]:
        return plain(self._urls[0], words, *self._urls[1:])

    def recorder(self, *words: object) -> list[str]:
        return plain(self._urls[1], words, self._urls[2], self._urls[0])

    def kill(self, rng: random.Random) -> None:
        """SIGKILL a member, and start it again after a second."""
        number = rng.randrange(3)
        self._processes[number].kill()
        self._processes[number].wait()
        time.sleep(1.0)
        self._processes[number] = subprocess.Popen(self._commands[number])

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
