"""A training run as a strict YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edge.crop import CropSpec
from edge.strict import Strict, read_yaml, validate


class CropRecipe(Strict):
    size: int = Field(ge=32, le=224, multiple_of=8, description="side of the crop, pixels")
    channels: Literal[1, 3] = 1
    template: list[list[float]] = Field(
        min_length=5, max_length=5, description="where the five landmarks land, pixels x y"
    )

    @model_validator(mode="after")
    def _pairs(self) -> CropRecipe:
        if any(len(point) != 2 for point in self.template):
            raise ValueError("template must hold five pairs, x and y")
        return self

    def spec(self) -> CropSpec:
        points = tuple((float(x), float(y)) for x, y in self.template)
        return CropSpec(size=self.size, channels=self.channels, template=points)


class StudentRecipe(Strict):
    widths: list[int] = Field(default=[32, 48, 96, 160], min_length=4, max_length=4)
    depths: list[int] = Field(default=[1, 2, 2], min_length=3, max_length=3)
    width: int = Field(default=128, ge=8, description="tokens' width D")
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads(self) -> StudentRecipe:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Augmentation(Strict):
    rotate_degrees: float = Field(default=15.0, ge=0, le=45)
    scale: float = Field(default=1.15, ge=1, le=2, description="largest factor, and its inverse")
    shift: float = Field(default=0.06, ge=0, le=0.5, description="of the side")
    contrast: float = Field(default=1.4, ge=1, le=4, description="largest factor, and its inverse")
    brightness: float = Field(default=30.0, ge=0, le=128, description="grey levels")
    gamma: float = Field(default=1.4, ge=1, le=4, description="largest exponent, and its inverse")
    shrink_share: float = Field(default=0.2, ge=0, le=1)
    shrink_to: int = Field(default=14, ge=4, le=64, description="smallest side, pixels")
    noise: float = Field(default=6.0, ge=0, le=64, description="largest deviation, grey levels")
    erase_share: float = Field(default=0.25, ge=0, le=1)


class Training(Strict):
    epochs: int = Field(ge=1)
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    average: float = Field(default=0.998, ge=0, lt=1, description="EMA decay a step")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = Field(default=0, ge=0)


class Recipe(Strict):
    name: str
    crop: CropRecipe
    student: StudentRecipe = StudentRecipe()
    augmentation: Augmentation = Augmentation()
    training: Training

    @model_validator(mode="after")
    def _shrink(self) -> Recipe:
        if self.augmentation.shrink_to >= self.crop.size:
            raise ValueError("augmentation.shrink_to must be below crop.size")
        return self


def load_recipe(path: Path) -> Recipe:
    """Raises SettingsError in one line."""
    return validate(Recipe, read_yaml(path), str(path))
