"""Train one run in memory, an epoch at a time: the task, its moving average and its optimiser."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.sampling import batches
from distill.models import checkpoint, store
from distill.models.precision import autocast, use_bf16
from distill.models.predict import probabilities
from distill.recipe import Recipe
from distill.training.distributed import Process, unwrap
from distill.training.divergence import broken_weights, diverged, explain
from distill.training.fingerprint import read_run, require_same
from distill.training.optimizer import (
    adamw,
    learning_rate,
    sam_gradients,
    set_learning_rate,
    update_ema,
)
from distill.training.setup import TrainingSetup
from distill.training.task import Losses
from edge.base.errors import DataError, UsageError

CLIP = 2.0  # largest norm of the gradients


class Trainer:
    """Train the setup's task, and validate and keep the moving average of its network's weights."""

    def __init__(
        self, recipe: Recipe, setup: TrainingSetup, process: Process, compiled: bool
    ) -> None:
        """compiled: by torch.compile. Raises DataError where there are too few images, UsageError
        where a batch is too small for the processes."""
        examples, t = setup.examples, recipe.training
        if len(examples) < 2 * process.world:
            raise DataError("fewer than two usable training images; check --data and --layout")
        if t.batch < 2 * process.world:
            raise UsageError(
                f"a batch of {t.batch} over {process.world} processes is less than two images each; "
                f"raise training.batch"
            )
        self.recipe, self.setup, self.process = recipe, setup, process
        self.task: nn.Module = setup.networks.task
        self.network: nn.Module = setup.networks.task.network
        self.ema = copy.deepcopy(self.network)
        self._bf16 = use_bf16(t.precision, process.device)
        pretrained = getattr(self.network, "trainable_tails", None)
        rate = recipe.teacher.backbone_rate if recipe.teacher else 1.0
        self._optimiser = adamw(self.task, t, pretrained, rate)
        parts = batches(examples, t.batch, t.seed, 0, rank=process.rank, world=process.world)
        self.steps = sum(1 for _ in parts)  # of an epoch, the same in every process
        self._compiled = compiled
        self._eager: nn.Module = self.task
        self._step_fn: Callable[..., Losses] = self.task

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a run must have in common with this one to be resumed."""
        setup = self.setup
        return {
            "recipe": self.recipe.model_dump(),
            "labels": list(setup.labels),
            "data": setup.examples.digest,
            "pictures": setup.pictures,
            "backbones": setup.networks.backbones,
            "teacher": setup.networks.teacher,
            "start": setup.start,
            "precision": "bf16" if self._bf16 else "fp32",
            "processes": self.process.world,
        }

    @property
    def machine(self) -> str:
        """Describe what a run's last digits depend on: processes, device and precision."""
        process = self.process
        return f"{process.world} x {process.device.type} {self.fingerprint['precision']}"

    def resume(self, path: Path, other_machine: bool = False) -> tuple[int, float, list[str]]:
        """Load the file; return the next epoch, the best accuracy so far and, with `other_machine`,
        what of the machine changed. Call it before `wrap`.

        Raises DataError where the file is another run's, or of one that diverged."""
        state = read_run(path)
        changes = require_same(path, state["identity"], self.fingerprint, other_machine)
        try:
            self.task.load_state_dict(store.current_names(state["task"]))
            self.ema.load_state_dict(store.current_names(state["average"]))
            self._optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, LookupError) as error:
            raise DataError(
                f"{path} does not fit its own recipe: another version of the kit wrote it, or it is "
                f"damaged; train again into another --out"
            ) from error
        if what := broken_weights(self.task) or broken_weights(self.ema):
            raise DataError(f"{path} is of a run that had diverged ({what}); train it again")
        return state["epoch"] + 1, state["best"], changes

    def state(self, epoch: int, best: float) -> dict[str, Any]:
        """Return what `resume` reads."""
        return {
            "identity": self.fingerprint,
            "epoch": epoch,
            "best": best,
            "task": self.task.state_dict(),
            "average": self.ema.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def checkpoint_state(self, epoch: int, accuracy: float | None) -> dict[str, Any]:
        """Return the moving average as a checkpoint's content."""
        setup = self.setup
        return checkpoint.state(
            self.ema,
            self.recipe,
            setup.labels,
            epoch,
            accuracy,
            setup.networks.backbones,
            setup.networks.teacher,
            setup.start,
            setup.layout,
            setup.teacher_data,
        )

    def wrap(self) -> None:
        """Share the task among all processes, and compile it where that was asked for."""
        self._eager = self.process.wrap_ddp(self.task)
        self.task = unwrap(self._eager)
        self._step_fn = torch.compile(self._eager) if self._compiled else self._eager

    def headline(self, first: int) -> str:
        """Describe the run in one line, before its first epoch of this call."""
        process, t = self.process, self.recipe.training
        weights = sum(p.numel() for p in self._trainable())
        left = f"epochs {first}..{t.epochs - 1}" if first < t.epochs else "no epoch is left"
        return (
            f"{len(self.setup.examples)} images, {self.steps} steps an epoch, {left}, "
            f"{weights / 1e6:.2f} M weights, {process.world} x {process.device}, "
            f"{'bf16' if self._bf16 else 'fp32'}, {torch.get_num_threads()} threads"
        )

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch's last step."""
        t = self.recipe.training
        return learning_rate(t, (epoch + 1) * self.steps - 1, self.steps * t.epochs)

    def epoch(
        self, epoch: int, tell: Callable[[float], None] = lambda loss: None
    ) -> dict[str, float]:
        """Train on every image once; return the mean of each loss over steps and processes.

        tell: called after each step with its loss. Raises EdgeError at the step whose losses or
        gradients are not finite."""
        t, process = self.recipe.training, self.process
        # Each process draws its own augmentation; a process by itself has rank 0.
        seed = (t.seed * 100_003 + epoch) * 1_009 + process.rank
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        self.task.train()
        totals: dict[str, float] = defaultdict(float)
        parts = batches(
            self.setup.examples, t.batch, t.seed, epoch, t.balance, process.rank, process.world
        )
        for index, rows in enumerate(parts):
            losses = self._step(index, epoch, rows, generator)
            for name, value in losses.items():
                totals[name] += value
            tell(sum(losses.values()))
        return {name: process.mean(value / self.steps) for name, value in totals.items()}

    def _step(
        self, index: int, epoch: int, rows: NDArray[np.int64], generator: torch.Generator
    ) -> dict[str, float]:
        """Train on one batch; index: of the epoch's steps."""
        t, process = self.recipe.training, self.process
        step = epoch * self.steps + index
        set_learning_rate(self._optimiser, learning_rate(t, step, self.steps * t.epochs))
        inputs = self.setup.networks.batches.batch(rows, epoch, generator)
        # The epoch's last batch may be smaller, and would be compiled once more.
        forward = self._step_fn if len(rows) == t.batch // process.world else self._eager

        def losses() -> Losses:
            with autocast(process.device, self._bf16):
                return dict(forward(*inputs))

        named = losses()
        self._optimiser.zero_grad(set_to_none=True)
        _total(named).backward()  # type: ignore[no-untyped-call]
        trainable = self._trainable()
        if t.sharpness:
            sam_gradients(lambda: _total(losses()), self.task, trainable, t.sharpness)
        norm = float(nn.utils.clip_grad_norm_(trainable, CLIP))
        found = {name: float(value.detach()) for name, value in named.items()}
        what = explain(found, norm)
        # All processes end at one step: one that waits for another's gradients would wait for ever.
        if process.mean(float(bool(what))):
            raise diverged(
                what or "a loss of another process is not finite", epoch, index, t.learning_rate
            )
        self._optimiser.step()
        update_ema(self.ema, self.network, min(t.average, (1 + step) / (10 + step)))
        return found

    def validate(self, epoch: int) -> tuple[float, float] | None:
        """Return the moving average's accuracy, and its cross-entropy against the votes; None where
        there is no validation split.

        Raises EdgeError where either network's weights or that cross-entropy are not finite."""
        kept = self.setup.truth >= 0
        what = broken_weights(self.task) or broken_weights(self.ema)
        accuracy = loss = 0.0
        if kept.any() and not what:
            p = probabilities(self.setup.networks.batches.validate(self.ema))[kept]
            accuracy = float((p.argmax(axis=1) == self.setup.truth[kept]).mean())
            loss = float(-(self.setup.votes[kept] * np.log(p + 1e-9)).sum(axis=1).mean())
        if what or not np.isfinite(loss):
            what = what or f"the validation loss is {loss}"
            raise diverged(what, epoch, None, self.recipe.training.learning_rate)
        return (accuracy, loss) if kept.any() else None

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.task.parameters() if p.requires_grad]


def _total(named: Losses) -> Tensor:
    return torch.stack(list(named.values())).sum()
