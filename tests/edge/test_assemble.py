"""What is opened in which order, and that a fault leaves nothing open."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.assemble import assemble, log_runtimes
from edge.base.errors import EdgeError
from edge.base.timing import Stages
from edge.inference.loader import Opened
from edge.settings import Settings

STEPS = ("open_student", "open_detector", "open_source", "open_outbox", "Metrics", "open_publisher")


class Part:
    """Notes in `closed` that it was closed."""

    live, kind, seconds, name, width, height = True, "test", None, "fake", 64, 64

    def __init__(self, step: str, closed: list[str]) -> None:
        self._step, self._closed = step, closed

    def close(self) -> None:
        self._closed.append(self._step)


@pytest.mark.parametrize("at", range(len(STEPS)))
def test_the_first_fault_is_reported_and_nothing_stays_open(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def part(step: str) -> Any:
        made = Part(step, closed)
        if step == "open_student":
            return SimpleNamespace(sha256="", labels=()), Opened(made, "none")  # type: ignore[arg-type]
        if step == "open_detector":
            fit = {"size": "640x480", "carry": lambda *_: None}
            return SimpleNamespace(backend=made, **fit), Opened(made, "none")  # type: ignore[arg-type]
        return made

    def opener(index: int, step: str) -> Any:
        def opened(*_: Any) -> Any:
            if index >= at:
                raise EdgeError(step)
            return part(step)

        return opened

    for index, step in enumerate(STEPS):
        monkeypatch.setattr(f"edge.assemble.{step}", opener(index, step))
    monkeypatch.setattr("edge.assemble.open_pipeline", lambda *_: None)
    monkeypatch.setattr("edge.assemble.warm_up", lambda *_: Stages())
    settings = Settings.model_validate({"runtime": {"state": tmp_path, "prometheus_port": 9464}})
    with pytest.raises(EdgeError, match=STEPS[at]):
        assemble(settings, None, threading.Event(), threading.Event())
    assert closed == list(reversed(STEPS[:at]))


@pytest.mark.parametrize("driver", [False, True])
def test_why_tensorrt_does_not_serve_is_said_aloud_where_a_driver_would_have_to(
    driver: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.assemble.nvidia_driver", lambda: driver)
    caplog.set_level("DEBUG")
    log_runtimes(student=Opened(Part("", []), "int8", fallback="no engine"))  # type: ignore[arg-type]
    assert [(r.levelname.lower(), r.message) for r in caplog.records] == [
        ("info", "student on fake int8"),
        ("info" if driver else "debug", "student on fake: no engine"),
    ]
