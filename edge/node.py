"""The running node: one loop, and what is said about it on the way. `assemble` opens its parts."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from edge.base.errors import BrokerError, EdgeError, OutboxError
from edge.base.schedule import Schedule
from edge.delivery.commands import Commands
from edge.delivery.messages import counts_message
from edge.delivery.narrator import Narrator
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import Publisher
from edge.health.monitor import Monitor
from edge.health.reports import Reports
from edge.health.state import Cause, Conditions, Standing, State
from edge.health.throttle import HALVED, Throttle
from edge.inference.loader import Opened
from edge.pipeline import Pipeline
from edge.records import Frame, Tick
from edge.settings import Settings
from edge.sources.open import Source

log = logging.getLogger(__name__)

FILE_WAIT_SECONDS = 30.0
CAMERA_WAIT_SECONDS = 5.0


@dataclass(eq=False)
class Node:
    """Take every Frame and Tick of a source through the pipeline, and report on the node.

    student, detector: the networks' runtimes; commands: None for a file; stop: ends the source, then
    what waits is delivered; force_stop: ends that waiting too; opened: closes every part.
    """

    settings: Settings
    reports: Reports
    source: Source
    pipeline: Pipeline
    student: Opened
    detector: Opened
    outbox: Outbox
    publisher: Publisher
    monitor: Monitor
    narrator: Narrator
    throttle: Throttle
    schedule: Schedule
    conditions: Conditions
    stop: threading.Event
    force_stop: threading.Event
    opened: ExitStack
    commands: Commands | None = None

    def __post_init__(self) -> None:
        self._skipped = 0  # pictures not worked on since the last that was

    def run(self) -> None:
        """Work until the source ends or `stop` is set; then deliver everything counted, or name it.

        Raises SourceError for a source that broke off, BrokerError where readings of a file stay
        undelivered.
        """
        self.publisher.start()
        self.monitor.set_status(Standing(State.STARTING))
        self.publish_info()
        self.narrator.begin()
        reason = "a defect of the program; its own log says which"
        try:
            for item in self.source:
                self.step(item)
                if self.stop.is_set():
                    break
            reason = ""
        except EdgeError as error:
            # The message names files and addresses, which are nobody's who hears the broker.
            reason = error.public or f"{self.source.kind}: failed; the node's own log says why"
            raise
        finally:
            self.source.close()
            self._finish(reason)

    def step(self, item: Frame | Tick) -> None:
        """Count one Frame, or let its time pass; store the readings that closed, and report."""
        live, now = self.source.live, self.conditions
        if self.commands is not None:
            self.poll_commands(self.commands)
        if live:
            self._keep_hours()
        if isinstance(item, Frame):
            now.frames += 1 + item.dropped
            now.camera = "live" if live else "file"
        elif live:
            now.camera = item.camera
        if live:
            self._update_throttle(item.time)
        if now.paused or now.closed:
            why = "paused" if now.paused else "closed"
            item = Tick(time=item.time, utc=item.utc, camera=why)
        elif isinstance(item, Frame) and live:
            item = self._apply_throttle(item)
        self._count(item)
        self.narrator.progress(item.time)
        self._report(item.time)
        self.monitor.systemd.progress()

    def _count(self, item: Frame | Tick) -> None:
        base: Literal["utc", "file"] = "utc" if self.source.live else "file"
        path, window = self.settings.node.path, self.pipeline.window
        size = self.pipeline.detector.size
        readings = self.pipeline.step(item)
        # A folder's pictures may each have a shape of their own, and info says so once.
        if self.pipeline.detector.size != size and self.source.kind != "folder":
            log.info("detector at %s, by the pictures' shape", self.pipeline.detector.size)
            self.publish_info()
        for reading in readings:
            message = counts_message(
                reading, path, window.min_group, window.min_cell, base, window.counting
            )
            self.narrator.reading(message)
            try:
                self.outbox.append(message)
            except OutboxError as error:
                self.conditions.unwritten += 1
                self.conditions.disk_full = True
                log.error("reading lost: %s", error)
                continue
            self.conditions.disk_full = False
            self.publisher.readings()
        unmoved = self.pipeline.unmoved.told
        if unmoved and not self.conditions.unmoved:
            log.warning(
                "faces in view do not move, and are not counted: edge-run --check --max-seconds 60 "
                "says where (a photograph: mask it)"
            )
        self.conditions.unmoved = unmoved

    def poll_commands(self, commands: Commands) -> None:
        """Do one of the things that were asked for, and what it changes; a flood of them is done a
        picture at a time."""
        if self.publisher.commands:
            name, content, retained = self.publisher.commands.popleft()
            if done := commands.take(name, content, retained):
                self.publisher.send(self.reports.result(done))
        if self.apply_overrides(commands):
            self.publish_info()

    def apply_overrides(self, commands: Commands) -> bool:
        """Count as the commands want it; returns whether that changed what `info` says."""
        paused, window, overrides = commands.paused(), self.pipeline.window, commands.overrides
        if paused != self.conditions.paused:
            self.conditions.paused = paused
            window.discard()
        seconds = max(overrides.window_seconds or 0.0, self.settings.window.seconds)
        group = max(overrides.min_group or 0, self.settings.privacy.min_group)
        changed = (seconds, group) != (window.seconds, window.min_group)
        tally = self.narrator.tally
        tally.window_seconds, tally.min_group = seconds, group
        tally.window_held = seconds > self.settings.window.seconds
        tally.group_held = group > self.settings.privacy.min_group
        window.seconds = seconds
        if group != window.min_group:
            window.min_group = group
            window.discard()
        return changed

    def _keep_hours(self) -> None:
        closed = not self.schedule.open_at(time.time())
        if closed != self.conditions.closed:
            self.conditions.closed = closed
            self.pipeline.window.discard()

    def _apply_throttle(self, frame: Frame) -> Frame | Tick:
        """The picture, with those that were skipped before it; a Tick where it is skipped too."""
        if not self.throttle.should_process():
            self._skipped += 1 + frame.dropped
            return Tick(time=frame.time, utc=frame.utc, camera="live")
        dropped, self._skipped = frame.dropped + self._skipped, 0
        return dataclasses.replace(frame, dropped=dropped)

    def _update_throttle(self, now: float) -> None:
        """Take on as much work as the board's heat allows."""
        detector, throttle, level = self.pipeline.detector, self.throttle, self.throttle.level
        throttle.update(now)
        if throttle.level != level:
            detector.halve(throttle.level == HALVED)
            log.warning("pace %d of %d: throttled=%s", throttle.level, HALVED, throttle.throttled)

    def publish_info(self) -> None:
        """Say what this node is and how it counts, again where that changed."""
        p = self.pipeline
        info = self.reports.info(p.detector, self.detector, self.source.kind, p.window)
        self.publisher.send(info)

    def introduce(self) -> None:
        """Say everything at once, for the command `report`: whoever listens may have missed it."""
        self.monitor.republish()
        self.publish_info()

    def _report(self, now: float) -> None:
        """now: in source time, so that a file repeats."""
        if not self.publisher.alive():
            text = "the publisher stopped; its error stands above"
            raise BrokerError(text, public=text)
        self.monitor.report(now, self.conditions, self.throttle)

    def _finish(self, reason: str) -> None:
        """reason: of an end that nobody asked for, else ""."""
        self.monitor.systemd.stopping()
        live = self.source.live
        wait = CAMERA_WAIT_SECONDS if live else FILE_WAIT_SECONDS
        self.narrator.finish(failed=bool(reason), stopped=self.stop.is_set())
        self.stop.set()  # from here on, a signal means: do not wait
        if not self.publisher.state.connected and self.outbox.pending_count():
            log.info("waiting up to %.0f s for the broker; Ctrl-C ends that", wait)
        last = Standing(State.STOPPED, Cause.OTHER if reason else None, reason)
        with self.opened:
            left = self.publisher.finish(self.reports.status(last), wait, self.force_stop)
        if left and not live:
            raise BrokerError(
                f"{left} readings were not acknowledged (broker {self.publisher.state}); they are "
                f"kept in {self.outbox.path}"
            )
        if left:
            log.info("%d readings wait in %s for the next start", left, self.outbox.path)
