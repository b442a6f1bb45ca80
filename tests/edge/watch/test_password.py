"""The page's password is strong, and guessing it is slow."""

from __future__ import annotations

import base64
import random

import pytest

from edge.base.errors import UsageError
from edge.watch.password import BURST, MOST_ADDRESSES, STRENGTH, Budget, require_strong
from edge.watch.rooms import Rooms
from edge.watch.run import build_parser
from edge.watch.web import PageAddress, Server
from support.brokers import free_port
from support.fetch import get
from support.paths import ROOT

PASSWORD = "correct horse ü"


@pytest.mark.parametrize(
    "weak",
    [
        *("1", "school", "password", "hunter2", "aaaaaaaaaaaa", "abcabcabcabc", "123456789012"),
        *("schoolschool", "passwordpassword", "Password1234!", "qwertyuiop12", "asdfghjkl123"),
        *("abcdefghijkl", "zyxwvutsrqpo", "school-2026-school", "MySchool1234", "  secret      "),
    ],
)
def test_a_password_that_is_soon_guessed_is_refused_in_one_line(weak: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_strong(weak)
    assert weak not in str(caught.value).replace(STRENGTH, "") or len(weak) < 9
    assert "\n" not in str(caught.value)


def test_passwords_that_are_made_at_random_are_taken() -> None:
    require_strong(PASSWORD)
    # From a seed: of true ones one in a hundred thousand repeats itself enough to be refused.
    rng = random.Random(0)
    for _ in range(1000):
        require_strong(base64.b64encode(rng.randbytes(15)).decode())


def test_the_rule_stands_in_the_help_and_on_the_page_of_the_server() -> None:
    words = " ".join(build_parser().format_help().split())
    assert STRENGTH in words
    assert STRENGTH in " ".join((ROOT / "edge/watch/README.md").read_text().split())


def test_an_address_has_a_few_tries_and_then_one_a_second() -> None:
    now = [0.0]
    guesses = Budget(clock=lambda: now[0])
    for _ in range(BURST):
        assert guesses.allowed("192.0.2.1")
        guesses.spend("192.0.2.1")
    assert not guesses.allowed("192.0.2.1")
    assert guesses.allowed("192.0.2.2")
    now[0] += 1
    assert guesses.allowed("192.0.2.1"), "soon open again"
    guesses.spend("192.0.2.1")
    assert not guesses.allowed("192.0.2.1")
    now[0] += 3600
    for _ in range(BURST):
        assert guesses.allowed("192.0.2.1")
        guesses.spend("192.0.2.1")
    assert not guesses.allowed("192.0.2.1"), "an hour saves up no more than the burst"


def test_an_ipv6_network_is_one_guesser_and_memory_is_bounded() -> None:
    guesses = Budget(clock=lambda: 0.0)
    for i in range(BURST):
        guesses.spend(f"2001:db8::{i:x}")
    assert not guesses.allowed("2001:db8::ffff")
    assert guesses.allowed("2001:db8:0:1::1")
    for i in range(MOST_ADDRESSES + 100):
        guesses.spend(f"10.{i >> 8}.{i & 255}.1")
    assert len(guesses._left) == MOST_ADDRESSES


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_guessing_is_stopped_unlooked_and_locks_no_known_browser_out() -> None:
    where = PageAddress("127.0.0.1", free_port(), PASSWORD)
    server = Server(Rooms(), lambda: "", where)
    server.start()
    right = basic(f"school:{PASSWORD}")
    try:
        code, headers, _ = get(where.url + "state", Authorization=right)
        assert code == 200
        cookie = headers["set-cookie"].split(";")[0]
        assert PASSWORD not in headers["set-cookie"]
        assert "HttpOnly" in headers["set-cookie"]
        codes = [get(where.url, Authorization=basic(f"school:{i}"))[0] for i in range(60)]
        assert codes[:BURST] == [401] * BURST
        assert 429 in codes
        answers = {get(where.url, Authorization=basic("school:x"))[0] for _ in range(5)}
        stopped = get(where.url, Authorization=right)
        if answers == {429}:  # else a second has passed
            assert stopped[0] in (200, 429), "the right one is not looked at either"
        assert get(where.url)[0] == 401, "who gives no password has guessed nothing"
        assert get(where.url, Authorization=right, Cookie=cookie)[0] == 200, "it knew it before"
        forged = get(where.url, Authorization=right, Cookie=cookie[:-1] + "x")[0]
        assert forged in (200, 429)
        assert get(where.url, Authorization=basic("school:x"), Cookie=cookie)[0] == 401
        assert get(where.url, Cookie=cookie)[0] == 401, "the cookie is no password"
    finally:
        server.close()
