"""Slots, permits and leases: whose turn it is, and how much is taken."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from relayd.deliver.outcome import Answer, Deferred, Result
from relayd.errors import SpoolUnavailable
from relayd.spool.model import Lease, MailboxRef, State
from tests.courier_scene import DNS, FOREIGN, OTHER, Scene, ahead, crowded, leased, soon
from tests.deliver_fakes import ALERTS, Row, taken


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


def test_rows_leased_ahead_whose_turn_does_not_come_are_not_forgotten(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.deliver.pumps._SLOT_PATIENCE_S", 0.0)
    monkeypatch.setattr("relayd.deliver.pumps._SLOT_WAIT_S", 0.0)
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


def test_rows_are_leased_ahead_while_a_slot_is_in_use(scene: Scene) -> None:
    gate = crowded(scene)
    gate.clear()
    rows = [scene.door.put() for _ in range(30)]
    lane = scene.lane(ALERTS)
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


def test_a_fault_in_leasing_ahead_gives_everything_back(scene: Scene) -> None:
    gate = crowded(scene)
    lane = scene.lane(ALERTS)
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
    assert [one.counter for one in scene.roster.permits.values()] == [16, 16]


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


def test_behind_urgent_mail_other_mail_is_paced_as_before(scene: Scene) -> None:
    scene.start()
    scene.slots.is_paced_out = True
    before = [scene.door.accept(priority=1) for _ in range(20)]
    scene.settle()
    urgent = [scene.door.accept(priority=0) for _ in range(2)]
    scene.settle()
    after = [scene.door.accept(priority=1) for _ in range(20)]
    for _ in range(3):
        scene.settle()

    assert all(row.at(State.SENT) for row in urgent)
    gone = sum(row.at(State.SENT) for row in (*before, *after))
    assert gone <= 1, "the lease that found that no urgent mail is left"
    assert scene.lane(ALERTS).pumps == {1}
    scene.slots.is_paced_out = False
    scene.slots._freed.set()
    for _ in range(9):
        scene.settle()
    assert all(row.at(State.SENT) for row in (*before, *after))


def test_the_pump_for_other_mail_takes_over_from_the_one_for_urgent(scene: Scene) -> None:
    scene.slots.capacity = 0
    lane = scene.lane(ALERTS)
    lane.has_work = lane.is_urgent = True
    row = scene.door.put()
    scene.pumps.start(lane)
    scene.settle()
    lane.is_urgent = False  # another worker had it
    scene.slots.capacity = 3
    scene.slots._freed.set()
    scene.settle()

    assert scene.slots.asked[:2] == [(ALERTS, 0), (ALERTS, 1)]
    assert row.at(State.SENT)


def test_a_slot_for_urgent_mail_that_is_gone_already_is_given_back(scene: Scene) -> None:
    lane = scene.lane(ALERTS)
    lane.has_work = True  # of other mail
    assert scene.pumps._turn_of(lane, 0)
    assert scene.slots.all_free()
    assert scene.slots.unused == 1
    assert lane.has_work


def test_a_probe_is_one_delivery_however_many_slots_are_free(scene: Scene) -> None:
    scene.start()
    for _ in range(4):
        scene.door.put()
    lane = scene.lane(ALERTS)
    lane.way.circuit.failed(scene.clock.monotonic(), cause="c", text="")
    scene.clock.advance(2)

    leases, is_probe = scene.pumps._lease(lane, 4)
    assert (len(leases), is_probe) == (1, True)


def test_a_probe_of_an_upstream_that_went_down_meanwhile_is_marked_as_one(scene: Scene) -> None:
    """Else, leading nowhere, it would keep all others from probing for five minutes."""
    scene.make(carriers=1)
    scene.transport.default = lambda _: Deferred(Answer(code="no-time"))
    scene.door.put()
    lane = scene.lane(ALERTS)
    lane.has_work = True
    carriers = scene.roster.permits[ALERTS.upstream]
    carriers.acquire()
    turn = gevent.spawn(scene.pumps._turn_of, lane, 1)
    scene.settle()
    lane.way.circuit.failed(scene.clock.monotonic(), cause="c", text="")
    scene.clock.advance(3)
    carriers.release()
    turn.join(10)
    scene.settle()

    assert len(scene.transport.sent) == 1
    assert lane.way.circuit.state.value == "down"


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
    scene.roster.permits[ALERTS.upstream].acquire()
    row = scene.door.accept(priority=0)
    scene.settle()
    scene.slots.capacity += 1  # the mailbox is not what is short
    drained = gevent.spawn(scene.courier.drain, scene.clock.monotonic() + 0.05)
    drained.join(10)

    assert row.at(State.READY)


def test_waiting_for_a_slot_is_told_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.deliver.pumps._SLOT_PATIENCE_S", 0.0)
    monkeypatch.setattr("relayd.deliver.pumps._SLOT_WAIT_S", 0.0)
    scene.start()
    scene.slots.capacity = 0
    row = scene.door.accept()
    scene.settle()
    assert scene.events() == ["quota.waiting"]

    scene.slots.capacity = 1
    scene.settle()

    assert row.at(State.SENT)


# --- when one is wanted ----------------------------------------------------------------------


def test_a_mailbox_has_one_pump_for_each_priority(scene: Scene) -> None:
    scene.slots.capacity = 0
    lane = scene.lane(ALERTS)
    lane.has_work = True
    scene.pumps.start(lane)
    scene.pumps.start(lane)
    lane.is_urgent = True
    scene.pumps.start(lane)
    scene.pumps.start(lane)
    scene.settle()

    assert scene.slots.asked == [(ALERTS, 1), (ALERTS, 0)]


def test_a_mailbox_without_work_wants_none(scene: Scene) -> None:
    lane = scene.lane(ALERTS)
    scene.pumps.go_on(lane)

    assert not lane.pumps


def test_the_loop_is_woken_for_a_mailbox_when_it_may_go_on(scene: Scene) -> None:
    scene.start()
    lane = scene.lane(ALERTS)
    row = scene.door.put()
    lane.rest(scene.clock.monotonic(), 7.0)
    lane.has_work = True
    scene.pumps.go_on(lane)
    assert not lane.pumps
    scene.settle()

    assert scene.agenda.sleeps_until == pytest.approx(scene.clock.monotonic() + 7.0)
    scene.advance(7.0)
    assert row.at(State.SENT)


def test_a_mailbox_that_waits_for_nothing_but_the_worker_wakes_nobody(scene: Scene) -> None:
    lane = scene.lane(ALERTS)
    lane.has_work = True
    scene.gate.is_draining = True
    scene.pumps.go_on(lane)

    assert not lane.pumps


# --- what comes in the way meanwhile ---------------------------------------------------------


def test_a_slot_that_comes_too_late_is_given_back_unused(scene: Scene) -> None:
    scene.slots.capacity = 0
    scene.start()
    row = scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()
    lane = scene.lane(ALERTS)
    lane.rest(scene.clock.monotonic(), 30.0)
    scene.slots.capacity = 1
    scene.slots._freed.set()
    scene.settle()

    assert row.at(State.READY)
    assert "lease" not in scene.door.calls
    assert scene.slots.all_free()
    assert scene.slots.unused == 1
    assert lane.has_work
    assert lane.permits.counter == 16


def test_a_probe_that_is_out_lets_no_other_go(scene: Scene) -> None:
    lane, now = scene.lane(ALERTS), scene.clock.monotonic()
    scene.door.put()
    lane.has_work = True
    lane.way.circuit.failed(now, cause="c", text="")
    scene.clock.advance(2)
    assert lane.way.circuit.may_probe(scene.clock.monotonic())

    assert scene.pumps._lease(lane, 1) == ([], False)
    assert lane.has_work


def test_a_spool_that_cannot_lease_costs_no_slot_and_no_permit(scene: Scene) -> None:
    scene.start()
    scene.door.put()
    scene.door.broken = SpoolUnavailable("locked")
    scene.courier.offer([ALERTS])
    scene.settle()

    lane = scene.lane(ALERTS)
    assert lane.has_work
    assert scene.slots.all_free()
    assert lane.permits.counter == 16
    assert not lane.pumps, "it waits for the spool, not in a loop"


def test_nothing_is_leased_ahead_for_a_mailbox_that_rests(scene: Scene) -> None:
    scene.make(messages_per_minute=0)
    lane = scene.lane(ALERTS)
    lane.has_work, lane.carriers, lane.lease_s, lane.send_s = True, 1, 0.1, 0.001
    lane.rest(scene.clock.monotonic(), 30.0)
    scene.pumps.lease_ahead(lane)
    is_leasing = lane.is_leasing_ahead
    assert is_leasing
    scene.settle()

    assert not lane.is_leasing_ahead
    assert "lease" not in scene.door.calls
    assert lane.permits.counter == 16


def test_the_last_urgent_mail_gives_everything_back_when_there_is_none(scene: Scene) -> None:
    lane = scene.lane(ALERTS)
    for broken in (None, SpoolUnavailable("gone")):
        scene.door.broken = broken
        scene.pumps.last_urgent(lane, soon(scene))
    scene.slots.capacity = 0
    scene.pumps.last_urgent(lane, scene.clock.monotonic() + 0.001)
    lane.way.circuit.failed(scene.clock.monotonic(), cause="c", text="")
    scene.pumps.last_urgent(lane, soon(scene))

    assert scene.slots.all_free()
    assert lane.permits.counter == 16
    assert scene.door.calls.count("lease") == 2


def test_a_hand_whose_turn_does_not_come_is_given_back_though_a_pump_waits_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.deliver.pumps._SLOT_PATIENCE_S", 0.0)
    monkeypatch.setattr("relayd.deliver.pumps._SLOT_WAIT_S", 0.0)
    scene.slots.capacity = 0
    lane = scene.lane(ALERTS)
    lane.lay_in_hand([leased(scene)])
    lane.has_work = True
    scene.pumps.start(lane)
    scene.settle()

    assert scene.states() == [State.READY]
    assert lane.pumps == {1}
