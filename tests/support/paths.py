"""Where this checkout keeps what tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "demo" / "classroom.mp4"
PICTURES = ROOT / "demo" / "pictures"
