"""`--check` names faces that do not move, with a mask that covers them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from edge.records import Face, Life, Track
from edge.settings import Settings
from edge.tools.still import StillFaces

PIXELS = np.zeros((100, 200, 3), np.uint8)
SHAPE = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def face(left: float, top: float) -> Face:
    box = np.array([left, top, 20, 20], np.float32)
    return Face(box, (box[:2] + 20 * SHAPE).astype(np.float32), 0.9)


def watch(seconds: float, monkeypatch: pytest.MonkeyPatch, first_still: float = 100) -> StillFaces:
    """The left face lives, the right one does not. first_still: from which column on none lives."""
    still = StillFaces()

    def judge(pixels: np.ndarray, tracks: list[Track], time: float) -> list[Track]:
        lives = {True: Life.ALIVE, False: Life.UNPROVEN}
        return [Track(t.id, t.face, life=lives[bool(t.face.box[0] < first_still)]) for t in tracks]

    monkeypatch.setattr(still._signs, "judge", judge)
    for k in range(round(5 * seconds) + 1):
        still.look(PIXELS, [face(20, 40), face(150, 60)], k / 5)
    return still


def test_a_face_that_never_moves_is_named_with_the_mask_to_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, last = watch(30, monkeypatch).lines([[0, 0, 0.1, 0.2]])
    assert first == (
        "a face of 20 px never moved in 30 s, and counts for nobody until it does, "
        "at [0.72, 0.54, 0.88, 0.86]"
    )
    line = last.removeprefix("where that is a picture, mask it, under `privacy:` in node.yaml: ")
    shipped = Path("systemd/node.yaml").read_text()
    (before,) = [text for text in shipped.splitlines() if text.startswith("  masks: ")]
    pasted = yaml.safe_load(shipped.replace(before, f"  {line}"))
    settings = Settings.model_validate(pasted)
    assert [list(m) for m in settings.privacy.masks] == [[0, 0, 0.1, 0.2], [0.72, 0.54, 0.88, 0.86]]


def test_a_short_look_says_that_it_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say that they did not move: who moves is told only after some seconds."""
    (one,) = watch(9, monkeypatch).lines([])
    (two,) = watch(2, monkeypatch, first_still=0).lines([])
    end = "on a wall: --max-seconds 60"
    assert one == f"9 s are too short to tell 1 face from a picture {end}"
    assert two == f"2 s are too short to tell 2 faces from pictures {end}"
    assert StillFaces().lines([]) == []
