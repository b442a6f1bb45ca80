"""A scene's backbone is read whole, whichever of DINOv2 and DINOv3 it is, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.models import dinov2
from distill.models.dinov2 import Dinov2
from distill.models.grids import as_rgb
from edge.base.errors import DataError

transformers = pytest.importorskip("transformers", reason="needs the 'train' extra")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
READ: dict[str, tuple[str, dict[str, int]]] = {
    "dinov2": ("Dinov2", {"patch_size": 14}),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"patch_size": 14, "num_register_tokens": 4}),
    "dinov3_vit": (
        "DINOv3ViT",
        {"patch_size": 16, "num_register_tokens": 4, "intermediate_size": 48},
    ),
}


def save(folder: Path, family: str, head: str = "Model", **sizes: int) -> Any:
    """Write a network of no size as the hub's folders are; return it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **sizes)
    model = getattr(transformers, f"{family}{head}")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", READ)
@pytest.mark.slow
def test_the_places_are_those_behind_the_class_token_and_the_registers(
    tmp_path: Path, kind: str
) -> None:
    family, sizes = READ[kind]
    model = save(tmp_path, family, **sizes)
    backbone, faces = Dinov2(str(tmp_path), 7), torch.rand(2, 1, 64, 64) * 255
    assert backbone.side == 7 * sizes["patch_size"]
    grid = backbone(faces)
    assert grid.shape == (2, 24, 7, 7)
    pixels = (as_rgb(faces, backbone.side) - backbone.mean) / backbone.deviation
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state
    registers = sizes.get("num_register_tokens", 0)
    assert tokens.shape[1] == 1 + registers + 49
    expected = tokens[:, 1 + registers :].transpose(1, 2).reshape(2, 24, 7, 7)
    assert torch.allclose(grid, expected, atol=1e-5)


@pytest.mark.slow
def test_registers_that_the_configuration_does_not_name_are_not_dropped(tmp_path: Path) -> None:
    family, sizes = READ["dinov2_with_registers"]
    save(tmp_path, family, **sizes)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "dinov2"}))
    with pytest.raises(
        DataError, match=r"nothing reads its 'embeddings\.register_tokens'; give the"
    ):
        Dinov2(str(tmp_path))


@pytest.mark.slow
def test_registers_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    save(tmp_path, "Dinov2", patch_size=14)
    file = tmp_path / "config.json"
    changed = json.loads(file.read_text()) | {"model_type": "dinov2_with_registers"}
    file.write_text(json.dumps(changed))
    with pytest.raises(DataError, match=r"it lacks 'embeddings\.register_tokens'"):
        Dinov2(str(tmp_path))


def test_other_networks_and_older_libraries_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "vit", "ViT", patch_size=14)
    with pytest.raises(DataError, match="holds a 'vit', which is not read; give one of dinov2, "):
        Dinov2(str(tmp_path / "vit"))
    save(tmp_path / "dinov2", "Dinov2", patch_size=14)
    monkeypatch.setitem(dinov2.KINDS, "dinov2", "AClassOfALaterTransformers")
    with pytest.raises(DataError, match=r"holds a 'dinov2', which transformers \S+ does not know"):
        Dinov2(str(tmp_path / "dinov2"))


def test_a_head_that_names_classes_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "Dinov2", head="ForImageClassification", patch_size=14)
    assert Dinov2(str(tmp_path), 7)(torch.rand(1, 1, 64, 64)).shape == (1, 24, 7, 7)
    assert (
        "a head that names classes, which is left out: classifier.bias" in capsys.readouterr().err
    )


def test_weights_of_another_size_are_one_line(tmp_path: Path) -> None:
    save(tmp_path, "Dinov2", patch_size=14)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 32}))
    with pytest.raises(DataError, match="no DINOv2 at"):
        Dinov2(str(tmp_path))
