"""A run of a tiny student on a dozen made-up images, in memory; one of its steps can be poisoned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data.sampling import Examples
from distill.models.logits import predict_student
from distill.models.student import Student, StudentConfig
from distill.recipe import Recipe
from distill.training.distributed import Process
from distill.training.setup import Networks, TrainingSetup
from distill.training.task import StudentTask

IMAGES, BATCH, EPOCHS = 12, 4, 3
STEPS = IMAGES // BATCH
RNG = np.random.default_rng(0)
FACES: NDArray[np.uint8] = RNG.integers(0, 255, (IMAGES, 1, 32, 32)).astype(np.uint8)
TARGETS = np.eye(2, dtype=np.float32)[RNG.integers(0, 2, IMAGES)]


class Poisoned:
    """Batches of the images; at one step of the run what they give, or the gradients, get a value."""

    def __init__(self, task: StudentTask, step: int, value: float, where: str) -> None:
        self.task, self.step, self.value, self.where = task, step, value, where
        self.count = 0

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Any:
        faces = torch.from_numpy(FACES[rows]).float()
        targets = torch.from_numpy(TARGETS[rows])
        if epoch * STEPS + self.count % STEPS == self.step:
            if self.where == "faces":
                faces[0, 0, 0, 0] = self.value
            elif self.where == "targets":
                targets[0, 0] = self.value
            else:
                weight = self.task.network.head.weight
                weight.register_hook(lambda gradient: torch.full_like(gradient, self.value))
        self.count += 1
        return faces, targets

    def validate(self, network: Student) -> NDArray[np.float32]:
        return predict_student(network, FACES)


def prepared(
    step: int = -1, value: float = float("nan"), where: str = "faces", **training: Any
) -> tuple[Recipe, TrainingSetup]:
    given = {"epochs": EPOCHS, "batch": BATCH, "learning_rate": 0.01, **training}
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "crop": {"size": 32, "template": [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]},
            "student": {"widths": [4, 6, 8, 8], "depths": [1, 1, 1], "width": 8, "heads": 2},
            "training": given,
        }
    )
    torch.manual_seed(0)
    config = StudentConfig(
        classes=2, size=32, widths=(4, 6, 8, 8), depths=(1, 1, 1), width=8, heads=2, dropout=0.2
    )
    task = StudentTask(Student(config))
    examples = Examples(FACES, TARGETS, np.arange(IMAGES), "0123")
    networks = Networks(task, Poisoned(task, step, value, where))
    truth = TARGETS.argmax(axis=1).astype(np.int64)
    return recipe, TrainingSetup(("calm", "glad"), examples, truth, TARGETS, networks)


ALONE = Process(0, 1, torch.device("cpu"))
