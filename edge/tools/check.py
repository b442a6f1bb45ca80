"""`edge-run --check`: the self-test by hand, and an aid for aiming the camera. Text only: no
picture is sent or stored. It looks where and when the node may, and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base import schedule
from edge.base.addresses import shown
from edge.base.clock import clock_synced, offset, plausible, rfc3339
from edge.base.errors import EdgeError, SourceError
from edge.base.jetson import nvidia_driver
from edge.base.schedule import Schedule
from edge.delivery.connection import probe
from edge.delivery.messages import PREFIX
from edge.detect import Detector, letterbox_scale, open_detector
from edge.health.certificate import check_owner
from edge.inference.loader import Opened, open_student
from edge.pipeline import cover
from edge.pose import yaw
from edge.records import Face, Frame
from edge.settings import Settings
from edge.sizes import camera_shape
from edge.sources.open import open_source
from edge.sources.synthetic import portrait
from edge.tools.orientation import Orientation
from edge.tools.still import StillFaces

REPORT_SECONDS = 1.0
# Grey levels between which faces keep their features on the usual sensors.
DARK, BRIGHT = 60, 200
# Variance of the Laplacian over a face scaled to 64 pixels; the demo portraits have 300 and more,
# the same blurred with a 5-pixel Gaussian under 40.
BLURRED = 60.0
# Of a face in the picture, to be read; and in the detector's input, to be found (edge/README.md).
SMALL_PX, LOST_PX = 24, 16


@dataclass(frozen=True, slots=True)
class View:
    """What one picture tells the person on the ladder. Sizes in pixels of the picture, light in grey
    levels. detector: its input's size, WIDTHxHEIGHT; scale: its pixels a pixel of the picture."""

    faces: int
    smallest: float
    largest: float
    light: float
    sharpness: float
    detector: str
    scale: float
    aside: int = 0  # faces turned too far to be read


def look(
    pixels: NDArray[np.uint8], faces: Sequence[Face], detector: Detector, max_turn: float = 90.0
) -> View:
    """Measure one picture. pixels: (H, W, 3) uint8 BGR; faces: what `detector` found in it; max_turn:
    degrees of yaw.

    Light and sharpness are the faces', or the picture's if it has none."""
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    height, width = grey.shape
    regions = []
    for face in faces:
        x0, y0 = np.clip(face.box[:2], 0, (width - 1, height - 1)).astype(int)
        x1, y1 = np.clip(face.box[:2] + face.box[2:], (x0 + 1, y0 + 1), (width, height)).astype(int)
        regions.append(grey[y0:y1, x0:x1])
    regions = regions or [grey]
    sharp = [
        cv2.Laplacian(cv2.resize(r, (64, 64), interpolation=cv2.INTER_AREA), cv2.CV_64F).var()
        for r in regions
    ]
    sizes = [face.size for face in faces] or [0.0]
    return View(
        faces=len(faces),
        smallest=min(sizes),
        largest=max(sizes),
        light=float(np.median([r.mean() for r in regions])),
        sharpness=float(np.median(sharp)),
        detector=detector.size,
        scale=letterbox_scale(pixels.shape, detector.width, detector.height),
        aside=sum(abs(yaw(face.landmarks)) > max_turn for face in faces),
    )


def advise(view: View, turned: str = "") -> str:
    """Say in one line what is seen, and what to change. turned: of Orientation."""
    if not view.faces:
        dark = "too dark to say why" if view.light < DARK else ""
        return "; ".join(filter(None, [f"no face (light {view.light:.0f}/255)", dark, turned]))
    hints = [turned] if turned else []
    if view.smallest * view.scale < LOST_PX:
        least = LOST_PX / view.scale
        larger = ", or set detector.width and height larger" if view.scale < 1 else ""
        hints.append(
            f"faces under {least:.0f} px may be missed at detector size {view.detector}: "
            f"go nearer, or raise camera.width and height{larger}"
        )
    elif view.smallest < SMALL_PX:
        hints.append(f"faces under {SMALL_PX} px: go nearer, or raise camera.width and height")
    if 2 * view.aside > view.faces:
        hints.append(f"{view.aside} seen from the side: put the camera where the room looks")
    if view.light < DARK:
        hints.append("too dark: more light, or turn away from the window")
    if view.light > BRIGHT:
        hints.append("too bright: close the blinds")
    if view.sharpness < BLURRED:
        hints.append("blurred: focus or wipe the lens")
    return (
        f"{view.faces} faces, {view.smallest:.0f} to {view.largest:.0f} px, light "
        f"{view.light:.0f}/255, sharpness {view.sharpness:.0f}: {'; '.join(hints) or 'good'}"
    )


def hours_line(hours: Schedule, zone: str | None, utc: float) -> str:
    """Say what time the hours go by, and whether the node may look now. utc: seconds since 1970."""
    now = hours.local(utc)
    by = f"{zone}, by privacy.zone" if zone else f"{now.tzname()}, the system's zone"
    if not hours.hours:
        state = "always open (privacy.hours is empty)"
    else:
        state = "open now" if hours.open_at(utc) else "closed now"
    return f"{now:%a %Y-%m-%d %H:%M} ({by}): {state}"


def _aim(settings: Settings, detector: Detector, seconds: float, stop: threading.Event) -> None:
    hours = schedule.read(settings.privacy.hours, settings.privacy.zone)
    source = open_source(settings.camera, seconds, stop)
    if source.live:
        detector.carry(settings.camera.rate, settings.runtime.threads, camera_shape(settings))
    frames, next_report = 0, 0.0
    orientation, still = Orientation(detector, settings.camera.rotate), StillFaces()
    first: float | None = None
    try:
        for item in source:
            if not isinstance(item, Frame):
                continue
            frames += 1
            first = item.time if first is None else first
            report = item.time - first >= next_report
            if source.live and not hours.open_at(time.time()):
                if report:
                    next_report += REPORT_SECONDS
                    print("     closed by privacy.hours: pictures come, not looked at", flush=True)
                continue
            if not report and not still.due(item.time):
                continue
            cover(item.pixels, settings.privacy.masks)
            faces = [f for f in detector.find(item.pixels) if f.score >= detector.score]
            view = look(item.pixels, faces, detector, settings.classifier.max_turn)
            still.look(item.pixels, faces, item.time)
            if report:
                next_report += REPORT_SECONDS
                size = f"{item.pixels.shape[1]}x{item.pixels.shape[0]}, detector {view.detector}:"
                turned = orientation.look(item.pixels, faces)
                print(f"     {size} {advise(view, turned)}", flush=True)
    finally:
        source.close()
    for line in still.lines(settings.privacy.masks):
        print(f"     {line}", flush=True)
    if not frames:
        raise SourceError(f"no picture within {seconds:.0f} s; check the cable and the source")


def _where(opened: Opened) -> str:
    return f"{opened.backend.name} {opened.precision}"


def _say_fallback(opened: Opened) -> None:
    # Without NVIDIA's driver nobody expects it, and the reasons would read as a fault.
    if opened.fallback and nvidia_driver():
        print(f"     no TensorRT: {opened.fallback}", flush=True)


def check(settings: Settings, seconds: float, stop: threading.Event) -> None:
    """Print a line a part, from bundle to camera. Raises EdgeError when one failed."""
    failed: list[str] = []

    def part(name: str, passed: str) -> None:
        print(f"ok   {name}: {passed}", flush=True)

    def fault(name: str, error: EdgeError) -> None:
        failed.append(name)
        print(f"FAIL {name}: {error}", flush=True)

    try:
        bundle, student = open_student(settings)
        part("student", f"{_where(student)}, {len(bundle.labels)} labels, known answers right")
        _say_fallback(student)
        student.backend.close()
    except EdgeError as error:
        fault("student", error)
    detector = None
    try:
        detector, opened = open_detector(settings)
        detector.score = settings.detector.score
        found = len(detector.find(portrait()))
        if found != 1:
            raise EdgeError(f"found {found} faces in the test portrait instead of 1; reinstall")
        size = detector.size if settings.detector.width else "size auto"
        part("detector", f"{_where(opened)}, {size}")
        _say_fallback(opened)
    except EdgeError as error:
        fault("detector", error)
    if not settings.broker.urls:
        print("skip broker: none is set (broker.url)", flush=True)
    for url in settings.broker.urls:
        try:
            check_owner(settings)
            own = f"{PREFIX}/{settings.node.path}"
            spoken = probe(settings.broker.at(url), (f"{own}/ack", f"{own}/cmd/+"))
            part("broker", f"{url} {spoken}")
        except EdgeError as error:
            fault("broker", error)
    if plausible(time.time()):
        synced = {True: "synchronised", False: "not synchronised", None: "unknown"}
        part("clock", f"{rfc3339(time.time())}, {synced[clock_synced()]}")
    else:
        fault(
            "clock", EdgeError(f"it says {rfc3339(time.time())}; TLS and hours wait for the time")
        )
    hours = schedule.read(settings.privacy.hours, settings.privacy.zone)
    part("hours", hours_line(hours, settings.privacy.zone, time.time()))
    for server in settings.clock.servers:
        try:
            part("time server", f"{server}, this clock is {-offset(server):+.3f} s beside it")
        except EdgeError as error:
            fault("time server", error)
    if detector is not None:
        try:
            print(f"     looking for {seconds:.0f} s; nothing is sent or stored", flush=True)
            _aim(settings, detector, seconds, stop)
            part("camera", shown(settings.camera.source))
        except EdgeError as error:
            fault("camera", error)
    if failed:
        raise EdgeError(f"{len(failed)} of the checks failed: {', '.join(failed)}")
