from __future__ import annotations

import json

from edge.watch.terminal import line

NODE = "school/room-1/node-1"


def message(kind: str, **content: object) -> tuple[str, bytes]:
    payload = {"schema": f"edge.{kind}/1", "node": NODE, **content}
    return f"edge/v1/{NODE}/{kind}", json.dumps(payload).encode()


def test_counts_suppressed_and_unseen_windows_read_differently() -> None:
    end = "2026-01-02T10:11:12.000Z"
    shown = message("counts", end=end, faces={"mean": 5.5, "max": 6}, counts={"calm": 4, "sad": 0})
    hidden = message("counts", end=end, faces="<5", counts=None)
    unseen = message("counts", end=end, faces=None, counts=None, quality={"camera": "away"})
    assert line(*shown, False) == f"10:11:12 {NODE} counts 5.5 people  calm 4"
    assert line(*hidden, False) == f"10:11:12 {NODE} counts <5 people: too few to count"
    assert line(*unseen, False) == f"10:11:12 {NODE} counts nothing seen (away)"


def test_status_without_time_is_shown() -> None:
    assert line(*message("status", state="lost"), False) == f"--:--:-- {NODE} status lost"


def test_what_is_not_ours_is_passed_over() -> None:
    topic, good = message("status", state="online")
    assert line("edge/v1/a/b/status", good, False) is None
    assert line("edge/v1/other/room-1/node-1/status", good, False) is None, "lies about its name"
    assert line(topic, b"{", False) is None
    assert line(topic, b"[]", False) is None
    assert line(topic, b"[" * 60_000, False) is None
    assert line(topic, b"\xff\xfe", False) is None
    assert line(topic, b" " * 100_000, False) is None
    assert line(topic, good.replace(b"edge.status/1", b"edge.counts/1"), False) is None
    assert line(*message("info", privacy=3), False) is None


def test_a_message_cannot_steer_the_terminal() -> None:
    text = line(*message("status", state="\x1b[2Jonline\nfake\u202eline\ud800"), False)
    assert text is not None
    assert text.encode()
    for character in "\x1b\n\u202e\ud800":
        assert character not in text
