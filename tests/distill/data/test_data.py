from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from distill.data.crops import Crops
from distill.data.data_set import DataSet, open_data
from distill.data.duplicates import find_near_duplicates, perceptual_hash
from distill.data.layouts import list_images, rafdb_split
from distill.data.splits import Split
from distill.data.votes import read_fer2013, read_ferplus, read_folders, read_rafdb
from distill.evaluation.metrics import PROTOCOLS, truth_of
from edge.base.errors import DataError


def crops(names: list[str]) -> Crops:
    pixels = np.zeros((len(names), 1, 8, 8), np.uint8)
    return Crops(pixels, names, np.ones(len(names), bool))


def opened(root: Path, layout: str, **options: Any) -> DataSet:
    return open_data(
        root, layout, root.with_name(root.name + ".crops"), lambda line: None, **options
    )


def write_label(root: Path, text: str) -> Path:
    folder = root / "FER2013Train"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label.csv").write_text(text)
    return root


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('a.png,"(0, 0, 48, 48)",1,2,3', "line 2: expected"),
        ('a.png,"(0, 0, 48, 48)",0,0,0,0,x,0,0,0,0,0', "line 2: expected"),
        ('a.png,"(0, 0, 48, 48)",-1,0,0,0,0,0,0,0,0,0', "line 2: expected"),
        ('a.png,"(0, 0, 48, 48)",²,0,0,0,0,0,0,0,0,0', "line 2: expected"),
        ('ok.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1', "line 2: 'ok.png' is repeated"),
    ],
)
def test_a_malformed_ferplus_row_names_file_and_line(tmp_path: Path, row: str, words: str) -> None:
    good = 'ok.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1\n'
    with pytest.raises(DataError, match="label.csv " + words):
        read_ferplus(write_label(tmp_path, good + row + "\n"), "train")


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((9, 9), np.uint8))


def test_missing_files_rows_and_images_are_named_before_a_picture_is_opened(tmp_path: Path) -> None:
    root = tmp_path / "d"
    with pytest.raises(DataError, match=r"label\.csv cannot be read"):
        read_ferplus(root, "train")
    row = 'a.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1\n'
    write_label(root, row)
    (root / "FER2013Train" / "b.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"label\.csv line 1 names a missing image of 'train', a\.png"
    ):
        opened(root, "ferplus", needs=["train"])
    draw(root / "FER2013Train" / "a.png")
    with pytest.raises(DataError, match=r"label\.csv has no row for b\.png of 'train'"):
        opened(root, "ferplus", needs=["train"])
    with pytest.raises(DataError, match=r"no images of split 'valid', only of train; add"):
        opened(root, "ferplus", needs=["valid"])
    with pytest.raises(DataError, match="is not a folder"):
        list_images(tmp_path / "absent", "ferplus")
    found = r"holds no images in the layout 'rafdb'.*; give --layout ferplus or fer2013, or see"
    with pytest.raises(DataError, match=found):
        list_images(root, "rafdb")
    draw(tmp_path / "own" / "train" / "calm" / "a.png")
    with pytest.raises(DataError, match="give --layout folders, or see 'Data layouts'"):
        list_images(tmp_path / "own", "ferplus")


def test_soft_targets_are_the_eight_votes_over_their_sum(tmp_path: Path) -> None:
    write_label(tmp_path / "d", 'a.png,"(0, 0, 48, 48)",3,1,0,0,0,0,0,0,5,1\n')
    draw(tmp_path / "d" / "FER2013Train" / "a.png")
    votes, labels = opened(tmp_path / "d", "ferplus").votes("train")
    assert Split(crops(["a.png"]), votes, labels).targets[0].tolist() == [0.75, 0.25, *[0] * 6]


def test_rafdb_is_read_in_its_holders_layout(tmp_path: Path) -> None:
    folder = tmp_path / "Image" / "aligned"
    folder.mkdir(parents=True)
    for name in ("train_00001", "train_00002", "test_0001"):
        cv2.imwrite(str(folder / f"{name}_aligned.jpg"), np.zeros((100, 100, 3), np.uint8))
    labels = tmp_path / "EmoLabel" / "list_patition_label.txt"
    labels.parent.mkdir()
    labels.write_text("train_00001.jpg 5\ntrain_00002.jpg 7\ntest_0001.jpg 4\n")
    images = list_images(tmp_path, "rafdb").images
    assert [name for name, _ in images["test"]] == ["test_0001.jpg"]
    votes: dict[str, list[int]] = {}
    for split in images:
        rows, names = read_rafdb(tmp_path, split, images[split])
        assert sorted(rows) == [name for name, _ in images[split]]
        votes |= {name: row.votes for name, row in rows.items()}
    assert names[votes["train_00001.jpg"].index(1)] == "sadness"
    assert names[votes["train_00002.jpg"].index(1)] == "neutral"
    apart = [rafdb_split(f"train_{i:05d}.jpg") for i in range(1, 12272)]
    assert 0.09 < apart.count("valid") / len(apart) < 0.115
    labels.write_text("train_00001.jpg 8\n")
    with pytest.raises(DataError, match="line 1: expected"):
        read_rafdb(tmp_path, "train", [])
    labels.write_text("test_0001.jpg 5\n\ntest_0001.jpg 7\n")
    with pytest.raises(DataError, match=r"line 3: 'test_0001\.jpg' is repeated"):
        read_rafdb(tmp_path, "test", [])


def test_a_malformed_row_of_the_challenges_own_labels_names_file_and_line(tmp_path: Path) -> None:
    labels = tmp_path / "fer2013_original_labels.csv"
    for row, words in (
        ("a.png,test,puzzled", "line 2: expected"),
        ("a.png,exam,fear", "line 2: expected a name, one of train, valid, test"),
        ("a.png,test", "line 2: expected"),
        ("a.png,test,fear\na.png,test,anger", "line 3: 'a.png' is repeated"),
    ):
        labels.write_text(f"name,split,label\n{row}\n")
        with pytest.raises(DataError, match=f"labels.csv {words}"):
            read_fer2013(tmp_path, "test")


def test_a_split_follows_a_models_order_and_leaves_images_out() -> None:
    votes = np.array([[7, 2, 1, 0], [0, 6, 1, 3]])
    split = Split(crops(["a", "b"]), votes, ("anger", "fear", "happiness"))
    other = split.ordered(("happiness", "anger", "fear"), "the model")
    assert other.votes.tolist() == [[1, 7, 2, 0], [1, 0, 6, 3]], "the extra column stays"
    for name in PROTOCOLS:
        own = [split.labels[k] for k in truth_of(split.votes, split.labels, name)]
        assert own == [other.labels[k] for k in truth_of(other.votes, other.labels, name)]
    assert other.without({"a"}).crops.names == ["b"]
    assert other.without({"a"}).votes.tolist() == [[1, 0, 6, 3]]
    with pytest.raises(DataError, match="the model happiness, anger; use data"):
        split.ordered(("happiness", "anger"), "the model")


def folders(root: Path, split: str) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    table, labels = read_folders(root, split, list_images(root, "folders").images)
    return {name: row.votes for name, row in table.items()}, labels


def test_class_folders_use_our_words_and_refuse_a_class_nobody_knows(tmp_path: Path) -> None:
    for place in ("train/Happy", "train/sad", "test/happiness"):
        draw(tmp_path / place / "x.png")
    votes, labels = folders(tmp_path, "test")
    assert labels == ("happiness", "sadness")
    assert votes == {"happiness/x.png": [1, 0]}
    draw(tmp_path / "test" / "puzzled" / "y.png")
    with pytest.raises(DataError, match="'puzzled' is not among"):
        folders(tmp_path, "test")
    draw(tmp_path / "train" / "happiness" / "z.png")
    with pytest.raises(DataError, match="two class folders mean the same class 'happiness'"):
        folders(tmp_path, "train")
    draw(tmp_path / "train" / "Other" / "z.png")
    shutil.rmtree(tmp_path / "train" / "happiness")
    with pytest.raises(DataError, match="'other' is reserved; rename that class"):
        folders(tmp_path, "train")


@pytest.mark.slow
def test_near_duplicates_leave_train_for_valid_and_test_and_valid_for_test(
    tiny_ferplus: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_ferplus, tmp_path / "d"))
    train, valid, test = (root / f"FER2013{s}" for s in ("Train", "Valid", "Test"))
    rng = np.random.default_rng(5)
    scene = cv2.resize(rng.integers(0, 255, (6, 6)).astype(np.uint8), (48, 48))
    brighter = np.clip(scene.astype(int) + 9, 0, 255).astype(np.uint8)
    cv2.imwrite(str(test / "test00000.png"), scene)
    cv2.imwrite(str(valid / "valid00000.png"), scene)
    cv2.imwrite(str(train / "train00000.png"), scene)
    cv2.imwrite(str(train / "train00001.png"), brighter)
    found = find_near_duplicates(opened(root, "ferplus"), tmp_path)
    kinds = {name: kind for name, _, kind in found["train"]}
    assert kinds["train00000.png"] == "exact"
    assert kinds["train00001.png"] == "near"
    assert ("valid00000.png", "test/test00000.png", "exact") in found["valid"]
    assert "test" not in found
    assert find_near_duplicates(opened(root, "ferplus"), tmp_path) == found, "kept and read again"
    assert (tmp_path / "twins-train.csv").read_text().startswith("name,twin,kind\n")
    # Data that changed under the same names is looked at again.
    for i in range(2, 10):
        shutil.copy(test / f"test{i:05d}.png", train / f"train{i:05d}.png")
    assert (
        len(find_near_duplicates(opened(root, "ferplus"), tmp_path)["train"])
        == len(found["train"]) + 8
    )


def test_perceptual_hash_ignores_brightness_and_tells_images_apart() -> None:
    rng = np.random.default_rng(1)
    one, two = (cv2.resize(rng.integers(0, 200, (6, 6)).astype(np.uint8), (48, 48)) for _ in "ab")
    assert bin(perceptual_hash(one) ^ perceptual_hash(one + 20)).count("1") <= 2
    assert bin(perceptual_hash(one) ^ perceptual_hash(two)).count("1") > 12
