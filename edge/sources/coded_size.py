"""Tell from a video's packets, undecoded, whether the size of its pictures changes within.

OpenCV 4.11 prepares its conversion for the size of the first picture and keeps it. Behind a change it
gives the smaller picture twice side by side above a rest of the last one, or the last one again and
again, and says that this was read well: 22 faces where 9 are. Recordings joined from two cameras
change, and those that a browser makes of a call. No property of OpenCV tells: only what the codec
itself writes at its key pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Size = tuple[int, ...]

_H264_PARAMETERS = re.compile(
    rb"\x00\x00\x01[\x07\x27\x47\x67](.{4,}?)(?:\x00\x00[\x00\x01]|$)", re.S
)
_H265_PARAMETERS = re.compile(rb"\x00\x00\x01\x42\x01(.{16,}?)(?:\x00\x00[\x00\x01]|$)", re.S)
# Profiles of H.264 whose parameters tell the sampling too (ITU-T H.264, 7.3.2.1.1).
_WITH_SAMPLING = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_MOST_FRAMES = 256  # in a cycle of H.264's third way to count pictures
# What begins a JPEG's frame and holds its size: all SOF but the tables that share their numbers.
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class _Bits:
    """Read numbers of some bits from bytes; raises IndexError at their end."""

    def __init__(self, data: bytes) -> None:
        self._bits = _bits_of(data)

    def take(self, count: int) -> int:
        return sum(self._next() << place for place in reversed(range(count)))

    def golomb(self) -> int:
        """Read an exponential Golomb number, ue(v)."""
        zeros = 0
        while not self._next():
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """Read se(v)."""
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -number // 2

    def _next(self) -> int:
        bit = next(self._bits, None)
        if bit is None:
            raise IndexError("the parameters end too soon")
        return bit


def _bits_of(data: bytes) -> Iterator[int]:
    return ((byte >> place) & 1 for byte in data for place in range(7, -1, -1))


def _parameters(packet: bytes, where: re.Pattern[bytes]) -> _Bits | None:
    found = where.search(packet)
    # Two zeros are followed by a 3 that belongs to no number, so that no start code is imitated.
    return None if found is None else _Bits(found[1].replace(b"\x00\x00\x03", b"\x00\x00"))


def coded_size(codec: str, packet: bytes) -> Size | None:
    """Return what a key picture's packet says of its size, to compare with another of the same codec;
    None where it says nothing, or the codec is not known here.

    codec: four characters, as OpenCV names it."""
    reader = {
        "h264": _h264,
        "hevc": _h265,
        "mpg1": _mpeg2,
        "mpg2": _mpeg2,
        "MJPG": _jpeg,
        "VP80": _vp8,
        "VP90": _vp9,
    }.get(codec)
    try:
        return reader(packet) if reader else None
    except IndexError:
        return None


def _h264(packet: bytes) -> Size | None:
    bits = _parameters(packet, _H264_PARAMETERS)
    if bits is None:
        return None
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.golomb()  # number of these parameters
    if profile in _WITH_SAMPLING:
        sampling = bits.golomb()
        if sampling == 3:
            bits.take(1)
        bits.golomb(), bits.golomb(), bits.take(1)  # depths of luma and chroma, lossless
        if bits.take(1):
            for number in range(12 if sampling == 3 else 8):
                if bits.take(1):
                    _skip_scaling(bits, 16 if number < 6 else 64)
    bits.golomb()  # length of a frame number
    counted = bits.golomb()
    if counted == 0:
        bits.golomb()
    elif counted == 1:
        bits.take(1), bits.signed(), bits.signed()
        for _ in range(min(bits.golomb(), _MOST_FRAMES)):
            bits.signed()
    bits.golomb(), bits.take(1)  # references, gaps
    width, height = bits.golomb() + 1, bits.golomb() + 1
    fields = 2 - bits.take(1)
    return 16 * width, 16 * height * fields


def _skip_scaling(bits: _Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _h265(packet: bytes) -> Size | None:
    bits = _parameters(packet, _H265_PARAMETERS)
    if bits is None:
        return None
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)  # nesting; profile and level
    told = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for profile, level in told:
        bits.take(88 * profile + 8 * level)
    bits.golomb()  # number of these parameters
    if bits.golomb() == 3:
        bits.take(1)
    return bits.golomb(), bits.golomb()


def _mpeg2(packet: bytes) -> Size | None:
    at = packet.find(b"\x00\x00\x01\xb3")
    if at < 0 or len(packet) < at + 7:
        return None
    both = int.from_bytes(packet[at + 4 : at + 7], "big")
    return both >> 12, both & 0xFFF


def _jpeg(packet: bytes) -> Size | None:
    at = 2
    while packet[at] == 0xFF:
        if packet[at + 1] in _SOF:
            both = bytes(packet[at + place] for place in range(5, 9))
            return int.from_bytes(both[2:], "big"), int.from_bytes(both[:2], "big")
        fill = packet[at + 1] == 0xFF
        at += 1 if fill else 2 + int.from_bytes(packet[at + 2 : at + 4], "big")
    return None


def _vp8(packet: bytes) -> Size | None:
    if packet[3:6] != b"\x9d\x01\x2a" or len(packet) < 10:
        return None
    width, height = packet[6:8], packet[8:10]
    return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF


def _vp9(packet: bytes) -> Size | None:
    bits = _Bits(packet[:16])
    bits.take(2)
    profile = bits.take(1) + 2 * bits.take(1)
    if profile == 3:
        bits.take(1)
    # A picture that is shown again, or one that is no key picture, has no size of its own here.
    if bits.take(1) or bits.take(1):
        return None
    bits.take(2)
    if bits.take(24) != 0x498342:
        return None
    if profile >= 2:
        bits.take(1)
    if bits.take(3) != 7:
        bits.take(3 if profile in (1, 3) else 1)
    elif profile in (1, 3):
        bits.take(1)
    return bits.take(16) + 1, bits.take(16) + 1
