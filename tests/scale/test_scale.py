"""A thousand nodes over mutual TLS into a database while broker, recorder and database are killed again
and again: by the end-to-end `ack` nothing is lost, and nothing stands twice. Prints its figures.

More nodes come back from a kill more slowly, and are killed less often:

    SCALE_NODES=10000 SCALE_KILLS=2 pytest -s -m scale tests/scale/test_scale.py -k postgresql
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.brokers import school_broker
from support.drill import tally
from support.paths import ROOT
from support.postgres import Postgres

pytestmark = pytest.mark.scale

NODES = int(os.environ.get("SCALE_NODES", "1000"))
WINDOW_SECONDS = 10
KILLS_EACH = int(os.environ.get("SCALE_KILLS", "5"))
PACE = max(1.0, NODES / 2000)  # every pause is so many times longer
BETWEEN = (7.0 * PACE, 11.0 * PACE)  # seconds between two kills of anything


class School:
    """mosquitto as `edge-watch broker` sets it up, with a client that may play every node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        access = "\nuser simulator\ntopic readwrite edge/v1/sim/#\n"
        self.broker = school_broker(folder, ["server", "simulator"], access)

    def watch(self, name: str, *words: object) -> list[str]:
        """edge-watch with the certificate of that name."""
        f = self.folder
        tls = ["--ca", f / "ca.pem", "--certificate", f / f"{name}.pem", "--key", f / f"{name}.key"]
        whole = [sys.executable, "-m", "edge.watch.run", *words, "--broker", self.broker.url, *tls]
        return [str(word) for word in whole]


class Recorder:
    """edge-watch --record, to be killed and started again."""

    def __init__(self, school: School, url: str, *more: object) -> None:
        self._command = school.watch("server", "--record", url, *more)
        self._log = (school.folder / "recorder.log").open("ab")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=self._log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_thousand_nodes_while_everything_is_killed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rng, school = random.Random(0), School(tmp_path)
    server: Postgres | None = None
    url = str(tmp_path / "school.sqlite")
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        url = server.url
    recorder = Recorder(school, url)
    victims = ["broker", "recorder", *(["database"] if server else [])] * KILLS_EACH
    rng.shuffle(victims)
    seconds = round(PACE * (25 + 9 * len(victims)))
    simulator = subprocess.Popen(
        school.watch("simulator", "simulate", "--nodes", NODES, "--window", WINDOW_SECONDS,
                     "--seconds", seconds, "--wait", round(240 * PACE)),
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(20 * PACE)
    loads = []
    for victim in victims:
        if victim == "broker":
            school.broker.stop(signal.SIGKILL)
            time.sleep(rng.uniform(0, 1))
            school.broker.start()
        elif victim == "recorder":
            recorder.kill()
        elif server is not None:
            server.kill()
            time.sleep(rng.uniform(0, 2))
            server.start()
        time.sleep(rng.uniform(*BETWEEN))
        loads.append(os.getloadavg()[0])
    killed = time.monotonic()
    out, _ = simulator.communicate(timeout=600 * PACE)
    whole = time.monotonic() - killed
    recorder.stop()
    school.broker.stop()
    last = out.strip().splitlines()[-1]
    stored, lacking, twice = tally(url)
    made = int(last.split(" readings")[0].split()[-1])
    kills = {name: victims.count(name) for name in dict.fromkeys(victims)}
    print(
        f"\n{kind}: {last}\n{NODES} nodes, windows of {WINDOW_SECONDS} s for {seconds} s, "
        f"kills {kills} made {made} stored {stored} lost {made - stored} gaps {lacking} "
        f"twice {twice}; whole {whole:.0f} s after the last kill; "
        f"load {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    )
    assert simulator.returncode == 0, out
    assert (made - stored, lacking, twice) == (0, 0, 0)
    assert made > NODES * seconds / WINDOW_SECONDS / 2
