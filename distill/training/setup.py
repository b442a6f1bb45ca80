"""Command line and recipe > everything a run needs: crops without near-duplicates, networks, caches."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distill.data.duplicates import find_near_duplicates, names_of
from distill.data.sampling import Examples, choosable, learnable
from distill.data.splits import Split, crops_folder, join, open_crops
from distill.models.backbones import Dinov2, Lower
from distill.models.build import build_student, build_teacher
from distill.models.checkpoint import load_teacher
from distill.models.feature_cache import (
    Computed,
    Features,
    cache_features,
    features_folder,
    weights_digest,
)
from distill.models.precision import use_bf16
from distill.models.predict import open_model
from distill.models.store import digest_of
from distill.models.warm_start import SETTLED_ON, Start, begin, read_start
from distill.recipe import Recipe
from distill.training.batches import Course, StudentCourse, TeacherCourse
from distill.training.distributed import Process
from distill.training.target_cache import cache_lessons, with_opinions
from distill.training.task import DistillationTask, StudentTask, TeacherTask
from edge.base.errors import DataError, UsageError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """truth, votes: of the validation split, what is chosen on; frozen, teacher, start: what the run
    reads besides the data; layout: the data's."""

    labels: tuple[str, ...]
    examples: Examples
    truth: NDArray[np.int64]
    votes: NDArray[np.float32]
    task: nn.Module
    course: Course
    frozen: str = ""
    teacher: str = ""
    start: dict[str, Any] | None = None
    layout: str | None = None


def prepare(recipe: Recipe, args: argparse.Namespace, process: Process) -> Prepared:
    """args: distill-train's. Caches are made by the first process while the others wait.

    Raises UsageError for options that the recipe needs or cannot use, DataError for bad data."""
    if (recipe.distillation is None) != (not args.teacher):
        wants = "a teacher: give --teacher FILE" if recipe.distillation else "no --teacher"
        raise UsageError(f"{args.recipe} wants {wants}")
    if args.start and not recipe.student:
        raise UsageError(f"{args.recipe} trains a teacher: --start is for students")
    start = read_start(args.start) if args.start else None
    if start and start.recipe.crop != recipe.crop:
        raise UsageError(f"{args.start} was trained on another crop; make the recipe's equal")

    def say(line: str) -> None:
        if process.first:
            print(line, flush=True)

    if not process.first:
        process.wait()
    spec = recipe.crop.spec()
    crops = open_crops(args.data, args.layout, spec, args.weights, say)
    folder = crops_folder(args.data, spec)
    duplicates = find_near_duplicates(args.data, args.layout, folder, say)
    split = join(args.data, args.layout, "train", crops)
    valid = join(args.data, args.layout, "valid", crops)
    left_out, unchosen = names_of(duplicates["train"]), names_of(duplicates["valid"])
    say(
        f"left out: {len(left_out)} near-duplicates of validation and test images from training, "
        f"{len(unchosen)} near-duplicates of test images from choosing"
    )
    examples = learnable(split, left_out)
    torch.manual_seed(recipe.training.seed)
    bench = _Bench(recipe, args, process.device, folder, examples, split, valid, say, start)
    task, course, frozen, teacher = bench.teacher() if recipe.teacher else bench.student()
    if process.first:
        process.wait()
    truth = choosable(valid, unchosen)
    if not (truth >= 0).any():
        raise DataError(f"no picture of {args.data}'s validation split has a label to choose by")
    return Prepared(
        split.labels,
        examples,
        truth,
        valid.targets,
        task,
        course,
        frozen,
        teacher,
        start.facts if start else None,
        args.layout,
    )


@dataclass(frozen=True, slots=True)
class _Bench:
    """What both kinds of runs are put together from."""

    recipe: Recipe
    args: argparse.Namespace
    device: torch.device
    crops: Path
    examples: Examples
    train: Split
    valid: Split
    say: Say
    start: Start | None

    @property
    def bf16(self) -> bool:
        return use_bf16(self.recipe.training.precision, self.device)

    def pixels(self, split: str) -> NDArray[np.uint8]:
        return (self.train if split == "train" else self.valid).crops.pixels

    def features(self, network: Dinov2 | Lower, split: str) -> Features:
        place = features_folder(self.crops, split, network, self.bf16)
        return cache_features(
            place, self.fast(network), self.pixels(split), self.device, self.bf16, self.say
        )

    def fast(self, network: nn.Module) -> Any:
        return torch.compile(network) if self.args.compile else network

    def lower(self, network: Lower, split: str, cached: bool) -> Features | Computed:
        """The face side's, which a recipe that does not cache it keeps off the disk altogether."""
        if cached:
            return self.features(network, split)
        return Computed(network, self.pixels(split), self.device, self.bf16)

    def teacher(self) -> tuple[nn.Module, Course, str, str]:
        recipe, args = self.recipe, self.args
        assert recipe.teacher is not None
        teacher, frozen = build_teacher(recipe, len(self.train.labels), args.dinov2, args.face)
        frozen.to(self.device)
        cached = recipe.teacher.cached
        networks = (frozen.scene, self.fast(frozen.lower))
        course = TeacherCourse(
            recipe,
            self.examples,
            (
                self.features(frozen.scene, "valid"),
                self.lower(frozen.lower, "valid", "face" in cached),
            ),
            networks,
            self.device,
            self.features(frozen.scene, "train") if "scene" in cached else None,
            self.features(frozen.lower, "train") if "face" in cached else None,
            self.bf16,
        )
        task = TeacherTask(teacher).to(self.device, memory_format=torch.channels_last)
        return task, course, weights_digest(frozen), ""

    def student(self) -> tuple[nn.Module, Course, str, str]:
        recipe, args = self.recipe, self.args
        student = build_student(recipe, len(self.train.labels))
        if self.start:
            count = min(SETTLED_ON, len(self.examples))
            some = self.examples.rows[np.linspace(0, len(self.examples) - 1, count).astype(int)]
            begin(student, self.start, self.train.labels, self.pixels("train")[some])
            known = len(set(self.train.labels) & set(self.start.labels))
            self.say(
                f"went on from {args.start}, {known} of {len(self.train.labels)} classes known to it"
            )
        how = recipe.distillation
        pixels = self.valid.crops.pixels
        if how is None:
            course = StudentCourse(recipe, self.examples, pixels, self.device)
            task: nn.Module = StudentTask(student)
            return task.to(self.device, memory_format=torch.channels_last), course, "", ""
        first, *others = args.teacher
        teacher, frozen, theirs, labels = load_teacher(first, args.dinov2, args.face)
        if labels != self.train.labels:
            raise UsageError(f"{first} knows other classes: {', '.join(labels)}")
        if theirs.crop != recipe.crop:
            raise UsageError(f"{first} was trained on another crop; make the recipes' equal")
        assert theirs.teacher is not None
        teacher.to(self.device).requires_grad_(False)
        frozen.to(self.device)
        named = f"{theirs.name} {digest_of(first)[:16]} on {theirs.teacher.face}"
        if how.live:
            if others:
                raise UsageError("with 'live' one teacher thinks; give --teacher once")
            course = StudentCourse(
                recipe, self.examples, pixels, self.device, live=(teacher, frozen), bf16=self.bf16
            )
        else:
            scene = self.features(frozen.scene, "train")
            lower = self.lower(frozen.lower, "train", "face" in theirs.teacher.cached)
            place = features_folder(self.crops, "train", frozen.lower, self.bf16)
            lessons = cache_lessons(place, teacher, scene, lower, self.bf16, self.say)
            if others:
                beside = [open_model(path, args.dinov2, args.face) for path in others]
                self.say(
                    f"{len(beside)} more are asked about {len(self.train.crops.names)} pictures"
                )
                lessons = with_opinions(
                    lessons, labels, recipe.crop.spec(), beside, self.pixels("train")
                )
                for path in others:
                    file = path / "bundle.json" if path.is_dir() else path
                    named += f", with {path.name} {digest_of(file)[:16]}"
            course = StudentCourse(recipe, self.examples, pixels, self.device, lessons)
        task = DistillationTask(student, how, teacher)
        task = task.to(self.device, memory_format=torch.channels_last)
        return task, course, "", named
