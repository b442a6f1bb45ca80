"""Where pictures come from: camera, file, folder, address, CSI pipeline or test pattern > Frames.

A live source is read by a thread into a one-slot mailbox: the newest picture wins, skipped ones are
counted, and where none comes in time a Tick says so. A file or folder is read in the caller's
thread, every picture, in its own time.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

# FFmpeg prints its own lines for every odd byte of a stream; ours say what to do.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2

from edge.errors import SourceError
from edge.records import Frame, Tick
from edge.settings import Camera

log = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# A 4 GB board cannot hold a picture of 20,000 pixels a side beside anything else.
MAX_SIDE = 8192
TICK_SECONDS = 0.5
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 30.0


class Capture(Protocol):
    """What OpenCV's VideoCapture gives; fakes of it are enough to test with."""

    def read(self) -> tuple[bool, Any]: ...

    def release(self) -> None: ...


class Source(Protocol):
    """An iterable of Frames (and Ticks, when live)."""

    live: bool
    kind: str

    def __iter__(self) -> Iterator[Frame | Tick]: ...

    def close(self) -> None: ...


def as_bgr(picture: Any) -> NDArray[np.uint8] | None:
    """Any picture a capture gives as (H, W, 3) uint8 BGR, or None where it is no picture.

    Grey becomes three equal channels, a fourth channel goes, 16 bits become 8 by their high byte.
    """
    if not isinstance(picture, np.ndarray) or picture.size == 0 or picture.ndim not in (2, 3):
        return None
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.dtype != np.uint8:
        return None
    if picture.ndim == 2 or picture.shape[2] == 1:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    if picture.shape[2] == 4:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR), dtype=np.uint8)
    return picture if picture.shape[2] == 3 else None


def redact(source: str) -> str:
    """An address without its user name and password."""
    return re.sub(r"//.*@", "//***@", source)  # greedy: a password may hold / and @


class Live:
    """A source that runs whether or not we look."""

    live = True

    def __init__(
        self,
        kind: str,
        opener: Callable[[], Capture],
        timeout: float = 2.0,
        max_seconds: float | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """opener: opens the device or raises SourceError; called again after a loss.

        Raises SourceError at once where the first opening fails: a name that was never right is
        the operator's to mend, a camera that went away is ours to wait for.
        """
        self.kind = kind
        self._opener, self._timeout, self._max = opener, timeout, max_seconds
        self._stop = stop or threading.Event()
        self._slot: tuple[NDArray[np.uint8], float, float, int] | None = None
        self._skipped = 0
        self._news = threading.Condition()
        self._capture: Capture | None = opener()
        self._thread = threading.Thread(target=self._grab, name="camera", daemon=True)

    def _grab(self) -> None:
        pause, lost = FIRST_RETRY_SECONDS, False
        while not self._stop.is_set():
            pixels = self._read()
            if pixels is None:
                if not lost:
                    log.warning("camera lost source=%s", self.kind)
                lost = True
                # Also after an opening that worked: some devices open and then give nothing.
                self._stop.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LAST_RETRY_SECONDS)
                continue
            if lost:
                log.info("camera back source=%s", self.kind)
            pause, lost = FIRST_RETRY_SECONDS, False
            with self._news:
                if self._slot is not None:
                    self._skipped += 1
                self._slot = (pixels, time.monotonic(), time.time(), self._skipped)
                self._news.notify()
        if self._capture is not None:
            self._capture.release()

    def _read(self) -> NDArray[np.uint8] | None:
        """One picture, opening the device where needed; None (and the device closed) where none."""
        try:
            if self._capture is None:
                self._capture = self._opener()
            ok, picture = self._capture.read()
        except (SourceError, cv2.error):
            ok, picture = False, None
        pixels = as_bgr(picture) if ok else None
        if pixels is None and self._capture is not None:
            self._capture.release()
            self._capture = None
        return pixels

    def __iter__(self) -> Iterator[Frame | Tick]:
        self._thread.start()
        began = last = time.monotonic()
        while not self._stop.is_set():
            with self._news:
                if self._slot is None:
                    self._news.wait(TICK_SECONDS)
                slot, self._slot = self._slot, None
                if slot is not None:
                    self._skipped = 0
            now = time.monotonic()
            if slot is not None:
                last = now
                yield Frame(pixels=slot[0], time=slot[1], utc=slot[2], dropped=slot[3])
            else:
                away = now - last > self._timeout
                yield Tick(time=now, utc=time.time(), camera="away" if away else "live")
            if self._max is not None and now - began >= self._max:
                return

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            # A read that hangs in a driver cannot be interrupted; the thread is a daemon.
            self._thread.join(timeout=2.0)


class VideoFile:
    """Every picture of a video file, in the file's own time."""

    live = False
    kind = "file"

    def __init__(self, path: Path, max_seconds: float | None = None) -> None:
        self._path, self._max = path, max_seconds
        if not path.stat().st_size:
            raise SourceError(f"{path} is empty; give a video file")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError(
                f"{path} is no video that OpenCV can read; give an MP4, WebM or AVI file"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._step = 1.0 / fps if 0 < fps < 1000 else 1.0 / 30.0
        self._expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def __iter__(self) -> Iterator[Frame | Tick]:
        began = time.time()
        moment, first, count = -self._step, None, 0
        while True:
            ok, picture = self._capture.read()
            if not ok:
                break
            pixels = as_bgr(picture)
            if pixels is None:
                raise SourceError(f"{self._path} holds a picture that cannot be read; convert it")
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
            first = stamp if first is None else first
            # Some files give no stamps, or ones that step back: then pictures are evenly spaced.
            moment = stamp - first if stamp - first > moment else moment + self._step
            count += 1
            if self._max is not None and moment >= self._max:
                yield Tick(time=self._max, utc=began + self._max, camera="file")
                return
            yield Frame(pixels=pixels, time=moment, utc=began + moment)
        if count == 0:
            raise SourceError(f"{self._path} holds no picture; give a video file")
        # Containers may promise a picture or two more than they hold; a cut-off file lacks many.
        if 0 < self._expected < 10_000_000 and count < 0.97 * self._expected - 2:
            raise SourceError(
                f"{self._path} ends after {count} of {self._expected} pictures: it is cut off; "
                f"what came before was counted, copy the file again for the rest"
            )
        # The last picture stands for its own length too, or the last window would stay open.
        end = moment + self._step
        yield Tick(time=end, utc=began + end, camera="file")

    def close(self) -> None:
        self._capture.release()


class Folder:
    """Pictures of a folder in the order of their names, evenly spaced in time."""

    live = False
    kind = "folder"

    def __init__(self, path: Path, fps: float, max_seconds: float | None = None) -> None:
        self._step, self._max = 1.0 / fps, max_seconds
        self._pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not self._pictures:
            raise SourceError(
                f"{path} holds no picture ({', '.join(PICTURES)}); give another folder"
            )

    def __iter__(self) -> Iterator[Frame | Tick]:
        began = time.time()
        for index, path in enumerate(self._pictures):
            moment = index * self._step
            if self._max is not None and moment >= self._max:
                yield Tick(time=self._max, utc=began + self._max, camera="file")
                return
            yield Frame(pixels=read_picture(path), time=moment, utc=began + moment)
        end = len(self._pictures) * self._step
        yield Tick(time=end, utc=began + end, camera="file")

    def close(self) -> None:
        pass


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR of a picture file; raises SourceError naming it."""
    try:
        picture = as_bgr(cv2.imread(str(path), cv2.IMREAD_COLOR))
    except cv2.error as error:
        raise SourceError(
            f"{path} cannot be read as a picture ({error.err or 'too large'}); remove or shrink it"
        ) from error
    if picture is None:
        raise SourceError(f"{path} is no picture that OpenCV can read; remove it")
    if max(picture.shape[:2]) > MAX_SIDE:
        raise SourceError(
            f"{path} is {picture.shape[1]}x{picture.shape[0]} pixels, at most {MAX_SIDE} a side are "
            f"read; shrink it"
        )
    return picture


def _open_device(name: str, settings: Camera) -> Capture:
    index = int(name) if name.isdigit() else None
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
    return capture


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
            f"{redact(address)} gives no video; check address, password and that the camera is on"
        )
    return capture


def csi_pipeline(sensor: int, settings: Camera) -> str:
    """GStreamer's way from a CSI sensor to BGR pictures on JetPack 5 to 7."""
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
    return capture


def open_source(
    settings: Camera,
    max_seconds: float | None = None,
    stop: threading.Event | None = None,
) -> Source:
    """The source that `settings.source` names; max_seconds is source time.

    Raises SourceError, in one line that says what to do, where it gives no picture.
    """
    # OpenCV 5 moved it.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(0)
    name = settings.source

    def live(kind: str, opener: Callable[[], Capture]) -> Live:
        return Live(kind, opener, settings.timeout_seconds, max_seconds, stop)

    if name == "test":
        from edge.pattern import Pattern

        return live("test", lambda: Pattern(fps=settings.fps))
    if match := re.fullmatch(r"csi:(\d)", name):
        return live("csi", lambda: _open_csi(int(match[1]), settings))
    if "://" in name:
        if urlsplit(name).scheme not in ("rtsp", "rtsps", "http", "https"):
            raise SourceError(f"{redact(name)}: give an rtsp:// or http:// address")
        return live("address", lambda: _open_address(name, settings))
    if name.isdigit() or name.startswith("/dev/"):
        return live("camera", lambda: _open_device(name, settings))
    path = Path(name)
    try:
        if path.is_dir():
            return Folder(path, settings.pictures_per_second, max_seconds)
        if path.is_file():
            return VideoFile(path, max_seconds)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    raise SourceError(
        f"no camera, file or folder called '{name}'; give 0, a path, rtsp://..., csi:0 or test"
    )
