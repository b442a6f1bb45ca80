"""A dashboard's questions as Grafana would ask them."""

from __future__ import annotations

import re
from datetime import datetime

from edge.watch.grafana import dashboard

STEP = 60  # seconds of Grafana's interval


def query_of(database: str, title: str) -> str:
    """What a panel asks, with Grafana's macros."""
    (found,) = (p for p in dashboard(database)["panels"] if p["title"] == title)
    (target,) = found["targets"]
    return str(target.get("rawSql") or target["rawQueryText"])


def choice(database: str, variable: str) -> str:
    """What fills a choice above the dashboard."""
    choices = dashboard(database)["templating"]["list"]
    return str(next(c["query"] for c in choices if c["name"] == variable))


def told(query: str, first: datetime, end: datetime, nodes: list[str], sites: list[str]) -> str:
    """A query with Grafana's variables and macros replaced, as its documentation says."""
    quoted = {"node": nodes, "site": sites}
    for name, values in quoted.items():
        query = query.replace(f"${{{name}:sqlstring}}", ",".join(f"'{value}'" for value in values))
    query = re.sub(
        r"\$__timeFilter\(([^)]*)\)",
        lambda m: f"{m[1]} BETWEEN '{first.isoformat()}' AND '{end.isoformat()}'",
        query,
    )
    query = re.sub(
        r"\$__timeGroup\(([^,]*), \$__interval\)",
        lambda m: f"floor(extract(epoch from {m[1]})/{STEP})*{STEP}",
        query,
    )
    plain = {
        "$__interval_ms": STEP * 1000,
        "$__from": int(first.timestamp() * 1000),
        "$__to": int(end.timestamp() * 1000),
    }
    for name, number in plain.items():
        query = query.replace(name, str(number))
    assert "$" not in query, query
    return query
