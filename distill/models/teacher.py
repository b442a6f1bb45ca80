"""Define the HFFER-style teacher: pretrained backbones, cross-attention both ways, head.

    scene grid (B, Ds, G, G)   frozen DINOv2                       \
                                                        attention -> convolutions -> logits (B, K)
    stem's grid (B, C, G', G') face recognition's last units       /

Several face backbones are one stream: their grids are joined place by place, so that attention and all
that follows are the same as with one.

B batch, D width, G grid side of the fusion, N = G * G places, K classes.

From the paper's abstract (Xie, Ju and Chang 2025, doi 10.54097/m7sc3z87): a frozen DINOv2 and a second
pretrained backbone, integrated by cross-attention and multiple convolutions. Only the abstract was
available, so the rest is our choice: a face recogniser as the second, its last units trainable; one
pre-norm block in each direction; a grid of 7x7 or 14x14; two residual blocks, average pooling and a
linear head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models.grids import to_grid, to_tokens
from distill.models.student import CrossAttention

Answers = TypeVar("Answers", bound="TeacherAnswers")


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """Sizes of a teacher.

    scene_width, face_widths: channels of the backbones' grids; grid: side of the fused grid, 7 or 14;
    width: D; scene, face, attend, convolve: False takes that part away, for an ablation.
    """

    classes: int
    scene_width: int
    face_widths: tuple[int, ...]
    grid: int = 7
    width: int = 256
    heads: int = 8
    dropout: float = 0.3
    scene: bool = True
    face: bool = True
    attend: bool = True
    convolve: bool = True

    @property
    def face_width(self) -> int:
        """Channels of the face backbones' joined grid."""
        return sum(self.face_widths)


class Residual(nn.Module):
    """Add two 3x3 convolutions with BatchNorm to the identity (He et al., CVPR 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


@dataclass(frozen=True, slots=True)
class TeacherAnswers:
    """What a student learns from, besides the annotators' votes. logits: (B, K); embedding: (B, D)."""

    logits: Tensor
    embedding: Tensor

    def to(self: Answers, device: torch.device) -> Answers:
        """Copy all tensors to a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class TeacherOutputs(TeacherAnswers):
    """The answers, and the backbones' grids they were made of.

    scene, face: (B, Ds, G, G) and, of all face backbones together, (B, Df, G, G).
    """

    scene: Tensor
    face: Tensor


def join_faces(grids: Sequence[Tensor]) -> Tensor:
    """Return one backbone's grid as it is, several as one: (B, D1, G, G), ... -> (B, D1 + ..., G, G).

    Of several, each has its channels scaled to mean 0 and variance 1 at every place: the one with the
    larger numbers would else drown the others, in attention and in a cache with one scale a place."""
    if len(grids) == 1:
        return grids[0]
    tokens = [functional.layer_norm(to_tokens(grid), (grid.shape[1],)) for grid in grids]
    return to_grid(torch.cat(tokens, dim=2))


class Teacher(nn.Module):
    """Fuse the outputs of the frozen backbones, which may come from a cache, into logits."""

    def __init__(self, config: TeacherConfig, tails: Sequence[nn.Module] = ()) -> None:
        """tails: each face backbone's last units; none where all of them are frozen."""
        super().__init__()
        if not (config.scene or config.face):
            raise ValueError("a teacher without both backbones has nothing to read")
        self.config = config
        d, tokens = config.width, config.grid**2
        self.trainable_tails = nn.ModuleList(tails or [nn.Sequential() for _ in config.face_widths])
        self.scene_in = nn.Sequential(
            nn.LayerNorm(config.scene_width), nn.Linear(config.scene_width, d)
        )
        self.face_in = nn.Sequential(
            nn.LayerNorm(config.face_width), nn.Linear(config.face_width, d)
        )
        self.scene_norm, self.face_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.scene_to_face_attention = CrossAttention(d, config.heads, tokens)
        self.face_to_scene_attention = CrossAttention(d, config.heads, tokens)
        self.mix = nn.Sequential(nn.Conv2d(2 * d, d, 1, bias=False), nn.BatchNorm2d(d), nn.ReLU())
        self.convolutions = nn.Sequential(Residual(d), Residual(d))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(d, config.classes)

    def fuse(self, scene: Tensor, face: Tensor) -> Tensor:
        """Fuse (B, Ds, G, G) and (B, Df, G, G), both on the fused grid, into (B, D, G, G)."""
        c = self.config
        s = self.scene_in(to_tokens(scene))  # (B, N, D)
        f = self.face_in(to_tokens(face))  # (B, N, D)
        # A backbone that an ablation takes away is zeros, so that the rest keeps its size.
        s, f = s * float(c.scene), f * float(c.face)
        x, y = s, f
        if c.attend:
            a, b = self.scene_norm(s), self.face_norm(f)
            x = s + self.scene_to_face_attention(a, b)  # (B, N, D)
            y = f + self.face_to_scene_attention(b, a)  # (B, N, D)
        grid = torch.cat([x, y], dim=2).transpose(1, 2).reshape(len(x), -1, c.grid, c.grid)
        grid = self.mix(grid)  # (B, D, G, G)
        return self.convolutions(grid) if c.convolve else grid  # type: ignore[no-any-return]

    def forward_outputs(self, scene: Tensor, *stems: Tensor) -> TeacherOutputs:
        """Return all that a student learns from; scene, stems: outputs of `FrozenBackbones`."""
        side = self.config.grid
        scene = functional.adaptive_avg_pool2d(scene, side)
        face = join_faces(
            [
                functional.adaptive_avg_pool2d(tail(stem), side)
                for tail, stem in zip(self.trainable_tails, stems, strict=True)
            ]
        )
        embedding = self.fuse(scene, face).mean(dim=(2, 3))  # (B, D)
        return TeacherOutputs(self.head(self.dropout(embedding)), embedding, scene, face)

    def forward(self, scene: Tensor, *stems: Tensor) -> Tensor:
        """Return logits (B, K) of (B, Ds, G, G) and each stem's (B, C, G', G')."""
        return self.forward_outputs(scene, *stems).logits
