"""Nothing is leased or sent while something stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from gevent.event import Event
from gevent.lock import Semaphore

from relayd.clock import FakeClock
from relayd.config.model import Upstream
from relayd.deliver.agenda import Agenda
from relayd.deliver.gate import Gate
from relayd.deliver.lane import Lane, Way
from relayd.errors import SpoolUnavailable
from relayd.spool.model import Settlement, State
from relayd.spool.store import Hold
from tests.courier_scene import Scene, new
from tests.deliver_fakes import ALERTS, FakeTransport, lease_of


class Post:
    """A gate and a mailbox that wants through."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.agenda = Agenda(self.clock)
        self.gate = Gate(self.agenda, self.clock)
        self.lane = Lane(ALERTS, Way(Upstream(name="contoso"), FakeTransport()), Semaphore(16))

    def answers(self) -> tuple[bool, bool, bool]:
        """Return what `is_clear`, `may_lease` and `may_send` say."""
        return (
            self.gate.is_clear(self.lane, new(), 1),
            self.gate.may_lease(self.lane),
            self.gate.may_send(self.lane),
        )


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


# --- the three questions, each obstacle alone ------------------------------------------------


def stop(post: Post) -> None:
    post.gate.is_draining = True


def set_clock_wrong(post: Post) -> None:
    post.clock.now = datetime(1970, 1, 1, tzinfo=UTC)
    post.gate.look_at_clock()


def break_spool(post: Post) -> None:
    post.gate.spool_failed(SpoolUnavailable("disk full"))


def rest(post: Post) -> None:
    post.lane.rest(post.clock.monotonic(), 30.0)


def go_down(post: Post) -> None:
    post.lane.way.circuit.failed(post.clock.monotonic(), cause="c", text="t")


def hold(post: Post) -> None:
    now = post.clock.now
    post.gate.learn_holds([Hold(ALERTS, "alerts@contoso.com", "c", "t", now, now)])


def have_work(post: Post) -> None:
    post.lane.has_work = True


def test_nothing_stands_in_the_way_of_a_quiet_mailbox() -> None:
    post = Post()

    assert post.answers() == (True, True, True)


@pytest.mark.parametrize(
    ("obstacle", "is_clear", "may_lease", "may_send"),
    [
        (stop, False, False, True),  # what is in hand and urgent still goes
        (set_clock_wrong, False, False, False),
        (break_spool, False, False, True),  # what is in hand is leased: sent, it is settled later
        (rest, False, False, False),
        (go_down, False, False, False),
        (hold, False, True, True),  # the spool knows which of its rows are held
        (have_work, False, True, True),
    ],
)
def test_each_obstacle_stands_in_the_way_of_what_it_concerns(
    obstacle: Callable[[Post], None],
    is_clear: bool,  # noqa: FBT001  a column of the table
    may_lease: bool,  # noqa: FBT001  likewise
    may_send: bool,  # noqa: FBT001  likewise
) -> None:
    post = Post()
    with structlog.testing.capture_logs():
        obstacle(post)

    assert post.answers() == (is_clear, may_lease, may_send)


def test_of_an_upstream_that_is_down_a_probe_may_be_leased_when_it_is_due() -> None:
    post = Post()
    go_down(post)
    post.clock.advance(2.0)

    assert post.answers() == (False, True, False)


def test_a_broken_spool_is_asked_again_after_a_pause_that_grows() -> None:
    post = Post()
    with structlog.testing.capture_logs() as lines:
        for pause_s in (0.2, 0.5, 1.0, 2.0, 5.0, 5.0):
            break_spool(post)
            assert post.gate.retry_at == pytest.approx(post.clock.monotonic() + pause_s)
        post.clock.advance(5.0)
        assert post.answers() == (False, True, True), "new mail waits until one was written"

        post.gate.spool_is_well()
        post.gate.spool_is_well()

    assert post.answers() == (True, True, True)
    assert post.gate.retry_at == 0.0
    assert [line["event"] for line in lines] == ["delivery.paused", "delivery.resumed"]


def test_a_clock_that_is_wrong_is_told_once_and_so_is_its_mending() -> None:
    post = Post(FakeClock(now=datetime(1970, 1, 1, tzinfo=UTC)))
    with structlog.testing.capture_logs() as lines:
        post.gate.look_at_clock()
        post.gate.look_at_clock()
        post.clock.now = datetime(2026, 12, 1, tzinfo=UTC)
        post.gate.look_at_clock()
        post.gate.look_at_clock()

    assert [line["event"] for line in lines] == ["clock.wrong", "clock.right"]
    assert post.answers() == (True, True, True)


def test_a_clock_that_leaps_stands_in_the_way_for_a_minute() -> None:
    post = Post()
    with structlog.testing.capture_logs() as lines:
        post.clock.now += timedelta(days=1)
        post.gate.look_at_clock()
        assert post.answers() == (False, False, False)
        post.clock.advance(60.0)
        post.gate.look_at_clock()

    assert post.answers() == (True, True, True)
    assert [line["event"] for line in lines] == ["clock.leaped", "clock.wrong", "clock.right"]


def test_a_hold_is_learnt_from_what_is_settled_and_ended_by_a_success() -> None:
    post = Post()
    post.agenda.scanning()
    post.agenda.scanned(None)
    lease = lease_of(post.clock)
    due = post.clock.now + timedelta(minutes=30)

    post.gate.settled(lease, Settlement(state=State.HELD, outcome="misconfigured", due_at=due))
    assert post.answers() == (False, True, True)
    assert post.agenda.due_in_s() == 1800.0

    post.gate.settled(lease, Settlement(state=State.SENT, outcome="sent"))
    assert post.answers() == (True, True, True)
    assert post.agenda.must_scan(), "what it held may go"


def test_a_row_on_hold_for_itself_alone_stops_nobody() -> None:
    post = Post()

    post.gate.settled(lease_of(post.clock), Settlement(state=State.HELD, outcome="ambiguous"))

    assert post.answers() == (True, True, True)
    assert post.agenda.due_in_s() is None


def test_a_deferred_row_is_looked_for_when_it_is_due() -> None:
    post = Post()
    due = post.clock.now + timedelta(seconds=60)

    post.gate.settled(
        lease_of(post.clock), Settlement(state=State.DEFERRED, outcome="deferred", due_at=due)
    )

    assert post.agenda.due_in_s() == 60.0
    assert post.answers() == (True, True, True)
