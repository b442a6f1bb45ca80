"""A bundle's folder as a whole: what may be replaced, and the replacing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edge.base.errors import UsageError
from export import card
from export.describe import FILES, KNOWN_INPUTS


def refuse_other_folders(out: Path) -> None:
    """Raise UsageError where `out` holds anything that a bundle does not, since it will be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    ours = {"bundle.json", card.NAME, KNOWN_INPUTS, *FILES.values()}
    if others := sorted(path.name for path in out.iterdir() if path.name not in ours):
        raise UsageError(
            f"--out {out} holds '{others[0]}', which is not part of a bundle and would be lost; give "
            f"another folder"
        )


def put_in_place(folder: Path, out: Path) -> None:
    """Move `folder` to `out`. The old bundle is moved away first and comes back if that fails; a kill
    between the two moves leaves it whole as `.OUT.old`."""
    aside = out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        os.replace(out, aside)
    try:
        os.replace(folder, out)
    except OSError:
        if aside.exists():
            os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
