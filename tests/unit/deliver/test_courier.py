"""The courier: whom it serves when, and what becomes of each delivery, come what may."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random

import gevent
import pytest
import structlog
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.clock import FakeClock
from relayd.config.model import Spool, Upstream
from relayd.deliver.courier import Courier
from relayd.deliver.lane import Way
from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Divided,
    Failed,
    Misconfigured,
    Result,
    Sent,
)
from relayd.deliver.transport import Grip
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, MailboxRef, NewDelivery, QueueId, Settlement, State
from relayd.spool.store import Expired, Hold
from tests.deliver_fakes import ALERTS, LEASE_S, FakeDoor, FakeSlots, FakeTransport, Row, taken

OTHER = MailboxRef("contoso", "other@contoso.com")
FOREIGN = MailboxRef("fabrikam", "alerts@fabrikam.com")
DNS = Deferred(Answer(code="dns-failed", text="no such host"), whole_upstream=True)
SECRET = Misconfigured(Answer(code="7000215", text="wrong secret"), whole_upstream=True)
THROTTLED = Deferred(Answer(status=429, code="ApplicationThrottled"), 30.0, whole_mailbox=True)
DENIED = Misconfigured(Answer(status=403, code="ErrorSendAsDenied"))
GATEWAY = Ambiguous(Answer(status=504))
BAD = Failed(Answer(status=400, code="ErrorMimeContentInvalid"), "5.6.0")


@dataclass
class Scene:
    """A courier with fakes around it; `settle` lets every greenlet run until none can."""

    clock: FakeClock = field(default_factory=FakeClock)
    slots: FakeSlots = field(default_factory=FakeSlots)
    transport: FakeTransport = field(default_factory=FakeTransport)
    foreign: FakeTransport = field(default_factory=FakeTransport)
    outcomes: list[tuple[Lease, Settlement]] = field(default_factory=list)
    lines: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.door = FakeDoor(self.clock)
        self.courier = self.make()

    def make(self, *, carriers: int = 16, **upstream: object) -> Courier:
        ways = [
            Way(Upstream(name="contoso", **upstream), self.transport),  # type: ignore[arg-type]  # a test's keywords
            Way(Upstream(name="fabrikam"), self.foreign),
        ]
        self.courier = Courier(
            self.door,
            self.slots,
            ways,
            Spool(),
            carriers=carriers,
            clock=self.clock,
            dice=lambda: 0.5,
            on_outcome=lambda lease, word: self.outcomes.append((lease, word)),
        )
        return self.courier

    def start(self, **upstream: object) -> Scene:
        if upstream:
            self.make(**upstream)  # type: ignore[arg-type]  # likewise
        self.courier.start()
        self.settle()
        return self

    def settle(self) -> None:
        for _ in range(12):
            gevent.idle()

    def wake(self) -> None:
        self.courier._wake.set()
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time go by, and the loop notice."""
        self.clock.advance(seconds)
        self.wake()

    def states(self) -> list[State]:
        return [row.state for row in self.door.rows.values()]

    def events(self, *names: str) -> list[str]:
        return [str(one["event"]) for one in self.lines if not names or one["event"] in names]

    def line(self, name: str) -> dict[str, object]:
        return next(one for one in self.lines if one["event"] == name)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with structlog.testing.capture_logs() as lines:
        made = Scene()
        made.lines = lines  # type: ignore[assignment]  # the same dicts, by another name
        yield made
        made.transport.gate = made.foreign.gate = None
        made.courier._is_stopped.set()
        made.courier._is_draining = True
        gevent.killall(made.courier._greenlets)


def always(result: Result) -> FakeTransport:
    return FakeTransport(lambda _: result)


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


def test_the_log_line_of_a_sent_message_is_complete(scene: Scene) -> None:
    scene.start()
    scene.clock.advance(1.5)
    scene.door.accept(accepted_at=scene.clock.now - timedelta(seconds=1.5))
    scene.settle()

    line = scene.line("message.sent")
    assert line["upstream"] == "contoso"
    assert line["mailbox"] == "alerts@contoso.com"
    assert (line["recipients"], line["attempt"], line["queued_s"]) == (1, 1, 1.5)
    assert line["request_id"] == "r"
    assert {"id", "bytes", "session", "device"} <= set(line)


def test_outcomes_are_told_to_who_listens(scene: Scene) -> None:
    scene.start()
    row = scene.door.accept()
    scene.settle()

    ((lease, settlement),) = scene.outcomes
    assert lease.message == row.lease.message
    assert settlement.state is State.SENT


def test_best_first_and_never_more_than_the_slots(scene: Scene) -> None:
    rows = [scene.door.put(priority=n % 3) for n in range(9)]
    scene.slots.capacity = 1

    scene.start()

    order = [scene.door.rows[n].lease.priority for n in scene.transport.order()]
    assert order == sorted(order)
    assert scene.transport.most_at_once == 1
    assert len(order) == len(rows)


def test_mailboxes_take_turns_so_a_full_one_stops_nobody(scene: Scene) -> None:
    for _ in range(400):
        scene.door.put()
    others = [scene.door.put(mailbox=OTHER) for _ in range(3)]
    scene.make(carriers=2)

    scene.start()

    order = scene.transport.order()
    last = max(order.index(row.lease.delivery) for row in others)
    assert last < 20, "the three did not wait for the four hundred"
    assert len(order) == 403


def test_an_upstream_that_hangs_with_many_mailboxes_leaves_the_others_their_carriers(
    scene: Scene,
) -> None:
    scene.make(carriers=5)
    scene.transport.gate = Event()
    for number in range(20):
        scene.door.put(mailbox=MailboxRef("contoso", f"m{number}@contoso.com"))
    scene.start()
    assert scene.transport.at_once == 5

    waiting = scene.door.put(mailbox=FOREIGN)
    scene.courier.offer([FOREIGN])
    fresh = scene.door.accept(mailbox=FOREIGN)
    scene.settle()

    assert waiting.at(State.SENT)
    assert fresh.at(State.SENT)
    assert scene.transport.at_once == 5


def test_carriers_are_bounded(scene: Scene) -> None:
    scene.slots.capacity = 100
    scene.make(carriers=5)
    scene.transport.gate = Event()
    for _ in range(50):
        scene.door.put()

    scene.start()
    assert scene.transport.at_once == 5
    scene.transport.gate.set()
    scene.settle()
    gevent.idle()

    assert scene.transport.most_at_once == 5
    assert scene.door.count(State.SENT) == 50


def ahead(scene: Scene) -> None:
    """Make leasing slow and sending fast, so that rows are leased ahead."""
    real = scene.door.lease

    def slow(mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        scene.clock.advance(0.1)
        return real(mailbox, limit=limit)

    scene.door.lease = slow  # type: ignore[method-assign]
    scene.slots.capacity = 1
    scene.start(messages_per_minute=0)
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    lane.has_work, lane.send_s, lane.lease_s = True, 0.001, 0.1


def test_rows_leased_ahead_share_a_slot_one_after_the_other(scene: Scene) -> None:
    ahead(scene)
    rows = [scene.door.put() for _ in range(40)]
    scene.courier.offer([ALERTS])
    scene.settle()

    assert all(row.at(State.SENT) for row in rows)
    assert scene.door.calls.count("lease") <= 8
    assert scene.transport.most_at_once == 1
    assert scene.transport.order() == sorted(scene.transport.order())
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0


def test_rows_leased_ahead_of_a_refusal_are_given_back_and_sent_later(scene: Scene) -> None:
    ahead(scene)
    answers: list[Result] = [THROTTLED, Sent(Answer(status=202))]
    scene.transport.default = lambda lease: answers.pop() if answers else taken(lease)
    rows = [scene.door.put() for _ in range(5)]
    scene.courier.offer([ALERTS])
    scene.settle()

    assert len(scene.transport.sent) == 2
    assert sum(row.at(State.READY) for row in rows) == 3
    assert scene.slots.all_free()

    scene.advance(31)

    assert all(row.at(State.SENT) for row in rows)


def test_rows_leased_ahead_whose_turn_does_not_come_are_not_forgotten(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.deliver.courier._SLOT_PATIENCE_S", 0.0)
    monkeypatch.setattr("relayd.deliver.courier._SLOT_WAIT_S", 0.0)
    ahead(scene)

    def last_slot(lease: Lease) -> Result:
        scene.slots.capacity = 0
        return taken(lease)

    scene.transport.default = last_slot
    rows = [scene.door.put() for _ in range(5)]
    scene.courier.offer([ALERTS])
    scene.settle()
    assert sum(row.at(State.READY) for row in rows) == 4

    scene.transport.default = taken
    scene.slots.capacity = 1
    scene.settle()

    assert all(row.at(State.SENT) for row in rows)


def crowded(scene: Scene) -> Event:
    """Let one slot be in use by a send that waits, with room in hand behind it."""
    scene.slots.capacity = 1
    scene.start(messages_per_minute=0)
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    lane.send_s, lane.lease_s = 0.001, 0.1
    scene.transport.gate = gate = Event()
    scene.door.accept()
    scene.settle()
    assert scene.transport.at_once == 1
    return gate


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


def test_urgent_mail_in_hand_goes_before_other(scene: Scene) -> None:
    gate = crowded(scene)
    normal, urgent = scene.door.accept(), scene.door.accept(priority=0)
    gate.set()
    scene.settle()

    order = scene.transport.order()
    assert order.index(urgent.lease.delivery) < order.index(normal.lease.delivery)


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
    assert [one.counter for one in scene.courier._permits.values()] == [16, 16]


def test_a_place_in_hand_whose_slot_has_gone_finds_another(scene: Scene) -> None:
    gate = crowded(scene)
    assert scene.courier.wants(new(), 1)
    gate.set()
    scene.settle()

    row = scene.door.put()
    scene.courier.take(scene.door._leased(row))
    scene.settle()

    assert row.at(State.SENT)
    assert scene.slots.all_free()


def test_rows_are_leased_ahead_while_a_slot_is_in_use(scene: Scene) -> None:
    gate = crowded(scene)
    gate.clear()
    rows = [scene.door.put() for _ in range(30)]
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    lane.has_work = True
    taken_at_once = Event()
    scene.transport.gate = taken_at_once
    gate.set()  # the first is done; what comes next waits again
    scene.settle()

    assert sum(row.at(State.LEASED) for row in rows) == 9, "one in the slot, eight in hand"
    assert scene.transport.at_once == 1
    taken_at_once.set()
    scene.settle()
    scene.settle()
    assert all(row.at(State.SENT) for row in rows)


def test_what_is_in_hand_is_given_back_when_stopping_but_for_what_is_urgent(scene: Scene) -> None:
    gate = crowded(scene)
    normal, urgent = scene.door.accept(), scene.door.accept(priority=0)
    drained = gevent.spawn(scene.courier.drain, scene.clock.monotonic() + 10)
    scene.settle()
    assert normal.at(State.READY)
    assert normal.history[0].text == "the worker stops"
    gate.set()
    drained.join(10)

    assert urgent.at(State.SENT)
    assert drained.value == 0


def test_what_is_in_hand_of_an_upstream_that_went_down_is_given_back(scene: Scene) -> None:
    gate = crowded(scene)
    rows = [scene.door.accept() for _ in range(3)]
    scene.transport.default = lambda _: DNS
    gate.set()
    scene.settle()

    assert all(row.at(State.READY) for row in rows)
    assert len(scene.transport.sent) == 1
    scene.transport.default = taken
    scene.advance(3)
    assert all(row.at(State.SENT) for row in rows)


def test_a_fault_in_leasing_ahead_gives_everything_back(scene: Scene) -> None:
    gate = crowded(scene)
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    row = scene.door.put()
    lane.has_work = True
    real = scene.door.lease
    scene.door.lease = None  # type: ignore[method-assign,assignment]  # a bug
    gate.set()
    scene.settle()
    assert scene.events("courier.bug")

    scene.door.lease = real  # type: ignore[method-assign]
    scene.advance(5)

    assert row.at(State.SENT)
    assert scene.slots.all_free()
    assert [one.counter for one in scene.courier._permits.values()] == [16, 16]


# --- Taker -----------------------------------------------------------------------------------


def new(mailbox: MailboxRef = ALERTS, header_from: str = "alerts@contoso.com") -> NewDelivery:
    return NewDelivery(mailbox=mailbox, recipients=("b@x",), header_from=header_from)


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


def test_those_who_came_first_go_first_but_urgent_mail_does_not_wait(scene: Scene) -> None:
    scene.start()
    scene.transport.gate = Event()
    scene.slots.capacity = 1
    scene.door.put()
    scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()
    scene.slots.capacity = 3

    assert not scene.courier.wants(new(), 1)
    assert scene.courier.wants(new(), 0)
    scene.courier.spare(new())
    scene.transport.gate.set()
    scene.settle()


def test_urgent_mail_is_waited_for_without_pacing(scene: Scene) -> None:
    scene.start()
    scene.slots.capacity = 0

    scene.door.accept(priority=0)
    scene.settle()

    assert (ALERTS, 0) in scene.slots.asked


def test_an_urgent_message_overtakes_one_that_waits_for_pacing(scene: Scene) -> None:
    scene.start()
    scene.slots.capacity = 0
    scene.door.accept(priority=1)
    scene.settle()
    scene.door.accept(priority=0)
    scene.settle()

    assert scene.slots.asked == [(ALERTS, 1), (ALERTS, 0)]


def test_an_unknown_upstream_is_not_touched_and_told_once(scene: Scene) -> None:
    scene.start()
    gone = MailboxRef("gone", "x@y")

    assert not scene.courier.wants(new(gone), 1)
    scene.courier.offer([gone, gone])
    scene.settle()

    assert scene.events() == ["upstream.unknown"]
    with pytest.raises(LookupError):
        scene.courier.take(replace(scene.door.put().lease, mailbox=gone))


def test_mail_of_a_sender_on_hold_is_not_born_leased(scene: Scene) -> None:
    hold = Hold(ALERTS, "alerts@contoso.com", "c", "t", scene.clock.now, scene.clock.now)
    scene.door.kept_holds[ALERTS, "alerts@contoso.com"] = replace(
        hold, probe_at=scene.clock.now + timedelta(hours=1)
    )
    scene.start()

    assert not scene.courier.wants(new(), 1)
    assert scene.courier.wants(new(header_from="other@contoso.com"), 1)
    scene.courier.spare(new())


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


def test_the_loop_sleeps_until_the_first_due_moment(scene: Scene) -> None:
    scene.door.put(mailbox=OTHER).state = State.DEFERRED
    scene.door.rows[1].due = scene.clock.now + timedelta(seconds=7)
    scene.start()

    assert scene.courier._sleeps_until == pytest.approx(scene.clock.monotonic() + 7)


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


def test_ambiguous_is_tried_again_or_held(scene: Scene) -> None:
    scene.transport.default = lambda _: GATEWAY
    scene.start()
    again = scene.door.accept()
    scene.settle()
    assert (again.state, again.history[0].outcome) == (State.DEFERRED, "ambiguous")


def test_ambiguous_is_held_where_a_duplicate_is_worse(scene: Scene) -> None:
    scene.transport.default = lambda _: GATEWAY
    scene.start(ambiguous="hold")
    held = scene.door.accept()
    scene.settle()

    assert (held.state, held.held_by) == (State.HELD, "ambiguous")
    assert not scene.door.kept_holds, "one doubtful message must not stop its sender"


def test_a_division_is_settled_as_one(scene: Scene) -> None:
    parts = ((("a@x",), Sent(Answer(status=202))), (("b@x",), BAD))
    scene.transport.default = lambda _: Divided(parts)
    scene.start()
    row = scene.door.accept(recipients=("a@x", "b@x"))
    scene.settle()

    assert row.at(State.SENT)
    assert scene.line("message.sent")["failed_recipients"] == "b@x"


def test_long_lists_of_failed_recipients_are_cut_in_the_log(scene: Scene) -> None:
    names = tuple(f"r{n}@x" for n in range(9))
    parts = ((("a@x",), Sent(Answer(status=202))), (names, BAD))
    scene.transport.default = lambda _: Divided(parts)
    scene.start()
    scene.door.accept(recipients=("a@x", *names))
    scene.settle()

    assert str(scene.line("message.sent")["failed_recipients"]).endswith("and 4 more")


def test_the_unforeseen_is_temporary_logged_and_does_not_spread(scene: Scene) -> None:
    def explode(lease: Lease) -> Result:
        if lease.delivery == 1:
            raise ZeroDivisionError
        return taken(lease)

    scene.transport.default = explode
    scene.start()
    first, second = scene.door.accept(), scene.door.accept()
    scene.settle()

    assert (first.state, second.state) == (State.DEFERRED, State.SENT)
    assert first.history[0].code == "unknown-error"
    assert first.history[0].outcome == "ambiguous", "an octet had gone out: it may have been sent"
    assert scene.line("courier.bug")["exc_info"] is True
    assert scene.slots.all_free()


def test_the_unforeseen_before_the_first_octet_has_sent_nothing(scene: Scene) -> None:
    def explode(_: Grip) -> None:
        raise ZeroDivisionError

    scene.transport.before = explode
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert (row.state, row.history[0].outcome) == (State.DEFERRED, "deferred")


def test_expired_is_given_up_with_its_last_reason(scene: Scene) -> None:
    scene.transport.default = lambda _: THROTTLED
    scene.start()
    row = scene.door.accept(expires_at=scene.clock.now)
    scene.settle()

    assert row.at(State.FAILED)
    assert scene.line("message.failed")["reason"] == "expired"


# --- a mailbox that must rest ----------------------------------------------------------------


def test_a_throttled_mailbox_rests_as_long_as_the_server_wishes_and_others_go_on(
    scene: Scene,
) -> None:
    scene.transport.default = lambda lease: (
        THROTTLED if lease.mailbox == ALERTS and scene.clock.monotonic() < 1030 else taken(lease)
    )
    scene.slots.capacity = 1
    scene.start()
    rows = [scene.door.accept() for _ in range(10)]
    other = scene.door.accept(mailbox=OTHER)
    scene.settle()

    assert len([one for one in scene.transport.sent if one.mailbox == ALERTS]) == 1
    assert other.at(State.SENT)
    assert not scene.courier.wants(new(), 0)
    status = scene.courier.upstreams()[0]
    assert list(status.resting) == [ALERTS.mailbox]

    scene.advance(29)
    assert len([one for one in scene.transport.sent if one.mailbox == ALERTS]) == 1
    scene.advance(2)
    assert all(row.at(State.SENT) for row in rows)


def test_a_429_is_told_to_the_other_workers_and_theirs_is_heeded(scene: Scene) -> None:
    scene.transport.default = lambda lease: THROTTLED if lease.mailbox == ALERTS else taken(lease)
    scene.start()
    scene.door.accept()
    scene.settle()
    assert scene.slots.rests == [(ALERTS, 30.0)]

    scene.slots.tell_rest(OTHER, 20.0)
    scene.slots.tell_rest(MailboxRef("no such upstream", "a@contoso.com"), 20.0)
    row = scene.door.accept(mailbox=OTHER)
    scene.settle()
    assert not row.at(State.SENT)
    scene.advance(19)
    assert not row.at(State.SENT)
    scene.advance(2)
    assert row.at(State.SENT)
    assert len(scene.slots.rests) == 1


def test_a_mailbox_that_sends_again_has_no_strikes(scene: Scene) -> None:
    silent = replace(THROTTLED, retry_after_s=None)
    answers: list[Result] = [silent, Sent(Answer(status=202)), silent]
    scene.transport.default = lambda lease: answers.pop() if answers else taken(lease)
    scene.slots.capacity = 1
    scene.start()
    scene.door.accept()
    scene.settle()
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    assert lane.rest_until == scene.clock.monotonic() + 10

    scene.advance(61)
    scene.door.accept()
    scene.settle()

    assert lane.rest_until == scene.clock.monotonic() + 10


# --- an upstream that is down ----------------------------------------------------------------


@pytest.mark.parametrize(("outage", "first_s"), [(DNS, 2.0), (SECRET, 60.0)])
def test_an_upstream_that_is_down_gets_one_probe_and_its_mail_burns_no_tries(
    scene: Scene, outage: Result, first_s: float
) -> None:
    scene.transport.default = lambda _: outage
    scene.start()
    rows = [scene.door.accept() for _ in range(30)]
    scene.settle()

    tries = len(scene.transport.sent)
    assert tries <= 4, "those in flight when it broke, no more"
    assert all(row.at(State.READY) for row in rows)
    assert not scene.courier.wants(new(), 0)

    scene.advance(first_s - 0.1)
    assert len(scene.transport.sent) == tries
    scene.advance(0.2)
    assert len(scene.transport.sent) == tries + 1
    assert scene.events("upstream.down") == ["upstream.down"]

    scene.transport.default = taken
    scene.advance(200)
    assert all(row.at(State.SENT) for row in rows)
    assert {row.lease.attempt for row in rows} == {1}
    assert scene.events("upstream.up") == ["upstream.up"]


def test_the_outage_is_told_with_its_cause_and_what_to_do(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()

    line = scene.line("upstream.down")
    assert (line["cause"], line["text"], line["retry_in_s"]) == ("dns-failed", "no such host", 2)
    assert "resolv.conf" in str(line["advice"])
    assert line["log_level"] == "error"
    (contoso, fabrikam) = scene.courier.upstreams()
    assert (contoso.state, contoso.cause, contoso.mailboxes_waiting) == ("down", "dns-failed", 1)
    assert contoso.retry_in_s == 2.0
    assert (fabrikam.state, fabrikam.cause, fabrikam.down_s) == ("up", "", 0.0)


def test_the_other_workers_hear_that_an_upstream_is_back(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()
    assert scene.slots.backs == []

    scene.transport.default = taken
    scene.advance(3)
    assert scene.slots.backs == ["contoso"]


def test_an_upstream_that_works_for_another_worker_works_for_this_one(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    row = scene.door.accept()
    scene.settle()
    scene.transport.default = taken

    scene.slots.tell_back("fabrikam")
    scene.slots.tell_back("no such upstream")
    scene.settle()
    assert not row.at(State.SENT)
    scene.slots.tell_back("contoso")
    scene.settle()

    assert row.at(State.SENT)
    assert scene.courier.upstreams()[0].state == "up"
    assert scene.events("upstream.up") == ["upstream.up"]
    assert scene.slots.backs == [], "only who found out says so"


def test_another_upstream_goes_on(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    row = scene.door.accept(mailbox=FOREIGN)
    scene.settle()

    assert row.at(State.SENT)


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


def test_a_probe_is_one_delivery_however_many_slots_are_free(scene: Scene) -> None:
    scene.start()
    for _ in range(4):
        scene.door.put()
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    lane.way.circuit.failed(scene.clock.monotonic(), cause="c", text="")
    scene.clock.advance(2)

    leases, is_probe = scene.courier._lease(lane, 4)
    assert (len(leases), is_probe) == (1, True)


def test_a_probe_of_an_upstream_that_went_down_meanwhile_is_marked_as_one(scene: Scene) -> None:
    """Else, leading nowhere, it would keep all others from probing for five minutes."""
    scene.make(carriers=1)
    scene.transport.default = lambda _: Deferred(Answer(code="no-time"))
    scene.door.put()
    lane = scene.courier._lane(ALERTS)
    assert lane is not None
    lane.has_work = True
    carriers = scene.courier._permits[ALERTS.upstream]
    carriers.acquire()
    turn = gevent.spawn(scene.courier._turn_of, lane, 1)
    scene.settle()
    lane.way.circuit.failed(scene.clock.monotonic(), cause="c", text="")
    scene.clock.advance(3)
    carriers.release()
    turn.join(10)
    scene.settle()

    assert len(scene.transport.sent) == 1
    assert lane.way.circuit.state.value == "down"


def test_a_refusal_of_one_message_shows_that_the_upstream_is_back(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()

    scene.transport.default = lambda _: BAD
    scene.advance(3)

    assert scene.events("upstream.up") == ["upstream.up"]


def test_an_outage_at_entra_says_what_to_do_too(scene: Scene) -> None:
    scene.transport.default = lambda _: SECRET
    scene.start()
    scene.door.accept()
    scene.settle()

    assert "Value (not the Secret ID)" in str(scene.line("upstream.down")["advice"])


def test_a_clock_that_cannot_be_is_told_to_who_asks(scene: Scene) -> None:
    assert scene.courier.clock_trouble == ""
    scene.clock.now = datetime(1970, 1, 1, tzinfo=UTC)
    assert "1970-01-01" in scene.courier.clock_trouble


def test_three_answers_that_leave_all_open_take_it_down(scene: Scene) -> None:
    scene.transport.default = lambda _: GATEWAY
    scene.slots.capacity = 1
    scene.start()
    rows = [scene.door.accept() for _ in range(10)]
    scene.settle()

    assert len(scene.transport.sent) == 3, "an outage must not make a whole queue doubtful"
    assert scene.line("upstream.down")["cause"] == "HTTP 504"
    assert sum(row.at(State.READY) for row in rows) == 7


def test_a_probe_that_leads_nowhere_lets_the_next_go(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    row = scene.door.accept()
    scene.settle()
    scene.transport.default = lambda _: Deferred(Answer(code="no-time"))
    scene.advance(3)
    assert row.at(State.DEFERRED)

    scene.transport.default = taken
    second = scene.door.accept()
    scene.wake()

    assert second.at(State.SENT)


def test_a_probe_whose_mail_is_gone_is_no_probe(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    row = scene.door.accept()
    scene.settle()
    row.state = State.FAILED  # an operator deleted it
    scene.advance(3)
    scene.transport.default = taken
    after = scene.door.accept()
    scene.wake()

    assert after.at(State.SENT)


# --- the spool in trouble --------------------------------------------------------------------


def test_what_microsoft_took_is_settled_when_the_spool_is_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.deliver.courier._SPOOL_PAUSES_S", (0.001,))
    scene.start()

    def then_break(lease: Lease) -> Result:
        scene.door.broken = SpoolUnavailable("disk full")
        return taken(lease)

    scene.transport.default = then_break
    row = scene.door.accept()
    scene.settle()
    assert row.at(State.LEASED)
    assert scene.line("delivery.paused")["text"] == "disk full"
    assert not scene.courier.wants(new(), 0), "nothing new meanwhile"

    scene.transport.default = taken
    scene.door.broken = None
    scene.clock.advance(1)
    gevent.wait([scene.courier._idle], timeout=10)

    assert row.at(State.SENT)
    assert scene.events("delivery.paused", "delivery.resumed", "message.sent") == [
        "message.sent",
        "delivery.paused",
        "delivery.resumed",
    ]
    assert len(scene.transport.sent) == 1


def test_a_spool_that_cannot_lease_is_asked_again_later(scene: Scene) -> None:
    scene.door.broken = SpoolUnavailable("locked")
    scene.start()
    row = scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()
    asked = len(scene.door.calls)
    scene.settle()
    assert len(scene.door.calls) == asked, "not in a loop"
    assert scene.slots.all_free()

    scene.door.broken = None
    scene.advance(10)

    assert row.at(State.SENT)
    assert scene.events() == ["delivery.paused", "delivery.resumed", "message.sent"]


def test_with_a_broken_spool_the_loop_sleeps_though_a_row_is_due(scene: Scene) -> None:
    scene.start()
    scene.door.broken = SpoolUnavailable("x")
    scene.courier._next_due = scene.clock.now - timedelta(hours=1)
    scene.wake()

    now = scene.clock.monotonic()
    assert scene.courier._wait_s(now) == pytest.approx(scene.courier._spool_retry_at - now)


def test_after_a_broken_spool_a_loop_without_work_sleeps(scene: Scene) -> None:
    scene.start()
    scene.door.broken = SpoolUnavailable("x")
    scene.courier.tidy()
    scene.door.broken = None
    scene.advance(10)

    assert scene.courier._wait_s(scene.clock.monotonic()) > 1.0


def test_the_slot_is_free_before_the_result_is_written(scene: Scene) -> None:
    free: list[bool] = []
    real = scene.door.settle

    def settle(lease: Lease, settlement: Settlement) -> None:
        free.append(scene.slots.all_free())
        real(lease, settlement)

    scene.door.settle = settle  # type: ignore[method-assign]
    scene.start()
    scene.door.accept()
    scene.settle()

    assert free == [True]


def test_content_that_cannot_be_read_waits_for_its_turn_and_spins_nothing(scene: Scene) -> None:
    def unreadable(lease: Lease) -> Result:
        raise SpoolUnavailable("bad sector")

    scene.transport.default = unreadable
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.DEFERRED)
    assert row.history[0].code == "unreadable"
    assert "bad sector" in row.history[0].text


def test_a_lost_lease_is_left_alone(scene: Scene) -> None:
    def lose(lease: Lease) -> Result:
        raise LeaseLost("corrupt")

    scene.transport.default = lose
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.LEASED)
    assert not row.history
    assert scene.events("lease.lost")
    assert scene.slots.all_free()


def test_a_settlement_of_a_lost_lease_is_dropped(scene: Scene) -> None:
    def overtaken(lease: Lease) -> Result:
        row = scene.door.rows[lease.delivery]
        row.lease = replace(row.lease, fence=row.lease.fence + 1)
        return taken(lease)

    scene.transport.default = overtaken
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert not row.history
    assert scene.line("lease.lost")["outcome"] == "sent"


def test_a_fault_in_settling_gives_everything_back(scene: Scene) -> None:
    scene.start()
    scene.door.settle = None  # type: ignore[method-assign,assignment]  # a bug
    scene.door.accept()
    scene.settle()

    assert scene.events("courier.bug")
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0


def test_a_fault_in_leasing_does_not_silence_the_mailbox(scene: Scene) -> None:
    scene.start()
    real = scene.door.lease
    scene.door.lease = None  # type: ignore[method-assign,assignment]  # a bug
    row = scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()
    assert scene.events("courier.bug")

    scene.door.lease = real  # type: ignore[method-assign]
    assert scene.slots.all_free()
    scene.advance(5)

    assert row.at(State.SENT)
    assert scene.slots.all_free()


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


def test_the_lease_of_a_long_send_is_renewed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.deliver.courier._KEEP_LEASES_S", 0.001)
    scene.start()
    scene.transport.gate = Event()
    row = scene.door.accept()
    scene.settle()
    end = row.lease.expires_boottime
    scene.clock.advance(LEASE_S / 2)
    while "renew" not in scene.door.calls:
        gevent.idle()
        gevent.get_hub().wait(gevent.get_hub().loop.timer(0.001))

    (carried,) = scene.courier._in_flight
    assert row.lease.expires_boottime > end
    assert carried.lease.expires_boottime == row.lease.expires_boottime
    assert carried.lease.fence == row.lease.fence
    scene.transport.gate.set()
    scene.settle()
    assert row.at(State.SENT)


@pytest.mark.parametrize("trouble", [LeaseLost("x"), SpoolUnavailable("x"), ZeroDivisionError()])
def test_trouble_with_renewing_stops_no_other_lease(scene: Scene, trouble: Exception) -> None:
    scene.start()
    scene.transport.gate = Event()
    scene.door.accept()
    scene.settle()
    (carried,) = scene.courier._in_flight

    def fail(lease: Lease) -> Lease:
        raise trouble

    scene.door.renew = fail  # type: ignore[method-assign]
    scene.courier._renew(carried)

    assert carried.is_stopping == isinstance(trouble, LeaseLost)
    scene.transport.gate.set()
    scene.settle()


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


def test_what_is_offered_while_a_lease_comes_back_empty_is_not_forgotten(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.start()
    rows: list[Row] = []
    lease = scene.door.lease

    def lease_first(mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        leases = lease(mailbox, limit=limit)
        if not rows:  # another operation of the same batch makes one ready
            rows.append(scene.door.put())
            scene.courier.offer([mailbox])
        return leases

    monkeypatch.setattr(scene.door, "lease", lease_first)
    scene.courier.offer([ALERTS])
    scene.settle()

    assert rows[0].at(State.SENT)


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
    assert (ALERTS, "alerts@contoso.com") in scene.courier._held


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
    gevent.killall(scene.courier._greenlets)


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


def soon(scene: Scene) -> float:
    return scene.clock.monotonic() + 10


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


def test_what_had_not_begun_yet_is_given_back(scene: Scene) -> None:
    scene.start()
    row = scene.door.accept()
    gate = Event()

    def hold(grip: object) -> None:
        gate.wait()

    class Waiting(FakeTransport):
        def send(self, grip: object, content: object) -> Result:
            gate.wait()
            return Deferred(Answer(code="no-time"))

    scene.courier._ways["contoso"].transport = Waiting()
    drained = gevent.spawn(scene.courier.drain, soon(scene))
    scene.settle()
    gate.set()
    drained.join(10)

    assert row.at(State.READY)
    assert row.history[0].outcome == "returned"


def test_urgent_mail_that_waits_leaves_before_the_end(scene: Scene) -> None:
    scene.start()
    scene.slots.capacity = 0
    for priority in (1, 0, 0):
        scene.door.accept(priority=priority)
    scene.settle()
    scene.slots.capacity = 3

    scene.courier.drain(soon(scene))

    assert [lease.priority for lease in scene.transport.sent] == [0, 0]
    assert scene.states() == [State.READY, State.SENT, State.SENT]
    assert scene.slots.all_free()


def test_urgent_mail_takes_no_lease_it_has_no_carrier_for(scene: Scene) -> None:
    scene.make(carriers=1).start()
    scene.settle()
    scene.courier._permits[ALERTS.upstream].acquire()
    row = scene.door.accept(priority=0)
    scene.settle()
    scene.slots.capacity += 1  # the mailbox is not what is short
    drained = gevent.spawn(scene.courier.drain, scene.clock.monotonic() + 0.05)
    drained.join(10)

    assert row.at(State.READY)


def test_a_send_that_outlives_the_deadline_is_counted(scene: Scene) -> None:
    scene.start()
    scene.transport.gate = Event()
    scene.door.accept()
    scene.settle()

    assert scene.courier.drain(scene.clock.monotonic()) == 1

    scene.transport.gate.set()
    scene.settle()


def test_a_result_that_cannot_be_written_before_the_end_is_told(scene: Scene) -> None:
    scene.start()

    def then_break(lease: Lease) -> Result:
        scene.door.broken = SpoolUnavailable("gone")
        return taken(lease)

    scene.transport.default = then_break
    scene.door.accept()
    scene.settle()
    scene.courier.drain(scene.clock.monotonic())
    scene.settle()

    assert scene.line("message.unsettled")["outcome"] == "sent"


# --- slots -----------------------------------------------------------------------------------


def test_waiting_for_a_slot_is_told_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.deliver.courier._SLOT_PATIENCE_S", 0.0)
    monkeypatch.setattr("relayd.deliver.courier._SLOT_WAIT_S", 0.0)
    scene.start()
    scene.slots.capacity = 0
    row = scene.door.accept()
    scene.settle()
    assert scene.events() == ["quota.waiting"]

    scene.slots.capacity = 1
    scene.settle()

    assert row.at(State.SENT)


def test_a_slot_of_a_message_never_begun_does_not_count_for_pacing(scene: Scene) -> None:
    class Lacking(FakeTransport):
        def send(self, grip: object, content: object) -> Result:
            return DNS

    scene.courier._ways["contoso"].transport = Lacking()
    scene.start()
    scene.door.accept()
    scene.settle()

    assert scene.slots.unused >= 1
    assert scene.slots.all_free()


# --- chaos -----------------------------------------------------------------------------------

FATES = ("sent", "conflict", "throttled", "dns", "secret", "gateway", "bad", "denied", "boom")
STEPS = ("accept", "put", "advance", "break", "mend")


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
            scene.courier._must_scan = True
            scene.advance(1801)
            gevent.wait([scene.courier._idle], timeout=10)
        gevent.killall(scene.courier._greenlets)

    rows: list[Row] = list(scene.door.rows.values())
    assert all(row.state in (State.SENT, State.FAILED) for row in rows), scene.states()
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0
    assert all(lane.in_flight == 0 for lane in scene.courier._lanes.values())
    assert [one.counter for one in scene.courier._permits.values()] == [16, 16]
    for row in rows:
        words = [one.outcome for one in row.history]
        assert words.count("sent") == (row.at(State.SENT))
