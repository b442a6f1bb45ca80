"""The scores of `edge-crowd`: by hand on boxes, and through the node's detector on real faces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.base.errors import DataError, UsageError
from edge.sources.images import read_picture
from edge.tools.boxes import Labelled
from edge.tools.crowd import Score, as_text, check_folder, judge, match, placed, summary
from support.command import Done

PICTURES = Path(__file__).parents[3] / "demo" / "pictures"
# Where the face lies in each, left, top, width, height: drawn by hand, brow to chin, ear to ear.
FACES = {
    "astronaut.png": (178, 68, 92, 118),
    "portrait-1.jpg": (365, 95, 250, 340),
    "portrait-2.jpg": (645, 265, 285, 370),
    "portrait-3.jpg": (418, 185, 300, 395),
}
HD = (720, 1280, 3)


def labelled(boxes: list[list[float]], valid: list[bool] | None = None) -> Labelled:
    return Labelled(
        "a.png",
        1,
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(valid if valid is not None else [True] * len(boxes), dtype=bool),
    )


def people(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def test_as_many_boxes_as_can_be_are_paired() -> None:
    """The nearest pair first would leave the other box without anybody."""
    boxes = people([0, 0, 100, 100], [30, 0, 100, 100])
    found = people([20, 0, 100, 100], [60, 0, 100, 100])
    assert match(boxes, found) == [(0, 0), (1, 1)]
    assert match(people(), found) == match(boxes, people()) == []


def test_counts_hits_misses_and_false_ones_by_size() -> None:
    boxes = [[100, 100, 10, 10], [200, 100, 40, 40], [300, 100, 96, 96]]
    found = people([100, 100, 10, 11], [205, 100, 40, 40], [600, 300, 50, 50])
    score = judge(labelled(boxes), 1.0, (0, 0), HD, found)
    assert (score.people, score.counted, score.false) == (3, 3, 1)
    assert score.faces.tolist() == [0, 1, 0, 0, 0, 1, 0, 1]
    assert score.found.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]


def test_what_is_ignored_is_neither_hit_nor_miss() -> None:
    boxes = [
        [100, 100, 40, 40],
        [200, 100, 40, 40],  # invalid
        [300, 100, 0, 40],
        [1275, 100, 40, 40],
        [640, 600, 40, 40],  # in the mask
        [500, 100, 6, 6],
    ]
    valid = [True, False, True, True, True, True]
    found = people([100, 100, 40, 40], [202, 100, 40, 40], [499, 99, 9, 9])
    score = judge(labelled(boxes, valid), 1.0, (0, 0), HD, found, [[0.4, 0.7, 0.6, 1.0]], 8.0)
    assert (score.people, score.counted, score.false) == (1, 1, 0)
    assert set(score.ignored.values()) == {1}, score.ignored


def test_boxes_follow_their_picture_into_the_frame() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    pixels, origin = placed(picture, 0.5, (640, 480), "a.png")
    assert pixels.shape == (480, 640, 3)
    assert origin == (270, 215)
    assert (pixels[215:265, 270:370] == 0).all()
    assert (pixels == 0).sum() == 50 * 100 * 3
    score = judge(labelled([[0, 0, 40, 40]]), 0.5, origin, pixels.shape, people([270, 215, 20, 20]))
    assert score.found.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    with pytest.raises(UsageError, match="more than --frame"):
        placed(picture, 4.0, (640, 480), "a.png")
    with pytest.raises(UsageError, match="smaller --scale"):
        placed(picture, 50.0, None, "a.png")


def score(name: str, count: int, counted: int) -> Score:
    faces = np.array([0, 0, count, 0, 0, 0, 0, 0])
    return Score(name, 1.0, count, counted, 0, faces, np.minimum(faces, counted), {})


def test_errors_of_both_signs_cancel_in_the_bias_alone() -> None:
    result = summary([score("a", 10, 8), score("b", 5, 7), score("c", 6, 6)])
    assert result["bias"]["value"] == 0.0
    assert result["absolute_error"]["value"] == pytest.approx(4 / 3)
    assert result["exact"]["value"] == pytest.approx(1 / 3)
    assert result["bias"]["low"] < 0 < result["bias"]["high"]
    assert result["recall"]["value"] == pytest.approx(19 / 21)


def test_one_picture_has_no_interval_and_no_faces_no_recall() -> None:
    result = summary([score("a", 0, 0)])
    assert result["exact"] == {"value": 1.0, "low": None, "high": None}
    assert result["recall"]["value"] is None
    assert all(len(line) <= 80 for line in as_text(result).splitlines())


def test_lists_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    listed, where = [labelled([])], tmp_path / "boxes.txt"
    with pytest.raises(DataError, match="has no pictures"):
        check_folder(tmp_path, listed, where)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.JPG").touch()
    with pytest.raises(DataError, match=r"line 1: .* lacks a\.png"):
        check_folder(tmp_path, listed, where)
    (tmp_path / "a.png").touch()
    assert check_folder(tmp_path, listed, where) == ["deep/b.JPG"]
    with pytest.raises(DataError, match="is no folder"):
        check_folder(tmp_path / "none", listed, where)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people side by side, colour, grey, with alpha and on their side by EXIF; one empty room."""
    folder = tmp_path_factory.mktemp("crowd")
    canvas, boxes = np.full((720, 1280, 3), 96, np.uint8), []
    for at, (name, box) in enumerate(FACES.items()):
        picture = read_picture(PICTURES / name)
        factor = 60 / np.sqrt(box[2] * box[3])
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        x, y = 60 + 310 * at, 100
        canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
        left, top, width, height = (side * factor for side in box)
        boxes.append(f"{left + x:.1f} {top + y:.1f} {width:.1f} {height:.1f} 0 0 0 0 0 0")
    (folder / "rooms").mkdir()
    cv2.imwrite(str(folder / "rooms" / "colour.png"), canvas)
    cv2.imwrite(str(folder / "rooms" / "grey.png"), cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY))
    cv2.imwrite(str(folder / "rooms" / "alpha.png"), cv2.cvtColor(canvas, cv2.COLOR_BGR2BGRA))
    turned = cv2.imencode(".jpg", cv2.rotate(canvas, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    exif = bytes.fromhex("45786966000049492a00080000000100120103000100000006000000")
    exif += bytes(4)
    head = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (folder / "rooms" / "turned.jpg").write_bytes(turned[:2] + head + turned[2:])
    cv2.imwrite(str(folder / "empty.png"), np.full((480, 640, 3), 96, np.uint8))
    lines = []
    for name in ("colour.png", "grey.png", "alpha.png", "turned.jpg"):
        lines += [f"rooms/{name}", str(len(boxes)), *boxes]
    lines += ["empty.png", "0", " ".join("0" * 10)]
    (folder / "boxes.txt").write_text("\r\n".join(lines))
    return folder


def test_people_in_a_room_are_counted_by_the_nodes_own_stages(
    detector_file: Path, crowd: Path, command: Callable[..., Done], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    size = ("--detector", "1280x736")
    done = command("edge.tools.crowd", crowd, crowd / "boxes.txt", *size, "--json", out)
    assert done.code == 0, done.err
    result = json.loads(out.read_text())
    assert (result["people"], result["counted"]) == (16, 16), result["by_picture"]
    assert result["recall"]["value"] == result["exact"]["value"] == 1.0
    assert [row["counted"] for row in result["by_picture"]] == [4, 4, 4, 4, 0]
    assert "16 people in 5 frames of 5 pictures; 16 counted" in done.out
    assert "detector_size: 1280x736\n" in done.out
    spent = sum(row["cpu_seconds"] for row in result["by_picture"])
    assert result["conditions"]["found_a_core_second"] == pytest.approx(16 / spent, abs=0.06)
    assert result["conditions"]["detector_cpu_ms_a_frame"] == pytest.approx(200 * spent, abs=0.06)
    assert all(len(line) <= 80 for line in done.out.splitlines())


def test_far_people_are_lost_and_masked_ones_are_not_asked_for(
    detector_file: Path, crowd: Path, command: Callable[..., Done], tmp_path: Path
) -> None:
    out, config = tmp_path / "out.json", tmp_path / "node.yaml"
    config.write_text("privacy: {masks: [[0, 0, 0.5, 1]]}\n")
    where = (crowd, crowd / "boxes.txt", "--config", config, "--json", out)
    done = command("edge.tools.crowd", *where, "--detector", "640x480", "--scale", 1, 0.1)
    assert done.code == 0, done.err
    result = json.loads(out.read_text())
    assert result["frames"] == 10
    assert result["ignored"] == {"masked": 16}
    by_size = {row["from_px"]: row["recall"]["value"] for row in result["recall_by_size"]}
    assert by_size[48] == 1.0


def test_small_faces_in_a_large_frame_need_a_large_detector(
    detector_file: Path, crowd: Path, command: Callable[..., Done], tmp_path: Path
) -> None:
    found = {}
    for size in ("320x192", "1280x736"):
        out = tmp_path / f"{size}.json"
        options = ("--scale", 0.25, "--frame", "1280x720", "--detector", size, "--json", out)
        assert command("edge.tools.crowd", crowd, crowd / "boxes.txt", *options).code == 0
        found[size] = json.loads(out.read_text())["recall_from_12_px"]["value"]
    assert found["320x192"] == 0.0
    assert found["1280x736"] > 0.8


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--detector", "640"), 2, "give it as 1280x720"),
        (("--detector", "641x480"), 2, "detector.width"),
        (("--frame", "0x0"), 2, "give it as 1280x720"),
        (("--scale", "0"), 2, "--scale must be"),
        (("--ignore-below", "nan"), 2, "--ignore-below at least 0"),
        (("--config", "missing.yaml"), 2, "missing.yaml"),
    ],
)
def test_refuses_in_one_line_what_cannot_be_meant(
    crowd: Path, command: Callable[..., Done], options: tuple[str, ...], code: int, told: str
) -> None:
    done = command("edge.tools.crowd", crowd, crowd / "boxes.txt", *options)
    assert done.code == code
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_by_default_the_detectors_size_follows_every_picture(
    detector_file: Path, crowd: Path, command: Callable[..., Done], tmp_path: Path
) -> None:
    out, config = tmp_path / "out.json", tmp_path / "node.yaml"
    config.write_text("detector: {width: 640, height: 480}\n")
    where = (crowd, crowd / "boxes.txt", "--json", out)
    assert command("edge.tools.crowd", *where).code == 0
    by_shape = json.loads(out.read_text())
    assert by_shape["conditions"]["detector_size"] == "1280x736, 640x480"
    assert by_shape["recall"]["value"] == 1.0
    for options, size in ((), "640x480"), (("--detector", "auto"), "1280x736, 640x480"):
        assert command("edge.tools.crowd", *where, "--config", config, *options).code == 0
        assert json.loads(out.read_text())["conditions"]["detector_size"] == size
