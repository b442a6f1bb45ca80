"""A run's figures for TensorBoard, beside log.csv: `distill-train --tensorboard`.

The CSV stays the record: what it says of an epoch is written here once more.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

FOLDER = "tensorboard"  # in the run's own
# Of log.csv's columns those that are no figure, or the axis itself.
NO_CURVE = ("epoch", "machine")


class Scalars(Protocol):
    """What is written to."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...


def require_tensorboard() -> None:
    """Raise ModuleNotFoundError where TensorBoard is missing, which its extra brings."""
    importlib.import_module("tensorboard")


@contextmanager
def open_scalars(out: Path, first: int) -> Iterator[Scalars]:
    """Open OUT/tensorboard for a run that begins at epoch `first`: what a killed run wrote of later
    epochs is not shown."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / FOLDER), purge_step=first)  # type: ignore[no-untyped-call]
    try:
        yield writer
    finally:
        writer.close()  # type: ignore[no-untyped-call]


def write_row(scalars: Scalars, row: Mapping[str, Any]) -> None:
    """Write a row of log.csv: `loss_votes` as `loss/votes`, `valid_loss` as `valid/loss`, and so on. An
    empty cell is no point."""
    for key, value in row.items():
        if key in NO_CURVE or value == "":
            continue
        group, _, name = key.partition("_")
        tag = f"{group}/{name or 'all'}" if group in ("loss", "valid") else key
        scalars.add_scalar(tag, float(value), int(row["epoch"]))
