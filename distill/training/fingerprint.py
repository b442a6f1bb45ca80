"""Tell whether a run on disk and one that is asked for are the same run, on the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill.data.data_set import DataSet
from distill.models import store
from distill.models.checkpoint import read
from distill.recipe import Recipe
from edge.base.errors import DataError

# What a run may have otherwise after a move, and what it costs: another path of rounding.
MACHINE = ("precision", "processes")
# Kept only since 0.1.0: a run from before has none to compare.
LATER = ("pictures",)
STATE = ("identity", "epoch", "best", "task", "average", "optimiser")
LEARNED_FROM = ("train", "valid")  # the splits that make a run what it is


def data_digest(data: DataSet, splits: Iterable[str]) -> str:
    """Hash the splits' images, by name and size, and their votes; equal on every machine.

    No image is opened. Raises DataError where their labels are bad."""
    digest = hashlib.sha256()
    for split in splits:
        if split not in data.images:
            continue
        for (name, path), row in zip(data.images[split], data.votes(split)[0], strict=True):
            digest.update(f"{split}/{name}\0{path.stat().st_size}\0{row.tolist()}\n".encode())
    return digest.hexdigest()


def read_run(path: Path, lazily: bool = False) -> dict[str, Any]:
    """Read what a run keeps to be resumed, `Trainer.state`. lazily: as in `store.load`.

    Raises DataError where the file is none."""
    state = store.load(path, lazily)
    if not isinstance(state, dict) or not set(STATE) <= set(state):
        raise DataError(
            f"{path} is not what distill-train leaves to be resumed; put the run's own file back, or "
            f"choose another --out"
        )
    return state


def best_so_far(path: Path, first: int, best: float) -> float:
    """Return the accuracy that the epochs from `first` on have to beat to take best.pt's place.

    path: best.pt; best: the accuracy that last.pt names, -1 without a validation split. A run that was
    killed between the two files left the best of an epoch that is trained again. Raises DataError
    where the file is not this run's."""
    advice = "put the run's own back, or train again into another --out"
    try:
        content = read(path)[0]
    except DataError as error:
        raise DataError(f"{path} is lost or damaged; {advice}") from error
    own = -1.0 if content["valid_accuracy"] is None else float(content["valid_accuracy"])
    if content["epoch"] >= first:
        return max(own, best)
    if own != best:
        raise DataError(f"{path} is not the best of this run's epochs; {advice}")
    return best


def require_same(
    path: Path, known: Mapping[str, Any], own: Mapping[str, Any], other_machine: bool = False
) -> list[str]:
    """Compare a kept `Trainer.fingerprint`, from `path`, with this run's.

    other_machine: let precision and number of processes differ. Returns what changed of these, as
    "precision bf16 -> fp32". Raises DataError, which names what differs."""
    different = other(known, own)
    moved = [key for key in different if key in MACHINE]
    changes = [f"{key} {known.get(key)} -> {own[key]}" for key in moved]
    if different and different == moved:
        if other_machine:
            return changes
        raise DataError(
            f"{path} was trained on another machine ({', '.join(changes)}); resume it all the same by "
            f"--allow-other-machine, or choose another --out"
        )
    if different:
        raise DataError(
            f"{path} is another run (other {', '.join(different)}); choose another --out"
        )
    return []


def other(known: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the keys in which a kept `Trainer.fingerprint` differs from this run's.

    A recipe from before a field existed is the one that has the field's default; a start is the same
    file, whatever this version keeps of it besides."""
    unknown = {key for key in LATER if key not in known}
    kept = {**known, "recipe": _whole(known.get("recipe")), "start": _file(known.get("start"))}
    asked = {**own, **({"start": _file(own["start"])} if "start" in own else {})}
    return [key for key in asked if key not in unknown and kept.get(key) != asked[key]]


def _file(start: Any) -> Any:
    return start["sha256"] if isinstance(start, Mapping) and "sha256" in start else start


def _whole(recipe: Any) -> Any:
    """Return a kept recipe with today's fields; one that is no recipe any more, as it is."""
    try:
        return Recipe.model_validate(recipe).model_dump()
    except ValidationError:
        return recipe
