"""A Grafana dashboard over the recorder's tables, for PostgreSQL and for SQLite.

`python -m edge.watch.grafana postgresql` (or `sqlite`) prints it; `edge/watch/grafana/` holds both, to
import in Grafana by Dashboards > New > Import. PostgreSQL's data source is Grafana's own; SQLite's is
the plugin `frser-sqlite-datasource`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
NODES = "node IN (${node:sqlstring})"
LONG = "People by expression over days, weeks and years"
NOW = {"from": "now-6h", "to": "now"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a database says what the queries need. between, group, moment: of a column of time, within
    the dashboard's time, its step of it, and as Grafana reads it; length: of a window in seconds;
    entries: a join with a JSON object's keys and values; site: of a node."""

    source: str
    between: str
    group: str
    moment: str
    length: str
    entries: str
    site: str


DIALECTS = {
    "postgresql": Dialect(
        source="grafana-postgresql-datasource",
        between="$__timeFilter({0})",
        group="$__timeGroup({0}, $__interval)",
        moment="{0}",
        length='extract(epoch FROM "end" - start)',
        entries="json_each_text({0})",
        site="split_part(node, '/', 1)",
    ),
    "sqlite": Dialect(
        source="frser-sqlite-datasource",
        # Moments are stored as text in UTC. Global variables of Grafana's, in ms.
        between="{0} BETWEEN datetime($__from / 1000, 'unixepoch') "
        "AND datetime($__to / 1000, 'unixepoch')",
        group="CAST(strftime('%s', {0}) AS INTEGER) * 1000 / $__interval_ms * $__interval_ms / 1000",
        moment="CAST(strftime('%s', {0}) AS INTEGER)",
        length="(julianday(\"end\") - julianday(start)) * 86400",
        entries="json_each({0})",
        site="substr(node, 1, instr(node, '/') - 1)",
    ),
}  # fmt: skip


def queries(d: Dialect) -> dict[str, str]:
    """Make the queries of the panels, by the panel's title. Suppressed small groups and what was not
    seen add nothing, and are shown as shares of the time."""
    # By `start`, which has the index and divides PostgreSQL's months.
    start, end, received = "start", '"end"', "received"
    read = f"FROM counts WHERE {d.between.format(start)} AND time_base = 'utc' AND {NODES}"
    health = f"FROM health WHERE {d.between.format(received)} AND {NODES}"
    bucket = f"{d.group.format(start)} AS time"
    # On average over a node's own time with counts, then added up over the nodes.
    people = (
        f"WITH shown AS (SELECT {bucket}, node, {d.length} AS length, person_seconds {read} "
        "AND person_seconds IS NOT NULL), "
        "whole AS (SELECT time, node, sum(length) AS length FROM shown GROUP BY time, node), "
        "parts AS (SELECT time, node, one.key AS label, "
        "sum(CAST(one.value AS double precision)) AS seconds "
        f"FROM shown, {d.entries.format('person_seconds')} AS one GROUP BY time, node, one.key) "
        "SELECT whole.time AS time, label AS metric, sum(seconds / length) AS people FROM parts "
        "JOIN whole ON whole.time = parts.time AND whole.node = parts.node "
        "GROUP BY whole.time, label ORDER BY 1, 2"
    )

    # Of the recorder's sums of quarters of an hour, each site by itself, then added up over the sites.
    step, sums = f"{d.group.format('at')} AS time", "place IN (${site:sqlstring}) AND seconds > 0"
    quarters = f"{d.between.format('at')} AND {sums}"
    long = (
        f"WITH whole AS (SELECT {step}, place, sum(shown / seconds) AS weight FROM slices "
        f"WHERE {quarters} GROUP BY 1, 2), "
        f"parts AS (SELECT {step}, place, one.key AS label, "
        "sum(CAST(one.value AS double precision) * shown / seconds) AS amount "
        f"FROM slices, {d.entries.format('people')} AS one WHERE {quarters} GROUP BY 1, 2, 3) "
        "SELECT whole.time AS time, label AS metric, sum(amount / weight) AS people FROM parts "
        "JOIN whole ON whole.time = parts.time AND whole.place = parts.place "
        "GROUP BY whole.time, label ORDER BY 1, 2"
    )

    def share(of: str, name: str) -> str:
        return (
            f"SELECT {bucket}, sum(CASE WHEN {of} THEN {d.length} ELSE 0 END) / sum({d.length}) "
            f"AS {name} {read} GROUP BY 1 ORDER BY 1"
        )

    last = "row_number() OVER (PARTITION BY node ORDER BY {0} DESC) AS place"
    return {
        "People by expression": people,
        LONG: long,
        "Time with suppressed small groups": share("suppressed", "suppressed"),
        "Time with nothing seen": share("faces_mean IS NULL AND NOT suppressed", "unseen"),
        "Last reading of each room": (
            f"SELECT node, {d.moment.format(end)} AS time, CASE WHEN suppressed THEN '<' || min_group "
            "WHEN faces_mean IS NULL THEN 'nothing seen (' || camera || ')' "
            "ELSE CAST(CAST(round(faces_mean) AS integer) AS text) END AS people "
            f"FROM (SELECT counts.*, {last.format(end)} {read}) AS readings "
            "WHERE place = 1 ORDER BY node"
        ),
        "Last status of each node": (
            f"SELECT node, {d.moment.format(received)} AS time, state, reason "
            f"FROM (SELECT statuses.*, {last.format('id')} FROM statuses WHERE {NODES}) AS said "
            "WHERE place = 1 ORDER BY node"
        ),
        "Temperature": (
            f"SELECT {d.moment.format(received)} AS time, node AS metric, "
            f"temperature_celsius AS temperature {health} "
            "AND temperature_celsius IS NOT NULL ORDER BY 1"
        ),
        "Readings that wait at the nodes": (
            f"SELECT {d.moment.format(received)} AS time, node AS metric, outbox_pending AS waiting "
            f"{health} ORDER BY 1"
        ),
    }  # fmt: skip


# title: kind of panel, unit, x, y, width, height of Grafana's grid of 24 columns.
PANELS: dict[str, tuple[str, str, int, int, int, int]] = {
    "People by expression": ("timeseries", "none", 0, 0, 24, 10),
    LONG: ("timeseries", "none", 0, 31, 24, 10),
    "Time with suppressed small groups": ("timeseries", "percentunit", 0, 10, 12, 6),
    "Time with nothing seen": ("timeseries", "percentunit", 12, 10, 12, 6),
    "Last reading of each room": ("table", "none", 0, 16, 12, 8),
    "Last status of each node": ("table", "none", 12, 16, 12, 8),
    "Temperature": ("timeseries", "celsius", 0, 24, 12, 7),
    "Readings that wait at the nodes": ("timeseries", "none", 12, 24, 12, 7),
}


def dashboard(name: str) -> Json:
    """Make the dashboard for a database of DIALECTS."""
    d = DIALECTS[name]
    source = {"type": d.source, "uid": "${source}"}
    asked = queries(d)
    return {
        "title": f"Classrooms ({name})",
        "uid": f"classrooms-{name}",
        "description": "Counts of expressions by room, from the recorder of edge-watch. Groups below "
        "min_group are suppressed and add nothing.",
        "tags": ["classroom-node"],
        "schemaVersion": 39,
        "editable": True,
        "timezone": "browser",
        "time": NOW,
        "refresh": "1m",
        "templating": {"list": _variables(name, d, source)},
        "panels": [
            _panel(number, title, asked[title], name, source)
            for number, title in enumerate(PANELS, 1)
        ],
    }


def _variables(name: str, d: Dialect, source: Json) -> list[Json]:
    """The choices above the dashboard: data source, sites, nodes."""

    def chosen(variable: str, label: str, query: str) -> Json:
        return {
            "name": variable, "label": label, "type": "query", "datasource": source, "query": query,
            "refresh": 2, "multi": True, "includeAll": True, "sort": 1,
            "current": {"text": ["All"], "value": ["$__all"]},
        }  # fmt: skip

    return [
        {"name": "source", "label": "Recorder", "type": "datasource", "query": d.source},
        # Of `logs`, which has a few rows a node where `counts` has years.
        chosen("site", "Site", f"SELECT DISTINCT {d.site} FROM logs WHERE node <> '' ORDER BY 1"),
        chosen(
            "node",
            "Node",
            f"SELECT DISTINCT node FROM logs WHERE node <> '' AND {d.site} IN (${{site:sqlstring}}) "
            "ORDER BY 1",
        ),
    ]


def _panel(number: int, title: str, query: str, name: str, source: Json) -> Json:
    kind, unit, x, y, width, height = PANELS[title]
    if name == "sqlite":
        # The plugin's own fields; of a long table it makes a series for each metric.
        time = {"queryType": "time series" if kind == "timeseries" else "table"}
        target: Json = {"queryText": query, "rawQueryText": query, "timeColumns": ["time"], **time}
    else:
        shape = "time_series" if kind == "timeseries" else "table"
        target = {"rawSql": query, "rawQuery": True, "editorMode": "code", "format": shape}
    drawn: Json = {"unit": unit, "min": 0} if unit != "celsius" else {"unit": unit}
    if title in ("People by expression", LONG):
        drawn["custom"] = {"fillOpacity": 60, "stacking": {"mode": "normal", "group": "A"}}
    if unit == "percentunit":
        drawn |= {"max": 1}
    # Below a quarter of an hour there is no sum.
    least = {"interval": "15m"} if title == LONG else {}
    return {
        **least,
        "id": number,
        "title": title,
        "type": kind,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": drawn, "overrides": []},
        "targets": [{"refId": "A", "datasource": source, **target}],
    }


if __name__ == "__main__":
    asked = argparse.ArgumentParser(prog="python -m edge.watch.grafana", description=__doc__)
    asked.add_argument("database", choices=list(DIALECTS), help="what the recorder stores in")
    print(json.dumps(dashboard(asked.parse_args().database), indent=2))
