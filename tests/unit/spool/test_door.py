"""The door: opening, room, deadlines, health, upkeep; the promises are in tests/store."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import gevent
import pytest
from structlog.testing import capture_logs

from relayd.clock import SYSTEM
from relayd.config.model import Spool
from relayd.errors import ConfigError, SpoolFull, SpoolUnavailable
from relayd.observe import metrics
from relayd.spool.door import SqliteDoor, open_spool, spool_path
from relayd.spool.model import Lease, State, queue_id_text
from relayd.spool.queries import Filter
from relayd.spool.space import Space
from tests.spooling import (
    ALERTS,
    SENT,
    SqliteBackend,
    Taker,
    deferred,
    denied,
    new_message,
    put,
    way,
)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[SqliteBackend]:
    made = SqliteBackend(tmp_path)
    yield made
    made.close()


@pytest.fixture
def door(backend: SqliteBackend) -> SqliteDoor:
    return backend.open()


def problem(folder: Path, url: str = "") -> str:
    settings = Spool(url=url or f"sqlite://{folder}/spool.db")
    with pytest.raises(ConfigError) as refused:
        open_spool(settings, lane=0, min_free_bytes=0, max_message_bytes=0)
    return str(refused.value)


# -- opening --------------------------------------------------------------------------------


def test_the_folder_is_made_and_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "spool"
    settings = Spool(url=f"sqlite://{folder}/spool.db")
    open_spool(settings, lane=0, min_free_bytes=0, max_message_bytes=0).close()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_open_to_others_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert f"chmod 700 {tmp_path}" in problem(tmp_path)
    assert not os.listdir(tmp_path)


def test_what_cannot_be_used_is_refused_with_words(tmp_path: Path) -> None:
    assert "only sqlite:///path exists" in problem(tmp_path, "postgresql://host/db")
    (tmp_path / "file").write_text("")
    assert "[spool] url" in problem(tmp_path / "file")
    (tmp_path / "spool.db").write_bytes(b"garbage" * 1000)
    tmp_path.chmod(0o700)
    assert "Nothing was changed" in problem(tmp_path)


def test_the_path_of_a_url() -> None:
    assert spool_path("sqlite:///var/spool/relayd/spool.db") == "/var/spool/relayd/spool.db"
    assert spool_path("sqlite:////tmp/x.db") == "/tmp/x.db"  # noqa: S108 - only a name


def test_nothing_stays_open_after_closing(backend: SqliteBackend) -> None:
    backend.open().close()
    before = len(os.listdir("/proc/self/fd"))
    backend.open().close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- room -----------------------------------------------------------------------------------


def test_too_little_room_refuses_before_the_first_octet(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    backend = SqliteBackend(tmp_path, min_free_bytes=int(free * 1.5))
    door = backend.open()
    with pytest.raises(SpoolFull):
        door.draft()
    door.draft(priority=0).discard()
    assert door.free_bytes > 0
    assert "octets free" in door.trouble()
    assert metrics.snapshot()["relayd_spool_reserve_bytes"][""] == int(free * 1.5)
    backend.close()
    assert "closed" in door.trouble()


# -- deadlines ------------------------------------------------------------------------------


class Gate:
    """Stops the writing thread at a point until told."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.opened = threading.Event()
        self.opened.set()

    def __call__(self, point: str) -> None:
        if point == self.point:
            assert self.opened.wait(15)


@pytest.mark.parametrize("point", ["before-commit", "after-commit"])
@pytest.mark.parametrize("size", [10, 200_000])
def test_a_commit_that_comes_too_late_is_undone_in_the_next_batch(
    tmp_path: Path, point: str, size: int
) -> None:
    gate = Gate(point)
    backend = SqliteBackend(tmp_path, crash_at=gate)
    backend.clock = SYSTEM  # type: ignore[assignment]  # deadlines are real ones here
    door = backend.open()
    taker = Taker()
    door.set_taker(taker)
    draft = door.draft()
    draft.write(bytes(size))
    gate.opened.clear()
    with pytest.raises(SpoolUnavailable):
        draft.commit(new_message(SYSTEM), deadline=SYSTEM.monotonic() + 0.2)
    draft.discard()
    # On a slow machine the time may be over before anybody was asked to set a slot aside.
    assert (len(taker.spared), taker.taken) == (taker.set_aside, [])
    gate.opened.set()
    door.work()
    door.reclaim()
    assert door.page(Filter())[0] == []
    assert not os.listdir(tmp_path / "content")
    backend.close()


def test_a_large_message_refused_before_its_commit_leaves_no_file(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    taker = Taker()
    door.set_taker(taker)
    draft = door.draft()
    draft.write(bytes(200_000))
    with pytest.raises(SpoolUnavailable):  # the row cannot be written; the file could
        draft.commit(
            new_message(backend.clock, way(ALERTS, header_from="\udcff")),
            deadline=backend.clock.monotonic() + 8,
        )
    draft.discard()
    door.work()
    assert not os.listdir(backend.folder / "content")
    assert len(taker.spared) == 1


def test_after_closing_everything_is_refused_at_once(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    message = put(door, backend.clock, octets=bytes(100_000))
    draft = door.draft()
    door.close()
    for call in (door.draft, door.work, door.sweep, door.reclaim):
        with pytest.raises(SpoolUnavailable):
            call()
    with pytest.raises(SpoolUnavailable), door.content(message):
        pass
    with pytest.raises(SpoolUnavailable):
        draft.write(bytes(100_000))
    draft.discard()


def test_a_session_killed_while_it_commits_leaves_nothing(tmp_path: Path) -> None:
    gate = Gate("before-commit")
    backend = SqliteBackend(tmp_path, crash_at=gate)
    door = backend.open()
    gate.opened.clear()
    session = gevent.spawn(put, door, backend.clock)
    gevent.idle()
    gevent.idle()
    session.kill()
    gate.opened.set()
    door.work()
    door.reclaim()
    assert door.page(Filter())[0] == []
    backend.close()


def test_leases_granted_to_a_courier_that_was_killed_come_back(tmp_path: Path) -> None:
    gate = Gate("before-commit")
    backend = SqliteBackend(tmp_path, crash_at=gate)
    door = backend.open()
    put(door, backend.clock)
    gate.opened.clear()
    courier = gevent.spawn(door.lease, ALERTS, limit=1)
    gevent.idle()
    gevent.idle()
    courier.kill()
    gate.opened.set()
    door.work()
    door.reclaim()
    leases: list[Lease] = []
    with gevent.Timeout(15):
        while not leases:  # giving back asks for no flush of its own
            leases = door.lease(ALERTS, limit=1)
    (lease,) = leases
    assert (lease.attempt, lease.maybe_sent) == (1, False)
    backend.close()


# -- health ---------------------------------------------------------------------------------


def test_a_disk_that_fails_is_told_once_and_so_is_its_recovery(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    connection = door._core._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(SpoolFull):
                put(door, backend.clock, octets=bytes(60_000))
        with pytest.raises(SpoolFull):
            door.draft()
        assert "full" in door.trouble()
        backend.clock.advance(5)
        assert door.trouble() == ""  # it has looked, though no mail came
        put(door, backend.clock, octets=bytes(60_000))
    assert [one["event"] for one in logs] == ["spool.unhealthy", "spool.healthy"]


def test_a_bug_is_logged_with_its_traceback(backend: SqliteBackend, door: SqliteDoor) -> None:
    with capture_logs() as logs, pytest.raises(SpoolUnavailable):
        put(door, backend.clock, way(ALERTS, header_from="\udcff"))
    assert [one["event"] for one in logs] == ["spool.bug"]
    assert "UnicodeEncodeError" in logs[0]["traceback"]
    put(door, backend.clock)


def test_a_file_goes_when_its_message_is_sent(backend: SqliteBackend, door: SqliteDoor) -> None:
    put(door, backend.clock, octets=bytes(100_000))
    (lease,) = door.lease(ALERTS, limit=1)
    assert lease.content is None
    assert len(os.listdir(backend.folder / "content")) == 1
    door.settle(lease, SENT)
    assert not os.listdir(backend.folder / "content")


# -- upkeep ---------------------------------------------------------------------------------


def test_a_clock_that_jumps_ahead_kills_no_mail(backend: SqliteBackend, door: SqliteDoor) -> None:
    message = put(door, backend.clock)
    backend.clock.now = backend.clock.now.replace(year=2031)
    assert door.sweep() == ()
    assert (message, State.READY, "") in backend.states().values()
    assert len(door.sweep()) == 1  # it is still so late: then it is late


def test_what_is_due_in_a_minute_stays_so_when_the_clock_is_set_back(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, deferred(backend.clock))
    backend.clock.now -= timedelta(hours=2)
    door.follow_clock()
    due = door.work().next_due_at
    assert due is not None
    assert due - backend.clock.now == timedelta(seconds=60)


def test_orphaned_files_go_when_they_are_old(backend: SqliteBackend, door: SqliteDoor) -> None:
    kept = put(door, backend.clock, octets=bytes(100_000))
    folder = backend.folder / "content"
    (folder / "0000000000001").write_bytes(b"left by a crash")
    (folder / "0000000000002").write_bytes(b"new")
    for name in os.listdir(folder):
        if not name.endswith("2"):
            os.utime(folder / name, (0, 0))
    ahead = backend.clock.utcnow().timestamp()
    os.utime(folder / "0000000000002", (ahead, ahead))
    with capture_logs() as logs:
        door.sweep()
    assert [one["event"] for one in logs] == ["spool.orphan_removed"]
    assert len(os.listdir(folder)) == 2
    (lease,) = door.lease(ALERTS, limit=1)
    assert lease.message == kept


class Tight:
    """A disk on which only SQLite's log stands in the way."""

    floor_bytes = free_bytes = 0
    is_read_only = False

    def __init__(self, log: Path) -> None:
        self._log = log
        self.is_full = True

    def check(self, priority: int) -> None:
        del priority
        if self.is_full:
            raise SpoolFull("full")

    def look_again(self) -> None:
        self.is_full = self._log.stat().st_size > 0


def test_what_the_log_takes_up_is_given_back_before_mail_is_refused(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    for _ in range(40):
        put(door, backend.clock, octets=bytes(50_000))
    tight = Tight(Path(f"{backend.path}-wal"))
    door._space = cast("Space", tight)
    put(door, backend.clock)
    tight.is_full = True
    with pytest.raises(SpoolFull):  # not at each message: it was tried a moment ago
        door.draft()
    backend.clock.advance(5)
    put(door, backend.clock)
    door.sweep()
    tight.is_full = True
    backend.clock.advance(5)
    with pytest.raises(SpoolFull):  # there is nothing to give back
        door.draft()


def test_the_log_is_empty_after_a_sweep(backend: SqliteBackend, door: SqliteDoor) -> None:
    put(door, backend.clock)
    assert os.path.getsize(backend.path + "-wal") > 0
    door.sweep()
    assert os.path.getsize(backend.path + "-wal") == 0


def test_looking_goes_through_its_own_connection(backend: SqliteBackend, door: SqliteDoor) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, SENT)
    assert [one.id for one in door.page(Filter())[0]] == [message]
    story = door.show(message)
    assert story is not None
    assert [one.outcome for one in story.journal] == ["sent"]
    assert door.counts().by_state == {}
    door.close()
    with pytest.raises(SpoolUnavailable):
        door.counts()


# -- what is born held ----------------------------------------------------------------------


def test_what_comes_to_a_hold_is_logged_with_what_holds_it(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    """Nothing told of it: no attempt is made."""
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock))
    with capture_logs() as lines:
        message = put(door, backend.clock, octets=b"a: b\r\n\r\nc\r\n")
        put(door, backend.clock, way(ALERTS, header_from="other@contoso.com"))
    assert lines == [
        {
            "event": "message.held", "log_level": "warning", "id": queue_id_text(message),
            "session": "S1", "device": "ups", "upstream": "contoso",
            "mailbox": "alerts@contoso.com", "recipients": 1, "bytes": 11, "attempt": 0,
            "reason": "ErrorSendAsDenied", "text": "may not send as",
        }
    ]  # fmt: skip


def test_what_is_set_free_as_it_comes_is_not_logged_as_held(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock))
    other = backend.open()
    backend.clock.advance(1801)
    (probe,) = other.lease(ALERTS, limit=1)
    other.settle(probe, SENT)  # of which the first door has not heard
    with capture_logs() as lines:
        message = put(door, backend.clock)
    assert backend.states()[message][1] is State.READY
    assert lines == []
