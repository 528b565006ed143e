"""One statement for many rows, whatever their number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool.transaction import Transaction, json_rows, marks, sibling_values
from tests.spooling import POLICY


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        yield made


def batch_on(connection: sqlite3.Connection) -> Transaction:
    return Transaction(connection=connection, policy=POLICY, now=0, boot=0.0, holder=1, holds={})


@given(st.integers(0, 200))
def test_a_bulk_statement_takes_every_row_and_no_padding(count: int) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        rows = [(number, f"{number}") for number in range(count)]
        sql = "INSERT INTO t SELECT * FROM ({values}) WHERE column1 NOT NULL"
        assert batch_on(connection).bulk(sql, rows) == count
        assert connection.execute("SELECT * FROM t ORDER BY a").fetchall() == rows


def test_rows_come_back_as_one_text(connection: sqlite3.Connection) -> None:
    sql = "SELECT json_group_array(json_array(column1, column2)) FROM (VALUES (1, 'a'), (2, NULL))"
    assert json_rows(connection, sql) == [[1, "a"], [2, None]]
    assert json_rows(connection, "SELECT json_group_array(1) FROM sqlite_master") == []


def test_scalar_of_no_row_is_none(connection: sqlite3.Connection) -> None:
    assert batch_on(connection).scalar("SELECT 1 WHERE ?", 0) is None
    assert batch_on(connection).scalar("SELECT ?", 5) == 5


def test_marks_and_siblings() -> None:
    assert marks(3) == "?,?,?"
    assert sibling_values(4096) == (4096, 4159, 4096)
