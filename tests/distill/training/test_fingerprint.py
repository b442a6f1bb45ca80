"""A run is resumed where it is the same run, whatever fields recipes have had since."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from distill.recipe import Recipe, load_recipe
from distill.training.fingerprint import other
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
