"""SIGKILL at random moments: every committed reading arrives, none twice. Prints its figures."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from edge.base.clock import rfc3339
from support.brokers import Mosquitto
from support.harness import NodeProcess, Receiver, tally
from support.patience import PATIENCE, wait_for

pytestmark = pytest.mark.faults

NODES, KILLS_EACH, BROKER_KILLS = 5, 40, 20


def test_two_hundred_kills_of_nodes_and_twenty_of_the_broker(tmp_path: Path) -> None:
    rng = random.Random(0)
    broker = Mosquitto(
        tmp_path,
        "allow_anonymous true\nmax_queued_messages 0\npersistence true\n"
        f"persistence_location {tmp_path}/\n",
    )
    receiver = Receiver(broker.port)
    nodes = [NodeProcess(tmp_path, broker.url, f"room-{i}").start() for i in range(NODES)]
    due = [(time.monotonic() + rng.uniform(3, 9), i) for i in range(NODES)]
    kills, broker_kills, publishing, before = [0] * NODES, 0, 0, [0] * NODES
    broker_at = time.monotonic() + 5
    while min(kills) < KILLS_EACH or broker_kills < BROKER_KILLS:
        now = time.monotonic()
        if now >= broker_at and broker_kills < BROKER_KILLS:
            broker.stop(signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.5))
            broker.start()
            broker_kills, broker_at = broker_kills + 1, time.monotonic() + rng.uniform(5, 12)
        for place, (at, i) in enumerate(due):
            if now >= at and kills[i] < KILLS_EACH:
                arrived = len(receiver.of(nodes[i].name))
                # Every other kill waits for a reading of this start, the rest may hit the start itself.
                if kills[i] % 2 and arrived == before[i] and now < at + PATIENCE:
                    continue
                publishing += arrived > before[i]
                nodes[i].kill()
                nodes[i].start()
                kills[i], before[i] = kills[i] + 1, arrived
                due[place] = (time.monotonic() + rng.uniform(1, 8), i)
        time.sleep(0.02)

    # Left in peace, everything that was ever committed arrives: what a broker acknowledged and then
    # lost is asked for by the receiver's acks. Below a reading of now there is no gap then.
    since = rfc3339(time.time())
    for node in nodes:
        wait_for(
            lambda n=node: any(r["start"] > since for r in receiver.of(n.name).values()),
            "a reading after the last kill",
        )
        wait_for(lambda n=node: not receiver.has_gap(n.name), "what the broker had lost")
    for node in nodes:
        assert node.stop() == 0, node.log.read_text()[-2000:]
        wait_for(lambda n=node: tally(n, receiver)[1] == 0, "what the broker still had")
    tallies = [tally(node, receiver) for node in nodes]
    committed, lost, doubled = (sum(t[k] for t in tallies) for k in range(3))
    print(
        f"\nkills {sum(kills)} ({publishing} of them after a reading of that start, and {broker_kills} "
        f"of the broker) committed {committed} lost {lost} doubled {doubled}"
    )
    receiver.close()
    broker.stop()
    assert sum(kills) >= 200
    assert broker_kills >= 20
    assert publishing >= 80
    assert not list(tmp_path.rglob("*.damaged-*"))
    assert committed > 100
    assert (lost, doubled) == (0, 0)
