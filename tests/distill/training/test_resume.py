"""A run is resumed from its own files; what is none of them is one line, before anything is trained."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.models import store
from distill.recipe import MOST_SEED, Recipe
from distill.train import build_parser, run, train
from distill.training.trainer import Trainer
from edge.base.errors import DataError, UsageError
from support.tiny_run import ALONE, EPOCHS, prepared
from support.trained import RECIPE


def stopped(out: Path) -> tuple[Path, Path]:
    """A run of EPOCHS that was killed before its last: its last.pt and its log."""
    train(*prepared(), out, ALONE)
    state = store.load(out / "last.pt")
    store.save(out / "last.pt", state | {"epoch": EPOCHS - 2})
    return out / "last.pt", out / "log.csv"


def resume(out: Path) -> None:
    train(*prepared(), out, ALONE, resume=True)


def epochs(log: Path) -> list[str]:
    return [row["epoch"] for row in csv.DictReader(io.StringIO(log.read_text(encoding="utf-8")))]


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.replace(",", ";"),
        lambda text: text.replace("epoch", "Epoche"),
        lambda text: text.replace("\n0,", "\n0.0,"),
        lambda text: text.replace("\n1,", "\n1,,,,,,,,,,,,,,,,"),
    ],
    ids=["semicolons", "another heading", "0 as 0.0", "too many cells"],
)
def test_a_log_that_a_spreadsheet_saved_otherwise_is_refused_before_an_epoch_is_trained(
    tmp_path: Path, saved: Callable[[str], str]
) -> None:
    last, log = stopped(tmp_path)
    text = saved(log.read_text())
    assert text != log.read_text()
    log.write_text(text)
    with pytest.raises(
        DataError, match=r"log\.csv is not as distill-train wrote it; bring it back"
    ):
        resume(tmp_path)
    assert log.read_text() == text
    assert store.load(last)["epoch"] == EPOCHS - 2
    log.unlink()  # as the line says
    resume(tmp_path)
    assert epochs(log) == [str(EPOCHS - 1)]


def test_a_log_with_a_byte_order_mark_or_a_column_of_the_readers_own_goes_on(
    tmp_path: Path,
) -> None:
    log = stopped(tmp_path)[1]
    heading, *rows = log.read_text().splitlines()
    own = [f"{heading},note", *(f"{row},good" for row in rows)]
    log.write_text("\n".join(own) + "\n", encoding="utf-8-sig")
    resume(tmp_path)
    assert epochs(log) == [str(epoch) for epoch in range(EPOCHS)]
    kept = list(csv.DictReader(io.StringIO(log.read_text())))
    assert [row["note"] for row in kept] == ["good"] * (EPOCHS - 1) + [""]
    assert all(float(row["loss"]) > 0 for row in kept)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"network": {}}, {"identity": {}, "epoch": 0}],
    ids=["a list", "a checkpoint", "half a run"],
)
def test_what_is_no_run_is_not_resumed(tmp_path: Path, content: Any) -> None:
    store.save(tmp_path / "last.pt", content)
    with pytest.raises(DataError, match=r"last\.pt is not what distill-train leaves to be resumed"):
        resume(tmp_path)


@pytest.mark.parametrize("part", ["task", "average", "optimiser"])
def test_a_run_whose_weights_do_not_fit_its_recipe_is_not_resumed(
    tmp_path: Path, part: str
) -> None:
    last = stopped(tmp_path)[0]
    state = store.load(last)
    state[part].pop(next(iter(state[part])))
    store.save(last, state)
    recipe, setup = prepared()
    with pytest.raises(DataError, match=r"last\.pt does not fit its own recipe"):
        Trainer(recipe, setup, ALONE, compiled=False).resume(last)


def test_any_seed_that_is_taken_trains_and_a_larger_one_is_refused_at_once(tmp_path: Path) -> None:
    train(*prepared(seed=MOST_SEED, epochs=1), tmp_path / "run", ALONE)
    with pytest.raises(ValueError, match="less than or equal to"):
        prepared(seed=MOST_SEED + 1)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    words = [str(recipe), "--data", "none", "--out", str(tmp_path / "other")]
    for seed in ("20261129213650", "-1"):
        with pytest.raises(UsageError, match=f"--seed {seed}: give a whole number from 0 to"):
            run([*words, "--seed", seed])
    assert isinstance(prepared(seed=0)[0], Recipe)
    assert build_parser().parse_args([*words, "--seed", "7"]).seed == 7
