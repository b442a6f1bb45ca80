"""The detector's file as its maker publishes it."""

from __future__ import annotations

from pathlib import Path

from edge.base.files import sha256
from edge.inference.weights import locked


def original(detector_file: Path) -> bytes:
    """The published bytes, from the patched ones: every edit undone."""
    entry = locked()["yunet"]
    data = bytearray(detector_file.read_bytes())
    for offset, old, new in entry["patch"]["edits"]:
        assert data[offset : offset + 3] == bytes.fromhex(new)
        data[offset : offset + 3] = bytes.fromhex(old)
    assert sha256(bytes(data)) == entry["sha256"]
    return bytes(data)
