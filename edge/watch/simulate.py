"""`edge-watch simulate`: many nodes in several processes, to size a broker and a recorder and to see
that nothing is lost between them.

At the end the readings that a recorder's `ack` has not named are counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from pydantic import TypeAdapter, ValidationError

from edge.base import cli
from edge.base.errors import BrokerError, EdgeError, UsageError
from edge.base.setting_types import Segment
from edge.base.signals import on_signal
from edge.delivery.connection import Connector
from edge.inference.bundle import load_bundle
from edge.watch.options import broker_options, broker_settings
from edge.watch.players import Order, Player, Players, Share, allow_connections

MOST_NODES, MOST_PROCESSES = 20_000, 64
NODES_A_PROCESS = 500  # of windows of 10 s, by default; one process plays some thousands
LINE_SECONDS = 10.0
UNREACHED_SECONDS = 15.0
SPARE_FILES = 64


class Told:
    """What is printed: a line now and then, on a terminal one that is written over."""

    def __init__(self, players: Players, recorder: bool, out: TextIO, terminal: TextIO) -> None:
        """recorder: one is waited for; out: for lines that stay; terminal: for one that does not."""
        self._players, self._recorder = players, recorder
        self._out, self._terminal = out, terminal
        self._moves = cli.moves(terminal)
        self.begin()

    def begin(self) -> None:
        """Take this moment for the first."""
        self._began = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def figures(self) -> str:
        """The figures of all processes that live."""
        players = self._players
        text = (
            f"{players.total('up')} of {players.nodes} nodes up, {players.total('made')} readings, "
            f"{players.total('waiting')} waiting for the broker, {players.total('losses')} "
            f"connections lost"
        )
        if self._recorder:
            text += f", {players.total('unstored')} not stored by a recorder"
        return f"{self.seconds:4.0f} s: {text}"

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self._moves:
            self._terminal.write(cli.CLEAR_LINE)
            self._terminal.flush()
        print(text, file=self._out, flush=True)

    def progress(self, doing: str, done: float, most: float) -> None:
        """Say how far it is. doing: what; done, most: seconds, 0 where it has no end that is known."""
        if self._moves:
            text = self._fitting(f"{doing} {min(done, most):.0f}/{most:.0f} s" if most else doing)
            self._terminal.write(f"{cli.CLEAR_LINE}{text}")
            self._terminal.flush()
        elif time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self.line(self.figures())

    def _fitting(self, doing: str) -> str:
        """What fits into the terminal's line, whole figure by figure, those first that matter most."""
        players, width = self._players, shutil.get_terminal_size().columns - 1
        figures = [
            f"{players.total('up')}/{players.nodes} nodes up",
            f"{players.total('made')} readings",
            f"{players.total('unstored')} not stored",
            f"{players.total('waiting')} not at the broker",
            f"{players.total('losses')} connections lost",
        ]
        if not self._recorder:
            del figures[2]
        text = f"{doing}: {figures[0]}"
        for figure in figures[1:]:
            if len(text) + 2 + len(figure) > width:
                break
            text += f", {figure}"
        return text[:width]

    def deaths(self, died: Sequence[Player]) -> None:
        """Say of each process that died what is not counted any more."""
        for player in died:
            ago, known = time.monotonic() - player.heard_at, player.figures
            made = (
                f"it had made {known.made} readings by its last word, {ago:.1f} s ago, of which "
                f"{known.unstored} had no recorder's acknowledgement"
                if player.heard_at
                else "it had said nothing yet"
            )
            self.line(
                f"{self.seconds:4.0f} s: process {player.number} {player.death}: its "
                f"{len(player.share.rooms)} nodes are gone and in no figure from here on; {made}"
            )


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-watch simulate",
        "Play nodes: each connects, counts people that it makes up, keeps its readings until a\n"
        "recorder's ack names them. They hear no commands. Exit code 1 where some are not stored in\n"
        "the end, or a process died.",
        "edge-watch simulate --nodes 1000 --window 10 --seconds 120",
    )
    broker_options(p)
    p.add_argument("--nodes", type=int, default=100, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help=f"that play them; default: one for {NODES_A_PROCESS} nodes, at most one a core",
    )
    p.add_argument(
        "--site", default="sim", metavar="NAME", help="of the nodes: NAME/room-0000/node-1 ..."
    )
    p.add_argument("--window", type=float, default=10.0, metavar="S", help="default: %(default)s s")
    p.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of counting")
    p.add_argument(
        "--wait", type=float, default=90.0, metavar="S", help="for a recorder at the end"
    )
    p.add_argument("--no-recorder", action="store_true", help="the broker's word is enough")
    p.add_argument("--seed", type=int, default=0, help="of the made-up counts")
    return p


def shares(args: argparse.Namespace) -> list[Share]:
    """Divide the nodes among processes. Raises UsageError, and what the broker's options raise."""
    if not 1 <= args.nodes <= MOST_NODES:
        raise UsageError(f"--nodes must be 1 to {MOST_NODES}")
    if not (args.window >= 0.1 and args.seconds > 0 and args.wait >= 0):
        raise UsageError("--window must be 0.1 or more, --seconds above 0, --wait not below it")
    cores = len(os.sched_getaffinity(0))
    number = args.processes
    if number is None:
        number = min(cores, -(-args.nodes // NODES_A_PROCESS), MOST_PROCESSES)
    if not 1 <= number <= min(args.nodes, MOST_PROCESSES):
        raise UsageError(f"--processes must be 1 to {MOST_PROCESSES}, and not above --nodes")
    try:
        TypeAdapter(Segment).validate_python(args.site)
    except ValidationError as error:
        raise UsageError(
            "--site may hold only a-z, 0-9 and '-', since it is part of a topic"
        ) from error
    if -(-args.nodes // number) > (most := allow_connections() - SPARE_FILES):
        raise UsageError(
            f"a process may have {most} connections here: give more --processes, or raise the limit "
            f"(ulimit -n)"
        )
    settings, labels = broker_settings(args), load_bundle().labels
    Connector(settings)  # files that cannot be used are one line, and not one a process
    return [
        Share(settings, args.site, range(first, args.nodes, number), labels, args.window, args.seed)
        for first in range(number)
    ]


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    parts, stop = shares(args), threading.Event()
    on_signal(stop.set)
    players = Players(parts)
    told = Told(players, not args.no_recorder, sys.stdout, sys.stderr)
    try:
        died = simulate(players, told, args, stop)
    finally:
        died_late = players.close()
    told.deaths(died_late)
    told.line(told.figures())
    if number := len(died) + len(died_late):
        raise EdgeError(
            f"{number} of {len(parts)} processes died; the figures are of the {players.nodes} nodes of "
            f"the others alone"
        )
    if left := players.total("waiting" if args.no_recorder else "unstored"):
        whom = "the broker" if args.no_recorder else "a recorder"
        when = "when it was stopped" if stop.is_set() else f"after {args.wait:g} s"
        raise BrokerError(f"{left} readings are not acknowledged by {whom} {when}")


def simulate(
    players: Players, told: Told, args: argparse.Namespace, stop: threading.Event
) -> list[Player]:
    """Count, then wait until all is delivered, or until `stop`; return the processes that died. Raises
    BrokerError where no node ever gets a connection."""
    died: list[Player] = []

    def turn(doing: str, done: float, most: float) -> None:
        new = players.hear(0.1)
        told.deaths(new)
        died.extend(new)
        told.progress(doing, done, most)

    while not stop.is_set() and not players.ready:
        turn("making nodes", 0, 0)
    told.begin()
    players.tell(Order.COUNT)
    while not stop.is_set() and players.living and told.seconds < args.seconds:
        turn("counting", told.seconds, args.seconds)
        reached = players.total("up") or players.total("losses")
        if told.seconds > UNREACHED_SECONDS and not reached and players.living:
            reason = players.living[0].figures.reason
            where = players.all[0].share.settings.shown
            raise BrokerError(f"broker {where} {reason}; check address and user")
    players.tell(Order.SETTLE)
    began, wanted = time.monotonic(), "waiting" if args.no_recorder else "unstored"

    def settled() -> bool:
        return all(p.figures.settled for p in players.living) and not players.total(wanted)

    while not stop.is_set() and not settled() and (waited := time.monotonic() - began) < args.wait:
        turn("waiting", waited, args.wait)
    return died
