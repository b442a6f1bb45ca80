"""Photographs on the wall, from the picture to what is published: the default group and cell hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from support.command import Done
from support.wall import HEIGHT, PEOPLE, POSTERS, WIDTH, Portrait, draw, room

pytestmark = pytest.mark.faults
FPS, WINDOW = 6, 4


def film(path: Path, windows: Sequence[Sequence[Portrait]]) -> Path:
    """A film with one window of each row, as a camera on a quiet wall sees it."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    rng, wall, faces = np.random.default_rng(0), room(), {}
    for k in range(len(windows) * WINDOW * FPS):
        portraits = windows[k // (WINDOW * FPS)]
        picture = draw(portraits, k / FPS, wall, faces) + rng.normal(0, 3, wall.shape)
        writer.write(np.clip(picture, 0, 255).astype(np.uint8))
    writer.release()
    return path


def windows(command: Callable[..., Done], film: Path) -> list[dict[str, Any]]:
    done = command("edge.run", "--camera", film, "--broker", "-", "--window", WINDOW)
    assert done.code == 0, done.err
    messages = [json.loads(line) for line in done.out.splitlines()]
    return [m["payload"] for m in messages if m["topic"].endswith("/counts")]


def test_ten_photographs_and_one_person_are_no_group(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    one = [Portrait(n, 80, 330, 370, 3.0) for n in (0, 1, 2)]
    found = windows(command, film(tmp_path / "one.avi", [[*POSTERS, p] for p in one]))
    assert len(found) == 3
    for reading in found:
        assert (reading["min_group"], reading["min_cell"]) == (5, 2)
        assert reading["faces"] == "<5"
        assert reading["counts"] is reading["person_seconds"] is None
    same = {json.dumps(reading["quality"]) for reading in found}
    assert len(same) == 1, "who is there changes nothing"


def test_ten_photographs_and_five_people_are_five_people(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    rows = [[*POSTERS, *PEOPLE]] * 2
    found = windows(command, film(tmp_path / "five.avi", rows))
    bare = windows(command, film(tmp_path / "bare.avi", [PEOPLE] * 2))
    for reading, without in zip(found[1:], bare[1:], strict=True):
        assert reading["faces"] == without["faces"] == {"mean": 5.0, "max": 5}
        assert sum(reading["counts"].values()) == 5
        moved = sum(abs(n - without["counts"][k]) for k, n in reading["counts"].items())
        assert moved <= 4, "the same people, a face apart by the wall behind it"
