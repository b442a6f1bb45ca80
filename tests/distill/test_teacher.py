from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from distill.backbones import GRID, IR50, Dinov2, SFace, as_rgb, freeze, to_tokens
from distill.teacher import Teacher, TeacherConfig, pool_tokens
from edge.errors import DataError

CONFIG = TeacherConfig(classes=8, scene_width=24, face_width=16, width=32, heads=4)


def tokens(batch: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, GRID * GRID, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of the real form and of no size, saved as the hub's folders are."""
    transformers = pytest.importorskip("transformers", reason="needs the 'train' extra")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def random_state(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights and batch statistics of a network in use."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if not value.dtype.is_floating_point:
            state[name] = value
        elif name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            state[name] = 0.2 * torch.randn(value.shape, generator=generator)
    return state


def write_sface(path: Path, state: dict[str, torch.Tensor]) -> None:
    tensors = [
        numpy_helper.from_array(
            value.numpy().reshape(-1, 1, 1) if "relu" in name else value.numpy(),
            SFace._onnx_name(name),
        )
        for name, value in state.items()
        if value.dtype.is_floating_point
    ]
    node = helper.make_node("Identity", ["data"], ["out"])
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("data", "out")]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", value[:1], value[1:], tensors)), path
    )


def test_sface_is_read_from_its_initialisers_by_name(tmp_path: Path) -> None:
    state = random_state(SFace(), 1)
    write_sface(tmp_path / "sface.onnx", state)
    loaded = SFace.from_onnx(tmp_path / "sface.onnx")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert loaded(torch.rand(2, 1, 64, 64) * 255).shape == (2, 196, 512)
    del state["units.3.dw_conv2d.weight"]
    write_sface(tmp_path / "half.onnx", state)
    with pytest.raises(DataError, match="'conv_5_dw_conv2d_weight' is missing"):
        SFace.from_onnx(tmp_path / "half.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"\x01garbage")
    with pytest.raises(DataError, match="no ONNX file"):
        SFace.from_onnx(tmp_path / "garbage.onnx")


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
    assert model(torch.rand(1, 1, 64, 64) * 255).shape == (1, 196, 256)


def test_a_checkpoint_of_something_else_or_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="is no IR-50: 'input_layer"):
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
    assert backbone(faces).shape == (2, 196, 24)
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
        plain, before, after = (model(x) for x in (empty, picture, moved))

    def place(x: torch.Tensor) -> tuple[int, int]:
        return divmod(int((x - plain)[0].norm(dim=1).argmax()), GRID)

    assert (place(after)[0] - place(before)[0], place(after)[1] - place(before)[1]) == (2, 3)
    grid = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert torch.equal(to_tokens(grid)[1, 4 * 2 + 3], grid[1, :, 2, 3])


def test_pooling_keeps_places() -> None:
    grid = torch.zeros(1, 5, GRID, GRID)
    grid[:, :, 6:8, 10:12] = 1.0
    pooled = pool_tokens(to_tokens(grid), 7)
    assert int(pooled[0, :, 0].argmax()) == 3 * 7 + 5
    assert float(pooled.max()) == 1.0


def test_colour_order_and_grey_become_rgb() -> None:
    blue = torch.zeros(1, 3, 8, 8)
    blue[:, 0] = 200.0  # OpenCV's first channel
    assert as_rgb(blue, 8)[0, :, 0, 0].tolist() == [0.0, 0.0, 200.0]
    assert as_rgb(torch.full((1, 1, 8, 8), 7.0), 16).shape == (1, 3, 16, 16)


def test_each_backbone_and_each_part_counts_and_an_absent_one_does_not() -> None:
    scene, face = tokens(3, 24, 1), tokens(3, 16, 2)
    torch.manual_seed(0)
    full = Teacher(CONFIG).eval()
    out = full(scene, face)
    assert out.shape == (3, 8)
    assert not torch.allclose(out, full(scene + 1 * tokens(3, 24, 5), face), atol=1e-3)
    assert not torch.allclose(out, full(scene, face + 1 * tokens(3, 16, 6)), atol=1e-3)
    for part in ("scene", "face", "attend", "convolve"):
        config = TeacherConfig(**{**CONFIG.as_dict(), part: False})  # type: ignore[arg-type]
        less = Teacher(config).eval()
        less.load_state_dict(full.state_dict())
        assert not torch.allclose(out, less(scene, face), atol=1e-3), part
        if part == "scene":
            assert torch.equal(less(scene, face), less(tokens(3, 24, 9), face))
        if part == "face":
            assert torch.equal(less(scene, face), less(scene, tokens(3, 16, 9)))
    with pytest.raises(ValueError, match="nothing to read"):
        Teacher(TeacherConfig(**{**CONFIG.as_dict(), "scene": False, "face": False}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("how", "share"), [("all", 0.0), ("early", 0.5), ("none", 1.0)])
def test_the_face_backbone_is_frozen_as_told(how: str, share: float) -> None:
    model = SFace()
    freeze(model, how)  # type: ignore[arg-type]
    learning = [p.requires_grad for p in model.parameters()]
    assert np.mean(learning) == pytest.approx(share, abs=0.25)
    assert model.units[10].conv2d.weight.requires_grad is (how != "all")
    assert model.conv_1_conv2d.weight.requires_grad is (how == "none")
