"""Messages of every kind with fields as no node would send them, for whatever hears nodes.

    for topic, raw in mutated(20_000):
        ...

Each field of each schema has its turn, again and again: some messages are refused, many are valid and
absurd. The same seed gives the same messages.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from support.heard import LOG, NOON, counts, raw, small

ROOMS = [f"school/room-{n}/node-1" for n in range(1, 5)]
NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 1000, 2**31, 2**53 - 1, 2**53, 2**63, 2**70, 10**300, 10**4000),
    *(0.0, -0.0, 0.5, 5e-324, 1e-310, 0.0001, 3600.0, 31_536_000.0, 1e6, 1.7e308, -1.7e308),
    *(float("inf"), float("nan")),
]  # fmt: skip
TEXTS = [
    *("", " ", "0", "1", "None", "nan", "<5", "<0", "<1000", "online", "lost", "stopped", "degraded"),
    *("[/x]", "[bold]", "[link=http://evil/]click", "[", "]", "\\[/x]", "{x}", "%s%n", "%{x}"),
    *("<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "&lt;", "javascript:alert(1)"),
    *("__proto__", "constructor", "toString", "hasOwnProperty", "length", "node", "total"),
    *("\0", "\x1b[2J", "\x1b]0;x\x07", "a\nb", "\r", "\t", "\u202eabc", "\ufeff", "\ud800", "\u2028"),
    *("é", "ß", "教室", "😀" * 16, "a" * 64, "a" * 65, "a" * 60_000, "'; DROP TABLE counts; --"),
    *("../../etc/passwd", "a/b/c", "#", "+", "$SYS/x", LOG, f"{LOG}~00000000"),
]  # fmt: skip
TIMES = [
    *("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z", "99999-01-01T00:00:00.000Z"),
    *("0000-00-00T00:00:00.000Z", "1969-12-31T23:59:59.999Z", "2026-02-30T12:00:00.000Z"),
    *("2026-11-25T24:00:00.000Z", "2026-11-25T12:00:60.000Z", "2026-11-25T12:00:00Z"),
    *("2026-11-25T12:00:00.000+01:00", "2038-01-19T03:14:08.000Z", "٢٠٢٦-11-25T12:00:00.000Z"),
]
SHAPES: list[Any] = [
    *(None, True, False, [], {}, [[]], [None] * 1000, {"": ""}, {"a": {"a": {"a": {}}}}),
    {f"label {n}": 2 for n in range(64)},
    {f"label {n}": 2 for n in range(1000)},
    *(dict.fromkeys(TEXTS[start:start + 30], 2 ** 53 - 1) for start in (0, 15, 30)),
    {"calm": -1}, {"calm": None}, {"calm": 0.5}, {"calm": 2**53}, {"p50_ms": 1e308, "p95_ms": -1.0},
    {"mean": 1e6, "max": 1_000_000}, {"mean": 0.0, "max": 0}, {"mean": -1.0, "max": 1},
]  # fmt: skip
ALL = [NUMBERS, TEXTS, TIMES, SHAPES]
# Windows that are consistent in themselves: when one begins, and how long it is.
BEGINNINGS = [
    datetime(1, 1, 1), datetime(1969, 12, 31, 23), datetime(1970, 1, 1), datetime(2026, 11, 25, 12),
    datetime(2038, 1, 19, 3), datetime(2262, 4, 12), datetime(9999, 12, 31, 22, 59, 59),
]  # fmt: skip
LENGTHS = [1e-310, 0.001, 0.004, 0.1, 1.0, 10.0, 59.999, 3600.0]


@functools.cache
def bases() -> dict[str, list[dict[str, Any]]]:
    """Whole messages by kind, to change."""
    said = {"schema": "edge.%s/1", "node": ROOMS[0], "id": "a-1"}
    stamp = {"session": "s-1", "n": 1, "time": "2026-11-25T12:00:00.000Z", "clock_synced": True}
    unseen = counts(1, faces=None, counts=None, person_seconds=None)
    return {
        "counts": [json.loads(message[1]) for message in (counts(1), small(1), unseen)],
        "status": [json.loads(raw("status", state="degraded", reason="camera away")[1])],
        **{kind: [json.loads(raw(kind)[1])] for kind in ("info", "health")},
        "ack": [{"schema": "edge.ack/1", "node": ROOMS[0], "log": LOG, "seq": 1,
                 "recorder": "school"}],
        "cmd/pause": [{**said, "schema": "edge.cmd/1", "expires": stamp["time"],
                       "arguments": {"seconds": 600.0}}],
        "cmd/pause/result": [{**said, **stamp, "schema": "edge.cmd-result/1", "name": "pause",
                              "ok": True, "text": "done"}],
    }  # fmt: skip


@functools.cache
def fields(kind: str) -> list[tuple[Any, ...]]:
    """The way to every field of a kind's messages, at any depth."""

    def ways(value: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if way:
            yield way
        inner = value.items() if isinstance(value, dict) else ()
        for key, below in itertools.chain(inner, enumerate(value if type(value) is list else ())):
            yield from ways(below, (*way, key))

    return list(dict.fromkeys(way for base in bases()[kind] for way in ways(base, ())))


def mutated(number: int, seed: int = 0, only: Iterable[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield so many messages as topic and bytes. only: these kinds, as the topic's end names them."""
    rng = random.Random(seed)
    kinds = {k: [json.dumps(base) for base in bases()[k]] for k in only or bases()}
    turns = {kind: itertools.cycle(fields(kind)) for kind in kinds}
    for kind in itertools.islice(itertools.cycle(kinds), number):
        way = next(turns[kind])
        message = json.loads(rng.choice(kinds[kind]))
        node = message["node"] = rng.choice(ROOMS)
        if kind == "counts":
            message["seq"] = rng.choice([rng.randint(1, 300), 2**53 - 1])
            _move(message, rng)
        _change(message, way, rng)
        if rng.random() < 0.2:
            _change(message, rng.choice(fields(kind)), rng)
        text = json.dumps(message, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        if rng.random() < 0.03:
            text = text[: rng.randrange(len(text))] + rng.randbytes(rng.randrange(20))
        yield f"edge/v1/{node}/{kind}", text


def _move(message: dict[str, Any], rng: random.Random) -> None:
    """Give a window of counts another time, and its length for it."""
    seconds = rng.choice(LENGTHS)
    start = NOON + timedelta(seconds=10 * message["seq"]) if message["seq"] < 300 else NOON
    if rng.random() < 0.5:
        start = rng.choice(BEGINNINGS).replace(tzinfo=timezone.utc)
    message |= {"start": _stamp(start), "end": _stamp(start + timedelta(seconds=seconds))}
    message["window_seconds"] = seconds


def _stamp(moment: datetime) -> str:
    # `strftime` gives a year below 1000 fewer digits on some systems.
    return f"{moment.isoformat(timespec='milliseconds')[:23]}Z"


def _change(message: dict[str, Any], way: tuple[Any, ...], rng: random.Random) -> None:
    """Replace, remove or rename one field, or put another beside it."""
    *before, last = way
    place: Any = message
    try:
        for key in before:
            place = place[key]
        place[last]
    except (KeyError, IndexError, TypeError):
        return  # this message of its kind has no such part, or an earlier change took it
    if isinstance(place, str):
        return
    what = rng.random()
    if what < 0.05:
        del place[last]
    elif what < 0.1 and isinstance(place, dict):
        place[rng.choice(TEXTS)] = rng.choice(NUMBERS)
    elif what < 0.15 and isinstance(place, dict):
        place[rng.choice(TEXTS)] = place.pop(last)
    else:
        place[last] = rng.choice(_like(place[last]) if rng.random() < 0.7 else rng.choice(ALL))


def _like(value: object) -> list[Any]:
    """Values of the same type, which a schema is more likely to take."""
    if isinstance(value, str):
        return TIMES if value.endswith("Z") else TEXTS
    return NUMBERS if isinstance(value, int | float) else SHAPES
