"""INT8 is calibrated on any folder of pictures, and a school's small set becomes a bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from distill.data.crops import crop_detector
from distill.models import checkpoint, store
from distill.models.student import Student
from distill.recipe import Recipe
from edge.base.errors import DataError
from edge.inference.bundle import load_bundle
from export.calibrate import crops_of, pictures_in
from support.command import call
from support.paths import ROOT
from support.tiny_student import CONFIG

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "crop": {"size": 32, "template": [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]},
        "student": {"widths": [4, 6, 8, 8], "depths": [1, 1, 1], "width": 8, "heads": 2},
        "training": {"epochs": 1},
    }
)
FACE = ROOT / "demo/pictures/portrait-1.jpg"


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (6, 6)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC))
    return path


def without_labels(root: Path) -> Path:
    """As a school has them: a face, pictures at any depth, and what a NAS adds."""
    noise(root / "a.jpg", 0)
    noise(root / "class 3a/monday/b.PNG", 1)
    noise(root / "@eaDir/thumb.jpg", 2)
    noise(root / "._a.jpg", 3)
    shutil.copy(FACE, root / "class 3a" / "face.jpg")
    (root / "notes.txt").write_text("no picture")
    return root


def test_any_folder_of_pictures_is_cropped_without_labels(
    detector_file: Path, tmp_path: Path
) -> None:
    folder, said = without_labels(tmp_path / "own"), list[str]()
    names = [str(path.relative_to(folder)) for path in pictures_in(folder)]
    assert names == ["a.jpg", "class 3a/face.jpg", "class 3a/monday/b.PNG"]
    detector, spec = crop_detector(), RECIPE.crop.spec()
    faces = crops_of(folder, 1024, detector, spec, skip_bad=False, say=said.append)
    assert faces.shape == (3, 1, 32, 32)
    assert faces.dtype == np.uint8
    assert said == ["calibration: 3 of 3 pictures, a face found in 1"]
    assert len(crops_of(folder, 2, detector, spec, skip_bad=False, say=said.append)) == 2

    (folder / "empty.jpg").touch()
    (folder / "class 3a" / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"2 of 5 pictures cannot be read.*text\.png.*empty\.jpg"):
        crops_of(folder, 1024, detector, spec, skip_bad=False, say=said.append)
    assert len(crops_of(folder, 1024, detector, spec, skip_bad=True, say=said.append)) == 3
    assert sum(line.startswith("skipped: ") for line in said) == 2


@pytest.mark.parametrize("kind", ["missing", "empty", "hidden", "a file"])
def test_a_folder_without_pictures_is_told(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "own"
    if kind == "a file":
        noise(tmp_path / "own.jpg", 0).rename(folder)
    elif kind != "missing":
        folder.mkdir()
    if kind == "hidden":
        noise(folder / ".trash" / "a.jpg", 0)
    with pytest.raises(DataError, match=r"own holds no picture \(.*; give a folder of faces"):
        pictures_in(folder)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("own", [False, True], ids=["training images", "--calibration"])
def test_a_small_set_becomes_a_bundle(detector_file: Path, tmp_path: Path, own: bool) -> None:
    for seed, (split, label, i) in enumerate(
        (s, c, i) for s in ("train", "valid") for c in ("calm", "glad") for i in range(3)
    ):
        noise(tmp_path / "school" / split / label / f"{i}.jpg", seed)
    torch.manual_seed(0)
    network = Student(replace(CONFIG, classes=2))
    content = checkpoint.state(network, RECIPE, ("calm", "glad"), 0, 0.5)
    store.save(tmp_path / "best.pt", content)
    options = ["--data", tmp_path / "school", "--layout", "folders", "--out", tmp_path / "bundle"]
    more = ["--calibration", without_labels(tmp_path / "own")] if own else []
    arguments = [tmp_path / "best.pt", *options, "--force", *more]
    done = call("export.model", *arguments, env={})
    assert done.code == 0, done.err
    count = 3 if own else 6
    assert f"warning: calibrated on {count} pictures; below 512" in done.err
    assert "warning: no constants for the counting, as by --prior none: 6 images" in done.err
    provenance = load_bundle(tmp_path / "bundle").description.provenance
    assert provenance["calibration_crops"] == count
    assert provenance["calibration_folder"] is own
    assert provenance["weights_licence"] == "as the owners of its training pictures allow"
    assert "counting" not in json.loads((tmp_path / "bundle/bundle.json").read_text())
    card = (tmp_path / "bundle/MODEL_CARD.md").read_text()
    assert ("(INT8's ranges on 3 pictures of a folder without labels)" in card) is own

    done = call("export.model", *arguments, "--prior", "fitted", env={})
    assert done.code == 1, "what was asked for is not left out"
    assert "6 images of a split have a label, constants need 50" in done.last
