"""TensorBoard beside the CSV: the same figures, and one line where its extra is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from distill.training.scalars import FOLDER, open_scalars, write_row
from support.command import call
from support.paths import ROOT

ROW = {
    "epoch": 3,
    "loss": 1.5,
    "loss_votes": 1.0,
    "loss_logits": 0.5,
    "valid_accuracy": 0.8,
    "valid_loss": 0.7,
    "learning_rate": "0.002",
    "seconds": 12.5,
    "machine": "1 x cpu fp32",
}


class Kept:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.points.append((tag, value, step))


def test_a_row_of_the_log_is_a_point_a_figure() -> None:
    kept = Kept()
    write_row(kept, ROW)
    assert kept.points == [
        ("loss/all", 1.5, 3),
        ("loss/votes", 1.0, 3),
        ("loss/logits", 0.5, 3),
        ("valid/accuracy", 0.8, 3),
        ("valid/loss", 0.7, 3),
        ("learning_rate", 0.002, 3),
        ("seconds", 12.5, 3),
    ]


def test_without_a_validation_split_there_is_no_point_of_it() -> None:
    kept = Kept()
    write_row(kept, {**ROW, "valid_accuracy": "", "valid_loss": ""})
    assert not [tag for tag, _, _ in kept.points if tag.startswith("valid")]


def test_a_missing_extra_is_one_line_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = [ROOT / "distill/recipes/student.yaml", "--data", tmp_path / "nowhere"]
    done = call("distill.train", *words, "--out", tmp_path / "out", "--tensorboard", env={})
    assert done.code == 1
    assert done.err == (
        "distill-train: tensorboard is not installed; install the 'tensorboard' extra: "
        "pip install '.[tensorboard]'\n"
    )


@pytest.mark.slow
def test_tensorboard_reads_what_was_written_and_a_resumed_run_takes_over(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the 'tensorboard' extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(first: int, last: int, loss: float) -> None:
        with open_scalars(tmp_path, first) as scalars:
            for epoch in range(first, last):
                write_row(scalars, {**ROW, "epoch": epoch, "valid_loss": loss})

    write(0, 4, 1.0)
    write(2, 5, 2.0)  # killed after epoch 1's checkpoint
    found: Any = EventAccumulator(str(tmp_path / FOLDER))
    found.Reload()
    points = {event.step: event.value for event in found.Scalars("valid/loss")}
    assert points == {0: 1.0, 1: 1.0, 2: 2.0, 3: 2.0, 4: 2.0}
