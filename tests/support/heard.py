"""Messages as nodes send them, for the tests of the server's side."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from edge.base.clock import rfc3339
from edge.watch.messages import Message, read

NODE = "school/room-1/node-1"
LOG = "11111111-2222-3333-4444-555555555555"
NOON = datetime(2026, 11, 25, 12, 0, tzinfo=timezone.utc)
COUNTS = {"calm": 4, "glad": 2, "unclassified": 0, "other": 0}


def raw(kind: str, node: str = NODE, **content: Any) -> tuple[str, bytes]:
    """Topic and bytes; content replaces what the kind says by itself."""
    stamp = {"session": "s-1", "n": 1, "time": rfc3339(NOON.timestamp()), "clock_synced": True}
    bodies: dict[str, dict[str, Any]] = {
        "status": {**stamp, "state": "online"},
        "health": {
            **stamp, "uptime_seconds": 60, "camera": "live", "frames_per_second": 30,
            "stages": {"detect": {"p50_ms": 8.5, "p95_ms": 9.0}}, "backend": "onnxruntime",
            "fallback": None, "temperature_celsius": 51.5, "throttled": False, "pace": 0,
            "power_mode": "15W", "memory_mib": 200, "outbox_pending": 0, "outbox_dropped": 0,
            "log": LOG, "log_begun": None, "outbox_unreadable": 0, "outbox_first": 1,
            "outbox_damaged": 0, "unmoved_faces": False, "recorders_behind": {"district": 3},
            "certificate_expires": None, "update": None,
        },
        "info": {
            **stamp, "versions": {"edge": "0"}, "camera": "file", "window_seconds": 10.0,
            "counting": "expected", "analyse_per_second": None,
            "model": {"bundle_sha256": "0", "labels": ["calm"], "backend": "onnxruntime",
                      "precision": "int8", "engine": None, "fallback": None},
            "detector": {"name": "yunet"},
            "privacy": {"min_group": 5, "min_cell": 2, "legal_basis": ""},
        },
        "counts": {},
    }  # fmt: skip
    version = {"status": 1, "health": 3}.get(kind, 2)
    whole = {"schema": f"edge.{kind}/{version}", "node": node, **bodies[kind], **content}
    return f"edge/v1/{node}/{kind}", json.dumps(whole).encode()


def counts(
    seq: int, node: str = NODE, start: datetime | None = None, **content: Any
) -> tuple[str, bytes]:
    """A reading of six people over ten seconds, the seq-th after noon, or of as many as it counts."""
    began = start or NOON + timedelta(seconds=10 * (seq - 1))
    counted = [sum((content.get(name) or {}).values()) for name in ("counts", "person_seconds")]
    body = {
        "log": LOG, "seq": seq, "start": rfc3339(began.timestamp()),
        "end": rfc3339(began.timestamp() + 10), "window_seconds": 10.0, "time_base": "utc",
        "clock_synced": True, "historical": False, "min_group": 5, "min_cell": 2,
        "counting": "expected", "faces": {"mean": 6.0, "max": max(7, *counted)}, "counts": COUNTS,
        "person_seconds": {k: 10 * n for k, n in COUNTS.items()},
        "quality": {"seen": 1.0, "frames": 300, "dropped": 0, "low_confidence": 0.1, "camera": "live"},
    }  # fmt: skip
    return raw("counts", node, **{**body, **content})


def small(seq: int, node: str = NODE, **content: Any) -> tuple[str, bytes]:
    """A reading of a group that is too small."""
    quality = {
        "seen": 1.0,
        "frames": None,
        "dropped": None,
        "low_confidence": None,
        "camera": "live",
    }
    hidden = {"faces": "<5", "counts": None, "person_seconds": None, "quality": quality}
    return counts(seq, node, **{**hidden, **content})


def heard(message: tuple[str, bytes]) -> Message:
    found = read(*message)
    assert found is not None
    return found
