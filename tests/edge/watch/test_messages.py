"""What comes in as a message, what is refused and why, and how one reads in a line."""

from __future__ import annotations

import errno
import io
import json
from contextlib import redirect_stdout

import pytest

from edge.base.clock import rfc3339
from edge.base.errors import EdgeError
from edge.watch.lines import json_line, line
from edge.watch.messages import Refused, read
from edge.watch.run import MessageRouter
from support.heard import NODE, NOON, counts, heard, raw, small

SEVEN = {"mean": 6.0, "max": 7}
TEXT_SEQ = counts(1)[1].replace(b'"seq": 1', b'"seq": "1"')


def test_counts_suppressed_and_unseen_windows_read_differently() -> None:
    unseen = counts(3, faces=None, counts=None, person_seconds=None)
    assert line(heard(counts(1))) == f"12:00:10Z {NODE} counts 6 people  calm 4  glad 2"
    assert line(heard(small(2))) == f"12:00:20Z {NODE} counts <5 people: too few to count"
    assert line(heard(unseen)) == f"12:00:30Z {NODE} counts nothing seen (live)"
    assert line(heard(raw("health"))).endswith("30 frames/s, detector 8.5 ms, 51.5 C, 0 waiting")
    assert line(heard(raw("info"))).endswith("onnxruntime int8, window 10 s, groups of 5 or more")


def test_what_a_node_cannot_measure_is_left_out_of_its_health() -> None:
    """No machine but a board has a temperature of its own, and no video file a rate."""
    bare = raw("health", temperature_celsius=None, frames_per_second=None, stages={})
    assert line(heard(bare)).endswith(" health detector not timed, 0 waiting")
    file = raw("health", frames_per_second=None)
    assert line(heard(file)).endswith(" health detector 8.5 ms, 51.5 C, 0 waiting")


def test_the_will_has_no_time() -> None:
    will = json.dumps(
        {"schema": "edge.status/1", "node": NODE, "session": "s", "state": "lost"}
    ).encode()
    found = read(f"edge/v1/{NODE}/status", will)
    assert found is not None
    assert line(found) == f"--:--:-- {NODE} status lost"


def test_a_line_of_json_is_the_message_as_the_node_wrote_it() -> None:
    topic, content = counts(1)
    assert json.loads(json_line(topic, heard((topic, content)))) == {
        "topic": topic,
        "payload": json.loads(content),
    }


@pytest.mark.parametrize("kind", ["counts", "info"])
def test_what_a_node_wrote_before_it_said_how_it_counts_is_read(kind: str) -> None:
    topic, content = counts(1) if kind == "counts" else raw("info")
    said = json.loads(content)
    assert said["schema"] == f"edge.{kind}/2"
    for later in ("counting", "analyse_per_second"):
        said.pop(later, None)
    older = read(topic, json.dumps({**said, "schema": f"edge.{kind}/1"}).encode())
    newer = read(topic, content)
    assert older is not None
    assert newer is not None
    assert (older.payload.counting, newer.payload.counting) == (None, "expected")
    with pytest.raises(Refused, match="malformed"):
        read(topic, json.dumps({**said, "counting": "guessed"}).encode())


def test_health_of_version_0_1_0_is_read_with_what_it_did_not_say_at_its_default() -> None:
    topic, content = raw("health", schema="edge.health/2")
    said = json.loads(content)
    for later in ("log_begun", "outbox_unreadable"):
        del said[later]
    older = read(topic, json.dumps(said).encode())
    assert older == read(*raw("health"))


@pytest.mark.parametrize(
    ("topic", "content", "reason"),
    [
        ("edge/v1/a/b/status", b"{}", "topic of no node"),
        ("other/v1/a/b/c/status", b"{}", "topic of no node"),
        (f"edge/v1/{NODE}/picture", b"{}", "unknown kind"),
        (f"edge/v1/{NODE}/status", b"{", "no JSON"),
        (f"edge/v1/{NODE}/status", b"\xff\xfe", "no JSON"),
        (f"edge/v1/{NODE}/status", b"[" * 60_000, "no JSON"),
        (f"edge/v1/{NODE}/status", b"[]", "malformed status"),
        (f"edge/v1/{NODE}/status", b" " * 10_000_000, "too large"),
        (f"edge/v1/{NODE}/status", raw("status", schema="edge.status/2")[1], "another schema version"),
        (f"edge/v1/{NODE}/status", raw("status", schema="edge.counts/1")[1], "another schema"),
        (f"edge/v1/{NODE}/status", raw("status", schema=7)[1], "another schema"),
        (f"edge/v1/{NODE}/status", raw("status", node="a/b/c")[1], "another node's name"),
        (f"edge/v1/{NODE}/status", raw("status", state="fine")[1], "malformed status"),
        (f"edge/v1/{NODE}/status", raw("status", reason="a\0b")[1], "holds a null character"),
        (f"edge/v1/{NODE}/counts", counts(-1, start=NOON)[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(2**70, start=NOON)[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", TEXT_SEQ, "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, start=None, end="2026-13-45T00:00:00.000Z")[1],
         "a time that no calendar has"),
        (f"edge/v1/{NODE}/counts", counts(1, end="99999-01-01T00:00:00.000Z")[1],
         "a time that no calendar has"),
        (f"edge/v1/{NODE}/counts", counts(1, window_seconds=60.0)[1],
         "a window of another length than its times"),
        (f"edge/v1/{NODE}/counts", counts(1, min_group=2**70)[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, start=NOON, end=rfc3339(NOON.timestamp()),
                                          window_seconds=1e-310)[1], "a window without length"),
        (f"edge/v1/{NODE}/counts", counts(1, end=rfc3339(NOON.timestamp() - 0.004),
                                          window_seconds=0.004)[1], "a window without length"),
        (f"edge/v1/{NODE}/counts", counts(1, window_seconds=31_536_000.0)[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, counts={f"label {n}": 1 for n in range(1000)})[1],
         "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, faces={"mean": 8.1, "max": 8})[1],
         "a mean above the most"),
        (f"edge/v1/{NODE}/counts", counts(1, faces=SEVEN, counts={"calm": 5, "glad": 3})[1],
         "more people counted than were in view"),
        (f"edge/v1/{NODE}/counts", counts(1, faces=SEVEN, counts={"calm": 2**53 - 1})[1],
         "more people counted than were in view"),
        (f"edge/v1/{NODE}/counts", counts(1, faces=SEVEN, person_seconds={"calm": 40, "glad": 39})[1],
         "more people counted than were in view"),
        (f"edge/v1/{NODE}/counts", small(1, counts={"calm": 1})[1], "counts of a group that is hidden"),
        (f"edge/v1/{NODE}/counts", small(1, person_seconds={"calm": 1})[1],
         "counts of a group that is hidden"),
        (f"edge/v1/{NODE}/counts", small(1, faces=None, counts={"calm": 1})[1],
         "counts of a group that is hidden"),
        (f"edge/v1/{NODE}/counts", small(1, faces="[/x]")[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", small(1, faces="<6")[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, faces={"mean": 1.7e308, "max": 1})[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, window_seconds=float("nan"))[1], "malformed counts"),
        (f"edge/v1/{NODE}/counts", counts(1, counts={"x" * 100: 1})[1], "malformed counts"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_by_a_reason_to_count(
    topic: str, content: bytes, reason: str
) -> None:
    with pytest.raises(Refused) as caught:
        read(topic, content)
    assert str(caught.value) == reason


def test_what_a_clock_set_within_a_window_leaves_room_for_is_read() -> None:
    """Seven people for eleven seconds, rounded up: as much as a window of ten may hold."""
    message = counts(1, faces=SEVEN, counts={"calm": 7}, person_seconds={"calm": 78})
    assert read(*message) is not None


def test_what_is_not_for_a_watcher_is_passed_over() -> None:
    for kind in ("ack", "cmd/pause", "cmd/pause/result"):
        assert read(f"edge/v1/{NODE}/{kind}", b"anything") is None
    assert read(f"edge/v1/{NODE}/status", b"") is None, "a retained message that is taken back"


def test_a_message_cannot_steer_the_terminal() -> None:
    text = line(heard(raw("status", reason="\x1b[2Jonline\nfake\u202eline")))
    for character in "\x1b\n\u202e":
        assert character not in text


def test_a_line_that_no_disk_takes_is_one_error() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    message = heard(counts(1))
    with redirect_stdout(Full()), pytest.raises(EdgeError, match="stdout takes no line"):
        MessageRouter("json").show(f"edge/v1/{NODE}/counts", message)
