"""When a node may look, which zones it never does, and clocks that cannot be right."""

from __future__ import annotations

import sys
import zoneinfo
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from edge.base.clock import EARLIEST, LATEST, plausible
from edge.base.errors import SettingsError
from edge.base.schedule import Hours, Schedule, find_zone, parse, read
from edge.base.strict_yaml import validate
from edge.delivery.messages import Outgoing
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.pipeline import cover
from edge.settings import Broker, Settings
from support.clock import Clock


def open_now(hours: list[Hours], utc: float) -> bool:
    return Schedule(tuple(hours)).open_at(utc)


def local(day: int, hour: int, minute: int = 0) -> float:
    """November 2026: the 23rd is a Monday."""
    return datetime(2026, 11, day, hour, minute).timestamp()


def test_school_hours_hold_on_school_days() -> None:
    hours = [parse("mon-fri 08:00-16:00"), parse("Sat 09:00-12:30")]
    assert open_now(hours, local(23, 8))
    assert not open_now(hours, local(23, 7, 59))
    assert not open_now(hours, local(23, 16)), "the end is outside"
    assert open_now(hours, local(28, 12, 29))
    assert not open_now(hours, local(29, 10))
    assert open_now([parse("fri-mon 00:00-24:00")], local(29, 10)), "over the week's end"
    assert not open_now([parse("fri-mon 00:00-24:00")], local(24, 10))
    assert open_now([], local(29, 3)), "none are given: always"


def test_a_node_that_does_not_know_the_time_does_not_look() -> None:
    always = [parse("mon-sun 00:00-24:00")]
    assert open_now(always, EARLIEST + 1)
    assert not open_now(always, 3600.0)
    assert not open_now(always, LATEST + 86400)
    assert plausible(datetime(2030, 1, 1, tzinfo=timezone.utc).timestamp())


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def test_hours_follow_their_zone_and_not_the_machines() -> None:
    auckland = read(["mon-fri 08:00-16:00"], "Pacific/Auckland")  # 13 hours before UTC
    assert auckland.open_at(utc("2026-11-29T19:00")), "Monday, 8 o'clock there"
    assert not auckland.open_at(utc("2026-11-29T18:59"))
    assert not auckland.open_at(utc("2026-11-30T08:00")), "open by UTC, and night there"
    assert auckland.local(utc("2026-11-29T19:00")).strftime("%a %H:%M %Z") == "Mon 08:00 NZDT"


def test_hours_hold_on_the_days_on_which_clocks_change() -> None:
    lessons = read(["sun 01:30-03:30"], "Europe/Berlin")
    # 2027-03-28: 02:00 becomes 03:00, so two hours on the clock are one.
    spring = [lessons.open_at(utc(f"2027-03-28T0{h}:{m}")) for h in (0, 1) for m in (29, 30)]
    assert spring == [False, True, True, False]
    # 2027-10-31: 03:00 becomes 02:00, so the hour from 02:00 is open twice.
    autumn = [utc("2027-10-30T23:29") + 60 * minute for minute in range(183)]
    assert sum(map(lessons.open_at, autumn)) == 180


@pytest.mark.parametrize("name", ["Europe/Berln", "europe/berlin"])
def test_an_unknown_zone_is_a_line_with_the_nearest(name: str) -> None:
    with pytest.raises(SettingsError, match="did you mean 'Europe/Berlin'") as caught:
        validate(Settings, {"privacy": {"zone": name}}, "node.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "/etc/localtime", "../../etc/passwd", "Europe", "CET-1CEST"])
def test_what_is_no_zone_name_is_a_line(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone of the IANA database"):
        find_zone(name)


def test_a_machine_without_zone_data_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"tzdata", *(n for n in sys.modules if n.startswith("tzdata."))}:
        monkeypatch.setitem(sys.modules, name, None)  # the package on PyPI
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        with pytest.raises(SettingsError, match="install the package tzdata"):
            validate(Settings, {"privacy": {"zone": "Europe/Berlin"}}, "node.yaml")
        assert read(["mon-sun 00:00-24:00"], None).open_at(EARLIEST + 1), "none is needed"
    finally:
        zoneinfo.reset_tzpath(before)


@pytest.mark.parametrize(
    "text", ["", "always", "mon 8:00-16:00", "mon 16:00-08:00", "mun 08:00-16:00",
             "mon-fri 08:00-25:00", "mon 08:60-09:00", "mon 08:00-08:00"],
)  # fmt: skip
def test_what_are_no_hours_is_a_line_that_shows_how(text: str) -> None:
    with pytest.raises(ValueError, match="must look like 'mon-fri 08:00-16:00'"):
        parse(text)
    with pytest.raises(SettingsError, match="privacy"):
        validate(Settings, {"privacy": {"hours": [text]}}, "node.yaml")


@pytest.mark.parametrize("zone", [[0, 0, 1], [0.5, 0, 0.5, 1], [0, 0, 1, 1.2], [0.6, 0, 0.5, 1]])
def test_what_is_no_zone_is_refused(zone: list[float]) -> None:
    with pytest.raises(SettingsError, match="left, top, right, bottom"):
        validate(Settings, {"privacy": {"masks": [[float(s) for s in zone]]}}, "node.yaml")


def test_a_masked_zone_is_black_before_any_stage_sees_it() -> None:
    picture = np.full((11, 20, 3), 200, np.uint8)
    cover(picture, [[0.5, 0.0, 1.0, 0.5]])
    assert not picture[:6, 10:].any(), "rounded outwards"
    assert (picture[:, :10] == 200).all()
    assert (picture[6:] == 200).all()


def test_tls_waits_for_a_plausible_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    box = Outbox(tmp_path / "box.sqlite", clock=Clock())
    will = Outgoing("status", {"node": "a/b/c"}, retain=True)
    publisher = MqttPublisher(Broker(url="mqtts://127.0.0.1:1"), "c", will, box)
    monkeypatch.setattr("edge.delivery.publisher.time.time", lambda: 100.0)
    assert publisher._connect_once() is False
    assert "TLS waits for the time" in publisher.state.detail
    monkeypatch.undo()
    assert plausible(time.time())
    assert publisher._connect_once() is False
    assert str(publisher.state) == "away: nothing listens there"
    box.close()
