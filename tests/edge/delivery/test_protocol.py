"""Which version of MQTT is tried first: remembered without secrets, for a day, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.base.errors import SettingsError
from edge.base.strict_yaml import validate
from edge.delivery.protocol import REMEMBER_SECONDS, ProtocolChoice
from edge.settings import Settings
from support.clock import Clock

BROKER = "192.0.2.10:1883"


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = 1e9
    return clock


def test_what_a_broker_spoke_is_tried_first_at_the_next_start(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "state" / "mqtt-3.1.1.json"
    choice = ProtocolChoice("auto", BROKER, file, clock)
    assert choice.candidates() == ("5", "3.1.1")
    choice.spoken("3.1.1")
    again = ProtocolChoice("auto", BROKER, file, clock)
    assert again.candidates() == ("3.1.1", "5")
    assert json.loads(file.read_text()) == {BROKER: 1e9}, "and nothing that is secret"
    other = ProtocolChoice("auto", "192.0.2.11:1883", file, clock)
    assert other.candidates() == ("5", "3.1.1")
    again.spoken("5")
    assert ProtocolChoice("auto", BROKER, file, clock).candidates() == ("5", "3.1.1")


def test_mqtt_5_is_tried_first_again_after_a_day(tmp_path: Path, clock: Clock) -> None:
    choice = ProtocolChoice("auto", BROKER, tmp_path / "file", clock)
    choice.spoken("3.1.1")
    clock.now += REMEMBER_SECONDS / 2
    choice.spoken("3.1.1")
    clock.now += REMEMBER_SECONDS / 2
    assert choice.candidates() == ("5", "3.1.1"), "however often it spoke 3.1.1 meanwhile"
    clock.now = 0.0
    assert choice.candidates() == ("5", "3.1.1"), "a clock that jumped back"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff{", b"[1]", b'{"a": "soon"}', b"null", b"[" * 99999, b'{"a": %b}' % (b"9" * 400)],
)
def test_a_damaged_memory_is_ignored(tmp_path: Path, clock: Clock, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    choice = ProtocolChoice("auto", BROKER, file, clock)
    assert choice.candidates() == ("5", "3.1.1")
    choice.spoken("3.1.1")
    assert ProtocolChoice("auto", BROKER, file, clock).candidates() == ("3.1.1", "5")


def test_without_a_state_that_can_be_written_it_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = tmp_path / "file" / "below"
    choice = ProtocolChoice("auto", BROKER, file)
    choice.spoken("3.1.1")
    assert choice.candidates() == ("3.1.1", "5"), "in this process it is known"
    assert ProtocolChoice("auto", BROKER, file).candidates() == ("5", "3.1.1")


def test_a_version_that_is_set_is_the_only_one() -> None:
    for text, version in (("5", "5"), ("3.1.1", "3.1.1")):
        settings = validate(Settings, {"broker": {"protocol": text}}, "node.yaml").broker
        assert ProtocolChoice(settings.protocol, BROKER).candidates() == (version,)
    assert validate(Settings, {"broker": {"protocol": 5}}, "node.yaml").broker.protocol == "5"
    for wrong in (4, 5.0, True, "3.1", None):
        with pytest.raises(SettingsError, match=r"broker\.protocol"):
            validate(Settings, {"broker": {"protocol": wrong}}, "node.yaml")
