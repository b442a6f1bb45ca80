"""The recorder's database, SQLite and PostgreSQL: each reading once, and how far a log is whole."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.base.errors import UsageError
from edge.watch.database import ANSWER_SECONDS, StoreError, StoreMovedError
from edge.watch.messages import Message
from edge.watch.store import Store, _row
from edge.watch.tables import COUNTS, LOGS, METADATA, STATUSES
from fakes.proxy import Proxy
from support.command import Done
from support.examples import examples
from support.heard import LOG, NODE, NOON, counts, heard, raw, small
from support.paths import ROOT
from support.patience import PATIENCE
from support.postgres import Postgres

KEY = (NODE, LOG)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = Store(database)
    made.migrate()
    yield made
    made.close()


def seqs(*numbers: int) -> list[Message]:
    return [heard(counts(seq)) for seq in numbers]


def test_a_reading_is_stored_once_however_often_it_comes(store: Store) -> None:
    first = store.write(seqs(1, 2, 2, 1), NOON)
    assert (first.new, first.known, first.contiguous_seq) == (2, 2, {KEY: 2})
    again = store.write(seqs(2, 3), NOON)
    assert (again.new, again.known, again.contiguous_seq) == (1, 1, {KEY: 3})
    assert [row["seq"] for row in store.readings()] == [1, 2, 3]


def test_whole_stops_at_a_gap_and_moves_on_when_it_is_filled(store: Store) -> None:
    assert store.write(seqs(1, 2, 4, 5, 7), NOON).contiguous_seq[KEY] == 2
    assert store.write(seqs(3), NOON).contiguous_seq[KEY] == 5
    assert store.write(seqs(6), NOON).contiguous_seq[KEY] == 7


def test_readings_without_a_gap_cost_no_question_about_what_is_stored(store: Store) -> None:
    """Two fifths of the recorder was one SELECT a log and batch."""
    asked: list[str] = []
    rooms = [f"school/room-{n}/node-1" for n in range(50)]
    store.write([heard(counts(1, room)) for room in rooms], NOON)
    sa.event.listen(
        store.engine, "before_cursor_execute", lambda c, cursor, text, *more: asked.append(text)
    )
    found = store.write([heard(counts(2, room)) for room in rooms], NOON)
    assert set(found.contiguous_seq.values()) == {2}
    of_counts = [text for text in asked if re.search("FROM counts", text) and "~" not in text]
    assert of_counts == []
    assert len(asked) < 12, "whatever the number of rooms"
    store.write([heard(counts(4, room)) for room in rooms], NOON)
    asked.clear()
    found = store.write([heard(counts(3, room)) for room in rooms[:25]], NOON)
    assert set(found.contiguous_seq.values()) == {4}
    assert any("counts.seq >" in text for text in asked), "a gap that closes is looked behind"


def test_a_recorder_starts_where_another_one_stopped(database: str) -> None:
    """Nothing that it remembers of a log outlives another recorder's work on it."""
    one, two = Store(database), Store(database)
    one.migrate()
    assert one.write(seqs(1, 2), NOON).contiguous_seq[KEY] == 2
    assert two.write(seqs(3, 5), NOON).contiguous_seq[KEY] == 3
    found = one.write(seqs(4, 5, 6), NOON)
    assert (found.new, found.known, found.contiguous_seq[KEY]) == (2, 1, 6)
    assert two.forget(None, "school", NOON) == 6
    again = one.write(seqs(5, 6, 7), NOON)
    assert (again.new, again.known, again.contiguous_seq[KEY]) == (1, 2, 7), "it was buried"
    one.close()
    two.close()


def test_what_a_node_no_longer_has_is_no_gap(store: Store) -> None:
    """A recorder that starts in the middle of a log, or after an outbox dropped its oldest."""
    assert store.write(seqs(500, 501), NOON).contiguous_seq[KEY] == 0
    health = heard(raw("health", outbox_first=499))
    assert store.write([health], NOON).contiguous_seq[KEY] == 498
    assert store.write(seqs(499), NOON).contiguous_seq[KEY] == 501


def test_one_forged_health_makes_no_reading_known(store: Store) -> None:
    """On a broker without an access list anybody may say that nothing below some number will come."""
    store.write(seqs(1, 2), NOON)
    for first in (100, 2**53 - 1):
        forged = heard(raw("health", outbox_first=first))
        assert store.write([forged], NOON).contiguous_seq[KEY] == 2, "of what came, no more"
    assert store.write(seqs(3, 5), NOON).contiguous_seq[KEY] == 3, "and a later gap is a gap"
    assert store.write([forged], NOON).contiguous_seq[KEY] == 5
    assert store.write(seqs(4, 6), NOON).new == 2
    assert [row["seq"] for row in store.readings()] == [1, 2, 3, 4, 5, 6]


def test_readings_whose_numbers_were_given_twice_are_all_stored(store: Store) -> None:
    """A restored card: the numbers 2 and 3 again, an hour later; the recorder has 1 to 5."""
    store.write(seqs(1, 2, 3, 4, 5), NOON)
    later = [heard(counts(seq, start=NOON + timedelta(hours=1, seconds=seq))) for seq in (2, 3)]
    first = store.write(later, NOON)
    assert (first.new, first.known, first.contiguous_seq) == (2, 0, {KEY: 5})
    assert first.apart == [(NODE, LOG, 2), (NODE, LOG, 3)]
    again = store.write([*later, *seqs(2, 3)], NOON)
    assert (again.new, again.known, again.apart) == (0, 4, []), "each stands there once"
    rows = list(store.readings())
    assert len({(r["node"], r["log"], r["seq"]) for r in rows}) == len(rows) == 7
    assert [r["start"] for r in rows if r["log"].startswith(f"{LOG}~")] == [
        NOON + timedelta(hours=1, seconds=seq) for seq in (2, 3)
    ]


def test_two_boards_of_one_card_count_the_same_windows(store: Store) -> None:
    """Both nodes give the same number to the same moment, of different rooms; also in one batch."""
    other = {"counts": {"calm": 6}, "person_seconds": {"calm": 60}}
    found = store.write([*seqs(1), heard(counts(1, **other)), heard(counts(1, **other))], NOON)
    assert (found.new, found.known, len(found.apart)) == (2, 1, 1)
    third = heard(counts(1, faces={"mean": 9.0, "max": 9}))
    assert store.write([third], NOON).new == 1
    assert store.write([third, *seqs(1), heard(counts(1, **other))], NOON).known == 3
    assert len(list(store.readings())) == 3


def test_what_comes_late_again_is_the_same_reading(store: Store) -> None:
    store.write([*seqs(1), heard(small(2))], NOON)
    late = [heard(counts(1, historical=True)), heard(small(2, historical=True))]
    found = store.write(late, NOON + timedelta(days=1))
    assert (found.new, found.known, found.apart) == (0, 2, [])


def test_what_a_node_sends_again_in_a_log_of_its_own_stands_once(store: Store) -> None:
    """It found that it gave numbers twice, after some had gone out."""
    store.write(seqs(1, 2), NOON)
    later = [counts(seq, start=NOON + timedelta(hours=seq)) for seq in (1, 2)]
    assert len(store.write([heard(m) for m in later], NOON).apart) == 2
    own = [counts(n, start=NOON + timedelta(hours=n), log="another") for n in (1, 2)]
    found = store.write([heard(m) for m in own], NOON)
    assert (found.new, found.contiguous_seq) == (2, {(NODE, "another"): 2})
    assert sorted((r["log"], r["seq"]) for r in store.readings()) == [
        (LOG, 1), (LOG, 2), ("another", 1), ("another", 2),
    ]  # fmt: skip
    again = store.write([heard(m) for m in (*later, *own)], NOON)
    assert (again.new, again.known) == (0, 4), "also when a broker gives it out once more"


def test_what_was_deleted_is_known_and_a_number_given_again_is_new(store: Store) -> None:
    store.write(seqs(1, 2, 3), NOON)
    assert store.forget(timedelta(days=1), "", NOON + timedelta(days=1, minutes=1)) == 3
    assert store.write(seqs(1, 2, 3), NOON).known == 3
    later = heard(counts(2, start=NOON + timedelta(hours=1)))
    assert store.write([later], NOON).new == 1
    assert store.write([later, *seqs(1)], NOON).known == 2
    assert [row["start"] for row in store.readings()] == [NOON + timedelta(hours=1)]


def test_what_stood_apart_stays_forgotten_too(store: Store) -> None:
    store.write(seqs(1), NOON)
    twice = heard(counts(1, start=NOON + timedelta(hours=1)))
    store.write([twice], NOON)
    assert store.forget(None, "school/room-1", NOON) == 2
    assert store.write([*seqs(1), twice], NOON).known == 2
    assert list(store.readings()) == []


def as_two_recorders(record: Callable[[int], None]) -> None:
    """Call record(1) and record(2) at the same time."""
    threads = [threading.Thread(target=record, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_recorders_of_a_group_both_keep_numbers_given_twice(database: str) -> None:
    Store(database).migrate()
    ends: list[int] = []

    def record(hour: int) -> None:
        own = Store(database)
        for seq in range(1, 51):
            moment = NOON + timedelta(hours=hour, seconds=10 * seq)
            ends.append(len(own.write([heard(counts(seq, start=moment))], NOON).apart))
        own.close()

    as_two_recorders(record)
    store = Store(database)
    assert len(list(store.readings())) == 100
    assert sum(ends) == 50
    store.close()


def test_late_and_suppressed_readings_keep_what_they_say(store: Store) -> None:
    store.write([heard(counts(2)), heard(small(1, historical=True))], NOON + timedelta(hours=9))
    one, two = store.readings()
    assert (one["start"], one["suppressed"], one["counts"], one["historical"]) == (
        NOON, True, None, True,
    )  # fmt: skip
    assert two["start"] == NOON + timedelta(seconds=10)
    assert two["counts"]["calm"] == 4
    assert (two["faces_mean"], two["faces_max"], two["frames"]) == (6.0, 7, 300)
    assert two["received"] == NOON + timedelta(hours=9)
    assert list(store.readings(NOON + timedelta(seconds=5))) == [two]


def test_a_status_is_kept_when_it_changed(store: Store) -> None:
    for state in ("online", "online", "lost", "lost", "online"):
        store.write([heard(raw("status", state=state))], NOON)
    with store.engine.begin() as db:
        states = db.execute(sa.select(STATUSES.c.state).order_by(STATUSES.c.id)).scalars().all()
    assert states == ["online", "lost", "online"]


def test_a_batch_is_stored_whole_or_not_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("gone\nin the middle"))

    with monkeypatch.context() as late:
        late.setattr(store, "_write_health", broken)
        with pytest.raises(StoreError, match="gone in the middle") as caught:
            store.write(seqs(1), NOON)
        assert not caught.value.refused
    assert list(store.readings()) == []
    assert store.write(seqs(1), NOON).new == 1


def test_two_recorders_of_one_group_agree(database: str) -> None:
    """Each gets every other reading, at the same time."""
    Store(database).migrate()
    ends: list[int] = []

    def record(first: int) -> None:
        own = Store(database)
        for seq in range(first, 201, 2):
            ends.append(own.write(seqs(seq), NOON).contiguous_seq[KEY])
        own.close()

    as_two_recorders(record)
    store = Store(database)
    assert [row["seq"] for row in store.readings()] == list(range(1, 201))
    assert max(ends) == 200
    store.close()


def test_forgetting_takes_a_room_or_an_age_and_is_not_undone_by_its_node(store: Store) -> None:
    other = "school/room-10/node-1"
    store.write([*seqs(1, 2, 3), heard(counts(1, other)), heard(raw("status"))], NOON)
    now = NOON + timedelta(days=10, seconds=25)
    assert store.forget(timedelta(days=10), "", now) == 3, "two of one, one of the other"
    assert [row["seq"] for row in store.readings()] == [3]
    store.write([heard(counts(2, other))], NOON)
    assert store.forget(None, "school/room-1", now) == 1, "room-10 is another room"
    assert [row["node"] for row in store.readings()] == [other]
    # The node offers again what it still has: it was stored once, and is not stored again.
    assert store.write(seqs(1, 2, 3), NOON).known == 3
    assert store.forget(None, "", now) == 1
    assert list(store.readings()) == []


def test_what_is_deleted_above_a_gap_is_not_stored_again(store: Store) -> None:
    store.write(seqs(1, 2, 4, 5), NOON)
    assert store.forget(None, "", NOON) == 4
    again = store.write(seqs(4, 5, 6), NOON)
    assert (again.new, again.known, again.contiguous_seq) == (1, 2, {KEY: 6})


def test_a_kill_while_the_tables_are_made_leaves_none_half_made(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Store(str(tmp_path / "fresh.sqlite"))
    create, count = sa.schema.CreateTable, []

    def stop(element: object, compiler: object, **kw: object) -> str:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return str(compiler.visit_create_table(element, **kw))  # type: ignore[attr-defined]

    monkeypatch.setattr(
        create, "_compiler_dispatch", lambda self, compiler, **kw: stop(self, compiler, **kw)
    )
    with pytest.raises(KeyboardInterrupt):
        made.migrate()
    monkeypatch.undo()
    with made.engine.connect() as db:
        assert sa.inspect(db).get_table_names() == []
    made.migrate()
    assert made.write(seqs(1), NOON).new == 1


def test_a_database_of_a_newer_version_is_one_line(store: Store) -> None:
    with store.engine.begin() as db:
        db.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="another version of this kit"):
        store.migrate()


def old_seqs(*seqs: int) -> list[Message]:
    """Readings of a node that did not say how it counts."""
    found = []
    for seq in seqs:
        topic, content = counts(seq, schema="edge.counts/1")
        said = json.loads(content)
        del said["counting"]
        found.append(heard((topic, json.dumps(said).encode())))
    return found


def test_old_and_new_readings_are_kept_side_by_side(store: Store) -> None:
    assert store.write([*old_seqs(1), *seqs(2)], NOON).new == 2
    assert store.write([*old_seqs(1), *seqs(2)], NOON).known == 2
    assert [row["counting"] for row in store.readings()] == [None, "expected"]


def test_rows_of_the_first_release_are_compared_too(database: str) -> None:
    old = Store(database)
    old.migrate("0001")
    with old.transaction() as db:
        row = {"node": NODE, "log": LOG, "first": 1, "whole": 2, "highest": 2}
        db.execute(sa.insert(LOGS), [row])
        (first,) = old_seqs(1)
        later_columns = ("counting", "min_cell")
        stored = {k: v for k, v in _row(first.payload, NOON).items() if k not in later_columns}
        db.execute(sa.insert(COUNTS), [stored])
    old.migrate()
    later = heard(counts(1, start=NOON + timedelta(hours=1)))
    found = old.write([*old_seqs(1, 2, 3), later], NOON)
    assert (found.new, found.known, found.contiguous_seq) == (2, 2, {KEY: 3})
    assert found.apart == [(NODE, LOG, 1)], "2 was deleted by that release, or passed over"
    old.close()


def test_a_value_that_no_column_takes_is_refused_not_a_crash(store: Store) -> None:
    message = heard(counts(1))
    monster = message.payload.model_copy(update={"min_group": 2**70})
    with pytest.raises(StoreError) as caught:
        store.write([Message(message.node, "counts", monster)], NOON)
    assert caught.value.refused
    assert store.write(seqs(1), NOON).new == 1


def test_times_are_utc_whatever_zone_a_database_is_set_to(store: Store) -> None:
    store.write(seqs(1), NOON)
    if store.engine.dialect.name == "postgresql":
        with store.engine.begin() as db:
            db.execute(sa.text("SET TIME ZONE 'Europe/Berlin'"))
    (row,) = store.readings()
    assert row["start"].utcoffset() == timedelta(0)
    assert row["start"] == NOON


def test_migrations_make_the_tables_that_the_code_uses(store: Store) -> None:
    store.migrate()  # twice does nothing
    with store.engine.connect() as db:
        there = sa.inspect(db)
        for table in METADATA.tables.values():
            # A column that a migration added stands at the end, wherever it is described.
            names = [c["name"] for c in there.get_columns(table.name)]
            assert sorted(names) == sorted(c.name for c in table.columns)
            key = there.get_pk_constraint(table.name)["constrained_columns"]
            assert key == [c.name for c in table.primary_key.columns]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("school.txt", "must be sqlite:///FILE"),
        ("mysql://x/y", "must be sqlite:///FILE"),
        ("sqlite://", "must be sqlite:///FILE"),
        ("postgresql://me:secret@host/db", "no password"),
        ("postgresql://host/db?password=secret", "no password"),
        ("postgresql://host/db?sslmode=require&sslpassword=secret", "no password"),
        ("postgresql://host/db?pwd=secret", "only application_name"),
        ("postgresql://me:se/secret@host/db", "must be sqlite:///FILE|no password"),
        ("://", "must be sqlite:///FILE"),
    ],
)
def test_what_is_no_database_is_one_line_without_its_password(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Store(url)
    assert "secret" not in str(caught.value)


def test_a_database_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/absent/x.sqlite", "postgresql://nobody@127.0.0.1:1/x"):
        with pytest.raises(StoreError) as caught:
            Store(url).migrate()
        assert not caught.value.refused


@pytest.mark.process
def test_a_database_without_an_encoding_keeps_and_gives_text(postgres: Postgres) -> None:
    """A cluster that was made under LC_ALL=C has such ones."""
    address = sa.make_url(postgres.url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    made = "CREATE DATABASE plain ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    with engine.connect() as db:
        db.execute(sa.text(made))
    engine.dispose()
    store = Store(f"{postgres.url.rsplit('/', 1)[0]}/plain")
    store.migrate()
    store.write([heard(counts(1))], NOON)
    with store.transaction(reading=True) as db:
        assert db.execute(sa.select(COUNTS.c.node)).scalars().all() == [NODE]
    store.close()


def test_a_database_that_is_there_and_silent_is_not_waited_for(postgres: Postgres) -> None:
    """As where its disk stalls or its machine is paused. libpq would wait for ever, and with it all who
    want to hear or see something."""
    room, proxy = "school/silent/node-1", Proxy(postgres.port)
    store = Store(postgres.url.replace(str(postgres.port), str(proxy.port)))
    store.migrate()
    store.write([heard(counts(1, room))], NOON)
    proxy.mode = "swallow"
    store.answer_seconds = 0.5
    errors: list[StoreError] = []

    def write() -> None:
        try:
            store.write([heard(counts(2, room))], NOON)
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert [(str(e).rpartition(": ")[2], e.refused) for e in errors] == [
        ("no answer within 0.5 s", False)
    ]
    proxy.mode = "pass"
    store.answer_seconds = ANSWER_SECONDS
    assert store.write([heard(counts(2, room))], NOON).new == 1, "over a connection of its own"
    store.close()
    proxy.close()


def test_whoever_opens_a_database_first_makes_it_for_its_owner_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.sqlite"
    store = Store(str(file))
    with store.transaction() as db:  # as a thread that comes before the tables are made
        db.execute(sa.text("SELECT 1"))
    assert file.stat().st_mode & 0o777 == 0o600
    store.migrate()
    assert not caplog.records
    store.close()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_file_that_is_not_at_its_path_any_more_takes_no_reading(
    tmp_path: Path, replaced: bool
) -> None:
    """SQLite goes on in the file that it has open, without a word, and all of it is gone at the end."""
    file = tmp_path / "x.sqlite"
    store = Store(str(file))
    store.migrate()
    store.write(seqs(1), NOON)
    if replaced:
        other = Store(str(tmp_path / "backup.sqlite"))
        other.migrate()
        other.close()
        (tmp_path / "backup.sqlite").replace(file)
    else:
        file.unlink()
    with pytest.raises(StoreMovedError, match=r"moved, deleted or replaced .* start again"):
        store.write(seqs(2), NOON)
    store.close()


def test_a_recorder_does_not_wait_for_a_folder_that_nobody_made(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    done = command("edge.watch.run", "--record", tmp_path / "absent" / "x.sqlite")
    assert done.code == 2
    assert f"there is no folder {tmp_path / 'absent'}; make it first" in done.last


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 12), max_size=6), max_size=8), st.integers(1, 4))
def test_whatever_order_they_come_in(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], first: int
) -> None:
    store = Store(str(tmp_path_factory.mktemp("s") / "x.sqlite"))
    store.migrate()
    health = heard(raw("health", outbox_first=first))
    store.write([health], NOON)
    for batch in batches:
        store.write(seqs(*batch), NOON)
    store.write([health], NOON)
    came = {seq for batch in batches for seq in batch}
    stored = [row["seq"] for row in store.readings()]
    assert stored == sorted(came), "whatever the node says of its first"
    whole = min(first - 1, max(came, default=0))
    while whole + 1 in came:
        whole += 1
    with store.engine.connect() as db:
        assert db.execute(sa.select(LOGS.c.whole)).scalar_one() == whole
        assert db.execute(sa.select(sa.func.count()).select_from(COUNTS)).scalar_one() == len(
            stored
        )
    store.close()


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_query_for_grafana_reads_the_table(database: str) -> None:
    text = (ROOT / "edge" / "watch" / "README.md").read_text()
    (query,) = re.findall(r"^```sql\n(.*?)^```", text, re.M | re.S)
    store = Store(database)
    store.migrate()
    counted = {"happiness": 4, "neutral": 2, "unclassified": 0, "other": 0}
    store.write([heard(counts(1, counts=counted)), heard(small(2))], NOON)
    with store.engine.connect() as db:
        rows = db.execute(sa.text(query.replace("$__timeFilter(start)", "true"))).all()
    assert [(row.node, row.happiness) for row in rows] == [(NODE, 4)]
    store.close()
