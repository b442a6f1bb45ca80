"""Tell whether a video file lacks its end, by what its container says of its own size.

The number of pictures is no such promise: mkv, ts, webm, flv and avi give duration times rate, which
counts the pictures that were dropped, and those after the last one while the sound goes on.
MPEG-TS and MPEG-PS say nothing of their size: there, a cut cannot be told.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")
# All kinds that stand at the top of a file; anything else behind them is a camera's own trailer.
TOP = (
    *BOXES,
    b"moof",
    b"mfra",
    b"sidx",
    b"ssix",
    b"prft",
    b"emsg",
    b"meta",
    b"uuid",
    b"udta",
    b"pnot",
)
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# Some writers count the header into the size that a RIFF states, or not the last byte's padding.
RIFF_SLACK = 16


def cut_off(path: Path) -> bool:
    """Tell whether the container announces more bytes than the file has; raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            return _riff_end(file) > size + RIFF_SLACK
        if head[:4] == EBML:
            return _matroska_end(file) > size
        if head[:3] == b"FLV":
            return _flv_end(file, size) > size
        if head[4:8] in BOXES:
            return _boxes_end(file, size) > size
    return False


def _riff_end(file: BinaryIO) -> int:
    """Where the last RIFF ends that follows whole ones (files above 1 GB have several); 0: not said."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        # A writer that was never finished leaves 0 or all ones.
        if len(head) < 8 or head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return end
        end += 8 + length + length % 2


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box ends of ISO's base media format (MP4, MOV); 0 where that is not said."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or kind not in TOP:
            return 0  # to the end of the file, or what is no box
        end += length
    return end


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment of Matroska and WebM ends; 0 where its size was not known to the writer."""
    file.seek(4)
    header = _vint(file)
    file.seek(header or 0, 1)
    if header is None or file.read(4) != SEGMENT:
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """Read EBML's number of variable length; None: unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> (more + 1))]) + file.read(more), "big")
    return None if value == (1 << (7 * (more + 1))) - 1 else value


def _flv_end(file: BinaryIO, size: int) -> int:
    """Where the last tag ends, with its length behind it; 0 where what follows the tags is no tag."""
    file.seek(5)
    end = int.from_bytes(file.read(4), "big") + 4  # the header, and the length of no tag
    while end < size:
        file.seek(end)
        head = file.read(4)
        if head[0] & 0x1F not in (8, 9, 18):  # sound, picture, data
            return 0
        if len(head) < 4:
            return end + 4
        end += 11 + int.from_bytes(head[1:4], "big") + 4
    return end
