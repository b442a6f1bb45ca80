"""Nodes count while brokers, recorders and PostgreSQL are killed (SIGKILL): one mosquitto, two bridged,
clusters of three; with one recorder and with three parts. Prints a row each, and writes the table into
the page that DISTRICT_TABLE names.
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

from support.drill import KINDS, Brokers, tally
from support.drill_table import Row, conditions, render, rewrite
from support.paths import ROOT
from support.patience import PATIENCE
from support.postgres import Postgres

pytestmark = pytest.mark.scale

NODES = [int(number) for number in os.environ.get("DISTRICT_NODES", "50").split()]
PAGE = os.environ.get("DISTRICT_TABLE")
WINDOW_SECONDS, SECONDS, KILLS = 5, 45, 2


class Table:
    """The rows as they come about, each written into the page at once."""

    def __init__(self) -> None:
        self._conditions = conditions()
        self._rows: list[Row] = []
        self._left_out: dict[str, str] = {}

    def add(self, row: Row) -> None:
        self._rows.append(row)
        print(f"\n{row}", flush=True)
        self._write()

    def leave_out(self, name: str, why: str) -> None:
        self._left_out[name] = why
        self._write()

    def _write(self) -> None:
        if PAGE:
            rewrite(ROOT / PAGE, str(self))

    def __str__(self) -> str:
        return render(
            self._rows, self._conditions, [f"{name}, {why}" for name, why in self._left_out.items()]
        )


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Printed at the end."""
    made = Table()
    yield made
    print(f"\n{made}")


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
        """Have them store what waits, and leave."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            assert process.wait(PATIENCE) == 0, self._log.read_text()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server of this drill's alone, since all its rows are counted."""
    made = Postgres()
    yield made
    made.remove()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nodes", NODES)
def test_a_district_while_everything_is_killed(
    kind: type[Brokers],
    parts: int,
    nodes: int,
    tmp_path: Path,
    own_postgres: Postgres,
    table: Table,
) -> None:
    try:
        brokers = kind(tmp_path)
    except pytest.skip.Exception as skip:
        table.leave_out(kind.name, str(skip))
        raise
    try:
        row = drill(brokers, parts, nodes, tmp_path, own_postgres)
    except BaseException:
        table.leave_out(f"{brokers.name}, recorders: {parts}, nodes: {nodes}", "it failed")
        raise
    finally:
        brokers.close()
    table.add(row)
    assert row.whole_after is not None, "a recorder has not acknowledged all"
    assert (row.made - row.stored, row.twice) == (0, 0)
    assert row.made >= nodes * SECONDS / WINDOW_SECONDS / 2


def drill(brokers: Brokers, parts: int, nodes: int, folder: Path, postgres: Postgres) -> Row:
    """Have nodes count while all is killed, and return what became of it."""
    rng = random.Random(parts)
    share = [[]] if parts == 1 else [["--part", f"{k}/{parts}"] for k in range(1, parts + 1)]
    commands = [brokers.recorder("--record", postgres.url, *words) for words in share]
    recorders = Recorders(commands, folder / "recorders.log")
    words = ["--nodes", nodes, "--window", WINDOW_SECONDS, "--seconds", SECONDS, "--wait", PATIENCE]
    simulation = subprocess.Popen(
        brokers.nodes("simulate", *words), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    victims = ["broker", "recorder", "database"] * KILLS
    rng.shuffle(victims)
    members = rng.sample(range(brokers.members), brokers.members) * KILLS  # each in its turn
    try:
        time.sleep(12)
        for victim in victims:
            if victim == "broker":
                brokers.kill(members.pop())
            elif victim == "recorder":
                recorders.kill(rng)
            else:
                postgres.kill()
                postgres.start()
            time.sleep(rng.uniform(2, 4))
        killed = time.monotonic()
        said, _ = simulation.communicate(timeout=2 * PATIENCE)
        whole = time.monotonic() - killed
        recorders.end()
    finally:
        simulation.kill()
        recorders.close()
    stored, lacking, twice = tally(postgres.url)
    made = int(re.findall(r"([\d,]+) readings", said)[-1].replace(",", ""))
    print(said.splitlines()[-1])
    assert lacking == 0
    whole_after = whole if simulation.returncode == 0 else None
    return Row(
        *(brokers.name, parts, nodes, WINDOW_SECONDS, KILLS, made, stored, twice, whole_after)
    )
