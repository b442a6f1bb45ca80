"""The dashboard's queries on a real recorder's tables, and Telegraf's recipe beside the messages.
Neither Grafana nor Telegraf runs here."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import MESSAGES, schema_of
from edge.watch.grafana import DIALECTS, LONG, PANELS, dashboard
from edge.watch.history import History
from edge.watch.store import Store
from support.dashboards import STEP, choice, query_of, told
from support.heard import NODE, NOON, counts, heard, raw, small
from support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = ROOT / "edge" / "watch"
OTHER, SOUTH = "school/room-2/node-1", "south/room-1/node-1"
SECOND = timedelta(seconds=1)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """Two minutes of three nodes: six people in one, a small group in the next, nothing in the last."""
    made = Store(database)
    made.migrate()
    times = [NOON + 10 * n * SECOND for n in range(12)]
    unseen: dict[str, Any] = {"faces": None, "counts": None, "person_seconds": None}
    made.write([heard(counts(n, NODE, at)) for n, at in enumerate(times, 1)], NOON)
    made.write([heard(small(n, OTHER, start=at)) for n, at in enumerate(times, 1)], NOON)
    made.write([heard(counts(n, SOUTH, at, **unseen)) for n, at in enumerate(times, 1)], NOON)
    file = counts(99, NODE, NOON, log="2", time_base="file")
    made.write([heard(file)], NOON)
    for n, state in enumerate(("online", "degraded"), 1):
        made.write([heard(raw("health", n=n)), heard(raw("status", n=n, state=state))], NOON)
    yield made
    made.close()


def asked(store: Store, title: str, nodes: list[str], sites: list[str] | None = None) -> list[Any]:
    """What a panel gets for the hour around noon."""
    query = query_of("postgresql" if store.postgresql else "sqlite", title)
    hour = timedelta(hours=1)
    with store.engine.connect() as db:
        text = told(query, NOON - hour, NOON + hour, nodes, sites or [])
        return list(db.exec_driver_sql(text).mappings())


ALL = [NODE, OTHER, SOUTH]


def test_people_are_averaged_over_a_node_and_added_up_over_nodes(store: Store) -> None:
    rows = asked(store, "People by expression", ALL)
    steps = sorted({float(row["time"]) for row in rows})
    assert steps == [NOON.timestamp() + STEP * n for n in range(2)], "by when they begin"
    for row in rows:
        expected = {"calm": 4, "glad": 2, "unclassified": 0, "other": 0}[row["metric"]]
        assert row["people"] == pytest.approx(expected, abs=1e-3)
    more = [heard(counts(n, SOUTH, NOON + 10 * n * SECOND, log="3")) for n in range(1, 12)]
    store.write(more, NOON)
    calm = [r for r in asked(store, "People by expression", ALL) if r["metric"] == "calm"]
    assert max(row["people"] for row in calm) == pytest.approx(8, abs=1e-3)
    assert asked(store, "People by expression", [OTHER]) == [], "a small group adds nothing"


def test_days_to_years_come_from_the_recorders_sums(store: Store, database: str) -> None:
    """Of the school a room of six people and one of a small group; what nobody saw adds nothing."""
    assert asked(store, LONG, ALL, ["school", "south"]) == []
    more = [heard(counts(n, SOUTH, NOON + 10 * n * SECOND, log="3")) for n in range(12, 90)]
    store.write(more, NOON)
    history = History(database)
    for at in history.pending(NOON + timedelta(hours=1)):
        history.summarise(at)
    history.close()
    for sites, calm in ((["school"], 4.0), (["school", "south"], 8.0)):
        (row,) = (r for r in asked(store, LONG, [], sites) if r["metric"] == "calm")
        assert float(row["time"]) == NOON.timestamp()
        assert row["people"] == pytest.approx(calm, abs=1e-3)
    (panel,) = (p for p in dashboard("postgresql")["panels"] if p["title"] == LONG)
    assert panel["interval"] == "15m"


def test_time_that_is_suppressed_or_unseen_is_a_share(store: Store) -> None:
    for title, name in (
        ("Time with suppressed small groups", "suppressed"),
        ("Time with nothing seen", "unseen"),
    ):
        rows = asked(store, title, ALL)
        assert len(rows) == 2
        assert all(float(row[name]) == pytest.approx(1 / 3, abs=1e-3) for row in rows)
        assert all(float(row[name]) == 0 for row in asked(store, title, [NODE]))


def test_the_last_reading_and_status_of_each_node(store: Store) -> None:
    rows = asked(store, "Last reading of each room", ALL)
    assert {row["node"]: row["people"] for row in rows} == {
        NODE: "6",
        OTHER: "<5",
        SOUTH: "nothing seen (live)",
    }
    (said,) = asked(store, "Last status of each node", ALL)
    assert (said["node"], said["state"], said["reason"]) == (NODE, "degraded", None)


def test_temperature_and_what_waits(store: Store) -> None:
    assert [r["temperature"] for r in asked(store, "Temperature", ALL)] == [51.5, 51.5]
    assert [r["waiting"] for r in asked(store, "Readings that wait at the nodes", ALL)] == [0, 0]


def test_every_moment_is_one_that_grafana_reads(store: Store) -> None:
    for title in PANELS:
        for row in asked(store, title, ALL, ["school", "south"]):
            at = row["time"]
            seconds = at.timestamp() if isinstance(at, datetime) else float(at)
            assert abs(seconds - NOON.timestamp()) <= 180, title


def test_the_choices_are_the_sites_and_nodes(store: Store) -> None:
    name = "postgresql" if store.postgresql else "sqlite"
    with store.engine.connect() as db:
        sites = db.execute(sa.text(choice(name, "site"))).scalars().all()
        query = told(choice(name, "node"), NOON, NOON, [], ["school"])
        nodes = db.execute(sa.text(query)).scalars().all()
    assert sites == ["school", "south"]
    assert nodes == [NODE, OTHER]


@pytest.mark.parametrize("name", DIALECTS)
def test_the_checked_in_dashboards_are_the_codes_own(name: str) -> None:
    """Regenerate with `make schemas`."""
    assert json.loads((FOLDER / "grafana" / f"{name}.json").read_text()) == dashboard(name)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dashboard_is_whole(name: str) -> None:
    said = dashboard(name)
    assert [p["title"] for p in said["panels"]] == list(PANELS)
    assert len({p["id"] for p in said["panels"]}) == len(PANELS)
    cells = [
        {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        for g in (p["gridPos"] for p in said["panels"])
    ]
    assert all(max(x for x, _ in cell) < 24 for cell in cells)
    assert not any(one & other for one, other in itertools.combinations(cells, 2))
    source = {"type": DIALECTS[name].source, "uid": "${source}"}
    for panel in said["panels"]:
        assert panel["datasource"] == source
        assert [target["datasource"] for target in panel["targets"]] == [source]


def recipe() -> list[dict[str, Any]]:
    found = tomllib.loads((FOLDER / "telegraf.conf").read_text())
    inputs: list[dict[str, Any]] = found["inputs"]["mqtt_consumer"]
    return inputs


def at_path(message: dict[str, Any], path: str) -> Any:
    """What is at a path of dots; None where there is nothing."""
    found: Any = message
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


@pytest.mark.parametrize("said", recipe(), ids=lambda said: said["topics"][0].rpartition("/")[2])
def test_telegrafs_recipe_names_what_messages_hold(said: dict[str, Any]) -> None:
    kind = said["topics"][0].rpartition("/")[2]
    topic, content = counts(1) if kind == "counts" else raw("health")
    message = json.loads(content)
    (parsing,), (parser,) = said["topic_parsing"], said["json_v2"]
    # By Telegraf's rules: a part of `topic` is a word that must stand there, or +; as many tags.
    assert parsing["topic"] == said["topics"][0]
    for part, own in zip(parsing["topic"].split("/"), topic.split("/"), strict=True):
        assert part in ("+", own)
    tags = dict(zip(parsing["tags"].split("/"), topic.split("/"), strict=True))
    tags.pop("_")
    assert tags == dict(zip(("site", "room", "node"), NODE.split("/"), strict=True))
    model = next(m for m in MESSAGES if m.__name__.lower() == kind)
    required = schema_of(model)["required"]
    assert parser["timestamp_path"] in required
    moment = message[parser["timestamp_path"]]
    assert parse_rfc3339(moment)
    layout = re.sub(r"\d", "0", parser["timestamp_format"])  # Go's is a moment written out
    assert layout == re.sub(r"\d", "0", moment)
    kinds = {"int": int, "float": (int, float)}
    for field in parser["field"]:
        assert isinstance(at_path(message, field["path"]), kinds[field["type"]]), field
        assert field["path"].split(".")[0] in required
    if kind == "counts":
        assert at_path(message, parser["object"][0]["path"]) == message["counts"]
        hidden = json.loads(small(1)[1])
        for field in parser["field"]:
            present = at_path(hidden, field["path"]) is not None
            assert present or field["optional"], "a small group has no people"


def test_telegrafs_two_inputs_keep_sessions_of_their_own() -> None:
    assert len({said["client_id"] for said in recipe()}) == len(recipe()) == 2
    assert all(said["persistent_session"] and said["qos"] == 1 for said in recipe())
