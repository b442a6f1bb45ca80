"""The running node: settings > stages, one loop, and what is said about it on the way."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from typing import Literal

from edge.aggregate import Window
from edge.base import schedule
from edge.base.clock import rfc3339
from edge.base.errors import BrokerError, EdgeError, OutboxError
from edge.classify import Classifier
from edge.delivery.commands import Commands
from edge.delivery.connection import ConnectionState
from edge.delivery.messages import counts_message
from edge.delivery.outbox import Limits, Outbox
from edge.delivery.publisher import Publisher, open_publisher
from edge.detect import Detector
from edge.health.certificate import WARN_SECONDS
from edge.health.prometheus import Metrics
from edge.health.reports import Reports, Vitals
from edge.health.systemd import Systemd
from edge.health.throttle import HALVED, Throttle
from edge.inference.bundle import Bundle, load_bundle
from edge.inference.loader import Opened, open_detector, open_student
from edge.pipeline import Pipeline
from edge.records import Frame, Tick
from edge.settings import Settings
from edge.sources.open import Source, open_source
from edge.track import Tracker

log = logging.getLogger(__name__)

FILE_WAIT_SECONDS = 30.0
CAMERA_WAIT_SECONDS = 5.0


def open_pipeline(
    settings: Settings,
    bundle: Bundle,
    student: Opened,
    detector: Detector,
    file_start: float | None,
) -> Pipeline:
    """All stages, as node.yaml sets them."""
    t, c, w, p = settings.tracker, settings.classifier, settings.window, settings.privacy
    return Pipeline(
        detector=detector,
        tracker=Tracker(
            settings.detector.score, t.confirm_frames, t.hold_seconds, t.forget_seconds
        ),
        classifier=Classifier(student.backend, bundle, c.min_face_px, c.smooth_seconds),
        window=Window(
            bundle.labels,
            w.seconds,
            p.min_group,
            p.min_cell,
            c.low_confidence,
            w.max_gap_seconds,
            file_start,
        ),
        masks=p.masks,
    )


def open_outbox(settings: Settings, live: bool) -> Outbox:
    """The node's outbox; a file gets one of its own, that goes when everything was acknowledged."""
    folder = settings.state_folder
    o = settings.outbox
    limits = Limits(o.max_mib, o.max_days, o.keep_hours)
    if live:
        return Outbox(folder / "outbox.sqlite", limits)
    return Outbox(folder / f"outbox-file-{uuid.uuid4().hex[:12]}.sqlite", limits)


class Node:
    """Opens everything in an order in which the first fault is the one reported, then runs."""

    def __init__(
        self,
        settings: Settings,
        max_seconds: float | None,
        stop: threading.Event,
        force_stop: threading.Event,
    ) -> None:
        """stop: ends the source, then what waits is delivered; force_stop: ends that waiting too."""
        self.settings, self.stop, self.force_stop = settings, stop, force_stop
        self.path = settings.node.path
        self.bundle, self._student = open_student(settings)
        self.reports = Reports(settings, self.bundle, self._student)
        detector, self._detector = open_detector(settings)
        for network, opened in (("student", self._student), ("detector", self._detector)):
            if opened.fallback:
                log.info("%s on %s: %s", network, opened.backend.name, opened.fallback)
        self.source: Source = open_source(settings.camera, max_seconds, stop)
        file_start = None if self.source.live else float(int(time.time()))
        self.pipeline = open_pipeline(settings, self.bundle, self._student, detector, file_start)
        self.outbox = open_outbox(settings, self.source.live)
        # A file run beside the camera's must not take its connection over.
        own = self.path if self.source.live else f"{self.path}/{self.reports.session[:8]}"
        port = settings.runtime.prometheus_port
        try:
            self._metrics = Metrics(port) if port else None
            self.publisher: Publisher = open_publisher(
                settings.broker, f"edge/{own}", self.reports.will(), self.outbox
            )
        except EdgeError:
            self._close_outbox()
            raise
        self._paused = self._asked = self._closed = False
        self._hours = [schedule.parse(entry) for entry in settings.privacy.hours]
        self.commands: Commands | None = None
        if self.source.live:
            file = settings.state_folder / "commands.json"
            self.commands = Commands(
                file,
                self.path,
                settings.privacy.min_group,
                settings.window.seconds,
                self._republish,
                self._reload,
            )
            self._apply_overrides(self.commands)
        self.systemd = Systemd()
        # A TensorRT engine takes one size; ONNX Runtime's detector any.
        any_size = detector.backend.name == "onnxruntime"
        self.throttle = Throttle(HALVED if any_size else HALVED - 1)
        self._state = ("", "")
        self._heard = ""  # by systemd
        self._skipped = 0  # pictures not worked on since the last that was
        self._frames = self._unwritten = 0
        self._disk_full = False
        self._camera = "live" if self.source.live else "file"
        self._health_at: float | None = None
        self._health_frames = 0

    def _set_status(self, state: str, reason: str = "") -> None:
        """Publish a change of state, once; systemd hears it too."""
        if (state, reason) != self._state:
            self._state = (state, reason)
            self.publisher.send(self.reports.status(state, reason or None))
            if self._metrics:
                self._metrics.tell(state=state)
        # What the broker cannot be told, the machine can.
        connected = self.publisher.state.connected
        heard = (
            f"{state} {reason}" if connected else f"{state} {reason}; broker {self.publisher.state}"
        )
        if heard != self._heard:
            self._heard = heard
            self.systemd.status(heard)
        if self._metrics:
            self._metrics.tell(connected=connected)

    def run(self) -> None:
        """Until the source ends or `stop` is set; then everything counted is delivered or named.

        Raises SourceError for a source that broke off, BrokerError where readings of a file stay
        undelivered.
        """
        self.publisher.start()
        self._set_status("starting")
        self._publish_info()
        reason = None
        try:
            for item in self.source:
                self._step(item)
                if self.stop.is_set():
                    break
        except EdgeError as error:
            reason = str(error)
            raise
        finally:
            self.source.close()
            self._finish(reason)

    def _publish_info(self) -> None:
        """Say what this node is and how it counts, anew where that changed."""
        p = self.pipeline
        info = self.reports.info(p.detector, self._detector, self.source.kind, p.window)
        self.publisher.send(info)

    def _step(self, item: Frame | Tick) -> None:
        if self.commands is not None:
            self._poll_commands(self.commands)
        if self.source.live and self._hours:
            self._keep_hours()
        if isinstance(item, Frame):
            self._frames += 1 + item.dropped
            self._camera = "live" if self.source.live else "file"
        elif self.source.live:
            self._camera = item.camera
        if self.source.live:
            self._update_throttle(item.time)
        if self._paused or self._closed:
            why = "paused" if self._paused else "closed"
            item = Tick(time=item.time, utc=item.utc, camera=why)
        elif isinstance(item, Frame) and self.source.live:
            item = self._apply_throttle(item)
        base: Literal["utc", "file"] = "utc" if self.source.live else "file"
        window = self.pipeline.window
        for reading in self.pipeline.step(item):
            message = counts_message(reading, self.path, window.min_group, window.min_cell, base)
            try:
                self.outbox.append(message)
            except OutboxError as error:
                self._unwritten += 1
                self._disk_full = True
                log.error("reading lost: %s", error)
                continue
            self._disk_full = False
            self.publisher.readings()
        self._report(item.time)
        self.systemd.progress()

    def _poll_commands(self, commands: Commands) -> None:
        """Do one of the things that were asked for, and what it changes; a flood of them is done a
        picture at a time."""
        if self.publisher.commands:
            name, content = self.publisher.commands.popleft()
            if done := commands.take(name, content):
                self.publisher.send(self.reports.result(done))
        if self._apply_overrides(commands):
            self._publish_info()

    def _apply_overrides(self, commands: Commands) -> bool:
        """Count as the commands want it; whether that changed what `info` says."""
        paused, window, overrides = commands.paused(), self.pipeline.window, commands.overrides
        if paused != self._paused:
            self._paused = paused
            window.discard()
        seconds = max(overrides.window_seconds or 0.0, self.settings.window.seconds)
        group = max(overrides.min_group or 0, self.settings.privacy.min_group)
        changed = (seconds, group) != (window.seconds, window.min_group)
        window.seconds = seconds
        if group != window.min_group:
            window.min_group = group
            window.discard()
        return changed

    def _keep_hours(self) -> None:
        closed = not schedule.open_now(self._hours, time.time())
        if closed != self._closed:
            self._closed = closed
            self.pipeline.window.discard()

    def _republish(self) -> None:
        """For `report`: the present status again, and health at once."""
        self.publisher.send(self.reports.status(self._state[0], self._state[1] or None))
        self._asked = True

    def _reload(self) -> str:
        """For `reload-bundle`: what lies in the bundle's folder now, proven before it serves. Raises
        EdgeError where it is not fit to; then the running one goes on."""
        if load_bundle(self.settings.runtime.bundle).sha256 == self.bundle.sha256:
            return "the bundle in use is the one in the folder"
        bundle, student = open_student(self.settings)
        self._student.backend.close()
        self.bundle, self._student = bundle, student
        self.reports.use(bundle, student)
        c = self.settings.classifier
        self.pipeline.classifier = Classifier(
            student.backend, bundle, c.min_face_px, c.smooth_seconds
        )
        self.pipeline.window.relabel(bundle.labels)
        self._publish_info()
        return f"bundle {bundle.sha256[:12]} serves, on {student.backend.name} {student.precision}"

    def _apply_throttle(self, frame: Frame) -> Frame | Tick:
        """The picture, with those that were skipped before it; a Tick where the pace skips it too."""
        if not self.throttle.should_process():
            self._skipped += 1 + frame.dropped
            return Tick(time=frame.time, utc=frame.utc, camera="live")
        dropped, self._skipped = frame.dropped + self._skipped, 0
        return dataclasses.replace(frame, dropped=dropped)

    def _update_throttle(self, now: float) -> None:
        """Take on as much work as the board's heat allows."""
        detector, level = self.pipeline.detector, self.throttle.level
        self.throttle.update(now)
        if self.throttle.level != level:
            d, part = self.settings.detector, 2 if self.throttle.level == HALVED else 1
            detector.width, detector.height = (
                max(32, side // part // 32 * 32) for side in (d.width, d.height)
            )
            log.warning(
                "pace %d of %d: throttled=%s", self.throttle.level, HALVED, self.throttle.throttled
            )

    def _report(self, now: float) -> None:
        """Status when it changed, health when it is due (in source time, so that a file repeats)."""
        if not self.publisher.alive():
            raise BrokerError("the publisher stopped; its error stands above")
        if self._disk_full:
            self._set_status("degraded", f"outbox: {self._unwritten} readings could not be written")
        elif self._camera not in ("live", "file"):
            self._set_status("degraded", f"camera: {self._camera}")
        elif self._paused:
            self._set_status("degraded", "paused by command")
        elif self._closed:
            self._set_status("online", "closed: outside of privacy.hours")
        elif self.publisher.state.state is ConnectionState.REFUSED:
            self._set_status("degraded", str(self.publisher.state))
        elif self._frames:
            self._set_status("online", self._expiry())
        if self._health_at is None:
            self._health_at = now
        span = now - self._health_at
        if span >= (1.0 if self._asked else self.settings.runtime.health_seconds):
            self._health_at, self._asked = now, False
            vitals = Vitals(
                seconds=span,
                frames=self._frames - self._health_frames if self.source.live else None,
                camera=self._camera,
                unwritten=self._unwritten,
                throttled=self.throttle.throttled,
                level=self.throttle.level,
            )
            self._health_frames = self._frames
            health = self.reports.health(vitals, self.pipeline.stages, self.outbox)
            self.publisher.send(health)
            if self._metrics:
                self._metrics.tell(health=health.payload)

    def _expiry(self) -> str:
        """A word of warning while there is time to renew the node's certificate, else ""."""
        ends = self.reports.certificate.ends()
        if ends is None or ends - time.time() > WARN_SECONDS:
            return ""
        return f"certificate ends on {rfc3339(ends)[:10]}"

    def _close_outbox(self) -> None:
        """A file's outbox goes when nothing waits in it, or when its lines were for a reader who is
        no longer there; a camera's stays."""
        done = self.settings.broker.url == "-" or not self.outbox.depth()
        if not self.source.live and done:
            self.outbox.remove()
        else:
            self.outbox.close()

    def _finish(self, reason: str | None) -> None:
        """reason: why this is no end that was asked for."""
        self.systemd.stopping()
        live = self.source.live
        wait = CAMERA_WAIT_SECONDS if live else FILE_WAIT_SECONDS
        self.stop.set()  # from here on, a signal means: do not wait
        if not self.publisher.state.connected and self.outbox.depth():
            log.info("waiting up to %.0f s for the broker; Ctrl-C ends that", wait)
        try:
            left = self.publisher.finish(
                self.reports.status("stopped", reason), wait, self.force_stop
            )
        finally:
            self._student.backend.close()
            self.pipeline.detector.backend.close()
            self._close_outbox()
            if self._metrics:
                self._metrics.close()
        if left and not live:
            raise BrokerError(
                f"{left} readings were not acknowledged (broker {self.publisher.state}); they are "
                f"kept in {self.outbox.path}"
            )
        if left:
            log.info("%d readings wait in %s for the next start", left, self.outbox.path)
