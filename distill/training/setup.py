"""Prepare a run by command line and recipe: crops without near-duplicates, networks and caches."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.data.augment import random_affine
from distill.data.data_set import data_of
from distill.data.domains import names_in
from distill.data.duplicates import find_near_duplicates, names_of
from distill.data.sampling import (
    Examples,
    left_without,
    log_prior,
    training_examples,
    validation_labels,
)
from distill.data.splits import Split, crops_folder, join, open_crops
from distill.models.backbones import FrozenBackbones, FrozenStem
from distill.models.build import build_student, build_teacher, settle_tails
from distill.models.checkpoint import load_teacher
from distill.models.dinov2 import Dinov2
from distill.models.feature_cache import (
    Features,
    Grids,
    OnTheFlyFeatures,
    cache_features,
    features_folder,
    weights_digest,
)
from distill.models.precision import use_bf16
from distill.models.provenance import data_of_network
from distill.models.store import digest_of
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.warm_start import (
    RECALIBRATION_FACES,
    Start,
    read_start,
    same_fusion,
    warm_start,
)
from distill.recipe import Distillation, Recipe
from distill.training.batches import Batches, StudentBatches, TeacherBatches, augmented
from distill.training.deployable import say_needs
from distill.training.distributed import Process
from distill.training.fingerprint import LEARNED_FROM, data_digest
from distill.training.target_cache import cache_targets, ensemble_targets, logit_targets
from distill.training.task import DistillationTask, StudentTask, Task, TeacherTask
from distill.training.teachers import has_tokens, name_of, order_of_classes, predictors
from distill.training.view_cache import (
    Ask,
    Views,
    ViewTargets,
    ask_together,
    cache_view_targets,
    views_folder,
)
from edge.base.errors import DataError, UsageError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Networks:
    """What is trained, from what.

    backbones: digest of a teacher's frozen backbones; teacher: the names of a student's teachers."""

    task: Task
    batches: Batches
    backbones: str = ""
    teacher: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """A run, ready to train.

    truth: (N,) labels of the validation split (N is 0 without one), -1 for none, and votes: (N, K),
    which the best epoch is chosen by; start: `Start.metadata` of the weights it starts from; layout: of
    the data; pictures: `data_digest` of what is learned from and chosen on; teacher_data: what the
    teachers learned from, whose licence the weights have too."""

    labels: tuple[str, ...]
    examples: Examples
    truth: NDArray[np.int64]
    votes: NDArray[np.float32]
    networks: Networks
    start: dict[str, Any] | None = None
    layout: str | None = None
    pictures: str = ""
    teacher_data: tuple[str, ...] = ()


def refuse_unfit_options(recipe: Recipe, args: argparse.Namespace) -> None:
    """Raise UsageError for options that the recipe needs or cannot use."""
    if (recipe.distillation is None) != (not args.teacher):
        wants = "a teacher: give --teacher FILE" if recipe.distillation else "no --teacher"
        raise UsageError(f"{args.recipe} wants {wants}")
    if args.start and not recipe.student:
        raise UsageError(f"{args.recipe} trains a teacher: --start is for students")


def prepare(recipe: Recipe, args: argparse.Namespace, process: Process) -> TrainingSetup:
    """Set a run up; args: distill-train's. The main process makes the caches while the others wait.

    Raises UsageError for a start of another crop, or a teacher of other classes, DataError for bad
    data."""
    start = read_start(args.start) if args.start else None
    if start and start.recipe.crop != recipe.crop:
        raise UsageError(f"{args.start} was trained on another crop; make the recipe's equal")

    def say(line: str) -> None:
        if process.is_main:
            print(line, flush=True)

    if not process.is_main:
        process.barrier()
    spec = recipe.crop.spec()
    needs = ("train",) if args.train_on_all else ("train", "valid")
    data = data_of(args, say, needs, args.train_on_all)
    order = order_of_classes(data.votes("train")[1], args.teacher)
    crops = open_crops(data, spec, args.weights, say)
    folder = crops_folder(data, spec)
    duplicates = find_near_duplicates(data, folder, say)
    split = join(data, "train", crops).ordered(order, "the teacher")
    if "valid" in crops:
        valid = join(data, "valid", crops).ordered(order, "the teacher")
    else:
        valid = split.without(split.crops.names)
    left_out, unchosen = names_of(duplicates["train"]), names_of(duplicates["valid"])
    if args.train_on_all:
        say("no validation split is taken out of train: nothing is chosen, the last epoch is taken")
    say(
        f"left out: {len(left_out)} near-duplicates of validation and test images from training, "
        f"{len(unchosen)} near-duplicates of test images from choosing"
    )
    if start and not start.metadata.get("validated", True) and not args.train_on_all:
        say(
            f"{args.start} learned from all of train (--train-on-all): where valid is a part of that, "
            f"the best epoch is chosen by pictures that it knows"
        )
    held_out = names_in(split.crops, recipe.training.hold_out)
    if held_out:
        say(f"held out: {len(held_out)} images of train that are {recipe.training.hold_out}")
    examples = training_examples(split, left_out | held_out)
    if gone := left_without(split, examples):
        say(f"no picture of {', '.join(gone)} is left in train: that cannot be learned")
    truth = validation_labels(valid, unchosen)
    if len(examples) < 2 or not ((truth >= 0).any() or args.train_on_all):
        raise DataError(
            f"{len(examples)} labelled images of train and {int((truth >= 0).sum())} of valid have no "
            f"near-duplicate in a later split, which is too few; split {args.data} by person or by "
            f"recording, not by picture"
        )
    if recipe.student:
        say_needs(split.labels, len(examples), truth, say)
    if unused := recipe.without_effect():
        say(
            f"augmentation.{', augmentation.'.join(unused)}: without effect, since 'teacher.cached' "
            f"has scene and face, whose grids are only moved; leave face out of it"
        )
    torch.manual_seed(recipe.training.seed)
    builder = RunBuilder(recipe, args, process.device, folder, examples, split, valid, say, start)
    networks = builder.teacher() if recipe.teacher else builder.student()
    if process.is_main:
        process.barrier()
    known = start.metadata if start else None
    return TrainingSetup(
        split.labels,
        examples,
        truth,
        valid.targets,
        networks,
        known,
        args.layout,
        data_digest(data, LEARNED_FROM),
        tuple(sorted(set().union(*map(data_of_network, args.teacher or ())))),
    )


@dataclass(frozen=True, slots=True)
class RunBuilder:
    """Build a run's networks and batches. crops: the crops' folder; train, valid: the splits."""

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

    def compiled(self, network: nn.Module) -> Any:
        return torch.compile(network) if self.args.compile else network

    def features(self, network: Dinov2 | FrozenStem, split: str) -> Features:
        """Open a frozen network's cached outputs for a split, computing what is missing."""
        place = features_folder(self.crops, split, network, self.bf16)
        return cache_features(
            place, self.compiled(network), self.pixels(split), self.device, self.bf16, self.say
        )

    def grids(self, frozen: FrozenBackbones, split: str, face_cached: bool) -> list[Grids]:
        """Open DINOv2's outputs and each stem's; a recipe that does not cache these keeps them off the
        disk."""
        grids: list[Grids] = [self.features(frozen.scene, split)]
        for stem in frozen.face_stems():
            if face_cached:
                grids.append(self.features(stem, split))
            else:
                grids.append(OnTheFlyFeatures(stem, self.pixels(split), self.device, self.bf16))
        return grids

    def some_faces(self) -> NDArray[np.uint8]:
        """Return some of the training set, evenly spaced, for batch statistics."""
        count = min(RECALIBRATION_FACES, len(self.examples))
        rows = self.examples.rows[np.linspace(0, len(self.examples) - 1, count).astype(int)]
        some: NDArray[np.uint8] = self.pixels("train")[rows]
        return some

    def prior(self) -> Tensor | None:
        """Return what the loss on the votes adds to the logits, (K,), or None where it adds nothing."""
        tau = self.recipe.training.prior_tau
        return tau * log_prior(self.examples, self.recipe.training.balance) if tau else None

    def on_device(self, task: Task) -> Task:
        task.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return task

    def teacher(self) -> Networks:
        """Build a teacher's run."""
        recipe, args = self.recipe, self.args
        assert recipe.teacher is not None
        teacher, frozen = build_teacher(recipe, len(self.train.labels), args.dinov2, args.face)
        frozen.to(self.device)
        teacher.to(self.device)
        some = torch.from_numpy(self.some_faces()).float().to(self.device)
        settle_tails(recipe, teacher, frozen, some)
        scene_cached, face_cached = (side in recipe.teacher.cached for side in ("scene", "face"))
        stems = frozen.face_stems()
        batches = TeacherBatches(
            recipe,
            self.examples,
            self.grids(frozen, "valid", face_cached) if len(self.valid.votes) else [],
            [frozen.scene, *(self.compiled(stem) for stem in stems)],
            self.device,
            [
                self.features(frozen.scene, "train") if scene_cached else None,
                *(self.features(stem, "train") if face_cached else None for stem in stems),
            ],
            self.bf16,
        )
        return Networks(
            self.on_device(TeacherTask(teacher, self.prior())), batches, weights_digest(frozen)
        )

    def student(self) -> Networks:
        """Build a student's run, distilled where the recipe says so."""
        student = build_student(self.recipe, len(self.train.labels))
        if self.start:
            self.warm_start(student, self.start)
        if self.recipe.distillation:
            return self.distilled(student, self.recipe.distillation)
        batches = StudentBatches(self.recipe, self.examples, self.pixels("valid"), self.device)
        return Networks(self.on_device(StudentTask(student, self.prior())), batches)

    def warm_start(self, student: Student, start: Start) -> None:
        """Give the student the start's weights, and say what it knows."""
        warm_start(student, start, self.train.labels, self.some_faces())
        known = len(set(self.train.labels) & set(start.labels))
        told = f"which knows {known} of {len(self.train.labels)} classes"
        if not same_fusion(start.config, student.config):
            told = "trunk and streams alone: its fused block has another form, and begins anew"
        self.say(f"started from {self.args.start}, {told}")

    def distilled(self, student: Student, config: Distillation) -> Networks:
        """Build a student's run with the teachers on the command line, the first of which gives its
        tokens and embedding."""
        recipe, args = self.recipe, self.args
        first, *others = args.teacher
        if config.logits_alone and not has_tokens(first):
            return self.by_logits(student, config)
        teacher, frozen, theirs, labels = load_teacher(first, args.dinov2, args.face)
        if theirs.crop != recipe.crop:
            raise UsageError(f"{first} was trained on another crop; make the recipes' equal")
        assert theirs.teacher is not None
        teacher.to(self.device).requires_grad_(False)
        frozen.to(self.device)
        named = f"{theirs.name} {digest_of(first)[:16]} on {' and '.join(theirs.teacher.face)}"
        for path in others:
            named += f", with {name_of(path)}"
        if config.views:
            batches = self.viewed(config, teacher, frozen, labels, named)
            task = self.on_device(DistillationTask(student, config, teacher, self.prior()))
            return Networks(task, batches, teacher=named)
        cache, live = None, None
        if config.live:
            if others:
                raise UsageError("with 'live' one teacher answers; give --teacher once")
            live = (teacher, frozen)
        else:
            grids = self.grids(frozen, "train", "face" in theirs.teacher.cached)
            place = features_folder(self.crops, "train", frozen.face_stems()[0], self.bf16)
            cache = cache_targets(place, teacher, grids, self.bf16, self.say)
        if cache and others:
            members = predictors(others, args)
            self.say(
                f"computing {len(members)} more networks' outputs for "
                f"{len(self.train.crops.names)} images"
            )
            pixels = self.pixels("train")
            cache = ensemble_targets(cache, labels, recipe.crop.spec(), members, pixels)
        batches = StudentBatches(
            recipe, self.examples, self.pixels("valid"), self.device, cache, live, self.bf16
        )
        task = self.on_device(DistillationTask(student, config, teacher, self.prior()))
        return Networks(task, batches, teacher=named)

    def by_logits(self, student: Student, config: Distillation) -> Networks:
        """Build a student's run whose teachers answer for the plain images once, by logits."""
        paths, spec = self.args.teacher, self.recipe.crop.spec()
        members = predictors(paths, self.args)
        for path, member in zip(paths, members, strict=True):
            if member.crop != spec:
                raise UsageError(f"{path} was trained on another crop; make the recipes' equal")
        pixels = self.pixels("train")
        self.say(f"computing {len(members)} networks' outputs for {len(pixels)} images")
        batches = StudentBatches(
            *(self.recipe, self.examples, self.pixels("valid"), self.device),
            logit_targets(members, pixels),
        )
        task = self.on_device(DistillationTask(student, config, None, self.prior()))
        return Networks(task, batches, teacher=", with ".join(map(name_of, paths)))

    def viewed(
        self,
        config: Distillation,
        teacher: Teacher,
        frozen: FrozenBackbones,
        labels: tuple[str, ...],
        named: str,
    ) -> StudentBatches:
        """Make batches of cached views with the answers of all teachers, or of the same views with
        the teachers themselves."""
        recipe, args, spec = self.recipe, self.args, self.recipe.crop.spec()

        def augment(faces: Tensor, generator: torch.Generator) -> Tensor:
            affine = random_affine(len(faces), recipe.augmentation, generator)
            return augmented(faces, affine, recipe, generator)

        views = Views(config.views, self.pixels("train"), augment)
        ask = ask_together(
            teacher, frozen, labels, spec, predictors(args.teacher[1:], args), self.bf16
        )
        answers: ViewTargets | Ask = ask
        if not config.live:
            made_by = {
                "teachers": named,
                "weights": weights_digest(teacher),
                "frozen": weights_digest(frozen),
                "augmentation": recipe.augmentation.model_dump(),
                "bf16": self.bf16,
            }
            folder = views_folder(self.crops, "train", views, made_by)
            answers = cache_view_targets(folder, views, ask, self.say)
        valid = self.pixels("valid")
        return StudentBatches(
            recipe, self.examples, valid, self.device, bf16=self.bf16, views=(views, answers)
        )
