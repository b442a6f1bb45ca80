"""Delays between attempts grow, are random, and start again after a success."""

from __future__ import annotations

from edge.base.backoff import Backoff


def test_delays_double_up_to_the_longest_and_start_again_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0)
    for _ in range(2):
        for most in (1.0, 2.0, 4.0, 5.0, 5.0):
            assert most / 2 <= backoff.next() <= most
        backoff.reset()


def test_two_that_lost_the_same_thing_do_not_come_back_together() -> None:
    assert Backoff(1.0, 60.0).next() != Backoff(1.0, 60.0).next()
