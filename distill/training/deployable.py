"""What a student's bundle will want of its data, said before the training and not after it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import DataError
from edge.inference.bundle import MOST_LABELS

ENOUGH_CROPS = 512  # for INT8: of fewer, a range may miss what the next face holds
FEWEST_LABELS = 50  # of train and of valid, to fit the counting's constants on


def say_needs(
    labels: tuple[str, ...],
    examples: int,
    truth: NDArray[np.int64],
    say: Callable[[str], None],
) -> None:
    """Say what `export-model` will do without for want of data.

    examples: labelled training images; truth: (N,) labels of the validation split, -1 for none. Raises
    DataError where no bundle could take the classes."""
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"the data has {len(labels)} classes, a bundle takes {MOST_LABELS}; merge or remove some"
        )
    chosen = int((truth >= 0).sum())
    if examples < ENOUGH_CROPS:
        say(
            f"for the bundle: {examples} training images, INT8 wants {ENOUGH_CROPS} to be calibrated "
            f"on; more faces, without labels, can be given to export-model by --calibration DIR"
        )
    if min(examples, chosen) < FEWEST_LABELS:
        say(
            f"for the bundle: {examples} images of train and {chosen} of valid have a label; with "
            f"fewer than {FEWEST_LABELS} of each there are no constants for the counting"
        )
    if missing := sorted(set(range(len(labels))) - set(truth[truth >= 0].tolist())):
        names = ", ".join(labels[k] for k in missing)
        say(f"for the bundle: valid has no picture of {names}, so nothing tells how they are read")
