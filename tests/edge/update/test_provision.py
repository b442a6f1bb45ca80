"""The steps that make an installed node ready: each is done once, told, and never stops the next."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given

from edge.settings import Settings
from edge.update import provision
from edge.update.provision import Provision, allow, name_servers, peers
from support.brokers import Mosquitto
from support.secret_addresses import MARKER, addresses


def settings(broker: str = "-", camera: str = "test") -> Settings:
    return Settings.model_validate(
        {
            "node": {"site": "north", "room": "a", "name": "b"},
            "broker": {"url": broker},
            "camera": {"source": camera},
            "clock": {"servers": ["time.example"]},
        }
    )


START = "systemctl start --no-block edge-run.service edge-network.timer edge-update.timer"
STOPPED = {"is-active": (3, "inactive", "")}


class Machine:
    """The programs that the steps call, answering as a test says."""

    def __init__(self, answers: Mapping[str, tuple[int, str, str]] | None = None) -> None:
        """answers: code, stdout and stderr by a part of the command; 0 and nothing for others."""
        self.asked: list[str] = []
        self._answers = answers or {}

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(" ".join(command))
        for part, (code, out, err) in self._answers.items():
            if part in self.asked[-1]:
                return subprocess.CompletedProcess(command, code, out, err)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(autouse=True)
def known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str) -> list[str]:
        if host.startswith("unknown"):
            raise OSError("no such name")
        host.encode("idna")
        return {"127.0.0.1": ["127.0.0.1"]}.get(host, ["192.0.2.10", "2001:db8::10"])

    monkeypatch.setattr(provision, "addresses", look_up)
    monkeypatch.setattr(provision, "name_servers", lambda: ["192.0.2.53"])


def made(tmp_path: Path, machine: Machine, broker: str = "-", camera: str = "test") -> Provision:
    return Provision(
        settings(broker, camera),
        machine,
        tmp_path / "network.conf",
        tmp_path / "provisioned",
        tmp_path / "console",
        tmp_path / "steps",
        lambda seconds: None,
    )


def test_whom_a_node_speaks_to_is_read_off_its_settings() -> None:
    camera = "rtsp://user:secret@camera.example/stream"
    assert peers(settings("mqtts://mqtt.example:8883", camera)) == [
        "mqtt.example",
        "time.example",
        "camera.example",
    ]


def test_no_part_of_a_password_is_looked_up_as_a_name() -> None:
    for camera in ("rtsp://u:s3/cret@camera.example/x", "rtsp://s3cret/x@camera.example", "test"):
        assert peers(settings("mqtts://mqtt.example", camera))[1:] == ["time.example"]


def test_what_is_no_name_stops_nothing(tmp_path: Path) -> None:
    assert "rtsp" not in peers(settings("mqtts://mqtt.example", "rtsp://[::1/x"))
    text, unknown = allow(["time..x", "a" * 64, "mqtt.example"], [], "")
    assert unknown == ["time..x", "a" * 64]
    assert "IPAddressAllow=192.0.2.10" in text
    bad = tmp_path / "resolv.conf"
    bad.write_text("nameserver bad.\nnameserver 1.2.3.4.5\nnameserver 192.0.2.53\n")
    assert name_servers([bad]) == ["192.0.2.53"]


def test_name_servers_are_those_beyond_this_machine(tmp_path: Path) -> None:
    local = tmp_path / "stub"
    local.write_text("nameserver 127.0.0.53\n")
    real = tmp_path / "real"
    real.write_text("# by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    assert name_servers([tmp_path / "absent", local, real]) == ["192.0.2.53", "2001:db8::53"]


def test_a_name_that_is_not_known_now_keeps_what_was_allowed() -> None:
    text, unknown = allow(["mqtt.example"], ["192.0.2.53"], "")
    assert "IPAddressAllow=192.0.2.10\nIPAddressAllow=2001:db8::10\n" in text
    assert unknown == []
    again, unknown = allow(["unknown.example"], ["192.0.2.53"], text)
    assert unknown == ["unknown.example"]
    assert "IPAddressAllow=192.0.2.10\n" in again


def test_first_boot_does_every_step_and_a_later_one_the_network_alone(tmp_path: Path) -> None:
    machine = Machine(STOPPED)
    made(tmp_path, machine).all()
    assert machine.asked == [
        "systemctl is-active edge-run",
        "systemctl daemon-reload",
        "systemctl start edge-engine.service",
        "systemctl show --property=Result,ConditionResult edge-engine",
        "/usr/sbin/edge-check --max-seconds 5",
        START,
    ]
    later = Machine(STOPPED)
    made(tmp_path, later).all()
    assert later.asked == [START]


def test_a_node_that_runs_keeps_its_camera_and_its_status(tmp_path: Path) -> None:
    machine = Machine()
    made(tmp_path, machine).all()
    assert not [asked for asked in machine.asked if "edge-check" in asked or "engine" in asked]


def test_what_fails_is_told_and_the_node_runs_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(
        {
            **STOPPED,
            "start edge-engine": (1, "", "failed"),
            "edge-check": (1, "ok   student: ort\nFAIL camera: no picture; check the cable\n", ""),
        }
    )
    made(tmp_path, machine).all()
    said = capsys.readouterr().out
    assert "edge-node: engine: FAILED" in said
    assert "edge-node: check: FAILED camera: no picture; check the cable" in said
    assert "start --no-block edge-run.service" in machine.asked[-1]


class Told(Provision):
    """Keeps what the broker would be told."""

    def _tell(self, text: str) -> bool:
        self.__dict__.setdefault("told", []).append(text)
        return True


CHECKS = [
    (1, "ok   student: ort\nFAIL camera: {} gives no video\nFAIL broker: {}\n", ""),
    (1, "", "edge-check: {} cannot be read\n"),
    (0, "ok   camera: {}\n", ""),
]


@given(addresses)
def test_no_password_of_an_address_is_printed_or_told(address: str) -> None:
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        conf, done, console, step = (Path(folder, name) for name in "ndcs")
        conf.write_text(allow(peers(settings(camera=address)), ["192.0.2.53"], "")[0])
        told = []
        for code, *texts in CHECKS:
            out, err = (text.replace("{}", address) for text in texts)
            machine = Machine({"edge-check": (code, out, err)})
            steps = Told(settings(camera=address), machine, conf, done, console, step)
            steps.network(0.0)
            steps.check()
            told += steps.__dict__["told"]
            said.write(console.read_text())
    assert MARKER.lower() not in f"{said.getvalue()} {told}".lower()
    assert not any("://" in line for line in told), "of a file or an address nobody is told"
    assert "check: FAILED camera, broker; sudo edge-check says why" in told


def test_a_board_without_tensorrt_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({**STOPPED, "show": (0, "Result=exec-condition\nConditionResult=yes\n", "")})
    made(tmp_path, machine).all()
    assert "engine: no TensorRT on this board; ONNX Runtime serves" in capsys.readouterr().out


def test_a_cut_before_the_end_means_all_steps_again(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def dies(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if "edge-check" in command[0]:
            raise Cut
        return Machine(STOPPED)(command)

    with pytest.raises(Cut):
        Provision(settings(), dies, *(tmp_path / name for name in "npcs")).all()
    machine = Machine(STOPPED)
    made(tmp_path, machine).all()
    assert any("edge-check" in asked for asked in machine.asked)


def last_heard(broker: Mosquitto) -> str:
    """Topic and content of what is retained."""
    command = ["mosquitto_sub", "-p", str(broker.port), "-t", "edge/#", "-C", "1", "-v", "-W", "5"]
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.broker
def test_what_was_done_before_the_program_was_there_is_told(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    (tmp_path / "steps").write_text("grow: fills the card\ninstall: done\n")
    try:
        made(tmp_path, Machine(), broker.url).catch_up()
        assert "first boot, install: done" in last_heard(broker)
    finally:
        broker.stop()


@pytest.mark.broker
def test_steps_are_told_on_status_and_a_broker_that_is_away_stops_nothing(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    steps = made(tmp_path, Machine(), broker.url)
    try:
        steps.say("run", "starting edge-run")
        heard = last_heard(broker)
    finally:
        broker.stop()
    assert heard.startswith("edge/v1/north/a/b/status {")
    assert '"state":"starting"' in heard
    assert "first boot, run: starting edge-run" in heard
    steps.say("run", "starting edge-run")  # nobody listens any more
