"""What is trained: a network, and one step from a batch to a dict of named, weighted losses.

`network` is what a checkpoint keeps; whatever else a task learns (projections) or follows (running
statistics) is needed for training alone. The total is the sum of the dict.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models.backbones import to_tokens
from distill.models.student import Fusion, Student
from distill.models.teacher import Teacher, Thoughts
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
    """The teacher on the annotators' votes."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.network = teacher

    def forward(self, scene: Tensor, lower: Tensor, targets: Tensor) -> Losses:
        """scene: (B, Ds, G, G), lower: (B, C, G', G'), targets: (B, K)."""
        return {"votes": soft_cross_entropy(self.network(scene, lower).float(), targets)}


class StudentTask(nn.Module):
    """The student on the votes alone: faces (B, C, S, S), targets (B, K)."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.network = student

    def forward(self, faces: Tensor, targets: Tensor) -> Losses:
        return {"votes": soft_cross_entropy(self.network(faces).float(), targets)}


class DistillationTask(nn.Module):
    """The student on the votes and on what a teacher thinks of the same faces.

    Each stream of the student learns its own backbone's tokens, place by place, and the pooled
    embedding the teacher's, through linear projections that are dropped afterwards.
    """

    def __init__(self, student: Student, how: Distillation, teacher: Teacher) -> None:
        """Raises UsageError where the lesson of relations does not fit the teacher's width."""
        super().__init__()
        self.network, self.how = student, how
        width, wide = student.config.width, teacher.config
        if how.relations and wide.width % how.relation_heads:
            raise UsageError(
                f"the teacher's width {wide.width} is no multiple of 'distillation.relation_heads' "
                f"{how.relation_heads}"
            )
        self.to_scene = nn.Linear(width, wide.scene_width)
        self.to_face = nn.Linear(width, wide.face_width)
        self.to_embedding = nn.Linear(width, wide.width)
        self.scene_standard = RunningStandard(wide.scene_width)
        self.face_standard = RunningStandard(wide.face_width)
        self.embedding_standard = RunningStandard(wide.width)
        # Not a part of this module: it neither learns nor goes into a checkpoint.
        self._teacher = [teacher]

    def forward(self, faces: Tensor, targets: Tensor, thoughts: Thoughts) -> Losses:
        """faces: (B, C, S, S), targets: (B, K), thoughts: of these faces, on the student's grid."""
        how, student = self.how, self.network
        scene, face = student.tokens(faces)  # (B, N, D)
        embedding = student.fusion(scene, face).mean(dim=(2, 3))  # (B, D)
        logits = student.head(student.dropout(embedding)).float()
        losses: Losses = {}
        if how.votes:
            losses["votes"] = how.votes * soft_cross_entropy(logits, targets)
        if how.logits:
            losses["logits"] = how.logits * self._logits(logits, thoughts.logits.float(), targets)
        if how.tokens:
            losses["tokens"] = how.tokens * (
                feature_distance(
                    self.to_scene(scene).float(), self.scene_standard(_tokens(thoughts.scene))
                )
                + feature_distance(
                    self.to_face(face).float(), self.face_standard(_tokens(thoughts.face))
                )
            )
        if how.embedding:
            losses["embedding"] = how.embedding * feature_distance(
                self.to_embedding(embedding).float(),
                self.embedding_standard(thoughts.embedding.float()),
            )
        if how.relations:
            losses["relations"] = how.relations * self._relations(scene, face, thoughts)
        return losses

    def _logits(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        t = self.how.temperature
        if self.how.logits_loss == "decoupled":
            return decoupled_distillation(student, teacher, targets.argmax(dim=1), t)
        if self.how.logits_loss == "relation":
            return relation_distillation(student, teacher, t)
        return logit_distillation(student, teacher, t)

    def _relations(self, scene: Tensor, face: Tensor, thoughts: Thoughts) -> Tensor:
        teacher = self._teacher[0]
        own = _questions(self.network.fusion, scene, face)
        with torch.no_grad():
            s = teacher.scene_in(_tokens(thoughts.scene))
            f = teacher.face_in(_tokens(thoughts.face))
            theirs = _questions(teacher, s, f)
        heads = self.how.relation_heads
        parts = [
            attention_relations(a.float(), b.float(), heads)
            for a, b in zip(own, theirs, strict=True)
        ]
        return torch.stack(parts).mean()


def _tokens(grid: Tensor) -> Tensor:
    return to_tokens(grid.float())


def _questions(fusion: Fusion | Teacher, scene: Tensor, face: Tensor) -> list[Tensor]:
    """Queries, keys and values of both directions, (B, N, D) each."""
    s, f = fusion.scene_norm(scene), fusion.face_norm(face)
    return [
        part(x)
        for asks, own, other in ((fusion.scene_asks, s, f), (fusion.face_asks, f, s))
        for part, x in ((asks.query, own), (asks.key, other), (asks.value, other))
    ]


def on_grid(thoughts: Thoughts, side: int) -> Thoughts:
    """The backbones' grids brought to the student's side."""

    def to(grid: Tensor) -> Tensor:
        return functional.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)

    return Thoughts(thoughts.logits, thoughts.embedding, to(thoughts.scene), to(thoughts.face))
