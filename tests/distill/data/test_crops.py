"""Crops are whole, resumed, or one line that says where there is room."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from distill.data import crops as module
from distill.data.crops import make_crops
from distill.data.data_set import CACHE_VARIABLE, DataSet, crops_root, open_data
from distill.data.disk import create_map
from edge.base.errors import DataError, SourceError
from edge.inference.bundle import CropSpec
from support.paths import ROOT
from support.patience import wait_for

SPEC = CropSpec(32, 1, ((10.0, 11.0), (22.0, 11.0), (16.0, 18.0), (11.0, 25.0), (21.0, 25.0)))
COUNT = 23


class Blind:
    """A detector that finds nothing, and may be stopped at a picture."""

    def __init__(self, stop_at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.seen, self._stop_at, self._error = 0, stop_at, error

    def find(self, image: Any) -> list[Any]:
        if self.seen == self._stop_at:
            raise self._error("stopped")
        self.seen += 1
        return []


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        folder = tmp_path / "d" / "train" / ("calm", "glad")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (20, 20), dtype=np.uint8))
    return open_data(tmp_path / "d", "folders", tmp_path / "d.crops", lambda line: None)


def crop(data: DataSet, out: Path, detector: Blind) -> np.ndarray:
    made = make_crops(data, out, detector, SPEC, workers=1)  # type: ignore[arg-type]
    return np.asarray(made["train"].pixels)


@pytest.mark.parametrize("stopped", [0, 3, 4, 9, COUNT - 1])
def test_a_killed_run_resumes_to_the_same_crops(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    whole = crop(data, tmp_path / "whole", Blind())
    with pytest.raises(KeyboardInterrupt):
        crop(data, tmp_path / "cut", Blind(stopped))
    second = Blind()
    assert np.array_equal(crop(data, tmp_path / "cut", second), whole)
    assert second.seen == COUNT - stopped // 4 * 4, "what was saved is not cropped again"
    third = Blind()
    assert np.array_equal(crop(data, tmp_path / "cut", third), whole)
    assert third.seen == 0
    assert not list((tmp_path / "cut").glob(".*.part.*"))


def test_other_pictures_are_not_mixed_with_a_killed_run(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    with pytest.raises(KeyboardInterrupt):
        crop(data, tmp_path / "cut", Blind(9))
    shutil.copy(tmp_path / "d/train/calm/0.png", tmp_path / "d/train/calm/2.png")
    changed = open_data(data.root, "folders", data.crops, lambda line: None)
    detector = Blind()
    crop(changed, tmp_path / "cut", detector)
    assert detector.seen == COUNT


def test_an_error_leaves_no_part_files(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        crop(data, tmp_path / "out", Blind(5, SourceError))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_disk_without_room_is_one_line_before_the_first_crop(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    detector = Blind()
    with pytest.raises(DataError, match=r"needs 0\.0 MB, .* free; make room, or .* by --cache DIR"):
        crop(data, tmp_path / "out", detector)
    assert detector.seen == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk or a quota: the kernel refuses more."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with files_of_at_most(2**16), pytest.raises(DataError, match=r"a\.npy cannot be written: File"):
        create_map(path, np.uint8, (2**17,))
    assert not path.exists()


def test_a_map_has_all_its_blocks_before_a_row_is_written(tmp_path: Path) -> None:
    made = create_map(tmp_path / "a.npy", np.uint8, (2**20, 3))
    status = (tmp_path / "a.npy").stat()
    assert status.st_blocks * 512 >= status.st_size >= 3 * 2**20, "a sparse file is SIGBUS later"
    made[-1] = 7
    made.flush()
    assert np.load(tmp_path / "a.npy")[-1].tolist() == [7, 7, 7]


def test_crops_lie_beside_the_data_or_where_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    one, two = tmp_path / "a" / "faces", tmp_path / "b" / "faces"
    assert crops_root(one, None) == tmp_path / "a" / "faces.crops"
    places = {crops_root(root, tmp_path / "c") for root in (one, two)}
    assert len(places) == 2, "two sets of one name do not meet"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "c"))
    assert {crops_root(root, None) for root in (one, two)} == places
    assert crops_root(one, tmp_path / "e").parent == tmp_path / "e", "the option wins"


def test_finished_crops_are_read_where_nothing_can_be_written(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    whole = crop(data, out, Blind())

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "file_lock", refuse)
    assert np.array_equal(crop(data, out, Blind()), whole)
    (out / "train.key").unlink()
    with pytest.raises(DataError, match=r"cannot keep the crops .* Read-only .* by --cache DIR"):
        crop(data, out, Blind())


@pytest.mark.slow
@pytest.mark.process
def test_edge_crops_that_was_killed_resumes(detector_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(module.SAVE_EVERY + 40):
        folder = tmp_path / "d" / "train" / ("calm", "glad")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (20, 20), dtype=np.uint8))
    words = [str(tmp_path / "d"), "--layout", "folders", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "distill.data.crops", *words]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    out = tmp_path / "out"
    try:
        wait_for(lambda: digits(out) or (out / "train.key").exists(), "rows or the end")
    finally:
        running.kill()
        running.wait()
    kept = len(digits(out))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    # On a machine that slept meanwhile the first run may have ended: then nothing is left to resume.
    assert (f"train: resumed after {kept} crops" in done.stdout) == bool(kept)
    assert not digits(out)
    again = subprocess.run(
        [*command[:-1], str(tmp_path / "whole")], cwd=ROOT, capture_output=True, check=True
    )
    assert again.returncode == 0
    whole, resumed = (np.load(place / "train.npy") for place in (tmp_path / "whole", out))
    assert np.array_equal(whole, resumed)


def digits(out: Path) -> str:
    path = out / ".train.part.found"
    return path.read_text() if path.is_file() else ""
