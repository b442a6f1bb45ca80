"""Rows out of a damaged SQLite file, without SQLite: found by what they look like, in any page.

Neither headers nor trees are followed, so a page that is lost takes its own rows along and no others.
What is found is held against its checksums, so nothing is taken for a row that is none. A row that
needs more than one page (a message above 4,000 bytes) is not found.

Record format: https://www.sqlite.org/fileformat.html#record_format
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = 4096  # of every SQLite since 3.12 unless it is told otherwise, which the outbox does not do
WAL_HEADER, FRAME_HEADER = 32, 24
OBJECT = re.compile(rb'\{"')
LIFE = re.compile(rb'\{"logs":[^\0]*?\} [0-9a-f]{8}')
INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> bytes


def read_pages(database: Path) -> Iterator[bytes]:
    """Yield every page of the file and, behind them, of its WAL; a sector that the disk cannot give is
    zeros. Older states of a page come before newer ones."""
    wal = database.with_name(database.name + "-wal")
    for path, start, step in ((database, 0, PAGE), (wal, WAL_HEADER, PAGE + FRAME_HEADER)):
        if not path.exists():
            continue
        with path.open("rb", buffering=0) as raw:
            size = path.stat().st_size
            for at in range(start, size, step):
                frame = _read(raw, at, step)
                yield frame[step - PAGE :]


def _read(raw: Any, at: int, length: int) -> bytes:
    parts = []
    for sector in range(0, length, 512):
        raw.seek(at + sector)
        wanted = min(512, length - sector)
        try:
            part = raw.read(wanted)
        except OSError:
            part = b""
        parts.append(part.ljust(wanted, b"\0"))
    return b"".join(parts)


def find_rows(page: bytes) -> Iterator[tuple[int, str, list[Any]]]:
    """Yield what may be a row of readings: its rowid, its text, and the columns after that."""
    for found in OBJECT.finditer(page):
        text_at = found.start()
        # The record's header: its own length, NULL for the rowid's alias, the text's type, the rest.
        for header in range(5, 16):
            start = text_at - header
            if start < 1 or page[start] != header or page[start + 1] != 0:
                continue
            row = _parse(page, start, text_at)
            if row is not None:
                yield row


def find_lives(page: bytes) -> Iterator[str]:
    """Yield what may be the outbox's own row, see edge/delivery/life.py."""
    for found in LIFE.finditer(page):
        yield found[0].decode("utf-8", "replace")


def _parse(page: bytes, start: int, text_at: int) -> tuple[int, str, list[Any]] | None:
    types, at = [], start + 2
    while at < text_at:
        kind, at = _varint(page, at)
        types.append(kind)
    if at != text_at or len(types) < 4 or types[0] < 13 or types[0] % 2 == 0:
        return None
    end = text_at + (types[0] - 13) // 2
    columns: list[Any] = []
    rest = end
    for kind in types[1:]:
        value, rest = _value(page, rest, kind)
        columns.append(value)
    if rest > len(page):
        return None
    return _varint_before(page, start), page[text_at:end].decode("utf-8", "replace"), columns


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for byte in page[at : at + 5]:  # a longer one is no text's length
        value, at = value << 7 | byte & 0x7F, at + 1
        if byte < 0x80:
            break
    return value, at


def _varint_before(page: bytes, end: int) -> int:
    """The rowid: its last byte lies before `end`, and those before that have their highest bit set."""
    start = end - 1
    while start > max(0, end - 9) and page[start - 1] >= 0x80:
        start -= 1
    value = 0
    for byte in page[start:end]:
        value = value << 7 | byte & 0x7F
    return value


def _value(page: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        end = at + INTEGERS[kind]
        return int.from_bytes(page[at:end], "big", signed=True), end
    if kind == 7:
        end = at + 8
        return (struct.unpack(">d", page[at:end])[0] if end <= len(page) else None), end
    if kind in (8, 9):
        return kind - 8, at
    return None, at
