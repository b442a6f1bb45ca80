"""What a message and a log line may hold: nothing of one person, nothing of a small group."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.aggregate import Window
from edge.delivery.messages import MESSAGES, counts_message, schema_of
from edge.records import COUNTINGS, Counting, Expression, Frame, Life, Tick
from support.command import Done
from support.paths import PICTURES

LABELS = ("calm", "glad", "sad")
PIXELS = np.zeros((2, 2, 3), np.uint8)
# Probabilities of who looks most like one label or another: hardly, clearly, or by a hair.
SHARES = np.array([[0.6, 0.3, 0.1], [0.02, 0.97, 0.01], [0.33, 0.33, 0.34]], dtype=np.float32)
# Every field of every message. Who adds one says here that it tells nothing of one person.
FIELDS = {
    "counts": "schema node log seq start end window_seconds time_base clock_synced historical "
    "min_group min_cell counting faces counts person_seconds quality mean max seen frames dropped "
    "low_confidence camera",
    "status": "schema node session state reason n time clock_synced",
    "info": "schema node session n time clock_synced versions model detector camera window_seconds "
    "counting analyse_per_second privacy bundle_sha256 labels backend precision engine fallback "
    "min_group min_cell legal_basis",
    "health": "schema node session n time clock_synced uptime_seconds camera frames_per_second stages "
    "log backend fallback temperature_celsius throttled pace power_mode memory_mib outbox_pending "
    "outbox_dropped outbox_unreadable outbox_first outbox_damaged log_begun certificate_expires update "
    # unmoved_faces: a bit that changes only beside a published group, by who sits still for minutes.
    # recorders_behind: names of recorders from node.yaml, and how many readings each lacks.
    "unmoved_faces recorders_behind p50_ms p95_ms",
    "ack": "schema node log seq recorder",
    "command": "schema node id expires arguments",
    "result": "schema node session n time clock_synced id name ok text",
}


def fields(schema: Any) -> set[str]:
    """Names of all properties, also of nested models."""
    if isinstance(schema, list):
        return set().union(*map(fields, schema))
    if not isinstance(schema, dict):
        return set()
    own = set(schema.get("properties", {}))
    return own.union(*(fields(part) for part in schema.values()))


@pytest.mark.parametrize("message", MESSAGES)
def test_every_field_of_every_message_was_thought_of(message: type) -> None:
    assert fields(schema_of(message)) == set(FIELDS[message.__name__.lower()].split())


def reading(
    people: list[list[int | None]],
    group: int,
    cell: int,
    counting: Counting,
    wall: Sequence[int | None] = (),
) -> dict[str, Any]:
    """The message of a window of ten seconds, a picture a second with these people, and photographs of
    others on the wall."""
    window = Window(LABELS, 10.0, group, cell, file_start=0.0, counting=counting)
    for second, labels in enumerate(people):
        shown = []
        for number, label in enumerate(labels):
            p = None if label is None else SHARES[label]
            shown.append(Expression(number, p, Life.ALIVE))
        for number, label in enumerate(wall, start=100):
            p = None if label is None else SHARES[label]
            shown.append(Expression(number, p, Life.STILL if number % 2 else Life.UNPROVEN))
        window.add(Frame(PIXELS, float(second), float(second), dropped=len(labels)), shown)
    (closed,) = window.tick(Tick(10.0, 10.0))
    return {
        **counts_message(closed, "a/b/c", group, cell, "file", window.counting),
        "clock_synced": None,
    }


label = st.sampled_from([0, 1, 2, None])
countings = st.sampled_from(COUNTINGS)
rooms = st.lists(st.lists(label, max_size=9), min_size=10, max_size=10)


@given(rooms, rooms, st.integers(2, 7), st.integers(1, 4), countings)
def test_all_windows_of_a_small_group_are_the_same_message(
    one: list[list[int | None]],
    other: list[list[int | None]],
    group: int,
    cell: int,
    counting: Counting,
) -> None:
    """To the byte: whatever differed would tell something of fewer than the group."""
    cell = min(cell, group)
    one[3], other[7] = one[3][: group - 1], other[7][: group - 1]
    message = reading(one, group, cell, counting)
    assert message == reading(other, group, cell, counting)
    assert message["faces"] == f"<{group}"
    assert message["counts"] is message["person_seconds"] is None


@given(rooms, st.integers(2, 6), st.integers(2, 4), countings)
def test_no_cell_of_a_published_window_is_of_one_person(
    people: list[list[int | None]], group: int, cell: int, counting: Counting
) -> None:
    cell = min(cell, group)
    people = [(row + [0] * group)[: max(len(row), group)] for row in people]
    message = reading(people, group, cell, counting)
    assert set(message["counts"]) == {*LABELS, "unclassified", "other"}
    assert not [n for n in message["counts"].values() if 0 < n < cell]
    assert sum(message["counts"].values()) == int(message["faces"]["mean"] + 0.5 + 1e-9)
    # What holds for counts holds for times: a cell that is not shown has none, `other` is no exception.
    hidden = [name for name, count in message["counts"].items() if not count]
    assert all(message["person_seconds"][name] == 0 for name in hidden)
    total = 10 * message["faces"]["mean"]
    assert sum(message["person_seconds"].values()) == pytest.approx(total, abs=0.6)


@given(
    rooms,
    st.lists(label, min_size=1, max_size=12),
    st.integers(2, 6),
    st.integers(1, 4),
    countings,
)
def test_photographs_on_the_wall_change_no_byte(
    people: list[list[int | None]],
    wall: list[int | None],
    group: int,
    cell: int,
    counting: Counting,
) -> None:
    cell = min(cell, group)
    assert reading(people, group, cell, counting, wall) == reading(people, group, cell, counting)


def test_the_log_is_the_same_for_one_person_and_for_nine(
    process_command: Callable[..., Done], clip_run: Callable[..., Done], tmp_path: Path
) -> None:
    shutil.copy(PICTURES / "portrait-1.jpg", tmp_path / "one.jpg")
    one = process_command("edge.run", "--camera", tmp_path, "--broker", "-", "--window", 5)
    logs = []
    for done in (one, clip_run("--window", 5)):
        assert done.code == 0
        # Of no person: a clip has one size for the detector, a folder's pictures each their own; and
        # one picture is no whole window.
        other = ("info detector at", "warning no whole window")
        lines = [line for line in done.err.splitlines() if not line.startswith(other)]
        logs.append([re.sub(r"\d+", "N", line) for line in lines])
    assert logs[0] == logs[1]
