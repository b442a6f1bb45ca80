"""Scores, plots and robustness, on a network that knows the answer and on files as users have them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from yaml import safe_load

from distill.data.crops import Crops
from distill.data.splits import Split
from distill.evaluation import plots, robustness
from distill.evaluation.evaluate import _open, build_parser
from distill.evaluation.metrics import score
from distill.evaluation.report import format_confusion, report
from distill.models import store
from distill.models.build import build_student
from distill.models.checkpoint import state
from distill.models.predict import open_predictor
from distill.recipe import Recipe
from edge.base.errors import DataError
from edge.inference.bundle import SHIPPED, load_bundle
from support.command import Done
from support.paths import ROOT
from support.trained import RECIPE


def two_shades(count: int = 60) -> Split:
    """Bright upper halves are class 0, bright lower ones class 1."""
    label = np.arange(count) % 2
    pixels = np.full((count, 1, 64, 64), 60, np.uint8)
    for image, k in zip(pixels, label, strict=True):
        image[:, 32 * k : 32 * k + 32] = 200
    votes = np.eye(2, dtype=np.int64)[label] * 10
    names = [f"{i}.png" for i in range(count)]
    return Split(Crops(pixels, names, np.ones(count, dtype=bool)), votes, ("up", "down"))


TEMPLATE = load_bundle().crop.template


def halves(pixels: np.ndarray) -> np.ndarray:
    """A classifier by mean brightness of the halves; it knows shape, not size or light."""
    top, bottom = (pixels[:, :, rows].mean(axis=(1, 2, 3)) for rows in (slice(32), slice(32, 64)))
    p = 1 / (1 + np.exp(np.clip((bottom - top) / 10, -30, 30)))
    return np.stack([p, 1 - p], axis=1)


def written(path: Path, **changes: object) -> Path:
    """A checkpoint of a student of three classes, with random weights."""
    recipe = Recipe.model_validate(safe_load(RECIPE))
    network = build_student(recipe, 3)
    content = state(network, recipe, ("calm", "cross", "glad"), 0, 0.5)
    store.save(path, content | changes)
    return path


def class_folders(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for label in ("calm", "cross", "glad"):
            (root / split / label).mkdir(parents=True)
            for i in range(3):
                image = cv2.resize(rng.integers(0, 256, (6, 6)).astype(np.uint8), (48, 48))
                cv2.imwrite(str(root / split / label / f"{i}.png"), image)
    return root


@pytest.fixture
def scored(
    detector_file: Path, tmp_path: Path, command: Callable[..., Done]
) -> Callable[..., tuple[Done, list[dict[str, Any]]]]:
    """Score a checkpoint on class folders; what was said, and what was kept."""

    def run(checkpoint: Path, data: Path, *more: str) -> tuple[Done, list[dict[str, Any]]]:
        kept = tmp_path / "s.json"
        done = command(
            "distill.evaluation.evaluate", "--checkpoint", checkpoint, "--data", data,
            *("--layout", "folders", "--json", kept, *more),
        )  # fmt: skip
        assert done.code == 0, done.err
        return done, json.loads(kept.read_text())

    return run


@pytest.mark.slow
def test_what_was_scored_is_kept_whatever_lies_beside_it(
    scored: Callable[..., tuple[Done, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    data, best = class_folders(tmp_path / "d"), written(tmp_path / "run" / "best.pt")
    (data / "valid" / "calm").rename(data / "valid" / "bored")
    whole = best.read_bytes()
    (best.parent / "epoch-001.pt").write_bytes(whole[: len(whole) // 2])
    done, entries = scored(best, data, "--split", "test")
    assert "calibrated: not, since" in done.out
    assert "class 'bored' is not among train's" in done.out
    assert {"calibrated": None} in entries
    assert "not scored beside the chosen one: " in done.err
    assert "epoch-001.pt holds no weights alone, or is damaged" in done.err
    (best.parent / "epoch-002.pt").write_bytes(whole)
    other = Recipe.model_validate(safe_load(RECIPE.replace("size: 32", "size: 40")))
    written(best.parent / "epoch-003.pt", recipe=other.model_dump())
    done, entries = scored(best, data, "--split", "test")
    assert "epoch-003.pt is another run's" in done.err
    last = next(entry for entry in entries if "last_epochs" in entry)
    assert last["last_epochs"] == ["epoch-002"]
    assert last["accuracies"] == pytest.approx([entries[0]["accuracy"]], abs=1e-5)


@pytest.mark.slow
def test_a_network_that_knows_the_validation_pictures_is_told_of(
    scored: Callable[..., tuple[Done, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    data = class_folders(tmp_path / "d")
    said = "learned from all of train (--train-on-all), or its start did: where valid is a part of"
    assert said not in scored(written(tmp_path / "a" / "best.pt"), data)[0].out
    all_of_it = written(tmp_path / "b" / "best.pt", valid_accuracy=None)
    for split in ("valid", "test"):  # the temperature is fitted on valid
        assert f"{all_of_it} {said}" in scored(all_of_it, data, "--split", split)[0].out
    shutil.rmtree(data / "valid")
    assert said not in scored(all_of_it, data, "--split", "test")[0].out


@pytest.mark.slow
def test_a_validation_split_that_is_all_near_duplicates_of_test_is_told_of(
    scored: Callable[..., tuple[Done, list[dict[str, Any]]]],
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    data, best = class_folders(tmp_path / "d"), written(tmp_path / "run" / "best.pt")
    shutil.rmtree(data / "valid")
    shutil.copytree(data / "test", data / "valid")
    told = "all 9 images of valid have a near-duplicate in the test split"
    done, entries = scored(best, data, "--split", "test")
    assert f"calibrated: not, since {told}" in done.out
    assert {"calibrated": None} in entries
    options = ["--data", data, "--layout", "folders"]
    for module, *more in (
        ("distill.evaluation.evaluate", "--checkpoint", best, "--split", "valid"),
        ("export.model", best, "--out", tmp_path / "bundle"),
    ):
        done = command(module, *more, *options)
        assert done.code == 1
        assert told in done.last


def test_a_seed_that_is_no_number_is_refused_before_anything_is_scored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--bundle", "b", "--data", "d", "--layout", "folders", "--seed"]
    with pytest.raises(SystemExit):
        build_parser().parse_args([*words, "-1"])
    with pytest.raises(SystemExit):
        build_parser().parse_args([*words, "x"])
    assert "x is not a whole number from 0" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [3, 40])
def test_classes_without_an_image_are_named_beside_the_mean_over_the_others(classes: int) -> None:
    labels = ("calm", "cross", *(f"the {k}th class" for k in range(2, classes)))
    split = two_shades()
    votes = np.pad(split.votes, ((0, 0), (0, classes - 2)))
    p = np.pad(halves(split.crops.pixels), ((0, 0), (0, classes - 2)))
    text, _ = report(Split(split.crops, votes, labels), p, "folders", "test", "int8")
    said = " ".join(text.split())
    assert "no image of the 2th class" in said
    assert "mean class accuracy is over the other 2" in said
    assert max(map(len, text.splitlines())) <= 80
    text, _ = report(split, halves(split.crops.pixels), "folders", "test", "int8")
    assert "no image of" not in text


def test_a_bundle_in_an_ensemble_answers_without_its_counting_constants(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 64, 64)).astype(np.uint8)
    words = ["--data", "d", "--layout", "ferplus", "--checkpoint", str(SHIPPED)]
    alone = _open(build_parser().parse_args(words)).predict(pixels)
    both = _open(build_parser().parse_args([*words, "--checkpoint", str(SHIPPED)])).predict(pixels)
    deployed = open_predictor(SHIPPED, "", (), "fp32").predict(pixels)
    learned = open_predictor(SHIPPED, "", (), "fp32", learned=True).predict(pixels)
    assert np.allclose(alone, deployed, atol=1e-6)
    assert np.allclose(both, learned, atol=1e-6), "as a student learns from them"
    assert not np.allclose(learned, deployed, atol=1e-3)


def test_robustness_measures_every_change_at_every_strength() -> None:
    rows = robustness.measure(two_shades(), TEMPLATE, halves, lambda line: None)
    assert rows[0] == {"change": "none", "strength": None, "unit": "", "accuracy": 1.0, "n": 60}
    assert len(rows) == 1 + sum(len(change.strengths) for change in robustness.CHANGES)
    assert all(row["accuracy"] == 1.0 for row in rows if row["change"] in ("blur", "face size"))
    text = robustness.table(rows)
    assert "16: 100.0" in text
    assert f"mean of {len(rows) - 1} rows" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_crop_is_not_measured_at_sides_that_are_no_smaller_than_its_own() -> None:
    whole = two_shades()
    pixels = whole.crops.pixels[:, :, ::2, ::2]
    small = Split(Crops(pixels, whole.crops.names, whole.crops.found), whole.votes, whole.labels)
    landmarks = [[x / 2, y / 2] for x, y in TEMPLATE]
    rows = robustness.measure(
        small, landmarks, lambda p: halves(p.repeat(2, axis=2).repeat(2, axis=3)), lambda line: None
    )
    assert [row["strength"] for row in rows if row["change"] == "face size"] == [24, 16]
    assert [row["strength"] for row in rows if row["change"] == "camera"] == [32, 24, 16, 12]


def test_what_needs_landmarks_is_measured_on_images_with_a_found_face_and_the_rest_is_told() -> (
    None
):
    split, said = two_shades(), list[str]()
    split.crops.found[:15] = False
    split.votes[20:30] = 0
    rows = robustness.measure(split, TEMPLATE, halves, said.append)
    assert rows[0]["n"] == 50
    by_landmarks = {change.name for change in robustness.CHANGES if change.by_landmarks}
    assert by_landmarks == {"yaw", "mask", "sunglasses"}
    assert {row["n"] for row in rows if row["change"] in by_landmarks} == {35}
    assert {row["n"] for row in rows if row["change"] not in by_landmarks} == {50}
    assert "15 of 50 images have no found face: without yaw, mask, sunglasses" in said[0]
    split.crops.found[:] = False
    rows = robustness.measure(split, TEMPLATE, halves, said.append)
    assert not by_landmarks & {row["change"] for row in rows}
    assert robustness.table(rows).count("no face found") == 3


def test_the_worst_row_is_the_one_that_loses_most_against_its_own_images() -> None:
    rows = [
        {"change": "none", "strength": None, "unit": "", "accuracy": 0.8, "n": 10},
        {"change": "blur", "strength": 3, "unit": "px", "accuracy": 0.5, "plain": 0.8, "n": 10},
        {"change": "mask", "strength": 0.5, "unit": "", "accuracy": 0.55, "plain": 0.9, "n": 5},
        {"change": "old", "strength": 1, "unit": "", "accuracy": 0.6},
    ]
    assert robustness.worst(rows)["change"] == "mask"
    assert robustness.mean_accuracy(rows) == pytest.approx(0.55)
    assert robustness.lost(rows[3], rows) == pytest.approx(0.2)


@pytest.mark.parametrize("change", robustness.CHANGES, ids=lambda change: change.name)
def test_each_change_changes_more_with_its_strength(change: robustness.Change) -> None:
    rng = np.random.default_rng(0)
    smooth = [cv2.GaussianBlur(rng.normal(128, 400, (64, 64)), (0, 0), 3) for _ in range(6)]
    pixels = np.stack(smooth)[:, None].clip(0, 255).astype(np.uint8)
    before = pixels.copy()
    moved = []
    for strength in change.strengths:
        worse = robustness.corrupted(pixels, change, strength, TEMPLATE)
        assert worse.dtype == np.uint8
        assert worse.shape == pixels.shape
        assert np.array_equal(worse, robustness.corrupted(pixels, change, strength, TEMPLATE)), (
            "repeats"
        )
        moved.append(np.abs(worse.astype(float) - pixels).mean())
    assert moved == sorted(moved)
    assert moved[0] > 0
    assert np.array_equal(pixels, before)


def test_occlusion_covers_the_stated_area_and_rotation_the_stated_angle() -> None:
    white = np.full((8, 1, 64, 64), 255, np.uint8)
    by_name = {change.name: change for change in robustness.CHANGES}
    covered = robustness.corrupted(white, by_name["occlusion"], 0.2, TEMPLATE)
    assert (covered == 128).mean(axis=(1, 2, 3)) == pytest.approx(np.full(8, 0.2), abs=0.01)
    line = np.zeros((2, 1, 64, 64), np.uint8)
    line[:, :, 31:33] = 255
    for image, sign in zip(
        robustness.corrupted(line, by_name["rotation"], 20, TEMPLATE), (1, -1), strict=True
    ):
        y, x = np.nonzero(image[0] > 128)
        slope = np.polyfit(x, y, 1)[0]
        assert abs(np.degrees(np.arctan(slope))) == pytest.approx(20, abs=1)
        assert np.sign(slope) in (sign, -sign)


@pytest.mark.slow
def test_plots_are_images(tmp_path: Path) -> None:
    split = two_shades()
    p = halves(split.crops.pixels)
    rows = robustness.measure(split, TEMPLATE, halves, lambda line: None)
    scores = score(p, split.votes, split.labels, "majority-8", rounds=0)
    plots.confusion(tmp_path / "c.png", scores.confusion, split.labels, "t")
    plots.reliability(
        tmp_path / "r.png", p.max(axis=1), np.ones(60, dtype=bool), np.full(60, 0.8), "t"
    )
    plots.robustness(tmp_path / "b.png", rows, "t")
    (tmp_path / "log.csv").write_text("epoch,loss,valid_accuracy\n0,1.5,0.5\n1,1.0,0.7\n")
    plots.training(tmp_path / "t.png", tmp_path / "log.csv")
    for name in "crbt":
        image = cv2.imread(str(tmp_path / f"{name}.png"))
        assert image.shape[0] > 400
        assert image.std() > 5, "not an empty sheet"
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not a log of distill-train"):
        plots.training(tmp_path / "t.png", tmp_path / "log.csv")
    text = format_confusion(scores, split.labels)
    assert text.splitlines()[1].split() == ["up", "30", "0"]
    assert max(map(len, text.splitlines())) <= 80


@pytest.fixture(scope="module")
def eight_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER+'s layout with noise for images: enough for a shipped bundle to be scored on."""
    root = tmp_path_factory.mktemp("eight") / "ferplus"
    rng = np.random.default_rng(0)
    original = ["name,split,label"]
    for split, count in (("Train", 8), ("Valid", 8), ("Test", 24)):
        folder = root / f"FER2013{split}"
        folder.mkdir(parents=True)
        rows = []
        for i in range(count):
            name = f"{split.lower()}{i:03d}.png"
            cv2.imwrite(str(folder / name), rng.integers(0, 256, (48, 48)).astype(np.uint8))
            votes = [10 if k == i % 8 else 0 for k in range(10)]
            rows.append(f'{name},"(0, 0, 48, 48)",{",".join(map(str, votes))}')
            original.append(f"{name},{split},{('angry', 'happy', 'neutral')[i % 3]}")
        (folder / "label.csv").write_text("\n".join(rows) + "\n")
    (root / "fer2013_original_labels.csv").write_text("\n".join(original) + "\n")
    return root


@pytest.mark.slow
def test_a_bundle_is_scored_with_plots_and_without_reading_the_votes(
    detector_file: Path, eight_classes: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    options = ["--bundle", SHIPPED, "--data", eight_classes, "--layout", "ferplus"]
    done = command(
        "distill.evaluation.evaluate",
        *options,
        *("--predictions", tmp_path / "p.csv", "--json", tmp_path / "s.json"),
        *("--plots", tmp_path / "plots", "--robustness"),
    )
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines()[1:])) <= 104
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "confusion.png",
        "reliability.png",
        "robustness.png",
    }
    entries = json.loads((tmp_path / "s.json").read_text())
    assert entries[0]["protocol"] == "majority-8"
    assert entries[-1]["robustness"][0]["accuracy"] == entries[0]["accuracy"]
    kinds = next(entry["domains"] for entry in entries if "domains" in entry)
    assert sum(kind["n"] for kind in kinds.values()) == entries[0]["n"]
    assert "accuracy by kind of picture" in done.out

    label = eight_classes / "FER2013Test" / "label.csv"
    before = label.read_text()
    try:
        label.write_text(
            "".join(
                f'{row.split(",")[0]},"(0, 0, 48, 48)",{",".join("0" * 10)}\n'
                for row in before.splitlines()
            )
        )
        done = command(
            "distill.evaluation.evaluate", *options, "--predictions", tmp_path / "blank.csv"
        )
        assert done.code == 1
        assert "has a label to score against" in done.last
    finally:
        label.write_text(before)
    assert (tmp_path / "blank.csv").read_text() == (tmp_path / "p.csv").read_text()
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 24
    assert sum(float(v) for k, v in rows[0].items() if k != "name") == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_the_validation_split_is_scored_without_near_duplicates_of_the_test_split(
    detector_file: Path, eight_classes: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    root = Path(shutil.copytree(eight_classes, tmp_path / "ferplus"))
    shutil.copy(root / "FER2013Test" / "test003.png", root / "FER2013Valid" / "valid005.png")
    done = command(
        "distill.evaluation.evaluate", "--bundle", SHIPPED, "--data", root, "--layout", "ferplus",
        *("--split", "valid", "--json", tmp_path / "s.json", "--predictions", tmp_path / "p.csv"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "left out: 1 images of valid with a near-duplicate" in done.err
    entries = json.loads((tmp_path / "s.json").read_text())
    assert [entry["n"] for entry in entries[:2]] == [7, 7]
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 8, "all are predicted"
    assert "calibrated: temperature" in done.out
    assert "fitted on 7 images of valid" in done.out
    kept = entries[-1]["calibrated"]
    assert kept["nll"] < entries[0]["nll"], "fitted on these very images"


SCORER = ROOT.parent / "shared" / "tools" / "score_ferplus.py"


@pytest.mark.process
@pytest.mark.skipif(not SCORER.is_file(), reason="needs ../shared/tools, which a clone has not")
def test_another_scorer_gives_the_same_figures(
    detector_file: Path, eight_classes: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    done = command(
        "distill.evaluation.evaluate",
        *("--bundle", SHIPPED, "--data", eight_classes, "--layout", "ferplus"),
        *("--json", tmp_path / "own.json", "--predictions", tmp_path / "p.csv"),
    )  # fmt: skip
    assert done.code == 0, done.err
    theirs = tmp_path / "theirs.json"
    call = [sys.executable, SCORER, tmp_path / "p.csv", eight_classes, "--json", theirs]
    subprocess.run(call, check=True, capture_output=True)
    entries = json.loads((tmp_path / "own.json").read_text())
    for own, protocol in zip(entries[:2], "AB", strict=True):
        other = json.loads(theirs.read_text())[protocol]
        for name, theirs_name in (
            *((same, same) for same in ("n", "excluded", "accuracy", "mean_class_accuracy")),
            *(("macro_f1", "macro_f1"), ("ece", "ece15"), ("nll", "nll_soft")),
        ):
            assert own[name] == pytest.approx(other[theirs_name], abs=1e-5), name
        assert own["accuracy_interval"] == pytest.approx(other["accuracy_ci95"])
        assert own["recall"] == pytest.approx({k: v[0] for k, v in other["recall"].items()})


def test_the_same_images_under_the_challenges_labels(
    detector_file: Path, eight_classes: Path, command: Callable[..., Done]
) -> None:
    from distill.data.data_set import crops_root, open_data
    from distill.data.splits import join, open_crops

    data = open_data(eight_classes, "fer2013", crops_root(eight_classes, None), print)
    split = join(data, "test", open_crops(data, load_bundle(SHIPPED).crop))
    assert split.labels == (
        "anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral",
    )  # fmt: skip
    assert split.votes.sum(axis=0).tolist() == [8, 0, 0, 8, 0, 0, 8]
    done = command(
        "distill.evaluation.evaluate",
        "--bundle",
        SHIPPED,
        "--data",
        eight_classes,
        "--layout",
        "fer2013",
    )
    assert done.code == 0, done.err
    assert "scored over the 7 classes that model and data share: neutral, happiness" in done.out
    assert "not asked for: contempt, which the data lack" in done.out
    path = eight_classes / "fer2013_original_labels.csv"
    before = path.read_text()
    try:
        path.write_text(before.replace("test001.png,Test,happy", "test001.png,Test,bored"))
        with pytest.raises(DataError, match=r"labels\.csv line \d+: expected a name"):
            data.votes("test")
    finally:
        path.write_text(before)


def test_probabilities_do_not_depend_on_the_batch() -> None:
    """The last, smaller batch of a split answers as a full one does."""
    from distill.models.logits import predict_student
    from distill.models.student import Student, StudentConfig

    torch.manual_seed(0)
    student = Student(StudentConfig(classes=8)).eval()
    faces = np.random.default_rng(0).integers(0, 256, (5, 1, 64, 64)).astype(np.uint8)
    assert np.allclose(
        predict_student(student, faces, 2), predict_student(student, faces, 5), atol=1e-4
    )
