"""Read videos and folders of pictures: every frame, in the file's own time, in the caller's thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2

from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.sources.images import as_bgr, read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class VideoFile:
    """Give every frame of a video file, in the file's own time."""

    live = False
    kind = "file"

    def __init__(self, path: Path, max_seconds: float | None = None) -> None:
        self._path, self._max = path, max_seconds
        if not path.stat().st_size:
            raise SourceError(f"{path} is empty; give a video file")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError(
                f"{path} is not a video that OpenCV can read; give an MP4, WebM or AVI file"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._step = 1.0 / fps if 0 < fps < 1000 else 1.0 / 30.0
        self._expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def __iter__(self) -> Iterator[Frame | Tick]:
        began = time.time()
        moment, first, count = -self._step, None, 0
        while True:
            ok, frame = self._capture.read()
            if not ok:
                break
            pixels = as_bgr(frame)
            if pixels is None:
                raise SourceError(f"{self._path} holds a picture that cannot be read; convert it")
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
            first = stamp if first is None else first
            # Some files give no stamps, or ones that step back: then frames are evenly spaced.
            moment = stamp - first if stamp - first > moment else moment + self._step
            count += 1
            if self._max is not None and moment >= self._max:
                yield Tick(time=self._max, utc=began + self._max, camera="file")
                return
            yield Frame(pixels=pixels, time=moment, utc=began + moment)
        if count == 0:
            raise SourceError(f"{self._path} holds no picture; give a video file")
        # Containers may promise a frame or two more than they hold; a cut-off file lacks many.
        if 0 < self._expected < 10_000_000 and count < 0.97 * self._expected - 2:
            raise SourceError(
                f"{self._path} ends after {count} of {self._expected} pictures: it is cut off; "
                f"what came before was counted, copy the file again for the rest"
            )
        # The last frame stands for its own length too, or the last window would stay open.
        end = moment + self._step
        yield Tick(time=end, utc=began + end, camera="file")

    def close(self) -> None:
        self._capture.release()


class Folder:
    """Give the pictures of a folder in the order of their names, evenly spaced in time."""

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
