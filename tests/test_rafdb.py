"""An engineer's walk: a made-up RAF-DB of the published layout, by the commands of its page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from distill.data.labels import RAFDB
from distill.data.layouts import list_images
from edge.base.commands import MODULES
from edge.base.errors import DataError
from support.command import Done
from support.paths import ROOT

PAGE = ROOT / "distill" / "RAF-DB.md"
TRAIN, TEST = 770, 140
TINY = {
    "crop": {"size": 32, "channels": 3,
             "template": [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]},
    "student": {"widths": [8, 12, 16, 16], "depths": [1, 1, 1], "width": 16, "heads": 2},
    "training": {"epochs": 3, "batch": 32, "learning_rate": 0.01, "average": 0.9},
}  # fmt: skip


def draw(number: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of 100x100 of one of seven colours, of noise that no other has."""
    colour = np.array([number & 1, number >> 1 & 1, number >> 2 & 1]) * 150 + 50
    noise = cv2.resize(rng.normal(0, 40, (10, 10, 3)), (100, 100), interpolation=cv2.INTER_CUBIC)
    return np.asarray((colour + noise).clip(0, 255), dtype=np.uint8)


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The holders' layout, of generated pictures."""
    root = tmp_path_factory.mktemp("raf") / "RAF-DB"
    folder = root / "basic" / "Image" / "aligned"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for split, count, digits in (("train", TRAIN, 5), ("test", TEST, 4)):
        for i in range(count):
            name = f"{split}_{i + 1:0{digits}d}"
            cv2.imwrite(str(folder / f"{name}_aligned.jpg"), draw(i % 7 + 1, rng))
            rows.append(f"{name}.jpg {i % 7 + 1}\n")
    labels = root / "basic" / "EmoLabel" / "list_patition_label.txt"
    labels.parent.mkdir()
    labels.write_text("".join(rows))
    return root


def page_commands(first: str) -> list[list[str]]:
    """The block of the page that begins with this text, as words."""
    blocks = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    block = next(b for b in blocks if first in b)
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture
def follow(holders: Path, tmp_path: Path, command: Callable[..., Done]) -> Callable[..., Done]:
    """Run a command of the page on the made-up data, in a folder of its own, by a small recipe."""
    recipe = yaml.safe_load((ROOT / "distill/recipes/rafdb.yaml").read_text())
    assert recipe["crop"]["channels"] == 3
    small = tmp_path / "rafdb.yaml"
    small.write_text(yaml.safe_dump({**recipe, **TINY}))

    def run(words: list[str], *more: str) -> Done:
        places = {"distill/recipes/rafdb.yaml": str(small), "RAF-DB": str(holders)}
        script, *rest = [
            str(tmp_path / word) if word.startswith("runs/") else places.get(word, word)
            for word in words
        ]
        done = command(MODULES[script], *rest, *more)
        assert done.code == 0, done.err
        return done

    return run


@pytest.mark.slow
@pytest.mark.process
def test_the_page_leads_from_data_to_counts(
    detector_file: Path, follow: Callable[..., Done], tmp_path: Path
) -> None:
    train, evaluate, export, node = page_commands("export-model")
    assert "best checkpoint: " in follow(train).out
    scores = follow(evaluate).out
    assert f"accuracy and mean class accuracy  n={TEST} excluded=0" in scores
    assert "majority-8" not in scores
    # A network this small, taught for seconds, may stray further from float than a node's may.
    follow(export, "--force")
    bundle = tmp_path / "runs" / "rafdb-bundle"
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["labels"] == list(RAFDB)
    assert description["input"]["colour"] == "bgr"
    assert {entry["protocol"] for entry in description["scores"]} == {"labels"}
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "for non-commercial research alone, as RAF-DB's terms say" in card
    assert "publish marks of age, race and gender" in card
    assert "carry no such marks" not in card
    payloads = [json.loads(line)["payload"] for line in follow(node).out.splitlines()]
    counts = [payload["counts"] for payload in payloads if "counts" in payload]
    assert counts
    assert set(RAFDB) <= set(counts[0])


@pytest.mark.slow
@pytest.mark.process
def test_the_protocol_of_papers_learns_from_all_and_takes_the_last_epoch(
    detector_file: Path, follow: Callable[..., Done], tmp_path: Path
) -> None:
    train, evaluate = page_commands("--train-on-all")
    done = follow(train)
    assert "no validation split is taken out of train: nothing is chosen" in done.out
    assert f"{TRAIN} images, " in done.out
    assert "last epoch's checkpoint: " in done.out
    out = tmp_path / "runs" / "rafdb-all"
    log = (out / "log.csv").read_text().splitlines()
    assert log[0].split(",")[3:5] == ["valid_accuracy", "valid_loss"]
    assert log[-1].split(",")[3:5] == ["", ""]
    assert (out / "best.pt").read_bytes() == (out / "epoch-002.pt").read_bytes()
    assert f"n={TEST}" in follow(evaluate).out
    first = [word for word in page_commands("export-model")[0] if word != "runs/rafdb"]
    start = tmp_path / "runs" / "rafdb-all" / "best.pt"
    told = follow([*first, "runs/next", "--start", str(start)]).out
    assert f"{start} learned from all of train" in told
    assert "the best epoch is chosen by pictures that it knows" in told
    exported = follow(
        ["export-model", "runs/rafdb-all/best.pt", "--data", "RAF-DB", "--layout", "rafdb",
         "--out", "runs/b"], "--force",
    )  # fmt: skip
    assert "this network, or its start, learned from all of train (--train-on-all)" in exported.err
    assert "was chosen by nothing" in (tmp_path / "runs" / "b" / "MODEL_CARD.md").read_text()


def kaggle(holders: Path, root: Path) -> Path:
    """The same pictures as Kaggle has them: a folder a label, no list."""
    base = holders / "basic"
    for row in (base / "EmoLabel" / "list_patition_label.txt").read_text().splitlines():
        name, number = row.split()
        stem, split = name.removesuffix(".jpg"), name.split("_")[0]
        folder = root / "DATASET" / split / number
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / "Image" / "aligned" / f"{stem}_aligned.jpg", folder)
    return root


def test_both_published_forms_have_the_same_splits_and_labels(
    holders: Path, tmp_path: Path
) -> None:
    from distill.data.votes import read_rafdb

    other = kaggle(holders, tmp_path / "kaggle")
    for all_of_it in (False, True):
        one, two = (list_images(root, "rafdb", all_of_it).images for root in (holders, other))
        assert {split: [name for name, _ in rows] for split, rows in one.items()} == {
            split: [name for name, _ in rows] for split, rows in two.items()
        }
        assert ("valid" in one) != all_of_it
        for split in one:
            tables = [
                read_rafdb(root, split, images[split], all_of_it)[0]
                for root, images in ((holders, one), (other, two))
            ]
            votes = [{name: row.votes for name, row in table.items()} for table in tables]
            assert votes[0] == votes[1]
    assert list_images(other / "DATASET", "rafdb").images["test"]


def test_an_archive_that_is_not_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "basic" / "Image").mkdir(parents=True)
    (tmp_path / "basic" / "Image" / "aligned.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"aligned\.zip is packed; unpack it there"):
        list_images(tmp_path, "rafdb")
