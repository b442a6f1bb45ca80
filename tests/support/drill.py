"""What a drill with kills runs on (one broker, bridged ones, a cluster), and what it counts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest
import sqlalchemy as sa

from edge.watch.database import parse_address
from edge.watch.tables import COUNTS, LOGS
from support.brokers import Mosquitto, free_port
from support.district import Schools
from support.patience import PATIENCE
from support.rabbitmq import FETCHED, Members, roots

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


def command(words: Sequence[object], urls: Sequence[str], tls: Mapping[str, str]) -> list[str]:
    """edge-watch's command line. urls: of brokers to use; tls: files by option."""
    whole = [sys.executable, "-m", "edge.watch.run", *words]
    for option, value in [*(("broker", url) for url in urls), *tls.items()]:
        whole += [f"--{option}", value]
    return [str(word) for word in whole]


def turned(urls: Sequence[str]) -> list[str]:
    """The recorder's order of the members: another first than the nodes'."""
    return [*urls[1:], urls[0]]


class Brokers(Protocol):
    """What a drill runs on: the command lines of nodes and recorders, and what is killed."""

    name: str
    members: int
    in_table: str  # the same as a pattern, where it has a version

    def __init__(self, folder: Path) -> None:
        """Start all of them, with their data in this folder. Skips the test where one is missing."""

    def nodes(self, *words: object) -> list[str]: ...

    def recorder(self, *words: object) -> list[str]: ...

    def kill(self, member: int) -> None:
        """SIGKILL a member, and start it again after a second."""

    def close(self) -> None: ...


class One:
    """One mosquitto, whose queues are on disk."""

    name = in_table = "one mosquitto"
    members = 1

    def __init__(self, folder: Path) -> None:
        self._broker = Mosquitto(folder, KEEPING.format(folder))
        self.urls = [self._broker.url]

    def nodes(self, *words: object) -> list[str]:
        return command(words, self.urls, {})

    def recorder(self, *words: object) -> list[str]:
        return command(words, self.urls, {})

    def kill(self, member: int) -> None:
        """SIGKILL a member, and start it again after a second."""
        self._broker.stop(signal.SIGKILL)
        time.sleep(1.0)
        self._broker.start()

    def close(self) -> None:
        self._broker.stop()


class Bridged:
    """Nodes at a school's mosquitto, bridged to the district's with the recorders; mutual TLS."""

    name = in_table = "two mosquittos, bridged"
    members = 2

    def __init__(self, folder: Path) -> None:
        self._schools = Schools(folder, ["north"])

    def nodes(self, *words: object) -> list[str]:
        return self._schools.command("north", "tester", *words, "--site", "north")

    def recorder(self, *words: object) -> list[str]:
        return self._schools.command("district", "server", *words)

    def kill(self, member: int) -> None:
        """SIGKILL one of the two, and start it again after a second."""
        broker = (self._schools.schools["north"], self._schools.district)[member]
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


class Nats:
    """Three NATS servers of one cluster; every client knows all three."""

    name = in_table = "NATS, cluster of three"
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
        self.urls = [f"mqtt://127.0.0.1:{port}" for port in self._ports]
        deadline = time.monotonic() + PATIENCE
        while any(self._closed(port) for port in self._ports) and time.monotonic() < deadline:
            time.sleep(0.1)

    @staticmethod
    def _closed(port: int) -> bool:
        with socket.socket() as knock:
            return knock.connect_ex(("127.0.0.1", port)) != 0

    def nodes(self, *words: object) -> list[str]:
        return command(words, self.urls, {})

    def recorder(self, *words: object) -> list[str]:
        return command(words, turned(self.urls), {})

    def kill(self, member: int) -> None:
        """SIGKILL a member, and start it again after a second."""
        self._processes[member].kill()
        self._processes[member].wait()
        time.sleep(1.0)
        self._processes[member] = subprocess.Popen(self._commands[member])

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


class RabbitMQ:
    """Three RabbitMQ members of one cluster with quorum queues; mutual TLS, every client knows all."""

    root = FETCHED
    name = "RabbitMQ 4, cluster of three"
    members = 3
    in_table = r"RabbitMQ 4\.[0-9.]+, cluster of three"

    def __init__(self, folder: Path) -> None:
        versions = [version for version, root in roots().items() if root == self.root]
        if not versions:
            fetched = self.root == FETCHED
            how = "make rabbitmq" if fetched else "Debian: apt-get install rabbitmq-server"
            pytest.skip(f"needs RabbitMQ ({how})")
        self.name = f"RabbitMQ {versions[0]}, cluster of three"
        self._members = Members(folder, versions[0], ["tester", "server"])
        self.urls, self.tls = self._members.urls, self._members.tls("server")

    def nodes(self, *words: object) -> list[str]:
        return command(words, self.urls, self._members.tls("tester"))

    def recorder(self, *words: object) -> list[str]:
        return command(words, turned(self.urls), self.tls)

    def kill(self, member: int) -> None:
        """SIGKILL a member, and start it again after a second."""
        self._members.kill(member)

    def close(self) -> None:
        self._members.close()


class InstalledRabbitMQ(RabbitMQ):
    """The same of the version that the system has."""

    root = Path("/")
    name = "the system's RabbitMQ, cluster of three"
    in_table = r"RabbitMQ 3\.[0-9.]+, cluster of three"


KINDS: tuple[type[Brokers], ...] = (One, Bridged, Nats, RabbitMQ, InstalledRabbitMQ)
