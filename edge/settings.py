"""node.yaml as strict, frozen models. Every setting has its unit in its name or description.

The annotated example is `systemd/node.yaml`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from edge.base import schedule
from edge.base.broker_address import MOST_CHARACTERS, check_broker_address, one_or_more_addresses
from edge.base.setting_types import (
    AUTO,
    FilePath,
    RecorderNames,
    Segment,
    default_state,
    own_hostname,
)
from edge.base.strict_yaml import Strict
from edge.records import Counting

LONGEST_PATH = 200
# A room of seated people counts the same from this many pictures a second as from thirty, and a face
# that turns up is counted within 0.4 s; at 4 a second walkers begin to be lost (docs/operate.md).
AUTO_PER_SECOND = 5.0
# Before tracker.confirm_seconds there was confirm_frames, by default 3: read as the default of now.
FRAMES_A_SECOND = 20.0


class Node(Strict):
    site: Segment = Field(default="local", description="school")
    room: Segment = Field(default="room")
    name: Segment = Field(default_factory=own_hostname, description="node, unique in its room")

    @property
    def path(self) -> str:
        return f"{self.site}/{self.room}/{self.name}"

    @model_validator(mode="after")
    def _length(self) -> Node:
        # Of every message's `node`, and of the certificate's common name.
        if len(self.path) > LONGEST_PATH:
            raise ValueError(
                f"site, room and name have {len(self.path)} characters with the / between them, at "
                f"most {LONGEST_PATH}; shorten one"
            )
        return self


class Camera(Strict):
    source: str = Field(
        default="0",
        min_length=1,
        description="0 | /dev/v4l/by-id/... | FILE | FOLDER | rtsp://... | csi:0 | loop:FILE | "
        "test[:FAULT]",
        json_schema_extra={"type": ["string", "integer"]},  # see _index
    )
    width: int = Field(default=1280, ge=160, le=7680, description="asked of the camera, pixels")
    height: int = Field(default=720, ge=120, le=4320, description="asked of the camera, pixels")
    fps: float = Field(default=30.0, ge=1, le=240, description="asked of the camera, frames/s")
    rotate: Literal[0, 90, 180, 270] = Field(
        default=0, description="turn the picture clockwise, degrees; masks are of the turned one"
    )
    analyse_per_second: Annotated[float | None, AUTO] = Field(
        default=None,
        ge=0.5,
        le=240,
        description="pictures of a camera or video that are looked at; 'auto' is "
        f"{AUTO_PER_SECOND:g}; those of a folder all are",
    )
    pictures_per_second: float = Field(
        default=1.0, ge=1e-3, le=240, description="pace of a folder of pictures in its own time"
    )
    timeout_seconds: float = Field(
        default=2.0, ge=0.2, le=60, description="without a frame for so long, the camera is away"
    )
    hang_seconds: float = Field(
        default=15.0,
        ge=1,
        le=600,
        description="a driver call that takes longer is abandoned, the camera opened again",
    )
    freeze_seconds: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="the same frame, or a black one, for so long counts as none; 0 is off",
    )
    give_up_after: int = Field(
        default=30, ge=0, le=10000, description="attempts without a frame, then exit; 0 is never"
    )

    @property
    def rate(self) -> float:
        """Pictures a second that are analysed."""
        return self.analyse_per_second or AUTO_PER_SECOND

    @model_validator(mode="before")
    @classmethod
    def _index(cls, data: object) -> object:
        # `source: 0` is what everybody writes, and YAML reads a number.
        if isinstance(data, dict) and type(data.get("source")) is int:
            return {**data, "source": str(data["source"])}
        return data


class Detection(Strict):
    width: Annotated[int | None, AUTO] = Field(
        default=None,
        ge=64,
        le=3840,
        multiple_of=32,
        description="pixels; 'auto': the picture's shape, as large as the machine carries",
    )
    height: Annotated[int | None, AUTO] = Field(
        default=None, ge=64, le=3840, multiple_of=32, description="pixels; 'auto' as width"
    )
    score: float = Field(default=0.6, gt=0, lt=1, description="a new person needs this much")
    weak_score: float = Field(
        default=0.3, gt=0, lt=1, description="enough to keep a person already followed"
    )
    overlap: float = Field(default=0.3, gt=0, lt=1, description="IoU of two boxes of one face")
    weights: FilePath | None = Field(
        default=None, description="folder with the detector's ONNX file; else cache, else fetched"
    )

    @model_validator(mode="after")
    def _order(self) -> Detection:
        if self.weak_score > self.score:
            raise ValueError("weak_score must not be above score")
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height both, or neither (auto)")
        return self


class Tracking(Strict):
    confirm_seconds: float = Field(
        default=0.1, ge=0, le=10, description="a new face counts once it was seen for so long"
    )
    hold_seconds: float = Field(
        default=0.5, ge=0, le=5, description="a person unseen for so long still counts as in view"
    )
    forget_seconds: float = Field(
        default=1.5, ge=0, le=30, description="a person hidden for so long gets a new id"
    )

    @model_validator(mode="before")
    @classmethod
    def _frames(cls, data: object) -> object:
        if not isinstance(data, dict) or "confirm_frames" not in data:
            return data
        frames = data["confirm_frames"]
        if type(frames) is not int or not 1 <= frames <= 60 or "confirm_seconds" in data:
            raise ValueError("confirm_frames is confirm_seconds now: write confirm_seconds: 0.1")
        rest = {key: value for key, value in data.items() if key != "confirm_frames"}
        return {**rest, "confirm_seconds": (frames - 1) / FRAMES_A_SECOND}

    @model_validator(mode="after")
    def _order(self) -> Tracking:
        if self.hold_seconds > self.forget_seconds:
            raise ValueError("hold_seconds must not be above forget_seconds")
        return self


class Classification(Strict):
    counting: Counting = Field(
        default="expected",
        description="expected: sums of probabilities; dominant: each person's most probable class",
    )
    min_face_px: int = Field(default=16, ge=4, le=512, description="smaller faces: unclassified")
    max_turn: float = Field(
        default=70.0,
        ge=10,
        le=90,
        description="faces turned aside by more (estimated yaw, degrees): unclassified; 90 is off",
    )
    smooth_seconds: float = Field(default=0.5, ge=0, le=30, description="time constant")
    low_confidence: float = Field(
        default=0.4, ge=0, le=1, description="best probability below which a face counts as unsure"
    )


class Window(Strict):
    seconds: float = Field(default=10.0, ge=1, le=3600)
    max_gap_seconds: float = Field(
        default=2.0, gt=0, le=60, description="a frame stands for at most so long"
    )


class Privacy(Strict):
    min_group: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="fewer people in view: no counts (primary suppression); 1 switches it off",
    )
    min_cell: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="smaller counts go into 'other' (complementary suppression; min_group above 1)",
    )
    legal_basis: str = Field(
        default="",
        description="why this may run here, 'medical: ...' or 'safety: ...'; a service needs it",
    )
    hours: list[str] = Field(
        default=[], description="when to look, such as 'mon-fri 08:00-16:00'; empty is always"
    )
    zone: str | None = Field(
        default=None, description="of hours, such as 'Europe/Berlin'; null is the system's"
    )
    masks: list[list[float]] = Field(
        default=[],
        description="zones never looked at: left, top, right, bottom, shares of the turned frame",
    )

    @model_validator(mode="after")
    def _hours(self) -> Privacy:
        schedule.read(self.hours, self.zone)
        for mask in self.masks:
            inside = len(mask) == 4 and all(0 <= side <= 1 for side in mask)
            if not inside or not (mask[0] < mask[2] and mask[1] < mask[3]):
                raise ValueError("masks must be left, top, right, bottom within 0 and 1")
        return self

    @model_validator(mode="after")
    def _order(self) -> Privacy:
        if self.min_cell > max(self.min_group, 1) and self.min_group > 1:
            raise ValueError("min_cell must not be above min_group")
        return self


class Tls(Strict):
    ca: FilePath | None = Field(default=None, description="PEM; default: the system's authorities")
    certificate: FilePath | None = Field(default=None, description="the node's own, PEM")
    key: FilePath | None = Field(default=None, description="of the node's certificate, PEM")

    @model_validator(mode="after")
    def _pair(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("needs certificate and key together, or neither")
        return self


def _protocol(value: object) -> object:
    # `protocol: 5` is what everybody writes, and YAML reads a number.
    return "5" if type(value) is int and value == 5 else value


class Broker(Strict):
    url: Annotated[str | list[str], BeforeValidator(one_or_more_addresses)] = Field(
        default="-",
        description="mqtt://host[:port] | mqtts://host[:port] | -; or a list of the first two, such as "
        "a cluster's members: the next is tried where one refuses or does not answer",
    )
    username: str | None = Field(default=None, max_length=MOST_CHARACTERS)
    password_file: FilePath | None = Field(default=None, description="holds the password alone")
    tls: Tls = Tls()
    protocol: Annotated[Literal["auto", "5", "3.1.1"], BeforeValidator(_protocol)] = Field(
        default="auto", description="of MQTT; auto tries 5, then 3.1.1, and remembers"
    )
    keepalive_seconds: int = Field(default=20, ge=5, le=600)
    retry_max_seconds: float = Field(default=60.0, ge=1, le=3600, description="longest pause")

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses, in the order in which they are tried; () for lines on stdout."""
        if self.url == "-":
            return ()
        return (self.url,) if isinstance(self.url, str) else tuple(self.url)

    @property
    def shown(self) -> str:
        """The addresses as people read them."""
        return ", ".join(self.urls) or "-"

    def at(self, url: str) -> Broker:
        """Return the settings of one of the addresses."""
        return self.model_copy(update={"url": url})

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return any(url.startswith("mqtts:") for url in self.urls)

    @model_validator(mode="after")
    def _address(self) -> Broker:
        schemes = {check_broker_address(url) for url in self.urls}
        if len(schemes) > 1:
            # Who can keep a client from TLS would have its password in plain text.
            raise ValueError("url must be mqtts:// in all of its addresses, or mqtt:// in all")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("url holds an address twice")
        if schemes == {"mqtt"} and self.tls != Tls():
            raise ValueError(
                "tls is set, and url is mqtt://, which is plain text; write mqtts:// or take tls out"
            )
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs a username")
        return self


class Clock(Strict):
    servers: list[str] = Field(
        default=[], description="the school's time servers (NTP), which --check asks"
    )

    @model_validator(mode="after")
    def _names(self) -> Clock:
        for server in self.servers:
            if not re.fullmatch(r"[A-Za-z0-9.:-]+", server):
                raise ValueError(f"servers must be host names or addresses, not '{server:.60}'")
            try:
                server.encode("idna")
            except UnicodeError:
                raise ValueError(f"servers: '{server:.60}' is not a valid host name") from None
        return self


class Outbox(Strict):
    max_mib: float = Field(default=64.0, ge=1, le=4096, description="of readings; oldest go first")
    max_days: float = Field(default=30.0, gt=0, le=3650, description="of running time, unsent")
    keep_hours: float = Field(
        default=24.0, ge=0, le=8760, description="of running time, after the broker took it"
    )
    recorders: RecorderNames = Field(
        default=[],
        description="names of recorders that must all have a reading before it goes; default: any one",
    )


class Runtime(Strict):
    backend: Literal["auto", "ort", "trt", "fake"] = "auto"
    threads: int = Field(default=2, ge=1, le=64, description="cores for one network")
    bundle: FilePath | None = Field(default=None, description="default: the shipped one")
    state: FilePath | None = Field(default=None, description="folder of the outbox")
    engines: FilePath | None = Field(
        default=None, description="folder of TensorRT's engines; default: engines in state"
    )
    health_seconds: float = Field(default=30.0, ge=1, le=3600)
    prometheus_port: int | None = Field(
        default=None, ge=1, le=65535, description="on 127.0.0.1 alone; null is off"
    )


class Update(Strict):
    url: str | None = Field(
        default=None, description="folder of releases, https://...; null is off"
    )
    ca: FilePath | None = Field(default=None, description="PEM; default: the system's authorities")
    key: FilePath | None = Field(default=None, description="public, of the school's releases, PEM")

    @model_validator(mode="after")
    def _address(self) -> Update:
        if self.url is None:
            return self
        wrong = "url must be https://host[:port]/folder or null"
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ValueError(wrong) from None
        if parts.scheme != "https" or not parts.hostname or port == 0:
            raise ValueError(wrong)
        if "@" in self.url or parts.query or parts.fragment:
            raise ValueError("url must hold neither a password nor ? nor #")
        if not all("!" <= c <= "~" for c in self.url):
            raise ValueError("url must be of ASCII characters, without spaces")
        if self.key is None:
            raise ValueError("needs key with url: releases are signed")
        return self


class Settings(Strict):
    """The whole of node.yaml."""

    node: Node = Field(default_factory=Node)
    camera: Camera = Camera()
    detector: Detection = Detection()
    tracker: Tracking = Tracking()
    classifier: Classification = Classification()
    window: Window = Window()
    privacy: Privacy = Privacy()
    broker: Broker = Broker()
    clock: Clock = Clock()
    outbox: Outbox = Outbox()
    runtime: Runtime = Runtime()
    update: Update = Update()

    @property
    def state_folder(self) -> Path:
        """Of outbox, commands and engines."""
        return self.runtime.state or default_state()
