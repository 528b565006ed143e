"""The courier as a whole: whom it serves when, and what becomes of each delivery, come what may."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import gevent
import pytest
import structlog
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.clock import FakeClock
from relayd.deliver.outcome import Answer, Deferred, Divided, Result, Sent
from relayd.errors import SpoolUnavailable
from relayd.spool.model import Lease, MailboxRef, QueueId, State
from relayd.spool.store import Expired, Hold
from tests.courier_scene import (
    BAD,
    DENIED,
    DNS,
    FOREIGN,
    GATEWAY,
    OTHER,
    SECRET,
    THROTTLED,
    Scene,
    crowded,
    new,
    soon,
)
from tests.deliver_fakes import ALERTS, FakeTransport, Row, taken

# --- the ordinary way ------------------------------------------------------------------------


def test_a_message_accepted_here_is_born_leased_and_sent(scene: Scene) -> None:
    scene.start()

    row = scene.door.accept()
    scene.settle()

    assert row.at(State.SENT)
    assert "lease" not in scene.door.calls, "accept, lease and intent were one commit"
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0


def test_what_waits_in_the_spool_is_sent_at_the_start(scene: Scene) -> None:
    rows = [scene.door.put() for _ in range(20)]

    scene.start()

    assert all(row.at(State.SENT) for row in rows)
    assert scene.slots.most[ALERTS] <= 3
    assert scene.slots.all_free()


def test_what_another_worker_offers_is_sent(scene: Scene) -> None:
    scene.start()
    row = scene.door.put()

    scene.courier.offer([ALERTS])
    scene.settle()

    assert row.at(State.SENT)


# --- Taker -----------------------------------------------------------------------------------


def test_wanting_sets_a_slot_aside_and_sparing_gives_it_back(scene: Scene) -> None:
    scene.start()
    scene.slots.capacity = 1

    assert scene.courier.wants(new(), 1)
    assert not scene.courier.wants(new(), 1)
    scene.courier.spare(new())

    assert scene.slots.all_free()
    assert scene.slots.unused == 1
    assert scene.courier.wants(new(), 1)
    scene.courier.spare(new())


def test_mail_that_comes_while_a_fast_slot_is_in_use_is_born_into_hand(scene: Scene) -> None:
    gate = crowded(scene)

    rows = [scene.door.accept() for _ in range(8)]
    late = scene.door.accept()
    scene.settle()
    assert [row.state for row in rows] == [State.LEASED] * 8
    assert late.at(State.READY), "the hand is full"
    gate.set()
    scene.settle()

    assert all(row.at(State.SENT) for row in [*rows, late])
    assert scene.transport.most_at_once == 1
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0


def test_a_place_in_hand_that_is_not_taken_is_free_again(scene: Scene) -> None:
    gate = crowded(scene)
    wanted = [scene.courier.wants(new(), 1) for _ in range(9)]
    assert wanted == [True] * 8 + [False]
    for _ in range(8):
        scene.courier.spare(new())
    assert scene.courier.wants(new(), 1)
    scene.courier.spare(new())
    gate.set()
    scene.settle()

    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0
    assert [one.counter for one in scene.roster.permits.values()] == [16, 16]


def test_an_unknown_upstream_is_not_touched(scene: Scene) -> None:
    scene.start()
    gone = MailboxRef("gone", "x@y")

    assert not scene.courier.wants(new(gone), 1)
    scene.courier.offer([gone, gone])
    scene.settle()

    assert scene.events() == []
    with pytest.raises(LookupError):
        scene.courier.take(replace(scene.door.put().lease, mailbox=gone))


# --- outcomes --------------------------------------------------------------------------------


def test_deferred_is_tried_again_when_it_is_due_and_not_before(scene: Scene) -> None:
    answers: list[Result] = [Deferred(Answer(status=409, code="ErrorIrresolvableConflict"))]
    scene.transport.default = lambda lease: answers.pop() if answers else taken(lease)
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.DEFERRED)
    assert row.due == scene.clock.now + timedelta(seconds=60)
    assert scene.line("message.deferred")["reason"] == "ErrorIrresolvableConflict"

    scene.advance(59)
    assert row.at(State.DEFERRED)
    scene.advance(2)
    assert row.at(State.SENT)
    assert row.lease.attempt == 2


def test_failed_is_final(scene: Scene) -> None:
    scene.transport.default = lambda _: BAD
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.FAILED)
    assert scene.line("message.failed")["reason"] == "ErrorMimeContentInvalid"


def test_a_denied_sender_is_held_probed_after_half_an_hour_and_released_by_success(
    scene: Scene,
) -> None:
    scene.transport.default = lambda _: DENIED
    scene.start()
    first = scene.door.accept()
    scene.settle()
    assert first.at(State.HELD)
    assert first.held_by == "ErrorSendAsDenied"
    assert scene.line("message.held")["log_level"] == "error"

    waiting = [scene.door.accept() for _ in range(5)]
    scene.settle()
    assert len(scene.transport.sent) == 1, "asking again keeps the denial alive"

    scene.advance(1799)
    assert len(scene.transport.sent) == 1
    scene.transport.default = taken
    scene.advance(2)

    assert first.at(State.SENT)
    assert all(row.at(State.SENT) for row in waiting)


def test_a_division_is_settled_as_one(scene: Scene) -> None:
    parts = ((("a@x",), Sent(Answer(status=202))), (("b@x",), BAD))
    scene.transport.default = lambda _: Divided(parts)
    scene.start()
    row = scene.door.accept(recipients=("a@x", "b@x"))
    scene.settle()

    assert row.at(State.SENT)
    line = scene.line("message.sent")
    assert line["failed_recipients"] == "b@x"
    assert line["log_level"] == "error", "somebody was left out"


# --- an upstream that is down ----------------------------------------------------------------


def test_many_mailboxes_of_a_dead_upstream_do_not_probe_all_at_once(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    for n in range(50):
        scene.door.put(mailbox=MailboxRef("contoso", f"m{n}@contoso.com"))
    scene.start()
    before = len(scene.transport.sent)
    asked = len(scene.slots.asked)

    scene.advance(2.5)

    assert len(scene.transport.sent) == before + 1
    assert len(scene.slots.asked) <= asked + 4


def test_mailboxes_of_a_dead_upstream_do_not_all_wait_for_slots(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    for n in range(50):
        scene.door.put(mailbox=MailboxRef("contoso", f"m{n}@contoso.com"))
    scene.start()
    scene.slots.capacity = 0
    asked = len(scene.slots.asked)

    scene.advance(2.5)

    assert len(scene.slots.asked) == asked + 4


def test_a_clock_that_cannot_be_is_told_to_who_asks(scene: Scene) -> None:
    assert scene.courier.clock_trouble == ""
    scene.clock.now = datetime(1970, 1, 1, tzinfo=UTC)
    assert "1970-01-01" in scene.courier.clock_trouble


# --- the spool in trouble --------------------------------------------------------------------


def test_with_a_broken_spool_the_loop_sleeps_though_a_row_is_due(scene: Scene) -> None:
    scene.start()
    scene.door.broken = SpoolUnavailable("x")
    scene.agenda.due(scene.clock.now - timedelta(hours=1))
    scene.wake()

    now = scene.clock.monotonic()
    assert scene.courier._wait_s(now) == pytest.approx(scene.gate.retry_at - now)


def test_after_a_broken_spool_a_loop_without_work_sleeps(scene: Scene) -> None:
    scene.start()
    scene.door.broken = SpoolUnavailable("x")
    scene.courier.tidy()
    scene.door.broken = None
    scene.advance(10)

    assert scene.courier._wait_s(scene.clock.monotonic()) > 1.0


def test_a_fault_in_the_loop_does_not_end_it(scene: Scene) -> None:
    real = scene.door.work
    scene.door.work = None  # type: ignore[method-assign,assignment]  # a bug
    scene.start()
    assert scene.events("courier.bug")
    scene.door.work = real  # type: ignore[method-assign]
    row = scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()

    assert row.at(State.SENT)


# --- leases ----------------------------------------------------------------------------------


def test_leases_of_the_dead_are_taken_back_and_delivered(scene: Scene) -> None:
    row = scene.door.put()
    row.state = State.LEASED
    row.lease = replace(row.lease, expires_boottime=0.0)
    scene.start()
    assert row.at(State.LEASED)

    assert scene.courier.reclaim(4711) == 1
    scene.settle()

    assert row.at(State.SENT)


def test_what_a_worker_gave_back_before_its_end_is_found_at_once(scene: Scene) -> None:
    scene.start()
    row = scene.door.put()

    assert scene.courier.reclaim(4711) == 0
    scene.settle()

    assert row.at(State.SENT)


def test_reclaiming_from_a_broken_spool_is_no_error(scene: Scene) -> None:
    scene.start()
    scene.door.broken = SpoolUnavailable("x")

    assert scene.courier.reclaim() == 0


# --- upkeep ----------------------------------------------------------------------------------


def test_upkeep_tells_what_expired_and_learns_of_holds(scene: Scene) -> None:
    scene.start()
    scene.door.expired = (
        Expired(
            delivery=1, message=QueueId(1), mailbox=ALERTS, held_by="ErrorAccessDenied",
            attempts=3, recipients=("b@x",), sender="a@x", device="ups", session="S",
            accepted_at=scene.clock.now,
        ),
    )  # fmt: skip
    hold = Hold(ALERTS, "alerts@contoso.com", "c", "t", scene.clock.now, scene.clock.now)
    scene.door.kept_holds[ALERTS, "alerts@contoso.com"] = hold

    scene.courier.tidy()

    line = scene.line("message.failed")
    assert (line["reason"], line["text"]) == ("expired", "held by ErrorAccessDenied")
    assert not scene.courier.wants(new(), 1)


def test_upkeep_survives_a_broken_spool(scene: Scene) -> None:
    scene.start()
    scene.door.broken = SpoolUnavailable("x")
    scene.courier.tidy()

    assert scene.events() == ["delivery.paused"]


# --- the clock -------------------------------------------------------------------------------


def test_with_a_clock_of_1970_mail_is_kept_and_sent_when_it_is_right() -> None:
    with structlog.testing.capture_logs() as lines:
        scene = Scene(clock=FakeClock(now=datetime(1970, 1, 1, tzinfo=UTC)))
        scene.start()
        row = scene.door.accept()
        scene.settle()
        assert row.at(State.READY)
        scene.courier.tidy()
        assert not {"sweep", "follow_clock"} & set(scene.door.calls)

        scene.clock.now = datetime(2026, 12, 1, tzinfo=UTC)
        row.lease = replace(row.lease, expires_at=scene.clock.now + timedelta(days=1))
        scene.advance(1)

        assert row.at(State.SENT)
    assert [one["event"] for one in lines] == ["clock.wrong", "clock.right", "message.sent"]
    scene.end()


def test_after_a_leap_nothing_is_sent_for_a_minute_nor_expired_for_an_hour(scene: Scene) -> None:
    scene.start()
    scene.clock.now += timedelta(days=10)
    scene.wake()
    row = scene.door.accept(expires_at=scene.clock.now - timedelta(days=5))
    scene.settle()
    assert row.at(State.READY)
    assert scene.line("clock.leaped")["seconds"] == 864_000

    scene.transport.default = lambda _: THROTTLED
    scene.advance(61)
    assert row.at(State.DEFERRED), "not given up for an age the clock made up"
    scene.courier.tidy()
    assert "sweep" not in scene.door.calls
    assert "follow_clock" in scene.door.calls, "or what is due in a minute waits for hours"

    scene.advance(3600)
    scene.courier.tidy()
    assert "sweep" in scene.door.calls


# --- stopping --------------------------------------------------------------------------------


def test_draining_finishes_what_is_under_way_and_takes_nothing_new(scene: Scene) -> None:
    scene.start()
    scene.transport.gate = gate = Event()
    row = scene.door.accept()
    scene.settle()
    drained = gevent.spawn(scene.courier.drain, soon(scene))
    scene.settle()
    assert not scene.courier.wants(new(), 0)
    late = scene.door.accept()
    gate.set()
    drained.join(10)

    assert drained.value == 0
    assert row.at(State.SENT)
    assert late.at(State.READY)
    assert scene.transport.is_closed
    assert scene.foreign.is_closed


def test_leased_but_unsent_mail_is_given_back_when_stopping(scene: Scene) -> None:
    scene.start()
    waits, urgent = scene.door.accept(priority=1), scene.door.accept(priority=0)

    left = scene.courier.drain(soon(scene))

    assert left == 0
    assert (waits.state, urgent.state) == (State.READY, State.SENT)
    assert waits.lease.attempt == 0
    assert waits.history[0].outcome == "returned"


def test_a_send_that_outlives_the_deadline_is_counted(scene: Scene) -> None:
    scene.start()
    scene.transport.gate = Event()
    scene.door.accept()
    scene.settle()

    assert scene.courier.drain(scene.clock.monotonic()) == 1

    scene.transport.gate.set()
    scene.settle()


FATES = ("sent", "conflict", "throttled", "dns", "secret", "gateway", "bad", "denied", "boom")


STEPS = ("accept", "put", "advance", "break", "mend")


# --- chaos -----------------------------------------------------------------------------------


@pytest.mark.slow(5)
@settings(max_examples=150, deadline=None)
@given(chance=st.randoms(use_true_random=False), length=st.integers(1, 40))
def test_whatever_happens_nothing_is_lost_and_nothing_stays_taken(
    chance: Random, length: int
) -> None:
    fates = chance.choices(FATES, k=chance.randrange(40))
    steps = [
        (chance.choice(STEPS), chance.randrange(3), chance.choice((ALERTS, OTHER, FOREIGN)))
        for _ in range(length)
    ]
    results: dict[str, Result] = {
        "conflict": Deferred(Answer(status=409)),
        "throttled": THROTTLED,
        "dns": DNS,
        "secret": SECRET,
        "gateway": GATEWAY,
        "bad": BAD,
        "denied": DENIED,
    }
    left = list(fates)

    def fate(lease: Lease) -> Result:
        word = left.pop() if left else "sent"
        if word == "boom":
            raise ZeroDivisionError
        return results.get(word) or taken(lease)

    with structlog.testing.capture_logs():
        scene = Scene(transport=FakeTransport(fate), foreign=FakeTransport(fate))
        scene.start()
        for step, priority, mailbox in steps:
            if step == "accept" and scene.door.broken is None:
                scene.door.accept(priority=priority, mailbox=mailbox)
            elif step == "put":
                scene.door.put(priority=priority, mailbox=mailbox)
                scene.courier.offer([mailbox])
            elif step == "break":
                scene.door.broken = SpoolUnavailable("x")
            elif step == "mend":
                scene.door.broken = None
            scene.advance(7.0 if step == "advance" else 0.1)
        scene.door.broken = None
        for _ in range(60):
            if all(row.state in (State.SENT, State.FAILED) for row in scene.door.rows.values()):
                break
            scene.agenda.scan()
            scene.advance(1801)
            gevent.wait([scene.custody.idle], timeout=10)
        scene.end()

    rows: list[Row] = list(scene.door.rows.values())
    assert all(row.state in (State.SENT, State.FAILED) for row in rows), scene.states()
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0
    assert all(lane.in_flight == 0 for lane in scene.roster.lanes.values())
    assert [one.counter for one in scene.roster.permits.values()] == [16, 16]
    for row in rows:
        words = [one.outcome for one in row.history]
        assert words.count("sent") == (row.at(State.SENT))
