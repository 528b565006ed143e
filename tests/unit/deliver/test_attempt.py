"""One attempt and what is to be settled after it, whatever happens on the way."""

from __future__ import annotations

from datetime import timedelta

import gevent
import pytest
from gevent.event import Event

from relayd.config.model import Spool
from relayd.deliver.courier import Courier
from relayd.deliver.outcome import Answer, Deferred, Result
from relayd.deliver.transport import Grip, OpenContent
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, State
from tests.courier_scene import GATEWAY, THROTTLED, Scene, soon
from tests.deliver_fakes import ALERTS, CONTENT, FakeTransport, taken


def test_outcomes_are_told_to_who_listens(scene: Scene) -> None:
    scene.start()
    row = scene.door.accept()
    scene.settle()

    ((lease, settlement),) = scene.outcomes
    assert lease.message == row.lease.message
    assert settlement.state is State.SENT


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

    scene.roster.ways["contoso"].transport = Waiting()
    drained = gevent.spawn(scene.courier.drain, soon(scene))
    scene.settle()
    gate.set()
    drained.join(10)

    assert row.at(State.READY)
    assert row.history[0].outcome == "returned"


def test_what_may_not_start_any_more_is_given_back_untried(scene: Scene) -> None:
    scene.start()
    row = scene.door.accept()
    (carried,) = scene.custody.in_flight
    carried.is_stopping = True
    scene.settle()

    assert [one.outcome for one in row.history] == ["returned", "sent"]
    assert row.history[0].text == "the worker stops"
    assert len(scene.outcomes) == len(scene.transport.sent) == 1
    assert row.lease.attempt == 1, "no try is counted"


def test_a_fault_in_deciding_leaves_the_lease_to_run_out(scene: Scene) -> None:
    scene.start()
    scene.transport.default = lambda _: None  # type: ignore[assignment,return-value]  # a bug
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.LEASED), "nobody knows what to settle"
    assert scene.events() == ["courier.bug"]
    assert scene.slots.all_free()
    assert scene.courier.in_flight == 0


def test_content_is_opened_by_the_transport_when_it_wants_it(scene: Scene) -> None:
    read: list[bytes] = []

    class Reading(FakeTransport):
        def send(self, grip: Grip, content: OpenContent) -> Result:
            with content() as pieces:
                read.extend(pieces)
            return super().send(grip, content)

    scene.roster.ways["contoso"].transport = Reading()
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.SENT)
    assert read == [CONTENT]


def test_nothing_is_given_up_for_its_age_while_the_clock_is_not_trusted(scene: Scene) -> None:
    scene.transport.default = lambda _: THROTTLED
    scene.start()
    scene.clock.now += timedelta(days=10)
    scene.wake()
    scene.advance(61)
    row = scene.door.accept(expires_at=scene.clock.now - timedelta(days=5))
    scene.settle()

    assert row.at(State.DEFERRED)


def test_a_courier_nobody_listens_to_settles_all_the_same(scene: Scene) -> None:
    courier = Courier(
        scene.door, scene.slots, list(scene.roster.ways.values()), Spool(), clock=scene.clock
    )
    scene.courier = courier
    scene.start()
    row = scene.door.accept()
    scene.settle()

    assert row.at(State.SENT)
    assert not scene.outcomes


@pytest.mark.parametrize(
    "fault", [ZeroDivisionError(), SpoolUnavailable("bad sector"), LeaseLost()]
)
def test_a_probe_that_ends_in_a_fault_of_ours_lets_the_next_go(
    scene: Scene, fault: Exception
) -> None:
    scene.start()
    circuit = scene.roster.ways["contoso"].circuit
    circuit.failed(scene.clock.monotonic(), cause="c", text="")
    scene.clock.advance(2)

    def fail(lease: Lease) -> Result:
        raise fault

    scene.transport.default = fail
    scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()
    assert len(scene.transport.sent) == 1
    assert circuit.state.value == "down", "not probing for five minutes"

    scene.transport.default = taken
    row = scene.door.put()
    scene.courier.offer([ALERTS])
    scene.settle()

    assert row.at(State.SENT)
