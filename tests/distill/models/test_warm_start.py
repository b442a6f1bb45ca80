"""A student that starts from another answers as that one did before it is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.models import store
from distill.models.build import build_student
from distill.models.checkpoint import load_checkpoint, state
from distill.models.predict import open_predictor
from distill.models.student import RepBlock, Student, reparameterise
from distill.models.warm_start import _initialisers, read_start, warm_start
from distill.recipe import Recipe
from edge.base.errors import BundleError, DataError, UsageError
from edge.base.files import sha256
from edge.inference.bundle import SCHEMA, SHIPPED, load_bundle
from edge.inference.loader import open_backend
from export.to_onnx import deployed, export_onnx
from support.command import Done
from support.trained import RECIPE, in_use

TEMPLATE = [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]
LABELS = ("calm", "glad", "cross")


def recipe(**student: Any) -> Recipe:
    small = {"widths": [4, 6, 8, 8], "depths": [1, 1, 1], "width": 8, "heads": 2, "dropout": 0.0}
    return Recipe.model_validate(
        {
            "name": "small",
            "crop": {"size": 32, "template": TEMPLATE},
            "student": small | student,
            "training": {"epochs": 1, "batch": 16},
        }
    )


def faces(count: int, size: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8)


def answers(student: Student, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    with torch.no_grad():
        return student.eval()(torch.from_numpy(pixels).float())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint whose batch statistics and branches are those of a network in use."""
    torch.manual_seed(5)
    student = build_student(recipe(), len(LABELS))
    in_use(student)
    path = tmp_path / "best.pt"
    store.save(path, state(student, recipe(), LABELS, 3, 0.8, teacher="somebody"))
    return path


def test_a_checkpoint_of_0_1_0_is_read_under_the_names_it_was_written_with(trained: Path) -> None:
    content, now = store.load(trained), load_checkpoint(trained).student
    stored = {
        name.replace("scene_to_face_attention", "scene_asks").replace(
            "face_to_scene_attention", "face_asks"
        ): value
        for name, value in content["network"].items()
    }
    assert "fusion.scene_asks.query.weight" in stored
    store.save(trained, content | {"network": stored})
    student = load_checkpoint(trained).student
    assert torch.equal(answers(student, faces(5)), answers(now, faces(5)))
    assert torch.equal(read_start(trained).weights["head.bias"], now.head.bias)


@pytest.mark.parametrize("depths", [[1, 1, 1], [2, 1, 3]])
def test_from_a_checkpoint_as_deep_or_deeper_it_answers_as_that_one(
    trained: Path, depths: list[int]
) -> None:
    student = build_student(recipe(depths=depths), len(LABELS))
    warm_start(student, read_start(trained), LABELS, faces(64))
    before = load_checkpoint(trained).student
    assert float((answers(student, faces(9)) - answers(before, faces(9))).abs().max()) < 1e-4
    student.train()
    with torch.no_grad():
        learning = student(torch.from_numpy(faces(64)).float())[:9]
    assert float((learning - answers(before, faces(9))).abs().max()) < 1e-3, "statistics of these"
    for block in student.modules():
        if isinstance(block, RepBlock):
            assert all(p.requires_grad for p in block.parameters())


def test_from_the_shipped_bundle_it_answers_as_the_deployed_file_without_its_constants() -> None:
    bundle, start = load_bundle(), read_start(SHIPPED)
    student = build_student(start.recipe, len(start.labels))
    warm_start(student, start, start.labels, bundle.known_inputs())
    backend = open_backend("ort", bundle.model("fp32"), 1)
    expected = backend.run(bundle.known_inputs().astype(np.float32))["logits"]
    backend.close()
    expected = expected - bundle.folded
    assert np.abs(answers(student, bundle.known_inputs()).numpy() - expected).max() < 1e-3
    assert start.metadata["sha256"] == bundle.sha256
    assert start.metadata["recipe"]["name"] == start.recipe.name


def test_what_the_counting_added_is_taken_out_of_a_start_and_of_a_teacher(tmp_path: Path) -> None:
    """A bundle that says that its bias holds constants has learned logits that lie below by these."""
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    description = json.loads((folder / "bundle.json").read_text())
    description.pop("counting", None)
    description["schema"] = SCHEMA
    (folder / "bundle.json").write_text(json.dumps(description))
    plain, plain_teacher = read_start(folder), open_predictor(folder, "", [], learned=True)
    row = [0.0, -0.5, 0.25, 0.0, 1.0, 2.0, 0.0, -1.0]
    counting = {"folded": "dominant", "constants": {"dominant": row}, "fitted": {}}
    (folder / "bundle.json").write_text(json.dumps(description | {"counting": counting}))
    start = read_start(folder)
    difference = plain.weights["head.bias"] - start.weights["head.bias"]
    assert difference.numpy() == pytest.approx(np.array(row), abs=1e-6)
    for name, value in plain.weights.items():
        assert name == "head.bias" or torch.equal(value, start.weights[name])
    faces = load_bundle(folder).known_inputs()
    learned = open_predictor(folder, "", [], learned=True).predict(faces)
    odds = np.log(plain_teacher.predict(faces)) - np.log(learned)
    assert odds - odds[:, :1] == pytest.approx(
        np.tile(np.array(row) - row[0], (len(faces), 1)), abs=1e-5
    )
    counted = open_predictor(folder, "", []).predict(faces)
    assert counted == pytest.approx(plain_teacher.predict(faces)), "the graph as it is"


@pytest.mark.parametrize("form", [{"pool": "queries", "queries": 2}, {"attend": False}])
@pytest.mark.slow
def test_a_start_of_another_form_answers_as_it_did_also_from_its_file(
    tmp_path: Path, form: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    trained, path = build_student(recipe(**form), len(LABELS)), tmp_path / "best.pt"
    in_use(trained)
    for weight in trained.parameters():  # equal ones would be stored once in the file
        weight.data += 0.01 * torch.randn_like(weight)
    store.save(path, state(trained, recipe(**form), LABELS, 3, 0.8))
    loaded = load_checkpoint(path)
    assert loaded.recipe.student is not None
    assert loaded.recipe.student.pool == form.get("pool", "mean")
    deeper = build_student(recipe(**form, depths=[1, 2, 1]), len(LABELS))
    warm_start(deeper, read_start(path), LABELS, faces(16))
    expected = answers(trained, faces(5))
    assert torch.allclose(answers(deeper, faces(5)), expected, atol=1e-4)
    export_onnx(deployed(loaded.student, 1.0), tmp_path / "fp32.onnx")
    weights = _initialisers(tmp_path / "fp32.onnx")
    for name, value in reparameterise(trained).state_dict().items():
        assert torch.allclose(weights[name], value, atol=1e-6), name


FORMS: list[dict[str, Any]] = [
    {},
    {"heads": 4},
    {"attend": False},
    {"pool": "queries", "queries": 1},
    {"pool": "queries", "queries": 3},
]


@pytest.mark.parametrize("theirs", FORMS, ids=str)
@pytest.mark.parametrize("ours", FORMS, ids=str)
def test_a_start_of_another_fused_form_lends_trunk_and_streams(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    trained, path = build_student(recipe(**theirs), len(LABELS)), tmp_path / "best.pt"
    in_use(trained)
    store.save(path, state(trained, recipe(**theirs), LABELS, 3, 0.8))
    student = build_student(recipe(**ours, depths=[1, 2, 1]), len(LABELS))
    fresh = {name: value.clone() for name, value in student.state_dict().items()}
    warm_start(student, read_start(path), LABELS, faces(64))
    pixels = torch.from_numpy(faces(5)).float()
    with torch.no_grad():
        pairs = zip(student.eval().tokens(pixels), trained.eval().tokens(pixels), strict=True)
        assert all(torch.allclose(mine, their, atol=1e-4) for mine, their in pairs)
    same = ours == theirs
    assert torch.allclose(answers(student, faces(5)), answers(trained, faces(5)), atol=1e-4) == same
    for name, value in student.state_dict().items():
        if name.startswith(("fusion.", "head.")) and not same:
            assert torch.equal(value, fresh[name]), f"{name} begins anew"


def test_a_checkpoint_from_before_pooling_could_be_chosen_is_the_two_way_form(
    trained: Path,
) -> None:
    content, now = store.load(trained), load_checkpoint(trained).student
    for name in ("pool", "queries"):
        del content["recipe"]["student"][name]
    store.save(trained, content)
    student = load_checkpoint(trained).student
    assert student.config == now.config
    assert torch.equal(answers(student, faces(5)), answers(now, faces(5)))


def test_classes_that_the_start_does_not_know_stay_fresh(trained: Path) -> None:
    torch.manual_seed(9)
    student = build_student(recipe(), 3)
    fresh = student.head.weight[1].clone()
    warm_start(student, read_start(trained), ("cross", "bored", "calm"), faces(8))
    theirs = load_checkpoint(trained).student.head
    assert torch.equal(student.head.weight[0], theirs.weight[2])
    assert torch.equal(student.head.weight[2], theirs.weight[0])
    assert torch.equal(student.head.weight[1], fresh)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"widths": [4, 6, 8, 16]}, r"'widths' \(4, 6, 8, 8\), the recipe \(4, 6, 8, 16\)"),
        ({"width": 16}, "'width' 8, the recipe 16"),
    ],
)
def test_another_shape_is_refused_in_one_line(
    trained: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        warm_start(build_student(recipe(**changes), 3), read_start(trained), LABELS, faces(8))


def test_a_start_deeper_than_the_recipe_is_refused(trained: Path) -> None:
    start = read_start(trained)
    deep = replace(start, config=replace(start.config, depths=(1, 2, 1)))
    with pytest.raises(UsageError, match="may have more, not fewer"):
        warm_start(build_student(recipe(), 3), deep, LABELS, faces(8))


def test_a_bundle_that_is_no_student_of_its_recipe_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    description = json.loads((folder / "bundle.json").read_text())

    def describe(**changes: Any) -> None:
        (folder / "bundle.json").write_text(json.dumps(description | changes))

    describe(provenance=description["provenance"] | {"recipe": "by hand"})
    with pytest.raises(DataError, match="names no recipe to train by"):
        read_start(folder)
    wider = json.loads(json.dumps(description["provenance"]))
    wider["recipe"]["student"]["widths"] = [32, 48, 96, 192]
    describe(provenance=wider)
    with pytest.raises(DataError, match=r"no student of its own recipe: 'trunk\.4\.0\.weight'"):
        read_start(folder)
    shutil.copy(folder / "int8-cpu.onnx", folder / "fp32.onnx")
    entry = {"name": "fp32.onnx", "sha256": sha256((folder / "fp32.onnx").read_bytes())}
    describe(files=description["files"] | {"fp32": entry})
    with pytest.raises(DataError, match="no student of its own recipe"):
        read_start(folder)
    (folder / "fp32.onnx").write_bytes(b"cut")
    with pytest.raises(BundleError):
        read_start(folder)


TINY = RECIPE.replace("epochs: 4", "epochs: 2")


@pytest.mark.slow
def test_training_starts_from_where_another_ended(
    detector_file: Path,
    tiny_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    plain, deeper = tmp_path / "tiny.yaml", tmp_path / "deeper.yaml"
    plain.write_text(TINY)
    deeper.write_text(TINY.replace("depths: [1, 1, 1]", "depths: [1, 1, 2]"))
    options = ["--data", str(tiny_ferplus), "--layout", "ferplus"]
    first, second = tmp_path / "first", tmp_path / "second"
    done = command("distill.train", str(plain), *options, "--out", str(first))
    assert done.code == 0, done.err
    again = [str(deeper), *options, "--out", str(second), "--start", str(first / "best.pt")]
    done = command("distill.train", *again)
    assert done.code == 0, done.err

    def losses(out: Path) -> list[float]:
        lines = (out / "log.csv").read_text().splitlines()
        place = lines[0].split(",").index("loss")
        return [float(line.split(",")[place]) for line in lines[1:]]

    assert losses(second)[0] < losses(first)[0], "it did not start at nothing"
    kept = load_checkpoint(second / "best.pt")
    assert kept.student.config.depths == (1, 1, 2)
    assert kept.metadata["start"]["sha256"] == store.digest_of(first / "best.pt")
    assert kept.metadata["start"]["recipe"]["training"]["epochs"] == 2

    done = command("distill.train", *again[:-2], "--resume")
    assert "is another run (other start)" in done.last
    assert kept.metadata["layout"] == "ferplus"
    done = command("distill.train", *again[:-1], str(second / "last.pt"), "--resume")
    assert "is for resuming alone; give best.pt" in done.last
    again[again.index(str(second))] = str(tmp_path / "third")
    done = command("distill.train", *again[:-1], str(SHIPPED))
    assert done.code == 2
    assert "was trained on another crop" in done.last
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(TINY.split("student:")[0] + "teacher: {}\ntraining: {epochs: 1}\n")
    done = command("distill.train", str(teacher), *again[1:])
    assert done.code == 2
    assert "--start is for students" in done.last
