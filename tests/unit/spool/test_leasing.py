"""Leases beneath the door: plans of the hot statements, damage, the dead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.spool import leasing
from relayd.spool.leasing import MarkCorrupt, ReadContent, Reclaim, Renew, TakeLeases, damage
from relayd.spool.settling import Settle
from tests.spooling import ALERTS, SCANS, Bench, denied, way


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def plan(bench: Bench, sql: str, *values: object) -> list[str]:
    return [row[3] for row in bench.rows(f"EXPLAIN QUERY PLAN {sql}", *values)]


def test_picking_the_best_rows_seeks_and_sorts_nothing(bench: Bench) -> None:
    pick = (*ALERTS, 0, 3)
    lines = plan(bench, leasing._WAITING, *pick, *pick, *pick)
    assert (
        sum(
            "USING COVERING INDEX delivery_waiting (upstream=? AND mailbox=?" in one
            for one in lines
        )
        == 3
    )
    assert not [one for one in lines if "TEMP B-TREE" in one or "SCAN delivery" in one]


def test_what_a_hold_keeps_back_hides_nothing_behind_it(bench: Bench) -> None:
    bench.put()
    (refused,) = bench.do(TakeLeases(ALERTS, 1))
    word = denied(bench.clock)
    pair = (*ALERTS, refused.header_from)
    bench.do(Settle(refused.delivery, refused.fence, refused.message, pair, False, word))
    for _ in range(3):
        bench.core.apply([bench.accept() for _ in range(200)])
    free = bench.put(way(ALERTS, header_from="nas@contoso.com"))
    assert [lease.message for lease in bench.do(TakeLeases(ALERTS, 1))] == [free]
    assert bench.rows("SELECT count(*) FROM delivery WHERE state = 2") == [(601,)]


def test_a_hold_over_very_many_takes_them_in_parts(bench: Bench) -> None:
    bench.put()
    (refused,) = bench.do(TakeLeases(ALERTS, 1))
    pair = (*ALERTS, refused.header_from)
    bench.core.apply([bench.accept() for _ in range(1500)])
    free = bench.put(way(ALERTS, header_from="nas@contoso.com"))
    word = denied(bench.clock)
    bench.do(Settle(refused.delivery, refused.fence, refused.message, pair, False, word))
    first = bench.core.apply([TakeLeases(ALERTS, 1)])
    assert first.outcomes == [[]]
    assert first.effects.ready == [ALERTS], "somebody must come for the rest"
    assert bench.rows("SELECT count(*) FROM delivery WHERE state = 2") == [(1 + 1024,)]
    (lease,) = bench.do(TakeLeases(ALERTS, 1))
    assert lease.message == free


def test_a_content_that_is_not_what_was_stored_is_held_and_kept(bench: Bench) -> None:
    good, bad = bench.put(octets=b"good"), bench.put(octets=b"bad")
    bench.rows("UPDATE content SET octets = ? WHERE id = ?", b"BAD", bad)
    applied = bench.core.apply([TakeLeases(ALERTS, 5)])
    (leases,) = applied.outcomes
    assert [lease.message for lease in leases] == [good]  # type: ignore[attr-defined]  # leases
    assert applied.effects.spoiled == [(bad, "its content is damaged")]
    assert bench.rows("SELECT state, held_by FROM delivery WHERE id = ?", bad) == [(2, "corrupt")]
    assert bench.rows("SELECT octets FROM content WHERE id = ?", bad) == [(b"BAD",)]
    assert bench.rows("SELECT outcome, code FROM attempt") == [("held", "corrupt")]


def test_what_waits_behind_a_damaged_message_is_offered(bench: Bench) -> None:
    bad = bench.put(octets=b"bad")
    bench.put(octets=b"good")
    bench.rows("UPDATE content SET octets = ? WHERE id = ?", b"BAD", bad)
    applied = bench.core.apply([TakeLeases(ALERTS, 1)])
    assert applied.outcomes == [[]]
    assert applied.effects.ready == [ALERTS], "or it waits for the next look, a minute later"


@pytest.mark.parametrize(
    "breakage",
    [
        "DELETE FROM content",
        "DELETE FROM message",
        "UPDATE delivery SET recipients = 'nonsense'",
        "UPDATE delivery SET recipients = '5'",
        "UPDATE delivery SET done = '{'",
        "UPDATE content SET size = 5",
    ],
)
def test_a_row_that_cannot_be_read_is_held(bench: Bench, breakage: str) -> None:
    bench.put()
    bench.rows(breakage)
    assert bench.do(TakeLeases(ALERTS, 5)) == []
    assert bench.rows("SELECT held_by FROM delivery") == [("corrupt",)]


DAMAGE = (
    "recipients = '[not json'",
    "recipients = '{}'",
    "recipients = '[]'",
    "recipients = '[1, 2]'",
    "recipients = CAST(X'5b226f70ef40636f6e746f736f2e636f6d225d' AS TEXT)",  # one bit: no UTF-8
    "done = 'x'",
    "done = '[]'",
    "set_from = CAST(X'ff' AS TEXT)",
    "expires_at = 9223372036854775807",
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_stops_nobody_elses_mail(bench: Bench, damage: str) -> None:
    bad, good = bench.put(), bench.put()
    bench.rows(f"UPDATE delivery SET {damage} WHERE id = ?", bad)  # noqa: S608 - constants
    applied = bench.core.apply([TakeLeases(ALERTS, 2)])
    assert applied.bugs == []
    (leases,) = applied.outcomes
    assert isinstance(leases, list)
    taken = [lease.message for lease in leases]
    if damage.startswith("expires_at"):
        assert taken == [bad, good]  # only its end is lost
    else:
        assert taken == [good]
        assert bench.rows("SELECT held_by FROM delivery WHERE id = ?", bad) == [("corrupt",)]


def test_a_moment_out_of_all_bounds_stops_nobody_elses_mail(bench: Bench) -> None:
    bad, good = bench.put(), bench.put()
    bench.rows("UPDATE message SET accepted_at = 9223372036854775807 WHERE id = ?", bad)
    assert [lease.message for lease in bench.do(TakeLeases(ALERTS, 2))] == [bad, good]


def test_marking_corrupt_takes_it_out_of_the_holders_hand(bench: Bench) -> None:
    message = bench.put(way(ALERTS), way(SCANS))
    (lease,) = bench.do(TakeLeases(ALERTS, 1))
    bench.do(MarkCorrupt(message, "gone"))
    assert bench.do(Renew(lease.delivery, lease.fence)) is None
    assert bench.rows("SELECT DISTINCT held_by FROM delivery") == [("corrupt",)]
    assert bench.do(ReadContent(message)) is not None


def test_only_the_leases_of_the_pid_that_died_are_taken_back(bench: Bench) -> None:
    bench.put()
    bench.put()
    first, second = bench.do(TakeLeases(ALERTS, 2))
    bench.rows("INSERT INTO holder VALUES (77, 'another-boot:77:1'), (78, 'another-boot:78:1')")
    for lease, holder in ((first, 77), (second, 78)):
        bench.rows("UPDATE delivery SET holder = ? WHERE id = ?", holder, lease.delivery)
    assert bench.do(Reclaim(77)) == 1
    assert bench.rows("SELECT id FROM delivery WHERE state = 3") == [(second.delivery,)]
    assert bench.do(Reclaim(None)) == 1
    assert bench.do(Reclaim(None)) == 0


def test_reclaiming_looks_at_leased_rows_only(bench: Bench) -> None:
    lines = plan(
        bench,
        "SELECT id FROM delivery WHERE state = 3 AND (holder IN (1, 2) OR lease_until < 5)",
    )
    assert all("delivery_leased" in one or "MULTI-INDEX" in one or "INDEX" in one for one in lines)
    assert not [one for one in lines if one == "SCAN delivery"]


def test_damage() -> None:
    assert not damage(b"", 0, 0)
    assert damage(b"x", 2, 0)
    assert damage(b"x", 1, 0)
