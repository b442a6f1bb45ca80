"""Turn a batch into a dict of named, weighted losses, whose sum is minimised.

A task's `network` is what a checkpoint keeps; its projections and running statistics are needed for
training alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models.grids import to_tokens
from distill.models.student import CrossAttention, Fusion, Student
from distill.models.teacher import Teacher, TeacherAnswers, TeacherOutputs
from distill.recipe import Distillation
from distill.training.losses import (
    RunningStandard,
    attention_relations,
    decoupled_distillation,
    feature_distance,
    logit_distillation,
    relation_distillation,
    soft_cross_entropy,
)
from edge.base.errors import UsageError

Losses = dict[str, Tensor]


class TeacherTask(nn.Module):
    """Train a teacher on the annotators' votes. prior: (K,) as in `soft_cross_entropy`."""

    prior: Tensor | None

    def __init__(self, teacher: Teacher, prior: Tensor | None = None) -> None:
        super().__init__()
        self.network = teacher
        self.register_buffer("prior", prior, persistent=False)

    def forward(self, targets: Tensor, *grids: Tensor) -> Losses:
        """Compute the losses; targets: (B, K), grids: the outputs of `FrozenBackbones`."""
        return {"votes": soft_cross_entropy(self.network(*grids).float(), targets, self.prior)}


class StudentTask(nn.Module):
    """Train a student on the votes alone. prior: (K,) as in `soft_cross_entropy`."""

    prior: Tensor | None

    def __init__(self, student: Student, prior: Tensor | None = None) -> None:
        super().__init__()
        self.network = student
        self.register_buffer("prior", prior, persistent=False)

    def forward(self, faces: Tensor, targets: Tensor) -> Losses:
        """Compute the losses; faces: (B, C, S, S) of 0..255, targets: (B, K)."""
        return {"votes": soft_cross_entropy(self.network(faces).float(), targets, self.prior)}


class DistillationTask(nn.Module):
    """Train a student on the votes and on a teacher's outputs for the same faces.

    Each stream learns its own backbone's tokens, place by place, and the pooled embedding learns the
    teacher's, through linear projections that are dropped afterwards.
    """

    prior: Tensor | None

    def __init__(
        self,
        student: Student,
        config: Distillation,
        teacher: Teacher | None,
        prior: Tensor | None = None,
    ) -> None:
        """teacher: None where the recipe follows logits alone; prior: (K,) as in `soft_cross_entropy`,
        for the loss on the votes alone. Raises UsageError where the relation heads do not divide the
        teacher's width."""
        super().__init__()
        self.register_buffer("prior", prior, persistent=False)
        self.network, self.config = student, config
        # In a list, so that it is not a submodule: it is neither trained nor saved.
        self._teacher = [teacher]
        if teacher is None:
            return
        width, sizes = student.config.width, teacher.config
        if config.relations and sizes.width % config.relation_heads:
            raise UsageError(
                f"the teacher's width {sizes.width} is not a multiple of "
                f"'distillation.relation_heads' {config.relation_heads}"
            )
        self.to_scene = nn.Linear(width, sizes.scene_width)
        self.to_face = nn.Linear(width, sizes.face_width)
        self.to_embedding = nn.Linear(student.config.embedding_width, sizes.width)
        self.scene_standard = RunningStandard(sizes.scene_width)
        self.face_standard = RunningStandard(sizes.face_width)
        self.embedding_standard = RunningStandard(sizes.width)

    def forward(self, faces: Tensor, targets: Tensor, outputs: TeacherAnswers) -> Losses:
        """Compute the losses whose weight is not 0.

        faces: (B, C, S, S) of 0..255; targets: (B, K); outputs: the teacher's for these faces; the
        losses on tokens and relations need TeacherOutputs, the backbones' grids on the student's,
        (B, D, S / 8, S / 8)."""
        config, student = self.config, self.network
        scene, face = student.tokens(faces)  # (B, N, D)
        embedding = student.fusion(scene, face)  # (B, E)
        logits = student.head(student.dropout(embedding)).float()
        losses: Losses = {}
        if config.votes:
            losses["votes"] = config.votes * soft_cross_entropy(logits, targets, self.prior)
        if config.logits:
            losses["logits"] = config.logits * self._logits(logits, outputs.logits.float(), targets)
        if config.tokens:
            assert isinstance(outputs, TeacherOutputs)  # a recipe with views has no such loss
            losses["tokens"] = config.tokens * (
                feature_distance(
                    self.to_scene(scene).float(), self.scene_standard(_tokens(outputs.scene))
                )
                + feature_distance(
                    self.to_face(face).float(), self.face_standard(_tokens(outputs.face))
                )
            )
        if config.embedding:
            losses["embedding"] = config.embedding * feature_distance(
                self.to_embedding(embedding).float(),
                self.embedding_standard(outputs.embedding.float()),
            )
        if config.relations:
            assert isinstance(outputs, TeacherOutputs)
            losses["relations"] = config.relations * self._relations(scene, face, outputs)
        return losses

    def _logits(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        t = self.config.temperature
        if self.config.logits_loss == "decoupled":
            return decoupled_distillation(student, teacher, targets.argmax(dim=1), t)
        if self.config.logits_loss == "relation":
            return relation_distillation(student, teacher, t)
        return logit_distillation(student, teacher, t)

    def _relations(self, scene: Tensor, face: Tensor, outputs: TeacherOutputs) -> Tensor:
        (teacher,) = self._teacher
        assert teacher is not None  # a recipe that follows logits alone has no such loss
        fusion = self.network.fusion
        assert isinstance(fusion, Fusion)  # a recipe with relations pools by the mean
        own = _qkv(fusion, scene, face)
        with torch.no_grad():
            s = teacher.scene_in(_tokens(outputs.scene))
            f = teacher.face_in(_tokens(outputs.face))
            theirs = _qkv(teacher, s, f)
        heads = self.config.relation_heads
        parts = [
            attention_relations(a.float(), b.float(), heads)
            for a, b in zip(own, theirs, strict=True)
        ]
        return torch.stack(parts).mean()


Task = TeacherTask | StudentTask | DistillationTask


def _tokens(grid: Tensor) -> Tensor:
    return to_tokens(grid.float())


def _qkv(fusion: Fusion | Teacher, scene: Tensor, face: Tensor) -> list[Tensor]:
    """Return queries, keys and values of both directions, (B, N, D) each."""
    s, f = fusion.scene_norm(scene), fusion.face_norm(face)
    parts: list[Tensor] = []
    for attention, own, other in (
        (fusion.scene_to_face_attention, s, f),
        (fusion.face_to_scene_attention, f, s),
    ):
        assert isinstance(attention, CrossAttention)  # a recipe with relations has attention
        parts += [attention.query(own), attention.key(other), attention.value(other)]
    return parts


def resize_grids(outputs: TeacherOutputs, side: int) -> TeacherOutputs:
    """Interpolate the backbones' grids to the student's, (B, D, side, side)."""

    def resize(grid: Tensor) -> Tensor:
        return functional.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)

    return replace(outputs, scene=resize(outputs.scene), face=resize(outputs.face))
