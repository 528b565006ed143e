"""Slots in use are kept busy; what is in hand is sent, or given back."""

from __future__ import annotations

import gevent

from relayd.deliver.lane import Lane, Supply
from relayd.deliver.outcome import Answer, Result, Sent
from relayd.deliver.transport import Grip
from relayd.spool.model import Lease, MailboxRef, Settlement, State
from tests.courier_scene import DNS, THROTTLED, Scene, ahead, crowded, leased, new
from tests.deliver_fakes import ALERTS, FakeTransport, taken


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


def test_urgent_mail_in_hand_goes_before_other(scene: Scene) -> None:
    gate = crowded(scene)
    normal, urgent = scene.door.accept(), scene.door.accept(priority=0)
    gate.set()
    scene.settle()

    order = scene.transport.order()
    assert order.index(urgent.lease.delivery) < order.index(normal.lease.delivery)


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


def test_a_slot_of_a_message_never_begun_does_not_count_for_pacing(scene: Scene) -> None:
    class Lacking(FakeTransport):
        def send(self, grip: object, content: object) -> Result:
            return DNS

    scene.roster.ways["contoso"].transport = Lacking()
    scene.start()
    scene.door.accept()
    scene.settle()

    assert scene.slots.unused >= 1
    assert scene.slots.all_free()


# --- what they ask of who supplies them ------------------------------------------------------


class Asked(Supply):
    """A supply that only notes what it is asked for."""

    def __init__(self, scene: Scene) -> None:
        self.calls: list[str] = []
        scene.carriers._supply = lambda: self

    def start(self, lane: Lane) -> None:
        self.calls.append("start")

    def go_on(self, lane: Lane) -> None:
        self.calls.append("go_on")

    def lease_ahead(self, lane: Lane) -> None:
        self.calls.append("lease_ahead")


def test_a_slot_carries_what_is_in_hand_and_is_given_up(scene: Scene) -> None:
    asked, lane = Asked(scene), scene.lane(ALERTS)
    first, second = leased(scene), leased(scene)
    lane.lay_in_hand([second])
    assert scene.slots.try_acquire(ALERTS)

    scene.carriers.carry(lane, first)

    assert scene.transport.order() == [1, 2]
    assert scene.slots.all_free()
    assert (lane.carriers, lane.unsent, lane.in_flight) == (0, 0, 0)
    assert asked.calls == [], "there is no more"


def test_when_the_slot_is_for_somebody_else_another_is_waited_for(scene: Scene) -> None:
    asked, lane = Asked(scene), scene.lane(ALERTS)
    first, second = leased(scene), leased(scene)
    lane.lay_in_hand([second])
    assert scene.slots.try_acquire(ALERTS)

    def last(_: Grip) -> None:
        scene.slots.capacity = 0

    scene.transport.before = last

    scene.carriers.carry(lane, first)

    assert asked.calls == ["start"]
    assert list(lane.hand) == [second]
    assert scene.slots.all_free()


def test_more_is_leased_while_a_slot_is_in_use_and_only_by_one_at_a_time(scene: Scene) -> None:
    scene.make(messages_per_minute=0)
    asked, lane = Asked(scene), scene.lane(ALERTS)
    for is_leasing, calls in ((False, ["lease_ahead", "go_on"]), (True, ["go_on"])):
        asked.calls.clear()
        lane.has_work, lane.is_leasing_ahead = True, is_leasing
        lane.lease_s, lane.send_s = 0.1, 0.001
        assert scene.slots.try_acquire(ALERTS)
        scene.carriers.carry(lane, leased(scene))
        assert asked.calls == calls


def test_what_is_in_hand_without_a_slot_is_left_to_the_supply(scene: Scene) -> None:
    asked, lane = Asked(scene), scene.lane(ALERTS)
    scene.slots.capacity = 1
    carried = [leased(scene) for _ in range(3)]

    scene.carriers.lay_in_hand(lane, carried)

    assert (lane.carriers, list(lane.hand)) == (1, carried[1:])
    assert asked.calls == ["start"]
    scene.settle()
    assert scene.transport.order() == [1, 2, 3]


def test_slots_nobody_needs_go_back_unused(scene: Scene) -> None:
    asked, lane = Asked(scene), scene.lane(ALERTS)
    for _ in range(3):
        assert scene.slots.try_acquire(ALERTS)

    scene.carriers.lay_in_hand(lane, [leased(scene)], slots=3)
    scene.settle()

    assert len(scene.transport.sent) == 1
    assert scene.slots.all_free()
    assert scene.slots.unused == 2
    assert asked.calls == []


def test_a_hand_that_is_empty_once_the_slot_is_there_gives_it_back(scene: Scene) -> None:
    Asked(scene)
    lane = scene.lane(ALERTS)
    first, second, third = (leased(scene) for _ in range(3))
    real = scene.slots.try_acquire

    def given_up_meanwhile(ref: MailboxRef, *, unused: bool = False) -> bool:
        scene.carriers.give_up_hand(lane)
        return True

    lane.lay_in_hand([second])
    assert real(ALERTS)
    scene.slots.again = given_up_meanwhile  # type: ignore[method-assign]
    scene.carriers.carry(lane, first)
    assert scene.slots.all_free()

    scene.slots.try_acquire = lambda ref: given_up_meanwhile(ref) and real(ref)  # type: ignore[method-assign]
    scene.carriers.lay_in_hand(lane, [third])

    assert scene.slots.all_free()
    assert scene.transport.order() == [1]
    assert [row.state for row in scene.door.rows.values()] == [State.SENT, State.READY, State.READY]


def test_what_is_given_back_was_not_tried_and_says_why(scene: Scene) -> None:
    Asked(scene)
    lane = scene.lane(ALERTS)
    normal, urgent = leased(scene), leased(scene, priority=0)
    lane.lay_in_hand([normal, urgent])
    scene.custody.stop()

    scene.carriers.stop_hand(lane)
    assert list(lane.hand) == [urgent]
    scene.carriers.give_up_hand(lane)

    assert not lane.hand
    assert scene.states() == [State.READY, State.READY]
    texts = [row.history[0].text for row in scene.door.rows.values()]
    assert texts == ["the worker stops", "its turn did not come"]
    assert [row.lease.attempt for row in scene.door.rows.values()] == [0, 0]
    assert (lane.unsent, lane.in_flight) == (0, 0)


def test_one_message_after_the_other_is_carried_by_the_same_greenlet(scene: Scene) -> None:
    who: list[object] = []

    def remembered(lease: Lease) -> Result:
        who.append(gevent.getcurrent())
        return taken(lease)

    scene.transport.default = remembered
    scene.start()
    for _ in range(3):
        scene.door.accept()
        scene.settle()
    assert len(who) == 3
    assert len(set(map(id, who))) == 1
