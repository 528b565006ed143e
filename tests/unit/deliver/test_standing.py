"""What outcomes say about upstreams and mailboxes, here and in the other workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.deliver.outcome import Answer, Deferred, Result, Sent
from relayd.spool.model import MailboxRef, State
from tests.courier_scene import BAD, DNS, FOREIGN, GATEWAY, OTHER, SECRET, THROTTLED, Scene, new
from tests.deliver_fakes import ALERTS, taken


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
    lane = scene.lane(ALERTS)
    assert lane.rest_until == scene.clock.monotonic() + 10

    scene.advance(61)
    scene.door.accept()
    scene.settle()

    assert lane.rest_until == scene.clock.monotonic() + 10


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


def test_a_refusal_of_one_message_shows_that_the_upstream_is_back(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()

    scene.transport.default = lambda _: BAD
    scene.advance(3)

    assert scene.events("upstream.up") == ["upstream.up"]


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
