"""Both stores are Doors; mypy says the rest. What they promise is in tests/store."""

from __future__ import annotations

from pathlib import Path

from relayd.spool.door import SqliteDoor
from relayd.spool.store import Door, Draft, Taker
from tests.spooling import SqliteBackend
from tests.spooling import Taker as FakeTaker


def test_the_sqlite_door_is_a_door(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    opened: SqliteDoor = backend.open()
    door: Door = opened
    draft: Draft = door.draft(priority=0)
    draft.discard()
    taker: Taker = FakeTaker()
    door.set_taker(taker)
    backend.close()
