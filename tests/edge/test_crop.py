from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge.crop import crop_faces, crop_whole, similarity
from edge.inference.bundle import CropSpec
from edge.records import Face

TEMPLATE = ((20.0, 23.0), (44.0, 23.0), (32.0, 37.0), (22.0, 51.0), (42.0, 51.0))
SPEC = CropSpec(size=64, channels=1, template=TEMPLATE)


def face_at(scale: float, angle: float, shift: tuple[float, float]) -> Face:
    """A face whose landmarks are the template, enlarged, turned and moved."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (np.array(TEMPLATE) @ (scale * turn).T + shift).astype(np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    return Face(box=np.concatenate([low, high - low]), landmarks=points, score=0.9)


@pytest.mark.parametrize(("scale", "angle"), [(1.0, 0.0), (0.4, 0.3), (6.0, -0.5), (2.5, 3.0)])
def test_similarity_takes_turned_and_scaled_landmarks_back_to_the_template(
    scale: float, angle: float
) -> None:
    face = face_at(scale, angle, (100.0, 40.0))
    matrix = similarity(face.landmarks, np.array(TEMPLATE))
    back = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(back - TEMPLATE).max() < 1e-3
    # One scale and a rotation, never a shear or a mirror.
    assert matrix[0, 0] == pytest.approx(matrix[1, 1])
    assert matrix[0, 1] == pytest.approx(-matrix[1, 0])


def test_similarity_agrees_with_opencvs_least_squares_on_noisy_points() -> None:
    rng = np.random.default_rng(3)
    points = face_at(3.0, 0.2, (50, 60)).landmarks + rng.normal(0, 2, (5, 2)).astype(np.float32)
    ours = similarity(points, np.array(TEMPLATE))

    def error(matrix: np.ndarray) -> float:
        return float((((points @ matrix[:, :2].T + matrix[:, 2]) - TEMPLATE) ** 2).sum())

    theirs, _ = cv2.estimateAffinePartial2D(points, np.array(TEMPLATE), method=cv2.LMEDS)
    assert error(ours) <= error(theirs) + 1e-6


def draw(scale: float, angle: float, shift: tuple[float, float], side: int) -> np.ndarray:
    """A smooth scene in which the template's own picture has been scaled, turned and moved."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    u, v = np.linalg.inv(scale * turn) @ np.stack([x.ravel() - shift[0], y.ravel() - shift[1]])
    value = 128 + 60 * np.sin(u / 7) + 50 * np.cos(v / 5)
    return value.reshape(side, side).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("scale", "angle", "shift", "side"),
    [(0.5, 0.0, (40.0, 30.0), 128), (1.0, 0.4, (60.0, 20.0), 160), (7.3, -0.2, (60.0, 140.0), 640)],
)
def test_one_face_gives_one_crop_at_any_size_and_angle(
    scale: float, angle: float, shift: tuple[float, float], side: int
) -> None:
    expected = draw(1.0, 0.0, (0.0, 0.0), 64)
    crop = crop_faces(draw(scale, angle, shift, side), [face_at(scale, angle, shift)], SPEC)
    inner = slice(8, 56)
    difference = np.abs(crop[0, 0].astype(float) - expected)[inner, inner]
    assert difference.mean() < 3.0


def test_a_large_face_is_averaged_not_sampled() -> None:
    # A checkerboard of single pixels is grey from afar; sampling would give black and white.
    board = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = crop_faces(board, [face_at(8.0, 0.0, (60.0, 60.0))], SPEC)
    assert abs(float(crop.mean()) - 127.5) < 3
    assert float(crop.std()) < 12


def test_shapes_and_channels_are_the_bundles() -> None:
    picture = np.zeros((90, 120, 3), dtype=np.uint8)
    face = face_at(1.0, 0.0, (10.0, 10.0))
    assert crop_faces(picture, [], SPEC).shape == (0, 1, 64, 64)
    assert crop_faces(picture, [face, face], SPEC).shape == (2, 1, 64, 64)
    colour = CropSpec(size=32, channels=3, template=TEMPLATE)
    assert crop_faces(picture[:, :, 0], [face], colour).shape == (1, 3, 32, 32)
    assert crop_whole(picture, colour).shape == (1, 3, 32, 32)


def test_landmarks_in_one_point_do_not_crash() -> None:
    face = Face(np.zeros(4, np.float32), np.full((5, 2), 7, np.float32), 0.9)
    crop = crop_faces(np.full((20, 20, 3), 9, np.uint8), [face], SPEC)
    assert crop.shape == (1, 1, 64, 64)
