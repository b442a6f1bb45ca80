"""What is known of the rooms, in the table and as the page's data."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from rich.console import Console

from edge.base.clock import utc_now
from edge.watch import view
from edge.watch.rooms import MOST_NODES, REMEMBERED, Rooms
from edge.watch.run import MessageRouter, remember
from edge.watch.store import Store
from edge.watch.terminal import ago, render, rows
from support.heard import LOG, NODE, NOON, counts, heard, raw, small
from support.patience import PATIENCE

SECOND = timedelta(seconds=1)


def shown(rooms: Rooms, now: object = NOON, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(rooms, "connected: mqtt://x", now, height))
    return console.export_text().splitlines()


def test_a_table_of_80_columns_tells_room_status_people_and_when() -> None:
    rooms = Rooms()
    rooms.hear(heard(raw("status")), NOON)
    rooms.hear(heard(counts(1)), NOON)
    rooms.hear(heard(raw("health", outbox_pending=3, recorders_behind={})), NOON)
    rooms.hear(heard(raw("status", "school/room-2/node-1", state="lost")), NOON)
    rooms.hear(heard(small(1, "school/room-3/node-1")), NOON)
    text = shown(rooms, NOON + 5 * SECOND)
    assert all(len(line) <= 80 for line in text)
    assert text[1].split() == ["school/room-1/node-1", "online", "6.0", "4", "calm,", "2", "glad",
                               "5s", "52", "3", "0"]  # fmt: skip
    assert "lost" in text[2]
    assert "<5" in text[3]
    assert "hidden" in text[3]
    assert text[-1].startswith("connected: mqtt://x; 3 nodes, 5 messages")


def test_what_does_not_fit_is_counted() -> None:
    rooms = Rooms()
    for i in range(40):
        rooms.hear(heard(raw("status", f"school/room-{i:02}/node-1")), NOON)
    text = shown(rooms, height=24)
    assert len(text) <= 24
    assert text[-1].startswith("and 20 nodes more")


def test_a_node_that_says_online_and_counts_nothing_is_silent() -> None:
    rooms = Rooms()
    rooms.hear(heard(raw("status")), NOON)
    rooms.hear(heard(counts(1)), NOON)
    assert rows(rooms, NOON + 29 * SECOND)[0][1] == "online"
    assert rows(rooms, NOON + 31 * SECOND)[0][1] == "silent"
    rooms.hear(heard(raw("health")), NOON + 31 * SECOND)
    rooms.hear(heard(raw("status")), NOON + 32 * SECOND, retained=True)
    assert rows(rooms, NOON + 33 * SECOND)[0][1] == "silent", "health is no reading"
    assert rows(rooms, NOON + 33 * SECOND)[0][4] == "2s", "and what is retained was said before"
    assert rows(rooms, NOON + 33 * SECOND)[0][2] == "-", "nor does the last speak of now"
    rooms.hear(heard(raw("status", state="stopped")), NOON + 33 * SECOND)
    assert rows(rooms, NOON + 41 * SECOND)[0][1] == "stopped"
    assert rows(rooms, NOON + 41 * SECOND)[0][4] == "10s", "its will is no sign of life"


def test_a_node_that_stopped_sees_nobody_from_then_on() -> None:
    for said in ("stopped", "lost"):
        rooms = Rooms()
        rooms.hear(heard(raw("status")), NOON)
        rooms.hear(heard(counts(1)), NOON)
        assert view.state(rooms, "", NOON + SECOND)["people"] == 6.0
        rooms.hear(heard(raw("status", state=said)), NOON + 2 * SECOND)
        assert view.state(rooms, "", NOON + 3 * SECOND)["people"] == 0
        assert rows(rooms, NOON + 3 * SECOND)[0][2] == "-"


def test_a_reading_counts_once_and_a_late_one_in_its_own_minute() -> None:
    rooms = Rooms()
    for _ in range(3):
        rooms.hear(heard(counts(100)), NOON + 1000 * SECOND)
    rooms.hear(heard(counts(1, historical=True)), NOON + 1000 * SECOND)
    assert rows(rooms, NOON)[0][2] == "6.0"
    room = rooms.rooms[NODE]
    assert room.shown is not None
    assert room.shown.seq == 100, "the newest is shown"
    minutes = rooms.minutes.of(NODE)
    assert [at - NOON for at in sorted(minutes)] == [0 * SECOND, 960 * SECOND]
    assert [m.by_label["calm"] for m in minutes.values()] == [40, 40]
    for seq in range(2, REMEMBERED + 50):
        rooms.hear(heard(counts(seq)), NOON + 5000 * SECOND)
    assert len(rooms.seen[NODE]) == REMEMBERED


def test_a_number_that_is_given_twice_is_two_readings() -> None:
    rooms, now = Rooms(), NOON + 3000 * SECOND
    for seq in range(1, 21):
        rooms.hear(heard(counts(seq)), now)
    later = NOON + 2400 * SECOND
    again = {"calm": 9, "glad": 0, "unclassified": 0, "other": 0}
    for _ in range(2):
        rooms.hear(heard(counts(7, start=later, faces={"mean": 9.0, "max": 9}, counts=again)), now)
    assert rooms.minutes.of(NODE)[later].by_label["calm"] == 40, "in the timeline too, and once"
    assert rows(rooms, now)[0][2:4] == ("9.0", "9 calm"), "and what is seen now is shown now"


def test_a_clock_in_1970_is_shown_and_kept_out_of_the_timeline() -> None:
    rooms = Rooms()
    rooms.hear(heard(counts(1, start=NOON.replace(year=1970), clock_synced=False)), NOON)
    assert view.timeline(rooms, None, NOON)["minutes"] == []
    assert view.state(rooms, "", NOON)["rooms"][0]["clock_synced"] is False


def test_a_flood_of_names_is_bounded() -> None:
    rooms = Rooms()
    one = heard(raw("status"))
    for i in range(MOST_NODES + 10):
        rooms.rooms.setdefault(f"a/b/{i}", None)  # type: ignore[arg-type]
    rooms.hear(one, NOON)
    assert NODE not in rooms.rooms
    assert rooms.refused["too many nodes"] == 1


def test_the_pages_data_show_gaps_small_groups_and_the_lesson() -> None:
    rooms = Rooms()
    now = NOON + 600 * SECOND
    for seq in (1, 2, 3, 4, 5, 6):
        rooms.hear(heard(counts(seq)), now)
        rooms.hear(heard(counts(seq, "school/room-2/node-1")), now)
    for seq in range(19, 25):
        rooms.hear(heard(small(seq)), now)
    found = view.timeline(rooms, None, now)
    assert found["labels"] == ["calm", "glad", "unclassified", "other"], "also after a small group"
    first, gap, _, last = found["minutes"]
    assert first["counts"] == {"calm": 8.0, "glad": 4.0, "unclassified": 0.0, "other": 0.0}
    assert gap["counts"] is None
    assert (last["hidden"], last["counts"]) == (1.0, None), "hidden is not nobody"
    one = view.timeline(rooms, "school/room-2/node-1", now)
    assert one["minutes"][0]["counts"]["calm"] == 4.0
    assert len(one["minutes"]) == 1
    state = view.state(rooms, "", now)
    assert [r["hidden"] for r in state["rooms"]] == ["<5", None]
    assert state["rooms"][0]["lesson"]["calm"] == 240
    assert state["hidden_rooms"] == 1


def test_a_room_that_is_gone_is_in_no_sum_and_blanks_no_timeline() -> None:
    rooms, later = Rooms(), NOON + timedelta(hours=6, seconds=42)
    rooms.hear(heard(counts(1)), NOON)
    start = (later - timedelta(minutes=1)).replace(second=0)
    rooms.hear(heard(counts(1, "school/room-2/node-1", start)), later)
    state = view.state(rooms, "", later)
    assert state["people"] == 6.0
    assert {room["node"]: room["present"] for room in state["rooms"]} == {
        NODE: False,
        "school/room-2/node-1": True,
    }
    found = view.timeline(rooms, None, later)["minutes"]
    assert found[-1]["counts"]["calm"] == 4.0
    assert len(found) <= 242


def test_made_up_labels_are_bounded() -> None:
    rooms = Rooms()
    for seq in range(1, 60):
        cells = {f"label-{seq}-{i}": 1 for i in range(60)}
        rooms.hear(heard(counts(seq, counts=cells, person_seconds=cells)), NOON + 600 * SECOND)
    assert len(rooms.labels) <= 40
    assert all(len(m.by_label) <= 40 for m in rooms.minutes.of(NODE).values())


def test_what_was_recorded_before_counts_like_what_comes() -> None:
    rooms, now = Rooms(), NOON + 60 * SECOND
    row = {
        "node": NODE, "log": LOG, "seq": 1, "start": NOON, "end": NOON + 10 * SECOND, "received": NOON,
        "faces_mean": 6.0, "suppressed": False, "person_seconds": {"calm": 40},
    }  # fmt: skip
    rooms.remember(row, now)
    rooms.hear(heard(counts(1)), now)
    assert rooms.minutes.of(NODE)[NOON].by_label["calm"] == 40, "once, though it came twice"


def test_ago() -> None:
    for seconds, text in ((0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")):
        assert ago(NOON, NOON + seconds * SECOND) == text


def test_hours_that_were_recorded_are_read_beside_what_comes(tmp_path: Path) -> None:
    now = utc_now().replace(microsecond=0)
    store, router = Store(str(tmp_path / "x.sqlite")), MessageRouter("")
    store.migrate()
    begin = now - 200 * 60 * SECOND
    stored = [heard(counts(n + 1, start=begin + 10 * n * SECOND)) for n in range(REMEMBERED * 2)]
    store.write(stored, now)
    live = stored[-20:]
    for message in live:  # as the broker sends again what was not acknowledged
        router.rooms.hear(message, now)
    thread = remember(router, store)
    assert thread is not None
    thread.join(PATIENCE)
    for message in live:
        router.rooms.hear(message, now)
    store.close()
    minutes = router.rooms.minutes.of(NODE)
    assert sum(m.by_label["calm"] for m in minutes.values()) == 40 * len(stored), "each once"
    assert len(router.rooms.seen[NODE]) == REMEMBERED


def test_who_lacks_a_rooms_readings_is_told_until_it_has_them() -> None:
    rooms, more = Rooms(), "school/room-2/node-1"
    for node in (NODE, more):
        rooms.hear(heard(counts(1, node)), NOON)
    rooms.hear(heard(raw("health", recorders_behind={})), NOON)
    assert "lack" not in shown(rooms)[0], "the names have its place"
    rooms.hear(heard(raw("health", recorders_behind={"north": 1, "district": 12_345})), NOON)
    rooms.hear(heard(raw("health", more, recorders_behind={"district": 7})), NOON)
    text = shown(rooms, width=160)
    assert all(len(line) <= 80 for line in shown(rooms))
    assert text[0].split()[-2:] == ["lost", "lack"]
    assert [line.split()[-1] for line in text[1:3]] == ["12k", "7"]
    assert (
        text[-1]
        .strip()
        .endswith("; recorder district lacks readings of 2; recorder north lacks readings of 1")
    )
    lacks = {room["node"]: room["behind"] for room in view.state(rooms, "", NOON)["rooms"]}
    assert lacks == {NODE: {"district": 12_345, "north": 1}, more: {"district": 7}}
    rooms.hear(heard(raw("health", more, recorders_behind={})), NOON)
    assert [cells[-1] for cells in rows(rooms, NOON)] == ["12k", ""]
    rooms.hear(heard(raw("health", recorders_behind={})), NOON)
    assert "lack" not in shown(rooms)[0] + shown(rooms)[-1]
