"""Split a teacher's backbones into what is frozen and what learns.

DINOv2 (scene)            all of it frozen
each face backbone        a frozen stem, its first units, and a trainable tail, its last ones
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from distill.models.dinov2 import Dinov2
from edge.base.errors import DataError


class FaceBackbone(Protocol):
    """What SFace, IR-50 and dlib's ResNet have in common.

    side: of the square RGB image that it reads, pixels; width: channels of its grid."""

    side: int
    width: int

    def prepare(self, faces: Tensor) -> Tensor:
        """Turn faces (B, C, S, S) of 0..255 into its input (B, 3, side, side)."""
        ...

    def stages(self) -> list[nn.Module]:
        """Return its units in order."""
        ...


class FrozenStem(nn.Module):
    """Run the face backbone's frozen first units: faces (B, C, S, S) of 0..255 -> (B, C', G, G)."""

    def __init__(self, face: FaceBackbone, stages: nn.Sequential) -> None:
        super().__init__()
        self.prepare, self.side = face.prepare, face.side
        self.stages = stages
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenStem:
        super().train(False)  # always in evaluation mode: no batch statistics
        return self

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        pixels = self.prepare(faces).to(memory_format=torch.channels_last)
        return self.stages(pixels)  # type: ignore[no-any-return]


def split_backbone(face: FaceBackbone, trained_units: int) -> tuple[FrozenStem, nn.Sequential]:
    """Split the face backbone into its frozen stem and its trainable tail, the last units.

    Raises DataError where it has fewer units than `trained_units`."""
    stages = face.stages()
    place = len(stages) - trained_units
    if place < 0:
        raise DataError(f"trained_units {trained_units}: the backbone has only {len(stages)}")
    stem = FrozenStem(face, nn.Sequential(*stages[:place]))
    return stem, nn.Sequential(*stages[place:]).requires_grad_(True)


class FrozenBackbones(nn.Module):
    """Run all that does not learn, DINOv2 and each face backbone's stem.

    Faces (B, C, S, S) of 0..255 -> the scene's grid (B, Ds, G, G), then each stem's (B, C', G', G').
    """

    def __init__(self, scene: Dinov2, stems: Sequence[FrozenStem]) -> None:
        super().__init__()
        self.scene, self.stems = scene, nn.ModuleList(stems)

    def face_stems(self) -> list[FrozenStem]:
        """Return the stems in the recipe's order."""
        return [cast(FrozenStem, stem) for stem in self.stems]

    def forward(self, faces: Tensor) -> tuple[Tensor, ...]:
        return self.scene(faces), *(stem(faces) for stem in self.stems)
