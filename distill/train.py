"""`distill-train`: train a student or a teacher by a recipe, from data to a checkpoint.

OUT/last.pt        task, moving average, optimiser and epoch, written atomically after every epoch;
                   a resumed run ends with the same weights as one that was not interrupted
OUT/best.pt        the moving average with the best validation accuracy so far; with --train-on-all
                   that of the last epoch
OUT/tensorboard/   by --tensorboard, the same figures for TensorBoard
OUT/epoch-NNN.pt   the moving averages of the last three epochs
OUT/log.csv        a row an epoch: losses by name, validation, seconds, and the machine, which a run
                   changes by --resume --allow-other-machine alone
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from distill.data.data_set import add_data_options
from distill.models import store
from distill.models.face_files import add_backbone_options
from distill.progress import Progress
from distill.recipe import MOST_SEED, Recipe, add_set_option, load_recipe
from distill.training.distributed import Process, process_group
from distill.training.fingerprint import best_so_far
from distill.training.paths import alone_in, refuse_another_run, refuse_wrong_paths
from distill.training.scalars import open_scalars, require_tensorboard, write_row
from distill.training.setup import TrainingSetup, prepare, refuse_unfit_options
from distill.training.trainer import Trainer
from edge.base import cli
from edge.base.errors import DataError, UsageError
from edge.base.files import write_atomically

KEEP = 3  # epochs whose checkpoints are kept


def train(
    recipe: Recipe,
    setup: TrainingSetup,
    out: Path,
    process: Process,
    resume: bool = False,
    compiled: bool = False,
    other_machine: bool = False,
    tensorboard: bool = False,
) -> Path:
    """Train, and return the path of the best checkpoint by validation accuracy. tensorboard: write its
    events too.

    Raises DataError where there are too few images, or --resume finds another run or no best.pt,
    UsageError where `out` holds a run and resume is not asked for, EdgeError where training diverges:
    what was kept of the epochs before stays."""
    trainer = Trainer(recipe, setup, process, compiled)
    first, best = 0, -1.0
    if (out / "last.pt").is_file():
        refuse_another_run(out, resume)
        first, best, changes = trainer.resume(out / "last.pt", other_machine)
        best = best_so_far(out / "best.pt", first, best)
        if changes and process.is_main:
            print(
                f"resumed on another machine: {', '.join(changes)}; the last digits will differ from "
                f"those of a run on one machine"
            )
    out.mkdir(parents=True, exist_ok=True)
    trainer.wrap()
    if process.is_main:
        print(trainer.headline(first), flush=True)
    epochs = range(first, recipe.training.epochs)
    if epochs:
        _rows_before(out / "log.csv", first)  # refused now, not when an epoch has been trained
    steps = trainer.steps * len(epochs)
    with (
        Progress("training", steps, "steps", shown=process.is_main and steps > 0) as bar,
        open_scalars(out, first) if tensorboard and process.is_main else nullcontext() as scalars,
    ):
        for epoch in epochs:
            started = time.monotonic()
            losses = trainer.epoch(epoch, partial(_tell, bar, epoch))
            if process.is_main:
                validated = trainer.validate(epoch)
                row = _row(trainer, epoch, losses, validated, time.monotonic() - started)
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                best = _save(trainer, out, row, validated[0] if validated else None, best)
                if scalars:
                    write_row(scalars, row)
            process.barrier()
    return out / "best.pt"


def _tell(bar: Progress, epoch: int, loss: float) -> None:
    bar.advance(note=f"epoch {epoch} loss {loss:.3f}")


def _row(
    trainer: Trainer,
    epoch: int,
    losses: dict[str, float],
    validated: tuple[float, float] | None,
    seconds: float,
) -> dict[str, Any]:
    """Make an epoch's row of log.csv. validated: accuracy and loss, None without a validation split."""
    accuracy, loss = (round(value, 5) for value in validated) if validated else ("", "")
    return {
        "epoch": epoch,
        "loss": round(sum(losses.values()), 5),
        **{f"loss_{name}": round(value, 5) for name, value in losses.items()},
        "valid_accuracy": accuracy,
        "valid_loss": loss,
        "learning_rate": f"{trainer.learning_rate(epoch):.3g}",
        "seconds": round(seconds, 1),
        "machine": trainer.machine,
    }


def _save(
    trainer: Trainer, out: Path, row: dict[str, Any], accuracy: float | None, best: float
) -> float:
    """Write an epoch's files; return the best accuracy so far. Without a validation split (None) each
    epoch takes the place of the one before: the last is what remains."""
    epoch = row["epoch"]
    state = trainer.checkpoint_state(epoch, accuracy)
    if accuracy is None or accuracy > best:
        best = best if accuracy is None else accuracy
        store.save(out / "best.pt", state)
    store.save(out / f"epoch-{epoch:03d}.pt", state)
    (out / f"epoch-{epoch - KEEP:03d}.pt").unlink(missing_ok=True)
    # The log before the checkpoint: killed in between, the epoch is trained and logged again.
    _append(out / "log.csv", row, epoch)
    store.save(out / "last.pt", trainer.state(epoch, best))
    return best


def _append(path: Path, row: dict[str, Any], epoch: int) -> None:
    """Add the epoch's row, in place of any that a killed run wrote beyond its checkpoint."""
    rows = [*_rows_before(path, epoch), row]
    columns = dict.fromkeys(key for one in (row, *rows) for key in one)  # own ones of a reader stay
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), lineterminator=os.linesep)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def _rows_before(path: Path, epoch: int) -> list[dict[str, Any]]:
    """Read the rows of the epochs before one, none where there is no log. Raises DataError where a
    spreadsheet, for one, has saved it in another form."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as old:
            rows = [row for row in csv.DictReader(old) if int(row["epoch"]) < epoch]
        if not any(None in row for row in rows):  # cells beyond the last column
            return rows
    except (ValueError, LookupError, TypeError, csv.Error):
        pass
    raise DataError(
        f"{path} is not as distill-train wrote it; bring it back, or move it away: the log then begins "
        f"at epoch {epoch}"
    )


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "distill-train",
        "Train a student or a teacher by a recipe. Near-duplicates of validation and test images are\n"
        "left out. On many GPUs or processes: torchrun --nproc-per-node N -m distill.train ...",
        "distill-train distill/recipes/student.yaml --data ferplus --out runs/student\n"
        "  distill-train distill/recipes/teacher.yaml --data ferplus --out runs/teacher \\\n"
        "    --dinov2 facebook/dinov2-small --face face_recognition_sface_2021dec.onnx\n"
        "  distill-train distill/recipes/distilled.yaml --data ferplus --out runs/distilled \\\n"
        "    --teacher runs/teacher/best.pt --face face_recognition_sface_2021dec.onnx",
    )
    p.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE.yaml",
        help="what to train, as distill/recipes has them",
    )
    add_set_option(p)
    add_data_options(p, "ferplus")
    p.add_argument(
        "--train-on-all",
        action="store_true",
        help="learn from all of train where the data has no validation split of its own, as papers\n"
        "do; nothing is chosen then, best.pt is the last epoch",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints and log.csv")
    p.add_argument("--resume", action="store_true", help="continue after the last whole epoch")
    p.add_argument(
        "--allow-other-machine",
        action="store_true",
        help="resume also where precision or number of processes were others; log.csv has both",
    )
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the step first (a minute, and a C++ compiler); a teacher's then takes half",
    )
    p.add_argument(
        "--tensorboard",
        action="store_true",
        help="write log.csv's figures for TensorBoard too, in OUT/tensorboard ('tensorboard' extra)",
    )
    p.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    p.add_argument(
        "--teacher",
        type=Path,
        action="append",
        metavar="FILE",
        help="its checkpoint, for distillation. Given again, with a checkpoint or a\n"
        "bundle: the student learns the mean of all their logits",
    )
    p.add_argument(
        "--start",
        type=Path,
        metavar="FILE|DIR",
        help="a student starts from this checkpoint's or bundle's weights, of\n"
        "another fused block from its trunk and streams",
    )
    add_backbone_options(p)
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    return p


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    recipe = load_recipe(args.recipe, args.set)
    if args.seed is not None:
        if not 0 <= args.seed <= MOST_SEED:
            raise UsageError(f"--seed {args.seed}: give a whole number from 0 to {MOST_SEED}")
        training = recipe.training.model_copy(update={"seed": args.seed})
        recipe = recipe.model_copy(update={"training": training})
    if args.tensorboard:
        require_tensorboard()
    refuse_unfit_options(recipe, args)
    refuse_wrong_paths(recipe, args)
    with process_group() as process:
        setup = prepare(recipe, args, process)
        with alone_in(args.out) if process.is_main else nullcontext():
            best = train(
                recipe,
                setup,
                args.out,
                process,
                args.resume,
                args.compile,
                args.allow_other_machine,
                args.tensorboard,
            )
        if process.is_main:
            which = "last epoch's" if args.train_on_all else "best"
            print(f"{which} checkpoint: {best}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-train", run, argv)


if __name__ == "__main__":
    sys.exit(main())
