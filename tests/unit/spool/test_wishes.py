"""What an operator does leaves a note, and a change of upstreams moves mail in parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.spool.leasing import TakeLeases
from relayd.spool.moves import missing
from relayd.spool.wishes import Adopt, Ask, Hasten
from tests.spooling import ALERTS, OTHER, SCANS, Bench, way


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def test_each_wish_is_journalled(bench: Bench) -> None:
    message = bench.put()
    for wish in ("hold", "release", "hold", "delete"):
        assert bench.do(Ask(wish, (message,))) == 1
    rows = bench.rows("SELECT serial, outcome, text FROM attempt ORDER BY serial")
    assert [row[1] for row in rows] == ["held", "released", "held", "deleted"]
    assert [row[0] for row in rows] == [1, 2, 3, 4]


def test_a_wish_reaches_every_delivery_but_counts_messages(bench: Bench) -> None:
    message = bench.put(way(ALERTS), way(SCANS))
    assert bench.do(Ask("hold", (message, message))) == 1
    assert bench.rows("SELECT DISTINCT state FROM delivery") == [(2,)]


def test_deliveries_beyond_the_ids_own_are_reached_too(bench: Bench) -> None:
    message = bench.put()
    bench.rows(
        "UPDATE delivery SET message = ?, id = ? WHERE message = ?", message, 1 << 50, message
    )
    assert bench.do(Ask("hold", (message,))) == 1
    assert bench.rows("SELECT state FROM delivery WHERE id = ?", 1 << 50) == [(2,)]


def test_a_damaged_row_can_be_deleted(bench: Bench) -> None:
    bad, odd = bench.put(), bench.put()
    bench.rows("UPDATE delivery SET recipients = '{', done = '[' WHERE id = ?", bad)
    bench.rows("UPDATE delivery SET state = 99 WHERE id = ?", odd)
    assert bench.do(Ask("delete", (bad, odd))) == 1
    assert bench.rows("SELECT id FROM content") == [(odd,)]


def test_deleting_one_delivery_keeps_content_that_another_needs(bench: Bench) -> None:
    message = bench.put(way(ALERTS), way(SCANS))
    bench.do(TakeLeases(SCANS, 1))
    bench.do(Ask("delete", (message,)))
    assert bench.rows("SELECT id FROM content") == [(message,)]


def test_resend_of_what_is_not_sent_reaches_nothing(bench: Bench) -> None:
    message = bench.put()
    bench.do(TakeLeases(ALERTS, 1))
    assert bench.do(Ask("resend", (message,))) == 0


def test_hastening_goes_in_parts(bench: Bench) -> None:
    for _ in range(5):
        bench.core.apply([bench.accept() for _ in range(250)])
    bench.rows("UPDATE delivery SET state = 1, due = due + 1000000000")
    assert bench.do(Hasten("contoso")) == 1000
    assert bench.do(Hasten("contoso")) == 250
    assert bench.do(Hasten("contoso")) == 0


def test_mail_of_upstreams_that_come_and_go(bench: Bench) -> None:
    bench.put(way(ALERTS))
    bench.put(way(OTHER))
    assert bench.do(Adopt(("contoso",))) == 1
    assert bench.rows("SELECT held_by FROM delivery WHERE state = 2") == [(missing("fabrikam"),)]
    assert bench.do(Adopt(("contoso",))) == 0
    assert bench.do(Adopt(("contoso", "fabrikam"))) == 1
    assert bench.do(Adopt(("contoso", "fabrikam"))) == 0
