"""The way to the newest schema, and no way from a newer one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from relayd.errors import ConfigError
from relayd.spool import schema
from relayd.spool.model import State
from tests.spooling import FUTURE


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    yield made
    made.close()


def test_an_empty_database_gets_every_table(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.version(),)
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert names >= {"message", "content", "delivery", "attempt", "hold", "holder", "meta"}


def test_a_newer_schema_is_refused_with_words(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA user_version = 99")
    connection.execute(f"PRAGMA application_id = {schema.stamp('2.10.3')}")
    with pytest.raises(
        ConfigError, match=r"version 99 by relayd 2\.10\.3; .* knows up to 1"
    ) as said:
        schema.migrate(connection, "/s/spool.db")
    assert "Install relayd 2.10.3, or newer, again" in str(said.value)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_migration_that_fails_leaves_what_was(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.migrate(connection)
    wrong = (*schema.MIGRATIONS, ("CREATE TABLE more (a)", "nonsense"))
    monkeypatch.setattr(schema, "MIGRATIONS", wrong)
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(wrong) - 1,)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'more'").fetchall()


def test_a_new_schema_bears_the_number_of_its_program(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    assert connection.execute("PRAGMA application_id").fetchone() == (schema.stamp(),)


@pytest.mark.parametrize(
    ("program", "number"),
    [
        ("0.1.0", 0x000100),
        ("1.2.3", 0x010203),
        ("2.0~rc1", 0x020001),
        ("x", 0),
        ("999.999", 0x7FFF00),
    ],
)
def test_a_release_is_a_number(program: str, number: int) -> None:
    assert schema.stamp(program) == number


@pytest.mark.parametrize("statement", FUTURE)
def test_additions_are_additive(statement: str) -> None:
    assert schema.is_additive(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE hold",
        "ALTER TABLE message RENAME COLUMN sender TO envelope",
        "ALTER TABLE message DROP COLUMN helo",
        "ALTER TABLE message ADD COLUMN later TEXT CHECK (later <> '')",
        "CREATE UNIQUE INDEX message_once ON message (message_id)",
        "CREATE TRIGGER later AFTER INSERT ON message BEGIN SELECT 1; END",
        "UPDATE delivery SET state = 6 WHERE state = 5",
        "INSERT INTO message VALUES (1)",
    ],
)
def test_changes_are_not(statement: str) -> None:
    assert not schema.is_additive(statement)


def test_every_migration_but_the_first_is_additive() -> None:
    """The release before works on the new schema while an upgrade goes on (HACKING.md)."""
    later = [statement for step in schema.MIGRATIONS[1:] for statement in step]
    assert [one for one in later if not schema.is_additive(one)] == []


def test_only_what_nobody_has_had_yet_sorts_below_leased() -> None:
    assert set(schema.CODES) == set(State)
    assert schema.STATES[schema.CODES[State.HELD]] is State.HELD
    waiting = {one for one in State if schema.CODES[one] <= 1}
    assert waiting == {State.READY, State.DEFERRED}
    live = {one for one in State if schema.CODES[one] <= 3}
    assert live == set(State) - {State.SENT, State.FAILED, State.DELETED}


def test_damaged_text_is_read_with_marks() -> None:
    assert schema.text_of("ö@contoso.com".encode()) == "ö@contoso.com"
    assert schema.text_of(b"op\xf3@contoso.com") == "op\ufffd@contoso.com"
