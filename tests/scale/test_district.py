"""Nodes count while brokers, recorders and PostgreSQL are killed (SIGKILL): one mosquitto, two bridged,
a cluster of three; with one recorder and with three parts. Prints a row each.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drill import Bridged, Cluster, One, tally
from support.paths import ROOT
from support.patience import PATIENCE
from support.postgres import Postgres

pytestmark = pytest.mark.scale

NODES = int(os.environ.get("DISTRICT_NODES", "50"))
WINDOW_SECONDS, SECONDS = 5, 45
HEAD = (
    "| brokers | recorders | nodes | windows | kills | made | stored | lost | twice | whole after |"
)
NAMES = {
    One: "one mosquitto",
    Bridged: "two mosquittos, bridged",
    Cluster: "NATS, cluster of three",
}


class Recorders:
    """Processes of `edge-watch --record` that are killed and started again."""

    def __init__(self, commands: list[list[str]], log: Path) -> None:
        self._commands, self._log = commands, log
        self._processes = [self._start(command) for command in commands]

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stderr=log)

    def kill(self, rng: random.Random) -> None:
        number = rng.randrange(len(self._processes))
        self._processes[number].kill()
        self._processes[number].wait()
        self._processes[number] = self._start(self._commands[number])

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            assert process.wait(PATIENCE) == 0, self._log.read_text()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server of this drill's alone, since all its rows are counted."""
    made = Postgres()
    yield made
    made.remove()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", [One, Bridged, Cluster])
def test_a_district_while_everything_is_killed(
    kind: type[One | Bridged | Cluster], parts: int, tmp_path: Path, own_postgres: Postgres
) -> None:
    postgres = own_postgres
    rng, brokers = random.Random(parts), kind(tmp_path)
    share = [[]] if parts == 1 else [["--part", f"{k}/{parts}"] for k in range(1, parts + 1)]
    commands = [brokers.recorder("--record", postgres.url, *words) for words in share]
    recorders = Recorders(commands, tmp_path / "recorders.log")
    words = ["--nodes", NODES, "--window", WINDOW_SECONDS, "--seconds", SECONDS, "--wait", PATIENCE]
    nodes = subprocess.Popen(
        brokers.nodes("simulate", *words), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    victims = ["broker", "recorder", "database"] * 2
    rng.shuffle(victims)
    time.sleep(12)
    for victim in victims:
        if victim == "broker":
            brokers.kill(rng)
        elif victim == "recorder":
            recorders.kill(rng)
        else:
            postgres.kill()
            postgres.start()
        time.sleep(rng.uniform(2, 4))
    killed = time.monotonic()
    said, _ = nodes.communicate(timeout=2 * PATIENCE)
    whole = time.monotonic() - killed
    recorders.end()
    brokers.close()
    stored, lacking, twice = tally(postgres.url)
    made = int(re.findall(r"([\d,]+) readings", said)[-1].replace(",", ""))
    print(
        f"\n{HEAD}\n| {NAMES[kind]} | {parts} | {NODES} | {WINDOW_SECONDS} s | 2 broker, 2 recorder, "
        f"2 PostgreSQL | {made} | {stored} | {made - stored} | {twice} | {whole:.0f} s |"
    )
    assert nodes.returncode == 0, said
    assert (made - stored, lacking, twice) == (0, 0, 0)
    assert made >= NODES * SECONDS / WINDOW_SECONDS / 2
