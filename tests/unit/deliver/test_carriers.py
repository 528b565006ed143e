"""Slots in use are kept busy; what is in hand is sent, or given back."""

from __future__ import annotations

import gevent

from relayd.deliver.outcome import Answer, Result, Sent
from relayd.spool.model import Lease, Settlement, State
from tests.courier_scene import DNS, THROTTLED, Scene, ahead, crowded, new
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
    assert [one.counter for one in scene.roster.permits.values()] == [16, 16]


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
