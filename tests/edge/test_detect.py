from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.base.errors import UsageError
from edge.detect import STRIDES, Detector, decode, letterbox_scale, suppress
from edge.inference.loader import open_backend
from edge.inference.weights import resolve
from support.detector import original
from support.paths import CLIP, PICTURES


def empty_maps(width: int, height: int) -> dict[str, np.ndarray]:
    maps = {}
    for stride in STRIDES:
        n = (width // stride) * (height // stride)
        for name, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            maps[f"{name}_{stride}"] = np.zeros((1, n, channels), dtype=np.float32)
    return maps


def test_decode_reads_one_cell_as_the_papers_anchor_free_head_means_it() -> None:
    maps = empty_maps(640, 320)
    cell = 3 * (640 // 16) + 5  # row 3, column 5 at stride 16
    maps["cls_16"][0, cell] = 0.81
    maps["obj_16"][0, cell] = 1.0
    maps["bbox_16"][0, cell] = [0.5, 0.25, np.log(4.0), np.log(2.0)]
    maps["kps_16"][0, cell] = np.arange(10) / 10
    (row,) = decode(maps, 640, 320, 0.5)
    centre_x, centre_y, width, height = (5 + 0.5) * 16, (3 + 0.25) * 16, 64, 32
    assert row[:4] == pytest.approx([centre_x - width / 2, centre_y - height / 2, width, height])
    expected = (np.arange(10).reshape(5, 2) / 10 + [5, 3]) * 16
    assert row[4:14].reshape(5, 2) == pytest.approx(expected, abs=1e-4)
    assert row[14] == pytest.approx(0.9)


def test_decode_refuses_maps_of_another_size() -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        decode(empty_maps(640, 320), 320, 320, 0.5)


def test_suppress_keeps_the_best_of_overlapping_boxes_only() -> None:
    rows = np.zeros((3, 15), dtype=np.float32)
    rows[:, :4] = [[10, 10, 50, 50], [14, 12, 50, 50], [200, 10, 50, 50]]
    rows[:, 14] = [0.7, 0.9, 0.8]
    kept = suppress(rows, 0.3)
    assert sorted(kept[:, 0]) == [14, 200]


@pytest.mark.parametrize("size", [(0, 480), (640, 100), (-32, 32), (33, 64)])
def test_sizes_off_the_grid_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        Detector(None, *size)  # type: ignore[arg-type]


def scenes() -> list[tuple[str, np.ndarray]]:
    pictures = [(p.name, cv2.imread(str(p))) for p in sorted(PICTURES.iterdir())]
    clip = cv2.VideoCapture(str(CLIP))
    clip.set(cv2.CAP_PROP_POS_FRAMES, 60)
    ok, frame = clip.read()
    assert ok
    return [*pictures, ("clip", frame)]


@pytest.mark.parametrize(("width", "height"), [(640, 640), (640, 480), (320, 256)])
def test_agrees_with_opencvs_own_detector(
    detector_file: Path, tmp_path: Path, width: int, height: int
) -> None:
    """Same faces, boxes and landmarks within two pixels of the scaled picture."""
    published = tmp_path / "published.onnx"  # OpenCV 4 wants the file with its fixed input
    published.write_bytes(original(detector_file))
    backend = open_backend("ort", detector_file, 1)
    ours = Detector(backend, width, height, score=0.6, overlap=0.3)
    for name, picture in scenes():
        scale = letterbox_scale(picture.shape, width, height)
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(picture, size, interpolation=method)
        theirs = cv2.FaceDetectorYN.create(str(published), "", size, 0.6, 0.3)
        _, rows = theirs.detect(small)
        rows = rows if rows is not None else np.empty((0, 15))
        found = ours.find(picture)
        assert len(found) == len(rows) > 0, name
        for face in found:
            mine = np.concatenate([face.box, face.landmarks.ravel()]) * scale
            nearest = rows[np.abs(rows[:, :2] - mine[:2]).sum(axis=1).argmin()]
            assert np.abs(nearest[:14] - mine).max() < 2.0, name
            assert abs(nearest[14] - face.score) < 0.02


def test_finds_the_faces_of_the_clip_at_small_and_large_picture_sizes(detector_file: Path) -> None:
    frame = dict(scenes())["clip"]
    backend = open_backend("ort", detector_file, 1)
    counts = {
        (w, h): len(Detector(backend, w, h).find(cv2.resize(frame, None, fx=f, fy=f)))
        for w, h, f in ((640, 480, 1), (1280, 960, 2), (640, 480, 3))
    }
    assert set(counts.values()) == {7}, counts


def test_patched_weights_are_the_locked_ones(detector_file: Path) -> None:
    assert resolve("yunet") == detector_file
