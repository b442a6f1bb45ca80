"""The arrow: detect -> track -> life -> classify -> aggregate. Joins the stages, and that is all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.aggregate import Window
from edge.base.timing import Stages
from edge.classify import Classifier
from edge.detect import Detector
from edge.liveness import LifeSigns
from edge.records import Frame, Reading, Tick
from edge.track import Tracker
from edge.unmoved import Unmoved


def cover(pixels: NDArray[np.uint8], masks: Sequence[Sequence[float]]) -> None:
    """Blacken zones (left, top, right, bottom, shares of the side) of (H, W, 3), before any stage sees
    them."""
    height, width = pixels.shape[:2]
    for left, top, right, bottom in masks:
        rows = slice(math.floor(top * height), math.ceil(bottom * height))
        pixels[rows, math.floor(left * width) : math.ceil(right * width)] = 0


@dataclass(slots=True)
class Pipeline:
    """Join the stages: one step takes a Frame or a Tick, and returns the readings that closed."""

    detector: Detector
    tracker: Tracker
    classifier: Classifier
    window: Window
    masks: Sequence[Sequence[float]] = ()
    life: LifeSigns = field(default_factory=LifeSigns)
    unmoved: Unmoved = field(default_factory=Unmoved)
    stages: Stages = field(default_factory=Stages)

    def step(self, item: Frame | Tick) -> list[Reading]:
        """Run one Frame through all stages, or let the window's time pass."""
        if isinstance(item, Tick):
            return self.window.tick(item)
        cover(item.pixels, self.masks)
        with self.stages.time("detect"):
            faces = self.detector.find(item.pixels)
        with self.stages.time("track"):
            tracks = self.tracker.update(faces, item.time, item.pixels.shape)
        with self.stages.time("life"):
            tracks = self.life.judge(item.pixels, tracks, item.time)
            self.unmoved.look(tracks, self.window.min_group, item.time)
        with self.stages.time("classify"):
            expressions = self.classifier.read(item.pixels, tracks, item.time)
        with self.stages.time("aggregate"):
            return self.window.add(item, expressions)
