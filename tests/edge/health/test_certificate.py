"""Whose certificate a node shows: another's is one line, not a broker that refuses all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.assemble import assemble
from edge.base.errors import SettingsError
from edge.health.certificate import check_owner
from edge.settings import Settings
from support.brokers import certificates
from support.command import Done

pytestmark = pytest.mark.process
NAMES = ("north/room-12/cam-1", "some-host.example", "école/a/b")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates(folder, NAMES)
    return folder


def settings(made: Path, owner: str, name: str) -> Settings:
    file = made / owner.replace("/", "-")
    tls = {"ca": made / "ca.pem", "certificate": f"{file}.pem", "key": f"{file}.key"}
    node = dict(zip(("site", "room", "name"), name.split("/"), strict=True))
    broker = {"url": "mqtts://192.0.2.1", "tls": tls}
    return Settings.model_validate(
        {"node": node, "broker": broker, "runtime": {"state": made / "s"}}
    )


def test_a_certificate_of_another_node_is_refused_before_anything_is_opened(made: Path) -> None:
    wrong = settings(made, NAMES[0], "north/room-13/cam-1")
    with pytest.raises(SettingsError, match=r"north/room-12/cam-1's.*north/room-13/cam-1: give"):
        assemble(wrong, None, threading.Event(), threading.Event())
    assert not (made / "s").exists()


@pytest.mark.parametrize("owner", NAMES)
def test_its_own_and_those_that_name_no_node_pass(made: Path, owner: str) -> None:
    check_owner(settings(made, owner, NAMES[0]))


def test_check_says_it(command: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    (tmp_path / "bundle").mkdir()
    file.write_text(
        f"node: {{site: north, room: room-13, name: cam-1}}\n"
        f"camera: {{source: test}}\n"
        f"broker: {{url: 'mqtts://192.0.2.1', tls: {{ca: {made}/ca.pem, "
        f"certificate: {made}/north-room-12-cam-1.pem, key: {made}/north-room-12-cam-1.key}}}}\n"
    )
    done = command("edge.run", "--check", "--max-seconds", "0.1", "--config", file)
    said = [line for line in done.out.splitlines() if line.startswith("FAIL broker")]
    assert len(said) == 1
    assert "is north/room-12/cam-1's" in said[0]
