"""How a node stands: what is worse than what, and a line that is read as it was written."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.delivery.connection_status import (
    ConnectionState,
    ConnectionStatus,
    away,
    connected,
    refused,
)
from edge.health.state import Cause, Conditions, Standing, State, parse
from edge.update.rollout import judge

words = st.text(max_size=40)
# Words of its own are read as another cause where they open like one.
details = st.tuples(st.none() | st.sampled_from(Cause), words).filter(
    lambda pair: (
        pair[0] is not Cause.OTHER
        or (bool(pair[1].split()) and pair[1].split()[0] not in {cause.value for cause in Cause})
    )
)
standings = st.builds(
    lambda state, why, broker: Standing(state, why[0], why[1] if why[0] else "", broker),
    st.sampled_from(State),
    details,
    st.none()
    | st.builds(
        lambda state, detail: ConnectionStatus(state, " ".join(detail.split())),
        st.sampled_from(ConnectionState),
        words,
    ),
)


def shown(standing: Standing) -> str:
    """As systemd keeps it: on one line."""
    return " ".join(standing.line.split())


@given(standings)
def test_every_line_is_read_as_it_was_written(standing: Standing) -> None:
    assert parse(shown(standing)) == standing


@given(st.sampled_from(State), st.sampled_from(Cause), st.text(), st.text())
def test_a_detail_is_never_taken_for_the_broker(
    state: State, cause: Cause, detail: str, other: str
) -> None:
    standing = Standing(state, cause, f"{detail}; broker {other}", away("no answer"))
    again = parse(shown(standing))
    assert again is not None
    assert (again.state, again.broker) == (state, standing.broker)


def judged_by_0_1_0(text: str) -> tuple[bool, bool]:
    """Whether edge-update 0.1.0 sees a fault in an active node's line, and blames its release."""
    elsewhere = ("online closed", "degraded camera: ", "degraded paused ")
    counts = text.startswith("online") and "; broker " in text
    fault = text.startswith("online closed") or not text.startswith("online") or counts
    return fault, not (counts or text.startswith(elsewhere))


@given(standings)
def test_an_updater_of_version_0_1_0_judges_alike(standing: Standing) -> None:
    """It is that one which watches a newer node's first minute."""
    if standing.cause in (Cause.CAMERA, Cause.PAUSED) and not standing.detail:
        standing = dataclasses.replace(standing, detail="away")
    health = judge("active", shown(standing), "0")
    assert (health.fault is not None, health.own) == judged_by_0_1_0(shown(standing))


@pytest.mark.parametrize(
    "line",
    [
        "online",
        "online ; broker connecting",
        "online closed: outside of privacy.hours",
        "degraded camera: away; broker away: no answer",
        "degraded paused by command",
        "degraded outbox: 9 readings could not be written",
        "degraded refused: bad name; broker refused: bad name",
        "online certificate ends on 2027-01-01",
        "starting ; broker connecting",
        "stopped the camera is away: no picture in 9 s; check its cable",
        "online something that a newer version says",
    ],
)
def test_the_lines_of_version_0_1_0_are_judged_as_it_did(line: str) -> None:
    health = judge("active", line, "0")
    assert (health.fault is not None, health.own) == judged_by_0_1_0(line)
    standing = parse(line)
    assert standing is not None
    assert shown(standing) == line


def test_a_line_without_a_state_is_the_release_s_fault() -> None:
    for line in ("", "onlinely", "Starting Count expressions..."):
        assert parse(line) is None
        assert (judge("active", line, "0").fault, judge("active", line, "0").own) == (
            f"edge-run says '{line}'",
            True,
        )


def test_the_gravest_cause_is_named_and_passes() -> None:
    seen, day = Conditions(camera="live"), 86400.0
    ends = 1_800_000_000.0

    def stands(broker: ConnectionStatus | None = None) -> tuple[str, str]:
        standing = seen.judge(broker or connected("MQTT 5"), ends, ends - 10 * day)
        return standing.state.value, standing.reason

    assert stands() == ("starting", ""), "no picture yet"
    seen.frames = 1
    assert stands() == ("online", "certificate ends on 2027-01-15")
    assert stands(refused("counts (Not authorized)")) == (
        "degraded",
        "refused: counts (Not authorized)",
    )
    assert stands(away("no answer"))[0] == "online", "which systemd hears otherwise"
    seen.closed = True
    assert stands(refused("x")) == ("online", "closed: outside of privacy.hours")
    seen.paused = True
    assert stands() == ("degraded", "paused by command")
    seen.camera = "frozen"
    assert stands() == ("degraded", "camera: frozen")
    seen.disk_full, seen.unwritten = True, 2
    assert stands() == ("degraded", "outbox: 2 readings could not be written")
    seen = Conditions(camera="file", frames=1)
    assert stands()[0] == "online"
