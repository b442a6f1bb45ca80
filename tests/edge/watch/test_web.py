"""The page: who gets it and with what headers, and what a real browser shows of it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.base.clock import utc_now
from edge.base.errors import EdgeError, UsageError
from edge.base.tls import client_context
from edge.watch.live_routes import MOST_STREAMS
from edge.watch.rooms import Rooms
from edge.watch.web import PageAddress, Server, parse_address
from support.brokers import Mosquitto, certificates, free_port
from support.fetch import get
from support.heard import counts, heard, raw, small
from support.pages import Watched
from support.paths import CLIP, ROOT
from support.patience import PATIENCE

Page = Any
STRONG = "vo7Kd-hQ2zxe"
NAUGHTY = "<img src=x onerror=document.title='broken'>"


@pytest.fixture
def rooms() -> Rooms:
    made, now = Rooms(), utc_now()
    started = now.replace(second=0, microsecond=0)
    made.hear(heard(raw("status", "school/room-1/node-1")), now)
    made.hear(heard(counts(1, "school/room-1/node-1", started)), now)
    made.hear(heard(raw("health", "school/room-1/node-1")), now)
    made.hear(heard(raw("status", "school/room-2/node-1")), now)
    made.hear(heard(small(1, "school/room-2/node-1", start=started)), now)
    made.hear(heard(raw("status", "school/room-3/node-1", state="lost", reason=NAUGHTY)), now)
    return made


def serve(rooms: Rooms, where: PageAddress | None = None) -> Server:
    server = Server(
        rooms, lambda: "connected: test", where or PageAddress("127.0.0.1", free_port())
    )
    server.start()
    return server


@pytest.fixture
def url(rooms: Rooms) -> Iterator[str]:
    where = PageAddress("127.0.0.1", free_port())
    server = serve(rooms, where)
    yield where.url
    server.close()


def test_every_file_comes_from_here_and_forbids_other_hosts(url: str) -> None:
    for name in ("", "page.js", "page.css", "plotly.js", "state", "timeline"):
        code, headers, content = get(url + name)
        assert code == 200
        assert content
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert get(url + "nothing")[0] == 404
    _, _, page = get(url)
    for address in (b"http://", b"https://", b"//cdn"):
        assert address not in page
    state = json.loads(get(url + "state")[2])
    assert [(r["node"], r["state"]) for r in state["rooms"]] == [
        ("school/room-3/node-1", "lost"),
        ("school/room-1/node-1", "online"),
        ("school/room-2/node-1", "online"),
    ]
    assert state["rooms"][2]["hidden"] == "<5"
    assert state["rooms"][2]["people"] is None


def test_who_asks_for_the_headers_of_a_stream_gets_them_and_no_stream(url: str) -> None:
    where = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(where, timeout=PATIENCE)
    for _ in range(MOST_STREAMS + 1):
        connection.request("HEAD", "/events")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        answer.read()
    connection.close()


def test_dns_rebinding_is_refused(url: str) -> None:
    for wrong in ("evil.example", "evil.example:80", "localhost.evil.example", "", "[::2]", "*"):
        code, _, text = get(url, Host=wrong)
        assert code == 400
        assert b"--web-host" in text
    for right in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "localhost."):
        assert get(url, Host=right)[0] == 200


def test_a_proxy_that_keeps_host_is_served_by_the_name_given(rooms: Rooms) -> None:
    names = ("Rooms.North.Example", "192.0.2.7", "[2001:db8::7]")
    where = parse_address(f"127.0.0.1:{free_port()}", None, names=names)
    server = serve(rooms, where)
    try:
        for right in (
            "rooms.north.example",
            "rooms.north.example:443",
            "192.0.2.7",
            "[2001:db8::7]",
        ):
            assert get(where.url, Host=right)[0] == 200
        assert get(where.url, Host="other.north.example")[0] == 400
    finally:
        server.close()
    for wrong in ("*", "*.north.example", "https://rooms.example", "rooms.example:80", "", "a b"):
        with pytest.raises(UsageError, match="--web-host"):
            parse_address("127.0.0.1:1", None, names=(wrong,))
    beyond = parse_address("0.0.0.0:1", STRONG, names=("rooms.example",))
    assert beyond.names == ("rooms.example",)


def test_beyond_loopback_a_password_is_demanded() -> None:
    with pytest.raises(UsageError, match="--web-password-file"):
        parse_address("0.0.0.0:8080", None)
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address("here", None)
    with pytest.raises(UsageError, match="go together"):
        parse_address("127.0.0.1:1", None, Path("x"))
    assert parse_address("8080", None).host == parse_address(":8080", None).host == "127.0.0.1"
    assert parse_address("[::1]:8080", None).url == "http://[::1]:8080/"
    assert parse_address("0.0.0.0:8080", STRONG).password == STRONG
    with pytest.raises(UsageError, match="empty first line"):
        parse_address("0.0.0.0:8080", "")


def test_a_password_opens_every_part_and_nothing_else_does(rooms: Rooms) -> None:
    where = PageAddress("127.0.0.1", free_port(), "geheim: ü")
    server = serve(rooms, where)

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    try:
        for name in ("", "state", "events", "plotly.js"):
            code, headers, _ = get(where.url + name)
            assert code == 401
            assert headers["www-authenticate"].startswith("Basic")
        for wrong in ("school:other", "school:", "root:geheim: ü", ""):
            assert get(where.url, Authorization=basic(wrong))[0] == 401
        for wrong in ("Basic !!!", "Bearer x", "Basic"):
            assert get(where.url, Authorization=wrong)[0] == 401
        assert get(where.url, Authorization=basic("school:geheim: ü"))[0] == 200
    finally:
        server.close()


@pytest.mark.process
def test_https_with_a_certificate_of_the_schools(rooms: Rooms, tmp_path: Path) -> None:
    files = certificates(tmp_path, ["page"])
    where = PageAddress("127.0.0.1", free_port(), None, files["page.pem"], files["page.key"])
    server = serve(rooms, where)
    context = client_context("broker.tls", files["ca.pem"])
    assert get(where.url, context)[0] == 200
    server.close()


def test_a_port_that_is_taken_is_one_line(rooms: Rooms, url: str) -> None:
    taken = int(url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(EdgeError, match="the port is taken"):
        serve(rooms, PageAddress("127.0.0.1", taken))
    with pytest.raises(EdgeError, match="certificate is not"):
        serve(
            rooms, PageAddress("127.0.0.1", free_port(), None, ROOT / "LICENSE", ROOT / "LICENSE")
        )


def test_the_page_shows_rooms_small_groups_and_what_is_lost(browser: Any, url: str) -> None:
    seen = Watched(browser, url)
    page = seen.page
    page.wait_for_selector("article:nth-of-type(3)")
    assert page.inner_text("#summary") == (
        "2 of 3 rooms online · 6 people in view · 1 needs a look · 1 small group hidden"
    )
    cards = page.locator("article").all_inner_texts()
    assert "6 people: 4 calm, 2 glad" in cards[1]
    assert "52 °C" in cards[1]
    assert "<5 people: too few to show expressions" in cards[2]
    trouble = page.inner_text("#trouble")
    assert f"school/room-3/node-1 is lost: {NAUGHTY}" in trouble, "text, not markup"
    page.wait_for_selector("#chart .bars path")
    page.get_by_text("The last minutes as a table").click()
    head = page.locator("#figures th[scope=col]").all_inner_texts()
    assert head[0].startswith("minute (")
    assert head[1:3] == ["calm", "glad"]
    assert page.title() == "Classrooms"
    page.select_option("#node", "school/room-2/node-1")
    page.wait_for_function(
        "() => document.querySelector('#figures tbody').innerText.includes('100 %')"
    )
    assert seen.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_passes_axe_and_fits_its_window(
    browser: Any, url: str, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    seen = Watched(
        browser, url, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True
    )
    seen.page.wait_for_selector("#chart .bars path")
    seen.page.get_by_text("The last minutes as a table").click()
    found = Axe().run(seen.page).response["violations"]
    assert [(f["id"], f["impact"]) for f in found] == []
    wide = seen.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "nothing to scroll sideways"


def test_everything_is_reached_by_keyboard(browser: Any, url: str) -> None:
    page = Watched(browser, url).page
    page.wait_for_selector("article")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.id "
                                     "|| document.activeElement.tagName"))  # fmt: skip
    assert reached[0] == "skip"
    assert "node" in reached
    assert "SUMMARY" in reached


def opened(browser: Any, port: int) -> Watched:
    """The page of a process that may still be starting."""
    url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + PATIENCE
    while True:
        try:
            get(url)
            return Watched(browser, url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def wait_for(page: Page, text: str, seconds: float = PATIENCE) -> None:
    page.wait_for_function(
        "wanted => document.body.innerText.includes(wanted)", arg=text, timeout=1000 * seconds
    )


def test_a_node_a_recorder_and_the_page_outlive_their_broker(
    browser: Any, tmp_path: Path, detector_file: Path
) -> None:
    """The whole way on the demo clip, in processes of their own, with one restart of each."""
    broker, port = Mosquitto(tmp_path), free_port()
    record = tmp_path / "school.sqlite"
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "edge.watch.run", "--broker", broker.url, "--record", record,
               "--web", f"127.0.0.1:{port}"]  # fmt: skip
    log = (tmp_path / "watch.log").open("ab")
    watch = subprocess.Popen(command, cwd=ROOT, env=env, stderr=log)
    config = tmp_path / "node.yaml"
    config.write_text("node: {site: school, room: room-7, name: node-1}\n"
                      "broker: {retry_max_seconds: 1}\n")  # fmt: skip
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", "--camera", f"loop:{CLIP}", "--broker", broker.url,
         "--config", config, "--window", "2", "--min-group", "1"],
        cwd=ROOT, env=env, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        seen = opened(browser, port)
        wait_for(seen.page, "happiness")
        wait_for(seen.page, "1 of 1 rooms online")
        assert seen.wrong == []
        broker.stop()
        wait_for(seen.page, "broker away")
        old = r"() => /heard ([6-9] s|\d\d+ s|\d+ min) ago/.test(document.body.innerText)"
        seen.page.wait_for_function(old, timeout=1000 * PATIENCE)
        broker.start()
        wait_for(seen.page, "broker connected")
        wait_for(seen.page, "heard 0 s ago")
        assert seen.wrong == []
        # A recorder that was killed starts with what it had stored; nobody tells it again.
        node.send_signal(signal.SIGTERM)
        assert node.wait(PATIENCE) == 0
        wait_for(seen.page, "stopped")
        watch.kill()
        watch.wait()
        watch = subprocess.Popen(command, cwd=ROOT, env=env, stderr=log)
        page = opened(browser, port).page
        wait_for(page, "the last 45 minutes")
        page.wait_for_selector("#chart .bars path")
    finally:
        node.kill()
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(PATIENCE) == 0
        broker.stop()
    log.close()
    assert "Traceback" not in (tmp_path / "watch.log").read_text()


def test_nonsense_is_counted_on_the_page_and_runs_nowhere(
    browser: Any, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    port = free_port()
    watch = subprocess.Popen(
        [sys.executable, "-m", "edge.watch.run", "--broker", mosquitto.url, "--web", str(port)],
        cwd=ROOT, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sender = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    sender.connect("127.0.0.1", mosquitto.port)
    sender.loop_start()
    try:
        seen = opened(browser, port)
        topic, good = raw("status", "a/b/c")
        sender.publish(topic, good, qos=1)
        sender.publish(topic, b"{", qos=1)
        sender.publish(topic, b" " * 66_000, qos=1)
        sender.publish(topic, b" " * 10_000_000, qos=1)  # a packet that no receiver takes
        sender.publish(topic, raw("status", "x/y/z")[1], qos=1)
        sender.publish(topic, raw("status", "a/b/c", schema="edge.status/9")[1], qos=1)
        label = {NAUGHTY: 6}
        sender.publish(*counts(1, "a/b/c", utc_now(), counts=label, person_seconds=label), qos=1)
        for _ in range(2000):
            sender.publish("edge/v1/a/b/c/health", b"[]", qos=0)
        wait_for(seen.page, "malformed health")
        for reason in (
            "1 no JSON",
            "1 too large",
            "1 another node's name",
            "1 another schema version",
        ):
            wait_for(seen.page, reason)
        wait_for(seen.page, f"6 {NAUGHTY}")
        seen.page.wait_for_selector("#chart .bars path")
        assert seen.page.title() == "Classrooms"
        assert seen.page.locator("article img").count() == 0
        assert seen.wrong == []
    finally:
        sender.loop_stop()
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(PATIENCE) == 0
