"""What a network's weights come from: the runs, and the data that they learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.data.labels import DATA_NAMES
from distill.models import store
from distill.models.checkpoint import read, was_validated
from distill.recipe import Recipe
from edge.inference.bundle import load_bundle

# What a checkpoint and a bundle say of the run that made them, besides its recipe and its data;
# the latter where there is something to say.
KNOWN = ("teacher", "start")
WHERE_THERE = ("averaged", "teacher_data")


def kept(path: Path, recipe: Recipe, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a checkpoint whose weights go on in another, by `--start` or in a mean:
    sha256, recipe, data, teacher and its data, the file's own start, and what it is the mean of; also
    that it was not kept from its validation split, where that is so.

    metadata: the content that `checkpoint.read` returns, or a `Checkpoint`'s metadata."""
    found = {"sha256": store.digest_of(path), "recipe": recipe.model_dump()}
    return {**found, **_learned(metadata), **unvalidated(was_validated(dict(metadata)))}


def unvalidated(validated: bool) -> dict[str, Any]:
    """Return what is kept of a start that learned from its validation split; nothing of others."""
    return {} if validated else {"validated": False}


def _learned(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Name the data by a checkpoint's layout, beside what it says of the run."""
    data = DATA_NAMES.get(metadata.get("layout") or "", "not recorded")
    return {"data": data, **told(metadata)}


def told(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint or a bundle's provenance says of the run, by KNOWN and WHERE_THERE."""
    found = {key: metadata.get(key) for key in KNOWN}
    return {**found, **{key: metadata[key] for key in WHERE_THERE if metadata.get(key)}}


def learned_from(run: Mapping[str, Any]) -> set[str]:
    """Return the data that weights learned from, as in DATA_NAMES: a run's, its teachers', its start's,
    and of a mean what each in it learned from; "not recorded" where a run did not keep its own.

    run: provenance as bundle.json has it, or as `kept` returns it."""
    # Before a bundle said what its calibration read, that was what it learned from.
    exported = {str(n) for n in (run.get("calibration_data"), temperature_data(run)) if n}
    if averaged := run.get("averaged"):  # its own data and start are those of one of them
        return exported.union(*map(learned_from, averaged))
    own = exported | ({str(run["data"])} if run.get("data") else set())
    own = (own or {"not recorded"}) | set(run.get("teacher_data") or ())
    return own | (learned_from(run["start"]) if run.get("start") else set())


def temperature_data(run: Mapping[str, Any]) -> str | None:
    """Name the data that the temperature in a bundle's weights was fitted on; None for a run that has
    none. run: as for `learned_from`.

    Before it was kept, a bundle that was exported again named what the one before it had read."""
    before = run.get("exported_again_from") or {}
    name = (
        run.get("temperature_data") or before.get("calibration_data") or run.get("calibration_data")
    )
    return str(name) if name else None


def data_of_network(path: Path) -> set[str]:
    """Return the data that a bundle's or a checkpoint's weights learned from, as `learned_from` does.
    Raises BundleError or DataError in one line."""
    if path.is_dir():
        return learned_from(load_bundle(path).description.provenance)
    return learned_from(_learned(read(path)[0]))
