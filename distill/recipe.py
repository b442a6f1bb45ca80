"""Read a training run's settings from a strict YAML file."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from edge.base.errors import SettingsError
from edge.base.strict_yaml import Strict, known_paths, read_yaml, validate
from edge.inference.bundle import CropSpec

Positive = Annotated[int, Field(ge=1)]
Entry = TypeVar("Entry")
MOST_SEED = 10**11  # an epoch's own seed is 1e8 times as large, and must fit into 64 bits
# Kinds of pictures (`data/domains.py`): low and high side of brightness, contrast and sharpness.
Domain = Literal["dark", "bright", "flat", "harsh", "blurred", "sharp"]
# In a file, `x` is `[x]`; what is kept of one is `x` again, as in files from before there were lists.
OneOrEach = Annotated[
    list[Entry],
    Field(min_length=1),
    BeforeValidator(lambda given: given if isinstance(given, list) else [given]),
    PlainSerializer(lambda kept: kept[0] if len(kept) == 1 else kept),
]


class CropRecipe(Strict):
    """How a face is cut out of its image."""

    size: int = Field(ge=32, le=224, multiple_of=8, description="side of the crop, pixels")
    channels: Literal[1, 3] = 1
    template: list[list[float]] = Field(
        min_length=5, max_length=5, description="where the five landmarks land, pixels x y"
    )

    @model_validator(mode="after")
    def _pairs(self) -> CropRecipe:
        if any(len(point) != 2 for point in self.template):
            raise ValueError("template must hold five pairs, x and y")
        if len({tuple(point) for point in self.template}) < 5:
            raise ValueError("template must hold five points, all different")
        for point in self.template:
            if not all(0 <= place <= self.size for place in point):
                raise ValueError(
                    f"template puts landmarks {point} outside a crop of {self.size} pixels; scale it "
                    f"with the size"
                )
        return self

    def spec(self) -> CropSpec:
        points = tuple((float(x), float(y)) for x, y in self.template)
        return CropSpec(size=self.size, channels=self.channels, template=points)


class StudentRecipe(Strict):
    """The student's sizes, as in `StudentConfig`."""

    widths: list[Positive] = Field(default=[32, 48, 96, 160], min_length=4, max_length=4)
    depths: list[Positive] = Field(default=[1, 2, 2], min_length=3, max_length=3)
    width: int = Field(default=128, ge=8, description="tokens' width D")
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    attend: bool = Field(default=True, description="false: a perceptron of equal cost, an ablation")
    pool: Literal["mean", "queries"] = Field(
        default="mean",
        description="what the head reads: the mean over places of what two-way attention and a "
        "convolution made of both streams, or the answers of learned queries that ask both",
    )
    queries: int = Field(default=4, ge=1, le=8, description="how many, with pool: queries")

    @model_validator(mode="after")
    def _heads(self) -> StudentRecipe:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.pool == "queries" and not self.attend:
            raise ValueError(
                "'attend: false' is a form of 'pool: mean'; with 'pool: queries' leave attend out"
            )
        return self


class TeacherRecipe(Strict):
    """The HFFER-style teacher; the files of its backbones are named on the command line."""

    face: OneOrEach[Literal["sface", "ir50", "dlib"]] = Field(
        default=["sface"], description="one face backbone, or a list of several"
    )
    trained_units: OneOrEach[Annotated[int, Field(ge=0)]] = Field(
        default=[3],
        description="last units of the face backbone that train, 0 freezes it all; of several, one "
        "number for all or a list of one each",
    )
    scene_grid: Literal[7, 14] = Field(default=7, description="DINOv2's grid: 98 or 196 pixels")
    face_grid: OneOrEach[Literal[7, 14]] = Field(
        default=[14],
        description="the face backbone's last one read; for all, or a list of one each",
    )
    grid: Literal[7, 14] = Field(default=7, description="side of the fused grid")
    width: int = Field(default=256, ge=8, description="tokens' width D")
    heads: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    cached: list[Literal["scene", "face"]] = Field(
        default=["scene"],
        description="backbones that run once an image, their grids warped with it; the others run "
        "for every batch and see its light, noise ... too",
    )
    backbone_rate: float = Field(
        default=0.1, gt=0, le=1, description="of the learning rate, for pretrained units"
    )
    without: list[Literal["scene", "face", "attention", "convolutions"]] = Field(
        default=[], description="parts that an ablation takes away"
    )

    @model_validator(mode="after")
    def _fits(self) -> TeacherRecipe:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if twice := [name for name in self.face if self.face.count(name) > 1]:
            raise ValueError(f"face names '{twice[0]}' twice; name each backbone once")
        for name, given in (("trained_units", self.trained_units), ("face_grid", self.face_grid)):
            if len(given) not in (1, len(self.face)):
                raise ValueError(
                    f"{name} has {len(given)} entries for {len(self.face)} face backbones; give one "
                    f"for all, or one each"
                )
        for name, side in (("scene_grid", self.scene_grid), ("face_grid", min(self.face_grid))):
            if self.grid > side:
                raise ValueError(f"grid {self.grid} is finer than {name} {side}")
        if {"scene", "face"} <= set(self.without):
            raise ValueError("without both scene and face a teacher has nothing to read")
        return self

    def of_each(self, given: Sequence[int]) -> list[int]:
        """Return `trained_units` or `face_grid` as one entry for each face backbone."""
        return list(given) * len(self.face) if len(given) == 1 else list(given)


class Distillation(Strict):
    """Weights of the losses; 0 leaves one out."""

    votes: float = Field(default=1.0, ge=0, description="cross-entropy on the votes")
    logits: float = Field(default=1.0, ge=0)
    logits_loss: Literal["standardised", "decoupled", "relation"] = "standardised"
    temperature: float = Field(default=2.0, gt=0)
    tokens: float = Field(default=1.0, ge=0, description="each stream to its own backbone's")
    embedding: float = Field(default=1.0, ge=0)
    relations: float = Field(default=0.0, ge=0, description="of queries, keys and values")
    relation_heads: int = Field(default=8, ge=1)
    live: bool = Field(
        default=False,
        description="the teacher sees the student's very image, for which a GPU is needed; else its "
        "outputs for each image are computed once and cached",
    )
    views: int = Field(
        default=0,
        ge=0,
        le=64,
        description="augmented views of each image, of which each epoch shows the next; all "
        "teachers' logits and the first's embedding are cached for each, no grids. 0: changed anew "
        "in every epoch, with the outputs for the plain image",
    )

    @property
    def logits_alone(self) -> bool:
        """Whether any network can be the teacher: its answers for the plain image serve all changes,
        and no part of its inside is followed."""
        inside = self.tokens or self.embedding or self.relations
        return not (inside or self.live or self.views)


class Augmentation(Strict):
    """Random changes of a training image."""

    plain_share: float = Field(
        default=0.0, ge=0, le=1, description="only moved and lit anew: none of the other changes"
    )
    rotate_degrees: float = Field(default=15.0, ge=0, le=45)
    scale: float = Field(default=1.15, ge=1, le=2, description="largest factor, and its inverse")
    shift: float = Field(default=0.06, ge=0, le=0.5, description="of the side")
    contrast: float = Field(default=1.4, ge=1, le=4, description="largest factor, and its inverse")
    brightness: float = Field(default=30.0, ge=0, le=128, description="grey levels")
    gamma: float = Field(default=1.4, ge=1, le=4, description="largest exponent, and its inverse")
    shrink_share: float = Field(default=0.2, ge=0, le=1)
    shrink_to: int = Field(default=14, ge=4, le=64, description="smallest side, pixels")
    blur_share: float = Field(default=0.1, ge=0, le=1)
    blur: float = Field(default=1.5, ge=0.1, le=8, description="largest deviation, pixels")
    noise: float = Field(default=6.0, ge=0, le=64, description="largest deviation, grey levels")
    jpeg_share: float = Field(default=0.1, ge=0, le=1)
    jpeg_quality: int = Field(default=20, ge=5, le=95, description="lowest quality")
    erase_share: float = Field(default=0.25, ge=0, le=1)
    turn_share: float = Field(default=0.0, ge=0, le=1, description="heads turned to a side (yaw)")
    turn_degrees: float = Field(default=50.0, ge=0, le=60, description="largest yaw")
    bend_share: float = Field(default=0.0, ge=0, le=1, description="thin-plate splines")
    bend: float = Field(
        default=0.03, ge=0, le=0.1, description="largest shift of a landmark, of the side"
    )
    side_light_share: float = Field(default=0.0, ge=0, le=1)
    side_light: float = Field(
        default=50.0, ge=1, le=256, description="largest ratio of the bright to the dark side"
    )
    dark_share: float = Field(default=0.0, ge=0, le=1)
    darkest: float = Field(default=0.06, gt=0, le=1, description="least share of the grey levels")
    camera_share: float = Field(
        default=0.0, ge=0, le=1, description="few pixels, noise and JPEG together"
    )
    camera_to: int = Field(default=11, ge=8, le=64, description="smallest side, pixels")
    camera_noise: float = Field(default=10.0, ge=0, le=64, description="grey levels")
    mask_share: float = Field(default=0.0, ge=0, le=1, description="mouth and nose covered")
    sunglasses_share: float = Field(default=0.0, ge=0, le=1, description="eyes covered")


# What moves an image, and with it what is cached of it.
MOVES = frozenset({"rotate_degrees", "scale", "shift"})


class Training(Strict):
    """The optimiser's schedule, and how images are drawn."""

    epochs: int = Field(ge=1)
    batch: int = Field(default=128, ge=2, description="images a step, over all processes")
    learning_rate: float = Field(default=2e-3, gt=0, le=1e36)  # a step must fit into float32
    weight_decay: float = Field(default=0.05, ge=0, le=10)
    warmup_epochs: float = Field(default=1.0, ge=0)
    average: float = Field(default=0.998, ge=0, lt=1, description="decay of the EMA a step")
    sharpness: float = Field(
        default=0.0,
        ge=0,
        description="rho of sharpness-aware minimisation (SAM), which takes 2 passes; 0 is off",
    )
    balance: float = Field(
        default=0.0, ge=0, le=1, description="0 draws images evenly, 1 draws classes evenly"
    )
    prior_tau: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="tau of the logit-adjusted loss on the votes (Menon et al. 2021): the network "
        "learns the logits without tau times the log of the classes' shares; 0 is off",
    )
    mixup: float = Field(default=0.0, ge=0, le=2, description="alpha of mixup; 0 is off")
    hold_out: Domain | None = Field(
        default=None,
        description="a kind of pictures that is kept from training, so that accuracy on it (of "
        "distill-eval) says how the network does on what it has not seen: to choose between recipes",
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = Field(default=0, ge=0, le=MOST_SEED)


class Recipe(Strict):
    """One run, of either a `student` or a `teacher`; a student with `distillation` needs a trained
    teacher."""

    name: str
    crop: CropRecipe
    student: StudentRecipe | None = None
    teacher: TeacherRecipe | None = None
    distillation: Distillation | None = None
    augmentation: Augmentation = Augmentation()
    training: Training

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.student is None) == (self.teacher is None):
            raise ValueError("a recipe trains either a 'student' or a 'teacher': give one of them")
        if self.distillation:
            if not self.student:
                raise ValueError("'distillation' goes with a 'student'")
            d = self.distillation
            if not any((d.votes, d.logits, d.tokens, d.embedding, d.relations)):
                raise ValueError("'distillation' teaches nothing: all its weights are 0")
            if d.relations and self.student.width % d.relation_heads:
                raise ValueError(
                    f"'student.width' {self.student.width} must be a multiple of "
                    f"'distillation.relation_heads' {d.relation_heads}"
                )
            if d.relations and not (self.student.attend and self.student.pool == "mean"):
                raise ValueError(
                    "'distillation.relations' needs the two-way form: 'student.attend: true' and "
                    "'student.pool: mean'"
                )
            if d.views and (d.tokens or d.relations):
                raise ValueError(
                    "'distillation.views' keeps no grids: set 'distillation.tokens' and "
                    "'distillation.relations' to 0"
                )
            if d.views and self.training.mixup:
                raise ValueError(
                    "'training.mixup' mixes no views; set it or 'distillation.views' to 0"
                )
        if self.distillation and self.training.mixup and not self.distillation.live:
            raise ValueError(
                "'training.mixup' with a teacher's cached outputs teaches the wrong image; use live"
            )
        for name in ("shrink_to", "camera_to"):
            if getattr(self.augmentation, name) >= self.crop.size:
                raise ValueError(f"augmentation.{name} must be below crop.size")
        return self

    def without_effect(self) -> list[str]:
        """Name the augmentation that is asked for and reaches nothing, since all backbones of the
        teacher are cached: their grids are only moved."""
        if self.teacher is None or not {"scene", "face"} <= set(self.teacher.cached):
            return []
        usual = Augmentation()
        return [n for n, v in self.augmentation if v != getattr(usual, n) and n not in MOVES]


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with what `--set` changes in it. Raises SettingsError in one line."""
    recipe = validate(Recipe, read_yaml(path), str(path))
    return changed(recipe, parse_settings(settings), f"{path} with --set") if settings else recipe


def add_set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting of the recipe, such as training.epochs=3; may be given again",
    )


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Turn "training.epochs=3" and the like into nested mappings, values as in YAML. Raises
    SettingsError for what is no such text, and for a key that recipes do not have."""
    known, changes = known_paths(Recipe), dict[str, Any]()
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise SettingsError(f"--set {text}: write KEY=VALUE, such as training.epochs=3")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise SettingsError(f"--set {key}: a recipe has no such setting; {hint}")
        try:
            parsed = yaml.safe_load(value)
        # ValueError: a date that is none; RecursionError: a thousand brackets.
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SettingsError(f"--set {key}: {value[:60]} is not valid YAML; quote it") from error
        if isinstance(parsed, str):
            with contextlib.suppress(ValueError):
                parsed = float(parsed)  # YAML 1.1 reads 1e-3, without a dot, as text
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        changes = overlay(changes, parsed)
    return changes


def changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """Lay changes over a recipe, section by section; only what was set stays set. Raises SettingsError,
    which opens with `where`."""
    return validate(Recipe, overlay(recipe.model_dump(exclude_unset=True), changes), where)


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy base with changes laid over it, mappings merged, all else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both else value
    return merged
