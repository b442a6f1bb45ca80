"""Backbones of the real form with random weights, written as their makers write them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from distill.models.dlib import DlibFace
from distill.models.sface import SFace


def write_dinov2(folder: Path) -> Path:
    """A DINOv2 of no size, saved as the hub's folders are."""
    transformers = pytest.importorskip("transformers", reason="needs the 'train' extra")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
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


class WholeDlib(DlibFace):
    """All five levels, at the side of dlib's own chips."""

    GRIDS = {1: (150, 5)}  # noqa: RUF012


def dlib_state(seed: int) -> dict[str, torch.Tensor]:
    """All levels' weights, by the names of the file, of a size that keeps numbers small."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in WholeDlib(1).state_dict().items():
        if "running_" in name or name.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            drawn *= (2 / value[0].numel()) ** 0.5
        else:
            drawn = 0.1 * drawn + (0.5 if "norm" in name and name.endswith("weight") else 0.0)
        state[name.replace("norm", "affine")] = drawn.half()
    return state


def write_dlib(path: Path, state: dict[str, torch.Tensor]) -> Path:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the 'train' extra")
    safetensors.save_file(state, path)
    return path


def write_sface(path: Path, state: dict[str, torch.Tensor]) -> Path:
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
    return path
