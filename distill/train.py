"""`distill-train`: recipe and data > checkpoint. Resumes from the last whole epoch to the same result.

OUT/last.pt        task, average, optimiser and epoch, written atomically after every epoch
OUT/best.pt        the average with the best validation accuracy so far
OUT/epoch-NNN.pt   the averages of the last three epochs, to be scored beside the best
OUT/log.csv        a row an epoch: losses by name, validation, seconds
"""

from __future__ import annotations

import copy
import csv
import io
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill import checkpoint, store
from distill.course import Course
from distill.examples import Examples, batches
from distill.metrics import softmax
from distill.optimise import adamw, follow, learning_rate, set_rate, sharp_gradients
from distill.parallel import Process, join, own_module
from distill.precision import autocast, use_bf16
from distill.prepare import Prepared, prepare
from distill.recipe import Recipe, load_recipe
from edge import cli
from edge.crops import LAYOUTS
from edge.errors import DataError
from edge.weights import write_atomically

KEEP = 3  # epochs whose averages stay beside the best


@dataclass(frozen=True, slots=True)
class Target:
    """What a model is chosen on. truth: (N,) labels of the validation split, -1 for none; votes:
    (N, K) shares."""

    truth: NDArray[np.int64]
    votes: NDArray[np.float32]

    def score(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """Accuracy, and cross-entropy against the votes."""
        kept = self.truth >= 0
        p = softmax(logits)[kept]
        accuracy = float((p.argmax(axis=1) == self.truth[kept]).mean())
        loss = float(-(self.votes[kept] * np.log(p + 1e-9)).sum(axis=1).mean())
        return accuracy, loss


def train(
    recipe: Recipe,
    labels: tuple[str, ...],
    task: nn.Module,
    course: Course,
    examples: Examples,
    target: Target,
    out: Path,
    process: Process,
    resume: bool = False,
    frozen: str = "",
    teacher: str = "",
    compiled: bool = False,
    start: dict[str, Any] | None = None,
) -> Path:
    """Train task.network; returns the path of the best checkpoint by validation accuracy.

    task: see `distill.task`; course: where its batches come from; frozen, teacher, start: as in
    `checkpoint.contents`; compiled: by torch.compile. Raises DataError where nothing can be learned
    or --resume finds another run.
    """
    if len(examples) < 2 * process.world:
        raise DataError("fewer than two usable training pictures; check --data and --layout")
    t = recipe.training
    bf16 = use_bf16(t.precision, process.device)
    average = copy.deepcopy(task.network)
    pretrained = getattr(task.network, "above", None)
    rate = recipe.teacher.backbone_rate if recipe.teacher else 1.0
    optimiser = adamw(task, t, pretrained, rate)
    identity = {
        "recipe": recipe.model_dump(),
        "labels": list(labels),
        "data": examples.digest,
        "backbones": frozen,
        "teacher": teacher,
        "start": start,
        "precision": "bf16" if bf16 else "fp32",
        "processes": process.world,
    }
    first, best = 0, -1.0
    if resume and (out / "last.pt").is_file():
        first, best = _resume(out / "last.pt", identity, task, average, optimiser)
    out.mkdir(parents=True, exist_ok=True)
    spread = process.spread(task)
    task = own_module(spread)
    # A batch of another size than the rest, the last one, would be compiled for itself.
    fast = torch.compile(spread) if compiled else spread
    full = t.batch // process.world
    learning = [p for p in task.parameters() if p.requires_grad]
    steps_an_epoch = sum(1 for _ in batches(examples, t.batch, t.seed, 0))
    steps = steps_an_epoch * t.epochs
    if process.first:
        print(
            f"{len(examples)} pictures, {steps_an_epoch} steps an epoch, epochs "
            f"{first}..{t.epochs - 1}, {sum(p.numel() for p in learning) / 1e6:.2f} M weights, "
            f"{process.world} x {process.device}, {'bf16' if bf16 else 'fp32'}, "
            f"{torch.get_num_threads()} threads",
            flush=True,
        )
    for epoch in range(first, t.epochs):
        started = time.monotonic()
        # A process draws its own changes; alone, it is rank 0.
        seed = (t.seed * 100_003 + epoch) * 1_009 + process.rank
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        task.train()
        totals: dict[str, float] = defaultdict(float)
        parts = batches(examples, t.batch, t.seed, epoch, t.balance, process.rank, process.world)
        for index, rows in enumerate(parts):
            step = epoch * steps_an_epoch + index
            set_rate(optimiser, learning_rate(t, step, steps))
            inputs = course.batch(rows, epoch, generator)

            step_of = fast if len(rows) == full else spread

            def losses(
                inputs: tuple[Any, ...] = inputs, step_of: Callable[..., Any] = step_of
            ) -> dict[str, Tensor]:
                with autocast(process.device, bf16):
                    return dict(step_of(*inputs))

            named = losses()
            total = torch.stack(list(named.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            if t.sharpness:
                sharp_gradients(
                    lambda: torch.stack(list(losses().values())).sum(), task, learning, t.sharpness
                )
            nn.utils.clip_grad_norm_(learning, 2.0)
            optimiser.step()
            follow(average, task.network, min(t.average, (1 + step) / (10 + step)))
            for name, value in named.items():
                totals[name] += float(value.detach())
            if process.first and (sys.stdout.isatty() or index % 50 == 0):
                print(
                    f"epoch {epoch} step {index}/{steps_an_epoch} loss {float(total.detach()):.4f}",
                    flush=True,
                )
        means = {name: process.mean(value / steps_an_epoch) for name, value in totals.items()}
        if process.first:
            accuracy, loss = target.score(course.validate(average))
            row = {
                "epoch": epoch,
                "loss": round(sum(means.values()), 5),
                **{f"loss_{name}": round(value, 5) for name, value in means.items()},
                "valid_accuracy": round(accuracy, 5),
                "valid_loss": round(loss, 5),
                "learning_rate": f"{learning_rate(t, step, steps):.3g}",
                "seconds": round(time.monotonic() - started, 1),
            }
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            whole = checkpoint.contents(
                average, recipe, labels, epoch, accuracy, frozen, teacher, start
            )
            if accuracy > best:
                best = accuracy
                store.save(out / "best.pt", whole)
            store.save(out / f"epoch-{epoch:03d}.pt", whole)
            (out / f"epoch-{epoch - KEEP:03d}.pt").unlink(missing_ok=True)
            # The log before the checkpoint: killed in between, the epoch is done and logged again.
            _append(out / "log.csv", row, epoch)
            store.save(
                out / "last.pt",
                {
                    "identity": identity,
                    "epoch": epoch,
                    "best": best,
                    "task": task.state_dict(),
                    "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(),
                },
            )
        process.wait()
    return out / "best.pt"


def _resume(
    path: Path,
    identity: dict[str, Any],
    task: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> tuple[int, float]:
    """The epoch to go on with, and the best accuracy so far."""
    state = store.load(path)
    if different := [key for key in identity if state["identity"].get(key) != identity[key]]:
        raise DataError(
            f"{path} is another run (other {', '.join(different)}); choose another --out"
        )
    task.load_state_dict(state["task"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return state["epoch"] + 1, state["best"]


def _append(path: Path, row: dict[str, Any], epoch: int) -> None:
    """One row an epoch; rows that a kill left beyond the checkpoint are written over."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as old:
            rows = [r for r in csv.DictReader(old) if int(r["epoch"]) < epoch]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(row), lineterminator=os.linesep)
    writer.writeheader()
    writer.writerows([*rows, row])
    write_atomically(path, buffer.getvalue().encode())


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "distill-train",
        "Train a student or a teacher by a recipe. Twins of validation and test pictures leave the\n"
        "training set. On many GPUs or processes: torchrun --nproc-per-node N -m distill.train ...",
        "distill-train distill/recipes/student.yaml --data ferplus --out runs/student\n"
        "  distill-train distill/recipes/teacher.yaml --data ferplus --out runs/teacher \\\n"
        "    --dinov2 facebook/dinov2-small --face face_recognition_sface_2021dec.onnx\n"
        "  distill-train distill/recipes/distilled.yaml --data ferplus --out runs/distilled \\\n"
        "    --teacher runs/teacher/best.pt --face face_recognition_sface_2021dec.onnx",
    )
    p.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument("--layout", choices=LAYOUTS, default="ferplus")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints and log.csv")
    p.add_argument("--resume", action="store_true", help="go on after the last whole epoch")
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the step first (a minute, and a C++ compiler); a teacher's then takes half",
    )
    p.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    p.add_argument("--teacher", type=Path, metavar="FILE", help="its checkpoint, for distillation")
    p.add_argument(
        "--start",
        type=Path,
        metavar="FILE|DIR",
        help="a student goes on from this checkpoint's or bundle's weights",
    )
    p.add_argument(
        "--dinov2",
        default="facebook/dinov2-small",
        metavar="DIR|NAME",
        help="a teacher's frozen DINOv2: a folder or the hub's name (default: %(default)s)",
    )
    p.add_argument(
        "--face",
        type=Path,
        metavar="FILE",
        help="a teacher's face backbone: SFace .onnx or IR-50 .pth",
    )
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    args = p.parse_args(argv)
    recipe = load_recipe(args.recipe)
    if args.seed is not None:
        training = recipe.training.model_copy(update={"seed": args.seed})
        recipe = recipe.model_copy(update={"training": training})
    with join() as process:
        ready: Prepared = prepare(recipe, args, process)
        best = train(
            recipe,
            ready.labels,
            ready.task,
            ready.course,
            ready.examples,
            Target(ready.truth, ready.votes),
            args.out,
            process,
            args.resume,
            ready.frozen,
            ready.teacher,
            args.compile,
            ready.start,
        )
        if process.first:
            print(f"best checkpoint: {best}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-train", run, argv)


if __name__ == "__main__":
    sys.exit(main())
