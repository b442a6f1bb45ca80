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
from edge.base.files import file_lock
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


@pytest.mark.parametrize("ended", [True, False], ids=["no epoch is left", "one epoch is left"])
def test_a_run_whose_best_checkpoint_is_lost_or_another_file_is_not_resumed(
    tmp_path: Path, ended: bool
) -> None:
    last = stopped(tmp_path)[0]
    best = tmp_path / "best.pt"
    content = store.load(best) | {"epoch": 0}
    if ended:
        store.save(last, store.load(last) | {"epoch": EPOCHS - 1})
    mean = content | {"valid_accuracy": None}  # as distill.models.average writes it
    for damage in (best.unlink, lambda: best.write_bytes(b"no"), lambda: store.save(best, mean)):
        store.save(best, content)
        damage()
        with pytest.raises(DataError, match=r"best\.pt .*put the run's own back, or train again"):
            resume(tmp_path)
    store.save(best, content | {"valid_accuracy": store.load(last)["best"]})
    resume(tmp_path)


def test_the_best_of_an_epoch_that_was_killed_before_its_end_stays_the_best(tmp_path: Path) -> None:
    stopped(tmp_path)
    best = tmp_path / "best.pt"
    store.save(best, store.load(best) | {"epoch": EPOCHS - 1, "valid_accuracy": 1.0})
    kept = best.read_bytes()
    resume(tmp_path)  # as on another machine, where the epoch comes out worse
    assert store.load(tmp_path / "last.pt")["best"] == 1.0
    assert best.read_bytes() == kept


def test_of_two_runs_in_one_folder_the_second_is_refused_before_images_are_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    words = [str(tmp_path / "tiny.yaml"), "--data", str(tmp_path / "gone"), "--out", str(out)]
    with file_lock(out / ".lock", wait=False), pytest.raises(UsageError, match="another process"):
        run(words)
    with pytest.raises(DataError, match="gone is not a folder"):
        run(words)


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
