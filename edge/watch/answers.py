"""What the page's own addresses answer, as types: what mypy checks the code by, and what
`openapi.py` makes the document of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from typing_extensions import NotRequired, TypedDict  # pydantic takes no other before Python 3.12

from edge.delivery.commands import Name

Share = Annotated[float, Field(ge=0, le=1)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Amount = Annotated[int, Field(ge=0)]
STATES = (
    "starting, online, degraded, stopped, lost; unknown before the first status, silent where "
    "readings stay away"
)


class RoomFacts(TypedDict):
    """What is said of a room in every form of the state."""

    site: str
    room: str
    floor: Annotated[str, Field(description="what the room's name tells of it, or empty")]
    state: Annotated[str, Field(description=STATES)]
    reason: Annotated[str | None, Field(description="the node's own words for its state")]
    trouble: Annotated[bool, Field(description="somebody should have a look")]
    off: Annotated[bool, Field(description="switched off as usual")]
    gone: Annotated[bool, Field(description="off, and not heard of for a day")]
    retired: Annotated[bool, Field(description="put away by edge-watch retire")]
    heard: Annotated[int | None, Field(description="last sign of life, seconds of Unix time")]
    present: Annotated[bool, Field(description="its last reading speaks of now")]
    hidden: Annotated[str | None, Field(description="a suppressed small group, such as <5")]
    unseen: Annotated[str | None, Field(description="how the camera does, where nothing is seen")]
    counts: Annotated[
        Mapping[str, Amount] | None, Field(description="people by label, last window")
    ]
    clock_synced: bool | None
    waiting: Annotated[Amount | None, Field(description="readings in the node's outbox")]
    lost: Annotated[Amount | None, Field(description="readings that the node lost")]
    behind: Annotated[
        Mapping[str, Amount],
        Field(description="of outbox.recorders, who lacks readings that are minutes old: how many"),
    ]


class RoomNow(RoomFacts):
    """A room, as `/state` has it."""

    node: Annotated[str, Field(description="site/room/node")]
    heard_seconds: Annotated[Amount | None, Field(description="age of its last sign of life")]
    people: Annotated[float | None, Field(ge=0, description="average of the last window")]
    lesson: Annotated[
        Mapping[str, Amount], Field(description="person-seconds by label, 45 minutes")
    ]
    temperature: Annotated[float | None, Field(description="Celsius")]


class RoomWatched(RoomFacts):
    """A room, as `/snapshot` and `/events` have it: in the form that changes little."""

    people: Annotated[Amount | None, Field(description="average of the last window")]
    shares: Annotated[dict[str, Amount], Field(description="percent of a lesson by label")]
    temperature: Annotated[int | None, Field(description="Celsius")]


class SchoolFacts(TypedDict):
    """What is said of all rooms together."""

    broker: Annotated[str, Field(description="how the connection to the broker is, in words")]
    labels: Annotated[list[str], Field(description="expressions, in the order to show them")]
    hidden_rooms: Annotated[Amount, Field(description="rooms whose small group is suppressed")]
    online: Amount
    off: Amount
    gone: Amount
    retired: Amount
    refused: Annotated[dict[str, Amount], Field(description="messages not shown, by reason")]


class SchoolNow(TypedDict):
    """The sums of a school's rooms. Those that are off, gone or retired are counted there alone."""

    rooms: Annotated[Amount, Field(description="neither off, nor gone, nor retired")]
    online: Annotated[Amount, Field(description="of `rooms`")]
    people: Annotated[
        Amount | None, Field(description="in the rooms that show them; null where none does")
    ]
    hidden: Annotated[Amount, Field(description="rooms whose small group is suppressed")]
    trouble: Annotated[Amount, Field(description="of `rooms`: somebody should have a look")]
    unsynced: Annotated[Amount, Field(description="of `rooms`: their clock is not synchronised")]
    off: Amount
    gone: Amount
    retired: Amount


class State(SchoolFacts):
    """All rooms now, those that need a look first."""

    rooms: list[RoomNow]
    people: Annotated[float, Field(ge=0, description="in all rooms that show them")]


class Snapshot(SchoolFacts):
    """What a page watches: all rooms where they are few, else schools and the rooms of those opened."""

    rooms: Annotated[dict[str, RoomWatched], Field(description="by site/room/node")]
    schools: Annotated[
        dict[str, SchoolNow] | None, Field(description="by site; null where rooms are few")
    ]
    people: Amount
    now: Annotated[int, Field(description="the server's clock, seconds of Unix time")]
    whole: Annotated[bool, Field(description="true: replaces what is known")]


class Bar(TypedDict):
    """One step of a timeline."""

    time: Annotated[Moment, Field(description="when the step began, UTC")]
    counts: Annotated[
        dict[str, float] | None,
        Field(description="people by label on average; null where none were counted or all hidden"),
    ]
    hidden: Annotated[Share, Field(description="of the time, with suppressed small groups")]
    unseen: Annotated[Share, Field(description="of the time, with nothing seen")]


class Bars(TypedDict):
    """Steps of one place, the oldest first."""

    labels: list[str]
    minutes: list[Bar]


class Timeline(Bars):
    """A time of one place."""

    step_seconds: Annotated[int, Field(gt=0, description="length of a step")]
    part: Annotated[bool, Field(description="only the steps that changed since `after`")]
    change: Annotated[str, Field(description="`after` of the next question; empty where none is")]


class Buttons(TypedDict):
    """Whether this page has buttons, and for whom."""

    offered: Annotated[bool, Field(description="--control-password-file was given")]
    open: NotRequired[Annotated[bool, Field(description="this browser gave the password")]]
    token: NotRequired[Annotated[str, Field(description="for the header X-Control-Token")]]
    nodes: NotRequired[list[str]]


class Unlock(TypedDict):
    """Who wants to command."""

    who: Annotated[str, Field(min_length=1, description="for the log")]
    password: Annotated[str, Field(description="first line of --control-password-file")]


class Asked(TypedDict):
    """A command to nodes."""

    command: Name
    target: Annotated[str, Field(description="SITE/ROOM or SITE/ROOM/NODE, with * for any")]
    amount: NotRequired[
        Annotated[float | None, Field(description="minutes, seconds or people; what it takes")]
    ]


class NodeAnswer(TypedDict):
    """What became of a command at one node."""

    node: str
    outcome: Annotated[str, Field(description="done, refused, no answer")]
    text: Annotated[str, Field(description="the node's own words, or why there are none")]


class Answers(TypedDict):
    """What became of a command."""

    answers: list[NodeAnswer]


class Problem(TypedDict):
    """Why nothing was done."""

    error: str
