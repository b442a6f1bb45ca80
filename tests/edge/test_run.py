"""edge-run and its sisters as a user meets them: exit codes, one line, nothing lost."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.show import repeat_stderr
from edge.base.jetson import nvidia_driver
from edge.run import NOTICE
from edge.sources.decoder import converts_interlaced
from support.command import Done
from support.paths import CLIP, PICTURES, ROOT
from support.patience import PATIENCE
from support.videos import write_video

Command = Callable[..., Done]
SOURCE = ["--broker", "-", "--window", 2, "--min-group", 1]


def counts(text: str) -> list[dict]:
    messages = [json.loads(line) for line in text.splitlines()]
    return [m["payload"] for m in messages if m["topic"].endswith("/counts")]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--camera", "99"], 1, "no camera at /dev/video99"),
        (["--camera", "absent.mp4"], 1, "no camera, file or folder"),
        (["--camera", "LICENSE"], 1, "is not a video"),
        (["--camera", "tests/edge"], 1, "holds no picture"),
        (["--camera", CLIP, "--bundle", "tests"], 1, "bundle.json cannot be read"),
        (["--camera", CLIP, "--backend", "trt"], 1, "--backend ort"),
        (["--camera", CLIP, "--backend", "gpu"], 2, "invalid choice"),
        (["--camera", CLIP, "--window", "0.5"], 2, "'window.seconds'"),
        (["--camera", CLIP, "--window", "soon"], 2, "invalid float"),
        (["--camera", CLIP, "--min-group", "0"], 2, "'privacy.min_group'"),
        (["--camera", CLIP, "--max-seconds", "-1"], 2, "--max-seconds"),
        (["--camera", CLIP, "--broker", "tcp://x"], 2, "url must be mqtt://"),
        (["--camera", CLIP, "--config", "absent.yaml"], 2, "absent.yaml: cannot be read"),
        (["--cam", CLIP], 2, "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(
    command: Command, options: list[str], code: int, words: str
) -> None:
    done = command("edge.run", "--broker", "-", *options)
    assert done.code == code, done.err
    assert words in done.last
    assert not counts(done.out)


def test_a_typo_in_node_yaml_is_one_line(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("camera:\n  widht: 640\n")
    done = command("edge.run", "--config", path)
    assert done.code == 2
    assert done.last == (
        f"edge-run: {path}: unknown setting 'camera.widht'; did you mean 'camera.width'?"
    )


def test_help_and_version(command: Command) -> None:
    done = command("edge.run", "--help")
    assert done.code == 0
    assert "example:" in done.out
    assert "exit codes:" in done.out
    assert command("edge.run", "--version").out.startswith("edge-run 0.")


@pytest.mark.slow
def test_what_was_counted_before_a_clip_breaks_off_is_published(
    command: Command, tmp_path: Path
) -> None:
    source = cv2.VideoCapture(str(CLIP))
    path = write_video(tmp_path / "clip.avi", (source.read()[1] for _ in range(240)), 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    done = command("edge.run", "--camera", path, *SOURCE)
    assert done.code == 1
    assert "it is cut off" in done.last
    assert len(counts(done.out)) == 2
    assert '"state":"stopped"' in done.out.splitlines()[-1]


def test_info_says_once_that_a_folders_pictures_each_have_their_size(
    command: Command, tmp_path: Path
) -> None:
    shutil.copy(PICTURES / "astronaut.png", tmp_path / "1.png")
    shutil.copy(PICTURES / "portrait-1.jpg", tmp_path / "2.jpg")
    done = command("edge.run", "--camera", tmp_path, *SOURCE)
    assert done.code == 0
    messages = [json.loads(line) for line in done.out.splitlines()]
    infos = [m["payload"] for m in messages if m["topic"].endswith("/info")]
    assert [info["detector"]["size"] for info in infos] == ["by each picture"]
    assert "detector at" not in done.err


def test_a_bad_picture_in_a_folder_is_named_after_the_others_were_counted(
    command: Command, tmp_path: Path
) -> None:
    for i in range(4):
        shutil.copy(PICTURES / "astronaut.png", tmp_path / f"{i}.png")
    (tmp_path / "19.png").write_bytes(b"")
    done = command("edge.run", "--camera", tmp_path, *SOURCE)
    assert done.code == 1
    assert "19.png is empty; remove it" in done.last
    assert [reading["faces"]["max"] for reading in counts(done.out)] == [1, 1]


def test_grey_and_16_bit_pictures_are_counted_like_colour(command: Command, tmp_path: Path) -> None:
    picture = cv2.imread(str(PICTURES / "astronaut.png"))
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    cv2.imwrite(str(tmp_path / "b.png"), picture.astype(np.uint16) << 8)
    done = command("edge.run", "--camera", tmp_path, *SOURCE)
    assert done.code == 0, done.err
    (reading,) = counts(done.out)
    assert reading["faces"] == {"mean": 1.0, "max": 1}
    assert reading["quality"]["frames"] == 2


def test_a_small_group_publishes_nothing_but_that_it_is_small(clip_run: Command) -> None:
    done = clip_run("--window", 5)
    readings = counts(done.out)
    assert [type(r["faces"]) for r in readings] == [dict, dict, dict, dict, str]
    assert readings[-1]["faces"] == "<5"
    assert readings[-1]["counts"] is None
    assert readings[-1]["person_seconds"] is None
    for figure in ("low_confidence", "frames", "dropped"):
        assert readings[-1]["quality"][figure] is None
    for reading in readings[:-1]:
        assert not [n for n in reading["counts"].values() if n == 1]


@pytest.mark.slow
def test_the_fake_backend_runs_the_whole_pipe_and_says_so(command: Command) -> None:
    done = command("edge.run", "--camera", CLIP, "--max-seconds", 5, "--backend", "fake", *SOURCE)
    assert done.code == 0, done.err
    info = json.loads(done.out.splitlines()[1])["payload"]
    assert info["model"]["backend"] == "fake"
    assert info["model"]["precision"] == "none"
    assert len(counts(done.out)) == 2


@pytest.mark.slow
def test_a_service_without_a_legal_basis_is_refused_and_the_foreground_told(
    command: Command, tmp_path: Path
) -> None:
    options = ["--camera", CLIP, "--max-seconds", 1, "--broker", "-"]
    done = command("edge.run", *options, NOTIFY_SOCKET="/nowhere")
    assert done.code == 2
    assert "'privacy.legal_basis' is empty" in done.last
    done = command("edge.run", *options)
    assert done.code == 0
    assert "AI Act" in done.err
    (tmp_path / "node.yaml").write_text("privacy: {legal_basis: todo}\n")
    config = ["--config", tmp_path / "node.yaml", *options]
    done = command("edge.run", *config, NOTIFY_SOCKET="/nowhere")
    assert done.code == 2
    assert "'privacy.legal_basis' gives no reason ('todo')" in done.last
    assert "'privacy.legal_basis' gives no reason ('todo')" in command("edge.run", *config).err
    (tmp_path / "node.yaml").write_text("privacy: {legal_basis: fire safety drill}\n")
    done = command("edge.run", "--config", tmp_path / "node.yaml", *options)
    assert "AI Act" not in done.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--max-seconds", 1], "no whole window of 2 s in a clip of 1 s: give --window 1"),
        (
            ["--max-seconds", 2, "--min-group", 30],
            "fewer than 30 people in the one window: --min-group 1 shows them",
        ),
    ],
)
def test_a_pipe_is_told_on_stderr_why_nothing_was_counted(
    command: Command, options: list[object], why: str
) -> None:
    done = command("edge.run", "--camera", CLIP, *SOURCE, *options)
    assert done.code == 0
    assert done.last == f"warning {why}"


@pytest.mark.slow
@pytest.mark.skipif(
    nvidia_driver(),
    reason="an NVIDIA driver is here, of which a run without an engine says a line more",
)
def test_a_healthy_run_says_what_it_does_and_nothing_that_looks_like_a_fault(
    command: Command,
) -> None:
    clip = ["--camera", CLIP, "--max-seconds", 2, *SOURCE]
    quiet = command("edge.run", *clip).err.splitlines()
    assert quiet == [
        NOTICE,
        "info student on onnxruntime int8",
        "info detector on onnxruntime fp32",
        "info detector at 640x480, by the pictures' shape",
    ]
    talkative = command("edge.run", *clip, "--verbose").err.splitlines()
    assert [line for line in talkative if not line.startswith("debug ")] == quiet
    assert any(line.startswith("debug student on onnxruntime: no CUDA") for line in talkative)
    assert "--verbose" in command("edge.run", "--help").out


def test_the_demo_repeats_what_a_node_says_but_the_notice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    repeat_stderr(io.StringIO(f"{NOTICE}\ninfo student on fake none\n"))
    assert capsys.readouterr().err == "info student on fake none\n"


@pytest.mark.process
def test_a_reader_that_goes_away_ends_the_run_without_a_traceback(tmp_path: Path) -> None:
    run = f"{sys.executable} -m edge.run --camera {CLIP} --broker - --window 1 | head -n 2"
    done = subprocess.run(
        ["bash", "-c", run],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.sqlite*"))


@pytest.mark.process
def test_a_camera_runs_until_sigterm_and_publishes_whole_windows_only(tmp_path: Path) -> None:
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", "--camera", "test", *map(str, SOURCE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    assert node.stdout is not None
    lines = []
    while sum('/counts"' in line for line in lines) < 2:
        lines.append(node.stdout.readline())
        assert lines[-1], "it runs until it is told to stop"
    node.send_signal(signal.SIGTERM)
    rest, _ = node.communicate(timeout=PATIENCE)
    assert node.returncode == 0
    readings = counts("".join([*lines, rest]))
    for reading in readings:
        assert int(reading["start"][17:19]) % 2 == 0
        assert reading["time_base"] == "utc"
        assert reading["faces"]["max"] == 6


def test_check_prints_a_line_a_part_and_stores_nothing(command: Command, tmp_path: Path) -> None:
    done = command("edge.run", "--check", "--camera", CLIP, "--max-seconds", 3)
    assert done.code == 0, done.err
    assert "ok   student" in done.out
    assert "ok   detector" in done.out
    assert re.search(r"7 faces, 3\d to \d+ px", done.out)
    assert "ok   camera" in done.out
    assert not (tmp_path / "state").exists()
    done = command("edge.run", "--check", "--camera", "88", "--broker", "mqtt://127.0.0.1:1")
    assert done.code == 1
    assert "FAIL broker: broker mqtt://127.0.0.1:1 away: nothing listens there" in done.out
    assert "FAIL camera: no camera at /dev/video88" in done.out
    assert "2 of the checks failed: broker, camera" in done.last


@pytest.mark.parametrize("driver", [False, True])
def test_check_says_why_not_tensorrt_where_it_is_to_be_expected(
    command: Command, monkeypatch: pytest.MonkeyPatch, driver: bool
) -> None:
    monkeypatch.setattr("edge.tools.check.nvidia_driver", lambda: driver)
    done = command("edge.run", "--check", "--camera", CLIP, "--max-seconds", 1)
    assert ("     no TensorRT: " in done.out) is driver


@pytest.mark.slow
def test_check_looks_only_where_and_when_the_node_may(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "node.yaml"
    config.write_text("privacy: {masks: [[0, 0, 1, 0.6]], zone: Pacific/Auckland}\n")
    done = command("edge.run", "--check", "--config", config, "--camera", CLIP, "--max-seconds", 1)
    assert done.code == 0, done.err
    assert "ok   hours: " in done.out
    assert "(Pacific/Auckland, by privacy.zone): always open" in done.out
    assert "7 faces" not in done.out
    assert " 2 faces" in done.out, "those below the mask"
    # A Monday's noon in Auckland, where this school is open on Sundays alone.
    noon = datetime(2026, 11, 29, 23, tzinfo=timezone.utc).timestamp()
    monkeypatch.setattr("edge.tools.check.time.time", lambda: noon)
    config.write_text("privacy: {hours: [sun 00:00-24:00], zone: Pacific/Auckland}\n")
    done = command(
        "edge.run", "--check", "--config", config, "--camera", "test", "--max-seconds", 2
    )
    assert done.code == 0, done.err
    assert "Mon 2026-11-30 12:00 (Pacific/Auckland, by privacy.zone): closed now" in done.out
    assert "closed by privacy.hours: pictures come, not looked at" in done.out
    assert "face" not in done.out.partition("nothing is sent or stored")[2]
    assert "ok   camera" in done.out


def test_bench_has_the_nodes_masks_and_opens_no_camera(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(
        "camera: {source: 'rtsp://192.0.2.1/', analyse_per_second: 4, width: 640, height: 360}\n"
        "privacy: {masks: [[0, 0, 1, 1]]}\n"
    )
    done = command("edge.tools.bench", "--config", config, "--faces", 3, "--frames", 24, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    conditions = result["conditions"]
    assert conditions["analyse_per_second"] == 4
    # 240 pictures a minute, each of which was computed.
    assert 0 < result["core_seconds_a_minute"] < 240
    assert (conditions["masks"], conditions["faces_in_view"]) == (1, "0 to 0, mean 0.0")
    assert conditions["source"] == "test pattern 640x360"
    assert conditions["detector"] == "onnxruntime fp32 640x384"
    for camera in ("0", "rtsp://u:p@192.0.2.1/", "loop:x.mp4"):
        done = command("edge.tools.bench", "--camera", camera)
        assert done.code == 2
        assert "a camera sets its own pace" in done.last
        assert "u:p" not in done.last


@pytest.mark.slow
def test_bench_prints_each_stage_and_the_conditions(command: Command) -> None:
    done = command("edge.tools.bench", "--faces", 3, "--frames", 60, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    stages = {"capture", "detect", "track", "life", "classify", "aggregate", "whole frame"}
    assert set(result["stages_ms"]) == stages
    assert result["conditions"]["faces_in_view"] == "3 to 3, mean 3.0"
    assert result["conditions"]["student"] == "onnxruntime int8"
    parts = sum(row["p50"] for name, row in result["stages_ms"].items() if name != "whole frame")
    assert parts <= 1.2 * result["stages_ms"]["whole frame"]["p50"]
    assert command("edge.tools.bench", "--faces", -1).code == 2


def test_watch_refuses_stdout_and_an_absent_broker(command: Command) -> None:
    assert command("edge.watch.run", "--broker", "-").code == 2
    done = command("edge.watch.run", "--broker", "mqtt://127.0.0.1:1")
    assert done.code == 1
    assert "nothing listens there" in done.last


def test_a_picture_of_20000_pixels_a_side_is_refused_without_decoding_it(
    process_command: Command, tmp_path: Path
) -> None:
    """Its header alone, with no pixel behind it, is enough to be refused by size. In a process of its
    own: OpenCV reads its limit once, and the tests loaded it before the node could set one."""
    side = (20_000).to_bytes(4, "big")
    chunk = b"IHDR" + side + side + bytes([8, 0, 0, 0, 0])
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk
    header += zlib.crc32(chunk).to_bytes(4, "big")
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    body = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    (tmp_path / "vast.png").write_bytes(header + body)
    done = process_command("edge.run", "--camera", tmp_path, *SOURCE)
    assert done.code == 1
    assert "vast.png cannot be read as a picture" in done.last
    assert "remove or shrink it" in done.last


def test_people_in_interlaced_video_are_counted_or_the_run_ends_in_one_line(
    command: Command,
) -> None:
    """A second of the demo's clip, coded in fields. Which of both depends on the OpenCV installed."""
    clip = ROOT / "tests" / "golden" / "video" / "interlaced.mkv"
    done = command("edge.run", "--camera", clip, *SOURCE, "--window", 1)
    faces = [reading["faces"] for reading in counts(done.out)]
    if converts_interlaced():
        assert done.code == 0, done.err
        assert faces == [{"mean": 8.0, "max": 8}]
    else:
        assert done.code == 1
        assert "interlaced.mkv: the decoder gave no picture" in done.last
        assert faces == []


def test_a_clock_that_was_set_invents_no_window(command: Command) -> None:
    clip = ROOT / "tests" / "golden" / "video" / "clock-set.mkv"
    done = command("edge.run", "--camera", clip, *SOURCE, "--window", 1)
    assert done.code == 0, done.err
    found = counts(done.out)
    assert [reading["quality"]["seen"] for reading in found] == [1.0, 1.0]
    assert done.err.count("the time stamps jump after") == 1
