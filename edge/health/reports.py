"""What a node says about itself: status, info and health, each with the session and a running n."""

from __future__ import annotations

import json
import platform
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2

import edge
from edge.aggregate import Window
from edge.base.clock import clock_synced, rfc3339
from edge.base.jetson import power_mode
from edge.base.timing import Stages
from edge.delivery.answers import SILENT_SECONDS
from edge.delivery.commands import Done
from edge.delivery.inbox import RELEASE_SECONDS
from edge.delivery.messages import (
    Health,
    Info,
    Latency,
    Model,
    Outgoing,
    PrivacyPolicy,
    Result,
    Status,
    as_dict,
)
from edge.delivery.outbox import Outbox
from edge.detect import Detector
from edge.health.certificate import Validity
from edge.health.probes import (
    MEMORY_STEP,
    TEMPERATURE_STEP,
    Steps,
    memory_mib,
    temperature_celsius,
)
from edge.health.state import Conditions, Standing
from edge.health.throttle import Throttle
from edge.inference.bundle import Bundle
from edge.inference.loader import Opened
from edge.inference.weights import locked
from edge.settings import Settings

LAST_UPDATE = Path("/var/lib/edge-update/last.json")


def versions() -> dict[str, str]:
    found = {
        "edge": edge.__version__,
        "python": platform.python_version(),
        "opencv": cv2.__version__,
    }
    for package in ("onnxruntime", "paho-mqtt"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # said only of what is there
    return found


def last_update(file: Path = LAST_UPDATE) -> str | None:
    """Read what edge-update left to say, such as "release 7 committed"; None where it left nothing."""
    try:
        last = json.loads(file.read_bytes())
        return f"release {last['serial']} {last['outcome']}: {last['reason']}"[:300]
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Reports:
    """The messages of one session."""

    def __init__(self, settings: Settings, bundle: Bundle, student: Opened) -> None:
        self.session, self._n = str(uuid.uuid4()), 0
        self._settings, self.bundle, self._student = settings, bundle, student
        self._path = settings.node.path
        # On the instants at which messages leave, so that a picture's work moves no second of uptime.
        self._started, self._frames = time.monotonic() - time.time() % RELEASE_SECONDS, 0
        self._temperature = Steps(TEMPERATURE_STEP, temperature_celsius())
        self._memory = Steps(MEMORY_STEP, None)
        self._latency: Latency | None = None
        self.certificate = Validity(settings.broker.tls.certificate)

    def _stamp(self) -> dict[str, Any]:
        """Begin every message but the will; n counts them."""
        self._n += 1
        return {
            "node": self._path,
            "session": self.session,
            "n": self._n,
            "time": rfc3339(time.time() // RELEASE_SECONDS * RELEASE_SECONDS),
            "clock_synced": clock_synced(),
        }

    def warmed_up(self, stages: Stages) -> None:
        """Take memory and the detector's latency as they are before the first picture. stages: times of
        `detect` on a picture of our own: on those of a camera they grow with the faces."""
        self._memory = Steps(MEMORY_STEP, memory_mib())
        if latency := stages.milliseconds("detect"):
            self._latency = Latency(p50_ms=latency[0], p95_ms=latency[1])

    def use(self, bundle: Bundle, student: Opened) -> None:
        """Take note that another bundle reads the expressions from now on."""
        self.bundle, self._student = bundle, student

    def will(self) -> Outgoing:
        """Make what the broker says for a node that vanished; it has neither n nor time."""
        message = Status(node=self._path, session=self.session, state="lost")
        return Outgoing("status", as_dict(message), retain=True)

    def status(self, standing: Standing) -> Outgoing:
        """Say how the node stands; retained."""
        content = {"state": standing.state.value, "reason": standing.reason or None}
        message = Status.model_validate({**self._stamp(), **content})
        return Outgoing("status", as_dict(message), retain=True)

    def info(self, detector: Detector, opened: Opened, camera: str, window: Window) -> Outgoing:
        """Say what this node is. opened: the detector's runtime; camera: kind of source;
        window: how it counts now, which a command may have changed."""
        p, of_pictures = self._settings.privacy, camera == "folder"
        message = Info(
            **self._stamp(),
            versions=versions(),
            model=Model(
                bundle_sha256=self.bundle.sha256,
                labels=list(self.bundle.labels),
                backend=self._student.backend.name,
                precision=self._student.precision,
                engine=self._student.engine,
                fallback=self._student.fallback,
            ),
            detector={
                "name": "yunet",
                "sha256": locked()["yunet"]["sha256"],
                "backend": detector.backend.name,
                "precision": opened.precision,
                "size": "by each picture" if of_pictures and detector.choose else detector.size,
            },
            camera=camera,
            window_seconds=window.seconds,
            counting=window.counting,
            # Of a folder every picture is analysed, whatever is asked of cameras and files.
            analyse_per_second=None if of_pictures else self._settings.camera.rate,
            privacy=PrivacyPolicy(
                min_group=window.min_group, min_cell=p.min_cell, legal_basis=p.legal_basis
            ),
        )
        return Outgoing("info", as_dict(message), retain=True)

    def result(self, done: Done) -> Outgoing:
        """Say what became of a command."""
        message = Result(**self._stamp(), **done.model_dump())
        return Outgoing(f"cmd/{done.name}/result", as_dict(message), retain=False)

    def health(
        self, seconds: float, seen: Conditions, throttle: Throttle, outbox: Outbox
    ) -> Outgoing:
        """Say how the node does. seconds: since the last one."""
        memory = self._memory.tell(memory_mib())
        frames, self._frames = seen.frames - self._frames, seen.frames
        rate = None if seen.camera == "file" else round(frames / seconds)
        ends = self.certificate.ends()
        message = Health(
            **self._stamp(),
            uptime_seconds=int(time.monotonic() - self._started),
            camera=seen.camera,
            unmoved_faces=seen.unmoved,
            frames_per_second=rate,
            stages={"detect": self._latency} if self._latency else {},
            backend=self._student.backend.name,
            fallback=self._student.fallback,
            temperature_celsius=self._temperature.tell(temperature_celsius()),
            throttled=throttle.throttled,
            pace=throttle.level,
            power_mode=power_mode(),
            memory_mib=None if memory is None else int(memory),
            outbox_pending=outbox.pending_count(),
            log=outbox.log_id,
            log_begun=outbox.begun,
            outbox_dropped=outbox.dropped + seen.unwritten,
            outbox_unreadable=outbox.unreadable,
            outbox_first=outbox.seq_range()[0],
            outbox_damaged=int(outbox.set_aside is not None),
            recorders_behind=outbox.behind(SILENT_SECONDS),
            certificate_expires=None if ends is None else rfc3339(ends),
            update=last_update(),
        )
        return Outgoing("health", as_dict(message), retain=False)
