"""Twenty thousand messages with fields as no node would send them, through every view."""

from __future__ import annotations

import resource
from datetime import timedelta

import pytest

from edge.health.prometheus import Metrics
from support.brokers import free_port
from support.heard import NOON
from support.views import look_at_mutated

pytestmark = pytest.mark.faults

MOST_MIB = 64  # by which the process may grow


def test_twenty_thousand_mutated_messages_hurt_no_view_and_stay_bounded() -> None:
    metrics = Metrics(free_port())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rooms, valid = look_at_mutated(20_000, 11, NOON + timedelta(minutes=50), metrics)
    metrics.close()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{valid} of 20,000 mutated messages are valid; the process grew by {grown:.0f} MiB")
    assert valid > 2000
    assert len(rooms.rooms) <= 5
    assert grown < MOST_MIB
