"""`distill-train`: recipe and data > checkpoint. Resumes from the last whole epoch to the same result.

OUT/last.pt       model, average, optimiser and epoch, written atomically after every epoch
OUT/best.pt       the average with the best validation accuracy so far
OUT/log.csv       a row an epoch
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill import store
from distill.augment import augment
from distill.data import Split, crops_folder, join, majority, open_crops
from distill.losses import soft_cross_entropy
from distill.metrics import softmax
from distill.recipe import Recipe, load_recipe
from distill.student import Student, StudentConfig
from distill.twins import find_twins, names_of
from edge import cli
from edge.crops import LAYOUTS
from edge.errors import DataError
from edge.weights import write_atomically

SCHEMA = "distill.checkpoint/1"
FIELDS = ("epoch", "loss", "valid_accuracy", "valid_loss", "learning_rate", "seconds")


@dataclass(frozen=True, slots=True)
class Examples:
    """faces: (N, C, S, S) uint8 (may be a memory map); targets: (N, K) float32; rows: the places
    in both that are learned from; digest: names what they are."""

    faces: NDArray[np.uint8]
    targets: NDArray[np.float32]
    rows: NDArray[np.int64]
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        rows = np.sort(self.rows[places])
        faces = torch.from_numpy(self.faces[rows]).float()
        return faces, torch.from_numpy(self.targets[rows])


def learnable(split: Split, leave_out: set[str]) -> Examples:
    """Pictures to learn from: some vote for a class, not voted no-face most, and no twin."""
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


def choosable(valid: Split, leave_out: frozenset[str] | set[str]) -> NDArray[np.int64]:
    """(N,) labels to choose a model on: the majority's, -1 for none and for those left out."""
    truth = majority(valid.votes, len(valid.labels))
    truth[[name in leave_out for name in valid.crops.names]] = -1
    return truth


def use_bf16(precision: str) -> bool:
    """bf16 where the CPU has tile instructions for it: there it is twice as fast as float32."""
    if precision != "auto":
        return precision == "bf16"
    return bool(torch.cpu._is_amx_tile_supported())


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    t = recipe.training
    warm = t.warmup_epochs * steps / t.epochs
    if step < warm:
        return t.learning_rate * (step + 1) / warm
    return t.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def build_student(recipe: Recipe, classes: int) -> Student:
    s = recipe.student
    return Student(
        StudentConfig(
            classes=classes,
            size=recipe.crop.size,
            channels=recipe.crop.channels,
            widths=(s.widths[0], s.widths[1], s.widths[2], s.widths[3]),
            depths=(s.depths[0], s.depths[1], s.depths[2]),
            width=s.width,
            heads=s.heads,
            dropout=s.dropout,
        )
    )


@torch.no_grad()
def predict(student: Student, faces: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """Logits (N, K) of uint8 faces (N, C, S, S), in evaluation mode and float32."""
    student.eval()
    parts = []
    for start in range(0, len(faces), batch):
        block = torch.from_numpy(np.array(faces[start : start + batch])).float()
        parts.append(student(block.to(memory_format=torch.channels_last)).numpy())
    return np.concatenate(parts)


def _batches(examples: Examples, size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    for start in range(0, len(order) - 1, size):  # a last batch of one would break batch statistics
        yield order[start : start + size]


def train(
    recipe: Recipe,
    labels: tuple[str, ...],
    examples: Examples,
    valid: Split,
    out: Path,
    resume: bool = False,
    not_chosen_on: frozenset[str] = frozenset(),
) -> Path:
    """Train the student; returns the path of the best checkpoint by validation accuracy.

    not_chosen_on: validation pictures with a twin in the test split, on which nothing is chosen.
    Raises DataError where nothing can be learned or --resume finds another run.
    """
    if len(examples) < 2:
        raise DataError("fewer than two usable training pictures; check --data and --layout")
    t = recipe.training
    torch.manual_seed(t.seed)
    student = build_student(recipe, len(labels)).to(memory_format=torch.channels_last)
    average = build_student(recipe, len(labels))
    average.load_state_dict(student.state_dict())
    decayed = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": t.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=t.learning_rate,
    )
    out.mkdir(parents=True, exist_ok=True)
    first, best = 0, -1.0
    bf16 = use_bf16(t.precision)
    identity = {
        "recipe": recipe.model_dump(),
        "labels": list(labels),
        "data": examples.digest,
        "precision": "bf16" if bf16 else "fp32",
    }
    if resume and (out / "last.pt").is_file():
        state = store.load(out / "last.pt")
        if different := [key for key in identity if state["identity"].get(key) != identity[key]]:
            raise DataError(
                f"{out / 'last.pt'} is another run (other {', '.join(different)}); choose another --out"
            )
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first, best = state["epoch"] + 1, state["best"]
    truth = choosable(valid, not_chosen_on)
    steps_an_epoch = len(list(_batches(examples, t.batch, t.seed, 0)))
    steps = steps_an_epoch * t.epochs
    print(
        f"{len(examples)} pictures, {steps_an_epoch} steps an epoch, epochs {first}..{t.epochs - 1}, "
        f"{'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} threads",
        flush=True,
    )
    for epoch in range(first, t.epochs):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(t.seed * 100_003 + epoch)
        torch.manual_seed(t.seed * 100_003 + epoch)  # dropout
        student.train()
        total = 0.0
        for index, places in enumerate(_batches(examples, t.batch, t.seed, epoch)):
            step = epoch * steps_an_epoch + index
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(recipe, step, steps)
            faces, targets = examples.batch(places)
            faces = augment(faces, recipe.augmentation, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = student(faces.to(memory_format=torch.channels_last))
            loss = soft_cross_entropy(logits.float(), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(student.parameters(), 2.0)
            optimiser.step()
            _follow(average, student, min(t.average, (1 + step) / (10 + step)))
            total += loss.item()
            if sys.stdout.isatty() or index % 50 == 0:
                print(
                    f"epoch {epoch} step {index}/{steps_an_epoch} loss {loss.item():.4f}",
                    flush=True,
                )
        logits_valid = predict(average, valid.crops.pixels)
        accuracy = float((logits_valid.argmax(axis=1) == truth)[truth >= 0].mean())
        q = valid.targets[truth >= 0]
        p = softmax(logits_valid)[truth >= 0]
        row = {
            "epoch": epoch,
            "loss": round(total / steps_an_epoch, 5),
            "valid_accuracy": round(accuracy, 5),
            "valid_loss": round(float(-(q * np.log(p + 1e-9)).sum(axis=1).mean()), 5),
            "learning_rate": f"{learning_rate(recipe, step, steps):.3g}",
            "seconds": round(time.monotonic() - started, 1),
        }
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if accuracy > best:
            best = accuracy
            store.save(
                out / "best.pt",
                {
                    "schema": SCHEMA,
                    "labels": list(labels),
                    "recipe": recipe.model_dump(),
                    "epoch": epoch,
                    "valid_accuracy": accuracy,
                    "student": average.state_dict(),
                },
            )
        # The log before the checkpoint: killed in between, the epoch is done and logged again.
        _append(out / "log.csv", row, epoch)
        store.save(
            out / "last.pt",
            {
                "identity": identity,
                "epoch": epoch,
                "best": best,
                "student": student.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
        )
    return out / "best.pt"


@torch.no_grad()
def _follow(average: Student, student: Student, decay: float) -> None:
    """Exponential moving average of weights and of batch statistics."""
    new = student.state_dict()
    for name, value in average.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(new[name], 1 - decay)
        else:
            value.copy_(new[name])


def _append(path: Path, row: dict[str, Any], epoch: int) -> None:
    """One row an epoch; rows that a kill left beyond the checkpoint are written over."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as old:
            rows = [r for r in csv.DictReader(old) if int(r["epoch"]) < epoch]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator=os.linesep)
    writer.writeheader()
    writer.writerows([*rows, row])
    write_atomically(path, buffer.getvalue().encode())


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "distill-train",
        "Train a student by a recipe. Twins of validation and test pictures leave the training set.",
        "distill-train distill/recipes/student.yaml --data ferplus --layout ferplus --out runs/student",
    )
    p.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument("--layout", choices=LAYOUTS, default="ferplus")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints and log.csv")
    p.add_argument("--resume", action="store_true", help="go on after the last whole epoch")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    args = p.parse_args(argv)
    recipe = load_recipe(args.recipe)
    spec = recipe.crop.spec()

    def say(line: str) -> None:
        print(line, flush=True)

    crops = open_crops(args.data, args.layout, spec, args.weights, say)
    twins = find_twins(args.data, args.layout, crops_folder(args.data, spec), say)
    train_split = join(args.data, args.layout, "train", crops)
    valid = join(args.data, args.layout, "valid", crops)
    left_out, unchosen = names_of(twins["train"]), frozenset(names_of(twins["valid"]))
    say(
        f"left out: {len(left_out)} twins of validation and test pictures from training, "
        f"{len(unchosen)} twins of test pictures from choosing"
    )
    examples = learnable(train_split, left_out)
    best = train(recipe, train_split.labels, examples, valid, args.out, args.resume, unchosen)
    print(f"best checkpoint: {best}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-train", run, argv)


if __name__ == "__main__":
    sys.exit(main())
