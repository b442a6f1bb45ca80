"""Which tables PostgreSQL would read from end to end for a question, by its own plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa


def explain(db: sa.Connection, statement: str, parameters: Any = None) -> dict[str, Any]:
    """The plan of a question, as EXPLAIN (FORMAT JSON) says it."""
    (found,) = db.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    plan: dict[str, Any] = found["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every step of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def tables(plan: dict[str, Any]) -> set[str]:
    """The tables that a plan reads in any way; a month that was pruned is none of them."""
    return {step["Relation Name"] for step in nodes(plan) if "Relation Name" in step}


def scanned(db: sa.Connection, plan: dict[str, Any]) -> set[str]:
    """The tables that a plan reads from end to end, but those without a row."""
    whole = {s["Relation Name"] for s in nodes(plan) if s["Node Type"] == "Seq Scan"}
    return {
        table
        for table in whole
        if db.exec_driver_sql(f'SELECT 1 FROM "{table}" LIMIT 1').first() is not None
    }
