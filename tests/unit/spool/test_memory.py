"""What the spool in memory has beyond the promises of every store (tests/store)."""

from __future__ import annotations

import pytest

from relayd.clock import FakeClock
from relayd.errors import SpoolFull, SpoolUnavailable
from relayd.spool.memory import MemoryDoor, MemorySpool
from relayd.spool.store import Door, Draft
from tests.spooling import ALERTS, Taker, new_message, put


def test_it_is_a_door() -> None:
    door: Door = MemoryDoor()
    draft: Draft = door.draft(priority=2)
    draft.discard()


def test_a_broken_one_raises_what_it_was_given_and_loses_nothing() -> None:
    clock = FakeClock()
    door = MemoryDoor(clock=clock)
    taker = Taker()
    door.set_taker(taker)
    message = put(door, clock)
    draft = door.draft()
    draft.write(b"x")
    door.broken = SpoolFull("as told")
    with pytest.raises(SpoolFull):
        draft.write(b"y")
    with pytest.raises(SpoolFull):
        draft.commit(new_message(clock), deadline=clock.monotonic() + 8)
    with pytest.raises(SpoolFull):
        door.work()
    door.broken = None
    assert set(door.spool.messages) == {message}


def test_doors_share_a_spool_and_a_crashed_one_is_closed() -> None:
    spool, clock = MemorySpool(), FakeClock()
    one, other = (MemoryDoor(spool, lane=lane, clock=clock) for lane in (0, 1))
    put(one, clock)
    (lease,) = one.lease(ALERTS, limit=1)
    one.crash()
    with pytest.raises(SpoolUnavailable):
        one.renew(lease)
    assert other.reclaim() == 1
