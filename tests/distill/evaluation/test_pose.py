"""Scores by how far faces are turned: the groups, and the command on portraits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.data.crops import Crops
from distill.data.splits import Split
from distill.evaluation import pose
from edge.base.errors import DataError
from edge.inference.bundle import SHIPPED, load_bundle
from support.paths import PICTURES

LABELS = ("calm", "glad")


def split(votes: list[list[int]]) -> Split:
    names = [f"{n}.png" for n in range(len(votes))]
    pixels = np.zeros((len(votes), 1, 8, 8), np.uint8)
    crops = Crops(pixels, names, np.ones(len(votes), dtype=bool))
    return Split(crops, np.array(votes, dtype=np.int64), LABELS)


def test_each_face_stands_in_one_group_and_a_guess_is_the_groups_own() -> None:
    degrees = np.array([0.0, -14.9, 15.0, -90.0, 90.0, np.nan])
    given = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    lines = pose.table(degrees, given, split([[10, 0], [10, 0], [0, 10], [10, 0], [0, 10], [0, 0]]))
    rows = {line[:14].strip(): line[14:].split() for line in lines[1:]}
    assert [rows[f"{a} to {b}"][0] for a, b in ((0, 15), (15, 30), (30, 40), (80, 90))] == [
        "2",
        "1",
        "0",
        "2",
    ], "both ends of the last group belong to it"
    assert sum(int(row[0]) for row in rows.values()) == len(degrees)
    # faces, share, labelled, accuracy, guess, error of counts
    assert rows["0 to 15"] == ["2", "33.33", "2", "50.0", "100.0", "0.450"]
    assert rows["15 to 30"] == ["1", "16.67", "1", "0.0", "100.0", "0.900"]
    assert rows["none found"] == ["1", "16.67", "0"], (
        "nobody labelled it: nothing to be right about"
    )


@pytest.mark.usefixtures("detector_file")
@pytest.mark.slow
def test_portraits_are_grouped_by_the_nodes_own_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "valid"):
        for number, label in enumerate(load_bundle(SHIPPED).labels):
            (tmp_path / part / label).mkdir(parents=True)
            shutil.copy(PICTURES / f"portrait-{number % 3 + 1}.jpg", tmp_path / part / label)
    options = ["--bundle", str(SHIPPED), "--data", str(tmp_path), "--layout", "folders"]
    pose.run([*options, "--split", "valid"])
    out = capsys.readouterr().out
    assert sum(int(line[14:].split()[0]) for line in out.splitlines()[1:]) == 8
    with pytest.raises(DataError, match="has no images of split 'test'"):
        pose.run([*options, "--split", "test"])
