"""What an ONNX file says of itself, as ONNX Runtime reads it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def notes(path: Path) -> dict[str, str]:
    """Return a file's metadata_props."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)
