"""Less work while the board throttles, by the stated steps, and back when it is cool."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.health.throttle import COOL_SECONDS, HALVED, HOT_SECONDS, Throttle, throttled


def device(root: Path, number: int, kind: str, state: str) -> Path:
    folder = root / f"cooling_device{number}"
    folder.mkdir(exist_ok=True)
    (folder / "type").write_text(f"{kind}\n")
    (folder / "cur_state").write_text(f"{state}\n")
    return folder


def test_a_fan_is_no_throttling_and_a_broken_sensor_no_error(tmp_path: Path) -> None:
    assert not throttled(tmp_path / "nothing")
    device(tmp_path, 0, "pwm-fan", "3")
    device(tmp_path, 3, "LCD", "4")  # a dimmed display
    device(tmp_path, 4, "TCC Offset", "3")
    device(tmp_path, 1, "cpu-throttle-alert", "0")
    device(tmp_path, 2, "gpu-throttle-alert", "not a number")
    assert not throttled(tmp_path)
    for kind in ("cpu-throttle-alert", "thermal-cpufreq-0", "devfreq-17000000.gpu", "Processor"):
        device(tmp_path, 1, kind, "1")
        assert throttled(tmp_path), kind


def run(throttle: Throttle, start: float, seconds: float) -> tuple[int, int]:
    """Pictures that came and that were worked on, at 10 a second."""
    count, worked = int(seconds * 10), 0
    for i in range(count):
        throttle.update(start + i / 10)
        worked += throttle.should_process()
    return count, worked


def test_work_is_taken_back_step_by_step_and_given_again(tmp_path: Path) -> None:
    device(tmp_path, 0, "cpu-throttle-alert", "0")
    throttle = Throttle(devices=tmp_path)
    came, worked = run(throttle, 0, 10)
    assert came == worked
    device(tmp_path, 0, "cpu-throttle-alert", "1")
    levels = []
    for step in range(5):
        run(throttle, 10 + step * (HOT_SECONDS + 2), HOT_SECONDS + 2)
        levels.append(throttle.level)
    assert levels == [1, 2, 3, HALVED, HALVED] or levels == [0, 1, 2, 3, 3]
    came, worked = run(throttle, 80, 9)
    assert worked == pytest.approx(came / 3, abs=1)
    device(tmp_path, 0, "cpu-throttle-alert", "0")
    run(throttle, 90, COOL_SECONDS / 2)
    assert throttle.level == HALVED, "not at the first cool moment"
    run(throttle, 90 + COOL_SECONDS / 2, 4 * COOL_SECONDS)
    assert throttle.level == 0


def test_a_detector_of_one_size_is_never_halved(tmp_path: Path) -> None:
    device(tmp_path, 0, "cpu-throttle-alert", "1")
    throttle = Throttle(highest=HALVED - 1, devices=tmp_path)
    run(throttle, 0, 20 * HOT_SECONDS)
    assert throttle.level == HALVED - 1
