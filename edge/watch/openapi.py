"""The page's own addresses as an OpenAPI 3.1 document, for programs that read them.

`python -m edge.watch.openapi > edge/watch/openapi.json` writes it; a running page serves its own as
`/openapi.json`: without the times that it cannot draw and the buttons that it does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

import edge
from edge.watch.answers import Answers, Asked, Buttons, Problem, Snapshot, State, Timeline, Unlock
from edge.watch.schools import FEW_ROOMS, MOST_OPENED
from edge.watch.timeline_routes import LONGEST_CHANGE
from edge.watch.timelines import SPANS

Json = dict[str, Any]
REFS = "#/components/schemas/{model}"
MODELS = (Snapshot, State, Timeline, Buttons, Unlock, Asked, Answers, Problem)

# What any address answers to whoever is not let in; see `guard.py`.
REFUSED = {
    "400": "asked for by a name that is not the page's (--web-host)",
    "401": "the page's password is needed, of user `school`",
    "429": "too many wrong passwords from this address",
}
# What every button answers where nothing was done, with the reason; see `control.py`.
UNDONE = {
    "400": "not what is wanted, or the page's name is another (text)",
    "401": "locked, or the page's own password is needed (text)",
    "403": "not from the page itself, a wrong password, or a wrong token",
    "413": "too large",
    "415": "not JSON",
    "429": "too many from this address; wait two seconds",
}


def _content(kind: str, schema: Json) -> Json:
    return {kind: {"schema": schema}}


def _text(description: str) -> Json:
    return {"description": description, "content": _content("text/plain", {"type": "string"})}


def _json(name: str, description: str) -> Json:
    return {
        "description": description,
        "content": _content("application/json", {"$ref": REFS.format(model=name)}),
    }


def _get(name: str, summary: str, answer: Json, **more: Any) -> Json:
    texts: Mapping[str, str] = {**REFUSED, **more.pop("refused", {})}
    responses = {"200": answer, **{code: _text(text) for code, text in sorted(texts.items())}}
    return {"get": {"operationId": name, "summary": summary, **more, "responses": responses}}


def _post(
    name: str, summary: str, answer: str, body: str | None, refused: Mapping[str, str], token: bool
) -> Json:
    problem = {"$ref": REFS.format(model="Problem")}
    either = _content("application/json", problem) | _content("text/plain", {"type": "string"})
    plain = ("400", "401", "429")  # the guard's, too
    responses = {"200": _json(answer, "done, or said why not, node by node")}
    for code, text in sorted({**UNDONE, **refused}.items()):
        alone = _content("application/json", problem)
        responses[code] = {"description": text, "content": either if code in plain else alone}
    sent: Json = {"required": True, "content": _content("application/json", {"type": "object"})}
    if body is not None:
        sent["content"] = _content("application/json", {"$ref": REFS.format(model=body)})
    security: list[Json] = [
        {"buttons": [], "token": []},
        {"password": [], "buttons": [], "token": []},
    ]
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "description": "From the page's own origin (`Origin`), as `application/json`.",
            **({"requestBody": sent} if body is not None else {}),
            **({"security": security} if token else {}),
            "responses": responses,
        }
    }


def _times(spans: Sequence[str]) -> Json:
    """The addresses of timelines."""

    def asked(name: str, description: str, schema: Json) -> Json:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    which = [
        asked("place", "SITE/ROOM/NODE, or SITE, or empty for all", {"type": "string", "default": ""}),
        asked(
            "span",
            "which time, up to now",
            {"type": "string", "enum": list(spans), "default": "hours"},
        ),
    ]  # fmt: skip
    change = {"type": "string", "maxLength": LONGEST_CHANGE, "default": ""}
    after = asked("after", "`change` of an earlier answer: only what changed since", change)
    refused = {"404": "no such span, or no such room", "503": "the recorder's database is away"}
    csv = {
        "description": "a line a step, in the page's zone",
        "content": _content("text/csv", {"type": "string"}),
    }
    return {
        "/timeline": _get(
            "timeline", "A time of a place, in steps", _json("Timeline", "the steps"),
            parameters=[*which, after], refused=refused,
        ),
        "/timeline.csv": _get(
            "timelineCsv", "The same as CSV", csv, parameters=which, refused=refused
        ),
    }  # fmt: skip


def _opened() -> Json:
    """The schools whose rooms are wanted."""
    return {
        "name": "open",
        "in": "query",
        "description": f"a school whose rooms are sent, up to {MOST_OPENED} times, where there are "
        f"more than {FEW_ROOMS} rooms; else all rooms are",
        "schema": {"type": "array", "items": {"type": "string"}, "maxItems": MOST_OPENED},
    }


def _buttons() -> Json:
    """The addresses of commands; see `control.py`."""
    return {
        "/control/open": _post(
            "openControl", "Unlock the buttons for this browser", "Buttons", "Unlock", {}, False
        ),
        "/control/close": _post("closeControl", "Lock them again", "Buttons", None, {}, True),
        "/control/ask": _post(
            "askNodes", "Send a command to nodes, and wait for their answers", "Answers", "Asked",
            {"404": "no such room", "502": "nothing is known to be done",
             "503": "other commands wait for their answers"},
            True,
        ),
    }  # fmt: skip


def _schemas() -> Json:
    """The answers' schemas by name, open to fields of later releases."""
    inputs: list[Any] = [(model.__name__, "serialization", TypeAdapter(model)) for model in MODELS]
    _, found = TypeAdapter.json_schemas(inputs, ref_template=REFS)
    schemas: Json = found["$defs"]
    rooms = schemas["RoomWatched"]
    schemas["RoomChange"] = {**_optional(rooms), "description": "What changed of a room."}
    change = _optional(schemas["Snapshot"])
    change["properties"]["rooms"]["additionalProperties"] = {
        "$ref": REFS.format(model="RoomChange")
    }
    change |= {"description": "What changed since the event before.", "required": ["now"]}
    change["properties"]["schools"] = {
        "type": "object",
        "additionalProperties": {"$ref": REFS.format(model="SchoolChange")},
    }
    schemas["SchoolChange"] = {
        **_optional(schemas["SchoolNow"]),
        "description": "What changed of a school's sums.",
    }
    schemas["Change"] = {**change, "title": "Change"}
    return dict(sorted(schemas.items()))


def _optional(schema: Json) -> Json:
    """Copy an object's schema without what it requires."""
    copied: Json = json.loads(json.dumps(schema))
    copied.pop("required")
    return copied


def document(spans: Sequence[str] = tuple(SPANS), control: bool = True) -> Json:
    """Make the document. spans: the times that the page can draw; control: whether it has buttons."""
    events = {
        "description": "Server-sent events for as long as the page is open. The `data` of the first is "
        "a Snapshot, of each later one a Change: what it names replaces what was known. One with "
        "`whole` is a Snapshot again, as where rooms became many.",
        "content": _content("text/event-stream", {"type": "string"}),
    }
    html = {"description": "HTML", "content": _content("text/html", {"type": "string"})}
    own = {
        "description": "OpenAPI 3.1",
        "content": _content("application/json", {"type": "object"}),
    }
    full = {"503": "too many watch already"}
    paths = {
        "/": _get("page", "The page, in the browser's language", html),
        "/state": _get("state", "All rooms now", _json("State", "the rooms")),
        "/snapshot": _get(
            "snapshot",
            "The first of the events",
            _json("Snapshot", "rooms, or schools"),
            parameters=[_opened()],
        ),
        "/events": _get(
            "events",
            "Rooms or schools, as they change",
            events,
            parameters=[_opened()],
            refused=full,
        ),
        **_times(spans),
        "/control": _get("control", "Whether there are buttons", _json("Buttons", "for whom")),
        **(_buttons() if control else {}),
        "/openapi.json": _get("openapi", "This document", own),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Page of edge-watch",
            "version": edge.__version__,
            "summary": "Counts of expressions by room, live and over days; never a picture.",
            "description": "A later release may add fields and addresses: pass over those that you do "
            "not know. Counts of groups below the node's min_group are suppressed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"password": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "password": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "--web-password-file; the user is `school`. "
                    "Optional on loopback.",
                },
                "buttons": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "control",
                    "description": "set by /control/open",
                },
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Control-Token",
                    "description": "`token` of /control/open",
                },
            },
        },
    }


if __name__ == "__main__":
    print(json.dumps(document(), indent=2))
