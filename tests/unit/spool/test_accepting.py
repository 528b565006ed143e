"""Rows of new messages, and taking them back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.spool.accepting import Undo
from relayd.spool.leasing import ReadContent, TakeLeases
from relayd.spool.model import State
from tests.spooling import ALERTS, SCANS, Bench, new_message, way


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def count(bench: Bench) -> int:
    return sum(
        int(bench.rows(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - of this list
        for table in ("message", "content", "delivery")
    )


def test_many_are_inserted_at_once(bench: Bench) -> None:
    accepts = [bench.accept(way(ALERTS), way(SCANS)) for _ in range(100)]
    assert bench.core.apply(accepts).outcomes == [None] * 100
    assert count(bench) == 400


def test_undo_removes_all_that_nobody_has_seen(bench: Bench) -> None:
    kept = bench.put()
    for state in (State.READY, State.LEASED):
        accept = bench.accept(way(ALERTS), way(SCANS), state=state)
        bench.do(accept)
        assert bench.do(accept.undo()) is True
        assert bench.do(accept.undo()) is True
    assert bench.rows("SELECT id FROM message") == [(kept,)]
    assert count(bench) == 3


def test_undo_leaves_what_somebody_delivers(bench: Bench) -> None:
    accept = bench.accept()
    bench.do(accept)
    (lease,) = bench.do(TakeLeases(ALERTS, 1))
    assert bench.do(accept.undo()) is False
    assert bench.do(ReadContent(lease.message)) is not None


def test_undo_of_nothing_is_done(bench: Bench) -> None:
    assert bench.do(Undo(bench.ids.next())) is True


def test_what_a_peer_said_is_stored_whatever_it_is(bench: Bench) -> None:
    accept = bench.accept()
    odd = new_message(bench.clock, helo="\udcff\udc80 é")
    from relayd.spool.accepting import Accept, message_row  # noqa: PLC0415 - shows what is tested

    strange = Accept(
        accept.id, message_row(accept.id, odd), accept.content, accept.deliveries, accept.born
    )
    assert bench.do(strange) is None
    assert bench.rows("SELECT helo FROM message") == [("\\udcff\\udc80 é",)]


def test_an_unknown_priority_is_brought_into_the_ranks(bench: Bench) -> None:
    message = new_message(bench.clock, priority=9)
    assert message.priority == 9
    from relayd.spool.accepting import message_row  # noqa: PLC0415 - as above

    assert message_row(bench.ids.next(), message)[2] == 2
