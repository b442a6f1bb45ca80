"""The table of drills in docs/brokers.md: its rows, and under which conditions they came about."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.tools.bench import processor
from support.postgres import postgres_programs

BEGIN = "<!-- drills: written by `make test-district DISTRICT_TABLE=docs/brokers.md` -->"
END = "<!-- drills: end -->"
HEAD = (
    "| brokers | recorders | nodes | windows | kills | made | stored | lost | twice | whole after |"
)
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one drill. window, whole_after: seconds, None for never; kills: of each kind."""

    brokers: str
    recorders: int
    nodes: int
    window: int
    kills: int
    made: int
    stored: int
    twice: int
    whole_after: float | None

    def __str__(self) -> str:
        kills = f"{self.kills} broker, {self.kills} recorder, {self.kills} PostgreSQL"
        whole = "never" if self.whole_after is None else f"{self.whole_after:.0f} s"
        # What is not stored yet when a drill gives up may still be with its node.
        lost = "not known" if self.whole_after is None else self.made - self.stored
        cells = (
            *(self.brokers, self.recorders, self.nodes, f"{self.window} s", kills, self.made),
            *(self.stored, lost, self.twice, whole),
        )
        return f"| {' | '.join(map(str, cells))} |"


def version(program: str | Path, *words: str) -> str:
    """The first number with dots that a program says of itself, or "not found"."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        return "not found"
    done = subprocess.run([found, *words], capture_output=True, text=True)
    number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return number.group() if number else "of an unknown version"


def conditions() -> str:
    """What the rows were made with and on, as it is now: before the first drill."""
    postgres = (postgres_programs() or Path()) / "postgres"
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    programs = (
        f"mosquitto {version('mosquitto', '-h')}",
        f"nats-server {version('nats-server', '-v')}",
        f"PostgreSQL {version(postgres, '--version')}",
    )
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"{', '.join(programs)}, all on loopback; the bridge and RabbitMQ with mutual TLS. {system}, "
        f"{processor()}, {cores} cores; load {load:.1f} before the first drill, which is other work's. "
        "One run each, one at a time."
    )


def render(rows: Sequence[Row], conditions: str, left_out: Sequence[str] = ()) -> str:
    """Write the table with what holds for it. left_out: drills without a row, and why."""
    lines = [BEGIN, "", HEAD, re.sub(r"[^|]+", "---", HEAD), *map(str, rows), ""]
    lines += textwrap.wrap(conditions, WIDTH, break_long_words=False, break_on_hyphens=False)
    for what in left_out:
        lines += ["", f"Not run: {what}."]
    return "\n".join([*lines, "", END])


def rewrite(page: Path, table: str) -> None:
    """Put a table in the place of the one that the page has. Raises ValueError where it has none."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} must hold '{BEGIN}' and '{END}' once each, in this order")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{table}{after}")
