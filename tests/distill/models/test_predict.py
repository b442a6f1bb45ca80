"""Networks that answer alone and together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill.models.predict import Predictor, average_logits, ensemble, open_predictor
from distill.training.target_cache import TargetCache, ensemble_targets
from edge.base.errors import DataError
from edge.inference.bundle import SHIPPED, CropSpec

CROP = CropSpec(32, 1, ((10, 11), (22, 11), (16, 18), (11, 25), (21, 25)))
PIXELS = np.zeros((2, 1, 32, 32), np.uint8)


def says(labels: tuple[str, ...], *rows: tuple[float, ...]) -> Predictor:
    return Predictor(labels, CROP, lambda pixels: np.array(rows), "fp32")


SURE = says(("calm", "glad"), (0.9, 0.1), (0.2, 0.8))
OTHER_ORDER = says(("glad", "calm"), (0.5, 0.5), (0.1, 0.9))


def test_an_ensemble_is_the_mean_of_logits_in_the_firsts_order() -> None:
    p = ensemble([SURE, OTHER_ORDER]).predict(PIXELS)
    # By hand: sqrt(0.9 * 0.5) to sqrt(0.1 * 0.5) is 3 to 1; sqrt(0.2 * 0.9) to sqrt(0.8 * 0.1) is 1.5.
    assert p == pytest.approx(np.array([[0.75, 0.25], [0.6, 0.4]]))
    assert average_logits([p]) == pytest.approx(p), "one network's is its own"
    assert ensemble([SURE]) is SURE


def test_other_classes_or_crops_are_refused() -> None:
    with pytest.raises(DataError, match="know different classes: calm, glad, and calm, sad"):
        ensemble([SURE, says(("calm", "sad"), (0.5, 0.5), (0.5, 0.5))])
    wider = dataclasses.replace(SURE, crop=dataclasses.replace(CROP, size=64))
    with pytest.raises(DataError, match="trained on different crops"):
        ensemble([SURE, wider])


def test_targets_take_the_mean_and_keep_the_rest() -> None:
    logits = np.log([[0.9, 0.1], [0.2, 0.8]]).astype(np.float32) + 5
    embedding = np.ones((2, 3), np.float16)
    own = TargetCache({"logits": logits, "embedding": embedding})
    both = ensemble_targets(own, ("calm", "glad"), CROP, [OTHER_ORDER], PIXELS)
    assert np.exp(both.arrays["logits"]) == pytest.approx(np.array([[0.75, 0.25], [0.6, 0.4]]))
    assert both.arrays["embedding"] is embedding
    assert own.arrays["logits"] is logits, "the cached ones are left alone"


def test_a_bundle_answers_as_the_node_does() -> None:
    model = open_predictor(SHIPPED, "", None)
    p = model.predict(np.full((1, 1, 64, 64), 128, np.uint8))
    assert p.shape == (1, len(model.labels))
    assert p.sum() == pytest.approx(1)
