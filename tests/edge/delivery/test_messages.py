from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Literal

import jsonschema
import pytest

from edge.base.clock import clock_synced, parse_rfc3339, rfc3339
from edge.delivery.messages import MESSAGES, as_sent, counts_message, dumps, schema_of
from edge.delivery.schemas import published
from edge.records import Reading
from support.paths import ROOT

SCHEMAS = ROOT / "edge" / "schemas"


def reading(**changes: object) -> Reading:
    values: dict[str, object] = {
        "start": 1_700_000_000.0,
        "end": 1_700_000_010.0,
        "faces_mean": 5.5,
        "faces_max": 7,
        "counts": {"calm": 4, "glad": 2, "unclassified": 0},
        "person_seconds": {"calm": 40, "glad": 15, "unclassified": 0},
        "suppressed": False,
        "seen": 1.0,
        "frames": 300,
        "dropped": 0,
        "low_confidence": 0.1,
        "camera": "live",
        **changes,
    }
    return Reading(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("message", MESSAGES)
def test_checked_in_schemas_are_the_codes_own(message: type) -> None:
    """Regenerate with `make schemas`; a changed contract needs a new version in `schema`."""
    stored = json.loads((SCHEMAS / f"{message.__name__.lower()}.json").read_text())
    assert stored == published(message)
    jsonschema.Draft202012Validator.check_schema(stored)


def validator(kind: str) -> jsonschema.Draft202012Validator:
    """By the strict form: what this release writes, and not a field more."""
    (message,) = (m for m in MESSAGES if m.__name__.lower() == kind)
    return jsonschema.Draft202012Validator(schema_of(message))


def test_published_suppressed_and_unseen_readings_are_valid_and_say_what_they_mean() -> None:
    shown = counts_message(reading(), "a/b/c", 5, 2, "utc", "dominant")
    hidden = counts_message(
        reading(suppressed=True, counts=None, person_seconds=None, low_confidence=None),
        "a/b/c",
        5,
        2,
        "utc",
        "expected",
    )
    unseen = counts_message(
        reading(faces_mean=None, faces_max=None, counts=None, person_seconds=None, seen=0.0),
        "a/b/c",
        5,
        2,
        "utc",
        "expected",
    )
    for message in (shown, hidden, unseen):
        validator("counts").validate({**message, "log": "x", "seq": 3})
    assert shown["faces"] == {"mean": 5.5, "max": 7}
    assert hidden["faces"] == "<5"
    assert hidden["counts"] is None
    assert unseen["faces"] is None
    assert list(shown)[:5] == ["schema", "node", "log", "seq", "start"]


def test_schemas_refuse_what_is_not_in_the_contract() -> None:
    message = {**counts_message(reading(), "a/b/c", 5, 2, "utc", "dominant"), "log": "x", "seq": 1}
    for wrong in ({"face_id": 3}, {"node": "../x"}, {"start": "yesterday"}, {"seq": 0}):
        assert not validator("counts").is_valid({**message, **wrong})


def test_times_are_rfc3339_on_both_sides_of_1970_and_beyond_2038() -> None:
    assert rfc3339(0.0004) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(-0.5) == "1969-12-31T23:59:59.500Z"
    assert rfc3339(1_700_000_000.9996) == "2023-11-14T22:13:21.000Z"
    assert rfc3339(4_000_000_000) == "2096-10-02T07:06:40.000Z"


def test_times_are_read_as_they_were_written() -> None:
    assert parse_rfc3339("2096-10-02T07:06:40.250Z").timestamp() == 4_000_000_000.25
    for other in (
        *("2096-10-02T07:06:40", "2096-10-02T07:06:40.250", "2096-10-02T07:06:40.250+02:00Z"),
        *("2096-W40-2T07:06:40.250Z", "2096-10-02 07:06:40.250Z", "2096-10-02T07:06:40,250Z"),
        *("20961-10-02T07:06:40.250Z", "٢٠٩٦-10-02T07:06:40.250Z", ""),
    ):
        with pytest.raises(ValueError, match="does not match"):
            parse_rfc3339(other)
    for impossible in (
        "2096-02-30T07:06:40.250Z",
        "2096-10-02T24:06:40.250Z",
        "2096-10-02T07:06:60.250Z",
    ):
        with pytest.raises(ValueError, match=r"must be in|out of range"):
            parse_rfc3339(impossible)


@pytest.mark.parametrize(
    ("base", "late", "historical"),
    [("utc", 9.9, False), ("utc", 10.1, True), ("file", 9.9, False), ("file", 1e6, False)],
)
def test_what_goes_out_a_window_late_is_historical_and_what_a_file_showed_is_not(
    base: Literal["utc", "file"], late: float, historical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the machine: a file's time is its own, and no clock's."""
    counted = counts_message(reading(), "a/b/c", 5, 2, base, "expected")
    now = datetime.fromtimestamp(reading().end, timezone.utc) + timedelta(seconds=late)
    monkeypatch.setattr("edge.delivery.messages.utc_now", lambda: now)
    assert as_sent(counted).payload["historical"] is historical


def test_messages_are_one_line_of_strict_json() -> None:
    assert dumps({"a": "ü\n"}) == '{"a":"ü\\n"}'
    with pytest.raises(ValueError, match="Out of range"):
        dumps({"a": float("nan")})


def test_clock_synced_answers_or_says_that_it_does_not_know() -> None:
    assert clock_synced() in (True, False, None)
