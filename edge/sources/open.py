"""Open the source that a name means: camera, address, CSI sensor, file, folder, loop or test pattern.

A live source (`live.py`) runs whether or not we look; a file or folder (`recorded.py`) is read in
order, in its own time. Of a camera and a file the due pictures are given, of a folder all.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import cv2

from edge.base.addresses import shown
from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.settings import Camera
from edge.sources.decoder import Decoder, converts_interlaced
from edge.sources.faulty import FAULTS, Faulty
from edge.sources.images import rotated
from edge.sources.live import Capture, Limits, Live
from edge.sources.pace import Pace
from edge.sources.recorded import Folder, VideoFile, is_picture
from edge.sources.synthetic import Loop, Pattern

# Not str.isdigit, which takes a superscript for a digit, as some keyboards have it beside the 1.
_INDEX = re.compile(r"[0-9]+")


class Source(Protocol):
    """Gives Frames, and Ticks where time passes without one."""

    live: bool
    kind: str
    seconds: float | None  # of a file, by what it says of itself; None where it will not end

    def __iter__(self) -> Iterator[Frame | Tick]: ...

    def close(self) -> None: ...


def _open_device(name: str, settings: Camera) -> Capture:
    index = int(name) if _INDEX.fullmatch(name) else None
    device = Path(f"/dev/video{index}") if index is not None else Path(name)
    if not device.exists():
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        raise SourceError(f"no camera at {device}; cameras on this machine: {there}")
    capture = cv2.VideoCapture(index if index is not None else name, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise SourceError(
            f"camera {device} does not open; it may be busy (fuser {device}) or closed to this user "
            f"(group video)"
        )
    # Raw YUYV does not fit through USB 2 at this size and rate, so ask for MJPEG first.
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
    capture.set(cv2.CAP_PROP_FPS, settings.fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return Decoder(capture)


def _open_address(address: str, settings: Camera) -> Capture:
    milliseconds = int(1000 * max(settings.timeout_seconds, 5.0))
    capture = cv2.VideoCapture(
        address,
        cv2.CAP_FFMPEG,
        [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            milliseconds,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            milliseconds,
        ],
    )
    if not capture.isOpened():
        raise SourceError(
            f"{shown(address)} gives no video; check address, password and that the camera is on"
        )
    return Decoder(capture, converts_interlaced())


def csi_pipeline(sensor: int, settings: Camera) -> str:
    """Return GStreamer's pipeline from a CSI sensor to BGR frames, on JetPack 6 and 7."""
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={settings.width},"
        f"height={settings.height},framerate={round(settings.fps)}/1 ! nvvidconv ! "
        "video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def _open_csi(sensor: int, settings: Camera) -> Capture:
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise SourceError(
            f"csi:{sensor} needs an OpenCV built with GStreamer, which pip's is not; use JetPack's "
            f"own (a virtual environment with --system-site-packages and no pip OpenCV)"
        )
    capture = cv2.VideoCapture(csi_pipeline(sensor, settings), cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise SourceError(
            f"csi:{sensor} gives no picture; check the ribbon and that nvargus-daemon runs"
        )
    return Decoder(capture)


class Rotated:
    """Give the frames of another source turned clockwise."""

    def __init__(self, source: Source, degrees: int) -> None:
        self.live, self.kind, self.seconds = source.live, source.kind, source.seconds
        self._source, self._degrees = source, degrees

    def __iter__(self) -> Iterator[Frame | Tick]:
        for item in self._source:
            if isinstance(item, Frame):
                item = dataclasses.replace(item, pixels=rotated(item.pixels, self._degrees))
            yield item

    def close(self) -> None:
        self._source.close()


def open_source(
    settings: Camera,
    max_seconds: float | None = None,
    stop: threading.Event | None = None,
) -> Source:
    """Open the source that `settings.source` names, and turn its frames by `settings.rotate`;
    it gives `settings.rate` of them a second. max_seconds is source time.

    Raises SourceError, in one line that says what to do, where it gives no frame.
    """
    source = _open(settings, max_seconds, stop)
    return Rotated(source, settings.rotate) if settings.rotate else source


def _open(settings: Camera, max_seconds: float | None, stop: threading.Event | None) -> Source:
    # OpenCV 5 moved it.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # type: ignore[attr-defined]
    set_log_level(0)
    name = settings.source

    def pace(kind: str) -> Pace:
        return Pace(settings.rate, kind, warn=settings.analyse_per_second is not None)

    def live(kind: str, opener: Callable[[], Capture]) -> Live:
        limits = Limits(
            settings.timeout_seconds,
            settings.hang_seconds,
            settings.freeze_seconds,
            settings.give_up_after,
        )
        return Live(kind, opener, limits, max_seconds, stop, pace(kind))

    if name == "test":
        return live("test", lambda: Pattern(fps=settings.fps))
    if name in FAULTS:
        faulty = Faulty(FAULTS[name], Pattern(fps=settings.fps))
        return live("test", faulty.open)
    if name.startswith("loop:"):
        return live("loop", lambda: Loop(Path(os.path.expanduser(name.removeprefix("loop:")))))
    if match := re.fullmatch(r"csi:(\d)", name):
        return live("csi", lambda: _open_csi(int(match[1]), settings))
    if "://" in name:
        if not name.isprintable():
            raise SourceError(f"{shown(name)}: give an address of printable characters, or in %XX")
        # Not by urlsplit, which raises ValueError for a [ in a password.
        if name.partition("://")[0].lower() not in ("rtsp", "rtsps", "http", "https"):
            raise SourceError(f"{shown(name)}: give an rtsp:// or http:// address")
        return live("address", lambda: _open_address(name, settings))
    if _INDEX.fullmatch(name) or name.startswith("/dev/"):
        return live("camera", lambda: _open_device(name, settings))
    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir() or is_picture(path):
            return Folder(path, settings.pictures_per_second, max_seconds)
        if path.is_file():
            return VideoFile(path, max_seconds, pace("file"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    raise SourceError(
        f"no camera, file or folder called '{shown(name)}'; give 0, a path, rtsp://..., csi:0, "
        "loop:FILE or test"
    )
