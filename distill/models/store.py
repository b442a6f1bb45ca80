"""Tensors on disk: written whole or not at all, read without running what the file says."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from edge.base.errors import DataError
from edge.base.files import sha256, write_atomically


def save(path: Path, content: dict[str, Any]) -> None:
    """A kill leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> Any:
    """Tensors, numbers, text and containers of these, on the CPU; raises DataError in one line."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    # What torch's reader raises over bytes that are no file of its own (tried: text, random bytes,
    # an empty file, a cut one) or over one that holds objects.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise DataError(f"{path} holds no weights alone, or is damaged; save it again") from error


def digest_of(path: Path) -> str:
    """sha256 of the file."""
    return sha256(path.read_bytes())
