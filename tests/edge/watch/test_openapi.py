"""The document of the page's addresses: valid, complete, and true of what each one answers."""

from __future__ import annotations

import copy
import csv
import http.client
import io
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
from starlette.routing import Route

from edge.base.clock import utc_now
from edge.base.errors import BrokerError
from edge.watch.control import LARGEST_BYTES, MOST_AT_ONCE, OPEN_SECONDS
from edge.watch.history import History
from edge.watch.live_routes import MOST_STREAMS
from edge.watch.openapi import document
from edge.watch.password import BURST
from edge.watch.rooms import Rooms
from edge.watch.store import Store
from edge.watch.timelines import SPANS
from edge.watch.web import PageAddress, Server, application
from support.brokers import free_port
from support.buttons import NODES, Page, Reply
from support.fetch import get
from support.heard import counts, heard, raw, small
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

NODE, SMALL = "school/room-1/node-1", "school/room-2/node-1"
STRONG = "vo7Kd-hQ2zxe"
FILES = (".js", ".css")  # of the page itself, and of nobody else


def closed(schema: Any) -> Any:
    """A schema that takes no field which it does not name, so that none goes undescribed."""
    if isinstance(schema, dict):
        found = {key: closed(value) for key, value in schema.items()}
        if isinstance(found.get("properties"), dict):
            found.setdefault("additionalProperties", False)
        return found
    return [closed(one) for one in schema] if isinstance(schema, list) else schema


class Described:
    """A document, held against answers."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said, self._components = said, closed(said["components"]["schemas"])

    def check(self, schema: dict[str, Any], found: Any) -> None:
        whole = {**schema, "components": {"schemas": self._components}}
        jsonschema.Draft202012Validator(whole).validate(found)

    def answered(self, method: str, path: str, status: int, kind: str, content: Any) -> None:
        """Raises where the document does not say what came."""
        responses = self.said["paths"][path][method]["responses"]
        said = responses[str(status)]["content"][kind.partition(";")[0]]["schema"]
        if "json" in kind:
            self.check(said, json.loads(content) if isinstance(content, bytes) else content)

    def asked(self, url: str, path: str, question: str = "", **headers: str) -> Any:
        """Ask for an address, and return status and content."""
        status, found, content = get(url.rstrip("/") + path + question, **headers)
        self.answered("get", path, status, found["content-type"], content)
        return status, json.loads(content) if "json" in found["content-type"] else content

    def replied(self, path: str, reply: Reply, status: int) -> None:
        assert reply.status == status
        content = reply.content
        self.answered("post", f"/control{path}", status, reply.kind, content)


@pytest.fixture
def described() -> Described:
    return Described(document())


@pytest.fixture
def rooms() -> Rooms:
    """Rooms with a reading, with a small group, with nothing seen, and one that is only known."""
    made, now = Rooms(), utc_now()
    start = now.replace(second=0, microsecond=0) - timedelta(minutes=1)
    unseen = counts(1, "north/b-2-07/cam", start, faces=None, counts=None, person_seconds=None)
    for message in (
        raw("status", NODE),
        counts(1, NODE, start),
        raw("health", NODE),
        small(1, SMALL, start=start),
        unseen,
        raw("status", "north/room-3/cam", state="lost", reason="no broker"),
    ):
        made.hear(heard(message), now)
    made.refuse("no JSON")
    return made


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A recorder's database with two hours of yesterday."""
    address, now = str(tmp_path / "school.sqlite"), utc_now()
    store = Store(address)
    store.migrate()
    times = [now - timedelta(hours=3, minutes=5 * i) for i in range(24)]
    store.write([heard(counts(i + 1, NODE, at)) for i, at in enumerate(times)], now)
    store.write([heard(small(i + 1, SMALL, start=at)) for i, at in enumerate(times)], now)
    store.close()
    made = History(address)
    for at in made.pending(now):
        made.summarise(at)
    yield made
    made.close()


@pytest.fixture
def url(rooms: Rooms, history: History) -> Iterator[str]:
    where = PageAddress("127.0.0.1", free_port())
    server = Server(rooms, lambda: "connected", where, history=history)
    server.start()
    yield where.url
    server.close()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.server.close()


def test_the_checked_in_document_is_the_codes_own() -> None:
    """Regenerate with `make schemas`."""
    assert json.loads((ROOT / "edge" / "watch" / "openapi.json").read_text()) == document()


def test_the_document_is_valid_openapi_3_1() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator

    for said in (document(), document(["lesson", "hours"], control=False)):
        assert list(OpenAPIV31SpecValidator(said).iter_errors()) == []
    broken = copy.deepcopy(document())
    del broken["paths"]["/state"]["get"]["responses"]["200"]["description"]
    assert list(OpenAPIV31SpecValidator(broken).iter_errors()), "it was read"


@pytest.mark.parametrize("buttons", [False, True])
def test_every_address_of_the_page_is_in_the_document(buttons: bool) -> None:
    page = Page() if buttons else None
    control = page.control if page else None
    app = application(
        Rooms(), lambda: "", PageAddress("127.0.0.1", 1), threading.Event(), control=control
    )
    if page:
        page.server.close()
    served = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and not route.path.endswith(FILES)
        for method in route.methods or ()
        if method != "HEAD"
    }
    said = {
        (path, method)
        for path, methods in document(control=buttons)["paths"].items()
        for method in methods
    }
    assert served == said


def test_a_page_serves_the_document_of_itself(url: str, page: Page, described: Described) -> None:
    _, said = described.asked(url, "/openapi.json")
    assert said == document(list(SPANS), control=False)
    _, other = described.asked(f"http://127.0.0.1:{page.port}", "/openapi.json")
    assert other == document(["lesson", "hours"], control=True)


def test_what_is_read_of_rooms_is_what_the_document_says(url: str, described: Described) -> None:
    assert described.asked(url, "/")[0] == 200
    _, state = described.asked(url, "/state")
    assert len(state["rooms"]) == 4
    assert state["refused"] == {"no JSON": 1}
    _, snapshot = described.asked(url, "/snapshot")
    assert set(snapshot["rooms"]) == {room["node"] for room in state["rooms"]}
    assert described.asked(url, "/control")[1] == {"offered": False}


def test_what_is_not_described_is_found(url: str, described: Described) -> None:
    _, state = described.asked(url, "/state")
    state["rooms"][0]["face_id"] = 3
    with pytest.raises(jsonschema.ValidationError, match="face_id"):
        described.check({"$ref": "#/components/schemas/State"}, state)


@pytest.mark.parametrize("span", SPANS)
def test_every_time_is_what_the_document_says(url: str, described: Described, span: str) -> None:
    for place in ("", "school", NODE, "north/room-3/cam"):
        _, found = described.asked(url, "/timeline", f"?span={span}&place={place}")
        assert found["minutes"] or place.startswith("north"), place
        _, again = described.asked(
            url, "/timeline", f"?span={span}&place={place}&after={found['change']}"
        )
        assert again["part"] is not SPANS[span].stored
        _, table = described.asked(url, "/timeline.csv", f"?span={span}&place={place}")
        lines = list(csv.DictReader(io.StringIO(table.decode())))
        assert len(lines) == len(found["minutes"])
        assert all(line["minutes"] == str(found["step_seconds"] // 60) for line in lines)


def test_what_is_no_time_and_no_room_is_said_as_described(url: str, described: Described) -> None:
    for path in ("/timeline", "/timeline.csv"):
        assert described.asked(url, path, "?span=year")[0] == 404
        for place in ("school/nowhere/x", "/".join(NODE.split("/")[:2])):
            status, said = described.asked(url, path, f"?place={place}")
            assert status == 404
            assert b"'place' is a site, or site/room/node as /state names it" in said


def test_a_database_that_is_away_is_said_as_described(
    url: str, described: Described, history: History
) -> None:
    with history.transaction() as db:
        db.execute(sa.text("DROP TABLE slices"))
    for path in ("/timeline", "/timeline.csv"):
        assert described.asked(url, path, "?span=week")[0] == 503


def test_events_are_a_snapshot_and_changes(url: str, rooms: Rooms, described: Described) -> None:
    host = url.split("/")[2]
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    kind = answer.getheader("content-type") or ""
    described.answered("get", "/events", answer.status, kind, b"")

    def event() -> Any:
        while True:
            if (line := answer.readline()).startswith(b"data: "):
                return json.loads(line.removeprefix(b"data: "))

    described.check({"$ref": "#/components/schemas/Snapshot"}, event())
    reading = counts(2, NODE, utc_now(), faces={"mean": 9.0, "max": 9}, counts={"calm": 9})
    rooms.hear(heard(reading), utc_now())
    change = event()
    described.check({"$ref": "#/components/schemas/Change"}, change)
    assert change["rooms"][NODE]["people"] == 9
    connection.close()


def test_the_guards_refusals_are_as_described(rooms: Rooms, described: Described) -> None:
    where = PageAddress("127.0.0.1", free_port(), STRONG)
    server = Server(rooms, lambda: "connected", where)
    server.start()
    try:
        reads = [path for path, methods in document()["paths"].items() if "get" in methods]
        for path in reads:
            assert described.asked(where.url, path)[0] == 401
            assert described.asked(where.url, path, Host="evil.example")[0] == 400
        for _ in range(BURST + 1):
            get(where.url, Authorization="Basic eDp5")
        for path in reads:
            assert described.asked(where.url, path, Authorization="Basic eDp5")[0] == 429
    finally:
        server.close()


def test_when_too_many_watch_that_is_said_as_described(
    url: str, described: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_STREAMS > 0
    monkeypatch.setattr("edge.watch.live_routes.MOST_STREAMS", 0)
    assert described.asked(url, "/events")[0] == 503


def test_what_buttons_answer_is_what_the_document_says(page: Page, described: Described) -> None:
    url = f"http://127.0.0.1:{page.port}"
    assert described.asked(url, "/control")[1] == {"offered": True, "open": False}
    key = page.unlock()
    described.replied("/open", key, 200)
    assert described.asked(url, "/control", Cookie=key.cookie)[1]["nodes"] == list(NODES)
    done = page.command(key)
    described.replied("/ask", done, 200)
    assert done.content["answers"][0]["outcome"] == "done"
    token = key.content["token"]
    shut = page.send("POST", "/close", {}, Cookie=key.cookie, X_Control_Token=token)
    described.replied("/close", shut, 200)


def test_what_a_program_may_send_is_what_the_document_says(described: Described) -> None:
    bodies = {"Asked": [{"command": "pause", "target": NODES[0], "amount": 10},
                        {"command": "resume", "target": "north/*", "amount": None},
                        {"command": "report", "target": "north/*"}],
              "Unlock": [{"who": "Ada", "password": "x"}]}  # fmt: skip
    for name, given in bodies.items():
        for body in given:
            described.check({"$ref": f"#/components/schemas/{name}"}, body)
    with pytest.raises(jsonschema.ValidationError):
        described.check({"$ref": "#/components/schemas/Asked"}, {"command": "film", "target": "x"})


def test_what_buttons_refuse_is_as_described(page: Page, described: Described) -> None:
    described.replied("/open", page.unlock("wrong"), 403)
    described.replied("/open", page.unlock(Origin="http://evil.example"), 403)
    described.replied("/open", page.unlock(Content_Type="text/plain"), 415)
    described.replied("/open", page.send("POST", "/open", [1]), 400)
    described.replied("/open", page.unlock(Host="evil.example"), 400)
    described.replied("/open", page.send("POST", "/open", b" " * (LARGEST_BYTES + 1)), 413)
    key = page.unlock()
    asked = {"command": "pause", "target": "nowhere/x"}
    described.replied("/ask", page.command(key, asked), 404)
    described.replied("/ask", page.command(key, {"command": "film", "target": "x"}), 400)
    described.replied("/ask", page.command(key, X_Control_Token="other"), 403)
    page.fault = BrokerError("the broker is away")
    described.replied("/ask", page.command(key), 502)
    page.fault = None
    for _ in range(BURST):
        last = page.command(key)
    described.replied("/ask", last, 429)
    page.now += OPEN_SECONDS + 1
    described.replied("/ask", page.command(key), 401)
    shut = page.send("POST", "/close", {}, Cookie=key.cookie, X_Control_Token=key.content["token"])
    described.replied("/close", shut, 401)
    for _ in range(BURST + 1):
        last = page.unlock("wrong")
    described.replied("/open", last, 429)


def test_that_others_wait_is_said_as_described(page: Page, described: Described) -> None:
    key, page.wait = page.unlock(), threading.Event()
    waiting = [threading.Thread(target=page.command, args=(key,)) for _ in range(MOST_AT_ONCE)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: len(page.asked) == MOST_AT_ONCE, "four commands that wait")
    described.replied("/ask", page.command(key), 503)
    page.wait.set()
    for thread in waiting:
        thread.join(PATIENCE)
