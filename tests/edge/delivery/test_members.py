"""Several brokers in `broker.url`: the next is used where one refuses, does not answer or is gone."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.base.errors import SettingsError
from edge.base.strict_yaml import read_yaml, validate
from edge.delivery.connection import Connector
from edge.delivery.connection_status import ConnectionState
from edge.delivery.members import Members
from edge.settings import Broker, Settings
from edge.watch.fleet import SimNode, SimulatedFleet
from fakes.broker import Habits, StubBroker
from support.brokers import Mosquitto, free_port
from support.harness import NodeProcess, Receiver, tally
from support.patience import PATIENCE, wait_for
from support.recording import Recording


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[Mosquitto]]:
    """Two of their own, which know nothing of each other."""
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(Mosquitto(tmp_path / name))
    yield made
    for broker in made:
        broker.process.kill()
        broker.process.wait()


def settings_of(*urls: str) -> Broker:
    return validate(Settings, {"broker": {"url": list(urls)}}, "node.yaml").broker


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("5", "'broker.url' must be an address or a list of addresses"),
        ("[]", "must hold 1 to 16 addresses"),
        ("[mqtt://a, 5]", "must hold 1 to 16 addresses"),
        ("[mqtt://a, '-']", "url must be mqtt://host[:port]"),
        (
            "[mqtt://a, mqtts://b]",
            "url must be mqtts:// in all of its addresses, or mqtt:// in all",
        ),
        ("[mqtt://a, mqtt://a]", "url holds an address twice"),
        ("[mqtt://a, mqtt://u:geheim@b]", "url must not hold a password"),
        ("[mqtt://a, http://geheim]", "url must be mqtt://host[:port]"),
    ],
)
def test_a_list_that_cannot_be_meant_is_one_line(url: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(f"broker: {{url: {url}}}")
    with pytest.raises(SettingsError) as refusal:
        validate(Settings, read_yaml(tmp_path / "node.yaml"), "node.yaml")
    assert said in str(refusal.value)
    assert "geheim" not in str(refusal.value)


def test_one_address_is_a_list_of_one() -> None:
    assert settings_of("mqtt://a").urls == Broker(url="mqtt://a").urls == ("mqtt://a",)
    assert Broker().urls == ()
    assert Broker().shown == "-"


def test_members_go_round_and_a_late_word_on_another_changes_nothing() -> None:
    members = Members(["mqtt://a", "mqtt://b:1884", "mqtt://c"], "auto", None)
    first = members.address
    seen = []
    for _ in range(4):
        seen.append(members.address.url)
        members.pass_over(members.address)
    assert seen == ["mqtt://a", "mqtt://b:1884", "mqtt://c", "mqtt://a"]
    members.pass_over(first)
    assert members.address.url == "mqtt://b:1884"


def test_each_brokers_version_is_remembered_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    members = Members(["mqtt://a", "mqtt://b", "mqtt://c"], "auto", file)
    for version in ("3.1.1", "5", "3.1.1"):
        members.protocol.spoken(version)  # type: ignore[arg-type]
        members.pass_over(members.address)
    again = Members(["mqtt://a", "mqtt://b", "mqtt://c"], "auto", file)
    found = []
    for _ in range(3):
        found.append(again.protocol.candidates()[0])
        again.pass_over(again.address)
    assert found == ["3.1.1", "5", "3.1.1"]


@pytest.mark.parametrize("unknown", ["code 1", "code 0x84", "close", "silent"])
def test_a_broker_that_refuses_is_passed_over_and_told_once(
    unknown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with StubBroker(Habits(versions=(), unknown=unknown)) as bad, StubBroker(Habits()) as good:
        wrong, right = bad.url, good.url
        # Who is silent must be given up soon, and on a busy machine the good one is silent as long.
        silent, tries = unknown == "silent", 0
        patience = 0.3 if silent else PATIENCE
        connector = Connector(settings_of(wrong, right), connack_timeout=patience)
        for _ in range(2):
            client = None
            while client is None:
                client, tries = connector.connect("one"), tries + 1
                assert client is not None or silent
            assert connector.address.url == right
            client.disconnect()
            connector.members.pass_over(connector.address)
    told = [record.message for record in caplog.records if "used is" in record.message]
    assert 1 <= len(told) < tries, "once: no more than one try tells nothing new"
    assert all(f"address={wrong}, used is {right}" in line for line in told)


def test_where_none_is_to_be_had_each_ones_reason_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    with StubBroker(Habits(versions=(), unknown="code 1")) as bad:
        wrong = bad.url
        connector = Connector(settings_of(nowhere, wrong))
        assert connector.connect("one") is None
        assert connector.connect("one") is None
    assert connector.status.state is ConnectionState.AWAY
    assert connector.status.detail.startswith(f"{nowhere} away: nothing listens there; {wrong} ")
    assert len(caplog.records) == 1


def test_simulated_nodes_go_to_the_next_broker() -> None:
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    nodes = [SimNode(number, ["neutral", "happiness"], 1.0, 0, 1.0) for number in range(5)]
    with StubBroker(Habits()) as good:
        fleet = SimulatedFleet(settings_of(nowhere, good.url), nodes)

        def up() -> bool:
            fleet.turn()
            return all(node.up for node in nodes)

        wait_for(up, lambda: str(fleet.reason))
        fleet.close()


@pytest.mark.broker
@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_goes_on_at_the_next_broker(
    how: signal.Signals, brokers: list[Mosquitto], tmp_path: Path
) -> None:
    """The first is killed, or stands still with its connections open: nothing is lost."""
    first, second = brokers
    node = NodeProcess(tmp_path, f'{first.url}", "{second.url}')
    node.config.write_text(node.config.read_text().replace(
        f'"{first.url}", "{second.url}"', f'["{first.url}", "{second.url}"]'))  # fmt: skip
    receivers = [Receiver(broker.port) for broker in brokers]
    node.start()
    wait_for(lambda: len(receivers[0].readings) > 3, node.log.read_text)
    first.process.send_signal(how)
    wait_for(lambda: len(receivers[1].readings) > 3, node.log.read_text)
    wait_for(lambda: not receivers[1].has_gap(node.name), "what the first broker had taken")
    assert node.stop() == 0
    log = node.log.read_text()
    assert f"connected: MQTT 5 address={second.url}" in log
    both = receivers[1]

    def arrived() -> bool:
        both.add(receivers[0])
        return tally(node, both)[1] == 0

    wait_for(arrived, "all that was made")
    made, lost, twice = tally(node, both)
    assert (lost, twice) == (0, 0)
    assert made > 3
    for receiver in receivers:
        receiver.close()


@pytest.mark.broker
@pytest.mark.process
def test_a_recorder_goes_on_at_the_next_broker(brokers: list[Mosquitto], tmp_path: Path) -> None:
    first, second = brokers
    recorder = Recording(first, tmp_path / "school.sqlite", "--broker", second.url)
    first.stop(signal.SIGKILL)
    wait_for(lambda: f"connected: MQTT 5 address={second.url}" in recorder.told(), recorder.told)
    second.stop(signal.SIGKILL)
    first.start()
    wait_for(lambda: recorder.told().count(f"MQTT 5 address={first.url}") >= 2, recorder.told)
    recorder.end()
