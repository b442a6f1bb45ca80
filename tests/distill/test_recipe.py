"""`--set KEY=VALUE` changes a recipe as its file would, and no further."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill.recipe import Recipe, load_recipe, parse_settings
from edge.base.errors import SettingsError
from edge.base.strict_yaml import known_paths
from support.command import call
from support.paths import ROOT
from support.trained import RECIPE

STUDENT = ROOT / "distill/recipes/student.yaml"


@pytest.mark.parametrize(
    ("text", "section", "name", "value"),
    [
        ("training.epochs=3", "training", "epochs", 3),
        ("training.learning_rate=1e-3", "training", "learning_rate", 0.001),
        ("training.learning_rate = 1", "training", "learning_rate", 1.0),
        ("training.precision=fp32", "training", "precision", "fp32"),
        ("student.attend=false", "student", "attend", False),
        ("student.pool=queries", "student", "pool", "queries"),
        ("student.widths=[8, 16, 24, 32]", "student", "widths", [8, 16, 24, 32]),
    ],
)
def test_a_setting_has_the_type_that_its_field_asks_for(
    text: str, section: str, name: str, value: object
) -> None:
    two_way = "student.pool=mean"
    recipe = load_recipe(STUDENT, [two_way, text])
    assert getattr(getattr(recipe, section), name) == value
    before = load_recipe(STUDENT, [two_way]).model_dump()
    before[section][name] = value
    assert recipe.model_dump() == before, "and nothing else"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training.epoch=3", "a recipe has no such setting; did you mean 'training.epochs'"),
        ("student.widht=8", "did you mean 'student.width'"),
        ("epochs=3", "did you mean 'training.epochs'"),
        ("qqqq=3", "there are name, crop, "),
        ("training.epochs", "write KEY=VALUE, such as training.epochs=3"),
        ("training.epochs=three", "'training.epochs' input should be a valid integer"),
        ("training.epochs=2.5", "'training.epochs' input should be a valid integer"),
        ("training.epochs=0", "greater than or equal to 1"),
        ("training.epochs=", "'training.epochs' input should be a valid integer"),
        ("training.learning_rate=nan", "'training.learning_rate' input should be a finite number"),
        ("training=3", "'training' is a section"),
        ("crop.size=48", "landmarks [22.091, 50.811] outside a crop of 48 pixels; scale it with"),
        ("crop.template=[[1, 1], [2, 1], [1, 1], [1, 3], [2, 3]]", "five points, all different"),
        ("training.epochs=[", "is not valid YAML"),
        ("student.heads=3", "must be a multiple of heads 3"),
        ("student.pool=max", "'student.pool' input should be 'mean' or 'queries'"),
        ("student.queries=9", "less than or equal to 8"),
        ("student={pool: queries, attend: false}", "is a form of 'pool: mean'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_recipe(STUDENT, [text])
    assert words in str(error.value)
    assert "--set" in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["distillation.views=4"], "set 'distillation.tokens' and 'distillation.relations' to 0"),
        (
            ["distillation.views=4", "distillation.tokens=0", "training.mixup=0.2"],
            "'training.mixup' mixes no views",
        ),
        (["distillation.views=65"], "less than or equal to 64"),
        (
            ["distillation.relations=1", "student.pool=queries"],
            "'distillation.relations' needs the two-way form",
        ),
    ],
)
def test_what_does_not_go_with_views_or_queries_is_one_line(
    settings: list[str], words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        load_recipe(ROOT / "distill/recipes/distilled.yaml", settings)
    assert words in str(error.value)


@given(st.sampled_from(known_paths(Recipe)), st.integers(0, 99))
def test_every_key_of_a_recipe_is_known(key: str, value: int) -> None:
    changes = parse_settings([f"{key}={value}"])
    for part in key.split("."):
        changes = changes[part]
    assert changes == value


@given(st.text(max_size=40) | st.sampled_from(["2026-13-45", "[" * 5000, "!!python/name:os"]))
@pytest.mark.slow
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for given_text in (text, f"training.epochs={text}"):
        with contextlib.suppress(SettingsError):
            load_recipe(STUDENT, [given_text])


@pytest.mark.parametrize(
    ("name", "settings", "unused"),
    [
        ("frozen", ["augmentation.mask_share=0.3", "augmentation.shift=0.1"], ["mask_share"]),
        ("frozen", [], []),
        ("teacher", [], []),
        ("teacher", ["teacher.cached=[scene, face]"], ["shrink_share", "noise", "erase_share"]),
        ("robust", [], []),
    ],
)
def test_augmentation_that_cached_grids_do_not_show_is_named(
    name: str, settings: list[str], unused: list[str]
) -> None:
    recipe = load_recipe(ROOT / f"distill/recipes/{name}.yaml", settings)
    assert recipe.without_effect() == unused


@pytest.mark.slow
def test_the_checkpoint_keeps_the_changed_recipe(
    detector_file: Path, tiny_ferplus: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    options = ["--data", tiny_ferplus, "--out", tmp_path / "run"]
    settings = ["--set", "training.epochs=1", "--set", "training.batch=64"]
    done = call("distill.train", recipe, *options, *settings, env={})
    assert done.code == 0, done.err
    kept = torch.load(tmp_path / "run/best.pt", weights_only=True)["recipe"]
    assert kept["training"]["epochs"] == 1
    assert kept["training"]["batch"] == 64
    assert yaml.safe_load(RECIPE)["training"]["epochs"] == 4
