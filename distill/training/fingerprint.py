"""Tell whether a run on disk and one that is asked for are the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill.recipe import Recipe
from edge.base.errors import DataError


def require_same(path: Path, known: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compare a kept `Trainer.fingerprint`, from `path`, with this run's. Raises DataError, which
    names what differs."""
    if different := other(known, own):
        raise DataError(
            f"{path} is another run (other {', '.join(different)}); choose another --out"
        )


def other(known: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the keys in which a kept `Trainer.fingerprint` differs from this run's.

    A recipe from before a field existed is the one that has the field's default."""
    kept = {**known, "recipe": _whole(known.get("recipe"))}
    return [key for key in own if kept.get(key) != own[key]]


def _whole(recipe: Any) -> Any:
    """Return a kept recipe with today's fields; one that is no recipe any more, as it is."""
    try:
        return Recipe.model_validate(recipe).model_dump()
    except ValidationError:
        return recipe
