"""A run is resumed where it is the same run, whatever fields recipes have had since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import BaseModel

from distill.data.data_set import open_data
from distill.recipe import Recipe, load_recipe
from distill.training.fingerprint import LEARNED_FROM, data_digest, other, require_same
from edge.base.errors import DataError
from support.paths import ROOT

RECIPES = sorted((ROOT / "distill/recipes").glob("*.yaml"))


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.model_dump(), "labels": ["calm", "glad"], "data": "0123"}


def optional_fields(model: BaseModel, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of the recipe's sections that may be left out."""
    paths = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if not field.is_required() and value is not None:
            paths.append((*prefix, name))
        if isinstance(value, BaseModel):
            paths += optional_fields(value, (*prefix, name))
    return paths


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_from_before_any_field_existed_is_the_one_with_its_default(path: Any) -> None:
    recipe = load_recipe(path)
    own = fingerprint(recipe)
    fields = optional_fields(recipe)
    assert ("training", "prior_tau") in fields
    for *sections, name in fields:
        kept = fingerprint(recipe)
        inner: Any = kept["recipe"]
        for section in sections:
            inner = inner[section]
        value = inner.pop(name)
        default = inner_default(recipe, sections, name)
        assert other(kept, own) == ([] if value == default else ["recipe"]), (*sections, name)


def inner_default(recipe: Recipe, sections: list[str], name: str) -> Any:
    """What a recipe without the field has."""
    given: dict[str, Any] = recipe.model_dump()
    inner = given
    for section in sections:
        inner = inner[section]
    del inner[name]
    try:
        whole: Any = Recipe.model_validate(given).model_dump()
    except ValueError:
        return "not a recipe"
    for section in sections:
        whole = whole[section]
    return whole[name]


def test_a_field_that_exists_no_more_or_has_another_value_is_another_recipe() -> None:
    own = fingerprint(load_recipe(RECIPES[0]))
    gone = fingerprint(load_recipe(RECIPES[0]))
    gone["recipe"]["training"]["gone"] = 1
    changed = fingerprint(load_recipe(RECIPES[0]))
    changed["recipe"]["training"]["prior_tau"] = 1.5
    for kept in (gone, changed, {**own, "recipe": None}, {"labels": own["labels"], "data": "0123"}):
        assert other(kept, own) == ["recipe"]
    assert other({**own, "data": "4567"}, own) == ["data"]
    assert other(own, own) == []


def test_the_same_start_is_the_same_whatever_is_kept_of_one_since() -> None:
    own = {"start": {"sha256": "0123", "recipe": {"new_field": 0}, "averaged": []}}
    assert other({"start": {"sha256": "0123", "recipe": {}}}, own) == []
    for start in ({"sha256": "4567", "recipe": {"new_field": 0}, "averaged": []}, None):
        assert other({"start": start}, own) == ["start"]
    assert other(own, {"start": None}) == ["start"]
    assert other({"start": None}, {"start": None}) == []


def test_only_the_machine_may_be_another_and_only_where_that_is_asked_for() -> None:
    here = {"data": "0123", "precision": "fp32", "processes": 1}
    path = Path("run/last.pt")
    assert require_same(path, here, here) == []
    assert require_same(path, here, here, other_machine=True) == []
    there = {**here, "precision": "bf16", "processes": 4}
    with pytest.raises(DataError, match=r"precision bf16 -> fp32, processes 4 -> 1.*--allow-other"):
        require_same(path, there, here)
    changes = require_same(path, there, here, other_machine=True)
    assert changes == ["precision bf16 -> fp32", "processes 4 -> 1"]
    for allowed in (False, True):
        with pytest.raises(DataError, match=r"is another run \(other data, processes\)"):
            require_same(path, {**here, "data": "4567", "processes": 2}, here, allowed)


def school(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for label in ("calm", "glad"):
            (root / split / label).mkdir(parents=True)
            for i in range(2):
                face = rng.integers(0, 255, (16, 16)).astype(np.uint8)
                cv2.imwrite(str(root / split / label / f"{i}.png"), face)
    return root


def digest(data: Path) -> str:
    opened = open_data(data, "folders", data.with_suffix(".crops"), lambda line: None)
    return data_digest(opened, LEARNED_FROM)


def test_the_same_data_elsewhere_have_the_same_digest(tmp_path: Path) -> None:
    data = school(tmp_path / "school")
    shutil.copytree(data, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*/*/*"):
        os.utime(path, (1, 1))
    (tmp_path / "copy/test/calm/0.png").unlink()  # nothing is learned from it
    assert digest(tmp_path / "copy") == digest(data)


@pytest.mark.parametrize("split", LEARNED_FROM)
@pytest.mark.parametrize("change", ["pixels", "label", "name", "fewer", "more"])
def test_any_change_of_what_is_learned_from_changes_the_digest(
    tmp_path: Path, split: str, change: str
) -> None:
    data = school(tmp_path / "school")
    before, image = digest(data), data / split / "calm" / "0.png"
    if change == "pixels":
        cv2.imwrite(str(image), np.zeros((16, 16), np.uint8))
    elif change == "label":
        image.rename(data / split / "glad" / "9.png")
    elif change == "name":
        image.rename(image.with_name("9.png"))
    elif change == "fewer":
        image.unlink()
    else:
        shutil.copy(image, image.with_name("9.png"))
    assert digest(data) != before
