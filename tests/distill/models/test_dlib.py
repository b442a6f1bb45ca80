from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from distill.models.backbones import split_backbone
from distill.models.dlib import DlibFace, settle
from distill.models.face_files import face_files
from distill.models.grids import to_tokens
from edge.base.errors import DataError, UsageError
from support.backbone_files import WholeDlib, dlib_state, write_dlib

LEVELS = (3, 4, 3, 3, 1)  # units


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dlib(tmp_path_factory.mktemp("dlib") / "dlib.safetensors", dlib_state(0))


def described(pixels: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """dlib's network as its example describes it, layer by layer. pixels: (B, 3, S, S) RGB."""
    w = {name: value.float() for name, value in state.items()}

    def affine(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * w[f"{name}.weight"].reshape(1, -1, 1, 1) + w[f"{name}.bias"].reshape(1, -1, 1, 1)

    def convolve(x: torch.Tensor, name: str, stride: int, padding: int) -> torch.Tensor:
        return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    def fill(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        out = torch.zeros([max(a, b) for a, b in zip(x.shape, like.shape, strict=True)])
        out[:, : x.shape[1], : x.shape[2], : x.shape[3]] = x
        return out

    x = (pixels - torch.tensor([122.782, 117.001, 104.298]).reshape(1, 3, 1, 1)) / 256
    x = functional.max_pool2d(affine(convolve(x, "conv", 2, 0), "affine").relu(), 3, 2)
    for level, units in enumerate(LEVELS):
        for unit in range(units):
            name, halve = f"levels.{level}.{unit}", level > 0 and unit == 0
            y = convolve(x, f"{name}.conv1", 2 if halve else 1, 0 if halve else 1)
            y = convolve(affine(y, f"{name}.affine1").relu(), f"{name}.conv2", 1, 1)
            y = affine(y, f"{name}.affine2")
            x = functional.avg_pool2d(x, 2) if halve else x
            x = (fill(x, y) + fill(y, x)).relu()
    return x


def test_it_computes_what_dlib_describes_also_where_sizes_differ(file: Path) -> None:
    """At 150 pixels the last levels have even widths, which dlib fills with zeros."""
    faces = torch.rand(2, 3, 150, 150, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        out = WholeDlib.from_safetensors(file, 1)(faces)
        expected = described(faces.flip(1), dlib_state(0))
    assert out.shape == (2, 256, 2, 2)
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(("grid", "width", "units"), [(14, 64, 8), (7, 128, 11)])
def test_it_has_the_teachers_grids_and_a_moved_face_moves_its_tokens(
    file: Path, grid: int, width: int, units: int
) -> None:
    model = DlibFace.from_safetensors(file, grid)
    assert (model.width, len(model.stages())) == (width, units)
    assert model(torch.rand(2, 1, 64, 64) * 255).shape == (2, width, grid, grid)
    step = 112 // grid  # pixels between places
    middle = model.side // 2
    empty = torch.full((1, 1, model.side, model.side), 100.0)
    picture = empty.clone()
    picture[:, :, middle - step : middle, middle - step : middle] = 250.0
    moved = torch.roll(picture, shifts=(step, 2 * step), dims=(2, 3))
    with torch.no_grad():
        plain, before, after = (to_tokens(model(x)) for x in (empty, picture, moved))

    def place(x: torch.Tensor) -> tuple[int, int]:
        return divmod(int((x - plain)[0].norm(dim=1).argmax()), grid)

    assert (place(after)[0] - place(before)[0], place(after)[1] - place(before)[1]) == (1, 2)


def test_no_level_is_filled_with_rows_of_zeros_at_the_teachers_sides() -> None:
    for grid, (side, levels) in DlibFace.GRIDS.items():
        width = ((side - 7) // 2 + 1 - 3) // 2 + 1
        for _ in range(levels - 1):
            assert (width - 3) // 2 + 1 == width // 2, "convolved and averaged, of one size"
            width //= 2
        assert width == grid


def test_another_file_is_one_line(tmp_path: Path, file: Path) -> None:
    state = dlib_state(0)
    del state["levels.1.2.affine2.bias"]
    write_dlib(tmp_path / "half.safetensors", state)
    with pytest.raises(DataError, match=r"not dlib's face network: 'levels\.1\.2\.affine2\.bias'"):
        DlibFace.from_safetensors(tmp_path / "half.safetensors")
    state = {**dlib_state(0), "conv.weight": torch.zeros(32, 3, 3, 3)}
    write_dlib(tmp_path / "other.safetensors", state)
    with pytest.raises(DataError, match=r"'conv\.weight' is missing or of another shape"):
        DlibFace.from_safetensors(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    for name in ("cut", "absent"):
        with pytest.raises(DataError, match="not a readable safetensors file"):
            DlibFace.from_safetensors(tmp_path / f"{name}.safetensors")


def test_a_settled_tail_begins_as_the_network_that_was_loaded(file: Path) -> None:
    stem, tail = split_backbone(DlibFace.from_safetensors(file, 7), 7)
    grid = stem(torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(2)) * 255)
    loaded = tail(grid)
    with torch.no_grad():
        unsettled = tail.train()(grid)
    tail, again = split_backbone(DlibFace.from_safetensors(file, 7), 7)[1], None
    settle(tail, grid)
    with torch.no_grad():
        again, training = tail.eval()(grid), tail.train()(grid)
    assert torch.allclose(again, loaded, atol=1e-4)
    assert torch.allclose(training, loaded, atol=1e-3)
    assert not torch.allclose(unsettled, loaded, atol=0.1), "batch statistics would change it"


@pytest.mark.skipif(
    "DLIB_FACE" not in os.environ, reason="needs DLIB_FACE=FILE, dlib's own weights"
)
def test_the_real_weights_give_the_embedding_they_are_known_by() -> None:
    """The first six numbers, which agree with dlib's own within float16's rounding."""
    from safetensors.torch import load_file

    path = Path(os.environ["DLIB_FACE"])
    down, right = torch.meshgrid(torch.arange(150.0), torch.arange(150.0), indexing="ij")
    ramp = torch.stack([(right + down) / 2, down, right])[None]  # blue, green, red
    with torch.no_grad():
        level = WholeDlib.from_safetensors(path, 1)(ramp)
        embedding = load_file(path)["embed.weight"].float() @ level.mean(dim=(2, 3))[0]
    known = [-0.0548598, 0.1219947, 0.0635533, 0.0059975, -0.0601930, -0.0471216]
    assert embedding[:6].tolist() == pytest.approx(known, abs=1e-4)


def test_each_backbone_finds_its_file_by_the_ending(tmp_path: Path) -> None:
    sface, dlib, ir50, second, odd = (
        tmp_path / name for name in ("s.onnx", "d.safetensors", "i.pth", "t.ONNX", "odd.bin")
    )
    for path in (sface, dlib, ir50, second, odd):
        path.touch()
    assert face_files(["sface", "dlib"], [dlib, sface]) == [sface, dlib]
    assert face_files(["dlib"], [sface, dlib, ir50]) == [dlib]
    assert face_files(["sface"], [odd]) == [odd], "an only file is an only backbone's"
    with pytest.raises(UsageError, match=r"give dlib's face network"):
        face_files(["dlib"], [sface])
    with pytest.raises(UsageError, match=r"give dlib's face network as \.safetensors by --face"):
        face_files(["sface", "dlib"], [sface])
    with pytest.raises(UsageError, match="are for the same backbone, sface; give one"):
        face_files(["sface"], [sface, second])
    with pytest.raises(DataError, match="is not a file; give an ArcFace IR-50 checkpoint"):
        face_files(["ir50"], [tmp_path / "absent.pth"])
