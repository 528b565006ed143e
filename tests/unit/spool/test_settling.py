"""Settling many at once, and what makes the whole batch be done carefully."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.errors import LeaseLost
from relayd.spool.leasing import TakeLeases
from relayd.spool.model import Lease, Settlement
from relayd.spool.settling import ReleaseHeld, Settle
from relayd.spool.wishes import Ask
from tests.spooling import ALERTS, SENT, Bench, deferred, denied, way


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def settle(lease: Lease, settlement: Settlement) -> Settle:
    return Settle(
        lease.delivery,
        lease.fence,
        lease.message,
        (*lease.mailbox, lease.header_from),
        lease.content is None,
        settlement,
    )


def leased(bench: Bench, count: int) -> list[Lease]:
    bench.core.apply([bench.accept() for _ in range(count)])
    return bench.do(TakeLeases(ALERTS, count))


def states(bench: Bench) -> list[int]:
    return [row[0] for row in bench.rows("SELECT state FROM delivery ORDER BY id")]


def test_a_hundred_are_settled_together(bench: Bench) -> None:
    leases = leased(bench, 100)
    assert bench.core.apply([settle(one, SENT) for one in leases]).outcomes == [None] * 100
    assert states(bench) == [4] * 100
    assert bench.rows("SELECT count(*) FROM content") == [(0,)]
    rows = bench.rows("SELECT DISTINCT outcome, http_status, request_id, number FROM attempt")
    assert rows == [("sent", 202, "r-1", 1)]


def test_one_stale_lease_spoils_nobody_elses_settle(bench: Bench) -> None:
    leases = leased(bench, 3)
    bench.do(settle(leases[1], deferred(bench.clock, 0)))
    outcomes = bench.core.apply([settle(one, SENT) for one in leases]).outcomes
    assert [type(one) for one in outcomes] == [type(None), LeaseLost, type(None)]
    assert states(bench) == [4, 1, 4]
    assert bench.rows("SELECT count(*) FROM attempt") == [(3,)]


def test_one_with_a_wish_is_obeyed_in_the_same_batch(bench: Bench) -> None:
    leases = leased(bench, 3)
    bench.do(Ask("hold", (leases[1].message,)))
    later = deferred(bench.clock)
    assert bench.core.apply([settle(one, later) for one in leases]).outcomes == [None] * 3
    assert states(bench) == [1, 2, 1]


def test_a_hold_is_released_in_parts_and_survives_in_between(bench: Bench) -> None:
    (probe,) = leased(bench, 1)
    bench.do(settle(probe, denied(bench.clock, 10)))
    for _ in range(5):
        bench.core.apply([bench.accept() for _ in range(300)])
    bench.rows("UPDATE delivery SET state = 2, held_by = 'ErrorSendAsDenied' WHERE state = 0")
    bench.clock.advance(11)
    (again,) = bench.do(TakeLeases(ALERTS, 1))
    bench.do(settle(again, SENT))
    assert states(bench).count(2) == 500
    assert bench.rows("SELECT releasing FROM hold") == [(1,)]
    assert bench.do(ReleaseHeld()) == 500
    assert bench.do(ReleaseHeld()) == 0
    assert states(bench).count(2) == 0
    assert bench.rows("SELECT * FROM hold") == []


def test_a_second_cause_for_the_same_pair_is_lifted_too(bench: Bench) -> None:
    one, two, three = leased(bench, 3)
    bench.do(settle(one, denied(bench.clock, 10, "ErrorA")))
    bench.do(settle(two, denied(bench.clock, 10, "ErrorB")))
    bench.do(settle(three, SENT))
    assert states(bench) == [0, 0, 4]


def test_a_lease_in_the_same_batch_sees_that_the_hold_is_gone(bench: Bench) -> None:
    """What it put back would be HELD by a Hold that is not there: for ever."""
    probe, *others = leased(bench, 3)
    for lease in others:
        bench.do(settle(lease, denied(bench.clock)))
    freed = bench.core.apply([settle(probe, SENT), TakeLeases(ALERTS, 5)]).outcomes[1]
    assert isinstance(freed, list)
    assert [one.delivery for one in freed] == [one.delivery for one in others]
    assert states(bench) == [4, 3, 3]


def test_a_lease_in_the_same_batch_sees_that_there_is_a_hold_now(bench: Bench) -> None:
    refused, probe = leased(bench, 2)
    bench.put()
    batch = [
        settle(refused, denied(bench.clock)),
        TakeLeases(ALERTS, 5),
        settle(probe, deferred(bench.clock)),
    ]
    assert bench.core.apply(batch).outcomes[1] == []
    assert states(bench) == [2, 1, 2]


def test_a_hold_of_one_from_leaves_another_alone(bench: Bench) -> None:
    bench.put(way(ALERTS, header_from="a@contoso.com"))
    bench.put(way(ALERTS, header_from="b@contoso.com"))
    one, two = bench.do(TakeLeases(ALERTS, 2))
    bench.do(settle(one, denied(bench.clock)))
    bench.do(settle(two, SENT))
    assert states(bench) == [2, 4]
    assert bench.rows("SELECT header_from FROM hold") == [("a@contoso.com",)]
