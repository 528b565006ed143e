"""A lease is kept, and what became of it is written down, however long that takes."""

from __future__ import annotations

from dataclasses import replace

import gevent
import pytest
from gevent.event import Event

from relayd.deliver.outcome import Result
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, Settlement, State
from tests.courier_scene import Scene, leased, new
from tests.deliver_fakes import ALERTS, LEASE_S, taken


def test_what_microsoft_took_is_settled_when_the_spool_is_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.deliver.retry.SPOOL_PAUSES_S", (0.001,))
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
    gevent.wait([scene.custody.idle], timeout=10)

    assert row.at(State.SENT)
    assert scene.events("delivery.paused", "delivery.resumed", "message.sent") == [
        "message.sent",
        "delivery.paused",
        "delivery.resumed",
    ]
    assert len(scene.transport.sent) == 1


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


def test_the_lease_of_a_long_send_is_renewed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.deliver.custody._KEEP_LEASES_S", 0.001)
    scene.start()
    scene.transport.gate = Event()
    row = scene.door.accept()
    scene.settle()
    end = row.lease.expires_boottime
    scene.clock.advance(LEASE_S / 2)
    while "renew" not in scene.door.calls:
        gevent.idle()
        gevent.get_hub().wait(gevent.get_hub().loop.timer(0.001))

    (carried,) = scene.custody.in_flight
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
    (carried,) = scene.custody.in_flight

    def fail(lease: Lease) -> Lease:
        raise trouble

    scene.door.renew = fail  # type: ignore[method-assign]
    scene.custody._renew(carried)

    assert carried.is_stopping == isinstance(trouble, LeaseLost)
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


# --- from pick-up to let-go ------------------------------------------------------------------

SENT = Settlement(state=State.SENT, outcome="sent")


def test_it_is_idle_when_nothing_is_under_way(scene: Scene) -> None:
    assert scene.custody.idle.is_set()
    first, second = leased(scene), leased(scene)
    lane = scene.lane(ALERTS)
    assert scene.custody.in_flight == {first, second}
    assert not scene.custody.idle.is_set()

    scene.custody.settle(lane, first, SENT)
    assert not scene.custody.idle.is_set()
    scene.custody.settle(lane, second, SENT)

    assert scene.custody.idle.is_set()
    assert scene.states() == [State.SENT, State.SENT]
    assert (lane.in_flight, lane.permits.counter) == (0, 16)


def test_a_permit_that_is_free_again_is_for_what_waits(scene: Scene) -> None:
    scene.start()
    lane = scene.lane(ALERTS)
    carried, waits = leased(scene), scene.door.put()
    lane.has_work = True

    scene.custody.let_go(lane, carried)
    scene.settle()

    assert waits.at(State.SENT)


def test_what_is_given_back_is_work_again(scene: Scene) -> None:
    lane, carried = scene.lane(ALERTS), leased(scene)

    scene.custody.settle(lane, carried, Settlement(state=State.READY, outcome="returned"))

    assert lane.has_work


def test_while_stopping_only_urgent_mail_may_begin(scene: Scene) -> None:
    before = leased(scene), leased(scene, priority=0)
    scene.custody.stop()
    scene.gate.is_draining = True
    after = leased(scene), leased(scene, priority=0)

    assert [one.may_start() for one in (*before, *after)] == [False, True, False, True]


def test_a_fault_after_settling_lets_it_go_all_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, carried = scene.lane(ALERTS), leased(scene)
    monkeypatch.setattr(scene.gate, "settled", None)  # a bug

    scene.custody.settle(lane, carried, SENT)

    assert scene.states() == [State.SENT]
    assert scene.events() == ["courier.bug"]
    assert (lane.in_flight, lane.permits.counter) == (0, 16)
    assert scene.custody.idle.is_set()


def test_a_lease_with_time_enough_is_not_renewed_and_keeping_ends_with_the_last(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.deliver.custody._KEEP_LEASES_S", 0.001)
    lane, carried = scene.lane(ALERTS), leased(scene)
    keeper = scene.custody._keeper
    assert keeper is not None
    leased_too = leased(scene)
    assert scene.custody._keeper is keeper, "one for all"
    scene.clock.advance(LEASE_S / 4)

    scene.custody.let_go(lane, carried)
    scene.custody.let_go(lane, leased_too)
    keeper.join(10)

    assert keeper.successful()
    assert "renew" not in scene.door.calls
    assert scene.custody._keeper is None
