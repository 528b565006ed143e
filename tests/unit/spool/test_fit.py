"""What the file says of itself is believed before anybody opens the database."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relayd import check
from relayd.config.model import Config, Spool
from relayd.spool import fit, schema


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "spool.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        schema.migrate(connection)
    return made


def config(path: Path) -> Config:
    return Config(spool=Spool(url=f"sqlite://{path}"))


def set_schema(path: Path, number: int, program: str = "3.2.1") -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {schema.stamp(program)}")


def test_the_header_is_what_sqlite_says(path: Path) -> None:
    set_schema(path, 5)
    told = fit.header(str(path))
    assert told == (5, 0x030201, path.stat().st_size)


def test_a_spool_of_this_code_fits(path: Path) -> None:
    assert fit.problems(config(path)) == []
    assert fit.standstill(config(path)) == ""


@pytest.mark.parametrize("octets", [None, b"", b"SQLite format 3\0", b"garbage" * 100])
def test_what_is_no_database_is_for_others_to_judge(tmp_path: Path, octets: bytes | None) -> None:
    path = tmp_path / "spool.db"
    if octets is not None:
        path.write_bytes(octets)
    assert fit.header(str(path)) is None
    assert fit.problems(config(path)) == []
    assert fit.standstill(config(path)) == ""
    assert fit.problems(Config(spool=Spool(url="postgresql://u@h/db"))) == []


def test_a_newer_schema_names_the_release_and_the_copy_of_before(path: Path) -> None:
    set_schema(path, 9)
    (path.parent / "spool.db.schema1.backup").write_bytes(b"")
    (path.parent / "spool.db.schema8.backup").write_bytes(b"")
    (problem,) = fit.problems(config(path))
    assert "schema version 9 by relayd 3.2.1" in problem
    assert "Install relayd 3.2.1, or newer, again" in problem
    assert f"schema 1, is {path}.schema1.backup" in problem


def test_a_migration_wants_room_for_the_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE l (a)",)))
    assert fit.problems(config(path)) == []
    full = os.statvfs_result((4096, 4096, 1000, 1000, 1000, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    (problem,) = fit.problems(config(path))
    assert "Make room there" in problem


def test_only_additions_are_made_beside_a_running_relay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = (*schema.MIGRATIONS, ("CREATE TABLE l (a)",))
    monkeypatch.setattr(schema, "MIGRATIONS", added)
    assert fit.standstill(config(path)) == ""
    monkeypatch.setattr(schema, "MIGRATIONS", (*added, ("DROP TABLE hold",)))
    assert "systemctl restart relayd" in fit.standstill(config(path))


def test_check_asks() -> None:
    assert fit.__name__ in check.ROOMS


@pytest.mark.parametrize(("mode", "shown"), [(0o755, "755"), (0o710, "710")])
def test_a_folder_that_others_may_read_is_refused_before_the_start(
    path: Path, mode: int, shown: str
) -> None:
    path.parent.chmod(mode)
    (problem,) = fit.problems(config(path))
    assert f"{path.parent} is open to others (mode {shown})" in problem
    assert problem.endswith(f"chmod 700 {path.parent}")
    path.parent.chmod(0o700)
    assert fit.problems(config(path)) == []
    assert fit.openness(str(path.parent / "missing")) == ""
