"""When a node may look, which zones it never does, and clocks that cannot be right."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from edge.base.clock import EARLIEST, LATEST, plausible
from edge.base.errors import SettingsError
from edge.base.schedule import open_now, parse
from edge.base.strict_yaml import validate
from edge.delivery.messages import Outgoing
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.pipeline import cover
from edge.settings import Broker, Settings
from support.clock import Clock


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
