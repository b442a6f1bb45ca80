"""What a network's weights come from decides whose terms they are under."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from yaml import safe_load

from distill.models import store
from distill.models.average import average
from distill.models.build import build_student
from distill.models.checkpoint import state
from distill.models.predict import validated
from distill.models.provenance import data_of_network, learned_from
from distill.models.warm_start import read_start
from distill.recipe import Recipe
from export.card import write
from export.describe import weights_licence
from export.source import read_source
from support.paths import ROOT
from support.trained import RECIPE

STRICT = "for non-commercial research alone, as RAF-DB's terms say"


def of(folder: Path, **known: object) -> Path:
    """A checkpoint on FER+ with what it says of itself."""
    recipe = Recipe.model_validate(safe_load(RECIPE))
    content = state(build_student(recipe, 3), recipe, ("calm", "glad", "cross"), 0, 0.5)
    store.save(folder / "c.pt", content | {"layout": "ferplus"} | known)
    return folder / "c.pt"


def test_a_run_on_free_data_alone_is_free(tmp_path: Path) -> None:
    assert data_of_network(of(tmp_path)) == {"FER+"}
    assert data_of_network(ROOT / "edge" / "models") == {"FER+"}
    assert weights_licence({"FER+"}) == "Apache-2.0"


@pytest.mark.parametrize(
    "known",
    [
        {"layout": "rafdb"},
        {"teacher": "them", "teacher_data": ["RAF-DB"]},
        {"start": {"data": "FER+", "teacher_data": ["RAF-DB"]}},
        {"start": {"data": "FER+", "start": {"calibration_data": "RAF-DB"}}},
        {"averaged": [{"data": "FER+"}, {"data": "RAF-DB"}]},
        {"start": {"averaged": [{"data": "FER+"}, {"data": "FER+", "teacher_data": ["RAF-DB"]}]}},
    ],
)
def test_the_strictest_terms_of_all_it_learned_from_hold(
    tmp_path: Path, known: dict[str, object]
) -> None:
    path = of(tmp_path, **known)
    assert "RAF-DB" in data_of_network(path), "as a teacher's or a start's"
    source = read_source(path)
    names = learned_from({"data": source.data, **source.provenance})
    assert weights_licence(names) == STRICT, "as the bundle's"
    bundle = Path(shutil.copytree(ROOT / "edge" / "models", tmp_path / "bundle"))
    description = json.loads((bundle / "bundle.json").read_text())
    for key in ("averaged", "start"):  # the shipped student's own
        description["provenance"].pop(key, None)
    description["provenance"] |= {"data": source.data, **source.provenance}
    (bundle / "bundle.json").write_text(json.dumps(description))
    assert "RAF-DB" in data_of_network(bundle)


def test_a_mean_keeps_the_terms_of_what_its_temperature_was_fitted_on() -> None:
    mean = {"averaged": [{"data": "FER+"}, {"data": "FER+"}], "temperature_data": "RAF-DB"}
    assert learned_from(mean) == {"FER+", "RAF-DB"}
    assert learned_from({"averaged": [{"data": "FER+"}], "data": "RAF-DB"}) == {"FER+"}


def test_a_start_that_learned_from_all_of_train_is_kept_in_mind(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(safe_load(RECIPE))
    network = build_student(recipe, 3)

    def next_run(start: Path, name: str) -> Path:
        """A run with a validation split of its own that goes on from another."""
        known = read_start(start).metadata
        content = state(network, recipe, ("calm", "glad", "cross"), 0, 0.5, start=known)
        store.save(tmp_path / name, content)
        return tmp_path / name

    apart = next_run(of(tmp_path), "a.pt")
    assert "validated" not in read_start(apart).metadata, "as older runs kept it"
    all_of_it = of(tmp_path, valid_accuracy=None)
    once = next_run(all_of_it, "b.pt")
    twice = next_run(once, "c.pt")
    mean = tmp_path / "mean.pt"
    store.save(mean, average([apart, once]))
    for path, kept_apart in ((apart, True), (all_of_it, False), (once, False), (twice, False)):
        assert validated(path) is kept_apart, path.name
        assert read_source(path).provenance["validated"] is kept_apart, path.name
    assert not validated(mean)
    bundle = Path(shutil.copytree(ROOT / "edge" / "models", tmp_path / "bundle"))
    description = json.loads((bundle / "bundle.json").read_text())
    description["provenance"]["validated"] = False
    (bundle / "bundle.json").write_text(json.dumps(description))
    assert read_start(bundle).metadata["validated"] is False
    text = write(description)
    assert "or a network that it comes from, learned from all training pictures" in text


def test_what_nobody_kept_is_not_called_free(tmp_path: Path) -> None:
    path = of(tmp_path, layout=None)
    assert data_of_network(path) == {"not recorded"}
    assert weights_licence(data_of_network(path)) == "as the owners of its training pictures allow"
