"""Open a node's parts as node.yaml sets them, and join them to a Node.

The order is that in which faults are worth hearing: certificate, networks, camera, disk, port, broker.
The first one is reported, and whatever was open by then is closed again.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from contextlib import ExitStack

import numpy as np

from edge.aggregate import Window
from edge.base import schedule
from edge.base.jetson import nvidia_driver
from edge.base.timing import Stages
from edge.classify import Classifier
from edge.delivery.commands import Commands
from edge.delivery.narrator import Narrator
from edge.delivery.outbox import Limits, Outbox
from edge.delivery.publisher import open_publisher
from edge.delivery.tally import Tally
from edge.delivery.terminal import Terminal
from edge.detect import Detector, open_detector
from edge.health.certificate import check_owner
from edge.health.monitor import Monitor
from edge.health.prometheus import Metrics
from edge.health.reports import Reports
from edge.health.state import Conditions
from edge.health.systemd import Systemd
from edge.health.throttle import HALVED, Throttle
from edge.inference.bundle import Bundle, load_bundle
from edge.inference.loader import Opened, open_student
from edge.node import Node
from edge.pipeline import Pipeline
from edge.settings import Settings
from edge.sizes import camera_shape
from edge.sources.open import open_source
from edge.sources.synthetic import scene
from edge.track import Tracker

log = logging.getLogger(__name__)

WARM_UP_PICTURES, WARM_UP_PEOPLE = 5, 16


def open_classifier(settings: Settings, bundle: Bundle, student: Opened) -> Classifier:
    """Make the classify stage of a bundle and its student."""
    c = settings.classifier
    return Classifier(
        student.backend, bundle, c.min_face_px, c.smooth_seconds, c.counting, c.max_turn
    )


def open_pipeline(
    settings: Settings,
    bundle: Bundle,
    student: Opened,
    detector: Detector,
    file_start: float | None,
) -> Pipeline:
    """Make all stages. file_start: as of `Window`."""
    t, w, p = settings.tracker, settings.window, settings.privacy
    return Pipeline(
        detector=detector,
        tracker=Tracker(
            settings.detector.score, t.confirm_seconds, t.hold_seconds, t.forget_seconds
        ),
        classifier=open_classifier(settings, bundle, student),
        window=Window(
            bundle.labels,
            w.seconds,
            p.min_group,
            p.min_cell,
            settings.classifier.low_confidence,
            w.max_gap_seconds,
            file_start,
            settings.classifier.counting,
        ),
        masks=p.masks,
    )


def warm_up(pipeline: Pipeline, student: Opened, bundle: Bundle, shape: tuple[int, int]) -> Stages:
    """Run both networks as in a full room, so that the first person changes neither memory nor pace.
    shape: (H, W) of the pictures to come. Returns the times of `detect`."""
    stages, c = Stages(), bundle.crop
    picture = scene(0.0, faces=1, width=shape[1], height=shape[0])
    for _ in range(WARM_UP_PICTURES):
        with stages.time("detect"):
            pipeline.detector.find(picture)
    for people in (1, WARM_UP_PEOPLE):
        student.backend.run(np.zeros((people, c.channels, c.size, c.size), np.float32))
    return stages


def open_outbox(settings: Settings, live: bool) -> Outbox:
    """Open a camera's outbox, or one of its own for a file. Raises OutboxError."""
    o = settings.outbox
    name = "outbox" if live else f"outbox-file-{uuid.uuid4().hex[:12]}"
    # Lines on stdout have no recorder that answers, nor has a file's outbox a second run.
    recorders = tuple(o.recorders) if live and settings.broker.urls else ()
    limits = Limits(o.max_mib, o.max_days, o.keep_hours, recorders)
    return Outbox(settings.state_folder / f"{name}.sqlite", limits)


def close_outbox(settings: Settings, outbox: Outbox, live: bool) -> None:
    """Close it, and delete a file's when nothing waits in it, or when its lines were for a reader who
    is no longer there."""
    if not live and (not settings.broker.urls or not outbox.pending_count()):
        outbox.remove()
    else:
        outbox.close()


def log_runtimes(**networks: Opened) -> None:
    """Say what each network runs on, and why `auto` did not take TensorRT: aloud only where there is
    a driver that would have to do."""
    level = logging.INFO if nvidia_driver() else logging.DEBUG
    for name, opened in networks.items():
        log.info("%s on %s %s", name, opened.backend.name, opened.precision)
        if opened.fallback:
            log.log(level, "%s on %s: %s", name, opened.backend.name, opened.fallback)


def assemble(
    settings: Settings,
    max_seconds: float | None,
    stop: threading.Event,
    force_stop: threading.Event,
    at_terminal: bool = False,
) -> Node:
    """Open everything that a node runs on. stop: ends the source, then what waits is delivered;
    force_stop: ends that waiting too; at_terminal: stdout is a person's.
    Raises EdgeError, with everything closed again."""
    check_owner(settings)
    with ExitStack() as opened:
        bundle, student = open_student(settings)
        opened.callback(student.backend.close)
        reports = Reports(settings, bundle, student)
        detector, detector_runtime = open_detector(settings)
        opened.callback(detector.backend.close)
        log_runtimes(student=student, detector=detector_runtime)
        source = open_source(settings.camera, max_seconds, stop)
        opened.callback(source.close)
        file_start = None if source.live else float(int(time.time()))
        shape = camera_shape(settings)
        if source.live:
            detector.carry(settings.camera.rate, settings.runtime.threads, shape)
            log.info("detector at %s", detector.size)
        pipeline = open_pipeline(settings, bundle, student, detector, file_start)
        reports.warmed_up(warm_up(pipeline, student, bundle, shape))
        outbox = open_outbox(settings, source.live)
        opened.callback(close_outbox, settings, outbox, source.live)
        port = settings.runtime.prometheus_port
        metrics = Metrics(port) if port else None
        if metrics:
            opened.callback(metrics.close)
        # A file run while the camera's goes on must not take its connection over.
        path = settings.node.path
        own = path if source.live else f"{path}/{reports.session[:8]}"
        publisher = open_publisher(
            settings.broker, f"edge/{own}", reports.will(), outbox, not at_terminal
        )
        tally = Tally(settings.window.seconds, settings.privacy.min_group)
        terminal = Terminal(sys.stdout, tally, file_start, source.seconds) if at_terminal else None
        seconds = settings.runtime.health_seconds
        monitor = Monitor(reports, publisher, outbox, Systemd(), metrics, seconds)
        # A TensorRT engine takes one size; ONNX Runtime's detector any.
        any_size = detector.backend.name == "onnxruntime"
        node = Node(
            settings=settings,
            reports=reports,
            source=source,
            pipeline=pipeline,
            student=student,
            detector=detector_runtime,
            outbox=outbox,
            publisher=publisher,
            monitor=monitor,
            narrator=Narrator(tally, source.kind, terminal),
            throttle=Throttle(HALVED if any_size else HALVED - 1),
            schedule=schedule.read(settings.privacy.hours, settings.privacy.zone),
            conditions=Conditions(camera="live" if source.live else "file"),
            stop=stop,
            force_stop=force_stop,
            opened=opened,
        )
        if source.live:
            node.commands = Commands(
                settings.state_folder / "commands.json",
                path,
                settings.privacy.min_group,
                settings.window.seconds,
                node.introduce,
                lambda: reload_bundle(node),
            )
            node.apply_overrides(node.commands)
            if kept := node.commands.kept():
                log.info("by a command to an earlier run: %s (edge-watch changes that)", kept)
        node.opened = opened.pop_all()
    return node


def reload_bundle(node: Node) -> str:
    """Serve what lies in the bundle's folder now, for the command `reload-bundle`; returns what became
    of it. Raises EdgeError where that bundle is not fit to; the one in use then goes on serving."""
    settings = node.settings
    if load_bundle(settings.runtime.bundle).sha256 == node.reports.bundle.sha256:
        return "the bundle in use is the one in the folder"
    bundle, student = open_student(settings)
    node.opened.callback(student.backend.close)
    node.student.backend.close()
    node.student = student
    node.reports.use(bundle, student)
    node.pipeline.classifier = open_classifier(settings, bundle, student)
    node.pipeline.window.relabel(bundle.labels)
    node.publish_info()
    return f"bundle {bundle.sha256[:12]} serves, on {student.backend.name} {student.precision}"
