"""The core when the disk, the database or an operation is not as it should be."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import NoneType

import pytest

from relayd.errors import ConfigError, SpoolFull, SpoolUnavailable
from relayd.spool import backup, fit, schema
from relayd.spool.accepting import Accept
from relayd.spool.leasing import TakeLeases
from relayd.spool.transaction import Operation
from relayd.spool.upkeep import ReadWork
from tests.spooling import ALERTS, FUTURE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def pragma(bench: Bench, name: str) -> object:
    connection = bench.core._connection
    assert connection is not None
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def failure(bench: Bench, operation: Operation[object]) -> type:
    (outcome,) = bench.core.apply([operation]).outcomes
    return type(outcome)


def fail_after(point: str) -> None:
    """Leave a commit in doubt."""
    if point == "after-commit":
        raise OSError(5, "Input/output error")


def test_commits_are_flushed_and_sqlite_never_checkpoints_by_itself(bench: Bench) -> None:
    assert pragma(bench, "journal_mode") == "wal"
    assert pragma(bench, "synchronous") == 2
    assert pragma(bench, "wal_autocheckpoint") == 0
    assert pragma(bench, "journal_size_limit") == 64 * 1024 * 1024


def test_every_commit_happens_inside_the_turnstile(bench: Bench) -> None:
    points: list[str] = []

    def crash_at(point: str) -> None:
        with open(bench.path + ".turnstile.b", "rb") as room:
            try:
                fcntl.flock(room, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                points.append(point)

    bench.core._crash_at = crash_at
    bench.put()
    assert points == ["before-commit", "after-commit"]


def test_latecomers_go_with_the_batch_once_it_is_its_turn(bench: Bench) -> None:
    commits: list[str] = []
    bench.core._crash_at = commits.append
    first, late = bench.accept(), bench.accept()

    def latecomers() -> list[Accept]:
        with open(bench.path + ".turnstile.b", "rb") as room, pytest.raises(BlockingIOError):
            fcntl.flock(room, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return [late]

    given = [first]
    assert bench.core.apply(given, latecomers).outcomes == [None, None]
    assert given == [first], "the caller's own"
    assert commits == ["before-commit", "after-commit"]
    assert bench.rows("SELECT count(*) FROM message") == [(2,)]


def test_latecomers_of_a_batch_in_doubt_are_taken_back_too(bench: Bench) -> None:
    late = bench.accept()
    bench.core._crash_at = fail_after
    outcomes = bench.core.apply([bench.accept()], lambda: [late]).outcomes
    assert [type(one) for one in outcomes] == [SpoolUnavailable] * 2
    bench.core._crash_at = lambda _: None
    bench.clock.advance(1)
    assert bench.do(TakeLeases(ALERTS, 5)) == []
    assert bench.rows("SELECT count(*) FROM message") == [(0,)]


def test_a_latecomer_that_spoils_the_batch_fails_alone(bench: Bench) -> None:
    good, bad = bench.accept(), bench.accept()
    broken = Accept(bad.id, bad.message, bad.content, (("no", "such", "row"),), ())
    applied = bench.core.apply([good], lambda: [broken])
    assert [type(one) for one in applied.outcomes] == [type(None), SpoolUnavailable]


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    garbage = b"this is not a database" * 1000
    (tmp_path / "spool.db").write_bytes(garbage)
    with pytest.raises(ConfigError, match=r"spool\.db cannot be used: file is not a database"):
        Bench(tmp_path)
    assert (tmp_path / "spool.db").read_bytes() == garbage


def test_a_full_database_is_said_to_be_full_and_works_again_after(bench: Bench) -> None:
    bench.put()
    pages = pragma(bench, "page_count")
    pragma(bench, f"max_page_count = {pages}")
    accept = bench.accept(octets=bytes(60_000))
    assert failure(bench, accept) is SpoolFull
    assert type(bench.core.trouble) is SpoolFull
    assert failure(bench, ReadWork()) is SpoolFull  # not tried again at once
    bench.clock.advance(1)
    assert failure(bench, bench.accept(octets=bytes(60_000))) is NoneType  # no limit any more
    assert bench.rows("SELECT count(*) FROM message") == [(2,)]


def test_a_message_whose_commit_is_in_doubt_is_taken_back(bench: Bench) -> None:
    accept = bench.accept()
    bench.core._crash_at = fail_after
    assert failure(bench, accept) is SpoolUnavailable
    bench.core._crash_at = lambda _: None
    assert bench.rows("SELECT count(*) FROM message") == [(1,)]
    bench.clock.advance(1)
    assert bench.do(TakeLeases(ALERTS, 5)) == []
    assert bench.rows("SELECT count(*) FROM message") == [(0,)]


def test_one_operation_that_cannot_be_done_spoils_no_other(bench: Bench) -> None:
    good, bad, other = bench.accept(), bench.accept(), bench.accept()
    broken = Accept(bad.id, bad.message, bad.content, (("no", "such", "row"),), ())
    applied = bench.core.apply([good, broken, other])
    assert [type(one) for one in applied.outcomes] == [type(None), SpoolUnavailable, type(None)]
    assert len(applied.bugs) == 1
    assert bench.core.trouble is None
    assert [row[0] for row in bench.rows("SELECT id FROM message ORDER BY id")] == [
        good.id,
        other.id,
    ]


def test_an_id_that_exists_already_is_refused_alone(bench: Bench) -> None:
    first = bench.accept()
    bench.do(first)
    applied = bench.core.apply([first, bench.accept()])
    assert [type(one) for one in applied.outcomes] == [SpoolUnavailable, type(None)]


@pytest.mark.slow(1.1)
def test_a_lock_of_somebody_else_passes(bench: Bench) -> None:
    with closing(sqlite3.connect(bench.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        (outcome,) = bench.core.apply([bench.accept()]).outcomes
        assert "somebody else has it locked" in str(outcome)
        shell.execute("ROLLBACK")
    assert failure(bench, bench.accept()) is NoneType


@pytest.mark.slow(0.5)
def test_a_checkpoint_brings_the_log_into_the_database(bench: Bench) -> None:
    wanted = [bench.core.wants_checkpoint]
    for _ in range(80):
        bench.core.apply([bench.accept(octets=bytes(60_000)) for _ in range(10)])
    wanted.append(bench.core.wants_checkpoint)
    bench.core.checkpoint()
    wanted.append(bench.core.wants_checkpoint)
    assert wanted == [False, True, False]
    size = Path(bench.path).stat().st_size
    assert size > 800 * 60_000
    bench.core.checkpoint(truncate=True)
    assert Path(bench.path + "-wal").stat().st_size == 0


def test_a_database_that_vanishes_is_not_begun_anew_silently(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.put()
    bench.core.close()
    newest = Bench(tmp_path).core.open()
    assert newest > 0


# -- another schema ---------------------------------------------------------------------------


def newer(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, statements or FUTURE))


def tables(path: str) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def test_a_migration_is_made_after_a_copy_and_the_mail_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Bench(tmp_path)
    old.put()
    old.core.close()
    newer(monkeypatch)
    new = Bench(tmp_path)
    assert new.core.migrated == (1, 2, f"{new.path}.schema1.backup")
    assert new.rows("SELECT count(*) FROM message") == [(1,)]
    assert "later" in tables(new.path)
    assert "later" not in tables(new.core.migrated.copy)
    told = fit.header(new.path)
    assert told is not None
    assert told.schema == 2  # in the file itself, where `check` looks
    new.core.close()
    again = Bench(tmp_path)
    assert again.core.migrated is None
    again.core.close()


def test_a_new_spool_is_not_copied_and_says_what_it_is_while_it_is_open(bench: Bench) -> None:
    assert bench.core.migrated is None
    assert backup.found(bench.path) == []
    told = fit.header(bench.path)
    assert told is not None
    assert told.schema == schema.version()


def test_several_who_start_at_once_migrate_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Bench(tmp_path)
    old.put()
    newer(monkeypatch)
    benches: list[Bench] = []
    threads = [threading.Thread(target=lambda: benches.append(Bench(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.core.migrated is not None for one in benches].count(True) == 1
    old.put()  # and the code of before works on, until its worker has drained
    assert benches[0].rows("SELECT count(*) FROM message") == [(2,)]
    for one in (old, *benches):
        one.core.close()


def test_a_worker_of_before_survives_a_failing_disk_after_newer_code_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drains still, and what it sent must be recorded."""
    old = Bench(tmp_path)
    old.put()
    with monkeypatch.context() as later:
        newer(later)
        Bench(tmp_path).core.close()

    def fail_before(point: str) -> None:
        if point == "before-commit":
            raise OSError(5, "Input/output error")

    old.core._crash_at = fail_before
    assert failure(old, old.accept()) is SpoolUnavailable
    old.core._crash_at = lambda _: None
    old.clock.advance(1)
    assert failure(old, old.accept()) is NoneType
    assert old.rows("SELECT count(*) FROM message") == [(2,)]
    old.core.close()


def test_without_a_copy_there_is_no_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Bench(tmp_path)
    old.core.close()
    newer(monkeypatch)
    (tmp_path / "spool.db.schema1.backup").mkdir()
    with pytest.raises(ConfigError, match="Nothing was changed"):
        Bench(tmp_path)
    assert "later" not in tables(old.path)


def test_a_migration_that_fails_leaves_schema_and_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Bench(tmp_path)
    old.core.close()
    newer(monkeypatch, "CREATE TABLE later (a)", "nonsense")
    with pytest.raises(ConfigError, match="cannot be used"):
        Bench(tmp_path)
    assert "later" not in tables(old.path)
    assert backup.found(old.path) != []


def test_the_spool_of_a_newer_relayd_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Bench(tmp_path)
    old.put()
    old.core.close()
    with monkeypatch.context() as later:
        newer(later)
        Bench(tmp_path).core.close()
    before = (tmp_path / "spool.db").read_bytes()
    with pytest.raises(ConfigError, match="brought to schema version 2 by relayd"):
        Bench(tmp_path)
    assert (tmp_path / "spool.db").read_bytes() == before
    # What docs/spool.md says of the way back.
    (tmp_path / "spool.db.schema1.backup").replace(tmp_path / "spool.db")
    again = Bench(tmp_path)
    assert again.rows("SELECT count(*) FROM message") == [(1,)]
    again.core.close()
