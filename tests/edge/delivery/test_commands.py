"""Commands: the allow-list, expiry, ids done once, what survives a restart, and what none can do."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.aggregate import Window
from edge.base.clock import rfc3339
from edge.base.errors import BundleError
from edge.delivery.commands import NAMES, REMEMBERED, Commands
from edge.inference.bundle import SHIPPED
from edge.records import Expression, Frame, Life, Tick
from support.brokers import Mosquitto
from support.clock import Clock
from support.examples import examples
from support.paths import ROOT
from support.patience import PATIENCE
from support.subscriber import Subscriber

NODE = "school/room-1/node-1"
UTC = 1_800_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def start(tmp_path: Path, clock: Clock, told: list[str]) -> Callable[[], Commands]:
    """A node's start on the same disk."""

    def reload() -> str:
        told.append("reload-bundle")
        return "done"

    def made() -> Commands:
        file = tmp_path / "commands.json"
        return Commands(
            file, NODE, 5, 2.0, lambda: told.append("report"), reload, lambda: UTC, clock
        )

    return made


def command(id: str = "a", expires: float = UTC + 60, node: str = NODE, **arguments: Any) -> bytes:
    content = {
        "schema": "edge.cmd/1",
        "node": node,
        "id": id,
        "expires": rfc3339(expires),
        "arguments": arguments,
    }
    return json.dumps(content).encode()


def test_a_restart_says_what_earlier_commands_hold(start: Callable[[], Commands]) -> None:
    commands = start()
    assert commands.kept() == ""
    commands.take("set-window", command("a", seconds=30))
    commands.take("set-min-group", command("b", people=8))
    assert start().kept() == "windows of 30 s, groups of 8 or more"
    commands.take("pause", command("c"))
    assert start().kept() == "paused until resumed, windows of 30 s, groups of 8 or more"
    commands.take("set-window", command("d", seconds=2))
    commands.take("set-min-group", command("e", people=5))
    commands.take("resume", command("f"))
    assert start().kept() == ""


def test_a_pause_lasts_and_survives_a_restart(start: Callable[[], Commands], clock: Clock) -> None:
    commands = start()
    assert not commands.paused()
    done = commands.take("pause", command(seconds=600.0))
    assert done is not None
    assert (done.ok, done.text) == (True, "paused for 600 s")
    clock.now += 599
    assert commands.paused()
    # Power cut: nobody knows how long it was off, so the pause counts again.
    commands = start()
    clock.now += 599
    assert commands.paused()
    clock.now += 2
    assert not commands.paused()
    assert not start().paused(), "and over is over"
    commands.take("pause", command("b"))
    clock.now += 1e7
    assert start().paused()
    commands = start()
    assert commands.take("resume", command("c")) is not None
    assert not start().paused()


def test_an_id_is_done_once_and_answered_every_time(
    start: Callable[[], Commands], told: list[str]
) -> None:
    commands = start()
    first = commands.take("report", command("x"))
    assert commands.take("report", command("x")) == first
    assert start().take("report", command("x")) == first, "also after a restart"
    assert told == ["report"]
    for i in range(200):
        commands.take("resume", command(f"n-{i}"))
    assert commands.take("report", command("x")) == first
    assert told == ["report"]


def test_what_may_have_been_done_and_forgotten_is_refused(
    start: Callable[[], Commands], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert REMEMBERED >= 1000
    monkeypatch.setattr("edge.delivery.commands.REMEMBERED", 20)
    commands = start()
    commands.take("report", command("x"))
    for i in range(20):
        commands.take("resume", command(f"n-{i}", expires=UTC + 61))
    for again in (commands, start()):
        done = again.take("report", command("x"))
        assert done is not None
        assert (done.ok, done.text[:41]) == (False, "expires too soon: ids up to 2027-01-15T08")
    assert told == ["report"]
    later = commands.take("report", command("y", expires=UTC + 62))
    assert later is not None
    assert later.ok


def test_a_command_expires_within_a_day(start: Callable[[], Commands], told: list[str]) -> None:
    commands = start()
    done = commands.take("report", command(expires=UTC + 86401))
    assert done is not None
    assert not done.ok
    assert "more than a day after 2027-01-15T08:00:00.000Z, this node's time" in done.text
    assert told == []
    nearer = commands.take("report", command(expires=UTC + 86399))
    assert nearer is not None
    assert nearer.ok, "the id of what was not done is free"


def test_a_retained_command_is_answered_and_not_done(
    start: Callable[[], Commands], told: list[str]
) -> None:
    commands = start()
    done = commands.take("report", command("x"), retained=True)
    assert done is not None
    assert (done.ok, "without retain" in done.text) == (False, True)
    assert told == []
    assert commands.take("report", command("x")) is not None
    assert told == ["report"]
    known = commands.take("report", command("x"), retained=True)
    assert known is not None
    assert known.ok, "what was done is answered as it was"
    assert told == ["report"]


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_id_is_done_twice_whatever_the_clock_does(tmp_path: Path, data: st.DataObject) -> None:
    """Few ids are remembered, the clock jumps years both ways, and the node starts again."""
    file, now, done = tmp_path / "any.json", [UTC], []
    file.unlink(missing_ok=True)

    def made() -> Commands:
        return Commands(file, NODE, 5, 2.0, lambda: done.append(1), str, lambda: now[0])

    commands, counts = made(), dict[str, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge.delivery.commands.REMEMBERED", 3)
        for _ in range(data.draw(st.integers(5, 30))):
            step = data.draw(st.sampled_from(["say", "say", "say", "jump", "start"]))
            if step == "jump":
                now[0] += data.draw(st.sampled_from([-4e8, -86400.0, -60.0, 30.0, 90000.0, 4e8]))
            elif step == "start":
                commands = made()
            else:
                id = data.draw(st.sampled_from("abcdef"))
                # An id is said again as it was said first.
                expires = UTC + 7 * (ord(id) - 96) + data.draw(st.sampled_from([0.0, 0.0, 86300.0]))
                before = len(done)
                commands.take("report", command(id, expires))
                counts[f"{id} {expires}"] = counts.get(f"{id} {expires}", 0) + len(done) - before
    assert [said for said, times in counts.items() if times > 1] == []


def test_what_version_0_1_0_remembered_is_remembered(start: Callable[[], Commands]) -> None:
    commands = start()
    first = commands.take("resume", command("x"))
    file = commands._file
    old = json.loads(file.read_bytes())
    file.write_text(json.dumps({"wishes": old["wishes"], "done": old["done"]}))
    assert start().take("resume", command("x")) == first


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("reboot", {}, "no command 'reboot'; there are pause, resume"),
        ("pause", {"seconds": -1.0}, "at most a year"),
        ("pause", {"minutes": 5.0}, "at most a year"),
        ("resume", {"seconds": 5.0}, "resume takes no 'seconds'"),
        ("set-window", {"seconds": 1.0}, "2 to 3600"),
        ("set-window", {}, "2 to 3600"),
        ("set-window", {"seconds": 10.0, "now": 1.0}, "2 to 3600"),
        ("set-min-group", {"people": 4.0}, "5 to 1000"),
        ("set-min-group", {"people": 6.5}, "5 to 1000"),
        ("set-min-group", {"people": 1e300}, "5 to 1000"),
        ("report", {"all": 1.0}, "report takes no 'all'"),
        ("reload-bundle", {"all": 1.0}, "reload-bundle takes no 'all'"),
    ],
)
def test_what_is_refused_changes_nothing_and_says_why(
    start: Callable[[], Commands], told: list[str], name: str, arguments: dict[str, float],
    reason: str,
) -> None:  # fmt: skip
    commands = start()
    commands.take("pause", command("before"))
    before = commands.overrides
    done = commands.take(name, command(**arguments))
    assert done is not None
    assert not done.ok
    assert reason in done.text
    assert commands.overrides == before
    assert commands.paused()
    assert told == []


def test_an_expired_command_is_not_done(start: Callable[[], Commands]) -> None:
    commands = start()
    done = commands.take("pause", command(expires=UTC - 1))
    assert done is not None
    assert "expired at" in done.text
    assert not commands.paused()


def test_what_is_no_command_gets_no_answer(start: Callable[[], Commands]) -> None:
    commands = start()
    assert commands.take("pause", command(node="school/room-2/node-1")) is None
    assert commands.take("pause", b"x" * 1_000_000) is None
    assert commands.take("pause", command().replace(b"edge.cmd/1", b"edge.cmd/2")) is None
    assert commands.take("pause", command(id="../../etc/passwd")) is None
    assert commands.take("pause", command(not_before="12:00")) is None, "a field it does not know"
    assert not commands.paused()


@settings(max_examples=examples(200))
@given(
    name=st.text(max_size=20), content=st.one_of(st.binary(max_size=300), st.text().map(str.encode))
)
def test_no_bytes_do_anything_but_an_answer_or_silence(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    commands = Commands(tmp_path_factory.mktemp("c") / "c.json", NODE, 5, 2.0, lambda: None, str)
    done = commands.take(name, content)
    assert done is None or not done.ok or name in NAMES
    assert not commands.paused()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"wishes": {"camera": 1}, "done": []}',
        b'{"wishes": {"pause": "x"}, "done": []}',
        b'{"wishes": {"pause": 0}, "done": [{"id": 5}]}',
        b'{"wishes": {"pause": 0}, "done": [], "forgotten": "x"}',
        b'{"wishes": {"pause": 0}, "done": [], "forgotten": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_replaced(
    start: Callable[[], Commands], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "commands.json").write_bytes(content)
    commands = start()
    assert not commands.paused()
    commands.take("pause", command())
    assert start().paused()


def test_a_disk_that_is_full_costs_the_memory_not_the_command(
    start: Callable[[], Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = start()

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.delivery.commands.write_atomically", full)
    done = commands.take("pause", command())
    assert done is not None
    assert done.ok
    assert commands.paused()


def frame(moment: float) -> Frame:
    import numpy as np

    return Frame(pixels=np.zeros((2, 2, 3), np.uint8), time=moment, utc=1000.0 + moment)


def happy(count: int) -> list[Expression]:
    import numpy as np

    return [Expression(i, np.array([1.0, 0.0], np.float32), Life.ALIVE) for i in range(count)]


@settings(max_examples=examples(60))
@given(
    people=st.lists(st.integers(5, 9), min_size=30, max_size=30),
    cut=st.integers(1, 28),
    back=st.integers(1, 10),
)
def test_no_pause_carves_a_moment_out_of_a_window(people: list[int], cut: int, back: int) -> None:
    """Windows of 10 s, a picture a second; whatever a command cuts into says nothing."""
    window = Window(["a", "b"], 10.0, 5, 2)
    readings = []
    for second, count in enumerate(people):
        if second in (cut, cut + back):
            window.discard()
        paused = cut <= second < cut + back
        if paused:
            tick = Tick(time=float(second), utc=1000.0 + second, camera="paused")
            readings += window.tick(tick)
        else:
            readings += window.add(frame(second), happy(count))
    readings += window.tick(Tick(time=30.0, utc=1030.0, camera="live"))
    assert [r.start for r in readings] == [1000.0, 1010.0, 1020.0]
    for reading in readings:
        start = reading.start - 1000.0
        # From the last picture before the command to the last before its end.
        if start < cut + back and cut - 1 < start + 10:
            assert reading.faces_mean is None
            assert reading.counts is None
        else:
            assert reading.counts is not None


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 30))
def test_windows_keep_their_length_and_never_overlap_when_it_changes(
    before: int, after: int, moment: int
) -> None:
    window = Window(["a", "b"], float(before), 1, 1)
    readings = []
    for second in range(0, 121):
        if second == moment:
            window.seconds = float(after)
        readings += window.add(frame(second), happy(3))
    assert {r.end - r.start for r in readings} <= {before, after}
    assert readings[-1].end - readings[-1].start == after
    for one, next_one in itertools.pairwise(readings):
        assert one.end <= next_one.start
    for r in readings:
        assert r.start % (r.end - r.start) == 0, "on the grid of its own length"
        assert r.person_seconds is not None
        assert sum(r.person_seconds.values()) == 3 * (r.end - r.start)


def test_a_bundle_that_is_not_fit_to_serve_is_refused_with_the_reason(tmp_path: Path) -> None:
    def reload() -> str:
        raise BundleError("no bundle")

    commands = Commands(tmp_path / "c.json", NODE, 5, 2.0, lambda: None, reload, lambda: UTC)
    done = commands.take("reload-bundle", command())
    assert done is not None
    assert (done.ok, done.text) == (False, "no bundle; the running bundle stays")


def test_other_labels_void_the_window_in_progress_and_count_from_the_next() -> None:
    window = Window(["a", "b"], 10.0, 1, 1)
    readings = []
    for second in range(41):
        if second == 14:
            window.relabel(["b", "c", "d"])
        readings += window.add(frame(second), happy(3))
    assert [r.counts and list(r.counts) for r in readings] == [
        ["a", "b", "unclassified"],
        None,
        ["b", "c", "d", "unclassified"],
        ["b", "c", "d", "unclassified"],
    ]


def test_over_a_broker_a_node_pauses_answers_and_resumes(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    subscriber = Subscriber(mosquitto.port)
    config = tmp_path / "node.yaml"
    config.write_text("node: {site: school, room: room-1, name: node-1}\n")
    bundle = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", "--camera", "test", "--config", config, "--bundle", bundle,
         "--broker", mosquitto.url, "--min-group", "1", "--window", "2"],
        cwd=ROOT, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    subscriber.wait_for(lambda: "online" in [m["state"] for m in subscriber.of("status")])
    school = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    school.connect("127.0.0.1", mosquitto.port)
    school.loop_start()

    def send(name: str, id: str, **arguments: Any) -> dict[str, Any]:
        content = command(id, time.time() + 60, NODE, **arguments)
        school.publish(f"edge/v1/{NODE}/cmd/{name}", content, qos=1)
        subscriber.wait_for(lambda: any(m["id"] == id for m in subscriber.of("result")))
        return next(m for m in subscriber.of("result") if m["id"] == id)

    assert send("pause", "p1")["ok"]
    subscriber.wait_for(lambda: subscriber.of("status")[-1]["reason"] == "paused by command")
    before = len(subscriber.of("counts"))
    subscriber.wait_for(lambda: len(subscriber.of("counts")) >= before + 2)
    assert subscriber.of("counts")[-1]["faces"] is None
    assert subscriber.of("counts")[-1]["quality"]["camera"] == "paused"
    assert not send("fetch-picture", "f1")["ok"]
    assert send("report", "r1")["ok"]
    subscriber.wait_for(lambda: subscriber.of("health") != [])
    assert send("resume", "p2")["ok"]
    subscriber.wait_for(lambda: subscriber.of("status")[-1]["state"] == "online")
    subscriber.wait_for(lambda: subscriber.of("counts")[-1]["counts"] is not None)
    # A bundle on the disk changes: damaged, it is refused; whole, it serves without a restart.
    assert "the one in the folder" in send("reload-bundle", "b1")["text"]
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace('"neutral"', '"calm"', 1))
    (bundle / "int8-cpu.onnx").write_bytes(b"cut")
    refused = send("reload-bundle", "b2")
    assert not refused["ok"]
    assert "has sha256" in refused["text"]
    assert refused["text"].endswith("the running bundle stays")
    before = len(subscriber.of("counts"))
    # A window in which a busy machine saw nothing holds no counts.
    subscriber.wait_for(
        lambda: len([m for m in subscriber.of("counts")[before:] if m["counts"]]) >= 2
    )
    found = [m["counts"] for m in subscriber.of("counts")[before:] if m["counts"]]
    assert all("neutral" in counts for counts in found), "it counts on"
    shutil.copy(SHIPPED / "int8-cpu.onnx", bundle)
    assert "serves, on onnxruntime int8" in send("reload-bundle", "b3")["text"]
    assert subscriber.of("info")[-1]["model"]["labels"][0] == "calm"
    subscriber.wait_for(lambda: "calm" in (subscriber.of("counts")[-1]["counts"] or {}))
    school.disconnect()
    school.loop_stop()
    node.send_signal(signal.SIGTERM)
    assert node.wait(PATIENCE) == 0
    subscriber.close()
