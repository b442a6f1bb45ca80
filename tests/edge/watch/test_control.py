"""The page's buttons: who may command, from where, how often, and what is written down of it."""

from __future__ import annotations

import http.client
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.base.errors import BrokerError
from edge.watch.command import Order
from edge.watch.control import MOST_AT_ONCE, OPEN_SECONDS
from edge.watch.password import BURST
from edge.watch.rooms import Rooms
from edge.watch.web import PageAddress, Server
from support.brokers import Mosquitto, free_port
from support.buttons import NODES, PASSWORD, Page
from support.command import Done
from support.harness import NodeProcess
from support.pages import Watched
from support.paths import ROOT
from support.patience import PATIENCE, wait_for


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.server.close()


def test_who_knows_the_password_commands_and_hears_each_answer(
    page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert page.send("GET", "").content == {"offered": True, "open": False}
    key = page.unlock()
    assert key.content["nodes"] == list(NODES)
    done = page.command(key)
    assert done.content["answers"] == [
        {"node": NODES[0], "outcome": "done", "text": "pause was done"}
    ]
    many = {"command": "resume", "target": "north/*", "amount": None}
    assert len(page.command(key, many).content["answers"]) == 2
    assert page.asked == [
        ([NODES[0]], Order("pause", {"seconds": 600.0})),
        (list(NODES[:2]), Order("resume")),
    ]
    # Who, from where, what, which node, and what it answered.
    (line,) = [text for text in caplog.messages if "control pause" in text]
    for part in ("'seconds': 600.0", NODES[0], "'Ada'", "127.0.0.1", "done: pause was done"):
        assert part in line
    assert PASSWORD not in caplog.text
    assert page.send("GET", "", Cookie=key.cookie).content["token"] == key.content["token"]
    token = key.content["token"]
    assert page.send("POST", "/close", {}, Cookie=key.cookie, X_Control_Token=token).status == 200
    assert page.command(key).status == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1@evil.example"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"X_Control_Token": None}, 403),
        ({"X_Control_Token": ""}, 403),
        ({"X_Control_Token": "guessed"}, 403),
        ({"Cookie": None}, 401),
        ({"Cookie": "control=guessed"}, 401),
    ],
)
def test_what_this_page_did_not_send_itself_commands_nothing(
    page: Page, headers: dict[str, str | None], status: int
) -> None:
    """Another site's form or script sends the cookie at most, and lacks one of the others."""
    key = page.unlock()
    assert page.command(key, **headers).status == status
    assert page.asked == []
    assert page.command(key).status == 200, "and the page itself may"


@pytest.mark.parametrize("path", ["/open", "/close", "/ask"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_only_a_post_changes_anything(page: Page, path: str, method: str) -> None:
    key = page.unlock()
    token = key.content["token"]
    assert page.send(method, path, Cookie=key.cookie, X_Control_Token=token).status == 405
    assert page.asked == []


def test_a_proxys_name_for_the_page_is_its_own_origin(page: Page) -> None:
    ours = {"Origin": "https://rooms.school.example"}
    assert page.command(page.unlock(**ours), **ours).status == 200


def test_wrong_passwords_are_bounded_and_written_down(
    page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(BURST):
        assert page.unlock("wrong").status == 403
    assert page.unlock("wrong").status == 429
    assert page.unlock().status == 429, "the answer tells nothing of the password"
    page.now += 2.0
    assert page.unlock().status == 200
    assert caplog.text.count("control wrong password who='Ada' address=127.0.0.1") == BURST


def test_commands_are_bounded_too(page: Page) -> None:
    key = page.unlock()
    for _ in range(BURST):
        assert page.command(key).status == 200
    assert page.command(key).status == 429
    assert len(page.asked) == BURST
    page.now += 2.0
    assert page.command(key).status == 200


def test_it_locks_by_itself(page: Page) -> None:
    key = page.unlock()
    page.now += OPEN_SECONDS - 1
    assert page.command(key).status == 200
    page.now += OPEN_SECONDS - 1
    assert page.command(key).status == 200, "counted from the last command"
    page.now += OPEN_SECONDS + 1
    assert page.command(key).status == 401
    assert page.send("GET", "", Cookie=key.cookie).content == {"offered": True, "open": False}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"[" * 4000, 400),
        (b" " * 5000, 413),
        ({}, 400),
        ({"command": "pause", "target": NODES[0], "amount": 0}, 400),
        ({"command": "pause", "target": NODES[0], "amount": "10"}, 400),
        ({"command": "pause", "target": NODES[0], "amount": True}, 400),
        ({"command": "set-window", "target": NODES[0], "amount": None}, 400),
        ({"command": "set-min-group", "target": NODES[0], "amount": 10**400}, 400),
        ({"command": "picture", "target": NODES[0]}, 400),
        ({"command": ["pause"], "target": NODES[0]}, 400),
        ({"command": "resume", "target": 7}, 400),
        ({"command": "resume", "target": "north/#"}, 400),
        ({"command": "resume", "target": "north/room-9"}, 404),
    ],
)
def test_nonsense_asks_nobody(page: Page, content: object, status: int) -> None:
    key = page.unlock()
    reply = page.command(key, content)
    assert (reply.status, page.asked) == (status, [])
    assert len(reply.content["error"].splitlines()) == 1
    for wrong in (
        {"password": 7, "who": "x"},
        {"password": PASSWORD},
        {"password": PASSWORD, "who": " "},
    ):
        assert page.send("POST", "/open", wrong).status == 400
    # Written by json.dumps as half of a sign: a guess, and counted as one.
    assert page.unlock("\ud800").status == 403


def test_a_broker_that_is_away_is_told_and_nothing_is_said_to_be_done(
    page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    page.fault = BrokerError("broker mqtt://192.0.2.10 away: nothing listens there")
    reply = page.command(page.unlock())
    assert reply.status == 502
    assert "nothing is known to be done: broker mqtt://192.0.2.10 away" in reply.content["error"]
    assert "failed: broker mqtt://192.0.2.10 away" in caplog.text


def test_so_many_commands_wait_at_once(page: Page) -> None:
    key, page.wait = page.unlock(), threading.Event()
    waiting = [threading.Thread(target=page.command, args=(key,)) for _ in range(MOST_AT_ONCE)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: len(page.asked) == MOST_AT_ONCE, page.asked)
    assert page.command(key).status == 503
    page.wait.set()
    for thread in waiting:
        thread.join(PATIENCE)
    assert page.command(key).status == 200


def test_without_a_second_password_there_is_nothing_to_press() -> None:
    port = free_port()
    server = Server(Rooms(), lambda: "connected", PageAddress("127.0.0.1", port))
    server.start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for method, path, status in (("GET", "/control", 200), ("POST", "/control/ask", 404)):
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == status
        text = answer.read()
        assert status != 200 or json.loads(text) == {"offered": False}
    connection.close()
    server.close()


@pytest.mark.parametrize(
    ("control", "page_password", "line"),
    [
        (
            "school-school-school",
            None,
            "the password in --control-password-file is too easy to guess",
        ),
        (PASSWORD, PASSWORD, "--control-password-file and --web-password-file hold the same"),
        ("", None, "--control-password-file"),
    ],
)
def test_the_second_password_is_strong_and_another_one(
    tmp_path: Path, command: Callable[..., Done], control: str, page_password: str | None, line: str
) -> None:
    (tmp_path / "control").write_text(f"{control}\n")
    words = ["--web", f"127.0.0.1:{free_port()}", "--control-password-file", tmp_path / "control"]
    if page_password:
        (tmp_path / "page").write_text(f"{page_password}\n")
        words += ["--web-password-file", tmp_path / "page"]
    done = command("edge.watch.run", *words)
    assert done.code == 2
    assert line in done.last


def test_the_second_password_goes_with_the_page(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    (tmp_path / "control").write_text(f"{PASSWORD}\n")
    done = command("edge.watch.run", "--control-password-file", tmp_path / "control")
    assert (done.code, done.last) == (2, "edge-watch: --control-password-file goes with --web")


@pytest.mark.browser
def test_the_buttons_speak_the_browsers_language(browser: Any, page: Page) -> None:
    shown = browser.new_page(locale="de-DE")
    shown.set_default_timeout(1000 * PATIENCE)
    shown.goto(f"http://127.0.0.1:{page.port}/")
    shown.click("text=Befehle an Knoten entsperren")
    shown.fill("#control-who", "Ada")
    shown.fill("#control-password", "not the password")
    shown.click("text='Entsperren'")
    shown.wait_for_selector("#control-status[lang=en]")
    shown.fill("#control-password", PASSWORD)
    shown.click("text='Entsperren'")
    shown.click("text='Fortsetzen'")
    shown.wait_for_selector("#control-answers .done")
    assert f"{NODES[0]}, Fortsetzen: getan: resume was done" in shown.inner_text("#control-status")
    assert shown.get_attribute("#control-answers .done span", "lang") == "en"
    assert shown.get_attribute("#control-status", "lang") is None


@pytest.mark.process
@pytest.mark.broker
@pytest.mark.browser
def test_buttons_command_a_real_node_by_keyboard_alone(
    browser: Any, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    node, port = NodeProcess(tmp_path, mosquitto.url).start(), free_port()
    (tmp_path / "control").write_text(f"{PASSWORD}\n")
    log = (tmp_path / "watch.log").open("w")
    watch = subprocess.Popen(
        [sys.executable, "-m", "edge.watch.run", "--broker", mosquitto.url, "--web", str(port),
         "--control-password-file", tmp_path / "control"],
        cwd=ROOT, stderr=log,
    )  # fmt: skip

    def told() -> str:
        return (tmp_path / "watch.log").read_text()

    try:
        wait_for(lambda: "the page is at" in told(), told)
        seen = Watched(browser, f"http://127.0.0.1:{port}/")
        page = seen.page
        page.set_default_timeout(1000 * PATIENCE)
        page.wait_for_function("() => document.body.innerText.includes('1 of 1 rooms online')")
        assert page.locator("#control button:visible").count() == 0, (
            "not shown without the password"
        )
        page.focus("#control summary")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.type("Ada")
        page.keyboard.press("Tab")
        page.keyboard.type("wrong password")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('#control-status').textContent.includes('not the password')"
        )
        seen.wrong = [line for line in seen.wrong if "403" not in line]
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_selector("#control-target")
        # The choice of rooms has the focus; the first button is two steps on.
        page.wait_for_function("() => document.activeElement.id === 'control-target'")
        assert page.input_value("#control-target") == node.name
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Pause"
        page.keyboard.press("Enter")
        answer = f"{node.name}, Pause: done: paused for 600 s"
        page.wait_for_function(
            f"() => document.querySelector('#control-status').textContent === '{answer}'"
        )
        assert page.evaluate("document.activeElement.textContent") == "Pause", "the focus stays"
        assert answer in page.inner_text("#control-answers li")
        kept = json.loads((node.state / "commands.json").read_text())["wishes"]
        assert kept["pause"] == 600.0
        page.fill("#control-set-window", "2")
        page.press("#control-set-window", "Enter")
        page.wait_for_function(
            "() => document.querySelectorAll('#control-answers .done').length === 2"
        )
        # A reload is the same browser still; every field and region has a name.
        page.reload()
        page.wait_for_selector("#control-target")
        page.get_by_role("button", name="Resume").click()
        page.wait_for_function(
            "() => document.querySelectorAll('#control-answers .done').length === 1"
        )
        assert page.get_by_role("region", name="Commands").count() == 1
        unnamed = "[...document.querySelectorAll('#control input, #control select')]"
        assert page.evaluate(f"{unnamed}.every((field) => field.labels.length === 1)")
        page.get_by_role("button", name="Lock").click()
        page.wait_for_selector("#control summary")
        assert page.locator("#control button:visible").count() == 0
        assert seen.wrong == []
        assert (
            f"control pause {{'seconds': 600.0}} node={node.name} who='Ada' address=127.0.0.1"
            in told()
        )
        assert PASSWORD not in told()
    finally:
        node.end()
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(PATIENCE) == 0
        log.close()
