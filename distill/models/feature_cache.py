"""Keep a frozen network's outputs on disk, memory-mapped, so that two cores can train the rest.

DATA.features/KEY/SPLIT-IMAGES/ holds, for every crop of a split, in the crops' order:

    codes.npy   (N, G * G, D) int8
    scale.npy   (N, G * G) float16
    done        how many rows are written; a run that was killed resumes there

KEY is a digest of the network's weights and input side, the crops' form and the precision, IMAGES
one of the cropped images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.disk import create_map, refuse_full_disk
from distill.models import store
from distill.models.backbones import FrozenStem
from distill.models.dinov2 import Dinov2
from distill.models.grids import to_grid, to_tokens
from distill.models.precision import autocast
from distill.progress import Progress
from edge.base.errors import DataError
from edge.base.files import file_lock, write_atomically

BATCH = 64
SAVE_EVERY = 16  # batches


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of all weights and statistics with their names, in hexadecimal."""
    digest = hashlib.sha256()
    weights = store.stored_names(module.state_dict())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features_folder(crops: Path, split: str, network: Dinov2 | FrozenStem, bf16: bool) -> Path:
    """Return DATA.features/KEY/SPLIT-IMAGES for the crops in DATA.crops/KEY.

    Raises DataError where the crops of that split are not finished."""
    kind = "Dinov2" if isinstance(network, Dinov2) else "Lower"  # as 0.1.0 named its caches
    inputs = [crops.name, kind, weights_digest(network), network.side, bf16]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    try:
        images = hashlib.sha256((crops / f"{split}.key").read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise DataError(f"{crops} holds no finished crops of '{split}'; run it again") from error
    beside = crops.parent.with_name(crops.parent.name.removesuffix(".crops") + ".features")
    return beside / key / f"{split}-{images}"


def pack(grid: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantise (B, D, G, G) to int8 codes (B, G * G, D) and a scale for each place (B, G * G).

    Half the bytes of float16, and a cosine to the original above 0.999 (tested)."""
    tokens = to_tokens(grid.float())
    scale = (tokens.abs().amax(dim=2) / 127).clamp(1e-6).half()
    codes = (tokens / scale.float()[:, :, None]).round().clamp(-127, 127).to(torch.int8)
    return codes.contiguous().numpy(), scale.numpy()


def unpack(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> Tensor:
    """Restore (B, D, G, G) float32 from what `pack` returned."""
    places = torch.from_numpy(scale.astype(np.float32))[:, :, None]
    return to_grid(torch.from_numpy(codes).float() * places)


@dataclass(frozen=True, slots=True)
class Features:
    """Read one network's grids for one split from memory-mapped files."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.codes)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, D, G, G) float32."""
        return unpack(self.codes[rows], self.scale[rows])


@dataclass(frozen=True, slots=True)
class OnTheFlyFeatures:
    """Compute from the crops what Features reads from disk, for grids that would fill one.

    pixels: (N, C, S, S) uint8."""

    network: nn.Module
    pixels: NDArray[np.uint8]
    device: torch.device
    bf16: bool

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, D, G, G) float32."""
        faces = torch.from_numpy(self.pixels[rows]).float().to(self.device)
        with torch.no_grad(), autocast(self.device, self.bf16):
            grid: Tensor = self.network(faces)
        return grid.float()


Grids = Features | OnTheFlyFeatures


def cache_features(
    place: Path,
    network: nn.Module,
    pixels: NDArray[np.uint8],
    device: torch.device,
    bf16: bool,
    progress: Callable[[str], None],
) -> Features:
    """Open the cache in `place` after computing what is missing. pixels: (N, C, S, S) uint8.

    Raises DataError where the disk is too small or the files are damaged."""
    computed = OnTheFlyFeatures(network, pixels, device, bf16)
    if _done(place) == len(pixels):  # a finished one may lie on a disk that is read-only
        return _cached(place, computed, progress)
    refuse_full_disk(place, 0)
    with file_lock(place / ".lock"):  # two runs over the same data: the second finds it done
        return _cached(place, computed, progress)


def _done(place: Path) -> int:
    """Return how many rows are written; raises DataError where the mark is damaged."""
    mark = place / "done"
    try:
        return int(mark.read_text()) if mark.is_file() else 0
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be used ({error}); delete it and start again") from error


def _cached(place: Path, computed: OnTheFlyFeatures, progress: Callable[[str], None]) -> Features:
    pixels = computed.pixels
    mark = place / "done"

    def compute(start: int) -> Tensor:
        return computed.read(np.arange(start, min(start + BATCH, len(pixels)))).cpu()

    done = _done(place)
    try:
        if done == 0 and len(pixels):
            _allocate(place, compute(0), len(pixels))
        finished = done == len(pixels)
        codes, scale = (
            np.load(place / f"{name}.npy", mmap_mode="r" if finished else "r+")
            for name in ("codes", "scale")
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be used ({error}); delete it and start again") from error
    if not len(codes) == len(scale) == len(pixels):
        raise DataError(f"{place} holds other images; delete it and start again")
    if finished:
        return Features(codes, scale)
    progress(f"features, {place.parent.name}/{place.name}: {len(pixels) - done} images to compute")
    split = place.name.partition("-")[0]
    with Progress(f"features of {split}", len(pixels), "images", done) as bar:
        while done < len(pixels):
            codes[done : done + BATCH], scale[done : done + BATCH] = pack(compute(done))
            bar.advance(min(BATCH, len(pixels) - done))
            done = min(done + BATCH, len(pixels))
            if done % (SAVE_EVERY * BATCH) == 0 or done == len(pixels):
                codes.flush()
                scale.flush()
                # After the rows: killed in between, they are computed again.
                write_atomically(mark, str(done).encode())
    return Features(codes, scale)


def _allocate(place: Path, sample: Tensor, rows: int) -> None:
    places = sample.shape[2] * sample.shape[3]
    refuse_full_disk(place, rows * places * (sample.shape[1] + 2))
    create_map(place / "codes.npy", np.int8, (rows, places, sample.shape[1]))
    try:
        create_map(place / "scale.npy", np.float16, (rows, places))
    except DataError:
        (place / "codes.npy").unlink()
        raise
