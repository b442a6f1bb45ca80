from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.models import checkpoint, store
from distill.models.backbones import FrozenBackbones, split_backbone
from distill.models.build import build_teacher, settle_tails
from distill.models.checkpoint import load_teacher
from distill.models.dinov2 import Dinov2
from distill.models.feature_cache import weights_digest
from distill.models.grids import as_rgb, to_grid, to_tokens
from distill.models.ir50 import IR50
from distill.models.sface import SFace
from distill.models.teacher import Teacher, TeacherConfig, join_faces
from distill.recipe import Recipe
from edge.base.errors import DataError, SettingsError, UsageError
from edge.base.strict_yaml import validate
from support.backbone_files import (
    dlib_state,
    random_state,
    write_dinov2,
    write_dlib,
    write_sface,
)

CONFIG = TeacherConfig(classes=8, scene_width=24, face_widths=(16,), width=32, heads=4)


def grid(batch: int, width: int, seed: int, side: int = 7) -> torch.Tensor:
    return torch.randn(batch, width, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dinov2(tmp_path_factory.mktemp("dinov2"))


def test_sface_is_read_from_its_initialisers_by_name(tmp_path: Path) -> None:
    state = random_state(SFace(), 1)
    write_sface(tmp_path / "sface.onnx", state)
    loaded = SFace.from_onnx(tmp_path / "sface.onnx")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert loaded(torch.rand(2, 1, 64, 64) * 255).shape == (2, 512, 14, 14)
    del state["units.3.dw_conv2d.weight"]
    write_sface(tmp_path / "half.onnx", state)
    with pytest.raises(DataError, match="'conv_5_dw_conv2d_weight' is missing"):
        SFace.from_onnx(tmp_path / "half.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"\x01garbage")
    with pytest.raises(DataError, match="not a readable ONNX file"):
        SFace.from_onnx(tmp_path / "garbage.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "state_dict", "module", "backbone"])
def test_ir50_loads_the_usual_checkpoints(tmp_path: Path, form: str) -> None:
    state = random_state(IR50(), 2)
    later = {"body.21.res_layer.1.weight": torch.zeros(1), "output_layer.3.weight": torch.zeros(1)}
    content: dict[str, object] = {**state, **later}
    if form in ("module", "backbone"):
        content = {f"{form}.{name}": value for name, value in content.items()}
    torch.save({"state_dict": content} if form == "state_dict" else content, tmp_path / "c.pth")
    model = IR50.from_checkpoint(tmp_path / "c.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert model(torch.rand(1, 1, 64, 64) * 255).shape == (1, 256, 14, 14)


def test_a_checkpoint_of_something_else_or_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="is not IR-50: 'input_layer"):
        IR50.from_checkpoint(tmp_path / "other.pth")
    torch.save({"model": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(DataError, match="holds no weights alone"):
        IR50.from_checkpoint(tmp_path / "code.pth")


def test_dinov2_is_frozen_and_gives_places(tiny_dinov2: Path) -> None:
    backbone = Dinov2(str(tiny_dinov2)).train()
    assert backbone.width == 24
    assert backbone.side == 196
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.model.training
    faces = torch.rand(2, 1, 64, 64) * 255
    assert backbone(faces).shape == (2, 24, 14, 14)
    assert Dinov2(str(tiny_dinov2), 7)(faces).shape == (2, 24, 7, 7)
    assert torch.equal(backbone(faces), backbone(faces))
    with pytest.raises(DataError, match="give a local folder"):
        Dinov2(str(tiny_dinov2 / "absent"))


def test_tokens_are_places_a_moved_face_moves_its_tokens() -> None:
    torch.manual_seed(3)
    model = SFace().eval()
    picture = torch.full((1, 1, 112, 112), 100.0)
    empty = picture.clone()
    picture[:, :, 40:56, 32:48] = 250.0
    moved = torch.roll(picture, shifts=(16, 24), dims=(2, 3))  # two places down, three right
    with torch.no_grad():
        plain, before, after = (to_tokens(model(x)) for x in (empty, picture, moved))

    def place(x: torch.Tensor) -> tuple[int, int]:
        return divmod(int((x - plain)[0].norm(dim=1).argmax()), 14)

    assert (place(after)[0] - place(before)[0], place(after)[1] - place(before)[1]) == (2, 3)
    places = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert torch.equal(to_tokens(places)[1, 4 * 2 + 3], places[1, :, 2, 3])
    assert torch.equal(to_grid(to_tokens(places)), places)


def test_several_face_grids_are_one_stream_in_which_none_drowns() -> None:
    one, two = grid(2, 16, 1), 1000 * grid(2, 12, 2) + 50
    assert join_faces([one]) is one
    joined = join_faces([one, two])
    assert joined.shape == (2, 28, 7, 7)
    for part in (joined[:, :16], joined[:, 16:]):
        assert torch.allclose(part.mean(dim=1), torch.zeros(2, 7, 7), atol=1e-4)
        assert torch.allclose(part.var(dim=1, unbiased=False), torch.ones(2, 7, 7), atol=1e-2)
    teacher = Teacher(replace(CONFIG, face_widths=(16, 12))).eval()
    out = teacher(grid(2, 24, 3), one, two)
    assert out.shape == (2, 8)
    assert not torch.allclose(out, teacher(grid(2, 24, 3), grid(2, 16, 4), two), atol=1e-3)
    assert not torch.allclose(out, teacher(grid(2, 24, 3), one, grid(2, 12, 4)), atol=1e-3)
    with pytest.raises(ValueError, match="zip"):
        teacher(grid(2, 24, 3), one)


def teacher_recipe(**teacher: object) -> Recipe:
    content = {
        "name": "t",
        "crop": {"size": 64, "template": [[float(i), 1.0] for i in range(5)]},
        "teacher": {"width": 32, "heads": 4, **teacher},
        "training": {"epochs": 1},
    }
    return validate(Recipe, content, "recipe")


@pytest.fixture(scope="module")
def face_weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("faces")
    state = random_state(SFace(), 1)
    return [
        write_dlib(folder / "dlib.safetensors", dlib_state(0)),
        write_sface(folder / "sface.onnx", state),
    ]


def test_a_teacher_of_two_face_backbones_has_a_tail_of_each(
    tiny_dinov2: Path, face_weights: list[Path], tmp_path: Path
) -> None:
    recipe = teacher_recipe(face=["sface", "dlib"], trained_units=[2, 3], face_grid=[14, 7])
    teacher, frozen = build_teacher(recipe, 3, str(tiny_dinov2), face_weights)
    assert [len(tail) for tail in teacher.trainable_tails] == [2, 3]
    assert teacher.config.face_widths == (512, 128)
    assert [stem.side for stem in frozen.face_stems()] == [112, 131]
    faces = torch.rand(8, 1, 64, 64) * 255
    before = teacher.eval()(*frozen(faces))
    sface = {n: v.clone() for n, v in teacher.trainable_tails[0].state_dict().items()}
    settle_tails(recipe, teacher, frozen, faces)
    assert torch.allclose(teacher.eval()(*frozen(faces)), before, atol=1e-3)
    kept = teacher.trainable_tails[0].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in sface.items())
    path = tmp_path / "both.pt"
    state = checkpoint.state(teacher, recipe, ("a", "b", "c"), 0, 0.5, weights_digest(frozen))
    store.save(path, state)
    loaded, again, theirs, _ = load_teacher(path, str(tiny_dinov2), face_weights)
    assert theirs == recipe
    assert torch.equal(loaded(*again(faces)), teacher(*frozen(faces)))
    other = write_dlib(tmp_path / "other.safetensors", dlib_state(5))
    with pytest.raises(DataError, match="was trained on other backbones"):
        load_teacher(path, str(tiny_dinov2), [face_weights[1], other])
    with pytest.raises(UsageError, match=r"give dlib's face network as \.safetensors"):
        load_teacher(path, str(tiny_dinov2), [face_weights[1]])


@pytest.mark.parametrize("old", ["above", "trainable_tail"])
def test_a_teacher_that_an_earlier_version_trained_is_still_read(
    tiny_dinov2: Path, face_weights: list[Path], tmp_path: Path, old: str
) -> None:
    recipe = teacher_recipe(face="sface", trained_units=12)
    teacher, frozen = build_teacher(recipe, 3, str(tiny_dinov2), face_weights)
    state = checkpoint.state(teacher, recipe, ("a", "b", "c"), 0, 0.5, weights_digest(frozen))
    assert state["recipe"]["teacher"]["face"] == "sface", "as it was written then"
    assert state["recipe"]["teacher"]["trained_units"] == 12
    state["network"] = {
        name.replace("trainable_tails.0", old): value for name, value in state["network"].items()
    }
    store.save(tmp_path / "old.pt", state)
    loaded = load_teacher(tmp_path / "old.pt", str(tiny_dinov2), face_weights)[0]
    for name, value in teacher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"face": "vgg"}, r"'teacher\.face\.0' input should be 'sface', 'ir50' or 'dlib'"),
        ({"face": []}, r"'teacher\.face' list should have at least 1 item"),
        ({"face": ["dlib", "dlib"]}, "face names 'dlib' twice"),
        ({"trained_units": [1, 2]}, "trained_units has 2 entries for 1 face backbones"),
        ({"face": ["sface", "dlib"], "face_grid": [14, 7], "grid": 14, "scene_grid": 14},
         "grid 14 is finer than face_grid 7"),
    ],
)  # fmt: skip
def test_a_recipe_of_faces_that_cannot_be_is_one_line(
    teacher: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        teacher_recipe(**teacher)
    assert "\n" not in str(caught.value)


def test_finer_grids_are_pooled_place_by_place() -> None:
    teacher = Teacher(CONFIG).eval()
    stem = torch.zeros(1, 16, 14, 14)
    stem[:, :, 6:8, 10:12] = 1.0
    face = teacher.forward_outputs(grid(1, 24, 1, 14), stem).face
    assert face.shape == (1, 16, 7, 7)
    assert int(face[0, 0].flatten().argmax()) == 3 * 7 + 5
    assert float(face.max()) == 1.0


def test_colour_order_and_grey_become_rgb() -> None:
    blue = torch.zeros(1, 3, 8, 8)
    blue[:, 0] = 200.0  # OpenCV's first channel
    assert as_rgb(blue, 8)[0, :, 0, 0].tolist() == [0.0, 0.0, 200.0]
    assert as_rgb(torch.full((1, 1, 8, 8), 7.0), 16).shape == (1, 3, 16, 16)


def test_each_backbone_and_each_part_counts_and_an_absent_one_does_not() -> None:
    scene, face = grid(3, 24, 1), grid(3, 16, 2)
    torch.manual_seed(0)
    full = Teacher(CONFIG).eval()
    out = full(scene, face)
    assert out.shape == (3, 8)
    assert not torch.allclose(out, full(scene + grid(3, 24, 5), face), atol=1e-3)
    assert not torch.allclose(out, full(scene, face + grid(3, 16, 6)), atol=1e-3)
    for part in ("scene", "face", "attend", "convolve"):
        config = replace(CONFIG, **{part: False})
        less = Teacher(config).eval()
        less.load_state_dict(full.state_dict())
        assert not torch.allclose(out, less(scene, face), atol=1e-3), part
        if part == "scene":
            assert torch.equal(less(scene, face), less(grid(3, 24, 9), face))
        if part == "face":
            assert torch.equal(less(scene, face), less(scene, grid(3, 16, 9)))
    with pytest.raises(ValueError, match="nothing to read"):
        Teacher(replace(CONFIG, scene=False, face=False))


@pytest.mark.parametrize(("units", "learning"), [(0, 0), (3, 3), (12, 12)])
def test_the_face_backbone_learns_in_as_many_units_as_told(units: int, learning: int) -> None:
    face = SFace()
    stem, tail = split_backbone(face, units)
    assert len(tail) == learning
    assert all(p.requires_grad for p in tail.parameters())
    assert not any(p.requires_grad for p in stem.parameters())
    assert face.conv_1_conv2d.weight.requires_grad is (units == 12)
    with pytest.raises(DataError, match="has only 12"):
        split_backbone(face, 13)


@pytest.mark.slow
def test_a_stage_later_the_face_grid_is_7x7(tmp_path: Path) -> None:
    sface, ir50 = random_state(SFace(7), 1), random_state(IR50(7), 2)
    write_sface(tmp_path / "sface.onnx", sface)
    torch.save(ir50, tmp_path / "ir50.pth")
    faces = torch.rand(1, 1, 64, 64) * 255
    late = SFace.from_onnx(tmp_path / "sface.onnx", 7)
    assert torch.equal(late.units[12].conv2d.weight, sface["units.12.conv2d.weight"])
    assert late(faces).shape == (1, 1024, 7, 7)
    assert IR50.from_checkpoint(tmp_path / "ir50.pth", 7)(faces).shape == (1, 512, 7, 7)
    early = SFace.from_onnx(tmp_path / "sface.onnx")
    assert early.width == 512
    assert torch.equal(early.units[10].conv2d.weight, late.units[10].conv2d.weight)


def test_frozen_side_and_learning_units_are_the_whole_backbone(tiny_dinov2: Path) -> None:
    torch.manual_seed(5)
    face, scene = SFace().eval(), Dinov2(str(tiny_dinov2), 7)
    faces = torch.rand(2, 1, 64, 64) * 255
    whole = face(faces)
    stem, tail = split_backbone(face, 3)
    frozen = FrozenBackbones(scene, [stem]).train()
    before = weights_digest(frozen)
    for _ in range(2):
        seen, grid_of_stem = frozen(faces)
    assert weights_digest(frozen) == before, "no batch statistics move"
    assert torch.equal(seen, scene(faces))
    assert torch.allclose(tail(grid_of_stem), whole, atol=1e-5)
    assert sum(p.numel() for p in frozen.parameters()) + sum(
        p.numel() for p in tail.parameters()
    ) == sum(p.numel() for m in (scene, face) for p in m.parameters())
