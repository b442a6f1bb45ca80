"""The arrow: detect > track > classify > aggregate. Joins the stages and does nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.aggregate import Window
from edge.classify import Classifier
from edge.detect import Detector
from edge.health import Stages
from edge.records import Frame, Reading, Tick
from edge.track import Tracker


@dataclass(slots=True)
class Pipeline:
    """One step takes a Frame or a Tick and gives the readings whose windows it closed."""

    detector: Detector
    tracker: Tracker
    classifier: Classifier
    window: Window
    stages: Stages = field(default_factory=Stages)

    def step(self, item: Frame | Tick) -> list[Reading]:
        if isinstance(item, Tick):
            return self.window.tick(item)
        with self.stages.time("detect"):
            faces = self.detector.find(item.pixels)
        with self.stages.time("track"):
            tracks = self.tracker.update(faces, item.time, item.pixels.shape)
        with self.stages.time("classify"):
            expressions = self.classifier.read(item.pixels, tracks, item.time)
        with self.stages.time("aggregate"):
            return self.window.add(item, expressions)
