"""A tiny student trained for real on generated data; killed and resumed it ends the same."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from distill.data.augment import corrupt, random_affine, warp
from distill.data.changes import gaussian_blur, jpeg
from distill.data.crops import Crops
from distill.data.sampling import batches, sampling_weights, training_examples, validation_labels
from distill.data.splits import Split
from distill.evaluation.report import count_undetected
from distill.models.build import build_student
from distill.models.precision import use_bf16
from distill.models.sface import SFace
from distill.models.store import digest_of
from distill.models.student import multiply_adds, reparameterise
from distill.recipe import Augmentation, load_recipe
from edge.base.errors import SettingsError
from support.backbone_files import dlib_state, write_dinov2, write_dlib, write_sface
from support.command import Done, call
from support.paths import ROOT
from support.patience import PATIENCE, wait_for
from support.trained import RECIPE


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def arguments(recipe: Path, data: Path, out: Path) -> list[str]:
    return [str(recipe), "--data", str(data), "--layout", "ferplus", "--out", str(out)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["average"])


def log(out: Path) -> list[dict[str, str]]:
    """Without the one column that depends on the machine."""
    rows = csv.DictReader((out / "log.csv").open())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def kill_after_an_epoch(out: Path, arguments: list[str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "distill.train", *arguments], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        wait_for(
            lambda: (out / "last.pt").is_file() or child.poll() is not None, "an epoch", every=0.005
        )
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == -signal.SIGKILL, "killed before it was done"


def assert_same(whole: Path, broken: Path) -> None:
    one, other = weights(whole / "last.pt"), weights(broken / "last.pt")
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert log(whole) == log(broken)


@pytest.fixture(scope="module")
def uninterrupted(
    detector_file: Path, recipe: Path, tiny_ferplus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A whole run in one process: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = call("distill.train", *arguments(recipe, tiny_ferplus, out), env={})
    assert done.code == 0, done.err
    return out, done.out


@pytest.mark.process
def test_training_learns_is_killed_and_resumes_to_the_same_result(
    uninterrupted: tuple[Path, str],
    recipe: Path,
    tiny_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    whole = uninterrupted[0]
    rows = log(whole)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[-1]["valid_accuracy"]) > 0.9
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert sorted(p.name for p in whole.glob("epoch-*.pt")) == [
        f"epoch-{n:03d}.pt" for n in (1, 2, 3)
    ]

    broken = tmp_path / "broken"
    kill_after_an_epoch(broken, arguments(recipe, tiny_ferplus, broken))
    done = command("distill.train", *arguments(recipe, tiny_ferplus, broken), "--resume")
    assert done.code == 0, done.err
    assert "epochs 0..3" not in done.out, "it resumed, it did not start again"
    assert_same(whole, broken)

    chosen = torch.load(broken / "best.pt", weights_only=True)
    best_row = max(rows, key=lambda row: float(row["valid_accuracy"]))
    assert chosen["epoch"] == int(best_row["epoch"])
    assert chosen["valid_accuracy"] == pytest.approx(float(best_row["valid_accuracy"]), abs=1e-5)

    done = command("distill.train", *arguments(recipe, tiny_ferplus, broken))
    assert done.code == 2
    assert "holds a run; resume it by --resume, or choose another --out" in done.last
    other = [*arguments(recipe, tiny_ferplus, broken), "--resume", "--seed", "4"]
    done = command("distill.train", *other)
    assert done.code == 1
    assert "is another run (other recipe)" in done.last
    (broken / "last.pt").write_bytes(b"half a file")
    done = command("distill.train", *arguments(recipe, tiny_ferplus, broken), "--resume")
    assert "or is damaged" in done.last


@pytest.mark.slow
def test_a_run_from_before_a_recipe_field_existed_resumes(
    uninterrupted: tuple[Path, str], recipe: Path, tiny_ferplus: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(uninterrupted[0], old)
    state = torch.load(old / "last.pt", weights_only=True)
    del state["identity"]["recipe"]["training"]["prior_tau"]
    torch.save(state, old / "last.pt")
    done = call("distill.train", *arguments(recipe, tiny_ferplus, old), "--resume", env={})
    assert done.code == 0, done.err
    state["identity"]["recipe"]["training"]["prior_tau"] = 1.0
    torch.save(state, old / "last.pt")
    done = call("distill.train", *arguments(recipe, tiny_ferplus, old), "--resume", env={})
    assert done.code == 1
    assert "is another run (other recipe)" in done.last


def test_a_run_of_another_machine_resumes_where_that_is_allowed(
    uninterrupted: tuple[Path, str], recipe: Path, tiny_ferplus: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(uninterrupted[0], moved)
    state = torch.load(moved / "last.pt", weights_only=True)
    own = state["identity"]["precision"]  # bf16 where the processor has it
    other = {"fp32": "bf16", "bf16": "fp32"}[own]
    state["identity"] |= {"precision": other, "processes": 4}
    state["epoch"] = 2
    torch.save(state, moved / "last.pt")
    (moved / "log.csv").write_text(
        (moved / "log.csv").read_text().replace(f"1 x cpu {own}", f"4 x cuda {other}")
    )
    changes = f"precision {other} -> {own}, processes 4 -> 1"
    again = [*arguments(recipe, tiny_ferplus, moved), "--resume"]
    done = call("distill.train", *again, env={})
    assert done.code == 1
    assert f"trained on another machine ({changes})" in done.last
    done = call("distill.train", *again, "--allow-other-machine", env={})
    assert done.code == 0, done.err
    assert f"resumed on another machine: {changes}" in done.out
    machines = [row.pop("machine") for row in log(moved)]
    assert machines == 3 * [f"4 x cuda {other}"] + [f"1 x cpu {own}"]
    done = call("distill.train", *again, env={})
    assert done.code == 0, "from then on it is a run of this machine"


TEACHER = """
name: tiny-teacher
crop: {size: 32, template: [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]}
teacher: {trained_units: 1, width: 16, heads: 2, dropout: 0.0, cached: [scene, face]}
training: {epochs: 2, batch: 32, learning_rate: 0.003, warmup_epochs: 0.5, average: 0.8, mixup: 0.2}
augmentation: {noise: 2.0}
"""


@pytest.fixture(scope="session")
def small_ferplus(tiny_ferplus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data, cut to what a full-size SFace reads in seconds."""
    root = tmp_path_factory.mktemp("small") / "ferplus"
    for split, count in (("Train", 192), ("Valid", 40), ("Test", 20)):
        folder = tiny_ferplus / f"FER2013{split}"
        (root / folder.name).mkdir(parents=True)
        rows = (folder / "label.csv").read_text().splitlines(keepends=True)[:count]
        (root / folder.name / "label.csv").write_text("".join(rows))
        for row in rows:
            name = row.split(",")[0]
            (root / folder.name / name).write_bytes((folder / name).read_bytes())
    return root


def taught_and_resumed(
    recipe: Path, data: Path, backbones: list[str], folder: Path, command: Callable[..., Done]
) -> Path:
    """Train a teacher, and again killed and resumed, which comes to the same; returns its folder."""
    whole, broken = folder / "teacher", folder / "teacher-killed"
    done = command("distill.train", *arguments(recipe, data, whole), *backbones)
    assert done.code == 0, done.err
    assert "features" in done.out
    assert "augmentation.noise: without effect, since 'teacher.cached'" in done.out
    teach = [*arguments(recipe, data, broken), *backbones]
    kill_after_an_epoch(broken, teach)
    done = command("distill.train", *teach, "--resume")
    assert done.code == 0, done.err
    assert "features" not in done.out, "read from the cache, not computed again"
    assert_same(whole, broken)
    assert float(log(whole)[-1]["loss"]) < float(log(whole)[0]["loss"])
    return whole


@pytest.mark.process
def test_teacher_then_student_end_to_end_killed_and_resumed(
    detector_file: Path,
    recipe: Path,
    small_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    """A DINOv2 of no size and an SFace of random weights: the whole path, in under a minute."""
    tiny_teacher = tmp_path / "teacher.yaml"
    tiny_teacher.write_text(TEACHER)
    torch.manual_seed(0)
    face = write_sface(tmp_path / "sface.onnx", SFace().state_dict())
    dinov2 = write_dinov2(tmp_path / "dinov2")
    backbones = ["--dinov2", str(dinov2), "--face", str(face)]
    whole = taught_and_resumed(tiny_teacher, small_ferplus, backbones, tmp_path, command)
    kept = torch.load(whole / "best.pt", weights_only=True)["network"]
    assert not [name for name in kept if "model.encoder" in name], "no frozen weights in the file"

    distilled = tmp_path / "distilled.yaml"
    distilled.write_text(RECIPE.replace("epochs: 4", "epochs: 2") + "distillation: {tokens: 0.5}\n")
    out, killed = tmp_path / "student", tmp_path / "student-killed"
    taught = [*backbones, "--teacher", str(whole / "best.pt")]
    done = command("distill.train", *arguments(distilled, small_ferplus, out), *taught)
    assert done.code == 0, done.err
    row = log(out)[-1]
    assert {"loss_votes", "loss_logits", "loss_tokens", "loss_embedding"} <= set(row)
    student = [*arguments(distilled, small_ferplus, killed), *taught]
    kill_after_an_epoch(killed, student)
    assert command("distill.train", *student, "--resume").code == 0
    assert_same(out, killed)
    more = [*arguments(distilled, small_ferplus, tmp_path / "two"), *taught]
    done = command("distill.train", *more, "--teacher", str(out / "best.pt"))
    assert done.code == 0, done.err
    by = torch.load(tmp_path / "two" / "best.pt", weights_only=True)["teacher"]
    assert "tiny-teacher" in by
    assert f"with best.pt {digest_of(out / 'best.pt')[:16]}" in by
    together = ["--checkpoint", str(out / "best.pt"), "--checkpoint", str(whole / "best.pt")]
    data = ["--data", str(small_ferplus), "--layout", "ferplus", "--split", "valid"]
    done = command("distill.evaluation.evaluate", *together, *data, *backbones)
    assert done.code == 0, done.err
    assert f"{out / 'best.pt'} and {whole / 'best.pt'} fp32 on" in done.out

    done = command(
        "distill.train", *arguments(distilled, small_ferplus, tmp_path / "x"), *backbones
    )
    assert done.code == 2
    assert "wants a teacher: give --teacher FILE" in done.last
    done = command("distill.train", *arguments(recipe, small_ferplus, tmp_path / "x"), *taught)
    assert done.code == 2
    assert "wants no --teacher" in done.last
    done = command("distill.train", *arguments(tiny_teacher, small_ferplus, tmp_path / "x"))
    assert done.code == 2
    assert "give SFace's ONNX file by --face FILE" in done.last
    torch.manual_seed(1)
    other = write_sface(tmp_path / "other.onnx", SFace().state_dict())
    done = command(
        "distill.train",
        *arguments(distilled, small_ferplus, tmp_path / "x"),
        *taught[:2],
        "--face",
        other,
        *taught[4:],
    )
    assert done.code == 1
    assert "was trained on other backbones" in done.last


@pytest.mark.slow
def test_a_bundle_teaches_a_student_that_starts_from_it_by_logits(
    detector_file: Path, small_ferplus: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    recipe, bundle = ROOT / "distill/recipes/robust.yaml", ROOT / "edge/models"
    start = arguments(recipe, small_ferplus, tmp_path / "run")
    start += ["--start", str(bundle), "--teacher", str(bundle), "--set", "training.epochs=1"]
    done = command("distill.train", *start)
    assert done.code == 0, done.err
    (row,) = log(tmp_path / "run")
    losses = {name for name in row if name.startswith("loss_")}
    assert losses == {"loss_votes", "loss_logits"}
    kept = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert kept["teacher"] == f"models {digest_of(bundle / 'bundle.json')[:16]}"
    assert kept["teacher_data"] == ["FER+"]
    done = command("distill.train", *start, "--resume", "--teacher", str(tmp_path / "run/best.pt"))
    assert "is another run (other teacher)" in done.last


@pytest.mark.process
def test_a_teacher_of_two_face_backbones_is_killed_resumed_and_teaches(
    detector_file: Path,
    small_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    recipe = tmp_path / "both.yaml"
    two = "face: [sface, dlib], trained_units: [1, 2], face_grid: [14, 7]"
    recipe.write_text(TEACHER.replace("trained_units: 1", two))
    torch.manual_seed(0)
    backbones = ["--dinov2", str(write_dinov2(tmp_path / "dinov2"))]
    backbones += ["--face", str(write_dlib(tmp_path / "dlib.safetensors", dlib_state(0)))]
    backbones += ["--face", str(write_sface(tmp_path / "sface.onnx", SFace().state_dict()))]
    whole = taught_and_resumed(recipe, small_ferplus, backbones, tmp_path, command)

    distilled = tmp_path / "distilled.yaml"
    distilled.write_text(RECIPE.replace("epochs: 4", "epochs: 1") + "distillation: {tokens: 0.5}\n")
    taught = [*backbones, "--teacher", str(whole / "best.pt")]
    out = tmp_path / "student"
    done = command("distill.train", *arguments(distilled, small_ferplus, out), *taught)
    assert done.code == 0, done.err
    assert float(log(out)[0]["loss_tokens"]) > 0
    by = torch.load(out / "best.pt", weights_only=True)["teacher"]
    assert by.endswith("on sface and dlib")
    data = ["--data", str(small_ferplus), "--layout", "ferplus", "--split", "valid"]
    scored = ["--checkpoint", str(whole / "best.pt"), *data, *backbones]
    assert command("distill.evaluation.evaluate", *scored).code == 0


@pytest.mark.process
def test_two_processes_learn_what_one_does(
    uninterrupted: tuple[Path, str], recipe: Path, tiny_ferplus: Path, tmp_path: Path
) -> None:
    """gloo, each process with half of every batch; batch statistics and random changes are each
    process's own on the CPU, hence the tolerance."""
    alone, printed = uninterrupted
    together = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "distill.train", *arguments(recipe, tiny_ferplus, together)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment, "RANK": rank},
        )
        for rank in "01"
    ]
    said = [child.communicate(timeout=PATIENCE)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert "1 x cpu" in printed
    assert "2 x cpu" in said[0]
    assert not said[1], "only the main process speaks"
    for out in (alone, together):
        assert float(log(out)[-1]["valid_accuracy"]) > 0.9
    losses = [[float(row["loss"]) for row in log(out)] for out in (alone, together)]
    assert np.allclose(losses[0], losses[1], rtol=0.1), losses


def test_processes_share_every_batch_and_classes_can_be_drawn_evenly() -> None:
    votes = np.zeros((40, 2), dtype=np.int64)
    votes[:30, 0] = votes[30:, 1] = 10
    crops = Crops(
        np.zeros((40, 1, 8, 8), np.uint8), [str(i) for i in range(40)], np.ones(40, dtype=bool)
    )
    examples = training_examples(Split(crops, votes, ("a", "b")), {"3"})
    alone = list(batches(examples, 8, 0, 1))
    assert [len(rows) for rows in alone] == [8, 8, 8, 8, 7]
    assert sorted(np.concatenate(alone)) == [i for i in range(40) if i != 3]
    parts = [list(batches(examples, 8, 0, 1, 0.0, rank, 2)) for rank in (0, 1)]
    for whole, one, two in zip(alone, *parts, strict=True):
        assert sorted([*one, *two]) == sorted(whole)
    assert not np.array_equal(alone[0], next(iter(batches(examples, 8, 0, 2))))
    assert sampling_weights(examples, 0.0) == pytest.approx(np.full(39, 1 / 39))
    even = sampling_weights(examples, 1.0)
    assert even[:29].sum() == pytest.approx(0.5)
    drawn = np.concatenate([r for e in range(20) for r in batches(examples, 8, 0, e, 1.0)])
    assert np.mean(drawn >= 30) == pytest.approx(0.5, abs=0.06)


def test_every_shipped_recipe_loads() -> None:
    recipes = sorted((ROOT / "distill" / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = load_recipe(path)
        assert recipe.crop.spec().size % 8 == 0
        if recipe.student:
            student = build_student(recipe, 8)
            parameters = sum(p.numel() for p in reparameterise(student).parameters())
            assert parameters <= 2_500_000, path
            assert multiply_adds(student) <= 150_000_000, path


def test_a_typo_in_a_recipe_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("epochs", "epoch"))
    with pytest.raises(SettingsError, match=r"'training\.epoch'; did you mean 'training\.epochs'"):
        load_recipe(path)


def test_data_that_is_not_there_is_one_line(
    command: Callable[..., Done], recipe: Path, tmp_path: Path, detector_file: Path
) -> None:
    done = command("distill.train", *arguments(recipe, tmp_path / "absent", tmp_path / "out"))
    assert done.code == 1
    assert "is not a folder" in done.last


def augment(faces: torch.Tensor, config: Augmentation, drawn: torch.Generator) -> torch.Tensor:
    """As a student's batches do it."""
    return corrupt(warp(faces, random_affine(len(faces), config, drawn)), config, drawn)


def test_augmentation_repeats_by_its_generator_and_stays_a_picture() -> None:
    faces = torch.rand(16, 1, 32, 32) * 255
    one, same, other = (
        augment(faces, Augmentation(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == faces.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 255


def test_augmentation_switched_off_changes_nothing_but_the_mirror() -> None:
    off = Augmentation(
        rotate_degrees=0.0,
        scale=1.0,
        shift=0.0,
        contrast=1.0,
        brightness=0.0,
        gamma=1.0,
        shrink_share=0.0,
        blur_share=0.0,
        noise=0.0,
        jpeg_share=0.0,
        erase_share=0.0,
    )
    faces = torch.rand(32, 1, 32, 32) * 255
    changed = augment(faces, off, torch.Generator().manual_seed(0))
    kept = (changed - faces).abs().amax(dim=(1, 2, 3)) < 0.1
    mirrored = (changed - faces.flip(3)).abs().amax(dim=(1, 2, 3)) < 0.1
    assert bool((kept | mirrored).all())
    assert bool(kept.any())
    assert bool(mirrored.any())


def test_near_duplicates_and_images_without_a_vote_are_not_learned_from_nor_chosen_on() -> None:
    votes = np.zeros((4, 4), dtype=np.int64)
    votes[:, 0] = 10
    votes[2] = [1, 0, 0, 9]  # not a face
    pixels = np.zeros((4, 1, 8, 8), np.uint8)
    crops = Crops(pixels, ["a", "twin", "no-face", "b"], np.array([True, True, True, False]))
    split = Split(crops, votes, ("calm", "glad"))
    assert training_examples(split, {"twin"}).rows.tolist() == [0, 3]
    assert training_examples(split, {"twin"}).digest != training_examples(split, set()).digest
    assert validation_labels(split, {"twin"}).tolist() == [0, -1, -1, 0]
    p = np.tile([0.9, 0.1], (4, 1))
    share, accuracy = count_undetected(split, p, "majority-8")
    assert (share, accuracy) == pytest.approx((1 / 3, 2 / 3))


def test_move_turns_and_mirrors_without_shear() -> None:
    """Distances between marks keep their ratio, whatever the angle and the mirror."""
    only = Augmentation(rotate_degrees=30.0, scale=1.0, shift=0.0)
    faces = torch.zeros(64, 1, 65, 65)
    marks = [(20, 20), (20, 44), (44, 32)]
    for value, (y, x) in zip((60.0, 120.0, 240.0), marks, strict=True):
        faces[:, 0, y - 2 : y + 3, x - 2 : x + 3] = value
    places = random_affine(64, only, torch.Generator().manual_seed(0))
    moved = warp(faces, places)[:, 0].numpy()
    y, x = np.mgrid[0:65, 0:65]
    mirrored = []
    for picture in moved:
        points = []
        for low, high in ((40, 90), (90, 180), (180, 260)):
            inside = (picture > low) & (picture < high)
            # The edges of brighter marks pass through darker values: keep the main spot.
            _, _, stats, middles = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
            points.append(middles[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())])
        a, b, c = points
        assert np.linalg.norm(a - b) == pytest.approx(24, abs=1.5)
        assert np.linalg.norm(a - c) == pytest.approx(np.hypot(24, 12), abs=1.5)
        assert np.linalg.norm(b - c) == pytest.approx(np.hypot(24, 12), abs=1.5)
        (x1, y1), (x2, y2) = b - a, c - a
        mirrored.append(x1 * y2 - y1 * x2 < 0)
    assert 10 < sum(mirrored) < 54


def test_a_recipe_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for old, new, words in (
        ("heads: 2", "heads: 3", "must be a multiple of heads"),
        ("[10, 11]", "[10, 11, 12]", "five pairs"),
        ("training:", "augmentation: {shrink_to: 40}\ntraining:", "must be below crop.size"),
        ("depths: [1, 1, 1]", "depths: [0, 1, 1]", "greater than or equal to 1"),
        (
            "training:",
            "distillation: {votes: 0, logits: 0, tokens: 0, embedding: 0}\ntraining:",
            "teaches nothing",
        ),
        (
            "training:",
            "distillation: {relations: 1, relation_heads: 3}\ntraining:",
            r"'student\.width' 8 must be a multiple of 'distillation\.relation_heads' 3",
        ),
    ):
        path.write_text(RECIPE.replace(old, new))
        with pytest.raises(SettingsError, match=words):
            load_recipe(path)


def test_precision_follows_the_recipe() -> None:
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("fp32", cpu)


def test_blur_and_compression_are_those_of_a_real_codec() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (64, 64)).astype(np.float32), (0, 0), 2)
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    faces = torch.from_numpy(picture)[None, None].float()
    theirs = cv2.GaussianBlur(
        picture.astype(np.float32), (13, 13), 2.0, borderType=cv2.BORDER_REPLICATE
    )
    assert float((gaussian_blur(faces, 2.0)[0, 0] - torch.from_numpy(theirs)).abs().max()) < 1.0
    for quality in (20, 60):
        coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32)
        ours = jpeg(faces, quality)[0, 0].numpy()
        # Whole grey levels and libjpeg's integer DCT are a third of a level.
        assert np.abs(ours - decoded).mean() < 0.5
        assert np.abs(decoded - picture).mean() > 1.0, "there is a loss to imitate"
