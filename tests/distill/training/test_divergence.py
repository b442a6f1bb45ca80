"""A run that diverges ends at that step, and what was good of it stays."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.models import store
from distill.models.checkpoint import load_checkpoint
from distill.train import train
from distill.training.trainer import Trainer
from edge.base.errors import DataError, EdgeError
from support.tiny_run import ALONE, EPOCHS, IMAGES, STEPS, prepared


@settings(max_examples=20)  # each trains
@given(
    step=st.integers(0, EPOCHS * STEPS - 1),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    where=st.sampled_from(["faces", "targets", "gradients"]),
    sharpness=st.sampled_from([0.0, 0.05]),
)
@pytest.mark.slow
def test_training_ends_at_the_step_and_keeps_the_epochs_before(
    tmp_path_factory: pytest.TempPathFactory, step: int, value: float, where: str, sharpness: float
) -> None:
    out = tmp_path_factory.mktemp("run")
    epoch, index = divmod(step, STEPS)
    with pytest.raises(EdgeError) as error:
        train(*prepared(step, value, where, sharpness=sharpness), out, ALONE)
    said = str(error.value)
    assert f"diverged in epoch {epoch}, step {index}: " in said
    assert ("the gradients' norm is" if where == "gradients" else "loss 'votes' is") in said
    assert ("check what it starts from" if step == 0 else "lower training.learning_rate") in said
    if epoch == 0:
        assert "no checkpoint was written" in said
        assert list(out.iterdir()) == []
        return
    assert f"last.pt is kept as of epoch {epoch - 1}" in said
    assert store.load(out / "last.pt")["epoch"] == epoch - 1
    assert len(list(csv.DictReader((out / "log.csv").open()))) == epoch
    assert load_checkpoint(out / "best.pt").metadata["epoch"] < epoch


def test_weights_that_overflow_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(
        EdgeError, match=r"diverged at the end of epoch 0: .*learning_rate"
    ) as error:
        train(*prepared(batch=IMAGES, epochs=1, learning_rate=1e30), tmp_path, ALONE)
    assert "no checkpoint was written" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_healthy_run_is_not_stopped(tmp_path: Path) -> None:
    best = train(*prepared(sharpness=0.05), tmp_path, ALONE)
    assert load_checkpoint(best).labels == ("calm", "glad")


def test_what_an_older_version_kept_of_a_diverged_run_is_refused(tmp_path: Path) -> None:
    recipe, setup = prepared()
    train(recipe, setup, tmp_path, ALONE)
    for file, part in (("last.pt", "average"), ("best.pt", "network")):
        content = store.load(tmp_path / file)
        content[part]["head.bias"][0] = float("nan")
        store.save(tmp_path / file, content)
    with pytest.raises(DataError, match=r"last\.pt is of a run that had diverged \('head\.bias'"):
        Trainer(recipe, setup, ALONE, compiled=False).resume(tmp_path / "last.pt")
    with pytest.raises(DataError, match=r"best\.pt holds weights that are not finite"):
        load_checkpoint(tmp_path / "best.pt")
