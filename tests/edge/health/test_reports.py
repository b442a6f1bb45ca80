"""What the kernel's files say of the board, and what Prometheus is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.base.errors import UsageError
from edge.base.jetson import power_mode
from edge.health.probes import Steps, memory_mib, temperature_celsius
from edge.health.prometheus import Metrics
from support.brokers import free_port
from support.command import Done
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

CONF = """
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=12 NAME=MODE_7W >
"""


def test_the_power_mode_has_its_name_where_the_board_gives_one(tmp_path: Path) -> None:
    status, conf = tmp_path / "status", tmp_path / "nvpmodel.conf"
    assert power_mode(status, conf) is None, "no Jetson"
    status.write_text("pmode:0012 fmode:quiet")
    conf.write_text(CONF)
    assert power_mode(status, conf) == "MODE_7W"
    status.write_text("pmode:0003")
    assert power_mode(status, conf) == "3"
    status.write_text("damaged")
    assert power_mode(status, conf) is None
    status.write_text("pmode:0012")
    conf.write_bytes(b"# \xa9 of no UTF-8\n" + CONF.encode())
    assert power_mode(status, conf) == "MODE_7W"
    conf.unlink()
    assert power_mode(status, conf) == "12"
    status.write_bytes(b"pmode:" + b"1" * 5000)
    assert power_mode(status, conf) is None


def test_the_hottest_zone_counts_and_a_broken_one_does_not(tmp_path: Path) -> None:
    assert temperature_celsius(tmp_path) is None
    for i, text in enumerate(("41500", "broken", "67250")):
        (tmp_path / f"thermal_zone{i}").mkdir()
        (tmp_path / f"thermal_zone{i}" / "temp").write_text(text)
    assert temperature_celsius(tmp_path) == 67.2
    for i, text in enumerate(("-256000", "2147483647", "9" * 400, "9" * 5000), 3):
        (tmp_path / f"thermal_zone{i}").mkdir()
        (tmp_path / f"thermal_zone{i}" / "temp").write_text(text)
    assert temperature_celsius(tmp_path) == 67.2, "what no board can have is passed over"
    assert memory_mib(tmp_path / "absent") is None
    assert 10 < (memory_mib() or 0) < 10_000


@given(st.lists(st.floats(-0.999, 0.999), max_size=20), st.floats(0.5, 100), st.floats(-9, 900))
def test_a_figure_in_steps_does_not_move_within_one(
    changes: list[float], step: float, first: float
) -> None:
    steps = Steps(step, first)
    assert {steps.tell(first + change * step) for change in changes} <= {first}


def test_a_figure_in_steps_follows_by_whole_ones() -> None:
    steps = Steps(64, 190)
    told = [steps.tell(value) for value in (180, 253, 254, 250, 200, 191, 190, 600, None, 600)]
    assert told == [190, 190, 254, 254, 254, 254, 190, 574, None, 600]


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def refused(port: int) -> bool:
    try:
        read(port)
    except OSError as error:
        return "refused" in str(error)
    return False


def test_prometheus_is_told_health_and_nothing_of_the_process() -> None:
    port = free_port()
    metrics = Metrics(port)
    try:
        assert "edge_online 0.0" in read(port), "nothing is claimed before the node says it"
        metrics.tell(state="online")
        stages = {"detect": {"p50_ms": 8.25, "p95_ms": 9.0}}
        metrics.tell(health={"outbox_pending": 3, "temperature_celsius": None, "stages": stages})
        text = read(port)
    finally:
        metrics.close()
    assert "edge_online 1.0" in text
    assert "edge_outbox_pending 3.0" in text
    assert 'edge_stage_ms{part="p50",stage="detect"} 8.25' in text
    assert "temperature" not in text, "null is left out"
    # Processor time would grow with every face in view.
    assert {line.split("{")[0].split()[0] for line in text.splitlines() if line[0] != "#"} == {
        "edge_online", "edge_broker_connected", "edge_outbox_pending", "edge_stage_ms",
    }  # fmt: skip
    wait_for(lambda: refused(port), "nobody listens any more")


def test_prometheus_is_told_how_much_each_recorder_lacks_and_when_none_does() -> None:
    port = free_port()
    metrics = Metrics(port)
    try:
        metrics.tell(health={"recorders_behind": {"north": 1, "district": 12_345}})
        lines = [line for line in read(port).splitlines() if line.startswith("edge_recorder")]
        assert lines == [
            'edge_recorder_behind{recorder="north"} 1.0',
            'edge_recorder_behind{recorder="district"} 12345.0',
        ]
        metrics.tell(health={"recorders_behind": {"district": 7}})
        assert 'edge_recorder_behind{recorder="district"} 7.0' in read(port)
        assert "north" not in read(port), "it has all"
        metrics.tell(health={"recorders_behind": {}})
        assert "edge_recorder_behind{" not in read(port)
        assert "# TYPE edge_recorder_behind gauge" in read(port)
    finally:
        metrics.close()


def test_a_port_in_use_is_one_line() -> None:
    first = Metrics(port := free_port())
    try:
        with pytest.raises(UsageError, match=f"prometheus_port {port} cannot be served"):
            Metrics(port)
    finally:
        first.close()


def test_without_the_package_the_setting_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match="'metrics' extra"):
        Metrics(9464)


@pytest.mark.process
def test_a_running_node_is_read_on_loopback_alone(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    port = free_port()
    config = tmp_path / "node.yaml"
    config.write_text(f"runtime: {{prometheus_port: {port}, health_seconds: 1, backend: fake}}\n")
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", "--camera", "test", "--config", config, "--broker", "-"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        deadline, text = time.monotonic() + PATIENCE, ""
        while "edge_frames_per_second" not in text:
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
            try:
                text = read(port)
            except OSError:
                continue
        assert "edge_online 1.0" in text
        assert "edge_uptime_seconds" in text
        # 0100007F is 127.0.0.1 in /proc/net/tcp; state 0A is listening.
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        heard = {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
        assert heard == {f"0100007F:{port:04X}"}
    finally:
        node.send_signal(signal.SIGTERM)
        assert node.wait(PATIENCE) == 0
