"""One attempt and what is to be settled after it, whatever happens on the way."""

from __future__ import annotations

import gevent
from gevent.event import Event

from relayd.deliver.outcome import Answer, Deferred, Result
from relayd.deliver.transport import Grip
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, State
from tests.courier_scene import GATEWAY, THROTTLED, Scene, soon
from tests.deliver_fakes import FakeTransport, taken


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
