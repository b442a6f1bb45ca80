"""What networks say of the plain images, for students that see them changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.models.predict import Predictor, probabilities
from distill.training.target_cache import logit_targets
from edge.base.errors import DataError
from edge.inference.bundle import CropSpec

CROP = CropSpec(size=8, channels=1, template=((2, 3), (6, 3), (4, 4), (3, 6), (5, 6)))
PIXELS = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(8, 2).repeat(8, 3)


def network(labels: tuple[str, ...], slope: float) -> Predictor:
    """Says what it sees by the first pixel."""

    def predict(pixels: np.ndarray) -> np.ndarray:
        first = pixels[:, 0, 0, 0].astype(np.float32)
        columns = [slope * first if label == "glad" else np.zeros_like(first) for label in labels]
        return probabilities(np.stack(columns, axis=1))

    return Predictor(labels, CROP, predict, "fp32")


def test_the_plain_images_answers_serve_every_change_by_row() -> None:
    targets = logit_targets([network(("calm", "glad"), 0.2)], PIXELS)
    rows = np.array([4, 0, 2])
    for affine in (torch.eye(2, 3).repeat(3, 1, 1), torch.full((3, 2, 3), 0.3)):
        answers = targets.read(rows, affine, 8)
        assert answers.embedding.shape == (3, 0)
        assert answers.logits.dtype == torch.float32
        gap = answers.logits[:, 1] - answers.logits[:, 0]
        torch.testing.assert_close(gap, torch.tensor([0.8, 0.0, 0.4]))


def test_several_answer_by_the_mean_of_their_logits_in_the_firsts_order() -> None:
    members = [network(("calm", "glad"), 0.2), network(("glad", "calm"), 0.6)]
    logits = logit_targets(members, PIXELS).logits
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], 0.4 * np.arange(6), atol=1e-5)


def test_other_classes_are_refused() -> None:
    members = [network(("calm", "glad"), 0.2), network(("calm", "sad"), 0.6)]
    with pytest.raises(DataError, match="know different classes"):
        logit_targets(members, PIXELS)
