"""A copy is whole, private and there before anything changes, or nothing changes."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.errors import ConfigError
from relayd.spool import backup


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def connection(path: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("CREATE TABLE t (a)")
        made.execute("INSERT INTO t VALUES (7)")
        made.execute("PRAGMA user_version = 3")
        yield made


def test_the_copy_has_all_and_only_its_owner_reads_it(
    connection: sqlite3.Connection, path: str
) -> None:
    before = os.umask(0)
    try:
        made = backup.copy(connection, path, 3)
    finally:
        os.umask(before)
    assert made == f"{path}.schema3.backup"
    assert os.stat(made).st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(made)) as copied:
        assert copied.execute("SELECT a FROM t").fetchall() == [(7,)]
        assert copied.execute("PRAGMA user_version").fetchone() == (3,)
    assert backup.found(path) == [(3, made)]


def test_a_copy_that_was_cut_short_is_made_anew(connection: sqlite3.Connection, path: str) -> None:
    Path(f"{path}.schema3.backup.part").write_bytes(b"half a copy")
    Path(f"{path}.schema3.backup").write_bytes(b"older")
    made = backup.copy(connection, path, 3)
    assert Path(made).read_bytes().startswith(b"SQLite format 3")
    assert not os.path.exists(f"{made}.part")


def test_others_write_while_it_is_copied(connection: sqlite3.Connection, path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO t VALUES (8)")
        made = backup.copy(connection, path, 3)
        other.execute("COMMIT")
    with closing(sqlite3.connect(made)) as copied:
        assert copied.execute("SELECT a FROM t").fetchall() == [(7,)]


def test_without_room_nothing_is_left_and_the_words_say_how_much_is_wanted(
    connection: sqlite3.Connection, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 1000, 1000, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(ConfigError, match=r"needs 16 MB; .* has 4 MB free") as refused:
        backup.copy(connection, path, 3)
    assert "Nothing was changed" in str(refused.value)
    assert backup.found(path) == []


def test_a_disk_that_refuses_leaves_no_half_copy(connection: sqlite3.Connection, path: str) -> None:
    os.mkdir(f"{path}.schema3.backup")
    with pytest.raises(ConfigError, match="no copy could be made"):
        backup.copy(connection, path, 3)
    assert not os.path.exists(f"{path}.schema3.backup.part")


def test_the_last_two_are_kept_by_their_number(path: str) -> None:
    names = [f"{path}.schema{number}.backup" for number in (2, 9, 10)]
    strangers = [f"{path}.schema1.backup.mine", f"{path}.old", f"{path}.schema.backup"]
    for name in names + strangers:
        Path(name).write_bytes(b"")
    backup.prune(path)
    assert backup.found(path) == [(9, names[1]), (10, names[2])]
    assert all(os.path.exists(name) for name in strangers)


def test_a_folder_that_is_not_there_has_no_copies(tmp_path: Path) -> None:
    assert backup.found(str(tmp_path / "none" / "spool.db")) == []


def test_one_at_a_time_has_the_turn(path: str) -> None:
    inside = threading.Event()

    def enter() -> None:
        with backup.turn(path):
            inside.set()

    other = threading.Thread(target=enter)
    with backup.turn(path):
        other.start()
        assert not inside.wait(0.05)
    other.join()
    assert inside.is_set()
