"""Choose the images to learn from and to validate on, and the order in which they come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.splits import Split, majority


@dataclass(frozen=True, slots=True)
class Examples:
    """faces: (N, C, S, S) uint8 (a memory map, read a batch at a time); targets: (N, K) float32;
    rows: the indices of both that are learned from; digest: a hash of their names and targets."""

    faces: NDArray[np.uint8]
    targets: NDArray[np.float32]
    rows: NDArray[np.int64]
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read faces (B, C, S, S) float32 of 0..255 and targets (B, K)."""
        return torch.from_numpy(self.faces[rows]).float(), torch.from_numpy(self.targets[rows])


def training_examples(split: Split, leave_out: set[str]) -> Examples:
    """Select images to learn from: some vote for a class, not mostly voted no face, not left out."""
    classes = len(split.labels)
    inside = split.votes[:, :classes]
    extra = split.votes[:, classes:]
    usable = inside.sum(axis=1) > 0
    if extra.shape[1]:
        usable &= extra.max(axis=1) <= inside.max(axis=1)
    usable &= np.array([name not in leave_out for name in split.crops.names])
    rows = np.flatnonzero(usable)
    names = "\n".join(split.crops.names[row] for row in rows)
    digest = hashlib.sha256(names.encode() + split.targets[rows].tobytes()).hexdigest()
    return Examples(split.crops.pixels, split.targets, rows, digest)


def validation_labels(valid: Split, leave_out: frozenset[str] | set[str]) -> NDArray[np.int64]:
    """Label the images to choose a model on (N,): by majority, -1 for none and for those left out."""
    truth = majority(valid.votes, len(valid.labels))
    truth[[name in leave_out for name in valid.crops.names]] = -1
    return truth


def left_without(split: Split, examples: Examples) -> list[str]:
    """Name the classes of which a split has pictures, and none is left to learn from."""
    had, left = (x.sum(axis=0) for x in (split.targets, examples.targets[examples.rows]))
    return [label for k, label in enumerate(split.labels) if had[k] and not left[k]]


def log_prior(examples: Examples, balance: float = 0.0) -> Tensor:
    """Return the log of each class's share of the votes, (K,) float32, of the images as they are drawn
    at `balance` (see `sampling_weights`); a class without a vote counts as one image's."""
    targets = examples.targets[examples.rows].astype(np.float64)
    if balance > 0:
        targets *= (len(examples) * sampling_weights(examples, balance))[:, None]
    total = np.maximum(targets.sum(axis=0), 1.0)
    return torch.from_numpy(np.log(total / total.sum())).float()


def sampling_weights(examples: Examples, balance: float) -> NDArray[np.float64]:
    """Weigh how often each example is drawn, (N,) that sum to 1: evenly at balance 0, evenly by class
    at 1, else by (1 / images of its class) ** balance (Mahajan et al., ECCV 2018, the exponent)."""
    classes = examples.targets[examples.rows].argmax(axis=1)
    share = (1.0 / np.bincount(classes)[classes].astype(np.float64)) ** balance
    return np.asarray(share / share.sum())


def batches(
    examples: Examples,
    size: int,
    seed: int,
    epoch: int,
    balance: float = 0.0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[NDArray[np.int64]]:
    """Yield rows of `examples.faces`, a batch at a time, sorted so that a disk reads forwards.

    The order depends on seed and epoch alone. Of each batch a process takes its own part, so that
    `world` processes see together what one sees; a part is never a single image, which would break
    batch statistics.
    """
    rng = np.random.default_rng([seed, epoch])
    if balance > 0:
        order = rng.choice(len(examples), len(examples), p=sampling_weights(examples, balance))
    else:
        order = rng.permutation(len(examples))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        if len(places) >= 2 * world:
            yield np.sort(examples.rows[places[rank::world]])
