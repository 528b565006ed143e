"""Nothing is leased or sent while something stands in the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from gevent.event import Event

from relayd.errors import SpoolUnavailable
from relayd.spool.model import State
from relayd.spool.store import Hold
from tests.courier_scene import Scene, new
from tests.deliver_fakes import ALERTS


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


def test_mail_of_a_sender_on_hold_is_not_born_leased(scene: Scene) -> None:
    hold = Hold(ALERTS, "alerts@contoso.com", "c", "t", scene.clock.now, scene.clock.now)
    scene.door.kept_holds[ALERTS, "alerts@contoso.com"] = replace(
        hold, probe_at=scene.clock.now + timedelta(hours=1)
    )
    scene.start()

    assert not scene.courier.wants(new(), 1)
    assert scene.courier.wants(new(header_from="other@contoso.com"), 1)
    scene.courier.spare(new())


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
