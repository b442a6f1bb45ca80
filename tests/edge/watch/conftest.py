"""Databases for the recorder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.postgres import Postgres


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database's address."""
    if request.param == "sqlite":
        return str(tmp_path / "school.sqlite")
    import sqlalchemy as sa

    server: Postgres = request.getfixturevalue("postgres")
    address = sa.make_url(server.url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.execute(sa.text("DROP SCHEMA public CASCADE"))
        db.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return server.url
