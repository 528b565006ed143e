"""Content on its way out: damaged or missing content is put aside, never sent whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.door import SqliteDoor
from relayd.spool.model import QueueId, State, queue_id_text
from tests.spooling import ALERTS, SENT, SqliteBackend, put

LARGE = b"0123456789abcdef" * 50_000


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[SqliteBackend]:
    made = SqliteBackend(tmp_path)
    yield made
    made.close()


@pytest.fixture
def door(backend: SqliteBackend) -> SqliteDoor:
    return backend.open()


def held(backend: SqliteBackend, message: QueueId) -> bool:
    return (message, State.HELD, "corrupt") in backend.states().values()


def read(door: SqliteDoor, message: QueueId) -> bytes:
    with door.content(message) as pieces:
        return b"".join(pieces)


def test_empty_content_has_no_pieces(backend: SqliteBackend, door: SqliteDoor) -> None:
    assert read(door, put(door, backend.clock, octets=b"")) == b""


@pytest.mark.parametrize("damaged", [LARGE[:-1], b"x" + LARGE[1:]], ids=["short", "changed"])
def test_a_damaged_file_is_put_aside_and_its_message_held(
    backend: SqliteBackend, door: SqliteDoor, damaged: bytes
) -> None:
    message = put(door, backend.clock, octets=LARGE)
    (lease,) = door.lease(ALERTS, limit=1)
    path = backend.folder / "content" / queue_id_text(message)
    path.write_bytes(damaged)
    with capture_logs() as logs, pytest.raises(SpoolUnavailable, match="content is"):
        read(door, message)
    assert held(backend, message)
    assert not path.exists()
    assert (backend.folder / "corrupt" / path.name).read_bytes() == damaged
    assert [one["event"] for one in logs] == ["spool.corrupt"]
    with pytest.raises(LeaseLost):
        door.settle(lease, SENT)


def test_a_file_that_is_gone_is_said_to_be_gone(backend: SqliteBackend, door: SqliteDoor) -> None:
    message = put(door, backend.clock, octets=LARGE)
    os.unlink(backend.folder / "content" / queue_id_text(message))
    with pytest.raises(SpoolUnavailable, match="gone"):
        read(door, message)
    assert held(backend, message)


def test_a_disk_that_cannot_be_read_now_condemns_nothing(
    backend: SqliteBackend, door: SqliteDoor
) -> None:
    message = put(door, backend.clock, octets=LARGE)
    path = backend.folder / "content" / queue_id_text(message)
    path.rename(backend.folder / "kept")
    path.mkdir()  # reading it fails, and not because it is missing
    with pytest.raises(SpoolUnavailable):
        read(door, message)
    assert not held(backend, message)
    path.rmdir()
    (backend.folder / "kept").rename(path)
    assert read(door, message) == LARGE


def test_leaving_early_closes_the_file(backend: SqliteBackend, door: SqliteDoor) -> None:
    message = put(door, backend.clock, octets=LARGE)
    before = len(os.listdir("/proc/self/fd"))
    with door.content(message) as pieces:
        assert next(iter(pieces))
    assert len(os.listdir("/proc/self/fd")) == before
