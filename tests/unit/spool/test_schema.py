"""The way to the newest schema, and no way from a newer one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from relayd.errors import ConfigError
from relayd.spool import schema
from relayd.spool.model import State


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    yield made
    made.close()


def test_an_empty_database_gets_every_table(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert names >= {"message", "content", "delivery", "attempt", "hold", "holder", "meta"}


def test_a_newer_schema_is_refused_with_words(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="schema version 99, this relayd knows up to"):
        schema.migrate(connection)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_migration_that_fails_leaves_what_was(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.migrate(connection)
    wrong = (*schema.MIGRATIONS, ("CREATE TABLE more (a)", "nonsense"))
    monkeypatch.setattr(schema, "MIGRATIONS", wrong)
    monkeypatch.setattr(schema, "VERSION", len(wrong))
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(wrong) - 1,)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'more'").fetchall()


def test_only_what_nobody_has_had_yet_sorts_below_leased() -> None:
    assert set(schema.CODES) == set(State)
    assert schema.STATES[schema.CODES[State.HELD]] is State.HELD
    waiting = {one for one in State if schema.CODES[one] <= 1}
    assert waiting == {State.READY, State.DEFERRED}
    live = {one for one in State if schema.CODES[one] <= 3}
    assert live == set(State) - {State.SENT, State.FAILED}
