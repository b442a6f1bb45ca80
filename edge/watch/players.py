"""The processes that play `edge-watch simulate`'s nodes, and what they tell the one that started them.

A process may be killed at any moment, with all that its nodes held in memory: from then on none of its
figures count any more, so that what is told is true of the nodes that are there.
"""

from __future__ import annotations

import enum
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from edge.base.signals import STOP
from edge.settings import Broker
from edge.watch.fleet import SimNode, SimulatedFleet

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

REPORT_SECONDS = 1.0
REPORT_SHARE = 20  # a report may cost one part of the time in so many
END_SECONDS = 5.0  # in which a process that is told to end does so, or is killed
SILENT_SECONDS = 2.0  # in which it says that it was told


class Order(enum.Enum):
    """What a process is told."""

    READY = enum.auto()  # make the nodes, and wait
    COUNT = enum.auto()
    SETTLE = enum.auto()  # count no more, and deliver
    CLOSE = enum.auto()


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part: the nodes of some rooms. window: seconds."""

    settings: Broker
    site: str
    rooms: range
    labels: Sequence[str]
    window: float
    seed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one process. waiting: readings that the broker has not acknowledged; unstored: that no
    recorder has; losses: connections; last: it ends now; reason: why it has no connection."""

    up: int = 0
    made: int = 0
    waiting: int = 0
    unstored: int = 0
    losses: int = 0
    settled: bool = False
    last: bool = False
    reason: str = ""


def _figures(fleet: SimulatedFleet, order: Order) -> Figures:
    nodes = fleet.nodes
    made = sum(node.made for node in nodes)
    return Figures(
        up=sum(node.up and node.subscriptions.granted for node in nodes),
        made=made,
        waiting=sum(node.outbox.pending_count() for node in nodes),
        unstored=made - sum(node.stored for node in nodes),
        losses=fleet.losses,
        settled=order is not Order.COUNT,
        last=order is Order.CLOSE,
        reason=str(fleet.reason),
    )


def _heard(parent: Connection, order: Order) -> Order:
    """The newest order; a parent that has gone wants no more."""
    try:
        while parent.poll():
            order = parent.recv()
    except (EOFError, OSError):
        return Order.CLOSE
    return order


def play(share: Share, parent: Connection) -> None:
    """Play a share's nodes as the orders say; the main function of a process. Signals that stop are the
    parent's to obey: it was started with them blocked."""
    allow_connections()
    longest = share.settings.retry_max_seconds
    nodes = [
        SimNode(room, share.labels, share.window, share.seed, longest, share.site)
        for room in share.rooms
    ]
    with suppress(OSError):  # the parent has gone
        parent.send(Figures())
        order = Order.READY
        while order is Order.READY:
            parent.poll(None)
            order = _heard(parent, order)
        _turn(SimulatedFleet(share.settings, nodes), order, parent)
    # To free what thousands of nodes hold takes longer than their goodbyes, and nobody wants it.
    os._exit(0)


def _turn(fleet: SimulatedFleet, order: Order, parent: Connection) -> None:
    """Turn a fleet until it is to be closed. Raises OSError where the parent has gone."""
    settled, next_report = False, 0.0
    try:
        while (order := _heard(parent, order)) is not Order.CLOSE:
            now = time.monotonic()
            if order is Order.COUNT:
                fleet.live(now)
            elif not settled:
                fleet.end(now)
                settled, next_report = True, 0.0
            fleet.turn()
            if (now := time.monotonic()) >= next_report:
                parent.send(_figures(fleet, order))
                cost = time.monotonic() - now
                next_report = now + max(REPORT_SECONDS, REPORT_SHARE * cost)
        parent.send(_figures(fleet, order))
    finally:
        fleet.close()


def allow_connections() -> int:
    """Let this process open as many files as it may, and return how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


@dataclass(slots=True)
class Player:
    """A process, as its parent sees it. over: it is gone; ended: this one killed it; death: how it
    ended before it was told to, or ""."""

    number: int
    share: Share
    process: SpawnProcess
    pipe: Connection
    figures: Figures = field(default_factory=Figures)
    heard_at: float = 0.0
    over: bool = False
    ended: bool = False
    death: str = ""

    def hear(self) -> None:
        """Take in what it said, or that it has ended."""
        try:
            self.figures, self.heard_at = self.pipe.recv(), time.monotonic()
            return
        except (EOFError, OSError):
            self.over = True
        self.process.join(END_SECONDS)
        code = self.process.exitcode
        if not self.figures.last and not self.ended:
            how = f"was killed by signal {-code}" if code and code < 0 else f"ended with {code}"
            self.death = how

    def end(self) -> None:
        """Kill it, if it is there still."""
        if not self.over and self.process.is_alive():
            self.ended = True
            self.process.kill()

    def tell(self, order: Order) -> None:
        with suppress(OSError):  # it has ended, and `hear` will say so
            self.pipe.send(order)


class Players:
    """All processes of a simulation."""

    def __init__(self, shares: Sequence[Share]) -> None:
        """Start a process a share; they count when they are told to."""
        context = multiprocessing.get_context("spawn")
        self.all: list[Player] = []
        # It would unblock the signals again.
        resource_tracker.ensure_running()
        # A Ctrl-C reaches every process of a terminal, and systemd's SIGTERM all of a service: this one
        # obeys, and tells the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
        try:
            for number, share in enumerate(shares, 1):
                ours, theirs = context.Pipe()
                process = context.Process(target=play, args=(share, theirs))
                process.start()
                theirs.close()
                self.all.append(Player(number, share, process, ours))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def ready(self) -> bool:
        """Whether each that lives has its nodes."""
        return all(player.heard_at for player in self.living)

    @property
    def living(self) -> list[Player]:
        return [player for player in self.all if not player.death]

    @property
    def nodes(self) -> int:
        """Nodes whose process lives."""
        return sum(len(player.share.rooms) for player in self.living)

    def total(self, name: str) -> int:
        """Sum one of the figures over the processes that live."""
        return sum(getattr(player.figures, name) for player in self.living)

    def hear(self, seconds: float) -> list[Player]:
        """Take in what is said within so many seconds; return those that have died meanwhile."""
        pipes = {player.pipe: player for player in self.all if not player.over}
        if not pipes:
            return []
        said = [pipes[pipe] for pipe in wait(list(pipes), seconds) if isinstance(pipe, Connection)]
        for player in said:
            player.hear()
        return [player for player in said if player.death]

    def tell(self, order: Order) -> None:
        for player in self.all:
            player.tell(order)

    def close(self) -> list[Player]:
        """End all, and return those that died before they were told to. One that does not answer is
        killed: it waits for a broker that does not answer either, and its last figures stand."""
        self.tell(Order.CLOSE)
        began, died = time.monotonic(), list[Player]()
        while any(not player.over for player in self.all):
            died += self.hear(0.1)
            waited = time.monotonic() - began
            for player in self.all:
                if waited > (END_SECONDS if player.figures.last else SILENT_SECONDS):
                    player.end()
        return died
