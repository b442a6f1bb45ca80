from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from yaml import safe_load

from distill.data.labels import DATA_NAMES
from distill.models import average, provenance, store
from distill.models.build import build_student
from distill.models.checkpoint import load_checkpoint, state
from distill.models.student import reparameterise
from distill.models.warm_start import read_start, warm_start
from distill.recipe import Recipe
from edge.base.errors import DataError, UsageError
from export import card
from export.source import read_source
from support.paths import ROOT
from support.trained import RECIPE, in_use

LABELS = ("calm", "glad", "cross")


def written(folder: Path, seed: int, epoch: int = 0, **student: Any) -> Path:
    """A checkpoint of a student with random weights and statistics."""
    content = safe_load(RECIPE)
    content["student"] |= student
    recipe = Recipe.model_validate(content)
    torch.manual_seed(seed)
    network = build_student(recipe, len(LABELS))
    in_use(network)
    path = folder / f"{seed}.pt"
    store.save(path, state(network, recipe, LABELS, epoch, 0.5 + seed / 100))
    return path


@pytest.mark.slow
def test_the_mean_of_three_is_read_as_each_of_them_is(tmp_path: Path) -> None:
    paths = [written(tmp_path, seed, epoch=7 - seed) for seed in (0, 1, 2)]
    average.run([*map(str, paths), "--out", str(tmp_path / "mean.pt")])
    mean, each = load_checkpoint(tmp_path / "mean.pt"), [load_checkpoint(path) for path in paths]
    for name, value in mean.student.state_dict().items():
        own = [one.student.state_dict()[name] for one in each]
        if value.is_floating_point():
            torch.testing.assert_close(value, (own[0] + own[1] + own[2]) / 3)
    assert mean.metadata["valid_accuracy"] is None, "the mean was not scored"
    assert mean.metadata["epoch"] == 7
    assert mean.labels == LABELS
    faces = torch.rand(2, 1, 32, 32) * 255
    with torch.no_grad():
        assert mean.student(faces).isfinite().all()


@pytest.mark.slow
def test_the_mean_of_equal_ones_answers_as_each(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    (tmp_path / "again.pt").write_bytes(path.read_bytes())
    store.save(tmp_path / "mean.pt", average.average([path, tmp_path / "again.pt"]))
    faces = torch.rand(4, 1, 32, 32) * 255
    with torch.no_grad():
        one, mean = (load_checkpoint(p).student(faces) for p in (path, tmp_path / "mean.pt"))
    torch.testing.assert_close(one, mean)


def learned_from(bundle: Path, file: Path, seed: int) -> None:
    """A checkpoint of a student that began as the bundle's, and went a little further."""
    start = read_start(bundle)
    student = build_student(start.recipe, len(start.labels))
    shape = (64, start.config.channels, start.config.size, start.config.size)
    faces = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    warm_start(student, start, start.labels, faces)
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in student.parameters():
            value += 0.01 * value.abs().mean() * torch.randn_like(value)
    store.save(file, state(student, start.recipe, start.labels, 3, 0.8))


@pytest.mark.slow
def test_a_bundle_and_what_was_learned_from_it_meet_in_the_middle(tmp_path: Path) -> None:
    bundle, learned, mean = ROOT / "edge" / "models", tmp_path / "learned.pt", tmp_path / "mean.pt"
    learned_from(bundle, learned, 0)
    average.run([str(bundle), str(learned), str(learned), "--out", str(mean)])
    found = reparameterise(load_checkpoint(mean).student).state_dict()
    one, other = read_start(bundle).weights, read_start(learned).weights
    for name, value in one.items():
        torch.testing.assert_close(found[name], (value + 2 * other[name]) / 3, rtol=1e-3, atol=1e-4)
    assert load_checkpoint(mean).metadata["valid_accuracy"] is None


@pytest.mark.parametrize(
    ("kept_apart", "known"), [((True, True), True), ((True, False), False), ((False, False), False)]
)
def test_a_mean_knows_its_validation_pictures_only_where_one_of_its_files_does(
    tmp_path: Path, kept_apart: tuple[bool, bool], known: bool
) -> None:
    paths = [written(tmp_path, seed) for seed in (0, 1)]
    for path, apart in zip(paths, kept_apart, strict=True):
        if not apart:  # as --train-on-all leaves it
            store.save(path, store.load(path) | {"valid_accuracy": None})
    mean = tmp_path / "mean.pt"
    store.save(mean, average.average(paths))
    assert read_source(mean).provenance["validated"] is known
    again = tmp_path / "again.pt"  # the mean of a mean
    store.save(again, average.average([mean, paths[0]]))
    assert read_source(again).provenance["validated"] is known


@pytest.mark.slow
def test_a_mean_says_what_each_in_it_learned_from(tmp_path: Path) -> None:
    bundle, learned, mean = ROOT / "edge" / "models", tmp_path / "learned.pt", tmp_path / "mean.pt"
    learned_from(bundle, learned, 0)
    store.save(learned, store.load(learned) | {"layout": "ferplus"})
    store.save(tmp_path / "other.pt", store.load(learned) | {"layout": "rafdb", "teacher": "them"})
    store.save(mean, average.average([learned, tmp_path / "other.pt"]))
    store.save(tmp_path / "last.pt", average.of_deployed([mean, bundle, bundle]))
    known = read_source(tmp_path / "last.pt").provenance
    assert provenance.learned_from(known) == {DATA_NAMES["ferplus"], DATA_NAMES["rafdb"]}
    description = json.loads((bundle / "bundle.json").read_text())
    description["provenance"] |= known
    description["provenance"].pop("exported_again_from", None)
    name = description["provenance"]["recipe"]["name"]
    written_so = r"The weighted mean of 2 networks' weights \((.*?)\)\.\n"
    (text,) = re.findall(written_so, card.write(description))
    assert text.startswith("0.33 the mean of 2 networks' weights (1 learned by ")
    assert f"1 learned by recipe `{name}` (FER+, " in text
    assert f"; 1 learned by recipe `{name}` (RAF-DB, " in text
    twice = "taught by them)); 0.67 the weighted mean of 2 networks' weights (0.9 learned by recipe"
    assert twice in text, "the bundle, which counts twice"
    (_, again) = known["averaged"]
    assert again["times"] == 2


@pytest.mark.slow
def test_a_mean_with_a_bundle_was_validated_where_both_were(tmp_path: Path) -> None:
    bundle, learned, mean = ROOT / "edge" / "models", tmp_path / "learned.pt", tmp_path / "mean.pt"
    learned_from(bundle, learned, 0)
    store.save(mean, average.of_deployed([bundle, learned]))
    assert read_source(mean).provenance["validated"] is True
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    description = json.loads((copy / "bundle.json").read_text())
    description["provenance"]["validated"] = False
    (copy / "bundle.json").write_text(json.dumps(description))
    store.save(mean, average.of_deployed([copy, learned]))
    assert read_source(mean).provenance["validated"] is False


def test_bundles_alone_and_another_network_are_refused(tmp_path: Path) -> None:
    bundle = ROOT / "edge" / "models"
    with pytest.raises(DataError, match="none of these is a checkpoint"):
        average.of_deployed([bundle, bundle])
    with pytest.raises(DataError, match=r"edge/models has another 'labels' than .*0\.pt"):
        average.of_deployed([bundle, written(tmp_path, 0)])


def test_networks_that_differ_are_refused_in_one_line(tmp_path: Path) -> None:
    one, wider = written(tmp_path, 0), written(tmp_path, 1, width=16)
    with pytest.raises(DataError, match=r"1\.pt has another 'student' than .*0\.pt"):
        average.average([one, wider])
    content = store.load(one)
    store.save(tmp_path / "x.pt", content | {"labels": ["calm", "glad", "bored"]})
    with pytest.raises(DataError, match="has another 'labels'"):
        average.average([one, tmp_path / "x.pt"])
    broken = {name: value * float("nan") for name, value in content["network"].items()}
    store.save(tmp_path / "x.pt", content | {"network": broken})
    with pytest.raises(DataError, match="not finite"):
        average.average([one, tmp_path / "x.pt"])


def test_one_file_or_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    one = written(tmp_path, 0)
    with pytest.raises(UsageError, match="give two or more"):
        average.run([str(one), "--out", str(tmp_path / "mean.pt")])
    with pytest.raises(UsageError, match="choose another name"):
        average.run([str(one), str(one), "--out", str(one)])
