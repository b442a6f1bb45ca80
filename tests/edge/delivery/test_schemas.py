"""The published contract: schemas, versions, AsyncAPI, and each way of subscribing that is shown."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import paho.mqtt.client as mqtt
import pytest
import yaml
from pydantic import ValidationError

from edge.base.errors import UsageError
from edge.base.tls import client_context
from edge.delivery.commands import NAMES
from edge.delivery.messages import MESSAGES, Counts, parse, schema_of
from edge.delivery.schemas import (
    CHANNELS,
    asyncapi,
    extends,
    fingerprint,
    identity,
    published,
    write,
)
from edge.settings import Settings
from edge.watch.messages import KINDS, read
from support.brokers import Mosquitto, school_broker
from support.mutated import bases
from support.paths import ROOT
from support.patience import PATIENCE

SCHEMAS = ROOT / "edge" / "schemas"
TOOLS = ROOT / ".node" / "node_modules"


def test_the_checked_in_contract_is_the_codes_own(tmp_path: Path) -> None:
    """Regenerate with `make schemas`."""
    shutil.copytree(SCHEMAS, tmp_path, dirs_exist_ok=True)
    write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in SCHEMAS.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_text() == (SCHEMAS / path.name).read_text(), path.name


def test_node_yamls_schema_takes_what_the_node_takes_and_refuses_what_it_refuses() -> None:
    path = ROOT / "systemd" / "node.yaml"
    named = re.search(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.M)
    assert named is not None
    schema = json.loads((path.parent / named[1]).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    example = yaml.safe_load(path.read_text())
    texts: list[Any] = [
        example,
        {},
        {"camera": {"source": 0}},
        {"detector": {"width": "auto", "height": "auto"}},
        {"camera": {"analyse_per_second": "auto"}},
        {"camera": {"analyse_per_second": 4}},
        {"camera": {"analyse_per_second": "fast"}},
        {"camera": {"sauce": "0"}},
        {"classifier": {"counting": "guessed"}},
        {"detector": {"width": 100, "height": 96}},
        {"window": {"seconds": 0}},
        {"privacy": {"masks": [[0, 0, 1, 1]]}},
        {"room": "1"},
    ]
    taken = []
    for text in texts:
        with contextlib.suppress(ValidationError):
            Settings.model_validate(text)
            taken.append(text)
    assert 5 < len(taken) < len(texts)
    assert [
        text for text in texts if jsonschema.Draft202012Validator(schema).is_valid(text)
    ] == taken


def test_a_message_that_changed_needs_another_number(tmp_path: Path) -> None:
    versions = json.loads((SCHEMAS / "versions.json").read_text())
    for message in MESSAGES:
        schema = schema_of(message)
        assert versions[identity(schema)] == fingerprint(schema), (
            f"{identity(schema)} is not what it was: give the message another number"
        )
    versions["edge.counts/2"] = "what it was before"
    (tmp_path / "versions.json").write_text(json.dumps(versions))
    with pytest.raises(UsageError, match=r"'edge\.counts/2' is not what it was"):
        write(tmp_path)


def places(message: dict[str, Any], way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The ways to all objects of a message that have named fields."""
    yield way
    for key, value in message.items():
        if isinstance(value, dict) and key in NAMED:
            yield from places(value, (*way, key))


NAMED = ("faces", "quality", "model", "privacy")  # the others' keys are labels, stages, arguments


def whole(message: type) -> dict[str, Any]:
    """One valid message of a kind."""
    name = message.__name__.lower()
    kind = {"command": "cmd/pause", "result": "cmd/pause/result"}.get(name, name)
    return copy.deepcopy(bases()[kind][0])


@pytest.mark.parametrize("message", MESSAGES)
def test_a_field_of_a_later_release_passes_the_published_schema_and_not_the_strict_one(
    message: type,
) -> None:
    stored = json.loads((SCHEMAS / f"{message.__name__.lower()}.json").read_text())
    published = jsonschema.Draft202012Validator(stored)
    strict = jsonschema.Draft202012Validator(schema_of(message))
    for way in places(whole(message)):
        said = whole(message)
        assert strict.is_valid(said)
        inner = said
        for key in way:
            inner = inner[key]
        inner["of_a_later_release"] = {"x": [1]}
        assert published.is_valid(said), way
        assert not strict.is_valid(said), way
    wrong = {**whole(message), "node": "../x"}
    assert not published.is_valid(wrong), "what it names is checked as before"


@pytest.mark.parametrize("message", MESSAGES)
def test_a_field_of_a_later_release_is_passed_over_by_the_kits_own_readers(message: Any) -> None:
    for way in places(whole(message)):
        said = whole(message)
        inner = said
        for key in way:
            inner = inner[key]
        inner["of_a_later_release"] = 1
        assert parse(message, json.dumps(said)) == parse(message, json.dumps(whole(message)))
        kind = message.__name__.lower()
        if kind in KINDS:
            topic = f"edge/v1/{said['node']}/{kind}"
            assert read(topic, json.dumps(said).encode()) == read(
                topic, json.dumps(whole(message)).encode()
            )


def with_field(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    """A schema as a later release may have it."""
    later = copy.deepcopy(schema)
    later["properties"]["extra"] = {"$ref": "#/$defs/Extra"}
    later.setdefault("$defs", {})["Extra"] = {"type": "object"}
    later["required"] = [*schema["required"], *(["extra"] if required else [])]
    return later


@pytest.mark.parametrize("message", MESSAGES)
def test_only_an_optional_field_may_come_under_the_same_number(message: type) -> None:
    now = published(message)
    assert extends(with_field(now, required=False), now)
    assert not extends(now, with_field(now, required=False)), "a field must not go"
    assert not extends(with_field(now, required=True), now), "who wrote before had none"
    for name in now["properties"]:
        other = copy.deepcopy(now)
        other["properties"][name] = {"type": "array"}
        assert not extends(other, now), name
        del other["properties"][name]
        assert not extends(other, now), name


def test_the_contract_of_the_release_before_is_written_over_where_it_only_grew(
    tmp_path: Path,
) -> None:
    """The release before had no `counting`, which is optional; its number stays."""
    shutil.copytree(SCHEMAS, tmp_path, dirs_exist_ok=True)
    versions = json.loads((tmp_path / "versions.json").read_text())
    versions["edge.counts/2"] = "of the release before"
    (tmp_path / "versions.json").write_text(json.dumps(versions))
    before = json.loads((tmp_path / "counts.json").read_text())
    del before["properties"]["counting"]
    (tmp_path / "counts.json").write_text(json.dumps(before))
    write(tmp_path)
    assert json.loads((tmp_path / "counts.json").read_text()) == published(Counts)
    before["properties"]["seq"]["maximum"] = 5
    versions["edge.counts/2"] = "of the release before"
    (tmp_path / "versions.json").write_text(json.dumps(versions))
    (tmp_path / "counts.json").write_text(json.dumps(before))
    with pytest.raises(UsageError, match="or only add fields that have a default"):
        write(tmp_path)


def test_a_fingerprint_is_of_what_is_valid_not_of_its_words() -> None:
    schema = schema_of(MESSAGES[0])
    other = json.loads(json.dumps(schema).replace("One window of one room", "Something else"))
    assert fingerprint(other) == fingerprint(schema)
    other["properties"]["seq"]["minimum"] = 0
    assert fingerprint(other) != fingerprint(schema)


def test_every_message_and_command_is_in_the_asyncapi_document() -> None:
    document = asyncapi()
    assert {name for name, *_ in CHANNELS.values()} == {m.__name__ for m in MESSAGES}
    commands = document["channels"]["cmd"]["parameters"]["command"]
    assert commands["enum"] == list(NAMES)
    for channel in document["channels"].values():
        wanted = set(re.findall(r"{(\w+)}", channel["address"]))
        assert wanted == set(channel["parameters"])
    for operation in document["operations"].values():
        assert operation["channel"]["$ref"].removeprefix("#/channels/") in document["channels"]
    for message in document["components"]["messages"].values():
        assert (SCHEMAS / message["payload"]["schema"]["$ref"]).is_file()


def test_the_asyncapi_document_is_valid_by_its_own_schema() -> None:
    path = TOOLS / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    if not path.is_file():
        pytest.skip("needs AsyncAPI's schema (make node-tools)")
    schema = json.loads(path.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(asyncapi())] == []
    broken: dict[str, Any] = {**asyncapi(), "channels": {"x": {"adress": 1}}}
    assert list(validator.iter_errors(broken)), "the schema was read"


def examples(language: str) -> list[str]:
    """The blocks of edge/watch/README.md in one language."""
    text = (ROOT / "edge" / "watch" / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@dataclass(frozen=True)
class Heard:
    """A broker, and what a subscriber needs of it. folder: where `server/` with its certificate lies;
    node: TLS of who publishes; None without TLS."""

    broker: Mosquitto
    folder: Path
    node: ssl.SSLContext | None

    def told(self, script: str) -> str:
        """An example, told where this broker is."""
        host = "broker.north.example" if self.node else "192.0.2.10"
        port = str(self.broker.port)
        return script.replace(host, "127.0.0.1").replace("8883", port)


@pytest.fixture(params=["plain", "tls"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Heard]:
    """A broker without TLS, and a school's own with certificates and access list."""
    if request.param == "plain":
        broker = Mosquitto(tmp_path)
        yield Heard(broker, tmp_path, None)
    else:
        broker = school_broker(tmp_path, ["server", "a/b/c"])
        (tmp_path / "server").mkdir()
        for name in ("ca.pem", "server.pem", "server.key"):
            shutil.copy(tmp_path / name, tmp_path / "server")
        node = client_context("broker.tls", tmp_path / "ca.pem")
        node.load_cert_chain(tmp_path / "a-b-c.pem", tmp_path / "a-b-c.key")
        yield Heard(broker, tmp_path, node)
    broker.stop()


def example(language: str, heard: Heard) -> str:
    """The only one of a language that subscribes so."""
    host = "broker.north.example" if heard.node else "192.0.2.10"
    topic = "edge/v1/+/+/+/counts"
    (found,) = [text for text in examples(language) if host in text and topic in text]
    return heard.told(found)


def hears(command: list[str], heard: Heard) -> str:
    """What a program prints that subscribed before the counts are published."""
    program = subprocess.Popen(
        command, cwd=heard.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    school = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    if heard.node is not None:
        school.tls_set_context(heard.node)
    school.connect("127.0.0.1", heard.broker.port)
    school.loop_start()
    message = {
        "faces": {"mean": 6.0, "max": 7},
        "counts": {"calm": 6},
        "end": "12:00",
        "node": "a/b/c",
    }
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        school.publish("edge/v1/a/b/c/counts", json.dumps(message), qos=1).wait_for_publish(
            PATIENCE
        )
        try:
            out, _ = program.communicate(timeout=0.3)
        except subprocess.TimeoutExpired:
            continue
        school.loop_stop()
        return out
    program.kill()
    raise AssertionError(program.communicate()[0])


@pytest.mark.broker
def test_mosquitto_sub_as_shown(heard: Heard) -> None:
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("needs mosquitto_sub (Debian: apt-get install mosquitto-clients)")
    words = shlex.split(example("text", heard).replace("\\\n", " "))
    port = [] if heard.node else ["-p", str(heard.broker.port)]
    assert '"calm": 6' in hears([*words, *port, "-C", "1"], heard)


@pytest.mark.broker
def test_paho_as_shown(heard: Heard) -> None:
    script = example("python", heard)
    script = script.replace('("127.0.0.1")', f'("127.0.0.1", {heard.broker.port})')
    script = script.replace("client.loop_forever()", "while not shown: client.loop(0.1)")
    script = script.replace("    print(", "    shown.append(1); print(")
    out = hears([sys.executable, "-c", f"shown = []\n{script}"], heard)
    assert "a/b/c" in out
    assert "'calm': 6" in out


@pytest.mark.broker
def test_mqtt_js_as_shown(heard: Heard) -> None:
    if shutil.which("node") is None or not (TOOLS / "mqtt").is_dir():
        pytest.skip("needs Node.js and its package mqtt (make node-tools)")
    script = example("js", heard).replace('//127.0.0.1"', f'//127.0.0.1:{heard.broker.port}"')
    script = script.replace("console.log(", "process.exitCode = client.end() && 0; console.log(")
    (heard.folder / "node_modules").symlink_to(TOOLS)
    (heard.folder / "example.mjs").write_text(script)
    assert "calm: 6" in hears(["node", "example.mjs"], heard)
