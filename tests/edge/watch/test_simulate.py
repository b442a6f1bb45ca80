"""The simulated fleet's connections, against a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.settings import Broker
from edge.watch.simulate import SimNode, SimulatedFleet
from support.brokers import Mosquitto
from support.patience import wait_for


def test_a_broker_that_comes_up_late_is_spoken_to_in_mqtt_5(
    mosquitto: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.stop()
    nodes = [SimNode(i, ["a", "b"], 10.0, 0, longest=0.1) for i in range(3)]
    fleet = SimulatedFleet(Broker(url=mosquitto.url, retry_max_seconds=1), nodes)
    for node in nodes:
        node.next_try = 0.0

    def refused() -> bool:
        fleet.turn()
        return str(fleet.reason) == "away: nothing listens there"

    wait_for(refused, "an attempt that failed")
    mosquitto.start()

    def all_up() -> bool:
        fleet.turn()
        return all(node.up for node in nodes)

    wait_for(all_up, "all nodes up")
    versions = {node.client.protocol for node in nodes if node.client is not None}
    fleet.close()
    assert versions == {5}
    assert "3.1.1" not in caplog.text
