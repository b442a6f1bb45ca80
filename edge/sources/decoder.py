"""Read video through OpenCV, and take no picture that it did not write.

OpenCV 4.13 to 5.0 (FFmpeg 8) say that a read went well where swscale refused to convert the picture, as
it does all interlaced video: what comes is memory that nobody wrote, the same for each picture.
Two guards hold, whatever version is installed:

- The buffer that is handed to OpenCV holds known noise; a picture in which that stands is not whole.
- `interlaced.mpg`, whose four colours are known, is decoded once. Where that comes out wrong, FFmpeg's
  picture counts only where it is another than the one before, since OpenCV copies its own unwritten
  buffer over the noise. The first one never counts: nothing shows that it was written.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path
from typing import Any, Protocol

# FFmpeg prints its own lines for every odd byte of a stream; ours say what to do.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import SourceError
from edge.sources.coded_size import coded_size
from edge.sources.images import TURNS, rotated

# Two interlaced pictures of 64x48, MPEG-2; the quarters' colours, (2, 2, 3) BGR, as they were drawn.
INTERLACED = Path(__file__).with_name("interlaced.mpg")
QUARTERS = np.array(
    [[[40, 40, 200], [40, 200, 40]], [[200, 40, 40], [220, 220, 220]]], dtype=np.int16
)
COLOUR_TOLERANCE = 40
# So many pictures in a row may be the same, and are skipped: converted frame rates repeat pictures, and
# so does the demo clip. More would be video that is never seen.
MOST_REPEATS = 12
# Every eighth pixel both ways is compared with the noise: four in a block of 16. A pixel is the same by
# chance in 1 of 2^24, three never.
NOISE_STEP, NOISE_PIXELS = 8, 3
AV1 = ("av01", "AV01")
# What a key picture says of its size stands at the head of its packet, behind an encoder's remarks.
HEAD_BYTES = 65536


class NotDecoded(SourceError):
    """A picture that the decoder says it gave and did not, or a kind of video that it cannot read."""


class VideoCapture(Protocol):
    """What is used of cv2.VideoCapture."""

    def grab(self) -> bool: ...

    def retrieve(self, image: Any) -> tuple[bool, Any]: ...

    def get(self, propId: int) -> float: ...

    def release(self) -> None: ...


@functools.cache
def converts_interlaced() -> bool:
    """Tell whether this OpenCV's FFmpeg gives interlaced video right: it decodes a known file."""
    capture = cv2.VideoCapture(str(INTERLACED))
    ok, picture = capture.read()
    capture.release()
    if not ok or picture.shape != (48, 64, 3):
        return False
    found = picture[12::24, 16::32].astype(np.int16)
    return int(np.abs(found - QUARTERS).max()) <= COLOUR_TOLERANCE


@functools.lru_cache(maxsize=1)
def _noise(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(20).integers(0, 256, shape, dtype=np.uint8)


def whole(picture: NDArray[np.uint8], noise: NDArray[np.uint8]) -> bool:
    """Tell whether a picture was written everywhere. Both (H, W, 3) uint8; noise: what stood there."""
    sample = (slice(None, None, NOISE_STEP),) * 2
    same = np.all(picture[sample] == noise[sample], axis=2)
    return bool(same.sum() < min(NOISE_PIXELS, same.size))


class Decoder:
    """A capture that gives the pictures of another one, each proven to have been written.

    `grab` steps to the next picture, and `retrieve` converts and proves it, which is what costs; a JPEG
    is not even decoded before. stamp: seconds in the video of the picture that was stepped to last, as
    the container says it."""

    def __init__(self, capture: VideoCapture, proven: bool = True, turn: int = 0) -> None:
        """proven: whether this decoder is known to write every picture that it says it gave; turn:
        degrees clockwise by which each is turned once it is proven."""
        self._capture, self._proven, self._turn = capture, proven, turn
        self._shape = (
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            3,
        )
        self._print: int | None = None
        self._repeats = 0
        self._read = self._given = False  # whether any picture was
        self.stamp = 0.0

    @property
    def codec(self) -> str:
        """Return the four characters that name the video's codec, or ""."""
        return _codec(self._capture)

    def get(self, name: int) -> float:
        """Return a property of the capture, one of cv2.CAP_PROP_..."""
        return float(self._capture.get(name))

    def read(self) -> tuple[bool, Any]:
        """Return whether a picture came, and the picture, as cv2.VideoCapture's. Raises NotDecoded."""
        return self.retrieve() if self.grab() else (False, None)

    def grab(self) -> bool:
        """Step to the next picture; returns whether there is one. Raises NotDecoded."""
        if self._capture.grab():
            self.stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
            return True
        self._end()
        return False

    def retrieve(self) -> tuple[bool, Any]:
        """Return the picture that was stepped to, or a later one where that cannot be told from the one
        given before, as `read` does. Raises NotDecoded."""
        while True:
            ok, picture = self._convert()
            if not ok:
                self._end()
                return False, None
            if self._proven or self._changed(picture):
                self._given = True
                return True, rotated(picture, self._turn)
            self._repeats += 1
            if self._repeats > MOST_REPEATS:
                raise _unwritten()
            if not self.grab():
                return False, None

    def release(self) -> None:
        self._capture.release()

    def _end(self) -> None:
        """Raise NotDecoded where a video ends without a picture that was written."""
        if self._read and not self._given:
            raise _unwritten()
        if not self._read and self.codec in AV1:
            raise NotDecoded("it is AV1 video, which this OpenCV cannot decode; use H.264")

    def _convert(self) -> tuple[bool, Any]:
        buffer = noise = None
        if min(self._shape) > 0 and len(self._shape) == 3:
            noise = _noise(self._shape)
            buffer = noise.copy()
        ok, picture = self._capture.retrieve(buffer)
        if not ok or picture is None:
            return False, None
        self._read = True
        # OpenCV takes another buffer where the picture has another size.
        if noise is not None and picture.shape == noise.shape and not whole(picture, noise):
            raise _unwritten()
        self._shape = picture.shape
        return True, picture

    def _changed(self, picture: Any) -> bool:
        """Tell whether a picture is another than the one before; what changed was written."""
        before, self._print = self._print, zlib.crc32(picture.tobytes())
        if before in (None, self._print):
            return False
        self._repeats = 0
        return True


def _codec(capture: VideoCapture) -> str:
    number = int(capture.get(cv2.CAP_PROP_FOURCC))
    name = (number & 0xFFFFFFFF).to_bytes(4, "little").decode("latin-1")
    return name.strip() if name.isprintable() else ""


def _unwritten() -> NotDecoded:
    return NotDecoded(
        f"the decoder gave no picture where the video has one: OpenCV {cv2.__version__} does not "
        f"convert it (interlaced?); install opencv-python-headless 4.11"
    )


def _open_capture(path: Path, *arguments: Any) -> Any:
    """Have OpenCV open a file, whatever its name. arguments: of cv2.VideoCapture, behind the name."""
    # Absolute: FFmpeg takes `10:15:00.mp4` for an address of a protocol called 10.
    name, handle = str(path.absolute()), None
    # OpenCV crashes on a name that is not UTF-8, and opens another file where this machine writes names
    # in another encoding. An open file has a name without letters.
    if name.encode(errors="surrogatepass") != os.fsencode(name):
        handle = os.open(path, os.O_RDONLY)
        name = f"/proc/self/fd/{handle}"
    try:
        return cv2.VideoCapture(name, *arguments)
    finally:
        if handle is not None:
            os.close(handle)


def refuse_change_of_size(path: Path) -> None:
    """Raise SourceError where the size of a video's pictures changes within, after which OpenCV gives
    wrong ones without a word; OSError where unreadable. Reads the whole file, and decodes nothing."""
    packets = _open_capture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    codec, first = _codec(packets), None
    while packets.grab():
        if not packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME):
            continue
        ok, packet = packets.retrieve()
        size = coded_size(codec, packet.reshape(-1)[:HEAD_BYTES].tobytes()) if ok else None
        first = first or size
        if size != first and size is not None:
            packets.release()
            raise SourceError(
                f"{path}: the size of its pictures changes within, after which OpenCV gives wrong "
                f"ones; convert it to one size: ffmpeg -i IN -vf scale=1280:720 OUT.mp4"
            )
    packets.release()


def open_file(path: Path) -> Decoder:
    """Open a video file; raises SourceError naming it where it is not one, OSError where unreadable."""
    capture = _open_capture(path)
    if not capture.isOpened():
        raise SourceError(
            f"{path} is not a video that OpenCV can read; give an MP4, WebM or AVI file"
        )
    # Telephones store every picture as the sensor lies, and how to turn it beside. Not by OpenCV: some
    # versions turn and some do not, and what it turned cannot be proven to have been written.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    turn = int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360
    return Decoder(capture, converts_interlaced(), turn if turn in TURNS else 0)
