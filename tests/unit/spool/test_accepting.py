"""Rows of new messages, and taking them back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool import accepting
from relayd.spool.accepting import Undo
from relayd.spool.leasing import ReadContent, TakeLeases
from relayd.spool.model import State
from relayd.spool.settling import Settle
from tests.spooling import ALERTS, SCANS, SENT, Bench, denied, new_message, way


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


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_recipients_are_stored_as_json_says(texts: list[str]) -> None:
    assert accepting._json_list(texts) == json.dumps(texts)


def test_many_are_inserted_at_once(bench: Bench) -> None:
    accepts = [bench.accept(way(ALERTS), way(SCANS)) for _ in range(100)]
    assert bench.core.apply(accepts).outcomes == [None] * 100
    assert count(bench) == 400


@pytest.mark.parametrize(
    ("cause", "state", "held_by"),
    [("ErrorGone", 0, ""), ("ErrorSendAsDenied", 2, "ErrorSendAsDenied")],
)
def test_what_is_born_held_is_held_by_a_hold_there_is(
    cause: str, state: int, held_by: str, bench: Bench
) -> None:
    """The door looked at the Holds before the commit; one that went since sets nothing free."""
    bench.put()
    (lease,) = bench.do(TakeLeases(ALERTS, 1))
    pair = (*ALERTS, lease.header_from)
    is_over = cause == "ErrorGone"
    word = denied(bench.clock, cause="ErrorSendAsDenied")
    bench.do(Settle(lease.delivery, lease.fence, lease.message, pair, False, word))
    accept = bench.accept(state=State.HELD, held_by=cause)
    if is_over:
        bench.clock.advance(1801)
        (probe,) = bench.do(TakeLeases(ALERTS, 1))
        bench.do(Settle(probe.delivery, probe.fence, probe.message, pair, False, SENT))
    bench.do(accept)
    rows = bench.rows("SELECT state, held_by FROM delivery WHERE message = ?", accept.id)
    assert rows == [(state, held_by)]


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
