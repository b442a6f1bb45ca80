"""Run commands as where the kit was installed with one extra alone.

python -m support.only_extra EXTRA < jobs       # EXTRA "" is none; a job a line: a JSON list of words

Every package that neither the kit nor that extra brings cannot be imported; which those are comes from
the metadata of what is installed. Prints one line a job: [exit code, last line of stderr].
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from importlib.abc import MetaPathFinder
from typing import Any

import tomllib

from support.paths import ROOT


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought(extra: str) -> set[str]:
    """Return the distributions that the kit needs, with one extra, and what those need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    found: set[tuple[str, tuple[str, ...]]] = set()

    def add(requirements: Iterable[str], asked: tuple[str, ...]) -> None:
        for requirement in requirements:
            text, _, marker = requirement.partition(";")
            if "extra ==" in marker and not any(
                f"'{e}'" in marker.replace('"', "'") for e in asked
            ):
                continue
            match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", text)
            assert match is not None
            name = _normal(match[1])
            wanted = tuple(sorted(e.strip() for e in (match[2] or "").split(",") if e.strip()))
            if name == project["name"]:
                for one in wanted:
                    add(extras[one], ())
            elif (name, wanted) not in found:
                found.add((name, wanted))
                with contextlib.suppress(metadata.PackageNotFoundError):  # of another system
                    add(metadata.requires(name) or (), wanted)

    add(project["dependencies"], ())
    add(extras[extra] if extra else (), ())
    return {name for name, _ in found}


class Hidden(MetaPathFinder):
    """Finds nothing of the distributions that are not there, as if they were not."""

    def __init__(self, there: set[str]) -> None:
        ours = {"edge", "distill", "export", "demo", "support"}
        self.names = {
            name
            for name, owners in metadata.packages_distributions().items()
            if name not in ours and not any(_normal(owner) in there for owner in owners)
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _run(words: list[str]) -> tuple[int, str]:
    from edge.base.commands import start

    err = io.StringIO()
    sys.argv = words
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = start(words[0])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, (err.getvalue().strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.meta_path.insert(0, Hidden(brought(sys.argv[1])))
    jobs = [json.loads(line) for line in sys.stdin]
    for job in jobs:
        print(json.dumps(_run(job)))
    sys.stdout.flush()
    os._exit(0)  # nobody's threads hold it up
