"""Turned, bent, covered and far faces: what a change of strength 0 leaves, and what each moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.augment import corrupt, distort
from distill.data.changes import (
    as_channels,
    bend,
    jpeg,
    side_light,
    through_camera,
    turn,
    wear_mask,
    wear_sunglasses,
)
from distill.data.crops import crop_detector, crop_single, find_single
from distill.recipe import Augmentation
from edge.inference.bundle import CropSpec, load_bundle
from edge.pose import yaw
from edge.sources.images import read_picture
from support.paths import PICTURES

TEMPLATE = load_bundle().crop.template
LANDMARKS = torch.tensor(TEMPLATE)
Change = Callable[[torch.Tensor], torch.Tensor]


def ones(faces: torch.Tensor, value: float) -> torch.Tensor:
    return torch.full((len(faces),), value)


@pytest.fixture(scope="module")
def portraits(detector_file: Path) -> torch.Tensor:
    """The demo's portraits as the network gets them, (4, 1, 64, 64)."""
    detector = crop_detector()
    spec = CropSpec(size=64, channels=1, template=TEMPLATE)
    crops = []
    for path in sorted(PICTURES.iterdir()):
        pixels, found = crop_single(read_picture(path), detector, spec)
        assert found
        crops.append(pixels)
    return torch.from_numpy(np.stack(crops)).float()


def some(channels: int = 1, side: int = 64) -> torch.Tensor:
    """Smooth pictures of the full range of greys."""
    rng = np.random.default_rng(0)
    planes = [cv2.GaussianBlur(rng.normal(128, 500, (side, side)), (0, 0), 3) for _ in range(6)]
    faces = torch.from_numpy(np.stack(planes).clip(0, 255)).float()[:, None]
    return torch.cat([faces, faces.flip(2), faces.flip(3)][:channels], dim=1)


def test_a_turn_and_a_bend_of_nothing_leave_the_face(portraits: torch.Tensor) -> None:
    assert torch.allclose(turn(portraits, LANDMARKS, ones(portraits, 0)), portraits, atol=0.01)
    assert torch.equal(bend(portraits, LANDMARKS, torch.zeros(len(portraits), 5, 2)), portraits)
    assert torch.equal(side_light(portraits, ones(portraits, 1), ones(portraits, 30)), portraits)
    flat = turn(portraits, LANDMARKS, ones(portraits, 0), nose=0.8, radius=0.9)
    assert torch.allclose(flat, portraits, atol=0.01)


@settings(max_examples=25)
@given(
    st.sampled_from([1, 3]),
    st.sampled_from([32, 64, 96]),
    st.floats(-60, 60),
    st.floats(0.2, 0.9),
    st.floats(0.02, 1.0),
    st.floats(1, 256),
    st.integers(8, 31),
)
def test_every_change_keeps_shape_type_and_range_and_repeats(
    channels: int, side: int, degrees: float, covered: float, light: float, ratio: float, px: int
) -> None:
    faces = some(channels, side)
    before = faces.clone()
    landmarks = LANDMARKS * side / 64
    colour = torch.rand(6, 3, generator=torch.Generator().manual_seed(px)) * 255
    changes: list[Change] = [
        lambda f: turn(f, landmarks, ones(f, degrees)),
        lambda f: bend(f, landmarks, torch.full((6, 5, 2), degrees / 20)),
        lambda f: side_light(f, ones(f, ratio), ones(f, 3 * degrees)),
        lambda f: wear_mask(f, landmarks, colour, ones(f, covered)),
        lambda f: wear_sunglasses(
            f, landmarks, colour, ones(f, light), ones(f, covered / 2), ones(f, 0.3)
        ),
        lambda f: through_camera(f, px, 5, 40, torch.Generator().manual_seed(1)),
        lambda f: jpeg(f, 30),
    ]
    for change in changes:
        changed = change(faces)
        assert changed.shape == faces.shape
        assert changed.dtype == torch.float32
        assert bool(torch.isfinite(changed).all())
        assert float(changed.min()) >= -0.01
        assert float(changed.max()) <= 255.01
        assert torch.equal(changed, change(faces))
        assert torch.equal(faces, before)


def test_turned_heads_to_both_sides_are_mirror_images() -> None:
    """On a template that is its own mirror image, and so is not the shipped one to the pixel."""
    landmarks = torch.tensor([[20.5, 23], [42.5, 23], [31.5, 36.5], [22.5, 50.5], [40.5, 50.5]])
    faces = some()
    right = turn(faces, landmarks, ones(faces, 35))
    left = turn(faces.flip(3), landmarks, ones(faces, -35)).flip(3)
    assert torch.allclose(right, left, atol=0.05)


def test_the_nodes_own_detector_and_pose_see_the_turn(
    detector_file: Path, portraits: torch.Tensor
) -> None:
    """YuNet sees about 0.6 of a turn: what it reads tends to the front, and depth is a mean face's."""
    detector = crop_detector()

    def seen(degrees: float) -> list[float]:
        turned = turn(portraits, LANDMARKS, ones(portraits, degrees))
        found = []
        for face in turned[:, 0].numpy().clip(0, 255).astype(np.uint8):
            landmarks = find_single(cv2.cvtColor(face, cv2.COLOR_GRAY2BGR), detector)
            assert landmarks is not None, degrees
            found.append(yaw(landmarks.landmarks))
        return found

    left, front, right = (np.array(seen(degrees)) for degrees in (-45, 0, 45))
    assert ((right - front) > 12).all()
    assert ((front - left) > 12).all()


def test_a_bend_takes_each_landmark_where_it_is_told() -> None:
    landmarks = LANDMARKS.round()
    dots = torch.zeros(1, 1, 64, 64)
    for x, y in landmarks.int().tolist():
        dots[0, 0, y, x] = 255
    shifts = torch.tensor([[[2.0, 1.0], [0.0, -2.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]])
    bent = bend(dots, landmarks - shifts[0], shifts)
    for x, y in (landmarks - shifts[0]).int().tolist():
        assert float(bent[0, 0, y, x]) > 200
    edge = torch.ones(64, 64, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    corners = some()[:1]
    moved = (bend(corners, landmarks, shifts) - corners).abs()[0, 0]
    assert float(moved[0, 0] + moved[-1, -1] + moved[0, -1] + moved[-1, 0]) < 0.1


def test_a_mask_covers_the_mouth_and_leaves_the_eyes(portraits: torch.Tensor) -> None:
    blue = torch.tensor([[220.0, 160.0, 90.0]]).expand(len(portraits), -1)
    masked = wear_mask(portraits, LANDMARKS, blue, ones(portraits, 0.55))
    changed = (masked - portraits).abs()
    (_, _), (_, _), nose, *mouth = [(round(x), round(y)) for x, y in TEMPLATE]
    assert float(changed[:, :, :27].max()) == 0, "eyes and brows"
    less = wear_mask(portraits, LANDMARKS, blue, ones(portraits, 0.35))
    assert torch.equal(less[:, :, nose[1] - 2 : nose[1] + 1, nose[0]],
                       portraits[:, :, nose[1] - 2 : nose[1] + 1, nose[0]])  # fmt: skip
    spread = masked[:, :, mouth[0][1] - 1 : mouth[0][1] + 2, mouth[0][0] : mouth[1][0]]
    assert (spread.std(dim=3) < 8).all(), "nothing of the lips shows"
    dark = wear_mask(portraits * 0.3, LANDMARKS, blue, ones(portraits, 0.55))
    assert float(dark[:, :, 50:].mean()) < float(masked[:, :, 50:].mean()), "lit as the face is"


def test_sunglasses_cover_the_eyes_and_leave_the_mouth(portraits: torch.Tensor) -> None:
    frame = torch.zeros(len(portraits), 3)

    def wearing(light: float) -> torch.Tensor:
        form = ones(portraits, 0.42), ones(portraits, 0.3)
        return wear_sunglasses(portraits, LANDMARKS, frame, ones(portraits, light), *form)

    for x, y in TEMPLATE[:2]:
        at = (..., slice(round(y) - 2, round(y) + 3), slice(round(x) - 2, round(x) + 3))
        values = [float(wearing(light)[at].mean()) for light in (1.0, 0.4, 0.15, 0.05)]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 40
    assert torch.equal(wearing(0.05)[:, :, 36:], portraits[:, :, 36:])


def test_side_light_has_the_stated_ratio_of_light_from_the_stated_side() -> None:
    grey = torch.full((4, 1, 64, 64), 200.0)
    lit = side_light(grey, ones(grey, 8), torch.tensor([0.0, 90.0, 180.0, 270.0]))
    for image, bright, dark in zip(
        lit[:, 0],
        ((32, -1), (-1, 32), (32, 0), (0, 32)),
        ((32, 0), (0, 32), (32, -1), (-1, 32)),
        strict=True,
    ):
        assert float(image[bright] / image[dark]) ** 2.2 == pytest.approx(8, rel=0.01)
        assert float(image[bright]) == pytest.approx(200, abs=0.01)


def test_a_camera_keeps_no_more_than_its_pixels() -> None:
    """Stripes finer than a sensor's pixels are gone, coarse ones stay."""
    place = torch.arange(64)
    fine, coarse = ((place // width % 2 * 255.0).expand(1, 1, 64, 64).float() for width in (2, 16))
    for stripes, kept in ((fine, False), (coarse, True)):
        seen = through_camera(stripes, 16, 0, 90, torch.Generator())
        assert (float(seen.std()) > 60) is kept


def test_colours_turn_to_the_grey_that_opencv_makes() -> None:
    bgr = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [12, 200, 99]], np.uint8)
    grey = as_channels(torch.from_numpy(bgr).float(), 1).flatten()
    expected = cv2.cvtColor(bgr[:, None], cv2.COLOR_BGR2GRAY).flatten()
    assert grey.numpy() == pytest.approx(expected, abs=1)


SHARES = ("turn", "bend", "side_light", "dark", "camera", "mask", "sunglasses")
STILL = Augmentation(
    contrast=1, brightness=0, gamma=1, shrink_share=0, blur_share=0, noise=0, jpeg_share=0,
    erase_share=0,
)  # fmt: skip


@pytest.mark.parametrize("share", SHARES)
def test_each_share_of_a_recipe_changes_about_that_share_of_images(
    share: str, portraits: torch.Tensor
) -> None:
    faces = portraits.repeat(50, 1, 1, 1)
    config = STILL.model_copy(update={f"{share}_share": 0.25})

    def made(seed: int) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(seed)
        return corrupt(distort(faces, config, LANDMARKS, drawn), config, drawn)

    one = made(1)
    changed = ((one - corrupt(faces, STILL, torch.Generator())).abs() > 0.5).flatten(1).any(dim=1)
    assert 0.1 < float(changed.float().mean()) < 0.4
    assert torch.equal(one, made(1))
    assert not torch.equal(one, made(2))
    assert float(one.min()) >= 0
    assert float(one.max()) <= 255.01


def test_what_a_recipe_leaves_out_draws_nothing() -> None:
    """So that runs of recipes from before these changes repeat."""
    drawn = torch.Generator().manual_seed(3)
    faces = some()
    assert distort(faces, Augmentation(), LANDMARKS, drawn) is faces
    assert torch.equal(drawn.get_state(), torch.Generator().manual_seed(3).get_state())
