"""A small MQTT broker, or a cluster of members, that refuses what its habits say."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

GRANTED, REFUSED = 1, 0x80
CLOSE = None  # instead of an answer
PROPERTY_BYTES = {0x11: 4, 0x17: 1, 0x19: 1, 0x21: 2, 0x22: 2, 0x27: 4}


@dataclass(frozen=True)
class Habits:
    """How the broker behaves.

    versions: of MQTT, 4 is 3.1.1; unknown: to others it answers "code 1" as 3.1.1 does, "code 0x84" as
    5 does, both before it closes, or closes ("close"), resets, or is "silent". suback: filter and how
    often it was asked for -> a code, CLOSE, or "silent". share: two of a group get "halves", nothing
    ("deaf"), or the connection ends ("close"). puback: topic -> a code, or CLOSE. retained, sessions:
    known to "all" members, to the one ("member") or to "none"; retained_wildcard: and is found by one;
    resumes_after: seconds that it takes to resume a session. resends: what was not acknowledged; wills:
    after which ends. in_flight: messages that a client is sent before it acknowledges one.
    """

    versions: tuple[int, ...] = (4, 5)
    unknown: str = "code 1"
    suback: Callable[[str, int], int | str | None] = lambda topic, times: GRANTED
    share: str = "halves"
    puback: Callable[[str], int | None] = lambda topic: 0
    retained: str = "all"
    retained_wildcard: bool = True
    sessions: str = "all"
    resumes_after: float = 0.0
    resends: bool = True
    wills: tuple[str, ...] = ("cut", "takeover")
    delivers: bool = True
    retain_available: bool = True
    in_flight: int = 65535


@dataclass
class _Session:
    id: str
    member: int
    kept: bool
    version: int
    filters: list[str] = field(default_factory=list)
    waiting: dict[int, tuple[str, bytes, int]] = field(default_factory=dict)  # by mid
    sent: set[int] = field(default_factory=set)  # of these, on this connection
    peer: socket.socket | None = None
    will: tuple[str, bytes, bool] | None = None
    mids: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def matches(wanted: str, topic: str) -> bool:
    """Whether a filter names a topic."""
    want, parts = wanted.split("/"), topic.split("/")
    if want[-1] == "#":
        want, parts = want[:-1], parts[: len(want) - 1]
    pairs = zip(want, parts, strict=False)
    return len(want) == len(parts) and all(w in ("+", part) for w, part in pairs)


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    size = struct.unpack_from("!H", data, at)[0]
    return data[at + 2 : at + 2 + size], at + 2 + size


def _properties(data: bytes, at: int) -> tuple[dict[int, int], int]:
    end, found = at + 1 + data[at], {}
    at += 1
    while at < end:
        size = PROPERTY_BYTES[data[at]]
        found[data[at]] = int.from_bytes(data[at + 1 : at + 1 + size], "big")
        at += 1 + size
    return found, end


def _packet(kind: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([kind])
    while True:
        head.append(size % 128 | (128 if size > 127 else 0))
        size //= 128
        if not size:
            return bytes(head) + content


def _string(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


class StubBroker:
    """Listens on one port of loopback a member; a context manager."""

    def __init__(self, habits: Habits | None = None, members: int = 1) -> None:
        self.habits = habits or Habits()
        self.connects: list[tuple[int, str]] = []  # version and client id of each CONNECT
        self.subscribed: list[str] = []  # each filter, as often as it was asked for
        self.published: list[tuple[str, bytes, bool]] = []  # topic, content, retain
        self._lock = threading.RLock()
        self._sessions: dict[tuple[str, int], _Session] = {}
        self._retained: dict[tuple[str, int], bytes] = {}
        self._turn = itertools.count()
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(members)]
        for member in range(members):
            threading.Thread(target=self._accept, args=(member,), daemon=True).start()

    @property
    def urls(self) -> list[str]:
        return [f"mqtt://127.0.0.1:{lis.getsockname()[1]}" for lis in self._listeners]

    @property
    def url(self) -> str:
        return self.urls[0]

    def __enter__(self) -> StubBroker:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for session in self._sessions.values():
                if session.peer is not None:
                    with contextlib.suppress(OSError):
                        session.peer.shutdown(socket.SHUT_RDWR)

    def publish(self, topic: str, content: bytes, retain: bool = False) -> None:
        """Say something to all that subscribed, as another client would."""
        with self._lock:
            self._route(topic, content, retain, 0)

    def forget_subscriptions(self) -> None:
        """Deliver nothing more on any connection that stands, and say nothing of it."""
        with self._lock:
            for session in self._sessions.values():
                session.filters.clear()

    def _accept(self, member: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listeners[member].accept()
                threading.Thread(target=self._serve, args=(peer, member), daemon=True).start()

    def _serve(self, peer: socket.socket, member: int) -> None:
        session, clean = None, False
        # A client that asks whether TLS is spoken here sends what is no packet.
        no_packet = (IndexError, struct.error)
        with (
            peer,
            contextlib.suppress(OSError, EOFError, *no_packet),
            peer.makefile("rb") as stream,
        ):
            try:
                for kind, content in self._packets(stream):
                    if kind >> 4 == 1:
                        session = self._connect(peer, member, content)
                        if session is None:
                            return
                    elif kind >> 4 == 14:
                        clean = True
                        return
                    elif session is not None and not self._answer(session, kind, content, peer):
                        return
            finally:
                if session is not None:
                    self._ended(session, peer, clean)

    @staticmethod
    def _packets(stream: object) -> Iterator[tuple[int, bytes]]:
        read = stream.read  # type: ignore[attr-defined]
        while first := read(1):
            size, shift = 0, 0
            while True:
                byte = read(1)[0]
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            yield first[0], read(size)

    def _connect(self, peer: socket.socket, member: int, data: bytes) -> _Session | None:
        _, at = _text(data, 0)
        version, flags, at = data[at], data[at + 1], at + 4
        found: dict[int, int] = {}
        if version == 5:
            found, at = _properties(data, at)
        name, at = _text(data, at)
        will = None
        if flags & 4:
            if version == 5:
                _, at = _properties(data, at)
            topic, at = _text(data, at)
            content, at = _text(data, at)
            will = (topic.decode(), content, bool(flags & 0x20))
        client_id = name.decode()
        self.connects.append((version, client_id))
        if version not in self.habits.versions:
            self._refuse(peer)
            return None
        if will and will[2] and not self.habits.retain_available:
            peer.sendall(_packet(0x20, b"\x00\x9a\x00" if version == 5 else b"\x00\x05"))
            return None
        kept = found.get(0x11, 0) > 0 if version == 5 else not flags & 2
        with self._lock:
            return self._begin(peer, member, client_id, version, (bool(flags & 2), kept), will)

    def _begin(
        self,
        peer: socket.socket,
        member: int,
        client_id: str,
        version: int,
        how: tuple[bool, bool],
        will: tuple[str, bytes, bool] | None,
    ) -> _Session:
        key = (client_id, member if self.habits.sessions == "member" else 0)
        for other in list(self._sessions.values()):
            if other.id == client_id and client_id and other.peer is not None:
                gone, other.peer = other.peer, None
                if "takeover" in self.habits.wills and other.will:
                    self._route(*other.will, other.member)
                with contextlib.suppress(OSError):
                    gone.shutdown(socket.SHUT_RDWR)
        old = None if how[0] or self.habits.sessions == "none" else self._sessions.get(key)
        session = old or _Session(client_id, member, how[1], version)
        session.peer, session.will, session.version = peer, will, version
        session.member, session.kept = member, how[1]
        self._sessions[key if client_id else (str(id(session)), 0)] = session
        available = b"" if self.habits.retain_available else b"\x25\x00"
        properties = bytes([len(available)]) + available if version == 5 else b""
        peer.sendall(_packet(0x20, bytes([old is not None, 0]) + properties))
        if not self.habits.resends and old is not None:
            session.waiting.clear()
        session.sent.clear()
        for mid, (topic, content, _) in session.waiting.items():
            session.waiting[mid] = (topic, content, 0x3A)
        if old is None or not self.habits.resumes_after:
            self._send_waiting(session)
        else:
            timer = threading.Timer(self.habits.resumes_after, self._resume, [session])
            timer.daemon = True
            timer.start()
        return session

    def _resume(self, session: _Session) -> None:
        with self._lock:
            self._send_waiting(session)

    def _refuse(self, peer: socket.socket) -> None:
        if self.habits.unknown == "code 1":
            peer.sendall(b"\x20\x02\x00\x01")
        elif self.habits.unknown == "code 0x84":
            peer.sendall(b"\x20\x03\x00\x84\x00")
        elif self.habits.unknown == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif self.habits.unknown == "silent":
            peer.recv(1)  # until the client gives up

    def _answer(self, session: _Session, kind: int, data: bytes, peer: socket.socket) -> bool:
        """Whether the connection stands."""
        five = session.version == 5
        if kind >> 4 == 12:
            peer.sendall(b"\xd0\x00")
        elif kind >> 4 == 4:
            with self._lock:
                session.waiting.pop(mid := struct.unpack_from("!H", data)[0], None)
                session.sent.discard(mid)
                self._send_waiting(session)
        elif kind >> 4 == 3:
            topic, at = _text(data, 0)
            mid = data[at : at + 2]
            at += 2 if kind & 6 else 0
            if five:
                _, at = _properties(data, at)
            with self._lock:
                if kind & 1 and not self.habits.retain_available:
                    peer.sendall(b"\xe0\x02\x9a\x00")
                    return False
                code = self.habits.puback(topic.decode())
                if code is CLOSE:
                    return False
                if kind & 6:
                    peer.sendall(_packet(0x40, mid + (bytes([code, 0]) if five and code else b"")))
                if code >= REFUSED:
                    return True
                self._route(topic.decode(), data[at:], bool(kind & 1), session.member)
        elif kind >> 4 == 8:
            with self._lock:
                return self._subscribe(session, data, peer)
        return True

    def _subscribe(self, session: _Session, data: bytes, peer: socket.socket) -> bool:
        at, codes, fresh = 2, bytearray(), []
        if session.version == 5:
            _, at = _properties(data, at)
        while at < len(data):
            raw, at = _text(data, at)
            at, wanted = at + 1, raw.decode()
            self.subscribed.append(wanted)
            code = self.habits.suback(wanted, self.subscribed.count(wanted))
            if code is CLOSE or (wanted.startswith("$share/") and self.habits.share == "close"):
                return False
            if isinstance(code, str):
                return True
            codes.append(code)
            if code < REFUSED:
                fresh.append(wanted)
        properties = b"\x00" if session.version == 5 else b""
        peer.sendall(_packet(0x90, data[:2] + properties + bytes(codes)))
        session.filters += [wanted for wanted in fresh if wanted not in session.filters]
        scope = session.member if self.habits.retained == "member" else 0
        for (topic, member), content in list(self._retained.items()):
            wild = [wanted for wanted in fresh if "+" in wanted or "#" in wanted]
            found = fresh if self.habits.retained_wildcard else set(fresh) - set(wild)
            if member == scope and any(matches(wanted, topic) for wanted in found):
                self._deliver(session, topic, content, retained=True)
        return True

    def _route(self, topic: str, content: bytes, retain: bool, member: int) -> None:
        self.published.append((topic, content, retain))
        if retain and self.habits.retained != "none":
            key = (topic, member if self.habits.retained == "member" else 0)
            self._retained.pop(key, None)
            if content:
                self._retained[key] = content
        groups: dict[str, list[_Session]] = {}
        for session in list(self._sessions.values()):
            plain = [wanted for wanted in session.filters if not wanted.startswith("$share/")]
            if any(matches(wanted, topic) for wanted in plain):
                self._deliver(session, topic, content)
            for shared in (wanted for wanted in session.filters if wanted not in plain):
                _, group, wanted = shared.split("/", 2)
                if matches(wanted, topic) and session.peer is not None:
                    groups.setdefault(group, []).append(session)
        if self.habits.share == "halves":
            for sessions in groups.values():
                self._deliver(sessions[next(self._turn) % len(sessions)], topic, content)

    def _deliver(
        self, session: _Session, topic: str, content: bytes, retained: bool = False
    ) -> None:
        if not self.habits.delivers or (session.peer is None and not session.kept):
            return
        mid = next(session.mids)
        session.waiting[mid] = (topic, content, 0x33 if retained else 0x32)
        self._send_waiting(session)

    def _send_waiting(self, session: _Session) -> None:
        for mid, (topic, content, kind) in list(session.waiting.items()):
            if session.peer is not None and len(session.sent) >= self.habits.in_flight:
                return
            if session.peer is not None and mid not in session.sent:
                session.sent.add(mid)
                self._send(session, mid, topic, content, kind)

    @staticmethod
    def _send(session: _Session, mid: int, topic: str, content: bytes, kind: int) -> None:
        if session.peer is None:
            return
        properties = b"\x00" if session.version == 5 else b""
        data = _string(topic) + struct.pack("!H", mid) + properties + content
        with contextlib.suppress(OSError):
            session.peer.sendall(_packet(kind, data))

    def _ended(self, session: _Session, peer: socket.socket, clean: bool) -> None:
        with self._lock:
            if session.peer is not peer:
                return  # taken over
            session.peer = None
            if not session.kept:
                session.filters.clear()
                session.waiting.clear()
            if not clean and session.will and "cut" in self.habits.wills:
                self._route(*session.will, session.member)
