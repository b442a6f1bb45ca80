"""Read faces that people have drawn boxes around, in the list format of WIDER FACE.

Yang, Luo, Loy and Tang, "WIDER FACE: A Face Detection Benchmark", CVPR 2016. For each picture a line
with its name, which may hold folders, a line with the number of its faces, and for each face a line
`left top width height`, behind which six attributes may stand: blur, expression, illumination,
invalid, occlusion, pose. A picture without faces has one line of zeros there, or none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import DataError

SHAPE = "left top width height [blur expression illumination invalid occlusion pose]"
INVALID = 7  # place of that attribute in a line
NUMBER = re.compile(r"-?\d+(\.\d+)?")
MOST = 100_000  # faces a picture


@dataclass(frozen=True, slots=True)
class Labelled:
    """One entry. name: of the picture in its folder; line: of the list, from 1; boxes: (F, 4) float64,
    left, top, width, height in pixels of the picture as it is shown; valid: (F,) bool."""

    name: str
    line: int
    boxes: NDArray[np.float64]
    valid: NDArray[np.bool_]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; give a list of boxes") from error
    numbered = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [(number, line) for number, line in numbered if line]


def read_boxes(path: Path) -> list[Labelled]:
    """Read a list in its own order. Raises DataError naming the file and the line that is wrong."""
    lines, at = _lines(path), 0
    entries: list[Labelled] = []
    seen: dict[str, int] = {}
    while at < len(lines):
        line, name = lines[at]
        where = f"{path}, line {line}"
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise DataError(f"{where}: '{name:.80}' is no picture's name within the folder")
        if name in seen:
            raise DataError(
                f"{where}: '{name:.80}' stands in line {seen[name]} already; remove one"
            )
        seen[name] = line
        if at + 1 == len(lines):
            raise DataError(f"{where}: the list ends without the number of faces of '{name:.80}'")
        line, number = lines[at + 1]
        if not (number.isascii() and number.isdecimal()) or len(number) > 6 or int(number) > MOST:
            raise DataError(
                f"{path}, line {line}: expected the number of faces of '{name:.80}', "
                f"not '{number:.80}'"
            )
        at += 2
        count = int(number)
        faces = lines[at : at + count]
        if len(faces) < count:
            raise DataError(
                f"{path}, line {line}: announces {count} faces, {len(faces)} lines follow"
            )
        rows = [_face(path, line, text) for line, text in faces]
        at += count
        if not count and at < len(lines) and _is_zeros(lines[at][1]):
            at += 1
        entries.append(
            Labelled(
                name=parts.as_posix(),
                line=seen[name],
                boxes=np.array([row[:4] for row in rows], dtype=np.float64).reshape(-1, 4),
                valid=np.array([len(row) < 10 or not row[INVALID] for row in rows], dtype=bool),
            )
        )
    if not entries:
        raise DataError(f"{path} is empty; give a list of boxes")
    return entries


def _is_zeros(text: str) -> bool:
    return len(text.split()) in (4, 10) and set(text.split()) == {"0"}


def _face(path: Path, line: int, text: str) -> list[float]:
    words = text.split()
    if len(words) not in (4, 10) or not all(NUMBER.fullmatch(word) for word in words):
        raise DataError(f"{path}, line {line}: expected '{SHAPE}', not '{text:.80}'")
    return [float(word) for word in words]
