"""Write tensors to disk whole or not at all, and read them without running code from the file."""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge.base.errors import DataError
from edge.base.files import sha256, write_atomically

# Parts of parameters' names as 0.1.0 wrote them, and what they are called in the code.
RENAMED = {
    "above": "trainable_tails.0",
    "below": "stages",
    "face_asks": "face_to_scene_attention",
    "lower": "stems.0",
    "scene_asks": "scene_to_face_attention",
}
# As they were called when a teacher had one face backbone, after 0.1.0.
SINGLE = {"trainable_tail": "trainable_tails.0", "stem": "stems.0"}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the file atomically: a killed process leaves the old one or the new one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, lazily: bool = False) -> Any:
    """Read tensors, numbers, text and containers of these, tensors on the CPU.

    lazily: leave the tensors on the disk until they are used. Raises DataError in one line."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily or None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a short file: the reader seeks before its first byte
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        fault: Exception = error
    # What torch's reader raises over bytes that are no file of its own (tried: text, random bytes,
    # an empty file, a cut one) or over one that holds objects.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        fault = error
    raise DataError(f"{path} holds no weights alone, or is damaged; save it again") from fault


def digest_of(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    return sha256(path.read_bytes())


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of a file, however old, the parameters' names in the code."""
    return _renamed(weights, RENAMED | SINGLE)


def stored_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights the names that 0.1.0 used, by which digests and cached files are still found."""
    return _renamed(weights, {now: stored for stored, now in RENAMED.items()})


def _renamed(weights: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        dotted = f".{name}."
        for old, new in parts.items():
            dotted = dotted.replace(f".{old}.", f".{new}.")
        renamed[dotted.strip(".")] = value
    return renamed
