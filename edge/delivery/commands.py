"""What a school may ask a running node over MQTT: an allow-list, each with a result message.

    cmd/pause         {"seconds": 600}    look at nothing; without seconds until `resume`
    cmd/resume        {}
    cmd/set-window    {"seconds": 30}     never below what node.yaml says; at the next window's start
    cmd/set-min-group {"people": 8}       never below what node.yaml says
    cmd/report        {}                  status, info and health, now
    cmd/reload-bundle {}                  read the bundle's folder again; a bad one changes nothing

Nothing here can make a picture leave the node. A command expires within a day, and its id is
remembered until then: said twice (by a broker that repeats), it is done once and answered twice. What
had to be forgotten sooner, since too many came or the clock jumped, is refused, and so is a retained
command: each new connection would bring it again. Pause, window and group survive a restart, in a
file that is replaced whole.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from edge.base.clock import parse_rfc3339, rfc3339
from edge.base.errors import EdgeError
from edge.base.files import write_atomically
from edge.delivery.messages import Command

log = logging.getLogger(__name__)

Name = Literal["pause", "resume", "set-window", "set-min-group", "report", "reload-bundle"]
NAMES: tuple[Name, ...] = get_args(Name)
REMEMBERED = 1000
LONGEST_SECONDS = 86400.0  # until a command expires; so long its id must be remembered
LARGEST_BYTES = 4096
SHORTEST_SECONDS = 2.0  # of a window that a command may ask for


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Done(_Part):
    """What became of a command: ok, or the reason in one line."""

    id: str
    name: str
    ok: bool
    text: str


@dataclass(slots=True)
class Overrides:
    """What was asked for and holds, beyond node.yaml. pause: seconds of running time, 0 until resumed,
    None for not; after a restart they count from its start again, since no clock can be trusted to have
    gone on."""

    pause: float | None = None
    window_seconds: float | None = None
    min_group: int | None = None


# What a file that is no longer as it was written may raise.
DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class Commands:
    """Takes commands from any thread's hands, does them in the node's own loop."""

    def __init__(
        self,
        file: Path,
        node: str,
        least_group: int,
        least_window: float,
        report: Callable[[], None],
        reload: Callable[[], str],
        utc: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """file: where overrides and ids are kept; a damaged one is replaced, and paused is then off,
        which is said. least_group, least_window: node.yaml's. reload: reads the bundle again and says
        what became of it, or raises EdgeError and has changed nothing."""
        self._file, self._node = file, node
        self._least, self._shortest = least_group, max(SHORTEST_SECONDS, least_window)
        self._report, self._reload, self._utc, self._clock = report, reload, utc, clock
        self._paused_from = clock()
        self.overrides = Overrides()
        self._done: dict[str, Done] = {}
        self._expires: dict[str, float] = {}  # id -> UTC seconds
        self._forgotten = 0.0  # UTC seconds: the latest that an id expires which is known no more
        try:
            stored = json.loads(file.read_bytes())
            wishes = TypeAdapter(Overrides).validate_python(stored["wishes"])
            done = {d["id"]: Done.model_validate(d) for d in stored["done"]}
            known = stored.get("expires", {})  # version 0.1.0 kept none
            latest = utc() + LONGEST_SECONDS
            expires = {id: float(known.get(id, latest)) for id in done}
            self._forgotten = float(stored.get("forgotten", 0.0))
            # All or nothing: what is said not to hold must not.
            self.overrides, self._done, self._expires = wishes, done, expires
        except FileNotFoundError:
            pass
        except DAMAGED as error:
            log.error("%s cannot be read (%s): no command holds any more", file, error)

    def paused(self) -> bool:
        """Asked by the node's loop; a pause that is over is forgotten on the disk too."""
        pause = self.overrides.pause
        if pause and self._clock() - self._paused_from >= pause:
            self.overrides.pause = None
            self._save()
        return self.overrides.pause is not None

    def kept(self) -> str:
        """Say which commands of an earlier run hold, beyond what the settings say; "" for none."""
        w, parts = self.overrides, []
        if self.paused():
            parts.append(f"paused for {w.pause:g} s" if w.pause else "paused until resumed")
        if (w.window_seconds or 0.0) > self._shortest:
            parts.append(f"windows of {w.window_seconds:g} s")
        if (w.min_group or 0) > self._least:
            parts.append(f"groups of {w.min_group} or more")
        return ", ".join(parts)

    def take(self, name: str, content: bytes, retained: bool = False) -> Done | None:
        """Do one; None for what is no command to this node and gets no answer. retained: the broker
        kept it, and would send it again on each connection."""
        if len(content) > LARGEST_BYTES:
            log.warning("a command of %d bytes was ignored", len(content))
            return None
        try:
            command = Command.model_validate_json(content)
        except ValidationError as error:
            log.warning("a malformed command was ignored: %s", error.errors()[0]["msg"])
            return None
        if command.node != self._node:
            log.warning("a command to another node was ignored")
            return None
        if command.id in self._done:
            return self._done[command.id]
        try:
            expires = self._expiry(command, retained)
        except ValueError as error:
            # Not remembered: it stays refused by itself, or may come in time and once.
            return Done(id=command.id, name=name, ok=False, text=str(error))
        try:
            done = Done(id=command.id, name=name, ok=True, text=self._do(name, command))
        except ValueError as error:
            done = Done(id=command.id, name=name, ok=False, text=str(error))
        self._done[command.id], self._expires[command.id] = done, expires
        self._forget()
        self._save()
        log.info("command %s id=%s ok=%s", name, command.id, done.ok)
        return done

    def _expiry(self, command: Command, retained: bool) -> float:
        """When it expires, UTC seconds; ValueError where it may have been done before, or be again."""
        if retained:
            raise ValueError(
                "a retained command is not done: delete it, and send it without retain"
            )
        expires, now = parse_rfc3339(command.expires).timestamp(), self._utc()
        if expires < now:
            raise ValueError(f"expired at {command.expires}")
        if expires > now + LONGEST_SECONDS:
            raise ValueError(f"expires more than a day after {rfc3339(now)}, this node's time")
        if expires <= self._forgotten:
            raise ValueError(
                f"expires too soon: ids up to {rfc3339(self._forgotten)} are forgotten"
            )
        return expires

    def _forget(self) -> None:
        """Forget what has expired, and of too many those that expire first."""
        oldest, now = sorted(self._expires, key=self._expires.__getitem__), self._utc()
        for number, id in enumerate(oldest):
            if self._expires[id] >= now and len(oldest) - number <= REMEMBERED:
                break
            self._forgotten = max(self._forgotten, self._expires.pop(id))
            del self._done[id]

    def _do(self, name: str, command: Command) -> str:
        """What was done, in words; ValueError with what was wrong."""
        if name not in NAMES:
            raise ValueError(f"no command '{name}'; there are {', '.join(NAMES)}")
        wanted = dict(command.arguments)
        text = self._act(name, wanted)
        if wanted:
            raise ValueError(f"{name} takes no '{sorted(wanted)[0]}'")
        return text

    def _act(self, name: str, wanted: dict[str, float]) -> str:
        w = self.overrides
        if name == "pause":
            seconds = wanted.pop("seconds", 0.0)
            if wanted or not 0 <= seconds <= 366 * 86400:
                raise ValueError("pause takes 'seconds', at most a year, or nothing")
            w.pause, self._paused_from = seconds, self._clock()
            return f"paused for {seconds:g} s" if seconds else "paused until resumed"
        if name == "resume":
            if not wanted:
                w.pause = None
            return "resumed"
        if name == "set-window":
            seconds = wanted.pop("seconds", 0.0)
            if wanted or not self._shortest <= seconds <= 3600:
                raise ValueError(f"set-window takes 'seconds', {self._shortest:g} to 3600")
            w.window_seconds = seconds
            return f"windows of {seconds:g} s from the next one on"
        if name == "set-min-group":
            people = wanted.pop("people", 0.0)
            if (
                wanted
                or not math.isfinite(people)
                or people != int(people)
                or not self._least <= people <= 1000
            ):
                raise ValueError(f"set-min-group takes 'people', {self._least} to 1000")
            w.min_group = int(people)
            return f"groups of {int(people)} at least from the next window on"
        if name == "reload-bundle":
            return "" if wanted else self._take_bundle()
        if not wanted:
            self._report()
        return "status, info and health follow"

    def _take_bundle(self) -> str:
        try:
            return self._reload()
        except EdgeError as error:
            raise ValueError(f"{error}; the running bundle stays") from error

    def _save(self) -> None:
        content = {
            "wishes": asdict(self.overrides),
            "done": [done.model_dump() for done in self._done.values()],
            "expires": self._expires,
            "forgotten": self._forgotten,
        }
        try:
            write_atomically(self._file, json.dumps(content).encode())
        except OSError as error:
            log.error("%s is not kept (%s): after a restart it is forgotten", self._file, error)
