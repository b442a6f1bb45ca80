"""A real recorder and a real mosquitto, read by Home Assistant's own MQTT integration.

Nothing is replaced: `edge-watch --record --home-assistant` runs in a process of its own, Home Assistant
in this one, and both speak to the broker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "homeassistant", reason="needs Home Assistant's own environment: make test-home-assistant"
)

import paho.mqtt.client as mqtt
from homeassistant.const import STATE_UNAVAILABLE, STATE_UNKNOWN
from homeassistant.core import HomeAssistant
from homeassistant.helpers import area_registry, device_registry, entity_registry
from pytest_homeassistant_custom_component.common import MockConfigEntry

from edge.delivery.commands import Commands
from support.brokers import Mosquitto
from support.heard import NODE, counts, raw, small
from support.paths import ROOT
from support.patience import PATIENCE
from support.recording import PYTHON, Recording

pytestmark = pytest.mark.home_assistant

OTHER = "school/room-1-node/1"  # with '-' for '/', the same letters as NODE
LABELS = ["calm", "glad", 'it\'s "{{ 7 * 7 }}" %}']
PEOPLE = "sensor.school_room_1_node_1_people"


@pytest.fixture
def expected_lingering_timers() -> bool:
    """Of readings that expire."""
    return True


@pytest.fixture
def broker(socket_enabled: None, tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def node(broker: Mosquitto) -> Iterator[mqtt.Client]:
    """Says what nodes say."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


@pytest.fixture
async def house(
    hass: HomeAssistant, broker: Mosquitto, tmp_path: Path
) -> AsyncIterator[MockConfigEntry]:
    """Home Assistant's MQTT integration, connected to the broker."""
    (tmp_path / "configuration.yaml").touch()
    hass.config.config_dir = str(tmp_path)
    data = {"broker": "127.0.0.1", "port": broker.port, "protocol": "5"}
    entry = MockConfigEntry(domain="mqtt", data=data, version=1, minor_version=2)
    entry.add_to_hass(hass)
    assert await hass.config_entries.async_setup(entry.entry_id)
    yield entry
    await hass.config_entries.async_unload(entry.entry_id)


async def until(hass: HomeAssistant, condition: Callable[[], object], what: object = "") -> None:
    """Wait for what must come."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what() if callable(what) else what
        await asyncio.sleep(0.02)
    await hass.async_block_till_done()


def say(node: mqtt.Client, message: tuple[str, bytes], retain: bool = False) -> None:
    node.publish(*message, qos=1, retain=retain).wait_for_publish(PATIENCE)


async def say_until(
    hass: HomeAssistant,
    node: mqtt.Client,
    message: tuple[str, bytes],
    condition: Callable[[], object],
) -> None:
    """Say a reading again and again until it is seen: Home Assistant may not hear the first ones,
    since it subscribes to topic after topic."""

    async def repeat() -> None:
        while True:
            await asyncio.to_thread(say, node, message)
            await asyncio.sleep(0.5)

    task = asyncio.create_task(repeat())
    try:
        await until(hass, condition, message)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def introduce(node: mqtt.Client, *names: str, labels: Sequence[str] = LABELS) -> None:
    """Say what a node retains."""
    model = {"bundle_sha256": "0", "labels": list(labels), "backend": "onnxruntime",
             "precision": "int8", "engine": None}  # fmt: skip
    for name in names:
        # An hour, that no reading expires on a machine that does ten other things.
        say(node, raw("info", name, model=model, window_seconds=3600.0), retain=True)
        say(node, raw("status", name), retain=True)


def devices(hass: HomeAssistant) -> set[str]:
    found = device_registry.async_get(hass).devices.values()
    return {device.name or "" for device in found}


def entity(hass: HomeAssistant, name: str, platform: str = "sensor", of: str = NODE) -> str:
    """The id of an entity, by the name in its unique id."""
    own = f"edge_{of.replace('/', '_')}_{name}"
    found = entity_registry.async_get(hass).async_get_entity_id(platform, "mqtt", own)
    return found or "none.yet"


def state(hass: HomeAssistant, name: str, platform: str = "sensor", of: str = NODE) -> str:
    found = hass.states.get(entity(hass, name, platform, of))
    return "none yet" if found is None else found.state


@pytest.fixture
async def school(
    hass: HomeAssistant,
    house: MockConfigEntry,
    broker: Mosquitto,
    node: mqtt.Client,
    tmp_path: Path,
) -> AsyncIterator[Recording]:
    """A recorder that has told of two nodes."""
    introduce(node, NODE, OTHER)
    recorder = await asyncio.to_thread(
        Recording, broker, tmp_path / "school.sqlite", "--home-assistant"
    )
    try:
        await until(hass, lambda: devices(hass) >= {NODE, OTHER}, lambda: devices(hass))
        for name in (NODE, OTHER):
            await until(hass, lambda of=name: state(hass, "status", of=of) == "online", name)
        yield recorder
    finally:
        if recorder.poll() is None:
            await asyncio.to_thread(recorder.end)


async def test_each_node_is_a_device_with_its_own_entities(
    hass: HomeAssistant, school: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    registry = entity_registry.async_get(hass)
    found = [one for one in registry.entities.values() if one.platform == "mqtt"]
    assert len(found) == 2 * (1 + len(LABELS) + 2 + 2 + 2)
    assert hass.states.get(PEOPLE) is not None
    areas = {area.name for area in area_registry.async_get(hass).async_list_areas()}
    assert areas == {"school room-1", "school room-1-node"}
    names = {hass.states.get(one.entity_id).name for one in found}  # type: ignore[union-attr]
    assert f"{NODE} {LABELS[2]} share" in names
    bad = [r.getMessage() for r in caplog.records
           if r.levelno >= logging.WARNING and "mqtt" in r.name]  # fmt: skip
    assert bad == []


async def test_readings_are_states_and_small_groups_are_unknown(
    hass: HomeAssistant, school: Recording, node: mqtt.Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert state(hass, "people") in (STATE_UNKNOWN, STATE_UNAVAILABLE), "nothing came yet"
    times = {"calm": 40, "glad": 0, LABELS[2]: 20, "unclassified": 0, "other": 0}
    names = ("people", "share_calm", "share_glad", "share_other")
    await say_until(
        hass, node, counts(1, counts=times, person_seconds=times),
        lambda: all(state(hass, name)[0].isdigit() for name in names),
    )  # fmt: skip
    assert state(hass, "people") == "6.0"
    registry = entity_registry.async_get(hass)
    odd = next(e.entity_id for e in registry.entities.values()
               if e.unique_id.startswith(f"edge_{NODE.replace('/', '_')}_share__"))  # fmt: skip
    assert state(hass, "share_calm") == "66.7"
    assert state(hass, "share_glad") == "0.0"
    found = hass.states.get(odd)
    assert found is not None
    assert found.state == "33.3", "a label is text and no template"
    assert found.attributes["unit_of_measurement"] == "%"
    seen = state(hass, "last_seen")
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(seen)).total_seconds()) < 600
    assert state(hass, "people", of=OTHER) != "6.0", "another node's"

    say(node, counts(2, faces={"mean": 9.0, "max": 9}, historical=True))
    await say_until(hass, node, counts(3, OTHER), lambda: state(hass, "people", of=OTHER) == "6.0")
    assert state(hass, "people") == "6.0", "what comes late changes nothing"
    say(node, small(4))
    await until(hass, lambda: state(hass, "people") == STATE_UNKNOWN)
    assert state(hass, "share_calm") == state(hass, "share_other") == STATE_UNKNOWN
    assert state(hass, "last_seen") >= seen
    bad = [r.getMessage() for r in caplog.records
           if r.levelno >= logging.WARNING and "mqtt" in r.name]  # fmt: skip
    assert bad == []


async def test_a_node_that_is_gone_is_unavailable_and_its_status_says_so(
    hass: HomeAssistant, school: Recording, node: mqtt.Client
) -> None:
    await say_until(hass, node, counts(1), lambda: state(hass, "people") == "6.0")
    seen = state(hass, "last_seen")
    will = {"schema": "edge.status/1", "node": NODE, "session": "s-1", "state": "lost"}
    say(node, (f"edge/v1/{NODE}/status", json.dumps(will).encode()), retain=True)
    await until(hass, lambda: state(hass, "people") == STATE_UNAVAILABLE)
    assert state(hass, "pause", "button") == STATE_UNAVAILABLE
    assert state(hass, "status") == "lost"
    assert state(hass, "last_seen") == seen
    say(node, raw("status", state="degraded", reason="paused by command"), retain=True)
    await until(hass, lambda: state(hass, "status") == "degraded")
    found = hass.states.get(entity(hass, "status"))
    assert found is not None
    assert found.attributes["reason"] == "paused by command"


async def test_after_an_outage_what_comes_late_brings_no_old_number_back(
    hass: HomeAssistant, school: Recording, node: mqtt.Client
) -> None:
    await say_until(hass, node, counts(1), lambda: state(hass, "people") == "6.0")
    will = {"schema": "edge.status/1", "node": NODE, "session": "s-1", "state": "lost"}
    say(node, (f"edge/v1/{NODE}/status", json.dumps(will).encode()), retain=True)
    await until(hass, lambda: state(hass, "people") == STATE_UNAVAILABLE)
    say(node, counts(2, historical=True))
    say(node, raw("status"), retain=True)
    await until(hass, lambda: state(hass, "status") == "online")
    await until(hass, lambda: state(hass, "people") == STATE_UNKNOWN, "6 were there before it")
    await say_until(hass, node, counts(3), lambda: state(hass, "people") == "6.0")
    assert state(hass, "resume", "button") != STATE_UNAVAILABLE


@pytest.mark.parametrize("name", ["pause", "resume"])
async def test_a_button_is_a_command_that_the_node_does(
    hass: HomeAssistant, school: Recording, node: mqtt.Client, name: str, tmp_path: Path
) -> None:
    came: list[Any] = []
    subscribed: list[int] = []
    node.on_message = lambda c, u, m: came.append(m)
    node.on_subscribe = lambda c, u, mid, codes, p: subscribed.append(mid)
    node.subscribe(f"edge/v1/{NODE}/cmd/+", qos=1)
    await until(hass, lambda: subscribed)
    target = {"entity_id": entity(hass, name, "button")}
    await hass.services.async_call("button", "press", target, blocking=True)
    await hass.services.async_call("button", "press", target, blocking=True)
    await until(hass, lambda: len(came) == 2)
    commands = Commands(tmp_path / "c.json", NODE, 5, 10.0, lambda: None, lambda: "")
    for message in came:
        assert message.topic == f"edge/v1/{NODE}/cmd/{name}"
        done = commands.take(name, message.payload, message.retain)
        assert done is not None
        assert done.ok, done.text
    assert json.loads(came[0].payload)["id"] != json.loads(came[1].payload)["id"]
    assert commands.paused() is (name == "pause")


async def test_an_expression_that_a_new_model_has_not_takes_its_entity_along(
    hass: HomeAssistant,
    house: MockConfigEntry,
    school: Recording,
    node: mqtt.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert entity(hass, "share_glad") != "none.yet"
    introduce(node, NODE, labels=["calm", "cross"])
    await until(hass, lambda: entity(hass, "share_cross") != "none.yet")
    await until(hass, lambda: entity(hass, "share_glad") == "none.yet")
    assert state(hass, "share_calm") in (STATE_UNKNOWN, STATE_UNAVAILABLE), "this one stays"
    assert entity(hass, "share_glad", of=OTHER) != "none.yet"

    # What removed it stays at the broker, for a Home Assistant that never knew it.
    assert await hass.config_entries.async_reload(house.entry_id)
    await until(hass, lambda: state(hass, "status") == "online")
    assert entity(hass, "share_glad") == "none.yet"
    bad = [r.getMessage() for r in caplog.records
           if r.levelno >= logging.WARNING and "mqtt" in r.name]  # fmt: skip
    assert bad == []


async def test_restarts_change_nothing_and_a_retired_room_goes_until_it_counts(
    hass: HomeAssistant,
    house: MockConfigEntry,
    school: Recording,
    broker: Mosquitto,
    node: mqtt.Client,
    tmp_path: Path,
) -> None:
    database = tmp_path / "school.sqlite"
    names = ("people", "share_calm", "share_glad", "share_unclassified", "share_other")
    await say_until(
        hass, node, counts(1), lambda: all(state(hass, name)[0].isdigit() for name in names)
    )
    await until(hass, lambda: state(hass, "last_seen") != STATE_UNKNOWN)
    changes: list[Any] = []
    stop = hass.bus.async_listen("state_changed", changes.append)
    await asyncio.to_thread(school.end)
    recorder = await asyncio.to_thread(Recording, broker, database, "--home-assistant")
    await asyncio.sleep(5)  # the recorder looks every two seconds
    assert changes == [], "of a recorder's restart Home Assistant sees nothing"
    stop()

    assert await hass.config_entries.async_reload(house.entry_id)
    await until(hass, lambda: state(hass, "status") == "online")
    assert devices(hass) >= {NODE, OTHER}

    words = [PYTHON, "-m", "edge.watch.run", "retire", OTHER, "--record", str(database)]
    await asyncio.to_thread(subprocess.run, words, cwd=ROOT, check=True)
    await until(hass, lambda: OTHER not in devices(hass), lambda: devices(hass))
    assert NODE in devices(hass)
    assert state(hass, "people", of=OTHER) == "none yet"
    say(node, counts(1, OTHER))
    await until(hass, lambda: OTHER in devices(hass))
    await until(hass, lambda: state(hass, "status", of=OTHER) == "online")
    await asyncio.to_thread(recorder.end)
