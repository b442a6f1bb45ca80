"""One training run in memory: the task, its average and its optimiser, moved an epoch at a time."""

from __future__ import annotations

import copy
import sys
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
from distill.recipe import Recipe
from distill.training.distributed import Process, own_module
from distill.training.optimizer import adamw, follow, learning_rate, set_rate, sharp_gradients
from distill.training.setup import Prepared
from edge.base.errors import DataError, UsageError
from edge.classify import softmax

CLIP = 2.0  # of the gradients' norm
SAY_EVERY = 50  # steps, where no terminal watches each


class Loop:
    """ready.task learns and `average` follows it; the average is what is validated and kept."""

    def __init__(self, recipe: Recipe, ready: Prepared, process: Process, compiled: bool) -> None:
        """compiled: by torch.compile. Raises DataError where nothing can be learned, UsageError
        where a batch is too small for the processes."""
        examples, t = ready.examples, recipe.training
        if len(examples) < 2 * process.world:
            raise DataError("fewer than two usable training pictures; check --data and --layout")
        if t.batch < 2 * process.world:
            raise UsageError(
                f"a batch of {t.batch} over {process.world} processes is less than two pictures each; "
                f"raise training.batch"
            )
        self.recipe, self.ready, self.process = recipe, ready, process
        self.task = ready.task
        self.average = copy.deepcopy(self.task.network)
        self._bf16 = use_bf16(t.precision, process.device)
        pretrained = getattr(self.task.network, "above", None)
        rate = recipe.teacher.backbone_rate if recipe.teacher else 1.0
        self._optimiser = adamw(self.task, t, pretrained, rate)
        # An epoch's, of which every process does as many.
        parts = batches(examples, t.batch, t.seed, 0, rank=process.rank, world=process.world)
        self._steps = sum(1 for _ in parts)
        self._compiled = compiled
        self._plain = self._fast = self.task

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that is gone on with must have in common with this one."""
        ready = self.ready
        return {
            "recipe": self.recipe.model_dump(),
            "labels": list(ready.labels),
            "data": ready.examples.digest,
            "backbones": ready.frozen,
            "teacher": ready.teacher,
            "start": ready.start,
            "precision": "bf16" if self._bf16 else "fp32",
            "processes": self.process.world,
        }

    def resume(self, path: Path) -> tuple[int, float]:
        """The epoch to go on with, and the best accuracy so far; to be called before `spread`.

        Raises DataError where the file is another run's."""
        state, own = store.load(path), self.identity
        if different := [key for key in own if state["identity"].get(key) != own[key]]:
            raise DataError(
                f"{path} is another run (other {', '.join(different)}); choose another --out"
            )
        self.task.load_state_dict(state["task"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        return state["epoch"] + 1, state["best"]

    def state(self, epoch: int, best: float) -> dict[str, Any]:
        """What `resume` reads."""
        return {
            "identity": self.identity,
            "epoch": epoch,
            "best": best,
            "task": self.task.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def contents(self, epoch: int, accuracy: float) -> dict[str, Any]:
        """The average as a checkpoint."""
        ready = self.ready
        return checkpoint.contents(
            self.average,
            self.recipe,
            ready.labels,
            epoch,
            accuracy,
            ready.frozen,
            ready.teacher,
            ready.start,
            ready.layout,
        )

    def spread(self) -> None:
        """Over all processes, and compiled where that was asked for."""
        self._plain = self.process.spread(self.task)
        self.task = own_module(self._plain)
        self._fast = torch.compile(self._plain) if self._compiled else self._plain

    def headline(self, first: int) -> str:
        """One line before the first epoch of this call."""
        process, t = self.process, self.recipe.training
        weights = sum(p.numel() for p in self._learning())
        return (
            f"{len(self.ready.examples)} pictures, {self._steps} steps an epoch, epochs "
            f"{first}..{t.epochs - 1}, {weights / 1e6:.2f} M weights, {process.world} x "
            f"{process.device}, {'bf16' if self._bf16 else 'fp32'}, {torch.get_num_threads()} threads"
        )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch's last step."""
        t = self.recipe.training
        return learning_rate(t, (epoch + 1) * self._steps - 1, self._steps * t.epochs)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Learn from every picture once; the mean of each loss over the steps and processes."""
        t, process = self.recipe.training, self.process
        # A process draws its own changes; alone, it is rank 0.
        seed = (t.seed * 100_003 + epoch) * 1_009 + process.rank
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        self.task.train()
        totals: dict[str, float] = defaultdict(float)
        parts = batches(
            self.ready.examples, t.batch, t.seed, epoch, t.balance, process.rank, process.world
        )
        for index, rows in enumerate(parts):
            losses = self._step(epoch * self._steps + index, epoch, rows, generator)
            for name, value in losses.items():
                totals[name] += value
            if process.first and (sys.stdout.isatty() or index % SAY_EVERY == 0):
                total = sum(losses.values())
                print(f"epoch {epoch} step {index}/{self._steps} loss {total:.4f}", flush=True)
        return {name: process.mean(value / self._steps) for name, value in totals.items()}

    def _step(
        self, step: int, epoch: int, rows: NDArray[np.int64], generator: torch.Generator
    ) -> dict[str, float]:
        """step: counted from the run's first."""
        t, process = self.recipe.training, self.process
        set_rate(self._optimiser, learning_rate(t, step, self._steps * t.epochs))
        inputs = self.ready.course.batch(rows, epoch, generator)
        # A batch of another size than the rest, the last one, would be compiled for itself.
        network: Callable[..., Any] = (
            self._fast if len(rows) == t.batch // process.world else self._plain
        )

        def losses() -> dict[str, Tensor]:
            with autocast(process.device, self._bf16):
                return dict(network(*inputs))

        named = losses()
        self._optimiser.zero_grad(set_to_none=True)
        _total(named).backward()  # type: ignore[no-untyped-call]
        learning = self._learning()
        if t.sharpness:
            sharp_gradients(lambda: _total(losses()), self.task, learning, t.sharpness)
        nn.utils.clip_grad_norm_(learning, CLIP)
        self._optimiser.step()
        follow(self.average, self.task.network, min(t.average, (1 + step) / (10 + step)))
        return {name: float(value.detach()) for name, value in named.items()}

    def validate(self) -> tuple[float, float]:
        """Of the average: accuracy, and cross-entropy against the votes."""
        kept = self.ready.truth >= 0
        p = softmax(self.ready.course.validate(self.average).astype(np.float64))[kept]
        accuracy = float((p.argmax(axis=1) == self.ready.truth[kept]).mean())
        return accuracy, float(-(self.ready.votes[kept] * np.log(p + 1e-9)).sum(axis=1).mean())

    def _learning(self) -> list[nn.Parameter]:
        return [p for p in self.task.parameters() if p.requires_grad]


def _total(named: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(named.values())).sum()
