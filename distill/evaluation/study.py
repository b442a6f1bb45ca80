"""`distill-study`: a table of runs over seeds from one YAML file, as the README shows it.

Every run is a `distill-train` of its own in OUT/NAME/SEED, resumed where it stopped; what is finished
is not run again, and is not shown for other data than it was trained on. A run marked `report` is
scored on the test split too: that is for the comparison that is published, not for choosing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, model_validator

from distill.data.crops import require_detector
from distill.data.data_set import DataSet, add_data_options, data_of
from distill.evaluation import evaluate
from distill.evaluation.report import mean_of_domains
from distill.models.build import require_backbones
from distill.models.face_files import add_face_option
from distill.recipe import (
    MOST_SEED,
    Recipe,
    add_set_option,
    changed,
    load_recipe,
    overlay,
    parse_settings,
)
from distill.training.fingerprint import LEARNED_FROM, data_digest, read_run
from edge.base import cli
from edge.base.errors import DataError, EdgeError, SettingsError
from edge.base.files import refuse_unwritable, write_atomically
from edge.base.strict_yaml import Strict, read_yaml, validate

NAME = r"^[a-z0-9][a-z0-9-]*$"


class Run(Strict):
    name: str = Field(pattern=NAME)
    recipe: str = Field(description="a recipe's file, from the study's folder")
    changes: dict[str, Any] = Field(
        default={}, description="laid over the recipe, section by section"
    )
    teacher: str | None = Field(default=None, description="an earlier run; its first seed teaches")
    seeds: list[Annotated[int, Field(ge=0, le=MOST_SEED)]] = Field(default=[0], min_length=1)
    report: bool = False


class Study(Strict):
    runs: list[Run] = Field(min_length=1)

    @model_validator(mode="after")
    def _order(self) -> Study:
        seen: set[str] = set()
        for run in self.runs:
            if run.name in seen:
                raise ValueError(f"two runs are called '{run.name}'")
            if twice := [seed for seed in run.seeds if run.seeds.count(seed) > 1]:
                raise ValueError(f"run '{run.name}' names seed {twice[0]} twice; name each once")
            if run.teacher and run.teacher not in seen:
                raise ValueError(
                    f"run '{run.name}': its teacher '{run.teacher}' is not an earlier run"
                )
            seen.add(run.name)
        return self


def load_study(path: Path, settings: Sequence[str] = ()) -> tuple[Study, dict[str, Recipe]]:
    """Read the study and each run's recipe, with what `--set` changes in all of them. Raises
    SettingsError in one line, before anything runs."""
    study = validate(Study, read_yaml(path), str(path))
    recipes, last = {}, parse_settings(settings)
    for run in study.runs:
        changes = overlay(run.changes, {**last, "name": run.name})
        recipe = load_recipe(path.parent / run.recipe)
        recipe = changed(recipe, changes, f"{path} run '{run.name}'")
        if (recipe.distillation is None) != (run.teacher is None):
            wants = "a teacher: name an earlier run" if recipe.distillation else "no teacher"
            raise SettingsError(f"{path} run '{run.name}': its recipe wants {wants}")
        recipes[run.name] = recipe
    return study, recipes


def recipe_text(recipe: Recipe) -> str:
    """Write a recipe as `load_recipe` reads it. An empty section has its defaults, so one that a run
    goes without is left out."""
    return yaml.safe_dump(recipe.model_dump(exclude_unset=True, exclude_none=True), sort_keys=False)


def trained_by(folder: Path) -> Recipe | None:
    """Read the recipe that a run's folder was made by; None where there is none that is read today."""
    try:
        return load_recipe(folder / "recipe.yaml")
    except SettingsError:
        return None


def finished(folder: Path, recipe: Recipe) -> bool:
    """Tell whether all epochs of this very recipe are done; a changed one is trained elsewhere."""
    log, own = folder / "log.csv", trained_by(folder)
    if not (log.is_file() and own and own.model_dump() == recipe.model_dump()):
        return False
    return len(log.read_text().splitlines()) == recipe.training.epochs + 1


def refuse_other_data(folders: Iterable[Path], data: DataSet) -> list[Path]:
    """Compare the data of every run that was begun with those that are given.

    Returns the folders of runs from before that was kept, which distill-train --resume is to compare.
    Raises DataError where a run is of other data."""
    own, unknown = data_digest(data, LEARNED_FROM), []
    for folder in folders:
        path = folder / "last.pt"
        if not path.is_file():
            continue
        known = read_run(path, lazily=True)["identity"].get("pictures")
        if known is None:
            unknown.append(folder)
        elif known != own:
            raise DataError(
                f"{path} is a run on other data than {data}; give its own, or choose another --out"
            )
    return unknown


def train_one(
    folder: Path, recipe: Recipe, seed: int, teacher: Path | None, options: Sequence[str]
) -> None:
    """Run distill-train in a process of its own, so that a seed's result does not depend on what ran
    before. Raises EdgeError where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    own = trained_by(folder)
    if (folder / "last.pt").is_file() and not (own and own.model_dump() == recipe.model_dump()):
        raise DataError(
            f"{folder} was trained by another recipe; move it away or choose another --out"
        )
    write_atomically(folder / "recipe.yaml", recipe_text(recipe).encode())
    command = [sys.executable, "-m", "distill.train", str(folder / "recipe.yaml"), *options]
    command += ["--out", str(folder), "--seed", str(seed), "--resume"]
    command += ["--teacher", str(teacher)] if teacher else []
    if code := subprocess.run(command, check=False).returncode:
        raise EdgeError(f"seed {seed} of run '{recipe.name}' ended with {code}; see above")


def score_one(folder: Path, split: str, data: DataSet, options: Sequence[str]) -> dict[str, Any]:
    """Return distill-eval's first entry for the chosen checkpoint, with accuracy by `domains`; kept in
    its folder by the split's digest."""
    kept = folder / f"{split}-scores-{data_digest(data, [split])[:12]}.json"
    checkpoint = folder / "best.pt"
    if not checkpoint.is_file():
        raise DataError(
            f"{checkpoint} is gone; put it back, or remove {folder} to have it trained once more"
        )
    entries = _kept_entries(kept, checkpoint)
    if not any("domains" in entry for entry in entries):
        command = ["--checkpoint", str(checkpoint), "--split", split, "--json", str(kept)]
        evaluate.run([*command, *options])
        entries = _kept_entries(kept, checkpoint)
    domains = next(entry for entry in entries if "domains" in entry)
    return {**entries[0], **domains}


def _kept_entries(kept: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """Read the scores that were kept; none where the checkpoint is younger than they are."""
    if not kept.is_file() or kept.stat().st_mtime < checkpoint.stat().st_mtime:
        return []
    return list(json.loads(kept.read_text()))


def mean_and_deviation(values: Sequence[float]) -> str:
    """Format the mean in per cent, with the seeds' standard deviation where there are several."""
    mean = 100 * float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {100 * float(np.std(values, ddof=1)):.2f}"


def row(run: Run, recipe: Recipe, out: Path, data: DataSet, options: Sequence[str]) -> str:
    """Format one line of the Markdown table."""
    held_out = recipe.training.hold_out
    cells = [run.name, str(recipe.training.epochs), str(len(run.seeds))]
    for split in ("valid", "test"):
        if split == "test" and not run.report:
            cells += ["", ""]
            continue
        folders = [out / run.name / str(seed) for seed in run.seeds]
        entries = [score_one(folder, split, data, options) for folder in folders]
        cells.append(mean_and_deviation([entry["accuracy"] for entry in entries]))
        cells.append(mean_and_deviation([entry["mean_class_accuracy"] for entry in entries]))
        if split == "valid":  # for choosing, which the test split is not
            kinds = [entry["domains"] for entry in entries]
            cells.append(mean_and_deviation([mean_of_domains(kind) for kind in kinds]))
            unseen = [kind[held_out]["accuracy"] for kind in kinds if held_out in kind]
            cells.append(f"{held_out} {mean_and_deviation(unseen)}" if unseen else "")
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| run | epochs | seeds | valid, % | mean class | mean of kinds | held out "
    "| test, % | mean class |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "distill-study",
        "Train and score every run of a study; resume where an earlier call stopped.",
        "distill-study distill/studies/ferplus.yaml --data ferplus --out runs \\\n"
        "    --dinov2 facebook/dinov2-small --face face_recognition_sface_2021dec.onnx",
    )
    p.add_argument("study", type=Path, metavar="STUDY.yaml", help="the runs, and what they share")
    add_set_option(p)
    add_data_options(p, "ferplus")
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder a run; what is there is kept",
    )
    p.add_argument("--only", nargs="+", metavar="RUN", help="these runs alone")
    for name in ("--compile", "--allow-other-machine"):
        p.add_argument(name, action="store_true", help="as for distill-train")
    p.add_argument("--dinov2", metavar="DIR|NAME", help="as for distill-train")
    add_face_option(p, "as for distill-train; each run takes those of its own backbones")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    args = p.parse_args(argv)
    study, recipes = load_study(args.study, args.set)
    options = ["--data", str(args.data), "--layout", args.layout]
    options += ["--skip-bad"] if args.skip_bad else []
    for name in ("cache", "dinov2", "weights"):
        if getattr(args, name):
            options += [f"--{name}", str(getattr(args, name))]
    for path in args.face:
        options += ["--face", str(path)]
    if unknown := set(args.only or ()) - set(recipes):
        raise DataError(f"{args.study} has no run '{sorted(unknown)[0]}'")
    chosen = [run for run in study.runs if not args.only or run.name in args.only]
    for one in chosen:
        if recipes[one.teacher or one.name].teacher:
            # What the last run lacks is told of now.
            require_backbones(recipes[one.teacher or one.name], args.dinov2, args.face)
    refuse_unwritable("--out", args.out, folder=True)
    require_detector(args.weights)
    folders = [args.out / one.name / str(seed) for one in study.runs for seed in one.seeds]
    data = data_of(args, cli.say, LEARNED_FROM)
    uncompared = refuse_other_data(folders, data)
    flags = ["--compile"] * args.compile + ["--allow-other-machine"] * args.allow_other_machine
    first_seed = {run.name: run.seeds[0] for run in study.runs}
    for one in chosen:
        teacher = None
        if one.teacher:
            teacher = args.out / one.teacher / str(first_seed[one.teacher]) / "best.pt"
        for seed in one.seeds:
            folder = args.out / one.name / str(seed)
            if finished(folder, recipes[one.name]) and folder not in uncompared:
                continue
            print(f"== {one.name}, seed {seed}", flush=True)
            if teacher and not finished(teacher.parent, recipes[str(one.teacher)]):
                raise DataError(f"run '{one.name}': its teacher {teacher.parent} is not finished")
            train_one(folder, recipes[one.name], seed, teacher, [*options, *flags])
    rows = [row(one, recipes[one.name], args.out, data, options) for one in chosen]
    print("\n".join([HEAD, *rows]))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-study", run, argv)


if __name__ == "__main__":
    sys.exit(main())
