"""Read a camera, which runs whether or not we look: it may disconnect, stall, freeze, send nothing.

A thread takes every frame from the device, and puts those that are due (`pace.py`) into a one-slot
mailbox: the newest one wins, skipped ones are counted. A driver may block the thread for ever, so it is
watched from outside and abandoned; where no frame comes in time, a Tick says so and why.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.backoff import Backoff
from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.sources.decoder import NotDecoded
from edge.sources.images import as_bgr
from edge.sources.pace import Pace

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 30.0
MOST_ABANDONED = 100
# Why no frame comes, in the words of the messages.
LIVE, DISCONNECTED, STALLED, FROZEN = "live", "away", "hanging", "frozen"
DARK, UNDECODED = "dark", "undecoded"
# What is said of those whose word alone would send nobody to the right place.
EXPLAINED = {
    FROZEN: "the same picture again and again: covered, still, or a driver that hangs",
    DARK: "a black picture: covered, or in a room without light",
}
# Every eighth pixel of a frame tells it from the next: a sensor's noise alone changes them.
FINGERPRINT_STEP = 8
# Grey levels: a covered lens gives 0 to 3 with its noise, a room by night above 10.
DARK_MEAN = 6.0


class Capture(Protocol):
    """What OpenCV's VideoCapture gives; fakes of it are enough to test with."""

    def read(self) -> tuple[bool, Any]: ...

    def release(self) -> None: ...


@runtime_checkable
class Grabbing(Protocol):
    """A Capture that can step to its next picture without decoding it, as OpenCV's can."""

    def grab(self) -> bool: ...

    def retrieve(self) -> tuple[bool, Any]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """timeout: seconds without a frame until the camera counts as disconnected; hang: seconds that one
    call to the driver may take; freeze: seconds that the same frame, or a black one, may repeat, 0 for
    ever; give_up: attempts at a device that gives no frame, after which the source raises SourceError,
    0 for never."""

    timeout: float = 2.0
    hang: float = 15.0
    freeze: float = 30.0
    give_up: int = 0


@dataclass(slots=True)
class _Shot:
    pixels: NDArray[np.uint8]
    time: float
    utc: float
    skipped: int


class _Reader:
    """One thread at one device, until it is told to stop or is abandoned in a driver."""

    def __init__(
        self,
        opener: Callable[[], Capture],
        capture: Capture | None,
        limits: Limits,
        backoff: Backoff,
        pace: Pace,
    ) -> None:
        """backoff: of the attempts; without an open capture the first attempt waits too; pace: which
        pictures are due."""
        self._opener, self._capture, self._limits = opener, capture, limits
        self._backoff, self._pace = backoff, pace
        pace.restart()
        self.arrived = threading.Condition()
        self.stop = threading.Event()
        self.slot: _Shot | None = None
        self._skipped = 0
        self.fault = ""  # why no frame comes: "", DISCONNECTED, FROZEN, DARK or UNDECODED
        self.why = ""  # of UNDECODED
        self.failures = 0  # attempts since the device gave the last frame
        self.passed = (
            0.0  # when the last frame came that was not due, from a device without a fault
        )
        self.called = 0.0  # when the driver was called, 0 once it has returned
        self._seen, self._same_since = 0, 0.0
        self._still = False
        self._dark_since: float | None = None
        self.thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        if self._capture is None:
            self.stop.wait(self._backoff.next())
        while not self.stop.is_set():
            due, pixels = self._read()
            if self.stop.is_set():
                break  # another thread counts the attempts by now
            if not due:
                if not self.fault:
                    self.passed = time.monotonic()
                continue
            if pixels is None:
                if self.fault in EXPLAINED:
                    self.failures = 0  # the device does deliver
                else:
                    self.failures += 1
                # Also after an opening that worked: some devices open and then give nothing.
                if self._capture is None:
                    self.stop.wait(self._backoff.next())
                continue
            self._backoff.reset()
            self.fault, self.failures = "", 0
            with self.arrived:
                if self.slot is not None:
                    self._skipped += 1
                self.slot = _Shot(pixels, time.monotonic(), time.time(), self._skipped)
                self.arrived.notify()
        self._release()

    def take(self, seconds: float) -> _Shot | None:
        """Return the newest frame, waiting at most so long."""
        with self.arrived:
            if self.slot is None:
                self.arrived.wait(seconds)
            shot, self.slot = self.slot, None
            if shot is not None:
                self._skipped = 0
            return shot

    def _read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        """Take one frame, opening the device where needed; returns whether it was due, and it. None,
        and mostly the device closed, without one."""
        due = True
        self.called = time.monotonic()
        try:
            if self._capture is None:
                self._capture = self._opener()
            grabs = self._capture if isinstance(self._capture, Grabbing) else None
            ok, frame = (grabs.grab(), None) if grabs else self._capture.read()
            due = not ok or self._pace.due(time.monotonic())
            if grabs and ok and due:
                ok, frame = grabs.retrieve()
            fault = DISCONNECTED
        except NotDecoded as error:
            ok, frame = False, None
            fault, self.why = UNDECODED, str(error)
        except (SourceError, OSError, cv2.error):
            ok, frame = False, None
            fault = DISCONNECTED
        self.called = 0.0
        if not due:
            return False, None
        pixels = as_bgr(frame) if ok else None
        if pixels is not None:
            fault = self._unchanged(pixels)
        if not fault:
            return True, pixels
        self.fault = fault
        # A driver that froze may wake when it is opened again; noise in the dark is a driver awake.
        if fault != DARK or self._still:
            self._release()
        return True, None

    def _unchanged(self, pixels: NDArray[np.uint8]) -> str:
        """Return FROZEN or DARK where pictures were the same, or black, for too long, else ""."""
        now, step = time.monotonic(), FINGERPRINT_STEP
        sample = np.ascontiguousarray(pixels[::step, ::step])
        seen = zlib.crc32(sample.tobytes())
        if seen != self._seen:
            self._seen, self._same_since = seen, now
        if float(sample.mean()) >= DARK_MEAN:
            self._dark_since = None
        elif self._dark_since is None:
            self._dark_since = now
        limit = self._limits.freeze
        self._still = 0 < limit <= now - self._same_since
        if limit and self._dark_since is not None and now - self._dark_since >= limit:
            return DARK
        return FROZEN if self._still else ""

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
            self._pace.restart()


def open_in_time(opener: Callable[[], Capture], seconds: float) -> Capture:
    """Return what `opener` opens. Raises its SourceError, or one of ours where it does not return: its
    thread is then abandoned in the driver, and releases the device if that ever answers."""
    answer: queue.SimpleQueue[Capture | Exception] = queue.SimpleQueue()
    late = threading.Event()

    def ask() -> None:
        try:
            capture = opener()
        except (SourceError, OSError, cv2.error) as error:
            answer.put(error)
            return
        answer.put(capture)
        if late.is_set():
            capture.release()

    threading.Thread(target=ask, name="camera", daemon=True).start()
    try:
        found = answer.get(timeout=seconds)
    except queue.Empty:
        late.set()
        raise SourceError(
            f"the camera does not answer within {seconds:.0f} s of being opened; unplug it and plug "
            f"it in again (a service starts again by itself)"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


class Live:
    """Give Frames as they come, and Ticks where none comes."""

    live = True
    seconds: float | None = None

    def __init__(
        self,
        kind: str,
        opener: Callable[[], Capture],
        limits: Limits = Limits(),
        max_seconds: float | None = None,
        stop: threading.Event | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Open the device. opener: opens it or raises SourceError; called again after a loss; pace:
        which frames are given, default: every one.

        Raises SourceError at once where the first opening fails or stalls: a name that was never
        right is the operator's to mend, a camera that disconnects later is ours to wait for.
        """
        self.kind, self._opener, self._limits = kind, opener, limits
        self._max, self._pace = max_seconds, pace or Pace()
        self._stop = stop or threading.Event()
        self._first: Capture | None = open_in_time(opener, limits.hang)
        self._reader: _Reader | None = None
        self._abandoned = 0
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)

    def __iter__(self) -> Iterator[Frame | Tick]:
        reader = self._reader = self._reading(self._first)
        began = last = time.monotonic()
        logged = LIVE
        while not self._stop.is_set():
            shot = reader.take(TICK_SECONDS)
            now = time.monotonic()
            state = LIVE
            if shot is not None:
                last, self._abandoned = now, 0
            last = max(last, reader.passed)
            if shot is None and now - last > self._limits.timeout:
                hung = reader.called and now - reader.called > self._limits.timeout
                state = STALLED if hung or self._abandoned else reader.fault or DISCONNECTED
            if state != logged:
                logged = state
                level = logging.INFO if state == LIVE else logging.WARNING
                why = reader.why if state == UNDECODED else EXPLAINED.get(state, "")
                log.log(level, "camera %s source=%s%s", state, self.kind, f": {why}" if why else "")
            if shot is not None:
                yield Frame(pixels=shot.pixels, time=shot.time, utc=shot.utc, dropped=shot.skipped)
            else:
                yield Tick(time=now, utc=time.time(), camera=state)
            fault = reader.fault or DISCONNECTED if state == LIVE else state
            self._give_up_if_hopeless(
                reader.failures + self._abandoned, now - last, fault, reader.why
            )
            if reader.called and now - reader.called > self._limits.hang:
                reader = self._abandon(reader)
            if self._max is not None and now - began >= self._max:
                return

    def _reading(self, capture: Capture | None) -> _Reader:
        return _Reader(self._opener, capture, self._limits, self._backoff, self._pace)

    def _abandon(self, reader: _Reader) -> _Reader:
        """Start another thread: one that is stuck in a driver cannot be ended. It stays, as a daemon
        that releases the device if the driver ever answers."""
        self._abandoned += reader.failures + 1
        reader.stop.set()
        self._reader = self._reading(None)
        log.warning("camera thread abandoned in its driver source=%s", self.kind)
        return self._reader

    def _give_up_if_hopeless(self, failures: int, seconds: float, state: str, why: str) -> None:
        # Each abandoned thread keeps its stack: their number is limited, whatever was asked for.
        if 0 < self._limits.give_up <= failures or self._abandoned >= MOST_ABANDONED:
            do = why if state == UNDECODED else "check its cable and power"
            text = (
                f"the camera is {state}: no picture in {seconds:.0f} s and {failures} attempts; "
                f"{do} (a service starts again by itself)"
            )
            raise SourceError(text, public=text)

    def close(self) -> None:
        self._stop.set()
        reader, self._reader = self._reader, None
        first, self._first = self._first, None
        if reader is not None:
            reader.stop.set()
            # A read that is stuck in a driver cannot be interrupted; the thread is a daemon.
            reader.thread.join(timeout=2.0)
        elif first is not None:
            first.release()
