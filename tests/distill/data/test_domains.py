from __future__ import annotations

import numpy as np
import pytest

from distill.data.crops import Crops
from distill.data.domains import DOMAINS, ORDINARY, SIDES, Grouping, names_in, statistics
from distill.data.splits import Split
from distill.evaluation.report import by_domain, format_domains, mean_of_domains


def faces(count: int, mean: float = 128, deviation: float = 40, seed: int = 0) -> np.ndarray:
    """Pictures of broad strokes whose brightness and contrast vary a little."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 1, (count, 1, 8, 8)).repeat(8, axis=2).repeat(8, axis=3)
    fine = 0.2 * rng.normal(0, 1, (count, 1, 64, 64))
    means = mean + rng.normal(0, 8, (count, 1, 1, 1))
    return (means + deviation * (coarse + fine)).clip(0, 255).astype(np.uint8)


def crops(pixels: np.ndarray) -> Crops:
    return Crops(pixels, [f"{i}.png" for i in range(len(pixels))], np.ones(len(pixels), dtype=bool))


def test_each_side_of_each_statistic_is_found() -> None:
    usual = faces(300)
    grouping = Grouping.by(crops(usual))
    plain = faces(20, seed=1)
    strange = {
        "dark": plain * 0.5,
        "bright": plain * 0.4 + 153,
        "flat": (plain - 128.0) * 0.3 + 128,
        "blurred": plain.reshape(20, 1, 8, 8, 8, 8).mean(axis=(3, 5)).repeat(8, 2).repeat(8, 3),
        "sharp": plain + np.where(np.indices((64, 64)).sum(axis=0) % 2, 60, -60),
    }
    for name, pixels in strange.items():
        found = grouping.of(pixels.clip(0, 255).astype(np.uint8))
        assert (found == name).mean() > 0.5, (name, found)
    assert (grouping.of(usual) == ORDINARY).mean() > 0.4
    assert set(strange) | {"harsh"} == set(SIDES)
    harsh = np.where(faces(20, seed=2) > 128, 255, 0).astype(np.uint8)
    assert statistics(harsh)[:, 1].min() > statistics(usual)[:, 1].max()


def test_a_crop_falls_alike_whatever_it_comes_with() -> None:
    grouping = Grouping.by(crops(faces(100)))
    some = np.concatenate([faces(30, mean=60, seed=3), faces(30, deviation=60, seed=4)])
    together = grouping.of(some)
    alone = np.concatenate([grouping.of(some[i : i + 1]) for i in range(len(some))])
    assert together.tolist() == alone.tolist()
    assert set(together) <= set(DOMAINS)
    assert grouping.of(some[:0]).shape == (0,)


def test_a_held_out_kind_leaves_the_training_images_and_no_other() -> None:
    training = crops(np.concatenate([faces(200), faces(20, mean=60, deviation=20, seed=5)]))
    assert names_in(training, None) == set()
    dark = names_in(training, "dark")
    kinds = Grouping.by(training).of(training.pixels)
    assert dark == {f"{i}.png" for i in range(220) if kinds[i] == "dark"}
    assert len(dark & {f"{i}.png" for i in range(200, 220)}) > 10


def test_accuracy_by_kind_counts_labelled_images_alone_and_weighs_kinds_alike() -> None:
    votes = np.array([[10, 0], [10, 0], [10, 0], [5, 5], [0, 10]])
    split = Split(crops(faces(5)), votes, ("a", "b"))
    answers = np.array([[1.0, 0], [1, 0], [0, 1], [1, 0], [1, 0]])
    kinds = np.array(["ordinary", "ordinary", "ordinary", "dark", "flat"])
    found = by_domain(split, answers, kinds)
    assert found == {
        "ordinary": {"n": 3, "accuracy": 0.66667},
        "flat": {"n": 1, "accuracy": 0.0},
    }
    assert mean_of_domains(found) == pytest.approx(0.33333, abs=1e-5)
    assert "flat         0.00 %  n=1" in format_domains(found)
