"""Find each face backbone's file among those on the command line.

`--face` may be given again: a recipe takes the files of its own backbones, so that one command line
serves runs of different ones. What a file holds is told by its ending.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edge.base.errors import DataError, UsageError

ENDINGS = {".onnx": "sface", ".safetensors": "dlib"}  # any other: a checkpoint of IR-50
FILES = {
    "sface": "SFace's ONNX file",
    "ir50": "an ArcFace IR-50 checkpoint",
    "dlib": "dlib's face network as .safetensors",
}


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Add `--dinov2` and `--face`, which name a teacher's backbones."""
    parser.add_argument(
        "--dinov2",
        default="facebook/dinov2-small",
        metavar="DIR|NAME",
        help="a teacher's frozen DINOv2: a folder or the hub's name (default: %(default)s)",
    )
    add_face_option(
        parser,
        "a teacher's face backbone: SFace .onnx, dlib's .safetensors or IR-50 .pth. Given\n"
        "again for a teacher with several",
    )


def add_face_option(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--face`, a list of files. text: its help."""
    parser.add_argument("--face", type=Path, action="append", default=[], metavar="FILE", help=text)


def face_files(names: Sequence[str], files: Sequence[Path]) -> list[Path]:
    """Return the file of each backbone in `names`. An only backbone's only file may have any ending but
    another's.

    Raises UsageError where one is missing or given twice, DataError where it is no file."""
    any_other = names[0] if len(names) == len(files) == 1 else "ir50"
    found = [_of(name, files, any_other) for name in names]
    for name, path in zip(names, found, strict=True):
        if not path.is_file():
            raise DataError(f"{path} is not a file; give {FILES[name]}")
    return found


def _of(name: str, files: Sequence[Path], any_other: str) -> Path:
    own = [path for path in files if ENDINGS.get(path.suffix.lower(), any_other) == name]
    if not own:
        raise UsageError(f"the teacher reads a face backbone: give {FILES[name]} by --face FILE")
    if len(own) > 1:
        raise UsageError(f"{own[0]} and {own[1]} are for the same backbone, {name}; give one")
    return own[0]
