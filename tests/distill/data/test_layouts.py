"""What people's folders hold besides pictures: each is named before anything is computed."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.data_set import DataSet, open_data
from distill.data.layouts import NAMED, list_images
from edge.base.errors import DataError
from support.examples import examples

RNG = np.random.default_rng(0)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = cv2.resize(RNG.integers(0, 255, (6, 6)).astype(np.uint8), (40, 40))
    ok, data = cv2.imencode({"": ".jpg", ".jfif": ".jpg"}.get(path.suffix, path.suffix), noise)
    assert ok
    path.write_bytes(data.tobytes())
    return path


def plain(root: Path, classes: tuple[str, ...] = ("calm", "glad"), count: int = 2) -> Path:
    for split in ("train", "valid", "test"):
        for label in classes:
            for i in range(count):
                picture(root / split / label / f"{i}.jpg")
    return root


def opened(root: Path, *needs: str, layout: str = "folders", **options: Any) -> tuple[DataSet, str]:
    said: list[str] = []
    crops = root.with_name(root.name + ".crops")
    return open_data(root, layout, crops, said.append, needs=needs, **options), "\n".join(said)


def names(data: DataSet, split: str = "train") -> list[str]:
    return [name for name, _ in data.images[split]]


@pytest.mark.parametrize(
    "hidden",
    [".ipynb_checkpoints", "@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "__pycache__", ".git"],
)
def test_hidden_folders_are_no_classes_whatever_they_hold(tmp_path: Path, hidden: str) -> None:
    root = plain(tmp_path / "d")
    picture(root / "train" / hidden / "0.jpg")
    data, said = opened(root, "train")
    assert data.votes("train")[1] == ("calm", "glad")
    assert f"left out, hidden: 1 (train/{hidden})" in said


def test_resource_forks_beside_pictures_are_left_out(tmp_path: Path) -> None:
    root = plain(tmp_path / "d")
    (root / "train" / "calm" / "._0.jpg").write_bytes(b"\0\5\x16\7 Mac OS X")
    data, said = opened(root, "train")
    assert names(data) == ["calm/0.jpg", "calm/1.jpg", "glad/0.jpg", "glad/1.jpg"]
    assert "hidden: 1 (train/calm/._0.jpg)" in said
    for name in ("#1.jpg", "@somebody.jpg", "__2.jpg"):
        picture(root / "train" / "calm" / name)
    assert {"calm/#1.jpg", "calm/@somebody.jpg", "calm/__2.jpg"} <= set(names(opened(root)[0]))


def test_everything_that_is_left_out_is_named_with_its_number(tmp_path: Path) -> None:
    root = plain(tmp_path / "d")
    calm = root / "train" / "calm"
    for name in ("a.tif", "b.jfif", "c.webp", "d.bmp", "e.PNG"):
        picture(calm / name.lower()).rename(calm / name)
    picture(calm / "pupil-1" / "left" / "0.jpg")
    picture(calm / "2.jpg").rename(calm / "2")
    (calm / "3.gif").write_bytes(b"GIF89a")
    (calm / "4.heic").write_bytes(b"\0\0\0\x18ftypheic")
    os.mkfifo(calm / "pipe")
    (calm / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    picture(root / "train" / "stray.jpg")
    picture(root / "val" / "calm" / "0.jpg")
    (root / "train" / "empty").mkdir()
    data, said = opened(root, "train")
    assert sum(name.startswith("calm") for name in names(data)) == 7, "all five formats are read"
    assert "in deeper folders: 1 (train/calm/pupil-1/left/0.jpg)" in said
    assert ": 3 (train/calm/2, train/calm/3.gif, train/calm/4.heic)" in said
    assert "no pictures: 2 (train/calm/Thumbs.db, train/calm/pipe)" in said
    assert "outside a class folder: 1 (train/stray.jpg)" in said
    assert "no split (train, valid, test): 1 (val)" in said
    assert "which are no classes: 1 (train/empty)" in said
    assert data.votes("train")[1] == ("calm", "glad")


def test_many_names_are_cut_at_twenty_and_counted(tmp_path: Path) -> None:
    root = plain(tmp_path / "d")
    for i in range(NAMED + 5):
        (root / "train" / "calm" / f"{i:03d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"d: 25 of 37 pictures cannot") as caught:
        opened(root, "train")
    assert "019.jpg is empty and 5 more; all are listed in " in str(caught.value)
    assert "020.jpg" in (tmp_path / "d.crops" / "checked.json").read_text()


def spoil(root: Path) -> list[str]:
    """Break four pictures of train, each in its own way."""
    calm = root / "train" / "calm"
    for i in range(5):
        picture(calm / f"bad{i}.jpg")
    whole = (calm / "bad0.jpg").read_bytes()
    (calm / "bad0.jpg").write_bytes(whole[: len(whole) // 2])
    (calm / "bad1.jpg").unlink()
    (calm / "bad1.jpg").symlink_to("/nonexistent/annex-key")
    os.rename(calm / "bad2.jpg", os.fsencode(calm) + b"/Ren\xe9e.jpg")
    (calm / "bad3.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (calm / "bad4.jpg").write_bytes(b"")
    return [
        "train/calm/bad0.jpg is a JPEG that is cut short",
        "train/calm/bad1.jpg is a link to a file that is not there, /nonexistent/annex-key",
        r"train/calm/Ren\xe9e.jpg has a name that is not UTF-8",
        "train/calm/bad3.jpg is a pointer of Git LFS",
        "train/calm/bad4.jpg is empty",
    ]


def test_all_bad_files_of_a_data_set_are_one_line(tmp_path: Path) -> None:
    root = plain(tmp_path / "d")
    reasons = spoil(root)
    for _ in range(2):  # the second time from what was kept
        with pytest.raises(DataError, match=r"5 of 17 pictures cannot .* by --skip-bad") as caught:
            opened(root, "train")
        assert all(reason in str(caught.value) for reason in reasons)
        assert "\n" not in str(caught.value)


def test_bad_files_are_skipped_and_listed_on_demand(tmp_path: Path) -> None:
    root = plain(tmp_path / "d")
    reasons = spoil(root)
    data, said = opened(root, "train", skip_bad=True)
    assert all(f"skipped: {reason}" in said for reason in reasons)
    assert "skipped: 5 of 17 pictures" in said
    assert names(data) == ["calm/0.jpg", "calm/1.jpg", "glad/0.jpg", "glad/1.jpg"]
    assert data.votes("train")[0].sum() == 4


def test_a_row_may_name_a_picture_that_is_skipped(tmp_path: Path) -> None:
    root = tmp_path / "d"
    folder = root / "FER2013Train"
    rows = []
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name)
        rows.append(f'{name},"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1')
    (folder / "label.csv").write_text("\n".join(rows))
    (folder / "b.png").write_bytes(b"")
    (folder / "c.png").unlink()
    (folder / "c.png").symlink_to("nowhere")
    data, _ = opened(root, "train", layout="ferplus", skip_bad=True)
    assert names(data) == ["a.png"]
    assert data.votes("train")[0].shape == (1, 10)


def test_label_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = tmp_path / "d"
    picture(root / "FER2013Train" / "a.png")
    row = 'a.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1\n'
    (root / "FER2013Train" / "label.csv").write_text(row, encoding="utf-8-sig")
    (root / "fer2013_original_labels.csv").write_text("a.png,train,fear\n", encoding="utf-8-sig")
    assert opened(root, "train", layout="ferplus")[0].votes("train")[0][0, 0] == 9
    assert opened(root, "train", layout="fer2013")[0].votes("train")[0].sum() == 1


LETTERS = st.text(
    st.characters(codec="utf-8", categories=("Ll", "Lu", "Lo", "Mn")), min_size=1, max_size=9
)


@settings(max_examples=examples(100))
@given(name=LETTERS)
def test_a_class_is_one_however_its_letters_are_composed(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    root = tmp_path_factory.mktemp("d") / "d"
    for split, label in (
        ("train", unicodedata.normalize("NFD", f"x{name}")),
        ("valid", unicodedata.normalize("NFC", f"x{name}")),
    ):
        folder = root / split / label
        folder.mkdir(parents=True)
        (folder / f"{label}.jpg").write_bytes(b"")
    images = list_images(root, "folders").images
    assert [n for n, _ in images["train"]] == [n for n, _ in images["valid"]]


def test_a_decomposed_class_of_train_is_the_composed_one_of_valid(tmp_path: Path) -> None:
    root = plain(tmp_path / "d", ("calm", "fr\u00f6hlich"))
    (root / "train" / "fr\u00f6hlich").rename(root / "train" / "fro\u0308hlich")
    data, _ = opened(root, "train", "valid", "test")
    assert data.votes("train")[1] == data.votes("valid")[1] == ("calm", "fr\u00f6hlich")


def test_labels_are_checked_before_a_picture_is_opened(tmp_path: Path) -> None:
    for classes, words in (
        (("calm",), "has one class, 'calm'; give two or more"),
        (("calm", "n" * 70), "has 70 letters, a bundle takes 64; shorten it"),
        (("calm", "other"), "'other' is reserved"),
    ):
        root = plain(tmp_path / classes[-1] / "d", classes)
        (root / "train" / "calm" / "0.jpg").write_bytes(b"")
        with pytest.raises(DataError, match=words):
            opened(root, "train", "valid")


def test_a_split_that_is_not_there_is_told_of_beside_any_others(tmp_path: Path) -> None:
    picture(tmp_path / "d" / "test" / "calm" / "0.png")
    data, _ = opened(tmp_path / "d")
    for split in ("train", "valid"):
        with pytest.raises(DataError, match=f"no images of split '{split}', only of test"):
            data.demand(split)


def test_without_train_the_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    root = plain(tmp_path / "d")
    for split in ("train", "valid"):
        (root / split).rename(tmp_path / split)
    data, _ = opened(root, "test")
    assert data.votes("test")[1] == ("calm", "glad")
    with pytest.raises(DataError, match="no images of split 'train', only of test"):
        opened(root, "train")
