"""Read videos and folders of pictures, in the file's own time, in the caller's thread."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.sources.container import cut_off
from edge.sources.decoder import NotDecoded, open_file, refuse_change_of_size
from edge.sources.file_time import MAX_GAP_SECONDS, FileTime
from edge.sources.images import as_bgr, read_picture
from edge.sources.pace import Pace

log = logging.getLogger(__name__)

# The pictures that every OpenCV reads.
PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
# So many of the files that were left out are named; a line that is too long is not read.
NAMED = 5


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture by its name. OpenCV would play it as a video of one frame."""
    return path.is_file() and path.suffix.lower() in PICTURES


def _shorter(length: float | None, most: float | None) -> float | None:
    return min((s for s in (length, most) if s is not None), default=None)


class VideoFile:
    """Give the due frames of a video file, in the file's own time; the others are stepped over."""

    live = False
    kind = "file"

    def __init__(
        self, path: Path, max_seconds: float | None = None, pace: Pace | None = None
    ) -> None:
        """Open it. pace: which frames are due; default: every one. Raises SourceError where it is no
        video or one that OpenCV gives wrong, OSError where it cannot be read."""
        self._path, self._max, self._pace = path, max_seconds, pace or Pace()
        self._count = 0  # frames stepped to
        if not path.stat().st_size:
            raise SourceError(f"{path} is empty; give a video file")
        self._cut_off = cut_off(path)
        try:
            self._capture = open_file(path)
        except SourceError as error:
            if self._cut_off:
                raise SourceError(
                    f"{path} is not a video that OpenCV can read: it is cut off; copy it again"
                ) from error
            raise
        refuse_change_of_size(path)
        fps, count = (self._capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self._time = FileTime(fps)
        # Of a stream that says nothing of itself OpenCV gives numbers without meaning, also below 0.
        promised = count / fps if fps > 0 else 0.0
        self._promised = promised if 0.0 < promised < math.inf else 0.0  # seconds
        self.seconds = _shorter(self._promised or None, max_seconds)

    def __iter__(self) -> Iterator[Frame | Tick]:
        began, clock = time.time(), self._time
        while self._step():
            # The first picture's own stamp is moment 0; some decoders only prove a later one.
            moment = None if clock.moment is None else self._take()
            if self._over(moment):
                break
            if moment is not None and not self._pace.due(moment):
                continue
            stamp, pixels = self._capture.stamp, self._picture()
            if pixels is None:
                break
            if moment is None or self._capture.stamp != stamp:
                moment = self._take()
                if self._over(moment):
                    break
            if clock.moment == 0.0:
                self._pace.due(0.0)
            yield Frame(pixels=pixels, time=moment, utc=began + moment)
        if self._max is not None and self._over(clock.moment):
            yield Tick(time=self._max, utc=began + self._max, camera="file")
            return
        if clock.cuts > 1:
            log.warning("%s: the time stamps jumped %d times", self._path, clock.cuts)
        if self._cut_off:
            raise SourceError(
                f"{self._path} ends after {self._count} pictures and lacks its end: it is cut off; "
                f"what came before was counted, copy the file again for the rest"
            )
        if clock.moment is None:
            codec = self._capture.codec
            kind = f" of its {codec} video that this OpenCV can decode" if codec else ""
            raise SourceError(f"{self._path} holds no picture{kind}; give an H.264 video")
        # The last frame stands for its own length too, or the last window would stay open.
        end = (clock.moment or 0.0) + clock.step
        if not clock.cuts and self._promised > 1.03 * end + 1.0:
            log.info(
                "%s: the last picture is of %.1f s, its container says %.1f s: the sound is longer, or "
                "the end is damaged",
                self._path,
                end,
                self._promised,
            )
        yield Tick(time=end, utc=began + end, camera="file")

    def _over(self, moment: float | None) -> bool:
        return moment is not None and self._max is not None and moment >= self._max

    def _step(self) -> bool:
        """Step to the next frame; returns whether there is one."""
        try:
            found = self._capture.grab()
        except NotDecoded as error:
            raise self._refused(error) from error
        self._count += found
        return found

    def _take(self) -> float:
        """Return the moment of the frame that was stepped to, seconds."""
        cuts = self._time.cuts
        moment = self._time.take(self._capture.stamp)
        if self._time.cuts and not cuts:
            log.warning(
                "%s: the time stamps jump after %.1f s, by more than %.0f s or back; that is taken for "
                "a cut, time goes on evenly there",
                self._path,
                moment,
                MAX_GAP_SECONDS,
            )
        return moment

    def _picture(self) -> NDArray[np.uint8] | None:
        """Return the frame that was stepped to, or None at the end."""
        try:
            ok, picture = self._capture.retrieve()
        except NotDecoded as error:
            raise self._refused(error) from error
        pixels = as_bgr(picture) if ok else None
        if ok and pixels is None:
            raise SourceError(f"{self._path} holds a picture that cannot be read; convert it")
        return pixels

    def _refused(self, error: NotDecoded) -> SourceError:
        cut = "; it is cut off too" if self._cut_off else ""
        return SourceError(f"{self._path}: {error}{cut}")

    def close(self) -> None:
        self._capture.release()


class Folder:
    """Give the pictures of a folder in the order of their names, evenly spaced in time; or one alone.

    Every file is read, by its content. What is no picture that this OpenCV knows is left out, and
    that is said; one that is a picture by its name is an error, once all others were given."""

    live = False
    kind = "folder"

    def __init__(self, path: Path, fps: float, max_seconds: float | None = None) -> None:
        """List it. path: the folder, or one picture. Raises SourceError where it is empty, OSError
        where it cannot be read."""
        self._step, self._max, self._path = 1.0 / fps, max_seconds, path
        self._entries = sorted(path.iterdir()) if path.is_dir() else [path]
        if not self._entries:
            raise SourceError(f"{path} holds no picture; give another folder")
        self.seconds = _shorter(len(self._entries) * self._step, max_seconds)

    def __iter__(self) -> Iterator[Frame | Tick]:
        began, count = time.time(), 0
        left_out: list[str] = []
        damaged: list[SourceError] = []
        for path in self._entries:
            moment = count * self._step
            if self._max is not None and moment >= self._max:
                break
            try:
                pixels = read_picture(path)
            except SourceError as error:
                # macOS puts what it knows of IMG_1.jpg into ._IMG_1.jpg on other systems' sticks.
                if path.suffix.lower() in PICTURES and not path.name.startswith("."):
                    damaged.append(error)
                else:
                    left_out.append(repr(path.name))
                continue
            count += 1
            yield Frame(pixels=pixels, time=moment, utc=began + moment)
        if left_out:
            log.warning(
                "left out %d of %d files of %s, which are no pictures to this OpenCV: %s%s",
                len(left_out),
                len(self._entries),
                self._path,
                ", ".join(left_out[:NAMED]),
                " ..." if len(left_out) > NAMED else "",
            )
        if damaged:
            log.warning("%d of %d files cannot be read", len(damaged), len(self._entries))
        if not count:
            raise (
                damaged[0]
                if damaged
                else SourceError(
                    f"{self._path} holds no picture that OpenCV can read; convert them to JPEG or PNG"
                )
            )
        end = count * self._step if self._max is None else min(self._max, count * self._step)
        yield Tick(time=end, utc=began + end, camera="file")
        if damaged:
            raise SourceError(f"{damaged[0]} (the others were counted)")

    def close(self) -> None:
        pass
