"""A recorder of three is killed while nodes count: what came before it was taken over comes again.

Until then the other recorders let its nodes' messages go by, so that all hangs on the nodes: they send
again what no `ack` names. Prints its figures.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from edge.watch.store import Store
from edge.watch.tables import COUNTS
from support.brokers import Mosquitto
from support.paths import ROOT
from support.patience import PATIENCE
from support.postgres import Postgres
from support.recording import Recording

pytestmark = pytest.mark.scale

NODES = 24
SECONDS = 40  # of counting, windows of one second
KILLED_AFTER = 15.0
FIGURES = re.compile(r"([\d,]+) readings, .* ([\d,]+) not stored by a recorder")


def test_a_part_is_killed_while_nodes_count(tmp_path: Path, postgres: Postgres) -> None:
    broker = Mosquitto(tmp_path)
    recorders = [Recording(broker, postgres.url, "--part", f"{k}/3") for k in (1, 2, 3)]
    words = ["--nodes", NODES, "--window", 1, "--seconds", SECONDS, "--wait", PATIENCE]
    nodes = subprocess.Popen(
        [sys.executable, "-m", "edge.watch.run", "simulate", "--broker", broker.url,
         *map(str, words)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    time.sleep(KILLED_AFTER)
    dead = recorders.pop(1)
    dead.kill()
    dead.wait()
    killed = time.monotonic()
    said = nodes.communicate(timeout=3 * PATIENCE)[0]
    whole = time.monotonic() - killed
    told = [
        [int(number.replace(",", "")) for number in figures] for figures in FIGURES.findall(said)
    ]
    for recorder in recorders:
        recorder.end()
    broker.stop()
    store = Store(postgres.url)
    with store.transaction(reading=True) as db:
        asked = sa.select(sa.func.count(), sa.func.count(sa.distinct(COUNTS.c.node)))
        stored, heard = db.execute(asked.select_from(COUNTS)).one()
    store.close()
    made, missing = told[-1]
    print(
        f"\n{NODES} nodes, windows of 1 s, one recorder of three killed: {made} made, {stored} stored, "
        f"at most {max(left for _, left in told)} behind, whole {whole:.0f} s after the kill"
    )
    assert nodes.returncode == 0, said
    assert max(left for _, left in told) > 0, "it was killed while its nodes counted"
    assert (stored, missing, heard) == (made, 0, NODES)
