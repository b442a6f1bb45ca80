"""The frozen side's outputs on disk, memory-mapped, so that two cores can train the rest.

DATA.features/KEY/SPLIT/VIEW/ holds, for every crop of a split, in the crops' order:

    scene.npy   (N, G * G, Ds) int8     scene-scale.npy  (N, G * G) float16
    lower.npy   (N, G' * G', C) int8    lower-scale.npy  (N, G' * G') float16
    done        how many rows are written; a killed run goes on from there

KEY names the frozen weights, the crops and the changes. View 0 is the crop, view 1 its mirror image,
the later ones have a random placement, light, noise ... of their own: each epoch reads one of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.augment import augment
from distill.backbones import Frozen, to_grid, to_tokens
from distill.precision import autocast
from distill.recipe import Augmentation
from edge.errors import DataError
from edge.weights import write_atomically

BLOCK = 64  # rows that are drawn and computed together: a view depends on it, so it never changes
NAMES = ("scene", "lower")


def weights_digest(module: torch.nn.Module) -> str:
    """sha256 of all its weights and statistics, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features_folder(crops: Path, frozen: Frozen, augmentation: Augmentation, bf16: bool) -> Path:
    """Beside the raw data: crops is DATA.crops/KEY, the result DATA.features/OTHER_KEY."""
    facts = [crops.name, weights_digest(frozen), augmentation.model_dump(), bf16, BLOCK]
    facts.append(frozen.scene.side)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return crops.parent.with_name(crops.parent.name.removesuffix(".crops") + ".features") / key


def pack(grid: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """(B, D, G, G) to int8 codes (B, G * G, D) and one scale a place (B, G * G): half the bytes of
    float16, and a cosine to the original above 0.999 (tested)."""
    tokens = to_tokens(grid.float())
    scale = (tokens.abs().amax(dim=2) / 127).clamp(1e-6).half()
    codes = (tokens / scale.float()[:, :, None]).round().clamp(-127, 127).to(torch.int8)
    return codes.contiguous().numpy(), scale.numpy()


def unpack(
    codes: NDArray[np.int8], scale: NDArray[np.float16], kind: torch.dtype = torch.float32
) -> Tensor:
    """The other way: (B, D, G, G)."""
    places = torch.from_numpy(scale.astype(np.float32))[:, :, None].to(kind)
    return to_grid(torch.from_numpy(codes).to(kind) * places)


@dataclass(frozen=True, slots=True)
class View:
    """One view of one split, memory-mapped: codes and scales by name."""

    maps: dict[str, tuple[NDArray[np.int8], NDArray[np.float16]]]

    def read(
        self, rows: NDArray[np.int64], kind: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """The scene's grid (B, Ds, G, G) and the lower face grid (B, C, G', G'). bfloat16 holds the
        codes exactly and is read in half the time."""
        pairs = self.maps.values()
        scene, lower = (unpack(codes[rows], scale[rows], kind) for codes, scale in pairs)
        return scene, lower


def changed(faces: Tensor, view: int, block: int, augmentation: Augmentation) -> Tensor:
    """The view of a block of faces, the same every time."""
    if view == 0:
        return faces
    if view == 1:
        return faces.flip(3)
    return augment(faces, augmentation, torch.Generator().manual_seed(view * 1_000_003 + block))


def cache_view(
    folder: Path,
    frozen: Frozen,
    pixels: NDArray[np.uint8],
    view: int,
    augmentation: Augmentation,
    bf16: bool,
    progress: Callable[[str], None],
) -> View:
    """Open `folder`/`view`, computing what is not there yet. pixels: (N, C, S, S) uint8.

    Raises DataError where the disk is too small or the files are damaged."""
    place = folder / str(view)
    mark = place / "done"
    done = int(mark.read_text()) if mark.is_file() else 0
    device = next(frozen.parameters()).device

    def compute(start: int) -> tuple[Tensor, Tensor]:
        block = torch.from_numpy(np.array(pixels[start : start + BLOCK])).float()
        faces = changed(block, view, start // BLOCK, augmentation).to(device)
        with autocast(device, bf16):
            scene, lower = frozen(faces)
        return scene.cpu(), lower.cpu()

    try:
        if done == 0 and len(pixels):
            _make_room(place, compute(0), len(pixels))
        maps = {
            name: (
                np.load(place / f"{name}.npy", mmap_mode="r+"),
                np.load(place / f"{name}-scale.npy", mmap_mode="r+"),
            )
            for name in NAMES
        }
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be used ({error}); delete it and start again") from error
    if any(len(array) != len(pixels) for pair in maps.values() for array in pair):
        raise DataError(f"{place} holds other pictures; delete it and start again")
    started, first = time.monotonic(), done
    while done < len(pixels):
        for name, grid in zip(NAMES, compute(done), strict=True):
            codes, scale = pack(grid)
            maps[name][0][done : done + BLOCK] = codes
            maps[name][1][done : done + BLOCK] = scale
        done = min(done + BLOCK, len(pixels))
        if done % (16 * BLOCK) == 0 or done == len(pixels):
            for pair in maps.values():
                for array in pair:
                    array.flush()  # type: ignore[attr-defined]
            # After the rows: killed in between, they are computed again.
            write_atomically(mark, str(done).encode())
            rate = (done - first) / (time.monotonic() - started)
            progress(
                f"features {folder.name} view {view}: {done}/{len(pixels)}, "
                f"{(len(pixels) - done) / rate / 60:.0f} min to go"
            )
    return View(maps)


def _make_room(place: Path, sample: tuple[Tensor, Tensor], rows: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    shapes = {
        name: (rows, grid.shape[2] * grid.shape[3], grid.shape[1])
        for name, grid in zip(NAMES, sample, strict=True)
    }
    needed = sum(int(np.prod(shape)) + 2 * shape[0] * shape[1] for shape in shapes.values())
    if needed > (free := shutil.disk_usage(place).free):
        raise DataError(
            f"{place} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            f"lower teacher.views or put the data on another disk"
        )
    for name, shape in shapes.items():
        for ending, kind, size in ((".npy", np.int8, shape), ("-scale.npy", np.float16, shape[:2])):
            np.lib.format.open_memmap(place / (name + ending), "w+", kind, size)
